//! What is done with a container that runs: probes, looks, changes, rotation of its log, fetches of its page.

use std::time::{Duration, Instant};

use coracle_e2e::api::{ContainerState, LinuxContainerResources, ReopenContainerLogRequest, UpdateContainerResourcesRequest};
use coracle_e2e::{Code, host};

use super::container::Member;
use crate::plan::{Activity, PodKind};

/// How long a probe may take on a machine that is busy, in seconds.
const PROBE: i64 = 90;
/// How long a page may take to come on a machine that is busy.
const PAGE: Duration = Duration::from_secs(30);

impl Member<'_> {
    /// Does all of it, one after another.
    pub(super) async fn carry_out(&mut self, activities: &[Activity]) {
        for activity in activities {
            let Some(id) = self.id.clone().filter(|_| self.runs) else { return };
            match *activity {
                Activity::Probe(code) => self.probe(&id, code).await,
                Activity::ProbeTimeout => self.probe_without_end(&id).await,
                Activity::Echo(length) => self.echo(&id, length).await,
                Activity::Session(length) => self.session(&id, length).await,
                Activity::Look => self.look(&id).await,
                Activity::Update(mebibytes) => self.update(&id, mebibytes).await,
                Activity::Rotate => self.rotate(&id).await,
                Activity::Fetch => self.fetch().await,
                Activity::Pause(milliseconds) => tokio::time::sleep(Duration::from_millis(milliseconds)).await,
            }
        }
    }

    async fn probe(&self, id: &str, code: u8) {
        let (caller, script) = (&self.actor.caller, format!("exit {code}"));
        let command = ["/bin/sh", "-c", &script];
        match caller.ask("ExecSync", || caller.cri.exec(id, &command, PROBE)).await.result {
            Ok(answer) if answer.exit_code == i32::from(code) => {}
            other => self.find("ExecSync", format!("exit status {code}"), format!("{other:?}")),
        }
    }

    async fn probe_without_end(&self, id: &str) {
        let caller = &self.actor.caller;
        match caller.ask("ExecSync", || caller.cri.exec(id, &["/bin/sleep", "77777"], 1)).await.result {
            Err(status) if status.code() == Code::DeadlineExceeded => {}
            other => self.find("ExecSync", "an end after its second", format!("{other:?}")),
        }
    }

    async fn echo(&self, id: &str, length: u32) {
        let (caller, script) = (&self.actor.caller, chatter(length));
        let command = ["/bin/sh", "-c", &script];
        match caller.ask("ExecSync", || caller.cri.exec(id, &command, PROBE)).await.result {
            Ok(answer) if answer.exit_code == 0 && answer.stdout.len() == length as usize && answer.stderr == b"end\n" => {}
            Ok(answer) => self.find(
                "ExecSync",
                format!("{length} bytes"),
                format!("{} bytes, {:?}, status {}", answer.stdout.len(), String::from_utf8_lossy(&answer.stderr), answer.exit_code),
            ),
            Err(status) => self.find("ExecSync", format!("{length} bytes"), status.to_string()),
        }
    }

    async fn look(&self, id: &str) {
        let caller = &self.actor.caller;
        if let Some(status) = self.status().await
            && (status.state() != ContainerState::ContainerRunning || status.exit_code != 0)
        {
            self.find("ContainerStatus", "a running container", format!("{status:?}"));
        }
        let stats = caller.ask("ContainerStats", || caller.cri.container_stats(id)).await.result;
        if !stats.as_ref().is_ok_and(|stats| stats.attributes.as_ref().is_some_and(|attributes| attributes.id == *id)) {
            self.find("ContainerStats", "stats of the container", format!("{stats:?}"));
        }
        let pod = caller.ask("PodSandboxStatus", || caller.cri.pod_status(self.pod)).await.result;
        if let Err(status) = pod {
            self.find("PodSandboxStatus", "a status", status.to_string());
        }
    }

    async fn update(&self, id: &str, mebibytes: i64) {
        let caller = &self.actor.caller;
        let limit = mebibytes << 20;
        let request = || UpdateContainerResourcesRequest {
            container_id: id.to_owned(),
            linux: Some(LinuxContainerResources { memory_limit_in_bytes: limit, cpu_shares: 512, ..Default::default() }),
            ..Default::default()
        };
        let update = || async { caller.cri.runtime().update_container_resources(request()).await.map(drop) };
        if let Err(status) = caller.ask("UpdateContainerResources", update).await.result {
            return self.find("UpdateContainerResources", "success", status.to_string());
        }
        let told = self.status().await.and_then(|status| status.resources?.linux).map(|linux| linux.memory_limit_in_bytes);
        if told != Some(limit) {
            self.find("UpdateContainerResources", format!("a limit of {limit} in the status"), format!("{told:?}"));
        }
    }

    /// Moves the log away and has it opened anew, as the kubelet does; its reader loses nothing.
    async fn rotate(&mut self, id: &str) {
        let (caller, log) = (&self.actor.caller, self.log());
        let away = log.with_extension(format!("{}.log", self.rotated.len()));
        if let Err(error) = std::fs::rename(&log, &away) {
            return self.find("rotating the log", "a log to rename", error.to_string());
        }
        let request = || ReopenContainerLogRequest { container_id: id.to_owned() };
        let reopen = || async { caller.cri.runtime().reopen_container_log(request()).await.map(drop) };
        let result = caller.ask("ReopenContainerLog", reopen).await.result;
        self.rotated.push(away);
        match result {
            Ok(()) if !log.exists() => self.find("ReopenContainerLog", "a new log", "none"),
            Ok(()) => {}
            Err(status) => self.find("ReopenContainerLog", "success", status.to_string()),
        }
    }

    /// What it serves can be had, whether or not a daemon is there.
    async fn fetch(&self) {
        if !self.serves_http() {
            return;
        }
        let caller = &self.actor.caller;
        let status = caller.ask("PodSandboxStatus", || caller.cri.pod_status(self.pod)).await.result;
        let Ok(Some(address)) = status.map(|answer| answer.status.and_then(|status| status.network).map(|network| network.ip)) else {
            return self.find("PodSandboxStatus", "an address", "none");
        };
        let mut urls = vec![format!("http://{address}:{}/", self.port())];
        if self.actor.plan.kind == PodKind::HostPort && self.index == 0 {
            urls.push(format!("http://127.0.0.1:{}/", self.actor.world().port(self.actor.slot)));
        }
        for url in urls {
            self.expect_page(&url).await;
        }
    }

    async fn expect_page(&self, url: &str) {
        let (begin, expected) = (Instant::now(), format!("{}\n", self.actor.uid));
        loop {
            let place = url.to_owned();
            let page = tokio::task::spawn_blocking(move || host::http_get(&place)).await.ok().flatten();
            if page.as_ref() == Some(&expected) {
                return self.actor.world().verdict.event("pages fetched");
            }
            if page.is_some() && self.had_no_room() {
                return;
            }
            if page.is_some() || begin.elapsed() > PAGE {
                return self.find("fetching its page", format!("{expected:?} from {url}"), format!("{page:?}"));
            }
            self.actor.world().verdict.event("pages that did not come at once");
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }
}

/// A script that writes so many bytes to its output, and a word to its error output.
pub(super) fn chatter(length: u32) -> String {
    format!("head -c {length} /dev/zero | tr '\\0' x; echo end >&2")
}
