//! Clocks that drift: each host counts from a moment of its own, a little too fast or too slow.

use std::rc::Rc;
use std::time::Duration;

use futures_util::future::LocalBoxFuture;
use lunfs_core::env::{Clock, Instant};
use lunfs_format::Timestamp;

use crate::chance::Chance;
use crate::executor::Executor;

const BILLION: u64 = 1_000_000_000;
/// Largest deviation of a clock in parts per million.
const DRIFT_MAX: u64 = 200;

/// The clock of one host.
#[derive(Clone)]
pub struct HostClock {
    executor: Rc<Executor>,
    /// What it shows when the world begins.
    offset: u64,
    /// Its nanoseconds per billion nanoseconds of the world.
    rate: u64,
    /// What time of day it believes the world began at, in seconds.
    epoch: i64,
}

impl HostClock {
    /// Draws a clock.
    pub fn draw(executor: &Rc<Executor>, chance: &Chance) -> HostClock {
        let drift = chance.between(0, 2 * DRIFT_MAX);
        HostClock {
            executor: Rc::clone(executor),
            offset: chance.between(BILLION, 1_000_000 * BILLION),
            rate: BILLION - DRIFT_MAX * 1_000 + drift * 1_000,
            epoch: 1_700_000_000 + i64::try_from(chance.below(10_000)).unwrap_or(0),
        }
    }

    /// A clock that shows world time.
    pub fn exact(executor: &Rc<Executor>) -> HostClock {
        HostClock { executor: Rc::clone(executor), offset: 0, rate: BILLION, epoch: 1_700_000_000 }
    }

    /// What it shows at world time `world`.
    pub fn at(&self, world: u64) -> Instant {
        // Second by second, so that nothing overflows: a rate is below two billion.
        let (seconds, rest) = (world / BILLION, world % BILLION);
        let own = seconds.saturating_mul(self.rate).saturating_add(rest * self.rate / BILLION);
        Instant(self.offset.saturating_add(own))
    }

    /// The first moment of world time at which it shows `at` or later.
    pub fn world(&self, at: Instant) -> u64 {
        let own = at.0.saturating_sub(self.offset);
        let (seconds, rest) = (own / self.rate, own % self.rate);
        seconds.saturating_mul(BILLION).saturating_add((rest * BILLION).div_ceil(self.rate))
    }
}

impl Clock for HostClock {
    fn now(&self) -> Instant {
        self.at(self.executor.now())
    }

    fn sleep_until(&self, at: Instant) -> LocalBoxFuture<'static, ()> {
        Box::pin(self.executor.sleep_until(self.world(at)))
    }

    fn wall(&self) -> Timestamp {
        let since = Duration::from_nanos(self.executor.now());
        Timestamp {
            seconds: self.epoch + i64::try_from(since.as_secs()).unwrap_or(0),
            nanos: since.subsec_nanos(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sleep_never_ends_early() {
        let executor = Executor::new(Chance::new(1));
        let chance = Chance::new(2);
        for _ in 0..1_000 {
            let clock = HostClock::draw(&executor, &chance);
            let at = Instant(clock.offset + chance.below(1_000_000 * BILLION));
            let world = clock.world(at);
            assert!(clock.at(world) >= at);
            assert!(world == 0 || clock.at(world - 1) < at);
        }
    }

    #[test]
    fn clocks_drift_within_bounds() {
        let executor = Executor::new(Chance::new(1));
        let chance = Chance::new(3);
        for _ in 0..1_000 {
            let clock = HostClock::draw(&executor, &chance);
            let passed = clock.at(1_000 * BILLION).since(clock.at(0));
            let off = passed.as_nanos().abs_diff(1_000_000_000_000);
            assert!(off <= 200_000_000, "{off} ns in 1000 s");
        }
    }
}
