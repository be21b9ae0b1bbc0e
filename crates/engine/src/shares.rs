//! The same work on many things, shared among the processors: for what blocks, or computes for long, at each of them.

use std::num::NonZero;
use std::thread::available_parallelism;

use tokio::task::{JoinError, spawn_blocking};

/// Things that are worth a thread of their own.
const SMALLEST_SHARE: usize = 32;

/// Does the work on each of `things`, off the runtime's threads; the results have the things' order.
///
/// # Errors
/// The work panicked.
pub(crate) async fn each<A, B>(things: Vec<A>, work: impl Fn(A) -> B + Clone + Send + 'static) -> Result<Vec<B>, JoinError>
where
    A: Send + 'static,
    B: Send + 'static,
{
    let count = things.len();
    let share = count.div_ceil(available_parallelism().map_or(1, NonZero::get)).max(SMALLEST_SHARE);
    let mut things = things.into_iter();
    let mut shares = Vec::new();
    while things.len() > 0 {
        let (share, work) = (things.by_ref().take(share).collect::<Vec<_>>(), work.clone());
        shares.push(spawn_blocking(move || share.into_iter().map(work).collect::<Vec<_>>()));
    }
    let mut results = Vec::with_capacity(count);
    for share in shares {
        results.extend(share.await?);
    }
    Ok(results)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn results_are_in_order_and_none_is_missing() {
        for count in [0, 1, SMALLEST_SHARE, 5 * SMALLEST_SHARE + 3] {
            let doubled = each((0..count).collect(), |number| 2 * number).await.unwrap();
            assert_eq!(doubled, (0..count).map(|number| 2 * number).collect::<Vec<_>>());
        }
        assert!(each(vec![0, 1], |number| 1 / number).await.unwrap_err().is_panic());
    }
}
