//! How a lock may change: decisions without I/O.
//!
//! ```text
//!            acquire (generation + 1)                     hand over (generation + 1)
//!   Free ------------------------------> Exclusive(A) --------------------------> Exclusive(B)
//!    ^                                     |    |  A's slot is at a later life:
//!    |     release (generation + 1)        |    +--- acquire as if free ---------> Exclusive(B)
//!    +-------------------------------------+
//!                                          +--- the object is deleted ----------> Void
//! ```
//!
//! Invariants:
//! - R5: exclusive excludes everyone; a holder is stale only if its incarnation is lower than its
//!   slot's; each change raises the generation.
//! - The disk is the truth: a lock that names us is ours, whether we remember it or not (H4).

use lunfs_format::{Holder, Lock, LockMode, LockObject, SlotNo, Stamp, Version};

/// What a lock that was read means to us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Judged {
    /// Nobody holds it, the stamp binds.
    Free,
    /// It names us.
    Ours,
    /// Its holder's life is over and was recovered.
    Stale(Holder),
    /// A holder that lives as far as we know: ask it, watch it.
    Held(Holder),
    /// No object is here any more.
    Gone,
    /// A mode that this version does not know how to take part in.
    Unsupported,
}

/// Judges a lock by the incarnation its holder's slot is known to have reached. Incarnations only
/// rise, so an old reading may call a stale holder live, but never a live one stale.
pub fn judge(lock: &Lock, me: Holder, incarnation_of: impl Fn(SlotNo) -> Option<u64>) -> Judged {
    match (lock.mode, lock.holder) {
        (LockMode::Free, _) => Judged::Free,
        (LockMode::Exclusive, Some(holder)) if holder == me => Judged::Ours,
        (LockMode::Exclusive, Some(holder)) => match incarnation_of(holder.slot) {
            Some(now) if holder.incarnation.0 < now => Judged::Stale(holder),
            Some(_) | None => Judged::Held(holder),
        },
        (LockMode::Void, _) => Judged::Gone,
        (LockMode::Exclusive, None)
        | (LockMode::Shared | LockMode::MultiWriter | LockMode::Frozen, _) => Judged::Unsupported,
    }
}

/// The first image of the lock of a new descriptor: it names its maker, so whoever finds the object
/// has to ask, and the maker places the body before it gives the lock (H2).
pub fn prepared(birth: u64, me: Holder, nonce: u64) -> Lock {
    Lock {
        mode: LockMode::Exclusive,
        object: LockObject::Descriptor,
        holder: Some(me),
        generation: Version { birth, count: 1 },
        nonce,
        stamp: Stamp::default(),
        giver: None,
        payload: 0,
    }
}

/// The image that takes the lock for `me`. The stamp stays: it binds again only after a release.
pub fn acquired(lock: &Lock, me: Holder, nonce: u64) -> Lock {
    Lock {
        mode: LockMode::Exclusive,
        holder: Some(me),
        generation: lock.generation.next(),
        nonce,
        giver: None,
        ..*lock
    }
}

/// The image that gives the lock up, to `successor` or to nobody.
pub fn released(
    lock: &Lock,
    me: SlotNo,
    successor: Option<Holder>,
    stamp: Stamp,
    nonce: u64,
) -> Lock {
    Lock {
        mode: if successor.is_some() { LockMode::Exclusive } else { LockMode::Free },
        holder: successor,
        generation: lock.generation.next(),
        nonce,
        stamp,
        giver: successor.map(|_| me),
        ..*lock
    }
}

/// The image that gives up a lock whose body could not be read. `before` is what it was before it
/// was taken as `mine`. A stamp that bound then binds again. Under a dead holder none did, and its
/// place in the lock is what says so: it stays there.
pub fn given_back(before: &Lock, mine: &Lock, me: Holder, nonce: u64) -> Lock {
    match before.holder {
        Some(dead) if dead != me => {
            Lock { holder: Some(dead), generation: mine.generation.next(), nonce, ..*mine }
        }
        Some(_) | None => released(mine, me.slot, None, mine.stamp, nonce),
    }
}

/// What happens before a lock changes hands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ReleaseStep {
    /// Pending changes become transactions.
    WriteBack,
    /// Every record so far is durable.
    Commit,
    /// What the lock covers is in place and flushed.
    Place,
    /// The lock itself changes.
    Give,
}

/// The order of a release (R6). A crash before the last step leaves the lock ours and stale, and
/// replay finds or puts everything in place; after it the next holder finds the body there.
pub const RELEASE: [ReleaseStep; 4] =
    [ReleaseStep::WriteBack, ReleaseStep::Commit, ReleaseStep::Place, ReleaseStep::Give];

/// The image that says that the object is gone for good.
pub fn voided(lock: &Lock, nonce: u64) -> Lock {
    Lock {
        mode: LockMode::Void,
        holder: None,
        generation: lock.generation.next(),
        nonce,
        stamp: Stamp::default(),
        giver: None,
        ..*lock
    }
}

#[cfg(test)]
mod tests {
    use lunfs_format::Incarnation;

    use super::*;

    #[test]
    fn a_lock_goes_back_with_the_stamp_that_bound() {
        let (me, dead) = (holder(1, 1), holder(2, 5));
        let made = prepared(7, dead, 1);
        let free = released(&made, dead.slot, None, Stamp { checksum: 9, ..made.stamp }, 2);
        let back = given_back(&free, &acquired(&free, me, 3), me, 4);
        assert_eq!((back.mode, back.holder, back.stamp), (free.mode, None, free.stamp));
        let back = given_back(&made, &acquired(&made, me, 3), me, 4);
        assert_eq!((back.mode, back.holder), (made.mode, Some(dead)));
        assert!(back.generation > acquired(&made, me, 3).generation);
    }

    fn holder(slot: u32, incarnation: u64) -> Holder {
        Holder { slot: SlotNo(slot), incarnation: Incarnation(incarnation) }
    }

    fn held_by(holder: Holder) -> Lock {
        Lock {
            mode: LockMode::Exclusive,
            object: LockObject::Descriptor,
            holder: Some(holder),
            generation: Version { birth: 4, count: 9 },
            nonce: 1,
            stamp: Stamp::default(),
            giver: None,
            payload: 0,
        }
    }

    #[test]
    fn a_holder_is_stale_only_below_its_slots_incarnation() {
        let lock = held_by(holder(5, 8));
        let me = holder(1, 1);
        let judged = |now| judge(&lock, me, |_| now);
        assert_eq!(judged(None), Judged::Held(holder(5, 8)));
        assert_eq!(judged(Some(7)), Judged::Held(holder(5, 8)));
        assert_eq!(judged(Some(8)), Judged::Held(holder(5, 8)));
        assert_eq!(judged(Some(9)), Judged::Stale(holder(5, 8)));
    }

    #[test]
    fn a_lock_that_names_us_is_ours_but_not_one_of_our_slots_former_life() {
        assert_eq!(judge(&held_by(holder(1, 3)), holder(1, 3), |_| Some(3)), Judged::Ours);
        let former = judge(&held_by(holder(1, 2)), holder(1, 3), |_| Some(3));
        assert_eq!(former, Judged::Stale(holder(1, 2)));
    }

    #[test]
    fn every_change_raises_the_generation() {
        let lock = held_by(holder(5, 8));
        let changes = [
            acquired(&lock, holder(1, 1), 2),
            released(&lock, SlotNo(5), None, Stamp::default(), 2),
            released(&lock, SlotNo(5), Some(holder(1, 1)), Stamp::default(), 2),
            voided(&lock, 2),
        ];
        for change in changes {
            assert!(change.generation > lock.generation);
            assert_ne!(change.nonce, lock.nonce);
        }
    }

    #[test]
    fn a_handed_over_lock_names_its_successor() {
        let given =
            released(&held_by(holder(5, 8)), SlotNo(5), Some(holder(1, 1)), Stamp::default(), 2);
        assert_eq!(given.mode, LockMode::Exclusive);
        assert_eq!((given.holder, given.giver), (Some(holder(1, 1)), Some(SlotNo(5))));
    }
}
