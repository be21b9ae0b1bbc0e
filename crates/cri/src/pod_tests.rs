//! Tests of [`super`].

use std::path::Path;

use coracle_domain::{IpcMode, PidMode, Profile, RunAs};
use proptest::prelude::*;
use prost::Message;

use super::*;
use crate::samples;

fn request(config: v1::PodSandboxConfig) -> v1::RunPodSandboxRequest {
    v1::RunPodSandboxRequest { config: Some(config), runtime_handler: String::new() }
}

fn refused_field(config: v1::PodSandboxConfig) -> String {
    match parse(&request(config)) {
        Err(Refusal::Invalid { field, .. }) => field,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_kubelets_pod_is_read_whole() {
    let pod = samples::pod_request();
    assert_eq!((pod.metadata.name.as_str(), pod.metadata.attempt), ("web", 1));
    assert_eq!(pod.handler, Some(HandlerName("native".to_owned())));
    assert_eq!((pod.network, &pod.pid, pod.ipc), (NetworkMode::Pod, &PidMode::Container, IpcMode::Pod));
    assert_eq!(pod.hostname.as_deref(), Some("web-0"));
    assert_eq!(pod.log_directory.as_deref(), Some(Path::new("/var/log/pods/default_web_42")));
    assert_eq!((&pod.security.run_as, pod.security.run_as_group), (&RunAs::Uid(1000), Some(1001)));
    assert_eq!(pod.security.seccomp, Profile::Localhost("/var/lib/kubelet/seccomp/p.json".to_owned()));
    assert_eq!(pod.dns.unwrap().options, ["ndots:5"]);
    assert_eq!(pod.resources.unwrap().cpu_shares, Some(512));
    assert_eq!(pod.overhead, Some(Resources::default()));
}

#[test]
fn a_bare_pod_has_defaults() {
    let metadata = samples::pod_config().metadata;
    let pod = parse(&request(v1::PodSandboxConfig { metadata, ..Default::default() })).unwrap();
    assert_eq!((pod.handler, pod.hostname, pod.log_directory, pod.dns, pod.cgroup_parent), (None, None, None, None, None));
    assert_eq!((pod.network, pod.pid, pod.ipc), (NetworkMode::Pod, PidMode::Pod, IpcMode::Pod));
    assert_eq!((pod.security, pod.resources), (SecurityContext::default(), None));
}

#[test]
fn a_host_port_of_zero_is_no_mapping() {
    let ports = samples::pod_request().ports;
    let mapping = PortMapping { protocol: Protocol::Udp, container_port: 53, host_port: 5353, host_ip: "127.0.0.1".parse().ok() };
    assert_eq!(ports, [mapping]);
}

#[test]
fn the_nodes_network_needs_neither_ports_nor_a_hostname() {
    let mut config = samples::pod_config();
    let linux = config.linux.as_mut().unwrap();
    linux.sysctls.clear();
    let options = v1::NamespaceOption { network: v1::NamespaceMode::Node.into(), ..Default::default() };
    linux.security_context.as_mut().unwrap().namespace_options = Some(options);
    let pod = parse(&request(config)).unwrap();
    assert_eq!((pod.network, pod.hostname, pod.ports.len()), (NetworkMode::Node, None, 0));
}

#[test]
fn a_dns_configuration_that_says_nothing_is_none() {
    let config = v1::PodSandboxConfig { dns_config: Some(v1::DnsConfig::default()), ..samples::pod_config() };
    assert_eq!(parse(&request(config)).unwrap().dns, None);
}

#[test]
fn malformed_fields_are_refused_by_name() {
    type Spoil = fn(&mut v1::PodSandboxConfig);
    let cases: [(&str, Spoil); 16] = [
        ("config.metadata", |c| c.metadata = None),
        ("config.metadata.name", |c| c.metadata.as_mut().unwrap().name.clear()),
        ("config.metadata.uid", |c| c.metadata.as_mut().unwrap().uid.clear()),
        ("config.metadata.namespace", |c| c.metadata.as_mut().unwrap().namespace = "\0".to_owned()),
        ("config.hostname", |c| c.hostname = "x".repeat(65)),
        ("config.hostname", |c| c.hostname = "a\nb".to_owned()),
        ("config.log_directory", |c| c.log_directory = "logs".to_owned()),
        ("config.dns_config.servers", |c| c.dns_config.as_mut().unwrap().servers = vec!["1.1.1.1\noptions x".to_owned()]),
        ("config.port_mappings[0].protocol", |c| c.port_mappings[0].protocol = 3),
        ("config.port_mappings[0].host_port", |c| c.port_mappings[0].host_port = 65536),
        ("config.port_mappings[1].host_port", |c| c.port_mappings[1].host_port = -1),
        ("config.port_mappings[0].container_port", |c| c.port_mappings[0].container_port = 0),
        ("config.port_mappings[0].host_ip", |c| c.port_mappings[0].host_ip = "localhost".to_owned()),
        ("config.linux.cgroup_parent", |c| c.linux.as_mut().unwrap().cgroup_parent = "/kubepods/../..".to_owned()),
        ("config.linux.sysctls", |c| drop(c.linux.as_mut().unwrap().sysctls.insert("vm.swappiness".to_owned(), "1".to_owned()))),
        ("config.linux.resources.oom_score_adj", |c| c.linux.as_mut().unwrap().resources.as_mut().unwrap().oom_score_adj = 5000),
    ];
    for (name, spoil) in cases {
        let mut config = samples::pod_config();
        spoil(&mut config);
        assert_eq!(refused_field(config), name);
    }
    assert!(matches!(parse(&v1::RunPodSandboxRequest::default()), Err(Refusal::Invalid { field, .. }) if field == "config"));
}

#[test]
fn a_status_has_what_a_kubelet_demands() {
    let status = status(&samples::pod());
    let metadata = status.metadata.clone().unwrap();
    assert_eq!((metadata.name.as_str(), metadata.uid.as_str(), metadata.namespace.as_str(), metadata.attempt), ("web", "42", "default", 1));
    assert_eq!((status.id.len(), status.created_at, status.state()), (64, 50, v1::PodSandboxState::SandboxReady));
    let network = status.network.clone().unwrap();
    assert_eq!(network.ip, "10.88.0.2");
    assert_eq!(network.additional_ips, [v1::PodIp { ip: "fd00::2".to_owned() }]);
    let options = status.linux.unwrap().namespaces.unwrap().options.unwrap();
    assert_eq!(
        (options.network(), options.pid(), options.ipc()),
        (v1::NamespaceMode::Pod, v1::NamespaceMode::Container, v1::NamespaceMode::Pod)
    );
    assert_eq!((status.annotations, status.labels), (samples::pod_config().annotations, samples::pod_config().labels));
    assert_eq!(status.runtime_handler, "native");
}

#[test]
fn only_a_ready_pod_is_ready() {
    let stopped = PodView { phase: PodPhase::Stopped, addresses: Vec::new(), ..PodView::clone(&samples::pod()) };
    assert_eq!(item(&stopped).state(), v1::PodSandboxState::SandboxNotready);
    assert_eq!(status(&stopped).network, Some(v1::PodSandboxNetworkStatus::default()));
}

proptest! {
    #[test]
    fn no_bytes_make_the_parser_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(config) = v1::PodSandboxConfig::decode(bytes.as_slice()) {
            let _ = parse(&request(config));
        }
    }

    #[test]
    fn no_damage_to_a_good_request_makes_the_parser_panic(
        damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let mut bytes = samples::pod_config().encode_to_vec();
        for (index, byte) in damage {
            let index = index.index(bytes.len());
            bytes[index] = byte;
        }
        if let Ok(config) = v1::PodSandboxConfig::decode(bytes.as_slice()) {
            let _ = parse(&request(config));
        }
    }
}
