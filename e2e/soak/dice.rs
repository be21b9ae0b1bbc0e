//! Decisions that are the same for the same seed: SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom
//! number generators", 2014). Not for secrets.

/// A sequence of decisions.
#[derive(Debug, Clone)]
pub(crate) struct Dice(u64);

impl Dice {
    /// The sequence of one subject under a seed. Subjects do not disturb each other's.
    pub(crate) fn new(seed: u64, subject: u64) -> Self {
        let mut dice = Self(seed);
        Self(dice.roll() ^ subject.wrapping_mul(0xd605_bbb5_8c8a_bc2d))
    }

    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number from `low` to `high`, both possible.
    pub(crate) fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.roll() % (high - low + 1)
    }

    /// True so many times of a hundred.
    pub(crate) fn chance(&mut self, percent: u64) -> bool {
        self.roll() % 100 < percent
    }

    /// One of several, none of which may be missing.
    pub(crate) fn pick<T: Clone>(&mut self, choices: &[T]) -> T {
        let last = choices.len().saturating_sub(1) as u64;
        choices[usize::try_from(self.between(0, last)).unwrap_or_default()].clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_decides_the_same() {
        let numbers = |seed, subject| {
            let mut dice = Dice::new(seed, subject);
            (0..50).map(|_| dice.between(0, 1000)).collect::<Vec<_>>()
        };
        assert_eq!(numbers(7, 3), numbers(7, 3));
        assert_ne!(numbers(7, 3), numbers(7, 4));
        assert_ne!(numbers(7, 3), numbers(8, 3));
        assert!((0..200).map(|subject| Dice::new(1, subject).between(5, 9)).all(|number| (5..=9).contains(&number)));
    }
}
