//! The model: what was acknowledged of each pod and container, and what therefore must be true of every list.
//!
//! Whoever acts on a pod writes here before it asks for a change that may happen at any time from then on, and after a
//! change was acknowledged. What stands here both before and after a list was taken must be in that list.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, PoisonError};

use coracle_e2e::api::{Container, ContainerState, PodSandbox, PodSandboxState};

/// What was acknowledged of a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PodFact {
    /// It was made, and nobody has asked to end it.
    Ready,
    /// It may end at any moment, or be gone.
    Going,
}

/// What was acknowledged of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ContainerFact {
    /// It was made, and nobody has asked to start it.
    Created,
    /// It runs until somebody ends it, and nobody has asked to.
    Running,
    /// It has ended with this exit code.
    Exited(i32),
    /// It may be in any state, or be gone.
    Any,
}

/// What is known at one moment.
#[derive(Debug, Clone, Default)]
pub(crate) struct Facts {
    pods: HashMap<String, PodFact>,
    containers: HashMap<String, ContainerFact>,
    /// The uids of pods that somebody is busy with.
    uids: HashSet<String>,
    gone: HashSet<String>,
}

/// The facts, as they change.
#[derive(Debug, Default)]
pub(crate) struct Ledger(Mutex<Facts>);

impl Ledger {
    /// Somebody begins to ask for pods of this uid.
    pub(crate) fn begin(&self, uid: &str) {
        self.facts(|facts| facts.uids.insert(uid.to_owned()));
    }

    /// Nothing of this uid may be there any more.
    pub(crate) fn end(&self, uid: &str) {
        self.facts(|facts| facts.uids.remove(uid));
    }

    /// A fact about a pod; false if the id was that of a pod that is gone.
    pub(crate) fn pod(&self, id: &str, fact: PodFact) -> bool {
        self.facts(|facts| {
            facts.pods.insert(id.to_owned(), fact);
            !facts.gone.contains(id)
        })
    }

    /// A fact about a container; false if the id was that of a container that is gone.
    pub(crate) fn container(&self, id: &str, fact: ContainerFact) -> bool {
        self.facts(|facts| {
            facts.containers.insert(id.to_owned(), fact);
            !facts.gone.contains(id)
        })
    }

    /// The removal of a pod or a container was acknowledged.
    pub(crate) fn gone(&self, id: &str) {
        self.facts(|facts| {
            facts.pods.remove(id);
            facts.containers.remove(id);
            facts.gone.insert(id.to_owned());
        });
    }

    /// The facts now.
    pub(crate) fn now(&self) -> Facts {
        self.facts(|facts| facts.clone())
    }

    fn facts<T>(&self, work: impl FnOnce(&mut Facts) -> T) -> T {
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// A subject of which a list says something else than the facts: expected, seen.
pub(crate) type Contradiction = (String, String);

impl Facts {
    /// The uids of pods that somebody is busy with.
    pub(crate) fn busy(&self) -> Vec<&str> {
        self.uids.iter().map(String::as_str).collect()
    }

    /// Ids of pods that are gone.
    pub(crate) fn departed(&self) -> Vec<String> {
        self.gone.iter().cloned().collect()
    }

    /// Compares a list of all pods, taken between `self` and `after`.
    pub(crate) fn contradicted_by_pods(&self, after: &Self, listed: &[PodSandbox]) -> Vec<Contradiction> {
        let mut found = Vec::new();
        let states: HashMap<&str, PodSandboxState> = listed.iter().map(|pod| (pod.id.as_str(), pod.state())).collect();
        for id in self.pods.keys().filter(|id| self.still(after, id, |facts, id| facts.pods.get(id).copied()) == Some(PodFact::Ready)) {
            if states.get(id.as_str()) != Some(&PodSandboxState::SandboxReady) {
                found.push((format!("pod {id} listed as ready"), format!("{:?}", states.get(id.as_str()))));
            }
        }
        let mut names = HashSet::new();
        for pod in listed {
            let metadata = pod.metadata.clone().unwrap_or_default();
            if self.gone.contains(&pod.id) {
                found.push((format!("pod {} gone, as was acknowledged", pod.id), format!("{:?}", pod.state())));
            } else if !self.uids.contains(&metadata.uid) && !after.uids.contains(&metadata.uid) {
                found.push(("no pod that nobody asked for".to_owned(), format!("{} {}", pod.id, metadata.name)));
            }
            if !names.insert((metadata.uid.clone(), metadata.attempt)) {
                found.push((format!("one pod of the name {} attempt {}", metadata.name, metadata.attempt), "two".to_owned()));
            }
        }
        if states.len() != listed.len() {
            found.push(("each pod listed once".to_owned(), format!("{} entries, {} pods", listed.len(), states.len())));
        }
        found
    }

    /// Compares a list of all containers, taken between `self` and `after`.
    pub(crate) fn contradicted_by_containers(&self, after: &Self, listed: &[Container]) -> Vec<Contradiction> {
        let mut found = Vec::new();
        let states: HashMap<&str, ContainerState> = listed.iter().map(|container| (container.id.as_str(), container.state())).collect();
        for id in self.containers.keys() {
            let expected = match self.still(after, id, |facts, id| facts.containers.get(id).copied()) {
                Some(ContainerFact::Created) => ContainerState::ContainerCreated,
                Some(ContainerFact::Running) => ContainerState::ContainerRunning,
                Some(ContainerFact::Exited(_)) => ContainerState::ContainerExited,
                Some(ContainerFact::Any) | None => continue,
            };
            if states.get(id.as_str()) != Some(&expected) {
                found.push((format!("container {id} listed as {expected:?}"), format!("{:?}", states.get(id.as_str()))));
            }
        }
        for container in listed.iter().filter(|container| self.gone.contains(&container.id)) {
            found.push((format!("container {} gone, as was acknowledged", container.id), format!("{:?}", container.state())));
        }
        found
    }

    /// A fact that was true all the time.
    fn still<T: PartialEq>(&self, after: &Self, id: &str, fact: impl Fn(&Self, &str) -> Option<T>) -> Option<T> {
        let before = fact(self, id)?;
        (fact(after, id)? == before).then_some(before)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(id: &str, state: PodSandboxState) -> PodSandbox {
        let metadata = coracle_e2e::api::PodSandboxMetadata { uid: format!("uid-{id}"), ..Default::default() };
        PodSandbox { id: id.to_owned(), metadata: Some(metadata), state: state.into(), ..Default::default() }
    }

    #[test]
    fn a_list_must_have_what_was_acknowledged_and_nothing_that_went() {
        let ledger = Ledger::default();
        for id in ["a", "b"] {
            ledger.begin(&format!("uid-{id}"));
            assert!(ledger.pod(id, PodFact::Ready));
        }
        let before = ledger.now();
        let both = [listed("a", PodSandboxState::SandboxReady), listed("b", PodSandboxState::SandboxReady)];
        assert!(before.contradicted_by_pods(&before, &both).is_empty());
        assert_eq!(before.contradicted_by_pods(&before, &both[..1]).len(), 1, "one is missing");
        let ended = [listed("a", PodSandboxState::SandboxReady), listed("b", PodSandboxState::SandboxNotready)];
        assert_eq!(before.contradicted_by_pods(&before, &ended).len(), 1, "one is not ready");
        ledger.pod("b", PodFact::Going);
        assert!(before.contradicted_by_pods(&ledger.now(), &ended).is_empty(), "it may be on its way");
        ledger.gone("b");
        let gone = ledger.now();
        assert!(!gone.contradicted_by_pods(&gone, &ended).is_empty(), "it is gone");
        assert_eq!(gone.contradicted_by_pods(&gone, &[both[0].clone(), listed("c", PodSandboxState::SandboxReady)]).len(), 1);
        assert!(!ledger.pod("b", PodFact::Ready), "an id came back");
    }

    #[test]
    fn an_ended_container_does_not_run_again() {
        let ledger = Ledger::default();
        ledger.container("c", ContainerFact::Exited(3));
        let facts = ledger.now();
        let listed = |state: ContainerState| vec![Container { id: "c".into(), state: state.into(), ..Default::default() }];
        assert!(facts.contradicted_by_containers(&facts, &listed(ContainerState::ContainerExited)).is_empty());
        assert_eq!(facts.contradicted_by_containers(&facts, &listed(ContainerState::ContainerRunning)).len(), 1);
    }
}
