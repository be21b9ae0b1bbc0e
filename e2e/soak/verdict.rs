//! What was done and what was found, counted while it happens and told at the end.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Findings that are printed when they are made; beyond that they are only counted.
const PRINTED: usize = 40;

/// How one try of a call ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    /// With success.
    Well,
    /// With an error that the caller must judge.
    Refused,
    /// With an error that the weather explains.
    Forgiven,
    /// Without an answer: the daemon was killed.
    Cut,
    /// Without an answer that the caller waited for.
    GivenUp,
}

/// One call's counts.
#[derive(Debug, Default, Clone)]
struct Tally {
    ended: [u64; 5],
    /// Of those that ended well, in microseconds.
    took: Vec<u32>,
}

/// Something that must not be.
#[derive(Debug, Clone)]
struct Finding {
    actor: String,
    step: String,
    expected: String,
    seen: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FINDING {}, at {}\n    expected: {}\n    seen:     {}", self.actor, self.step, self.expected, self.seen)
    }
}

#[derive(Debug, Default)]
struct Book {
    calls: BTreeMap<&'static str, Tally>,
    events: BTreeMap<String, u64>,
    findings: Vec<Finding>,
}

/// The book of a soak.
#[derive(Debug, Default)]
pub(crate) struct Verdict(Mutex<Book>);

impl Verdict {
    /// A try of a call has ended.
    pub(crate) fn call(&self, name: &'static str, ended: Ended, took: Duration) {
        self.book(|book| {
            let tally = book.calls.entry(name).or_default();
            tally.ended[ended as usize] += 1;
            if ended == Ended::Well {
                tally.took.push(u32::try_from(took.as_micros()).unwrap_or(u32::MAX));
            }
        });
    }

    /// Something else happened.
    pub(crate) fn event(&self, name: impl Into<String>) {
        self.book(|book| *book.events.entry(name.into()).or_default() += 1);
    }

    /// Something is not as it must be.
    pub(crate) fn find(&self, actor: &str, step: &str, expected: impl Into<String>, seen: impl Into<String>) {
        let finding = Finding { actor: actor.to_owned(), step: step.to_owned(), expected: expected.into(), seen: seen.into() };
        self.book(|book| {
            if book.findings.len() < PRINTED {
                eprintln!("{finding}");
            }
            book.findings.push(finding);
        });
    }

    /// How many findings there are.
    pub(crate) fn findings(&self) -> usize {
        self.book(|book| book.findings.len())
    }

    /// How often an event happened.
    pub(crate) fn count(&self, event: &str) -> u64 {
        self.book(|book| book.events.get(event).copied().unwrap_or_default())
    }

    /// For people.
    pub(crate) fn table(&self) -> String {
        self.book(|book| {
            let mut text = format!(
                "{:<26}{:>9}{:>9}{:>9}{:>9}{:>9}{:>12}{:>10}{:>10}\n",
                "call", "well", "refused", "forgiven", "cut", "given up", "median ms", "p99", "max"
            );
            for (name, tally) in &mut book.calls {
                tally.took.sort_unstable();
                text.push_str(&format!("{name:<26}"));
                tally.ended.iter().for_each(|count| text.push_str(&format!("{count:>9}")));
                let at = |percent: usize| {
                    f64::from(
                        tally.took.get((tally.took.len() * percent / 100).min(tally.took.len().saturating_sub(1))).copied().unwrap_or(0),
                    ) / 1000.0
                };
                text.push_str(&format!("{:>12.1}{:>10.1}{:>10.1}\n", at(50), at(99), at(100)));
            }
            text.push('\n');
            for (name, count) in &book.events {
                text.push_str(&format!("{count:>9}  {name}\n"));
            }
            text
        })
    }

    fn book<T>(&self, work: impl FnOnce(&mut Book) -> T) -> T {
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
