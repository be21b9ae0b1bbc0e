//! How an actor's pod ends, and that nothing is left of it.

use coracle_e2e::api::{PodSandboxFilter, PodSandboxState};
use coracle_e2e::{Code, host};
use futures_util::future::join_all;

use super::Actor;
use super::container::Member;
use crate::ledger::PodFact;
use crate::plan::{Ending, Program};

const KILLED: (i32, &str) = (137, "Error");

impl Actor {
    /// Stops and removes the pod as planned.
    pub(super) async fn end(&self, id: &str, members: &[Member<'_>]) {
        self.world().ledger.pod(id, PodFact::Going);
        members.iter().for_each(Member::may_be_anything);
        match self.plan.ending {
            Ending::Orderly(grace) => {
                join_all(members.iter().map(|member| self.stop_container(member, grace))).await;
                self.stop(id).await;
                self.expect_ended(id, members, &possible(grace)).await;
            }
            Ending::StopAndRemove => {
                tokio::join!(self.stop(id), self.stop(id));
                self.expect_ended(id, members, &[KILLED]).await;
            }
            Ending::RemoveOnly => {}
        }
        for member in members.iter().filter(|_| matches!(self.plan.ending, Ending::Orderly(_))) {
            self.remove_container(member).await;
        }
        match self.plan.ending {
            Ending::StopAndRemove => drop(tokio::join!(self.remove(id), self.remove(id))),
            Ending::Orderly(_) | Ending::RemoveOnly => self.remove(id).await,
        }
        members.iter().filter_map(|member| member.id.as_ref()).for_each(|container| self.world().ledger.gone(container));
        self.world().ledger.gone(id);
        self.expect_gone(id).await;
    }

    async fn stop_container(&self, member: &Member<'_>, grace: i64) {
        let Some(id) = &member.id else { return };
        let asked = self.caller.ask("StopContainer", || self.caller.cri.stop(id, grace)).await;
        if let Err(status) = asked.result {
            member.find("StopContainer", "success", status.to_string());
        }
    }

    async fn remove_container(&self, member: &Member<'_>) {
        let Some(id) = &member.id else { return };
        // Also of a pod without its monitor.
        self.caller.must("RemoveContainer", || self.caller.cri.remove(id)).await;
    }

    async fn stop(&self, id: &str) {
        self.caller.must("StopPodSandbox", || self.caller.cri.stop_pod(id)).await;
    }

    async fn remove(&self, id: &str) {
        self.caller.must("RemovePodSandbox", || self.caller.cri.remove_pod(id)).await;
    }

    /// After a stop the pod is not ready, and its containers have ended as they could.
    async fn expect_ended(&self, id: &str, members: &[Member<'_>], possible: &[(i32, &str)]) {
        let pod = self.caller.must("PodSandboxStatus", || self.caller.cri.pod_status(id)).await;
        if let Some(status) = pod.and_then(|answer| answer.status)
            && status.state() == PodSandboxState::SandboxReady
        {
            self.caller.find("StopPodSandbox", format!("pod {id} not ready"), "ready");
        }
        for member in members.iter().filter(|member| member.runs && member.plan.program.is_endless()) {
            let Some(status) = member.status().await else { continue };
            let possible: Vec<_> = match member.plan.program {
                Program::Stays => vec![KILLED],
                _ => possible.to_vec(),
            };
            if !possible.contains(&(status.exit_code, status.reason.as_str())) {
                member.find(
                    "the container's end",
                    format!("{:?} ended with one of {possible:?}", member.plan.program),
                    format!("{status:?}"),
                );
            }
            if !self.is_doomed() {
                member.expect_lines(None);
            }
        }
        if self.number.is_multiple_of(4) {
            self.expect_no_processes(members).await;
        }
    }

    async fn expect_no_processes(&self, members: &[Member<'_>]) {
        for id in members.iter().filter_map(|member| member.id.clone()) {
            let container = id.clone();
            let left = tokio::task::spawn_blocking(move || processes_of(&container)).await.unwrap_or_default();
            if !left.is_empty() {
                let lines: Vec<String> = left.into_iter().map(host::command_line).collect();
                self.caller.find("StopPodSandbox", format!("no process in container {id}"), format!("{lines:?}"));
            }
        }
    }

    /// A removed pod is not known any more.
    async fn expect_gone(&self, id: &str) {
        match self.caller.ask("PodSandboxStatus", || self.caller.cri.pod_status(id)).await.result {
            Err(status) if status.code() == Code::NotFound => {}
            other => self.caller.find("RemovePodSandbox", format!("no pod {id}"), format!("{other:?}")),
        }
    }

    /// No pod of this actor is there, by whatever id.
    pub(super) async fn expect_no_traces(&self) {
        let filter = PodSandboxFilter { label_selector: self.config.labels.clone().into_iter().collect(), ..Default::default() };
        let pods = self.caller.must("ListPodSandbox", || self.caller.cri.pods(Some(filter.clone()))).await.unwrap_or_default();
        for pod in pods.into_iter().filter(|pod| pod.metadata.as_ref().is_some_and(|metadata| metadata.uid == self.uid)) {
            self.caller.find("the end", "no pod of this uid", format!("{pod:?}"));
            self.remove(&pod.id).await;
        }
    }
}

/// How a program may end that heeds its stop signal.
fn possible(grace: i64) -> Vec<(i32, &'static str)> {
    match grace {
        0 => vec![KILLED],
        _ => vec![KILLED, (0, "Completed")],
    }
}

/// The node's processes in cgroups of that container.
pub(super) fn processes_of(container: &str) -> Vec<i32> {
    let is_inside = |pid: &i32| std::fs::read_to_string(format!("/proc/{pid}/cgroup")).is_ok_and(|cgroups| cgroups.contains(container));
    host::processes().into_iter().filter(|&pid| host::is_alive(pid)).filter(is_inside).collect()
}
