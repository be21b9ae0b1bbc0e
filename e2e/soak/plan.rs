//! What one pod is and what is done with it, decided by seed and number alone: the machine's speed changes when things
//! happen, never which.

use crate::dice::Dice;

/// The life of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PodPlan {
    /// What it has of its own.
    pub(crate) kind: PodKind,
    /// Its containers, in the order of their starts.
    pub(crate) containers: Vec<ContainerPlan>,
    /// How its kubelet calls.
    pub(crate) temper: Temper,
    /// Whether its monitor is killed after the first half of its activities.
    pub(crate) monitor_dies: bool,
    /// How it ends.
    pub(crate) ending: Ending,
}

/// What a pod has of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PodKind {
    /// Network, IPC, UTS.
    OwnNetwork,
    /// The same, and a port of the node.
    HostPort,
    /// The node's network.
    HostNetwork,
    /// One pid namespace for all containers.
    SharedPid,
    /// Users of its own, where the node can.
    OwnUsers,
}

/// How calls are made that make something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Temper {
    /// Once, and again when the answer was lost.
    Patient,
    /// First so many milliseconds only, then again.
    Impatient(u64),
    /// Twice at the same time.
    Twice,
}

/// A container of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ContainerPlan {
    /// What runs in it.
    pub(crate) program: Program,
    /// What is done with it while it runs.
    pub(crate) activities: Vec<Activity>,
    /// How often it is made anew after it has ended.
    pub(crate) restarts: u32,
}

/// What runs in a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Program {
    /// Ends by itself.
    Exits {
        /// With this status.
        code: u8,
        /// After so many milliseconds.
        after: u64,
    },
    /// Writes numbered lines and ends.
    Says {
        /// How many.
        lines: u32,
        /// With this status.
        code: u8,
    },
    /// Serves HTTP, and writes a line now and then, until it is told to end.
    Serves,
    /// Stays until it is killed: it does not heed the stop signal.
    Stays,
    /// Takes memory until it is killed for it.
    Greedy,
    /// Is killed by somebody on the node.
    Murdered,
    /// Does not exist.
    Missing,
}

impl Program {
    /// Whether it runs until somebody ends it.
    pub(crate) fn is_endless(self) -> bool {
        matches!(self, Self::Serves | Self::Stays)
    }
}

/// What is done with a running container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Activity {
    /// A probe that ends with this status.
    Probe(u8),
    /// A probe that does not end within its second.
    ProbeTimeout,
    /// A probe whose output is looked at.
    Echo(u32),
    /// A session of exec.
    Session(u32),
    /// ContainerStatus, ContainerStats, ListPodSandboxStats.
    Look,
    /// UpdateContainerResources, with this limit of memory in MiB.
    Update(i64),
    /// The log is moved away and opened anew.
    Rotate,
    /// What it serves is fetched.
    Fetch,
    /// Nothing, for so many milliseconds.
    Pause(u64),
}

/// How a pod ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    /// StopContainer with this grace in seconds, StopPodSandbox, RemoveContainer, RemovePodSandbox.
    Orderly(i64),
    /// StopPodSandbox and RemovePodSandbox, each twice at the same time.
    StopAndRemove,
    /// RemovePodSandbox alone.
    RemoveOnly,
}

impl PodPlan {
    /// The plan of the pod of that number.
    pub(crate) fn new(seed: u64, number: u64) -> Self {
        let mut dice = Dice::new(seed, number);
        let kinds =
            [PodKind::OwnNetwork, PodKind::OwnNetwork, PodKind::HostPort, PodKind::HostNetwork, PodKind::SharedPid, PodKind::OwnUsers];
        let kind = dice.pick(&kinds);
        let containers = (0..dice.between(1, 3)).map(|_| ContainerPlan::new(&mut dice)).collect();
        let temper = match dice.between(0, 4) {
            0 => Temper::Impatient(dice.between(1, 60)),
            1 => Temper::Twice,
            _ => Temper::Patient,
        };
        let ending = match dice.between(0, 5) {
            0 => Ending::RemoveOnly,
            1 | 2 => Ending::StopAndRemove,
            _ => Ending::Orderly(dice.between(0, 2).cast_signed()),
        };
        Self { kind, containers, temper, monitor_dies: dice.chance(8), ending }
    }
}

impl ContainerPlan {
    fn new(dice: &mut Dice) -> Self {
        let program = match dice.between(0, 19) {
            0..=2 => Program::Exits { code: dice.pick(&[0, 0, 1, 7, 255]), after: dice.between(0, 3000) },
            3..=5 => Program::Says { lines: u32::try_from(dice.between(1, 3000)).unwrap_or(1), code: dice.pick(&[0, 3]) },
            6 => Program::Greedy,
            7 => Program::Missing,
            8 => Program::Murdered,
            9..=11 => Program::Stays,
            _ => Program::Serves,
        };
        let activities = (0..dice.between(2, 10)).map(|_| Activity::new(dice)).collect();
        Self { program, activities, restarts: u32::from(dice.chance(40)) }
    }
}

impl Activity {
    fn new(dice: &mut Dice) -> Self {
        match dice.between(0, 19) {
            0..=4 => Self::Probe(dice.pick(&[0, 0, 0, 1, 42])),
            5 => Self::ProbeTimeout,
            6..=7 => Self::Echo(u32::try_from(dice.between(0, 20_000)).unwrap_or_default()),
            8 => Self::Session(u32::try_from(dice.between(0, 20_000)).unwrap_or_default()),
            9..=10 => Self::Look,
            11 => Self::Update(dice.between(48, 96).cast_signed()),
            12..=13 => Self::Rotate,
            14..=15 => Self::Fetch,
            _ => Self::Pause(dice.between(0, 2500)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_plans_the_same_pods_each_time_and_others_under_another() {
        let pods = |seed| (0..100).map(|number| PodPlan::new(seed, number)).collect::<Vec<_>>();
        assert_eq!(pods(1), pods(1));
        assert_ne!(pods(1), pods(2));
    }

    #[test]
    fn a_hundred_pods_are_of_every_kind() {
        let pods: Vec<_> = (0..100).map(|number| PodPlan::new(5, number)).collect();
        for kind in [PodKind::OwnNetwork, PodKind::HostPort, PodKind::HostNetwork, PodKind::SharedPid, PodKind::OwnUsers] {
            assert!(pods.iter().any(|pod| pod.kind == kind), "{kind:?}");
        }
        let programs: Vec<_> = pods.iter().flat_map(|pod| &pod.containers).map(|container| container.program).collect();
        for wanted in [Program::Greedy, Program::Missing, Program::Murdered, Program::Serves, Program::Stays] {
            assert!(programs.contains(&wanted), "{wanted:?}");
        }
        assert!(pods.iter().any(|pod| pod.monitor_dies) && pods.iter().any(|pod| !pod.monitor_dies));
    }
}
