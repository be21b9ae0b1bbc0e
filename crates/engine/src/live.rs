//! What is alive of a pod: its monitor's connection and its containers' cgroups.
//!
//! Owners publish it beside the view, so that execs and stats, which change no pod, go past the owner's inbox.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use coracle_cgroup::Cgroup;
use coracle_domain::{ContainerId, ContainerPhase, ContainerView};
use coracle_monitor::client::Monitor;
use coracle_plan::Process;
use tokio::sync::watch;

/// A pod's live parts.
#[derive(Debug, Clone, Default)]
pub(crate) struct Live {
    /// `None` once the pod was stopped or its monitor was lost.
    pub(crate) monitor: Option<Monitor>,
    /// Its containers that have not ended.
    pub(crate) containers: HashMap<ContainerId, Arc<LiveContainer>>,
}

impl Live {
    /// A container's live parts, if it runs.
    pub(crate) fn running(&self, container: &ContainerView) -> Option<&Arc<LiveContainer>> {
        match container.phase {
            ContainerPhase::Running { .. } => self.containers.get(&container.id),
            _ => None,
        }
    }
}

/// A container that was made and has not ended.
#[derive(Debug)]
pub(crate) struct LiveContainer {
    /// Where it is limited and accounted.
    pub(crate) cgroup: Arc<Cgroup>,
    /// What it runs: the model of its execs.
    pub(crate) process: Arc<Process>,
    /// Whether it has ended.
    pub(crate) ended: watch::Sender<bool>,
    last_usage: Mutex<Option<UsageSample>>,
}

#[derive(Debug, Clone, Copy)]
struct UsageSample {
    at: i64,
    usage: u64,
    rate: Option<u64>,
}

/// Samples closer together than this say more about the clock than about the load.
const SHORTEST_INTERVAL: i64 = 500_000_000;

impl LiveContainer {
    pub(crate) fn new(cgroup: Arc<Cgroup>, process: Arc<Process>) -> Self {
        Self { cgroup, process, ended: watch::Sender::new(false), last_usage: Mutex::new(None) }
    }

    /// Nanoseconds of processor time per second since an earlier sample; `None` before there are two.
    pub(crate) fn rate(&self, at: i64, usage: u64) -> Option<u64> {
        let mut last = self.last_usage.lock().unwrap_or_else(PoisonError::into_inner);
        match *last {
            Some(sample) if at - sample.at < SHORTEST_INTERVAL => sample.rate,
            Some(sample) => {
                let rate = u128::from(usage.saturating_sub(sample.usage)) * 1_000_000_000 / (at - sample.at).unsigned_abs().max(1) as u128;
                let rate = u64::try_from(rate).ok();
                *last = Some(UsageSample { at, usage, rate });
                rate
            }
            None => {
                *last = Some(UsageSample { at, usage, rate: None });
                None
            }
        }
    }
}
