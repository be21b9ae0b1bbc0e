//! One container of an actor's pod: made, started, awaited, made anew.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use coracle_e2e::api::{ContainerState, ContainerStatus, NamespaceMode};
use coracle_e2e::{Code, ContainerSpec, log};

use super::{Actor, Half};
use crate::ledger::ContainerFact;
use crate::plan::{ContainerPlan, PodKind, Program, Temper};
use crate::sky::Trouble;

/// Where the first container of a pod serves; the next ones do one higher each.
pub(super) const PORT: u16 = 8080;
/// How long a program may take to say that it is ready, or to end, on a machine that is busy.
const READY: Duration = Duration::from_secs(90);
/// How often a container is made anew that no room could be found for.
const ATTEMPTS: u32 = 40;

/// A container.
#[derive(Debug)]
pub(super) struct Member<'a> {
    pub(super) actor: &'a Actor,
    pub(super) pod: &'a str,
    pub(super) plan: &'a ContainerPlan,
    pub(super) index: usize,
    /// The container of the last attempt, if one was made.
    pub(super) id: Option<String>,
    /// Whether it runs its program, as far as is known.
    pub(super) runs: bool,
    /// The logs of the last attempt that were moved away.
    pub(super) rotated: Vec<PathBuf>,
    attempt: u32,
    since: Instant,
}

impl<'a> Member<'a> {
    pub(super) fn new(actor: &'a Actor, pod: &'a str, index: usize) -> Self {
        let plan = &actor.plan.containers[index];
        Self { actor, pod, plan, index, id: None, runs: false, rotated: Vec::new(), attempt: 0, since: Instant::now() }
    }

    /// Creates and starts it, again if there was no room.
    pub(super) async fn start(&mut self) {
        while self.attempt < ATTEMPTS {
            if let Start::Done = self.try_start().await {
                return;
            }
            self.remove().await;
            self.attempt += 1;
        }
        self.find("StartContainer", format!("a start in {ATTEMPTS} attempts"), "none");
    }

    async fn try_start(&mut self) -> Start {
        let actor = self.actor;
        (self.since, self.runs, self.rotated) = (Instant::now(), false, Vec::new());
        let Some(id) = self.create().await else { return Start::Done };
        self.id = Some(id.clone());
        actor.fact(&id, ContainerFact::Created);
        tokio::task::yield_now().await;
        actor.fact(&id, ContainerFact::Any);
        let asked = actor.caller.ask("StartContainer", || actor.caller.cri.start(&id)).await;
        let missing = self.plan.program == Program::Missing;
        match asked.result {
            Ok(()) if missing => self.find("StartContainer", "an error: there is no such program", "success"),
            Ok(()) => self.runs = true,
            Err(status) if missing || asked.repeated => return self.judge_start(&status.to_string()).await,
            Err(status) => self.find("StartContainer", "success", status.to_string()),
        }
        self.expect_ready().await;
        Start::Done
    }

    /// What an error of StartContainer means, where one was to be expected.
    async fn judge_start(&mut self, error: &str) -> Start {
        let Some(status) = self.status().await else { return Start::Done };
        let failed = status.reason == "StartError";
        match status.state() {
            ContainerState::ContainerExited if failed && self.plan.program == Program::Missing => {
                if let Some(id) = &self.id {
                    self.actor.fact(id, ContainerFact::Exited(status.exit_code));
                }
            }
            // No room for a record, say.
            ContainerState::ContainerExited if failed => return Start::Spoiled,
            ContainerState::ContainerRunning | ContainerState::ContainerExited => {
                self.runs = true;
                self.expect_ready().await;
            }
            _ => self.find("StartContainer", "the container started, or failed to", format!("{error}; {status:?}")),
        }
        Start::Done
    }

    async fn create(&self) -> Option<String> {
        const CALL: &str = "CreateContainer";
        let (caller, config) = (&self.actor.caller, self.spec().config);
        let create = || caller.cri.create(self.pod, &self.actor.config, &config);
        if let Temper::Impatient(milliseconds) = self.actor.plan.temper {
            caller.ask_briefly(CALL, Duration::from_millis(milliseconds), create()).await;
        }
        match caller.ask(CALL, create).await.result {
            Ok(id) => Some(id),
            Err(status) => {
                self.find(CALL, "success", status.to_string());
                None
            }
        }
    }

    fn spec(&self) -> ContainerSpec {
        let spec = ContainerSpec::new(&self.name(), &self.actor.world().image).with(|config| {
            config.metadata.get_or_insert_default().attempt = self.attempt;
            config.log_path = format!("{}_{}.log", self.name(), self.attempt);
        });
        let spec = match self.actor.plan.kind {
            PodKind::SharedPid => {
                spec.security(|security| security.namespace_options.get_or_insert_default().pid = NamespaceMode::Pod.into())
            }
            _ => spec,
        };
        match self.plan.program {
            Program::Missing => spec.command(&["/no/such/program"]),
            Program::Greedy => spec.script(&self.script()).resources(|resources| resources.memory_limit_in_bytes = 24 << 20),
            _ => spec.script(&self.script()),
        }
    }

    fn script(&self) -> String {
        match self.plan.program {
            Program::Exits { code, after } => format!("sleep {}.{:03}; exit {code}", after / 1000, after % 1000),
            Program::Says { lines, code } => {
                format!("i=0; while [ $i -lt {lines} ]; do echo line $i; i=$((i+1)); done; exit {code}")
            }
            Program::Serves => {
                let serve = match self.serves_http() {
                    true => format!("echo {} >/var/www/index.html; httpd -p {} -h /var/www; ", self.actor.uid, self.port()),
                    false => String::new(),
                };
                format!("trap 'exit 0' TERM; {serve}echo ready; i=0; while :; do echo line $i; i=$((i+1)); sleep 2 & wait $!; done")
            }
            Program::Stays | Program::Murdered => String::from("trap '' TERM; echo ready; while :; do sleep 100000; done"),
            Program::Greedy => String::from("exec awk 'BEGIN { s = \"x\"; while (1) s = s s }'"),
            Program::Missing => String::new(),
        }
    }

    fn name(&self) -> String {
        format!("c{}", self.index)
    }

    pub(super) fn port(&self) -> u16 {
        PORT + u16::try_from(self.index).unwrap_or_default()
    }

    /// Whether it serves a page, in a network of its own.
    pub(super) fn serves_http(&self) -> bool {
        self.plan.program == Program::Serves && self.actor.plan.kind != PodKind::HostNetwork
    }

    pub(super) fn log(&self) -> PathBuf {
        PathBuf::from(&self.actor.config.log_directory).join(format!("{}_{}.log", self.name(), self.attempt))
    }

    /// An endless program says that it has begun.
    async fn expect_ready(&mut self) {
        if !self.runs || !(self.plan.program.is_endless() || self.plan.program == Program::Murdered) {
            return;
        }
        let begin = Instant::now();
        while !std::fs::read(self.log()).is_ok_and(|log| log.windows(6).any(|bytes| bytes == b"ready\n")) {
            if self.logs_were_full() {
                tokio::time::sleep(Duration::from_secs(3)).await;
                break;
            }
            if begin.elapsed() > READY {
                let status = self.status().await;
                return self.find(
                    "waiting for the program",
                    "the line it writes when it is ready, in the log",
                    format!("none; {status:?}"),
                );
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        if let Some(id) = self.id.as_ref().filter(|_| self.plan.program.is_endless()) {
            self.actor.fact(id, ContainerFact::Running);
        }
    }

    /// Whether what it wrote to its root may not be there.
    pub(super) fn had_no_room(&self) -> bool {
        self.actor.world().sky.troubled(&[Trouble::StorageFull], self.since)
    }

    fn logs_were_full(&self) -> bool {
        self.actor.world().sky.troubled(&[Trouble::LogsFull], self.since)
    }

    /// The activities of an endless program, or the end of another.
    pub(super) async fn be_busy(&mut self, half: Half) {
        let activities = &self.plan.activities;
        let (first, second) = activities.split_at(activities.len() / 2);
        match (half, self.plan.program.is_endless()) {
            (Half::First, true) => self.carry_out(first).await,
            (Half::Second, true) => self.carry_out(second).await,
            (Half::First, false) => self.expect_end().await,
            (Half::Second, false) => {
                for _ in 0..self.plan.restarts {
                    self.remove().await;
                    self.attempt += 1;
                    self.start().await;
                    self.expect_end().await;
                }
            }
        }
    }

    /// A program that ends has ended as it does.
    async fn expect_end(&mut self) {
        if !self.runs {
            return;
        }
        if self.plan.program == Program::Murdered {
            self.murder().await;
        }
        let Some(status) = self.exited().await else { return };
        let expected = match self.plan.program {
            Program::Exits { code, .. } | Program::Says { code, .. } if code != 0 => (i32::from(code), "Error"),
            Program::Greedy => (137, "OOMKilled"),
            Program::Murdered => (137, "Error"),
            _ => (0, "Completed"),
        };
        self.expect_status(&status, &[expected]);
        if let Program::Says { lines, .. } = self.plan.program {
            self.expect_lines(Some(lines));
        }
    }

    /// Compares an exit with those that are possible.
    pub(super) fn expect_status(&mut self, status: &ContainerStatus, possible: &[(i32, &str)]) {
        self.runs = false;
        self.actor.fact(&status.id, ContainerFact::Exited(status.exit_code));
        let timed = status.started_at > 0 && status.finished_at >= status.started_at;
        if !possible.contains(&(status.exit_code, status.reason.as_str())) || !timed {
            self.find("the container's end", format!("{:?} ended with one of {possible:?}", self.plan.program), format!("{status:?}"));
        }
    }

    async fn exited(&self) -> Option<ContainerStatus> {
        let begin = Instant::now();
        loop {
            let status = self.status().await?;
            if status.state() == ContainerState::ContainerExited {
                return Some(status);
            }
            if begin.elapsed() > READY {
                self.find("waiting for the container's end", format!("the end of {:?}", self.plan.program), format!("{status:?}"));
                return None;
            }
            tokio::time::sleep(Duration::from_millis(150)).await;
        }
    }

    async fn murder(&self) {
        let Some(id) = self.id.clone() else { return };
        let victims = tokio::task::spawn_blocking(move || super::ending::processes_of(&id)).await.unwrap_or_default();
        for pid in victims {
            let _ = coracle_e2e::host::run("kill", &["-KILL", &pid.to_string()]);
        }
        self.actor.world().verdict.event("containers killed from the node");
    }

    /// ContainerStatus, if there is a container.
    pub(super) async fn status(&self) -> Option<ContainerStatus> {
        let (id, caller) = (self.id.as_ref()?, &self.actor.caller);
        match caller.ask("ContainerStatus", || caller.cri.status(id)).await.result {
            Ok(status) => Some(status),
            Err(status) => {
                self.find("ContainerStatus", "a status", status.to_string());
                None
            }
        }
    }

    /// The monitor was killed: nobody saw how an endless program ended.
    pub(super) async fn expect_unknown_end(&self) {
        let Some(status) = self.status().await.filter(|_| self.runs && self.plan.program.is_endless()) else { return };
        if (status.exit_code, status.reason.as_str()) != (-1, "ContainerStatusUnknown") {
            self.actor.caller.find("the monitor's death", "an end that is not known", format!("{status:?}"));
        }
    }

    /// The lines of the log are all there, in their order: so many, or however many.
    pub(super) fn expect_lines(&self, count: Option<u32>) {
        if self.logs_were_full() {
            return;
        }
        let mut bytes = Vec::new();
        for path in self.rotated.iter().chain([&self.log()]) {
            bytes.extend(std::fs::read(path).unwrap_or_default());
        }
        let lines = log::lines(&log::parse(&bytes), "stdout");
        let numbered: Vec<&str> = lines.iter().filter_map(|line| line.strip_prefix("line ")).collect();
        let in_order = numbered.iter().enumerate().all(|(index, text)| *text == index.to_string());
        if !in_order || count.is_some_and(|count| numbered.len() != count as usize) {
            let seen = format!(
                "{} lines in {} files, first out of order: {:?}",
                numbered.len(),
                self.rotated.len() + 1,
                numbered.iter().enumerate().find(|(index, text)| **text != index.to_string())
            );
            self.find("the log", format!("lines from 0 on without a gap, {count:?} in all"), seen);
        }
    }

    /// RemoveContainer, which is gone from all lists then.
    pub(super) async fn remove(&mut self) {
        let Some(id) = self.id.take() else { return };
        let caller = &self.actor.caller;
        self.actor.world().ledger.container(&id, ContainerFact::Any);
        if let Err(status) = caller.ask("RemoveContainer", || caller.cri.remove(&id)).await.result {
            return self.find("RemoveContainer", "success", status.to_string());
        }
        self.actor.world().ledger.gone(&id);
        match caller.ask("ContainerStatus", || caller.cri.status(&id)).await.result {
            Err(status) if status.code() == Code::NotFound => {}
            other => self.find("RemoveContainer", format!("no container {id}"), format!("{other:?}")),
        }
    }

    /// From now on nothing is certain about it.
    pub(super) fn may_be_anything(&self) {
        if let Some(id) = &self.id {
            self.actor.world().ledger.container(id, ContainerFact::Any);
        }
    }

    pub(super) fn find(&self, step: &str, expected: impl Into<String>, seen: impl Into<String>) {
        self.actor.find(&format!("{} {step}", self.name()), expected, seen);
    }
}

/// What came of a start.
enum Start {
    /// It runs, or failed as it must.
    Done,
    /// It failed for want of room, and cannot be started again.
    Spoiled,
}
