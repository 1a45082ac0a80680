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

use lunfs_format::{Holder, Lock, LockMode, SlotNo, Stamp};

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

/// Judges a lock by the incarnation its holder's slot is known to have reached. Incarnations only rise,
/// so an old reading may call a stale holder live, but never a live one stale.
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
