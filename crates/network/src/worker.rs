//! Where calls into the kernel run: on a thread of their own that ends with the call. A thread that joined
//! another network namespace must not be used again, and the kernel makes network changes wait in line.

use coracle_domain::{Failure, FailureKind, Result};
use tokio::sync::oneshot;

/// Runs `work` on a thread of its own. The work goes on when nobody waits for it any more.
pub(crate) async fn on_own_thread<T: Send + 'static>(
    stage: &'static str,
    subject: impl std::fmt::Display,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let (answer, answered) = oneshot::channel();
    let body = move || {
        // Nobody listens when the caller was cancelled; the work is done all the same.
        let _ = answer.send(work());
    };
    std::thread::Builder::new().name("network".to_owned()).spawn(body).map_err(|error| {
        let failure = Failure::new(stage, &subject, error).kind(FailureKind::Exhausted);
        failure.hint("no thread could be made: a pids limit is reached, of the daemon's cgroup or of the machine")
    })?;
    answered.await.unwrap_or_else(|closed| Err(Failure::new(stage, subject, closed).into()))
}
