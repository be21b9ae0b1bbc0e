//! Deadlines: what may hang ends in an error that names stage and object.

use std::future::Future;
use std::time::Duration;

use coracle_domain::{Failure, FailureKind, Result};

/// Setting up a container or its namespaces: mounts may hang on a dead server.
pub(crate) const SET_UP: Duration = Duration::from_secs(60);
/// A call that a live monitor answers from memory.
pub(crate) const ANSWER: Duration = Duration::from_secs(10);
/// From SIGKILL until the process is gone; longer means that it hangs in the kernel.
pub(crate) const DEATH: Duration = Duration::from_secs(20);

/// Waits for `work`, but no longer than `limit`.
pub(crate) async fn within<T>(limit: Duration, stage: &'static str, subject: &str, work: impl Future<Output = Result<T>>) -> Result<T> {
    match tokio::time::timeout(limit, work).await {
        Ok(result) => result,
        Err(_) => {
            let problem = format!("no end after {} s", limit.as_secs());
            Err(Failure::new(stage, subject, problem).kind(FailureKind::TimedOut).into())
        }
    }
}
