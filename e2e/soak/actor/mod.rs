//! One pod's life as a kubelet drives it, held against what was acknowledged.
//!
//! ```text
//! RunPodSandbox ─> each container created and started ─> activities ─> ending ─> gone
//!                                                          └ the monitor is killed ─┘
//! ```

mod activity;
mod container;
mod ending;
mod session;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use coracle_e2e::api::{ContainerState, NamespaceMode, PodSandboxConfig, PodSandboxState, Protocol};
use coracle_e2e::{PodSpec, host};
use futures_util::future::join_all;

use crate::actor::container::Member;
use crate::caller::Caller;
use crate::ledger::{ContainerFact, PodFact};
use crate::plan::{PodKind, PodPlan, Temper};
use crate::world::World;

/// How long the pod of a killed monitor may go on to be called ready, on a machine that is busy.
const NOTICE: Duration = Duration::from_secs(60);

/// The event of a pod that came and went.
pub(crate) const LIVED: &str = "pods that lived and went";

/// A pod and its kubelet.
#[derive(Debug)]
pub(crate) struct Actor {
    caller: Caller,
    plan: PodPlan,
    number: u64,
    slot: u64,
    uid: String,
    config: PodSandboxConfig,
    /// Whether its monitor was killed: then calls may fail as they like.
    doomed: AtomicBool,
}

impl Actor {
    /// The pod of that number, one of the slot's.
    pub(crate) fn new(world: &Arc<World>, number: u64, slot: u64) -> Self {
        let plan = PodPlan::new(world.seed, number);
        let uid = format!("soak-{number}");
        let config = world.complete(spec(world, &plan, &uid, slot), &uid).config;
        Self { caller: Caller::new(world, uid.clone()), plan, number, slot, uid, config, doomed: AtomicBool::new(false) }
    }

    /// From its first call to its last.
    pub(crate) async fn live(self) {
        let world = &self.caller.world;
        world.ledger.begin(&self.uid);
        std::fs::create_dir_all(&self.config.log_directory)
            .unwrap_or_else(|error| self.caller.find("the log's directory", "made", error.to_string()));
        if let Some(id) = self.run_pod().await {
            let mut members = self.start_all(&id).await;
            self.be_busy(&id, &mut members).await;
            self.end(&id, &members).await;
        }
        self.expect_no_traces().await;
        world.ledger.end(&self.uid);
        world.verdict.event(LIVED);
        let _ = std::fs::remove_dir_all(&self.config.log_directory);
    }

    fn world(&self) -> &World {
        &self.caller.world
    }

    fn is_doomed(&self) -> bool {
        self.doomed.load(Ordering::Relaxed)
    }

    /// Something is not as it must be; where the monitor was killed, little must be.
    fn find(&self, step: &str, expected: impl Into<String>, seen: impl Into<String>) {
        if !self.is_doomed() {
            self.caller.find(step, expected, seen);
        }
    }

    async fn run_pod(&self) -> Option<String> {
        const CALL: &str = "RunPodSandbox";
        let run = || self.caller.cri.run_pod(&self.config, self.world().handler());
        let id = match self.plan.temper {
            Temper::Patient => self.caller.must(CALL, run).await?,
            Temper::Impatient(milliseconds) => {
                self.caller.ask_briefly(CALL, Duration::from_millis(milliseconds), run()).await;
                self.caller.must(CALL, run).await?
            }
            Temper::Twice => {
                let (one, other) = tokio::join!(self.caller.must(CALL, run), self.caller.must(CALL, run));
                if one != other {
                    self.find(CALL, "one pod for the same request twice", format!("{one:?} and {other:?}"));
                }
                one.or(other)?
            }
        };
        if !self.world().ledger.pod(&id, PodFact::Ready) {
            self.find(CALL, "an id that no pod had before", id.clone());
        }
        Some(id)
    }

    async fn start_all<'a>(&'a self, id: &'a str) -> Vec<Member<'a>> {
        let mut members = Vec::new();
        for index in 0..self.plan.containers.len() {
            let mut member = Member::new(self, id, index);
            member.start().await;
            members.push(member);
        }
        members
    }

    /// The containers' activities, side by side. Between the halves the monitor may be killed.
    async fn be_busy(&self, id: &str, members: &mut [Member<'_>]) {
        join_all(members.iter_mut().map(|member| member.be_busy(Half::First))).await;
        if self.plan.monitor_dies {
            return self.kill_monitor(id, members).await;
        }
        join_all(members.iter_mut().map(|member| member.be_busy(Half::Second))).await;
    }

    async fn kill_monitor(&self, id: &str, members: &[Member<'_>]) {
        const STEP: &str = "killing the monitor";
        let (footprint, pod) = (self.world().footprint.clone(), id.to_owned());
        let monitors = tokio::task::spawn_blocking(move || footprint.monitors(&pod)).await.unwrap_or_default();
        if monitors.len() != 1 {
            return self.find(STEP, "one monitor of the pod", format!("{monitors:?}"));
        }
        self.doomed.store(true, Ordering::Relaxed);
        self.world().ledger.pod(id, PodFact::Going);
        members.iter().for_each(Member::may_be_anything);
        for monitor in monitors {
            let _ = host::run("kill", &["-KILL", &monitor.to_string()]);
        }
        self.world().verdict.event("monitors killed");
        let begin = Instant::now();
        while !self.has_ended(id, members).await {
            if begin.elapsed() > NOTICE {
                return self.caller.find(
                    STEP,
                    "the pod not ready and its containers ended",
                    format!("pod {id} after {} s", NOTICE.as_secs()),
                );
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        for member in members {
            member.expect_unknown_end().await;
        }
    }

    async fn has_ended(&self, id: &str, members: &[Member<'_>]) -> bool {
        let pod = self.caller.must("PodSandboxStatus", || self.caller.cri.pod_status(id)).await;
        if pod.and_then(|answer| answer.status).is_none_or(|status| status.state() == PodSandboxState::SandboxReady) {
            return false;
        }
        for member in members {
            if member.status().await.is_some_and(|status| status.state() == ContainerState::ContainerRunning) {
                return false;
            }
        }
        true
    }

    fn fact(&self, container: &str, fact: ContainerFact) {
        if !self.world().ledger.container(container, fact) {
            self.find("CreateContainer", "an id that no container had before", container);
        }
    }
}

/// A half of the activities.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Half {
    First,
    Second,
}

fn spec(world: &World, plan: &PodPlan, name: &str, slot: u64) -> PodSpec {
    let spec = PodSpec::new(name);
    match plan.kind {
        PodKind::OwnNetwork => spec,
        PodKind::HostPort => spec.host_port(Protocol::Tcp, "", world.port(slot), container::PORT),
        PodKind::HostNetwork => spec.host_network(),
        PodKind::SharedPid => {
            let mut spec = spec;
            spec.namespaces().pid = NamespaceMode::Pod.into();
            spec
        }
        PodKind::OwnUsers if world.has_users => {
            let host = 2_000_000 + u32::try_from(slot).unwrap_or_default() * 65_536;
            spec.users(host, 65_536)
        }
        PodKind::OwnUsers => spec,
    }
}
