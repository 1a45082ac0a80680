//! Chance that comes from the seed and from nowhere else.
//!
//! Every part of the world draws from a stream of its own, so that a change in one part leaves
//! the draws of the others alone.

use std::cell::Cell;

use lunfs_core::env::Rng;

/// Steps of SplitMix64.
const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;

/// Scrambles 64 bits; equal inputs give equal outputs.
pub fn mix(value: u64) -> u64 {
    let mut z = value.wrapping_add(GOLDEN);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// A stream of random numbers.
#[derive(Debug)]
pub struct Chance(Cell<u64>);

impl Chance {
    /// The stream of a seed.
    pub fn new(seed: u64) -> Chance {
        Chance(Cell::new(mix(seed)))
    }

    /// A stream of its own for the part of the world called `label`, drawn from a seed.
    pub fn stream(seed: u64, label: &str) -> Chance {
        let named = label.bytes().fold(seed, |sum, byte| mix(sum ^ u64::from(byte)));
        Chance::new(named)
    }

    /// A new stream, drawn from this one.
    pub fn fork(&self) -> Chance {
        Chance::new(self.next())
    }

    /// 64 random bits.
    pub fn next(&self) -> u64 {
        let state = self.0.get().wrapping_add(GOLDEN);
        self.0.set(state);
        mix(state)
    }

    /// A number below `bound`; zero if `bound` is zero.
    pub fn below(&self, bound: u64) -> u64 {
        // Multiply-shift; the bias is far below anything a run could notice.
        let wide = u128::from(self.next()) * u128::from(bound);
        u64::try_from(wide >> 64).unwrap_or(0)
    }

    /// An index below `len`.
    pub fn index(&self, len: usize) -> usize {
        usize::try_from(self.below(len as u64)).unwrap_or(0)
    }

    /// A number from `low` to `high`, both possible.
    pub fn between(&self, low: u64, high: u64) -> u64 {
        low + self.below(high.saturating_sub(low).saturating_add(1))
    }

    /// True `per_million` times in a million.
    pub fn hits(&self, per_million: u32) -> bool {
        per_million > 0 && self.below(1_000_000) < u64::from(per_million)
    }

    /// True `percent` times in a hundred.
    pub fn percent(&self, percent: u32) -> bool {
        self.hits(percent.saturating_mul(10_000))
    }

    /// A duration around `mean`: exponentially distributed, at most eight times the mean.
    pub fn around(&self, mean: u64) -> u64 {
        // Sum of fractions of two halves approximates -ln(x): the leading zeroes are the integer
        // part of log2, the next 16 bits its fraction. Integer arithmetic is the same everywhere.
        let bits = self.next() | 1;
        let zeroes = u64::from(bits.leading_zeros());
        let fraction = (bits << zeroes << 1) >> 48;
        let log2_times_65536 = (zeroes + 1) * 65_536 - fraction;
        let scaled = u128::from(mean) * u128::from(log2_times_65536) * 693 / (1000 * 65_536);
        u64::try_from(scaled).unwrap_or(u64::MAX).min(mean.saturating_mul(8))
    }

    /// One of `choices`.
    pub fn pick<'a, T>(&self, choices: &'a [T]) -> &'a T {
        &choices[self.index(choices.len())]
    }

    /// Puts `items` into a random order.
    pub fn shuffle<T>(&self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.index(last + 1));
        }
    }
}

/// What a host draws.
impl Rng for Chance {
    fn next(&self) -> u64 {
        Chance::next(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_repeats_from_its_seed() {
        let (a, b) = (Chance::stream(7, "disk"), Chance::stream(7, "disk"));
        assert!((0..100).all(|_| a.next() == b.next()));
        assert_ne!(Chance::stream(7, "disk").next(), Chance::stream(7, "host").next());
    }

    #[test]
    fn numbers_stay_in_bounds() {
        let chance = Chance::new(1);
        for _ in 0..10_000 {
            assert!(chance.below(10) < 10);
            assert!((5..=9).contains(&chance.between(5, 9)));
        }
        assert_eq!(chance.below(0), 0);
        assert_eq!(chance.between(4, 4), 4);
    }

    #[test]
    fn exponential_durations_have_about_their_mean() {
        let chance = Chance::new(2);
        let sum: u64 = (0..10_000).map(|_| chance.around(1_000)).sum();
        assert!((900_000 * 10..1_150_000 * 10).contains(&sum), "mean {}", sum / 10_000);
    }

    #[test]
    fn a_shuffle_keeps_everything() {
        let mut items: Vec<u32> = (0..50).collect();
        Chance::new(3).shuffle(&mut items);
        let mut sorted = items.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..50).collect::<Vec<u32>>());
        assert_ne!(items, sorted);
    }
}
