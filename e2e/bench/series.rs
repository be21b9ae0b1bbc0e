//! Samples and what is told of them.

use std::future::Future;
use std::time::{Duration, Instant};

/// Samples of one quantity.
#[derive(Debug, Clone, Default)]
pub(crate) struct Series(Vec<f64>);

/// What is told of a series.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Summary {
    /// The middle one.
    pub(crate) median: f64,
    /// The smallest.
    pub(crate) minimum: f64,
    /// The one that 95 of 100 do not exceed.
    pub(crate) p95: f64,
    /// How many there were.
    pub(crate) count: usize,
}

impl Series {
    /// A series of one sample.
    pub(crate) fn of(value: f64) -> Self {
        Self(vec![value])
    }

    /// One more sample.
    pub(crate) fn add(&mut self, value: f64) {
        self.0.push(value);
    }

    /// One more sample, in milliseconds.
    pub(crate) fn add_time(&mut self, time: Duration) {
        self.add(time.as_secs_f64() * 1000.0);
    }

    /// A summary, where there is at least one sample.
    pub(crate) fn summary(&self) -> Option<Summary> {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let at = |share: f64| sorted.get(((sorted.len() as f64 * share).ceil() as usize).clamp(1, sorted.len().max(1)) - 1).copied();
        let middle = sorted.len() / 2;
        let median =
            if sorted.len() % 2 == 1 { *sorted.get(middle)? } else { (sorted.get(middle.checked_sub(1)?)? + sorted.get(middle)?) / 2.0 };
        Some(Summary { median, minimum: *sorted.first()?, p95: at(0.95)?, count: sorted.len() })
    }
}

/// Runs something and says how long it took.
pub(crate) async fn timed<T, E>(work: impl Future<Output = Result<T, E>>) -> Result<(T, Duration), E> {
    let begin = Instant::now();
    let value = work.await?;
    Ok((value, begin.elapsed()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_summary_of_few_and_of_many() {
        let series = |values: &[f64]| Series(values.to_vec()).summary();
        assert_eq!(series(&[]), None);
        assert_eq!(series(&[3.0]), Some(Summary { median: 3.0, minimum: 3.0, p95: 3.0, count: 1 }));
        assert_eq!(series(&[4.0, 1.0]).map(|summary| summary.median), Some(2.5));
        let hundred: Vec<f64> = (1..=100).map(f64::from).collect();
        assert_eq!(series(&hundred), Some(Summary { median: 50.5, minimum: 1.0, p95: 95.0, count: 100 }));
    }
}
