//! Containers: from [`ContainerView`] to CRI's list items and statuses.

use coracle_domain::{ContainerPhase, ContainerView, Exit, ExitCode};

use crate::container::image_message;
use crate::{mount, resources, signal, v1};

/// The exit code of a container whose exit nobody saw. CRI has no word for "unknown". No process can exit
/// with a negative status, so this one is mistaken neither for success nor for a real code, as 255 or 137
/// would be; the reason beside it is the kubelet's own for the case.
const UNKNOWN_EXIT_CODE: i32 = -1;

/// A container's state.
pub(crate) fn state(phase: &ContainerPhase) -> v1::ContainerState {
    match phase {
        ContainerPhase::Created => v1::ContainerState::ContainerCreated,
        ContainerPhase::Running { .. } => v1::ContainerState::ContainerRunning,
        ContainerPhase::Exited { .. } => v1::ContainerState::ContainerExited,
    }
}

fn metadata(container: &ContainerView) -> v1::ContainerMetadata {
    let metadata = &container.request.metadata;
    v1::ContainerMetadata { name: metadata.name.clone(), attempt: metadata.attempt }
}

/// A container as it stands in lists.
pub(crate) fn item(container: &ContainerView) -> v1::Container {
    let image_id = container.image.as_str().to_owned();
    v1::Container {
        id: container.id.to_string(),
        pod_sandbox_id: container.pod.to_string(),
        metadata: Some(metadata(container)),
        image: Some(image_message(&container.request.image)),
        image_ref: image_id.clone(),
        state: state(&container.phase).into(),
        created_at: container.created_at,
        labels: container.request.labels.clone(),
        annotations: container.request.annotations.clone(),
        image_id,
    }
}

/// Whose measurements these are.
pub(crate) fn attributes(container: &ContainerView) -> v1::ContainerAttributes {
    v1::ContainerAttributes {
        id: container.id.to_string(),
        metadata: Some(metadata(container)),
        labels: container.request.labels.clone(),
        annotations: container.request.annotations.clone(),
    }
}

/// A container's status.
pub(crate) fn status(container: &ContainerView) -> v1::ContainerStatus {
    let end = end(&container.phase);
    let image_id = container.image.as_str().to_owned();
    v1::ContainerStatus {
        id: container.id.to_string(),
        metadata: Some(metadata(container)),
        state: state(&container.phase).into(),
        created_at: container.created_at,
        started_at: started_at(&container.phase),
        finished_at: end.at,
        exit_code: end.code,
        image: Some(image_message(&container.request.image)),
        image_ref: image_id.clone(),
        reason: end.reason.to_owned(),
        message: end.message,
        labels: container.request.labels.clone(),
        annotations: container.request.annotations.clone(),
        mounts: mount::messages(&container.request.mounts, &container.volume_images),
        log_path: container.log_path.as_ref().map(|path| path.to_string_lossy().into_owned()).unwrap_or_default(),
        resources: Some(v1::ContainerResources { linux: Some(resources::message(&container.resources)), windows: None }),
        image_id,
        user: Some(user(container)),
        stop_signal: signal::effective(container),
    }
}

fn started_at(phase: &ContainerPhase) -> i64 {
    match phase {
        ContainerPhase::Created => 0,
        ContainerPhase::Running { started_at, .. } => *started_at,
        ContainerPhase::Exited { started_at, .. } => started_at.unwrap_or_default(),
    }
}

/// How a container ended, in CRI's words; all zero and empty while it has not.
#[derive(Debug, Default)]
struct End {
    at: i64,
    code: i32,
    reason: &'static str,
    message: String,
}

fn end(phase: &ContainerPhase) -> End {
    let ContainerPhase::Exited { started_at, exit, message } = phase else {
        return End::default();
    };
    let Exit { code, at, oom_killed } = exit;
    // A message without a start says why the start failed.
    let never_started = started_at.is_none() && !message.is_empty();
    let (code, reason) = match (code, oom_killed) {
        (code, true) => (known(*code), "OOMKilled"),
        (code, false) if never_started => (known(*code), "StartError"),
        (ExitCode::Known(0), false) => (0, "Completed"),
        (ExitCode::Known(code), false) => (*code, "Error"),
        (ExitCode::Unknown, false) => (UNKNOWN_EXIT_CODE, "ContainerStatusUnknown"),
    };
    let message = if message.is_empty() && code == UNKNOWN_EXIT_CODE { "nobody saw how the process ended" } else { message };
    End { at: *at, code, reason, message: message.to_owned() }
}

fn known(code: ExitCode) -> i32 {
    match code {
        ExitCode::Known(code) => code,
        ExitCode::Unknown => UNKNOWN_EXIT_CODE,
    }
}

fn user(container: &ContainerView) -> v1::ContainerUser {
    let (uid, gid, groups) = &container.user;
    let supplemental_groups = groups.iter().copied().map(i64::from).collect();
    v1::ContainerUser { linux: Some(v1::LinuxContainerUser { uid: (*uid).into(), gid: (*gid).into(), supplemental_groups }) }
}

#[cfg(test)]
#[path = "container_status_tests.rs"]
mod tests;
