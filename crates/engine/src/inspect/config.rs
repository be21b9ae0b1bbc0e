//! The requests that pods and containers were made from, in CRI's words: `config` as users of `crictl` look for it.
//! What a caller left out is left out here. Security contexts are not repeated: the runtime spec says what became of
//! them.

use std::path::Path;

use coracle_domain::{ContainerView, Mount, MountSource, PodView, PortMapping, Propagation, Protocol, Resources};
use serde_json::{Value, json};

/// CRI's `ContainerConfig`.
pub(super) fn container(view: &ContainerView) -> Value {
    let request = &view.request;
    let variable =
        |variable: &coracle_domain::EnvironmentVariable| json!({ "key": variable.name, "value": String::from_utf8_lossy(&variable.value) });
    said(json!({
        "metadata": { "name": request.metadata.name, "attempt": request.metadata.attempt },
        "image": said(json!({
            "image": request.image.asked,
            "user_specified_image": request.image.user_specified,
            "annotations": request.image.annotations,
        })),
        "command": request.command,
        "args": request.args,
        "working_dir": request.working_directory.as_deref().map(Path::to_string_lossy),
        "envs": request.environment.iter().map(variable).collect::<Vec<_>>(),
        "mounts": request.mounts.iter().map(mount).collect::<Vec<_>>(),
        "devices": request.devices.iter().map(|device| json!({
            "container_path": device.target.to_string_lossy(),
            "host_path": device.host.to_string_lossy(),
            "permissions": device.permissions,
        })).collect::<Vec<_>>(),
        "labels": request.labels,
        "annotations": request.annotations,
        "log_path": request.log_path.as_deref().map(Path::to_string_lossy),
        "stdin": request.stdin,
        "stdin_once": request.stdin_once,
        "tty": request.terminal,
        "linux": { "resources": resources(&view.resources) },
    }))
}

/// CRI's `PodSandboxConfig`, with the resources as they were last told.
pub(super) fn pod(view: &PodView) -> Value {
    let request = &view.request;
    let metadata = &request.metadata;
    said(json!({
        "metadata": { "name": metadata.name, "uid": metadata.uid, "namespace": metadata.namespace, "attempt": metadata.attempt },
        "hostname": request.hostname,
        "log_directory": request.log_directory.as_deref().map(Path::to_string_lossy),
        "dns_config": request.dns.as_ref().map(|dns| json!({ "servers": dns.servers, "searches": dns.searches, "options": dns.options })),
        "port_mappings": request.ports.iter().map(port).collect::<Vec<_>>(),
        "labels": request.labels,
        "annotations": request.annotations,
        "linux": said(json!({
            "cgroup_parent": request.cgroup_parent,
            "sysctls": request.sysctls,
            "overhead": view.overhead.as_ref().map(resources),
            "resources": view.resources.as_ref().map(resources),
        })),
    }))
}

fn mount(mount: &Mount) -> Value {
    let (host_path, image) = match &mount.source {
        MountSource::Host(path) => (path.to_string_lossy().into_owned(), None),
        MountSource::Image { reference, .. } => (String::new(), Some(json!({ "image": reference }))),
    };
    said(json!({
        "container_path": mount.target.to_string_lossy(),
        "host_path": host_path,
        "image": image,
        "readonly": mount.read_only,
        "recursive_read_only": mount.recursive_read_only,
        "selinux_relabel": mount.relabel,
        // CRI's numbers; private is zero, and so not said.
        "propagation": match mount.propagation {
            Propagation::Private => 0,
            Propagation::HostToContainer => 1,
            Propagation::Bidirectional => 2,
        },
    }))
}

fn port(port: &PortMapping) -> Value {
    let protocol = match port.protocol {
        Protocol::Tcp => 0,
        Protocol::Udp => 1,
        Protocol::Sctp => 2,
    };
    let host_ip = port.host_ip.map(|address| address.to_string());
    said(json!({ "protocol": protocol, "container_port": port.container_port, "host_port": port.host_port, "host_ip": host_ip }))
}

fn resources(resources: &Resources) -> Value {
    let hugepages = resources.hugepages.iter().map(|limit| json!({ "page_size": limit.page_size, "limit": limit.limit }));
    said(json!({
        "cpu_period": resources.cpu_period,
        "cpu_quota": resources.cpu_quota,
        "cpu_shares": resources.cpu_shares,
        "memory_limit_in_bytes": resources.memory_limit,
        "memory_swap_limit_in_bytes": resources.memory_swap_limit,
        "oom_score_adj": resources.oom_score_adj,
        "cpuset_cpus": resources.cpuset_cpus,
        "cpuset_mems": resources.cpuset_mems,
        "hugepage_limits": hugepages.collect::<Vec<_>>(),
        "unified": resources.unified,
    }))
}

/// Without the fields that say nothing: protobuf's way to write JSON, as Go's encoder has it.
fn said(mut object: Value) -> Value {
    if let Some(fields) = object.as_object_mut() {
        fields.retain(|_, value| match value {
            Value::Null | Value::Bool(false) => false,
            Value::Number(number) => number.as_i64() != Some(0),
            Value::String(text) => !text.is_empty(),
            Value::Array(items) => !items.is_empty(),
            Value::Object(fields) => !fields.is_empty(),
            Value::Bool(true) => true,
        });
    }
    object
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    #[test]
    fn what_was_asked_is_told_in_cris_words_and_what_was_not_is_left_out() {
        let entry = testing::entry(3);
        let container = container(&entry.view.containers[0]);
        assert_eq!(
            container,
            json!({ "metadata": { "name": "app", "attempt": 0 }, "image": { "image": "app" }, "linux": { "resources": {} } })
        );
        let pod = pod(&entry.view);
        assert_eq!(pod, json!({ "metadata": { "name": "pod-3", "uid": "3", "namespace": "default", "attempt": 0 } }));
    }

    #[test]
    fn limits_and_mounts_are_told_by_their_fields() {
        let limits = Resources { cpu_shares: Some(512), memory_limit: Some(-1), oom_score_adj: 999, ..Resources::default() };
        assert_eq!(resources(&limits), json!({ "cpu_shares": 512, "memory_limit_in_bytes": -1, "oom_score_adj": 999 }));
        let shared = Mount {
            target: "/data".into(),
            source: MountSource::Host("/srv".into()),
            read_only: true,
            recursive_read_only: false,
            propagation: Propagation::HostToContainer,
            relabel: false,
            options: Vec::new(),
            mapping: None,
        };
        assert_eq!(mount(&shared), json!({ "container_path": "/data", "host_path": "/srv", "readonly": true, "propagation": 1 }));
    }
}
