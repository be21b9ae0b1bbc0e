//! Which pods the daemon has not taken over yet, and waiting for that.
//!
//! A daemon serves while it takes over the pods of its predecessor. What a record says of a pod may be out of date until the
//! pod's monitor has told the rest. So a call about one pod waits for that pod, which then goes first. A list waits for those
//! pods only of which the kernel did not say that they are as their records have them, and not for long: a pod that hangs is
//! listed as its record has it. A look at all pods keeps the processors busy, so pods that nobody waits for give way to it.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use coracle_domain::PodId;
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

/// How long after the daemon's start lists wait for pods that are not taken over.
const LISTS_WAIT: Duration = Duration::from_secs(2);

/// The pods that are being taken over.
#[derive(Debug)]
pub(crate) struct Recoveries {
    table: Mutex<Table>,
    news: watch::Sender<()>,
    lists_wait_until: Instant,
}

#[derive(Debug, Default)]
struct Table {
    pending: HashSet<PodId>,
    /// Those of them whose records may be out of date.
    doubtful: HashSet<PodId>,
    /// Those that somebody began to wait for since this was asked last.
    wanted: Vec<PodId>,
    /// How many looks at all pods are under way.
    sweeps: usize,
}

/// The recovery of one pod, which ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Recovery {
    all: Arc<Recoveries>,
    id: PodId,
}

/// A look at all pods, which ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Sweeping<'a>(&'a Recoveries);

impl Recoveries {
    /// None yet; the daemon starts now.
    pub(crate) fn new() -> Self {
        Self { table: Mutex::default(), news: watch::Sender::new(()), lists_wait_until: Instant::now() + LISTS_WAIT }
    }

    /// From now on a pod is being taken over.
    pub(crate) fn begin(self: &Arc<Self>, id: &PodId) -> Recovery {
        let mut table = self.table();
        table.pending.insert(id.clone());
        table.doubtful.insert(id.clone());
        Recovery { all: Arc::clone(self), id: id.clone() }
    }

    /// Whether all pods are taken over.
    pub(crate) fn are_over(&self) -> bool {
        self.table().pending.is_empty()
    }

    /// Waits until a pod is taken over.
    pub(crate) async fn wait_for(&self, id: &PodId) {
        if self.table().want(id) {
            self.news.send_replace(());
        }
        self.wait_while(|table| table.pending.contains(id)).await;
    }

    /// Waits until all are, or lists wait no longer.
    pub(crate) async fn wait_for_all(&self) {
        let _ = timeout_at(self.lists_wait_until, self.wait_while(|table| !table.pending.is_empty())).await;
    }

    /// Waits until no record may be out of date, or lists wait no longer.
    pub(crate) async fn wait_for_doubtful(&self) {
        let _ = timeout_at(self.lists_wait_until, self.wait_while(|table| !table.doubtful.is_empty())).await;
    }

    /// From now on all pods are looked at.
    pub(crate) fn sweep(&self) -> Sweeping<'_> {
        self.table().sweeps += 1;
        Sweeping(self)
    }

    /// Waits until nobody looks at all pods, or somebody waits for one, or lists wait no longer.
    pub(crate) async fn give_way(&self) {
        let _ = timeout_at(self.lists_wait_until, self.wait_while(|table| table.sweeps > 0 && table.wanted.is_empty())).await;
    }

    /// The pods that somebody began to wait for since the last call.
    pub(crate) fn take_wanted(&self) -> Vec<PodId> {
        std::mem::take(&mut self.table().wanted)
    }

    async fn wait_while(&self, waits: impl Fn(&Table) -> bool) {
        let mut news = self.news.subscribe();
        while waits(&self.table()) && news.changed().await.is_ok() {}
    }

    // Each change is one insertion or removal: there is nothing half done that a panic could leave.
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    /// Whether that is news to those who give way; without a sweep nobody does.
    fn want(&mut self, id: &PodId) -> bool {
        let is_news = self.pending.contains(id) && !self.wanted.contains(id);
        if is_news {
            self.wanted.push(id.clone());
        }
        is_news && self.sweeps > 0
    }
}

impl Recovery {
    /// The pod is known to be as its record has it.
    pub(crate) fn vouch(&self) {
        let mut table = self.all.table();
        table.doubtful.remove(&self.id);
        // Who waits, waits for the last of them.
        if table.doubtful.is_empty() {
            drop(table);
            self.all.news.send_replace(());
        }
    }
}

impl Drop for Sweeping<'_> {
    fn drop(&mut self) {
        self.0.table().sweeps -= 1;
        self.0.news.send_replace(());
    }
}

impl Drop for Recovery {
    fn drop(&mut self) {
        let mut table = self.all.table();
        table.pending.remove(&self.id);
        table.doubtful.remove(&self.id);
        drop(table);
        self.all.news.send_replace(());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    #[tokio::test]
    async fn a_call_waits_for_its_own_pod_only() {
        let all = Arc::new(Recoveries::new());
        let (first, second) = (testing::record(1).id, testing::record(2).id);
        let (quick, hanging) = (all.begin(&first), all.begin(&second));
        let waiting = tokio::spawn({
            let (all, id) = (Arc::clone(&all), first.clone());
            async move { all.wait_for(&id).await }
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        drop(quick);
        waiting.await.unwrap();
        all.wait_for(&first).await;
        assert_eq!(all.take_wanted(), [first]);
        assert!(all.take_wanted().is_empty());
        drop(hanging);
        all.wait_for_all().await;
    }

    #[tokio::test]
    async fn lists_wait_for_pods_that_nobody_vouches_for_and_for_no_others() {
        let all = Arc::new(Recoveries::new());
        let (known, doubtful) = (all.begin(&testing::record(1).id), all.begin(&testing::record(2).id));
        let waiting = tokio::spawn({
            let all = Arc::clone(&all);
            async move { all.wait_for_doubtful().await }
        });
        known.vouch();
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        drop(doubtful);
        waiting.await.unwrap();
        assert!(all.table().pending.contains(&known.id));
    }

    #[tokio::test]
    async fn pods_give_way_to_a_look_at_all_until_somebody_waits_for_one() {
        let all = Arc::new(Recoveries::new());
        all.give_way().await;
        let id = testing::record(1).id;
        let recovery = all.begin(&id);
        let giving_way = || {
            let all = Arc::clone(&all);
            tokio::spawn(async move { all.give_way().await })
        };
        let (sweeping, another, first) = (all.sweep(), all.sweep(), giving_way());
        drop(another);
        tokio::task::yield_now().await;
        assert!(!first.is_finished());
        let waiting = tokio::spawn({
            let (all, id) = (Arc::clone(&all), id.clone());
            async move { all.wait_for(&id).await }
        });
        first.await.unwrap();
        assert_eq!(all.take_wanted(), [id]);
        let second = giving_way();
        tokio::task::yield_now().await;
        assert!(!second.is_finished());
        drop(sweeping);
        second.await.unwrap();
        drop(recovery);
        waiting.await.unwrap();
    }

    #[tokio::test]
    async fn pods_do_not_give_way_for_ever() {
        let all = Recoveries { lists_wait_until: Instant::now(), ..Recoveries::new() };
        let _sweeping = all.sweep();
        all.give_way().await;
    }

    #[tokio::test]
    async fn lists_do_not_wait_for_ever_for_a_pod_that_hangs() {
        let all = Arc::new(Recoveries { lists_wait_until: Instant::now(), ..Recoveries::new() });
        let hanging = testing::record(1).id;
        let _guard = all.begin(&hanging);
        all.wait_for_all().await;
        all.wait_for_doubtful().await;
        assert!(all.table().pending.contains(&hanging));
    }
}
