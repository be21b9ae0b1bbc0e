//! What people are told beyond CRI's statuses: the `info` of verbose calls, as JSON texts. Tools in the field know
//! `pid`, `sandboxID`, `config` and `runtimeSpec` of it from other runtimes, values of the environment included.

mod config;

use std::collections::BTreeMap;

use coracle_domain::{ContainerId, ContainerPhase, PodId, PodPhase};
use serde_json::{Value, json};

use crate::layout::PodDirectory;
use crate::{Engine, Shared};

impl Engine {
    /// For people: what the runtime knows of a pod beyond its status.
    pub fn inspect_pod(&self, id: &PodId) -> BTreeMap<String, String> {
        pod(&self.shared, id)
    }

    /// For people: what the runtime knows of a container beyond its status, its spec and Plan above all.
    pub fn inspect_container(&self, id: &ContainerId) -> BTreeMap<String, String> {
        container(&self.shared, id)
    }
}

/// The configuration in force.
pub(crate) fn runtime(shared: &Shared, user_namespaces: &Result<(), String>) -> BTreeMap<String, String> {
    let config = json!({
        "state": shared.layout.pods(),
        "userNamespaces": user_namespaces.as_ref().map_or_else(|reason| format!("no: {reason}"), |()| "yes".to_owned()),
        // kubeadm looks for it; there is no pause image here.
        "sandboxImage": "",
        "appArmor": shared.node.apparmor.is_some(),
        "appArmorProfile": shared.node.apparmor.as_ref().and_then(|apparmor| apparmor.default_profile.as_deref()),
    });
    BTreeMap::from([("config".to_owned(), config.to_string())])
}

/// A pod: the process that lives in its namespaces, where these are pinned, and the request it was made from.
fn pod(shared: &Shared, id: &PodId) -> BTreeMap<String, String> {
    let Ok(entry) = shared.index.pod_now(id.as_str()) else { return BTreeMap::new() };
    let directory = shared.layout.pod(id);
    let is_ready = entry.view.phase == PodPhase::Ready;
    let info = json!({
        // What others have a pause process for: `nsenter --target PID --net` works with it.
        "pid": entry.view.monitor_pid,
        "config": config::pod(&entry.view),
        "runtimeHandler": entry.view.request.handler.as_ref().map_or("", |handler| handler.0.as_str()),
        "runtimeSpec": { "linux": { "namespaces": if is_ready { namespaces(&directory) } else { Vec::new() } } },
        "networkNamespace": entry.view.network_namespace,
        "directory": directory.path(),
    });
    BTreeMap::from([("info".to_owned(), info.to_string())])
}

/// The pinned namespaces of a pod, as the OCI runtime spec of a pause container would list them.
fn namespaces(directory: &PodDirectory) -> Vec<Value> {
    let kinds = [("network", "net"), ("ipc", "ipc"), ("uts", "uts"), ("pid", "pid"), ("user", "user"), ("time", "time")];
    let pinned = kinds.into_iter().map(|(kind, pin)| (kind, directory.pin(pin))).filter(|(_, path)| path.exists());
    pinned.map(|(kind, path)| json!({ "type": kind, "path": path })).collect()
}

/// A container: its process, the request it was made from, and what became of it: OCI runtime spec and Plan.
fn container(shared: &Shared, id: &ContainerId) -> BTreeMap<String, String> {
    let Ok((view, _)) = shared.index.container_now(id.as_str()) else { return BTreeMap::new() };
    let directory = shared.layout.pod(&view.pod).container(id);
    let pid = match view.phase {
        ContainerPhase::Running { pid, .. } => Some(pid),
        _ => None,
    };
    let info = json!({
        "sandboxID": view.pod.as_str(),
        "pid": pid,
        "privileged": view.request.security.privileged,
        "config": config::container(&view),
        "runtimeSpec": crate::record::read::<Value>(&directory.spec()).ok(),
        "lostOutput": { "entries": view.lost_output.entries, "bytes": view.lost_output.bytes },
        "directory": directory.path(),
        "plan": plan(&directory.plan()),
    });
    BTreeMap::from([("info".to_owned(), info.to_string())])
}

/// The Plan without the environment's values, which the spec has in a form to be read, and without the compiled filter, which nobody can
/// read and which is longer than all the rest.
fn plan(path: &std::path::Path) -> Option<Value> {
    let mut plan: Value = crate::record::read(path).ok()?;
    if let Some(environment) = plan.pointer_mut("/process/environment").and_then(Value::as_array_mut) {
        for variable in environment {
            *variable = match variable.as_str().and_then(|text| text.split_once('=')) {
                Some((name, _)) => format!("{name}=…").into(),
                None => "…".into(),
            };
        }
    }
    if let Some(program) = plan.pointer_mut("/process/seccomp/program") {
        *program = format!("{} bytes of base64", program.as_str().unwrap_or_default().len()).into();
    }
    Some(plan)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shown_plan_keeps_secrets_and_filters_to_itself() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("plan.json");
        let stored = json!({"process": {
            "environment": ["TOKEN=hunter2", {"base64": "aHVudGVyMg=="}],
            "seccomp": {"program": "AAAA", "flags": 0},
            "arguments": ["true"],
        }});
        std::fs::write(&path, stored.to_string()).unwrap();
        let shown = plan(&path).unwrap().to_string();
        assert!(shown.contains("TOKEN=…") && shown.contains("4 bytes of base64") && shown.contains("true"), "{shown}");
        assert!(!shown.contains("hunter2") && !shown.contains("aHVu") && !shown.contains("AAAA"), "{shown}");
    }
}
