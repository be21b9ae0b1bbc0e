//! Pods: from `RunPodSandboxRequest` to the domain's [`PodRequest`], and from [`PodView`] to CRI's list
//! items and statuses.

use std::net::IpAddr;

use coracle_domain::{
    DnsConfig, HandlerName, NetworkMode, PodMetadata, PodPhase, PodRequest, PodResources, PodView, PortMapping, Protocol, Refusal,
    Resources, SecurityContext,
};

use crate::check::{self, Checked};
use crate::{namespaces, resources, security, sysctl, time_offsets, v1};

/// Bytes that sethostname(2) takes.
const HOSTNAME_MAX: usize = 64;

/// The pod that is asked for.
pub(crate) fn parse(request: &v1::RunPodSandboxRequest) -> Checked<PodRequest> {
    let config = check::present("config", &request.config)?;
    let handler = check::text("runtime_handler", &request.runtime_handler)?;
    Ok(PodRequest { handler: (!handler.is_empty()).then_some(HandlerName(handler)), ..parse_config(config)? })
}

fn parse_config(config: &v1::PodSandboxConfig) -> Checked<PodRequest> {
    let default = v1::LinuxPodSandboxConfig::default();
    let linux = config.linux.as_ref().unwrap_or(&default);
    let context = linux.security_context.clone().unwrap_or_default();
    let modes = namespaces::of_pod(&context.namespace_options.clone().unwrap_or_default())?;
    Ok(PodRequest {
        metadata: metadata(check::present("config.metadata", &config.metadata)?)?,
        handler: None,
        hostname: hostname(&config.hostname, modes.network)?,
        log_directory: check::absolute_or_none("config.log_directory", &config.log_directory)?,
        dns: config.dns_config.as_ref().map(dns).transpose()?.flatten(),
        ports: ports(&config.port_mappings, modes.network)?,
        labels: config.labels.clone(),
        annotations: config.annotations.clone(),
        cgroup_parent: cgroup_parent(&linux.cgroup_parent)?,
        sysctls: sysctl::parse(&linux.sysctls, modes.network, modes.ipc)?,
        security: linux.security_context.as_ref().map_or(Ok(SecurityContext::default()), security::of_pod)?,
        resources: limits("config.linux.resources", linux.resources.as_ref())?,
        overhead: limits("config.linux.overhead", linux.overhead.as_ref())?,
        network: modes.network,
        pid: modes.pid,
        ipc: modes.ipc,
        user_namespace: modes.user,
        time_offsets: time_offsets::parse(&config.annotations)?,
    })
}

/// The kubelet rejects a status without any of the three names, so a pod is not made without them.
fn metadata(metadata: &v1::PodSandboxMetadata) -> Checked<PodMetadata> {
    Ok(PodMetadata {
        name: check::required("config.metadata.name", &metadata.name)?,
        uid: check::required("config.metadata.uid", &metadata.uid)?,
        namespace: check::required("config.metadata.namespace", &metadata.namespace)?,
        attempt: metadata.attempt,
    })
}

fn hostname(name: &str, network: NetworkMode) -> Checked<Option<String>> {
    if name.is_empty() {
        return Ok(None);
    }
    let name = check::word("config.hostname", name)?;
    if name.len() > HOSTNAME_MAX {
        return Err(Refusal::invalid("config.hostname", format!("{name:?} is longer than {HOSTNAME_MAX} bytes")));
    }
    Ok((network == NetworkMode::Pod).then_some(name))
}

/// A configuration that says nothing means the node's own, as for the peers.
fn dns(config: &v1::DnsConfig) -> Checked<Option<DnsConfig>> {
    let words = |name: &str, words: &[String]| {
        let field = format!("config.dns_config.{name}");
        words.iter().map(|word| check::word(&field, word)).collect::<Checked<Vec<_>>>()
    };
    let dns = DnsConfig {
        servers: words("servers", &config.servers)?,
        searches: words("searches", &config.searches)?,
        options: words("options", &config.options)?,
    };
    let silent = dns.servers.is_empty() && dns.searches.is_empty() && dns.options.is_empty();
    Ok((!silent).then_some(dns))
}

/// The mappings that open a port of the node. On the node's own network every port is there already.
fn ports(mappings: &[v1::PortMapping], network: NetworkMode) -> Checked<Vec<PortMapping>> {
    let mappings: Vec<_> = mappings.iter().enumerate().map(|(index, mapping)| port(index, mapping)).collect::<Checked<_>>()?;
    Ok(if network == NetworkMode::Node { Vec::new() } else { mappings.into_iter().flatten().collect() })
}

fn port(index: usize, mapping: &v1::PortMapping) -> Checked<Option<PortMapping>> {
    let at = |name: &str| format!("config.port_mappings[{index}].{name}");
    let number = |name: &str, value: i32| {
        u16::try_from(value).map_err(|_| Refusal::invalid(at(name), format!("{value} is not a port (0 to 65535)")))
    };
    let protocol = match check::known(&at("protocol"), mapping.protocol)? {
        v1::Protocol::Tcp => Protocol::Tcp,
        v1::Protocol::Udp => Protocol::Udp,
        v1::Protocol::Sctp => Protocol::Sctp,
    };
    let (container_port, host_port) = (number("container_port", mapping.container_port)?, number("host_port", mapping.host_port)?);
    let host_ip = host_ip(&at("host_ip"), &mapping.host_ip)?;
    match (host_port, container_port) {
        (0, _) => Ok(None),
        (_, 0) => Err(Refusal::invalid(at("container_port"), "is 0, but the node's port must lead somewhere")),
        _ => Ok(Some(PortMapping { protocol, container_port, host_port, host_ip })),
    }
}

fn host_ip(field: &str, text: &str) -> Checked<Option<IpAddr>> {
    if text.is_empty() {
        return Ok(None);
    }
    text.parse().map(Some).map_err(|_| Refusal::invalid(field, format!("{text:?} is not an IP address")))
}

fn cgroup_parent(path: &str) -> Checked<Option<String>> {
    let path = check::text("config.linux.cgroup_parent", path)?;
    if !check::never_climbs(&path) {
        return Err(Refusal::invalid("config.linux.cgroup_parent", format!("{path:?} contains \"..\"")));
    }
    Ok((!path.is_empty()).then_some(path))
}

fn limits(field: &str, message: Option<&v1::LinuxContainerResources>) -> Checked<Option<Resources>> {
    message.map(|message| resources::parse(field, message)).transpose()
}

/// What a resized pod may use. A field that is absent means: as before.
pub(crate) fn parse_resize(request: &v1::UpdatePodSandboxResourcesRequest) -> Checked<PodResources> {
    Ok(PodResources {
        resources: limits("resources", request.resources.as_ref())?,
        overhead: limits("overhead", request.overhead.as_ref())?,
    })
}

fn metadata_message(metadata: &PodMetadata) -> v1::PodSandboxMetadata {
    let PodMetadata { name, uid, namespace, attempt } = metadata.clone();
    v1::PodSandboxMetadata { name, uid, namespace, attempt }
}

fn handler_message(request: &PodRequest) -> String {
    request.handler.as_ref().map(|handler| handler.0.clone()).unwrap_or_default()
}

/// A pod's state: CRI knows only whether it can take containers.
pub(crate) fn state(phase: PodPhase) -> v1::PodSandboxState {
    match phase {
        PodPhase::Ready => v1::PodSandboxState::SandboxReady,
        PodPhase::Creating | PodPhase::Stopped => v1::PodSandboxState::SandboxNotready,
    }
}

/// A pod as it stands in lists.
pub(crate) fn item(pod: &PodView) -> v1::PodSandbox {
    v1::PodSandbox {
        id: pod.id.to_string(),
        metadata: Some(metadata_message(&pod.request.metadata)),
        state: state(pod.phase).into(),
        created_at: pod.created_at,
        labels: pod.request.labels.clone(),
        annotations: pod.request.annotations.clone(),
        runtime_handler: handler_message(&pod.request),
    }
}

/// A pod's status.
pub(crate) fn status(pod: &PodView) -> v1::PodSandboxStatus {
    let mut addresses = pod.addresses.iter().map(IpAddr::to_string);
    let namespaces = v1::Namespace { options: Some(namespaces::message(&pod.request)) };
    v1::PodSandboxStatus {
        id: pod.id.to_string(),
        metadata: Some(metadata_message(&pod.request.metadata)),
        state: state(pod.phase).into(),
        created_at: pod.created_at,
        network: Some(v1::PodSandboxNetworkStatus {
            ip: addresses.next().unwrap_or_default(),
            additional_ips: addresses.map(|ip| v1::PodIp { ip }).collect(),
        }),
        linux: Some(v1::LinuxPodSandboxStatus { namespaces: Some(namespaces) }),
        labels: pod.request.labels.clone(),
        annotations: pod.request.annotations.clone(),
        runtime_handler: handler_message(&pod.request),
    }
}

/// Whose measurements these are.
pub(crate) fn attributes(pod: &PodView) -> v1::PodSandboxAttributes {
    v1::PodSandboxAttributes {
        id: pod.id.to_string(),
        metadata: Some(metadata_message(&pod.request.metadata)),
        labels: pod.request.labels.clone(),
        annotations: pod.request.annotations.clone(),
    }
}

#[cfg(test)]
#[path = "pod_tests.rs"]
mod tests;
