//! Chance that is the same in each world.

use std::cell::Cell;

use lunfs_core::env::Rng;

/// A stream of random numbers (xorshift).
pub struct Dice(Cell<u64>);

impl Default for Dice {
    fn default() -> Dice {
        Dice(Cell::new(0x1234_5678_9ABC_DEF1))
    }
}

impl Rng for Dice {
    fn next(&self) -> u64 {
        let mut x = self.0.get();
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        self.0.set(x);
        x
    }
}
