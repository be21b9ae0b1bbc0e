//! Waiting for what happens in its own time. Tests do not measure time; they only refuse to wait for ever.

use std::future::Future;
use std::time::{Duration, Instant};

/// How long anything may take before a test gives up: far longer than it takes on the slowest machine.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// Asks again and again until the answer is `Some`, or panics with `what` when [`DEADLINE`] has passed.
pub async fn eventually<T, F>(what: &str, mut ask: impl FnMut() -> F) -> T
where
    F: Future<Output = Option<T>>,
{
    let begin = Instant::now();
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(begin.elapsed() < DEADLINE, "waited {} s in vain for {what}", DEADLINE.as_secs());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
