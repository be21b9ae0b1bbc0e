//! Tests of [`super`].

use super::*;
use crate::samples;

fn exited(code: ExitCode, oom_killed: bool, started_at: Option<i64>, message: &str) -> ContainerView {
    let exit = Exit { code, at: 300, oom_killed };
    let phase = ContainerPhase::Exited { started_at, exit, message: message.to_owned() };
    ContainerView { phase, ..ContainerView::clone(&samples::container()) }
}

#[test]
fn a_status_has_what_a_kubelet_demands() {
    let status = status(&samples::container());
    assert_eq!(status.image.as_ref().unwrap().image, samples::IMAGE);
    assert_eq!((status.image_ref.as_str(), status.image_id.as_str()), (samples::IMAGE, samples::IMAGE));
    assert_eq!((status.created_at, status.started_at, status.finished_at), (100, 200, 300));
    assert_eq!(status.state(), v1::ContainerState::ContainerExited);
    assert_eq!(status.stop_signal(), v1::Signal::Sigusr1);
    assert_eq!(status.log_path, "/var/log/pods/default_web_42/server/2.log");
    let config = samples::container_config();
    assert_eq!((status.mounts, status.labels, status.annotations), (config.mounts, config.labels, config.annotations));
    let user = status.user.unwrap().linux.unwrap();
    assert_eq!((user.uid, user.gid, user.supplemental_groups), (1000, 1001, vec![5, 6]));
}

#[test]
fn the_image_keeps_the_name_it_was_asked_by() {
    let mut view = ContainerView::clone(&samples::container());
    let mut request = samples::container_request();
    request.image.asked = "registry.example/web:1".to_owned();
    view.request = request.into();
    let status = status(&view);
    assert_eq!(status.image.unwrap().image, "registry.example/web:1");
    assert_eq!((status.image_id.as_str(), item(&view).image_id.as_str()), (samples::IMAGE, samples::IMAGE));
}

#[test]
fn limits_are_those_in_force_and_not_those_asked_for() {
    let resources = status(&samples::container()).resources.unwrap().linux.unwrap();
    assert_eq!((resources.cpu_shares, resources.memory_limit_in_bytes), (1024, 64 << 20));
}

#[test]
fn a_container_that_has_not_ended_says_nothing_of_an_end() {
    let view = ContainerView { phase: ContainerPhase::Running { pid: 7, started_at: 200 }, ..ContainerView::clone(&samples::container()) };
    let status = status(&view);
    assert_eq!((status.state(), status.started_at, status.finished_at), (v1::ContainerState::ContainerRunning, 200, 0));
    assert_eq!((status.exit_code, status.reason.as_str(), status.message.as_str()), (0, "", ""));
}

#[test]
fn an_end_has_the_reason_that_kubelets_know() {
    let cases = [
        (exited(ExitCode::Known(0), false, Some(1), ""), 0, "Completed"),
        (exited(ExitCode::Known(3), false, Some(1), ""), 3, "Error"),
        (exited(ExitCode::Known(137), false, Some(1), ""), 137, "Error"),
        (exited(ExitCode::Known(137), true, Some(1), ""), 137, "OOMKilled"),
        (exited(ExitCode::Known(128), false, None, "no such program"), 128, "StartError"),
    ];
    for (view, code, reason) in cases {
        let status = status(&view);
        assert_eq!((status.exit_code, status.reason.as_str(), status.finished_at), (code, reason, 300));
    }
}

#[test]
fn an_exit_that_nobody_saw_is_neither_success_nor_a_real_code() {
    let status = status(&exited(ExitCode::Unknown, false, Some(1), ""));
    assert!(status.exit_code < 0, "no process exits with a negative status");
    assert_eq!((status.reason.as_str(), status.message.is_empty()), ("ContainerStatusUnknown", false));
}

#[test]
fn a_stop_signal_of_the_image_is_told_too() {
    let mut request = samples::container_request();
    request.stop_signal = None;
    let view = ContainerView { request: request.into(), stop_signal: 3, ..ContainerView::clone(&samples::container()) };
    assert_eq!(status(&view).stop_signal(), v1::Signal::Sigquit);
}

#[test]
fn of_two_names_for_a_signal_the_asked_one_is_told() {
    let mut request = samples::container_request();
    request.stop_signal = Some(coracle_domain::StopSignal(v1::Signal::Sigpoll.into()));
    let view = ContainerView { request: request.into(), stop_signal: 29, ..ContainerView::clone(&samples::container()) };
    assert_eq!(status(&view).stop_signal(), v1::Signal::Sigpoll);
}
