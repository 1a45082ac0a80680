//! Are we alive, and are they? Decisions without I/O or clock.
//!
//! ```text
//!            pulse confirmed                lease over
//!  Joining ------------------> Live ------------------------> Suspended
//!                               ^                                 |
//!                               |  a pulse of the exact last      |
//!                               +---------- image confirmed, -----+
//!                               |           its lease still open  |
//!                               |                                 |
//!                               +--- a foreign image was seen ----+---> stopped for good
//!                                    or an older own one
//! ```
//!
//! Invariants:
//! - The lease counts from the first submission of the image that is known to be on disk (R1, H6).
//! - Only an image in doubt since the last confirmed pulse is believed to be ours (R2, H5).
//! - An observer's wait is good time with a tail without gaps (R3, H8, N24).
//!
//! Timing second by second: docs/protocol.md#timing.

use std::time::Duration;

use lunfs_format::{Pulse, PulseState, Timing};

use crate::env::Instant;

/// How long one good pulse lets a host write.
pub fn lease(timing: Timing) -> Duration {
    Duration::from_millis(u64::from(timing.lease_ms))
}

/// May a write be submitted now under a lease that ends at `until` (R1)?
pub fn lease_is_open(now: Instant, until: Instant) -> bool {
    now < until
}

/// The end of a lease after a good pulse whose own ends at `until`: a late answer shortens nothing,
/// and opens nothing that is over.
pub fn extended(lease_until: Instant, until: Instant) -> Instant {
    lease_until.max(until)
}

/// Do our own pulses go well, so that what we see of others counts (R3)? `pulsed` is when the last
/// good one was answered.
pub fn pulses_well(now: Instant, pulsed: Instant, timing: Timing) -> bool {
    now.since(pulsed) <= lease(timing) / 2
}

/// Pause between pulses.
pub fn interval(timing: Timing) -> Duration {
    Duration::from_millis(u64::from(timing.pulse_ms))
}

/// Silence after which a host is fenced and claimed.
pub fn claim_wait(timing: Timing) -> Duration {
    Duration::from_millis(u64::from(timing.claim_ms))
}

/// An attempt whose answer has not settled.
#[derive(Clone, Debug)]
struct Attempt {
    image: Pulse,
    submitted: Instant,
}

/// What an image found in our slot means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// One of ours; the lease now ends at this moment.
    Ours(Instant),
    /// Nothing new: the last confirmed image.
    Unchanged,
    /// Somebody claimed or freed our slot: stop for good.
    Foreign(String),
    /// An older image of ours: the device went back in time. Stop everything.
    BackInTime,
}

/// Our own slot.
#[derive(Clone, Debug)]
pub struct Liveness {
    confirmed: Pulse,
    doubt: Vec<Attempt>,
    counter: u64,
}

impl Liveness {
    /// Starts with the image that joining left on disk.
    pub fn new(joined: Pulse) -> Liveness {
        let counter = joined.counter;
        Liveness { confirmed: joined, doubt: Vec::new(), counter }
    }

    /// The image last known to be on disk.
    pub fn confirmed(&self) -> &Pulse {
        &self.confirmed
    }

    /// Attempts whose answer is outstanding.
    pub fn in_doubt(&self) -> usize {
        self.doubt.len()
    }

    /// Begins an attempt at `now`: `change` is applied to a copy of the confirmed image. Returns
    /// what to compare with and what to write. Every attempt compares with the last *confirmed*
    /// image (N30), so at most one of them can land.
    pub fn attempt(
        &mut self,
        now: Instant,
        nonce: u64,
        change: impl FnOnce(&mut Pulse),
    ) -> (Pulse, Pulse) {
        self.counter += 1;
        let mut image = self.confirmed.clone();
        change(&mut image);
        image.counter = self.counter;
        image.nonce = nonce;
        self.doubt.push(Attempt { image: image.clone(), submitted: now });
        (self.confirmed.clone(), image)
    }

    /// The compare-and-write of `image` was answered with success.
    pub fn written(&mut self, image: &Pulse) -> Option<Instant> {
        self.confirm(image)
    }

    /// The compare-and-write of `image` will never land.
    pub fn never(&mut self, image: &Pulse) {
        self.doubt.retain(|a| a.image != *image);
    }

    fn confirm(&mut self, image: &Pulse) -> Option<Instant> {
        let attempt = self.doubt.iter().find(|a| a.image == *image)?.clone();
        self.confirmed = attempt.image;
        // A confirmation drops all others for ever: they compare with an image that is gone.
        self.doubt.clear();
        Some(attempt.submitted + lease(self.confirmed.timing))
    }

    /// As `found`, for a look that began when the image with `counter` was the confirmed one.
    /// `None`: another was confirmed since, so the look may have seen the one before it.
    pub fn found_since(&mut self, counter: u64, seen: &Pulse) -> Option<Found> {
        (counter == self.confirmed.counter).then(|| self.found(seen))
    }

    /// Judges what a read after a miscompare or a doubt found in our slot (R2).
    pub fn found(&mut self, seen: &Pulse) -> Found {
        if *seen == self.confirmed {
            return Found::Unchanged;
        }
        if let Some(until) = self.confirm(seen) {
            return Found::Ours(until);
        }
        let ours = seen.run == self.confirmed.run
            && seen.incarnation == self.confirmed.incarnation
            && matches!(seen.state, PulseState::Joining | PulseState::Live);
        if ours {
            return Found::BackInTime;
        }
        Found::Foreign(match seen.claimer {
            Some(by) => format!("this host's slot was claimed by host {by}"),
            None => {
                format!("this host's slot is {:?} at incarnation {}", seen.state, seen.incarnation)
            }
        })
    }
}

/// What one observer knows of another host's silence.
#[derive(Clone, Debug)]
pub struct Observation {
    seen: Pulse,
    good: Duration,
    tail: Duration,
    since: Instant,
}

/// The victim's intervals without a gap that must end an observation (N24).
const TAIL: u32 = 3;

impl Observation {
    /// The first look at an image, by a read answered at `answered`.
    pub fn first(seen: Pulse, answered: Instant) -> Observation {
        Observation { seen, good: Duration::ZERO, tail: Duration::ZERO, since: answered }
    }

    /// The image last seen.
    pub fn seen(&self) -> &Pulse {
        &self.seen
    }

    /// A further look: the read was submitted at `submitted` and answered at `answered`;
    /// `well` says whether our own pulses went well since the last look. An unchanged image was
    /// silent from the last look's submission to this one's. Time in which we were slow
    /// ourselves does not count.
    pub fn look(&mut self, seen: &Pulse, submitted: Instant, answered: Instant, well: bool) {
        if *seen != self.seen {
            *self = Observation::first(seen.clone(), answered);
            return;
        }
        let gap = lease(self.seen.timing) / 2;
        let slow = !well || answered.since(submitted) > gap || submitted.since(self.since) > gap;
        if slow {
            self.tail = Duration::ZERO;
        } else {
            let silent = submitted.since(self.since);
            self.good += silent;
            self.tail += silent;
        }
        self.since = submitted.max(self.since);
    }

    /// Has it been silent long enough to be fenced and claimed?
    pub fn is_ripe(&self) -> bool {
        let timing = self.seen.timing;
        self.good >= claim_wait(timing) && self.tail >= interval(timing) * TAIL
    }

    /// Good time without a gap at the end of the silence.
    pub fn tail(&self) -> Duration {
        self.tail
    }

    /// Good time of silence so far.
    pub fn silence(&self) -> Duration {
        self.good
    }
}

#[cfg(test)]
mod tests {
    use lunfs_format::{Holder, Incarnation, SlotNo};

    use super::*;

    fn at(ms: u64) -> Instant {
        Instant(ms * 1_000_000)
    }

    fn live() -> Pulse {
        let mut pulse = Pulse::free(SlotNo(3), Incarnation(7), 1);
        pulse.state = PulseState::Live;
        pulse.timing = Timing::FAST;
        pulse.run = [9; 16];
        pulse.counter = 5;
        pulse
    }

    fn attempt(live: &mut Liveness, ms: u64, nonce: u64) -> Pulse {
        live.attempt(at(ms), nonce, |_| ()).1
    }

    #[test]
    fn the_lease_counts_from_the_submission_not_from_the_answer() {
        let mut us = Liveness::new(live());
        let image = attempt(&mut us, 1000, 2);
        assert_eq!(us.written(&image), Some(at(5000)));
    }

    /// H6: the answer of the first attempt is lost, the second one miscompares, and the slot
    /// holds the first one's image: an observer saw it when it landed, so the lease must not
    /// count from the second.
    #[test]
    fn a_lost_answer_counts_from_the_attempt_that_is_found() {
        let mut us = Liveness::new(live());
        let first = attempt(&mut us, 0, 2);
        attempt(&mut us, 8000, 3);
        assert_eq!(us.found(&first), Found::Ours(at(4000)));
        assert_eq!(us.in_doubt(), 0);
    }

    #[test]
    fn every_attempt_compares_with_the_last_confirmed_image() {
        let mut us = Liveness::new(live());
        let (expect, first) = us.attempt(at(0), 2, |_| ());
        let (again, _) = us.attempt(at(1000), 3, |_| ());
        assert_eq!(expect, again);
        us.written(&first);
        let (now, _) = us.attempt(at(2000), 4, |_| ());
        assert_eq!(now, first);
    }

    /// H5: the array was rolled back to an hour ago under a running host.
    #[test]
    fn an_older_image_of_ours_means_that_the_device_went_back_in_time() {
        let old = live();
        let mut us = Liveness::new(old.clone());
        let next = attempt(&mut us, 0, 2);
        us.written(&next);
        attempt(&mut us, 1000, 3);
        assert_eq!(us.found(&old), Found::BackInTime);
    }

    #[test]
    fn a_claimed_slot_is_foreign() {
        let mut us = Liveness::new(live());
        let mut claimed = live();
        claimed.state = PulseState::Claimed;
        claimed.claimer = Some(Holder { slot: SlotNo(1), incarnation: Incarnation(2) });
        assert!(matches!(us.found(&claimed), Found::Foreign(_)));
    }

    #[test]
    fn a_late_answer_of_a_pulse_that_was_overtaken_means_nothing() {
        let mut us = Liveness::new(live());
        let first = attempt(&mut us, 0, 2);
        us.found(&first);
        assert_eq!(us.written(&first), None);
    }

    fn watched(seconds: u64) -> Observation {
        let mut seen = Observation::first(live(), at(0));
        for second in 1..=seconds {
            seen.look(&live(), at(second * 1000), at(second * 1000 + 1), true);
        }
        seen
    }

    #[test]
    fn silence_is_ripe_after_the_wait_and_not_before() {
        assert!(!watched(11).is_ripe());
        assert!(watched(12).is_ripe());
    }

    #[test]
    fn a_pulse_ends_the_silence() {
        let mut seen = watched(11);
        let mut next = live();
        next.counter += 1;
        seen.look(&next, at(12_000), at(12_001), true);
        assert_eq!(seen.silence(), Duration::ZERO);
    }

    /// H8: the whole cluster stalls; when the device comes back nobody may claim anybody who has
    /// not had time to pulse.
    #[test]
    fn a_common_stall_does_not_count_and_needs_a_tail_of_good_looks() {
        let mut seen = watched(11);
        seen.look(&live(), at(31_000), at(31_001), true);
        assert!(!seen.is_ripe());
        seen.look(&live(), at(32_000), at(32_001), true);
        seen.look(&live(), at(33_000), at(33_001), true);
        assert!(!seen.is_ripe());
        seen.look(&live(), at(34_000), at(34_001), true);
        assert!(seen.is_ripe());
    }

    /// N24: an array with a spike every few seconds must not keep a takeover from ever happening.
    #[test]
    fn good_time_adds_up_across_gaps() {
        let mut seen = Observation::first(live(), at(0));
        for round in 0..4 {
            let base = round * 8000;
            for second in 1..=5 {
                seen.look(&live(), at(base + second * 1000), at(base + second * 1000), true);
            }
        }
        assert!(seen.is_ripe());
    }

    #[test]
    fn while_our_own_pulses_go_badly_nothing_counts() {
        let mut seen = Observation::first(live(), at(0));
        for second in 1..=30 {
            seen.look(&live(), at(second * 1000), at(second * 1000), false);
        }
        assert_eq!(seen.silence(), Duration::ZERO);
    }
}
