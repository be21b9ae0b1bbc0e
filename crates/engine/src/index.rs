//! Every pod and container, as last published by its owner. Reading it costs no system call and waits for nobody, but for
//! pods that a daemon which has just started is still taking over (`recoveries`).

use std::collections::HashMap;
use std::sync::{Arc, RwLock};

use coracle_domain::{ContainerId, ContainerKind, ContainerView, Id, IdKind, PodId, PodKind, PodMetadata, PodView, Refusal, Result};

use crate::live::Live;
use crate::pod::Handle;
use crate::recoveries::Recoveries;

/// What an owner publishes of its pod.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    /// The picture for lists and statuses.
    pub(crate) view: Arc<PodView>,
    /// What serves calls that change nothing: execs and stats.
    pub(crate) live: Arc<Live>,
    /// The way to the owner, for calls that do.
    pub(crate) owner: Handle,
}

#[derive(Debug, Default)]
struct Tables {
    pods: HashMap<PodId, Entry>,
    containers: HashMap<ContainerId, PodId>,
    names: HashMap<PodMetadata, PodId>,
}

/// The index.
#[derive(Debug)]
pub(crate) struct Index {
    tables: RwLock<Tables>,
    recoveries: Arc<Recoveries>,
}

impl Default for Index {
    fn default() -> Self {
        Self { tables: RwLock::default(), recoveries: Arc::new(Recoveries::new()) }
    }
}

impl Index {
    /// The pods that are not taken over yet.
    pub(crate) fn recoveries(&self) -> &Arc<Recoveries> {
        &self.recoveries
    }

    /// Replaces what is known of a pod and its containers.
    pub(crate) fn publish(&self, entry: Entry) {
        let mut tables = self.write();
        let id = entry.view.id.clone();
        tables.forget(&id);
        for container in &entry.view.containers {
            tables.containers.insert(container.id.clone(), id.clone());
        }
        tables.names.insert(entry.view.request.metadata.clone(), id.clone());
        tables.pods.insert(id, entry);
    }

    /// Drops a pod and its containers.
    pub(crate) fn withdraw(&self, id: &PodId) {
        self.write().forget(id);
    }

    /// The pod with this id or unique prefix of one, once it is taken over.
    pub(crate) async fn pod(&self, name: &str) -> Result<Entry> {
        self.once_taken_over(|| self.pod_now(name), |entry| &entry.view.id).await
    }

    /// What is found, once the pod that it is about is taken over.
    async fn once_taken_over<T, E>(
        &self,
        look: impl Fn() -> std::result::Result<T, E>,
        pod: impl Fn(&T) -> &PodId,
    ) -> std::result::Result<T, E> {
        // Asked before the look: what is seen after the last of them is what was taken over.
        let are_over = self.recoveries.are_over();
        let found = look()?;
        if are_over {
            return Ok(found);
        }
        self.recoveries.wait_for(pod(&found)).await;
        look()
    }

    /// The same as it is.
    pub(crate) fn pod_now(&self, name: &str) -> Result<Entry> {
        let tables = self.read();
        let id = resolve::<PodKind>(&tables.pods, name)?;
        tables.pods.get(&id).cloned().ok_or_else(|| not_found::<PodKind>(name).into())
    }

    /// The container with this id or unique prefix of one, and its pod, once that is taken over.
    pub(crate) async fn container(&self, name: &str) -> Result<(Arc<ContainerView>, Entry)> {
        self.once_taken_over(|| self.container_now(name), |(_, entry)| &entry.view.id).await
    }

    /// The same as it is.
    pub(crate) fn container_now(&self, name: &str) -> Result<(Arc<ContainerView>, Entry)> {
        let tables = self.read();
        let id = resolve::<ContainerKind>(&tables.containers, name)?;
        let found = tables.containers.get(&id).and_then(|pod| tables.pods.get(pod)).and_then(|entry| {
            let view = entry.view.containers.iter().find(|container| container.id == id)?;
            Some((Arc::clone(view), entry.clone()))
        });
        found.ok_or_else(|| not_found::<ContainerKind>(name).into())
    }

    /// All pods, oldest first. For a while after the daemon's start it waits for those whose records may be out of date.
    pub(crate) async fn pods(&self) -> Vec<Arc<PodView>> {
        self.recoveries.wait_for_doubtful().await;
        self.pods_now()
    }

    /// The same as they are.
    pub(crate) fn pods_now(&self) -> Vec<Arc<PodView>> {
        let mut pods: Vec<_> = self.read().pods.values().map(|entry| Arc::clone(&entry.view)).collect();
        pods.sort_by(|a, b| (a.created_at, &a.id).cmp(&(b.created_at, &b.id)));
        pods
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.read().pods.len()
    }

    /// The pod that was made under this name, once it is taken over.
    pub(crate) async fn named(&self, metadata: &PodMetadata) -> Option<Arc<PodView>> {
        self.once_taken_over(|| self.named_now(metadata).ok_or(()), |pod| &pod.id).await.ok()
    }

    fn named_now(&self, metadata: &PodMetadata) -> Option<Arc<PodView>> {
        let tables = self.read();
        let id = tables.names.get(metadata)?;
        tables.pods.get(id).map(|entry| Arc::clone(&entry.view))
    }

    /// What is live of a pod, by its whole id.
    pub(crate) fn live(&self, id: &PodId) -> Option<Arc<Live>> {
        self.read().pods.get(id).map(|entry| Arc::clone(&entry.live))
    }

    // A panic while the lock is held cannot leave the tables half changed in a way that matters: the next
    // publication of the same pod replaces its entries.
    fn read(&self) -> std::sync::RwLockReadGuard<'_, Tables> {
        self.tables.read().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, Tables> {
        self.tables.write().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Tables {
    fn forget(&mut self, pod: &PodId) {
        if let Some(entry) = self.pods.remove(pod) {
            self.names.remove(&entry.view.request.metadata);
            for container in &entry.view.containers {
                self.containers.remove(&container.id);
            }
        }
    }
}

fn not_found<K: IdKind>(name: &str) -> Refusal {
    Refusal::not_found(K::NOUN, name)
}

/// The one id that `name` is, or begins.
fn resolve<K: IdKind + Clone + Eq + std::hash::Hash>(table: &HashMap<Id<K>, impl Sized>, name: &str) -> Result<Id<K>> {
    if let Ok(id) = name.parse::<Id<K>>() {
        return if table.contains_key(&id) { Ok(id) } else { Err(not_found::<K>(name).into()) };
    }
    if name.is_empty() {
        return Err(Refusal::invalid("id", format!("a {}'s id is missing", K::NOUN)).into());
    }
    let mut matches = table.keys().filter(|id| id.as_str().starts_with(name));
    match (matches.next(), matches.next()) {
        (Some(id), None) => Ok(Id::clone(id)),
        (None, _) => Err(not_found::<K>(name).into()),
        (Some(_), Some(_)) => Err(Refusal::invalid("id", format!("{name:?} begins more than one {}'s id", K::NOUN)).into()),
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use coracle_domain::{Error, PodPhase};

    use super::*;
    use crate::testing;

    fn publish(index: &Index, seed: u8) -> PodId {
        let entry = testing::entry(seed);
        let id = entry.view.id.clone();
        index.publish(entry);
        id
    }

    #[test]
    fn a_pod_is_found_by_id_by_the_unique_start_of_one_and_by_name() {
        let index = Index::default();
        let (first, second) = (publish(&index, 0x10), publish(&index, 0x11));
        assert_eq!(index.pod_now(first.as_str()).unwrap().view.id, first);
        assert_eq!(index.pod_now(&second.as_str()[..2]).unwrap().view.id, second);
        assert!(matches!(index.pod_now("1"), Err(Error::Refused(Refusal::Invalid { .. }))));
        assert!(matches!(index.pod_now("2"), Err(Error::Refused(Refusal::NotFound { .. }))));
        assert!(matches!(index.pod_now(""), Err(Error::Refused(Refusal::Invalid { .. }))));
        assert_eq!(index.named_now(&testing::record(0x11).request.metadata).map(|pod| pod.id.clone()), Some(second));
    }

    #[tokio::test]
    async fn what_is_seen_just_before_a_takeover_ends_is_not_what_is_told() {
        let index = Index::default();
        let id = publish(&index, 1);
        let recovery = Cell::new(Some(index.recoveries().begin(&id)));
        let look_and_take_over = || {
            let seen = index.pod_now(id.as_str());
            if recovery.take().is_some() {
                let before = testing::entry(1);
                index.publish(Entry { view: Arc::new(PodView { phase: PodPhase::Stopped, ..(*before.view).clone() }), ..before });
            }
            seen
        };
        let found = index.once_taken_over(look_and_take_over, |entry| &entry.view.id).await.unwrap();
        assert_eq!(found.view.phase, PodPhase::Stopped);
    }

    #[test]
    fn what_is_published_again_replaces_what_was_there() {
        let index = Index::default();
        let id = publish(&index, 1);
        let container = testing::entry(1).view.containers[0].id.clone();
        assert_eq!(index.container_now(container.as_str()).unwrap().0.pod, id);
        let mut without = testing::entry(1);
        without.view = Arc::new(PodView { containers: Vec::new(), ..(*without.view).clone() });
        index.publish(without);
        assert!(index.container_now(container.as_str()).is_err());
        assert_eq!(index.pods_now().len(), 1);
    }

    #[test]
    fn what_is_withdrawn_is_in_no_table() {
        let index = Index::default();
        let id = publish(&index, 1);
        index.withdraw(&id);
        assert!(index.pods_now().is_empty() && index.pod_now(id.as_str()).is_err() && index.live(&id).is_none());
        assert!(index.named_now(&testing::record(1).request.metadata).is_none());
        assert!(index.container_now(testing::entry(1).view.containers[0].id.as_str()).is_err());
    }
}
