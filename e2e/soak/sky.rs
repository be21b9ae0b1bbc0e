//! What is wrong with the node, and since when: by this the model knows which failures it must forgive.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long a trouble may be felt after it has passed: calls that began in it end, what was given up is tried again.
const AFTERMATH: Duration = Duration::from_secs(3);

/// A kind of trouble.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// Nobody serves.
    NoDaemon,
    /// Connections between daemon and monitors are broken.
    NoLink,
    /// No room for images and writable layers.
    StorageFull,
    /// No room for records.
    StateFull,
    /// No room for logs.
    LogsFull,
    /// The registry does not answer, or hangs up.
    Registry,
}

/// Troubles that cut calls off.
pub(crate) const CUT: [Trouble; 2] = [Trouble::NoDaemon, Trouble::NoLink];

/// Troubles that have no room for something.
pub(crate) const NO_ROOM: [Trouble; 3] = [Trouble::StorageFull, Trouble::StateFull, Trouble::LogsFull];

#[derive(Debug)]
struct Spell {
    trouble: Trouble,
    end: Option<Instant>,
}

/// All troubles so far.
#[derive(Debug, Default)]
pub(crate) struct Sky(Mutex<Vec<Spell>>);

impl Sky {
    /// A trouble begins; to be called before it does.
    pub(crate) fn begin(&self, trouble: Trouble) {
        self.spells(|spells| spells.push(Spell { trouble, end: None }));
    }

    /// A trouble has passed; to be called when it has.
    pub(crate) fn end(&self, trouble: Trouble) {
        self.spells(|spells| {
            for spell in spells.iter_mut().filter(|spell| spell.trouble == trouble && spell.end.is_none()) {
                spell.end = Some(Instant::now());
            }
        });
    }

    /// Whether one of these troubles was felt between `from` and now.
    pub(crate) fn troubled(&self, troubles: &[Trouble], from: Instant) -> bool {
        self.spells(|spells| {
            spells.iter().filter(|spell| troubles.contains(&spell.trouble)).any(|spell| spell.end.is_none_or(|end| end + AFTERMATH >= from))
        })
    }

    fn spells<T>(&self, work: impl FnOnce(&mut Vec<Spell>) -> T) -> T {
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trouble_is_felt_from_its_beginning_until_a_while_after_its_end() {
        let sky = Sky::default();
        let before = Instant::now();
        assert!(!sky.troubled(&[Trouble::StateFull], before));
        sky.begin(Trouble::StateFull);
        assert!(sky.troubled(&[Trouble::StateFull], before));
        assert!(!sky.troubled(&[Trouble::LogsFull], before));
        sky.end(Trouble::StateFull);
        assert!(sky.troubled(&[Trouble::StateFull], Instant::now()));
        assert!(!sky.troubled(&[Trouble::StateFull], Instant::now() + AFTERMATH * 2));
    }
}
