//! When and how a dead slot is taken over: decisions without I/O (R4).
//!
//! ```text
//!   Live/Joining --judge--> Claimed(by us) --STEPS--> Free, incarnation + 1
//!        |                     ^   |   |
//!        +--last word--> Dead -+   |   +-- a write of ours failed: kept, or the claimer stops
//!                         ^--------+ anything else failed: handed back
//! ```
//!
//! Invariants:
//! - A slot is claimed on evidence, or because it says itself that its host is gone.
//! - A claim is handed back only when no write of its replay may land any more (N25).
//! - Whoever keeps a claim never frees a slot: not the dead one's, and not its own.

use std::time::Duration;

use lunfs_format::{ClaimFailure, Holder, Incarnation, Pulse, PulseState, SlotNo};

use crate::env::Instant;

/// How long the parent of a program that is gone may take to write its last word.
pub const LAST_WORD_GRACE: Duration = Duration::from_millis(400);

/// What is known that speaks for a takeover.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Evidence {
    /// The program is proven gone, its writes drained, for this long.
    pub gone: Option<Duration>,
    /// It was silent for the whole wait.
    pub silent: bool,
    /// In state claimed: the claimer's life is over.
    pub claimer_over: bool,
}

/// What to do with a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing: it is free, lives, or is being recovered.
    Leave,
    /// Claim it; its program is gone.
    Claim,
    /// Stop its program first, then claim it.
    FenceThenClaim,
}

/// The recovery table.
pub fn judge(pulse: &Pulse, evidence: Evidence) -> Verdict {
    let grace = if pulse.has_parent { LAST_WORD_GRACE } else { Duration::ZERO };
    match pulse.state {
        PulseState::Free => Verdict::Leave,
        PulseState::Dead => Verdict::Claim,
        PulseState::Claimed if evidence.claimer_over => Verdict::Claim,
        PulseState::Claimed => Verdict::Leave,
        PulseState::Joining | PulseState::Live => match evidence.gone {
            Some(since) if since >= grace => Verdict::Claim,
            // Its parent is about to say what died.
            Some(_) => Verdict::Leave,
            None if evidence.silent => Verdict::FenceThenClaim,
            None => Verdict::Leave,
        },
    }
}

/// Is the life of a claimer over, whose slot is known to have reached `incarnation`? A claim of our
/// own is one that was left over: whoever keeps one must not ask (`is_due`).
pub fn is_claimer_over(claimer: Holder, me: Holder, incarnation: Option<u64>) -> bool {
    claimer == me || incarnation.is_some_and(|now| now > claimer.incarnation.0)
}

/// May a life be recovered now that could not be recovered, and is to be tried `again` then?
pub fn is_due(again: Option<Instant>, now: Instant) -> bool {
    again.is_none_or(|again| again <= now)
}

/// Did an earlier claimer die in its claim of this slot?
pub fn is_inherited(victim: &Pulse, me: Holder) -> bool {
    victim.claimer.is_some_and(|claimer| claimer != me)
}

/// The image that claims a slot.
pub fn claimed(victim: &Pulse, me: Holder, nonce: u64) -> Pulse {
    let mut claim = victim.clone();
    claim.state = PulseState::Claimed;
    claim.claimer = Some(me);
    claim.claim_attempts = claim.claim_attempts.saturating_add(1);
    claim.nonce = nonce;
    claim
}

/// The image that frees a slot, after a recovery or by who leaves: the life in it is over.
pub fn freed(last: &Pulse, nonce: u64) -> Pulse {
    let mut free = Pulse::free(last.slot, Incarnation(last.incarnation.0 + 1), nonce);
    free.journal = last.journal;
    free.geometry_epoch = last.geometry_epoch;
    free
}

/// The image that hands a claim back.
pub fn handed_back(claim: &Pulse, failure: ClaimFailure, nonce: u64) -> Pulse {
    let mut back = claim.clone();
    back.state = PulseState::Dead;
    back.claimer = None;
    back.claim_failure = failure;
    back.nonce = nonce;
    back
}

/// What a claimer does between its claim and its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Step {
    /// Proves that nothing of the victim lands any more.
    Fence,
    /// Puts in place what its journal has.
    Replay,
    /// Makes durable what is on the disk until then.
    Flush,
}

/// The order of a takeover. A crash anywhere in it: the slot is still claimed, and the next claimer
/// begins again.
pub const STEPS: [Step; 4] = [
    // After the claim, so that the victim cannot have come back in between.
    Step::Fence,
    // The last record may have come no further than a cache of the disk when its host died. A power
    // loss after the first write of the replay could then take it, and leave some of its images:
    // half a transaction.
    Step::Flush,
    Step::Replay,
    // Before the slot is free: then its locks are stale, and whoever takes one reads the body.
    Step::Flush,
];

/// How the work of a claim went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Worked {
    /// All of it was done.
    Done,
    /// Not all, but every write of ours was answered and went well.
    Answered,
    /// A write of ours failed: it may land while this host lives.
    Unanswered,
    /// This host stopped meanwhile.
    Stopped,
}

/// How a claim ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The slot becomes free.
    Free,
    /// Dead again: somebody else may be able to.
    HandBack,
    /// Nobody may touch that journal while this host lives. It works on.
    Keep,
    /// As `Keep`, and this host stops.
    Stop,
}

/// Decides how a claim ends; `inherited`: an earlier claimer died in it.
///
/// The first to meet a write that fails stops, as after any other: its path may be the reason.
/// When an earlier claimer died already, the block is, and stopping would take down every host in
/// turn.
pub fn end(worked: Worked, inherited: bool) -> End {
    match worked {
        Worked::Done => End::Free,
        Worked::Answered => End::HandBack,
        Worked::Unanswered if inherited => End::Keep,
        Worked::Unanswered | Worked::Stopped => End::Stop,
    }
}

/// How a host may leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leaving {
    /// Its slot becomes free.
    Free,
    /// It stops, and others take it over: it keeps the claim of this slot. To free its own would
    /// say that nothing of its can land any more.
    Stop(SlotNo),
}

/// Decides how a host leaves that keeps a claim, or none.
pub fn leaving(kept: Option<SlotNo>) -> Leaving {
    kept.map_or(Leaving::Free, Leaving::Stop)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pulse(state: PulseState, has_parent: bool) -> Pulse {
        let mut pulse = Pulse::free(SlotNo(1), Incarnation(1), 1);
        (pulse.state, pulse.has_parent) = (state, has_parent);
        pulse
    }

    fn evidence(gone_ms: Option<u64>, silent: bool, claimer_over: bool) -> Evidence {
        Evidence { gone: gone_ms.map(Duration::from_millis), silent, claimer_over }
    }

    /// The recovery table, every row.
    #[test]
    fn a_slot_is_claimed_only_on_evidence() {
        use PulseState::{Claimed, Dead, Free, Joining, Live};
        use Verdict::{Claim, FenceThenClaim, Leave};
        let rows = [
            (Free, false, evidence(Some(9999), true, true), Leave),
            (Dead, false, evidence(None, false, false), Claim),
            (Claimed, false, evidence(Some(9999), true, false), Leave),
            (Claimed, false, evidence(None, false, true), Claim),
            (Live, false, evidence(None, false, false), Leave),
            (Live, false, evidence(None, true, false), FenceThenClaim),
            (Live, false, evidence(Some(0), false, false), Claim),
            (Live, true, evidence(Some(100), false, false), Leave),
            (Live, true, evidence(Some(100), true, false), Leave),
            (Live, true, evidence(Some(400), false, false), Claim),
            (Joining, false, evidence(None, true, false), FenceThenClaim),
            (Joining, true, evidence(Some(400), false, false), Claim),
        ];
        for (state, has_parent, evidence, verdict) in rows {
            let found = judge(&pulse(state, has_parent), evidence);
            assert_eq!(found, verdict, "{state:?}, parent {has_parent}, {evidence:?}");
        }
    }

    #[test]
    fn a_claim_is_over_with_its_claimers_life() {
        let holder = |slot, life| Holder { slot: SlotNo(slot), incarnation: Incarnation(life) };
        let over = |known| is_claimer_over(holder(1, 5), holder(2, 9), known);
        assert!(!over(None) && !over(Some(4)) && !over(Some(5)) && over(Some(6)));
        assert!(is_claimer_over(holder(2, 9), holder(2, 9), Some(9)));
    }

    /// N25, decision 0011: every row.
    #[test]
    fn a_claim_whose_write_failed_is_never_handed_back() {
        let rows = [
            (Worked::Done, End::Free, End::Free),
            (Worked::Answered, End::HandBack, End::HandBack),
            (Worked::Unanswered, End::Stop, End::Keep),
            (Worked::Stopped, End::Stop, End::Stop),
        ];
        for (worked, first, inherited) in rows {
            assert_eq!((end(worked, false), end(worked, true)), (first, inherited), "{worked:?}");
        }
    }
}
