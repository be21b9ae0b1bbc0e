//! How long things may last, and how long a session has been silent.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

/// How long a client that was told goodbye may take to close.
pub(crate) const LINGER: Duration = Duration::from_secs(10);

/// How long things may last.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// After so much silence a session ends.
    pub(crate) idle: Duration,
    /// So long a client may take to create the streams it needs.
    pub(crate) creation: Duration,
}

/// The last time anything was read or written.
#[derive(Debug)]
pub(crate) struct Activity {
    start: Instant,
    /// Milliseconds after `start`.
    last: AtomicU64,
}

impl Activity {
    pub(crate) fn new() -> Self {
        Self { start: Instant::now(), last: AtomicU64::new(0) }
    }

    /// Something was read or written just now.
    pub(crate) fn seen(&self) {
        self.last.store(self.start.elapsed().as_millis() as u64, Ordering::Relaxed);
    }

    /// Resolves when nothing was seen for `limit`.
    pub(crate) async fn silent_for(&self, limit: Duration) {
        loop {
            let end = self.start + Duration::from_millis(self.last.load(Ordering::Relaxed)) + limit;
            if end <= Instant::now() {
                return;
            }
            sleep_until(end).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn whatever_is_seen_begins_the_silence_anew() {
        let activity = Activity::new();
        let begun = Instant::now();
        let seen = async {
            tokio::time::sleep(Duration::from_secs(50)).await;
            activity.seen();
            std::future::pending::<()>().await
        };
        tokio::select! {
            () = activity.silent_for(Duration::from_secs(60)) => {}
            () = seen => {}
        }
        assert_eq!(begun.elapsed().as_secs(), 110);
    }
}
