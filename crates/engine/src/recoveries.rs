//! Which pods the daemon has not taken over yet, and waiting for that.
//!
//! A daemon serves while it takes over the pods of its predecessor. What a record says of a pod may be out of date until the
//! pod's monitor has told the rest. So a call about one pod waits for that pod, and a list waits for all, but not for long:
//! a pod that hangs is listed as its record has it.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use coracle_domain::PodId;
use tokio::sync::watch;
use tokio::time::Instant;

/// How long after the daemon's start lists wait for pods that are not taken over.
const LISTS_WAIT: Duration = Duration::from_secs(2);

/// The pods that are being taken over.
#[derive(Debug)]
pub(crate) struct Recoveries {
    pending: Mutex<HashSet<PodId>>,
    news: watch::Sender<()>,
    lists_wait_until: Instant,
}

/// The recovery of one pod, which ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Recovery {
    all: Arc<Recoveries>,
    id: PodId,
}

impl Recoveries {
    /// None yet; the daemon starts now.
    pub(crate) fn new() -> Self {
        Self { pending: Mutex::default(), news: watch::Sender::new(()), lists_wait_until: Instant::now() + LISTS_WAIT }
    }

    /// From now on a pod is being taken over.
    pub(crate) fn begin(self: &Arc<Self>, id: &PodId) -> Recovery {
        self.pending().insert(id.clone());
        Recovery { all: Arc::clone(self), id: id.clone() }
    }

    /// Waits until a pod is taken over; says whether it had to.
    pub(crate) async fn wait_for(&self, id: &PodId) -> bool {
        self.wait_while(|pending| pending.contains(id)).await
    }

    /// Waits until all are, or lists wait no longer.
    pub(crate) async fn wait_for_all(&self) {
        let _ = tokio::time::timeout_at(self.lists_wait_until, self.wait_while(|pending| !pending.is_empty())).await;
    }

    async fn wait_while(&self, waits: impl Fn(&HashSet<PodId>) -> bool) -> bool {
        if !waits(&self.pending()) {
            return false;
        }
        let mut news = self.news.subscribe();
        while waits(&self.pending()) && news.changed().await.is_ok() {}
        true
    }

    // Each change is one insertion or removal: there is nothing half done that a panic could leave.
    fn pending(&self) -> MutexGuard<'_, HashSet<PodId>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Recovery {
    fn drop(&mut self) {
        self.all.pending().remove(&self.id);
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
        assert!(waiting.await.unwrap(), "it had to wait");
        assert!(!all.wait_for(&first).await, "and has to no longer");
        drop(hanging);
        all.wait_for_all().await;
    }

    #[tokio::test]
    async fn lists_do_not_wait_for_ever_for_a_pod_that_hangs() {
        let all = Arc::new(Recoveries { lists_wait_until: Instant::now(), ..Recoveries::new() });
        let hanging = testing::record(1).id;
        let _guard = all.begin(&hanging);
        all.wait_for_all().await;
        assert!(all.pending().contains(&hanging));
    }
}
