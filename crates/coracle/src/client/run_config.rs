//! The CRI messages of `run`, from its arguments. Pure.

use std::collections::BTreeMap;

use coracle_cri::v1;

use super::log_directory;
use super::values::{Cpus, Memory, Pair, User, UserName, Volume};
use crate::cli::RunArgs;

/// Hidden from containers by kubelets, where `procMount` is the default.
const MASKED_PATHS: [&str; 11] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
];
/// Shown to containers, but not to be written.
const READONLY_PATHS: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// The longest host name that Linux takes is 64; DNS takes 63.
const LONGEST_LABEL: usize = 63;

/// How pod and container are called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    name: String,
    uid: String,
}

impl Identity {
    /// The name asked for, or one made of the image's and random digits.
    pub(crate) fn new(args: &RunArgs, uuid: &str) -> Self {
        let name = args.name.clone().unwrap_or_else(|| default_name(&args.image, uuid));
        Self { name, uid: uuid.into() }
    }

    /// Relative to the pod's log directory, and directly in it: of that directory only the runtime knows for sure
    /// where it is, so no other can be made in it.
    pub(crate) fn log_file(&self) -> String {
        format!("{}.log", self.name)
    }
}

/// `registry:5000/some/busybox:1.36@sha256:…` is `busybox-1f2e3`.
fn default_name(image: &str, uuid: &str) -> String {
    let is_id = image.starts_with("sha256:");
    let path = image.split('@').next().unwrap_or_default();
    let word = path.rsplit('/').next().and_then(|word| word.split(':').next()).unwrap_or_default();
    let word: String = word.chars().map(|c| c.to_ascii_lowercase()).filter(|c| c.is_ascii_alphanumeric() || *c == '-').take(50).collect();
    let word = if is_id || !word.starts_with(|c: char| c.is_ascii_alphanumeric()) { "container" } else { &word };
    let digits: String = uuid.chars().filter(char::is_ascii_hexdigit).take(5).collect();
    format!("{word}-{digits}")
}

fn map(pairs: &[Pair]) -> BTreeMap<String, String> {
    pairs.iter().map(|pair| (pair.key.clone(), pair.value.clone())).collect()
}

fn strings(texts: &[&str]) -> Vec<String> {
    texts.iter().map(ToString::to_string).collect()
}

/// As asked for; else as it was when the pod was made; else in the usual place.
fn log_directory(args: &RunArgs, metadata: &v1::PodSandboxMetadata, annotations: &BTreeMap<String, String>) -> String {
    let asked = args.log_dir.as_ref().map(|path| path.display().to_string());
    asked.or_else(|| log_directory::noted(annotations).map(String::from)).unwrap_or_else(|| log_directory::usual(metadata))
}

/// A pod of its own for the container.
pub(crate) fn pod(args: &RunArgs, identity: &Identity) -> v1::PodSandboxConfig {
    let Identity { name, uid } = identity.clone();
    let metadata = v1::PodSandboxMetadata { name, uid, namespace: args.namespace.clone(), attempt: 0 };
    let network = if args.host_network { v1::NamespaceMode::Node } else { v1::NamespaceMode::Pod };
    let options = v1::NamespaceOption { network: network.into(), pid: v1::NamespaceMode::Container.into(), ..Default::default() };
    let security_context = v1::LinuxSandboxSecurityContext {
        namespace_options: Some(options),
        privileged: args.privileged,
        seccomp: seccomp(args.privileged),
        ..Default::default()
    };
    let log_directory = log_directory(args, &metadata, &BTreeMap::new());
    v1::PodSandboxConfig {
        hostname: if args.host_network { String::new() } else { hostname(&metadata.name) },
        annotations: log_directory::annotation(&log_directory),
        log_directory,
        labels: map(&args.label),
        linux: Some(v1::LinuxPodSandboxConfig { security_context: Some(security_context), ..Default::default() }),
        metadata: Some(metadata),
        ..Default::default()
    }
}

fn hostname(name: &str) -> String {
    let label: String =
        name.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' }).take(LONGEST_LABEL).collect();
    label.trim_end_matches('-').into()
}

/// What can be known of the configuration of a pod that is there.
pub(crate) fn joined_pod(args: &RunArgs, status: v1::PodSandboxStatus) -> v1::PodSandboxConfig {
    let metadata = status.metadata.unwrap_or_default();
    let options = status.linux.and_then(|linux| linux.namespaces).and_then(|namespaces| namespaces.options);
    let security_context =
        v1::LinuxSandboxSecurityContext { namespace_options: options, privileged: args.privileged, ..Default::default() };
    v1::PodSandboxConfig {
        log_directory: log_directory(args, &metadata, &status.annotations),
        metadata: Some(metadata),
        labels: status.labels,
        annotations: status.annotations,
        linux: Some(v1::LinuxPodSandboxConfig { security_context: Some(security_context), ..Default::default() }),
        ..Default::default()
    }
}

/// The container in `pod`.
pub(crate) fn container(args: &RunArgs, identity: &Identity, image_id: &str, pod: &v1::PodSandboxConfig) -> v1::ContainerConfig {
    let image = v1::ImageSpec { image: image_id.into(), user_specified_image: args.image.clone(), ..Default::default() };
    let envs = args.env.iter().map(|pair| v1::KeyValue { key: pair.key.clone(), value: pair.value.clone().into_bytes() });
    v1::ContainerConfig {
        metadata: Some(v1::ContainerMetadata { name: identity.name.clone(), attempt: 0 }),
        image: Some(image),
        command: args.entrypoint.iter().cloned().collect(),
        args: args.command.clone(),
        working_dir: args.workdir.clone().unwrap_or_default(),
        envs: envs.collect(),
        mounts: args.volume.iter().map(mount).collect(),
        labels: map(&args.label),
        log_path: identity.log_file(),
        tty: args.tty,
        linux: Some(v1::LinuxContainerConfig {
            resources: Some(resources(args.memory, args.cpus)),
            security_context: Some(security_context(args, pod)),
        }),
        ..Default::default()
    }
}

fn mount(volume: &Volume) -> v1::Mount {
    let Volume { host, container, read_only } = volume.clone();
    v1::Mount { host_path: host, container_path: container, readonly: read_only, ..Default::default() }
}

fn resources(memory: Option<Memory>, cpus: Option<Cpus>) -> v1::LinuxContainerResources {
    v1::LinuxContainerResources {
        memory_limit_in_bytes: memory.map_or(0, |memory| memory.0),
        cpu_period: cpus.map_or(0, |_| Cpus::PERIOD),
        cpu_quota: cpus.map_or(0, Cpus::quota),
        cpu_shares: cpus.map_or(0, Cpus::shares),
        ..Default::default()
    }
}

fn security_context(args: &RunArgs, pod: &v1::PodSandboxConfig) -> v1::LinuxContainerSecurityContext {
    let pod = pod.linux.as_ref().and_then(|linux| linux.security_context.as_ref());
    let hide = |paths: &[&str]| if args.privileged { Vec::new() } else { strings(paths) };
    let mut context = v1::LinuxContainerSecurityContext {
        namespace_options: pod.and_then(|pod| pod.namespace_options.clone()),
        privileged: args.privileged,
        readonly_rootfs: args.read_only,
        masked_paths: hide(&MASKED_PATHS),
        readonly_paths: hide(&READONLY_PATHS),
        seccomp: seccomp(args.privileged),
        ..Default::default()
    };
    if let Some(User { name, group }) = &args.user {
        match name {
            UserName::Id(id) => context.run_as_user = Some(v1::Int64Value { value: *id }),
            UserName::Name(name) => context.run_as_username = name.clone(),
        }
        context.run_as_group = group.map(|value| v1::Int64Value { value });
    }
    context
}

/// No profile would mean no filter.
fn seccomp(privileged: bool) -> Option<v1::SecurityProfile> {
    use v1::security_profile::ProfileType::{RuntimeDefault, Unconfined};
    let profile = if privileged { Unconfined } else { RuntimeDefault };
    Some(v1::SecurityProfile { profile_type: profile.into(), localhost_ref: String::new() })
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, ClientCommand, Command};

    const UUID: &str = "1f2e3d4c-0000-4000-8000-000000000000";

    fn args(line: &str) -> RunArgs {
        match Cli::try_parse_from(format!("coracle run {line}").split_whitespace()).unwrap().command {
            Command::Client(ClientCommand::Run(args)) => *args,
            _ => panic!("{line}"),
        }
    }

    fn configs(line: &str) -> (v1::PodSandboxConfig, v1::ContainerConfig) {
        let args = args(line);
        let identity = Identity::new(&args, UUID);
        let pod = pod(&args, &identity);
        let container = container(&args, &identity, "sha256:1", &pod);
        (pod, container)
    }

    #[test]
    fn names_come_from_the_image() {
        for (image, expected) in [
            ("busybox", "busybox-1f2e3"),
            ("localhost:5000/a/Busy_Box:1.36", "busybox-1f2e3"),
            ("r/a@sha256:0123", "a-1f2e3"),
            ("sha256:0123", "container-1f2e3"),
            ("r/_:1", "container-1f2e3"),
        ] {
            assert_eq!(default_name(image, UUID), expected, "{image}");
        }
    }

    #[test]
    fn pod_and_container_fit_each_other() {
        let (pod, container) = configs("--name web --namespace shop busybox httpd -f");
        assert_eq!((pod.hostname.as_str(), pod.log_directory.as_str()), ("web", format!("/var/log/pods/shop_web_{UUID}").as_str()));
        assert_eq!((container.log_path.as_str(), container.args.join(" ").as_str()), ("web.log", "httpd -f"));
        let (pod, container) = (pod.linux.unwrap().security_context.unwrap(), container.linux.unwrap().security_context.unwrap());
        assert_eq!(pod.namespace_options, container.namespace_options);
        assert_eq!(pod.namespace_options.unwrap().pid(), v1::NamespaceMode::Container);
    }

    #[test]
    fn the_node_s_network_brings_the_node_s_name() {
        let (pod, _) = configs("--host-network busybox");
        let options = pod.linux.unwrap().security_context.unwrap().namespace_options.unwrap();
        assert_eq!((options.network(), pod.hostname.as_str()), (v1::NamespaceMode::Node, ""));
    }

    #[test]
    fn a_container_is_confined_unless_it_is_privileged() {
        let context = |line| configs(line).1.linux.unwrap().security_context.unwrap();
        let confined = context("--user 7:8 busybox");
        assert!(confined.masked_paths.contains(&"/proc/kcore".into()) && confined.readonly_paths.contains(&"/proc/sys".into()));
        assert_eq!(confined.seccomp.unwrap().profile_type(), v1::security_profile::ProfileType::RuntimeDefault);
        assert_eq!((confined.run_as_user.unwrap().value, confined.run_as_group.unwrap().value), (7, 8));
        let free = context("--privileged busybox");
        assert!(free.masked_paths.is_empty() && free.readonly_paths.is_empty() && free.privileged);
    }

    #[test]
    fn limits_become_resources() {
        let resources = |line| configs(line).1.linux.unwrap().resources.unwrap();
        let limited = resources("--memory 64Mi --cpus 0.5 busybox");
        assert_eq!(
            (limited.memory_limit_in_bytes, limited.cpu_quota, limited.cpu_period, limited.cpu_shares),
            (64 << 20, 50_000, 100_000, 512)
        );
        assert_eq!(resources("busybox"), v1::LinuxContainerResources::default());
    }

    #[test]
    fn a_joined_pod_lends_its_namespaces() {
        let options = v1::NamespaceOption { network: v1::NamespaceMode::Node.into(), ..Default::default() };
        let namespaces = Some(v1::Namespace { options: Some(options.clone()) });
        let metadata = Some(v1::PodSandboxMetadata { name: "web".into(), uid: "u".into(), namespace: "shop".into(), attempt: 0 });
        let status = v1::PodSandboxStatus { metadata, linux: Some(v1::LinuxPodSandboxStatus { namespaces }), ..Default::default() };
        let args = args("--pod web --name side busybox");
        let pod = joined_pod(&args, status.clone());
        assert_eq!(pod.log_directory, "/var/log/pods/shop_web_u");
        let noted = v1::PodSandboxStatus { annotations: log_directory::annotation("/logs"), ..status };
        assert_eq!(joined_pod(&args, noted).log_directory, "/logs");
        let container = container(&args, &Identity::new(&args, UUID), "sha256:1", &pod);
        assert_eq!(container.linux.unwrap().security_context.unwrap().namespace_options, Some(options));
    }
}
