//! Every pod and container, as last published by its owner. Reading it costs no system call and waits for nobody.

use std::collections::HashMap;
use std::sync::{Arc, RwLock};

use coracle_domain::{ContainerId, ContainerKind, ContainerView, Id, IdKind, PodId, PodKind, PodMetadata, PodView, Refusal, Result};

use crate::live::Live;
use crate::pod::Handle;

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
#[derive(Debug, Default)]
pub(crate) struct Index(RwLock<Tables>);

impl Index {
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

    /// The pod with this id or unique prefix of one.
    pub(crate) fn pod(&self, name: &str) -> Result<Entry> {
        let tables = self.read();
        let id = resolve::<PodKind>(&tables.pods, name)?;
        tables.pods.get(&id).cloned().ok_or_else(|| not_found::<PodKind>(name).into())
    }

    /// The container with this id or unique prefix of one, and its pod.
    pub(crate) fn container(&self, name: &str) -> Result<(Arc<ContainerView>, Entry)> {
        let tables = self.read();
        let id = resolve::<ContainerKind>(&tables.containers, name)?;
        let found = tables.containers.get(&id).and_then(|pod| tables.pods.get(pod)).and_then(|entry| {
            let view = entry.view.containers.iter().find(|container| container.id == id)?;
            Some((Arc::clone(view), entry.clone()))
        });
        found.ok_or_else(|| not_found::<ContainerKind>(name).into())
    }

    /// All pods, oldest first.
    pub(crate) fn pods(&self) -> Vec<Arc<PodView>> {
        let mut pods: Vec<_> = self.read().pods.values().map(|entry| Arc::clone(&entry.view)).collect();
        pods.sort_by(|a, b| (a.created_at, &a.id).cmp(&(b.created_at, &b.id)));
        pods
    }

    /// The pod that was made under this name.
    pub(crate) fn named(&self, metadata: &PodMetadata) -> Option<Arc<PodView>> {
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
        self.0.read().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, Tables> {
        self.0.write().unwrap_or_else(std::sync::PoisonError::into_inner)
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
