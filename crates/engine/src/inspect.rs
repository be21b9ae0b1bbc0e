//! What people are told beyond CRI's statuses: the `info` of verbose calls, as JSON texts.

use std::collections::BTreeMap;

use coracle_domain::{ContainerId, PodId};
use serde_json::{Value, json};

use crate::Shared;

/// The configuration in force.
pub(crate) fn runtime(shared: &Shared) -> BTreeMap<String, String> {
    let config = json!({
        "state": shared.layout.pods(),
        // kubeadm looks for it; there is no pause image here.
        "sandboxImage": "",
    });
    BTreeMap::from([("config".to_owned(), config.to_string())])
}

/// A pod's monitor and namespaces.
pub(crate) fn pod(shared: &Shared, id: &PodId) -> BTreeMap<String, String> {
    let Ok(entry) = shared.index.pod(id.as_str()) else { return BTreeMap::new() };
    let directory = shared.layout.pod(id);
    let info = json!({
        "directory": directory.path(),
        "monitorPid": entry.view.monitor_pid,
        "networkNamespace": entry.view.network_namespace,
    });
    BTreeMap::from([("info".to_owned(), info.to_string())])
}

/// A container's process and Plan.
pub(crate) fn container(shared: &Shared, id: &ContainerId) -> BTreeMap<String, String> {
    let Ok((view, _)) = shared.index.container(id.as_str()) else { return BTreeMap::new() };
    let directory = shared.layout.pod(&view.pod).container(id);
    let pid = match view.phase {
        coracle_domain::ContainerPhase::Running { pid, .. } => Some(pid),
        _ => None,
    };
    let info = json!({ "sandboxID": view.pod.as_str(), "pid": pid, "directory": directory.path(), "plan": plan(&directory.plan()) });
    BTreeMap::from([("info".to_owned(), info.to_string())])
}

/// The Plan without the environment's values, which may be secrets, and without the compiled filter, which nobody can
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
