//! What tests ask for: pods and containers with the settings that a kubelet would send, and changes to them.

use k8s_cri::v1::security_profile::ProfileType;
use k8s_cri::v1::{self as api, NamespaceMode};

/// A pod to be.
#[derive(Debug, Clone)]
pub struct PodSpec {
    /// The request.
    pub config: api::PodSandboxConfig,
    /// The handler; `None`: the target's.
    pub handler: Option<String>,
}

impl PodSpec {
    /// A pod with its own network. Namespace, uid and log directory are the node's to fill in.
    pub fn new(name: &str) -> Self {
        let metadata = api::PodSandboxMetadata { name: name.to_owned(), ..Default::default() };
        let security = api::LinuxSandboxSecurityContext {
            namespace_options: Some(api::NamespaceOption { pid: NamespaceMode::Container.into(), ..Default::default() }),
            ..Default::default()
        };
        let linux = api::LinuxPodSandboxConfig { security_context: Some(security), ..Default::default() };
        let config =
            api::PodSandboxConfig { metadata: Some(metadata), hostname: name.to_owned(), linux: Some(linux), ..Default::default() };
        Self { config, handler: None }
    }

    /// With the node's network.
    pub fn host_network(mut self) -> Self {
        self.namespaces().network = NamespaceMode::Node.into();
        self.config.hostname = String::new();
        self
    }

    /// With a port of the node, at one address (empty: at all), that leads to a port of the pod.
    pub fn host_port(mut self, protocol: api::Protocol, host_ip: &str, host_port: u16, container_port: u16) -> Self {
        self.config.port_mappings.push(api::PortMapping {
            protocol: protocol.into(),
            container_port: container_port.into(),
            host_port: host_port.into(),
            host_ip: host_ip.to_owned(),
        });
        self
    }

    /// With users of its own: `length` of the node's from `host` on, and as many groups.
    pub fn users(mut self, host: u32, length: u32) -> Self {
        self.namespaces().userns_options = Some(users(host, length));
        self
    }

    /// With process ids that are shared as `mode` says.
    pub fn pid_mode(mut self, mode: NamespaceMode) -> Self {
        self.namespaces().set_pid(mode);
        self
    }

    /// Privileged, as a pod must be that has a privileged container.
    pub fn privileged(mut self) -> Self {
        self.config.linux.get_or_insert_default().security_context.get_or_insert_default().privileged = true;
        self
    }

    /// With an annotation.
    pub fn annotation(mut self, key: &str, value: &str) -> Self {
        self.config.annotations.insert(key.to_owned(), value.to_owned());
        self
    }

    /// With another handler than the target's.
    pub fn handler(mut self, name: &str) -> Self {
        self.handler = Some(name.to_owned());
        self
    }

    /// With a label.
    pub fn label(mut self, key: &str, value: &str) -> Self {
        self.config.labels.insert(key.to_owned(), value.to_owned());
        self
    }

    /// With whatever else `change` sets.
    pub fn with(mut self, change: impl FnOnce(&mut api::PodSandboxConfig)) -> Self {
        change(&mut self.config);
        self
    }

    /// The namespace options, to be changed.
    pub fn namespaces(&mut self) -> &mut api::NamespaceOption {
        let linux = self.config.linux.get_or_insert_default();
        linux.security_context.get_or_insert_default().namespace_options.get_or_insert_default()
    }
}

/// A container to be.
#[derive(Debug, Clone)]
pub struct ContainerSpec {
    /// The request.
    pub config: api::ContainerConfig,
}

impl ContainerSpec {
    /// A container that sleeps until it is killed, with the settings a kubelet sends by default:
    /// seccomp's default profile, masked and read-only paths, a pid namespace of its own, a log.
    pub fn new(name: &str, image: &str) -> Self {
        let security = api::LinuxContainerSecurityContext {
            namespace_options: Some(api::NamespaceOption { pid: NamespaceMode::Container.into(), ..Default::default() }),
            masked_paths: strings(&["/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/timer_list", "/sys/firmware"]),
            readonly_paths: strings(&["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]),
            seccomp: Some(api::SecurityProfile::default()),
            ..Default::default()
        };
        let linux =
            api::LinuxContainerConfig { resources: Some(api::LinuxContainerResources::default()), security_context: Some(security) };
        let config = api::ContainerConfig {
            metadata: Some(api::ContainerMetadata { name: name.to_owned(), attempt: 0 }),
            image: Some(crate::cri::image_spec(image)),
            command: strings(&["/bin/sleep", "100000"]),
            log_path: format!("{name}_0.log"),
            linux: Some(linux),
            ..Default::default()
        };
        Self { config }
    }

    /// Runs this instead.
    pub fn command(mut self, words: &[&str]) -> Self {
        self.config.command = strings(words);
        self
    }

    /// Runs a shell script.
    pub fn script(self, script: &str) -> Self {
        self.command(&["/bin/sh", "-c", script])
    }

    /// Runs what the image says.
    pub fn image_command(mut self) -> Self {
        self.config.command.clear();
        self
    }

    /// With a variable in the environment.
    pub fn variable(mut self, key: &str, value: &str) -> Self {
        self.config.envs.push(api::KeyValue { key: key.to_owned(), value: value.to_owned() });
        self
    }

    /// With a bind mount.
    pub fn mount(mut self, host: &str, target: &str, readonly: bool) -> Self {
        let mount = api::Mount { container_path: target.to_owned(), host_path: host.to_owned(), readonly, ..Default::default() };
        self.config.mounts.push(mount);
        self
    }

    /// With a bind mount that shows owners as a user namespace maps them.
    pub fn mapped_mount(mut self, host: &str, target: &str, users: &api::UserNamespace) -> Self {
        let mount = api::Mount {
            container_path: target.to_owned(),
            host_path: host.to_owned(),
            uid_mappings: users.uids.clone(),
            gid_mappings: users.gids.clone(),
            ..Default::default()
        };
        self.config.mounts.push(mount);
        self
    }

    /// The namespace options, to be changed.
    pub fn namespaces(&mut self) -> &mut api::NamespaceOption {
        let linux = self.config.linux.get_or_insert_default();
        linux.security_context.get_or_insert_default().namespace_options.get_or_insert_default()
    }

    /// With process ids that are shared as `mode` says.
    pub fn pid_mode(mut self, mode: NamespaceMode) -> Self {
        self.namespaces().set_pid(mode);
        self
    }

    /// With a changed security context.
    pub fn security(mut self, change: impl FnOnce(&mut api::LinuxContainerSecurityContext)) -> Self {
        change(self.config.linux.get_or_insert_default().security_context.get_or_insert_default());
        self
    }

    /// Without an AppArmor profile: where the node has AppArmor, the runtime's own denies more than capabilities do.
    pub fn without_apparmor(self) -> Self {
        self.security(|s| s.apparmor.get_or_insert_default().set_profile_type(ProfileType::Unconfined))
    }

    /// With one more capability, and without an AppArmor profile.
    pub fn capability(self, name: &str) -> Self {
        let add = api::Capability { add_capabilities: strings(&[name]), ..Default::default() };
        self.security(|s| s.capabilities = Some(add)).without_apparmor()
    }

    /// With changed resources.
    pub fn resources(mut self, change: impl FnOnce(&mut api::LinuxContainerResources)) -> Self {
        change(self.config.linux.get_or_insert_default().resources.get_or_insert_default());
        self
    }

    /// With whatever else `change` sets.
    pub fn with(mut self, change: impl FnOnce(&mut api::ContainerConfig)) -> Self {
        change(&mut self.config);
        self
    }
}

/// A user namespace in which users and groups from 0 on are the node's from `host` on.
pub fn users(host: u32, length: u32) -> api::UserNamespace {
    let mapping = vec![api::IdMapping { host_id: host, container_id: 0, length }];
    api::UserNamespace { mode: NamespaceMode::Pod.into(), uids: mapping.clone(), gids: mapping }
}

/// A whole number as CRI's optional fields have it.
pub fn number(value: i64) -> Option<api::Int64Value> {
    Some(api::Int64Value { value })
}

/// A profile of AppArmor's, or of system calls.
pub fn profile(kind: ProfileType, name: &str) -> Option<api::SecurityProfile> {
    Some(api::SecurityProfile { profile_type: kind.into(), localhost_ref: name.to_owned() })
}

/// Owned strings.
pub fn strings(words: &[&str]) -> Vec<String> {
    words.iter().map(|&word| word.to_owned()).collect()
}
