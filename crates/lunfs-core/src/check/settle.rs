//! Which errors hold on a volume that hosts use.
//!
//! A host changes what a lock covers only while it holds the lock, and each change of a lock makes
//! another image of it. So if a lock was free or stale when it was first read and is the same now,
//! nothing that it covers changed in between. An error that rests on such locks only is one; any
//! other may be a change under way, or one that waits in a journal, and becomes a note.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::future::join_all;
use lunfs_format::{BlockNo, Lock};

use super::claim::{Basis, Claim, Claims};
use super::media::{Media, PARALLEL};
use super::report::{Finding, Severity};
use super::slots::Slots;
use crate::error::Result;

/// Reads again the locks that errors rest on, and says which errors hold. `slots` were read before
/// `locks`.
pub(super) async fn settle(
    media: &Media<'_>,
    slots: &Slots,
    locks: &BTreeMap<BlockNo, Option<Lock>>,
    claims: Claims,
) -> Result<Vec<Finding>> {
    let is_error = |claim: &&Claim| claim.finding.severity == Severity::Error;
    let asked: BTreeSet<BlockNo> =
        claims.0.iter().filter(is_error).flat_map(Claim::rests_on).copied().collect();
    let asked: Vec<BlockNo> = asked.into_iter().collect();
    let mut quiet = BTreeSet::new();
    for chunk in asked.chunks(PARALLEL) {
        let reads = join_all(chunk.iter().map(|at| media.lock(*at))).await;
        for (at, now) in chunk.iter().zip(reads) {
            let now = now?.ok();
            if locks.get(at).is_some_and(|before| is_quiet(slots, *before, now)) {
                quiet.insert(*at);
            }
        }
    }
    Ok(claims.0.into_iter().map(|claim| claim.settled(&quiet)).collect())
}

/// Was nobody able to change what a lock covers, from its first reading to its second?
fn is_quiet(slots: &Slots, before: Option<Lock>, now: Option<Lock>) -> bool {
    let holder = before.and_then(|lock| lock.holder);
    before == now && holder.is_none_or(|holder| !slots.may_live(holder))
}

impl Claim {
    fn rests_on(&self) -> &[BlockNo] {
        match &self.basis {
            Basis::Locks(locks) => locks,
            Basis::Fixed | Basis::Volume => &[],
        }
    }

    fn settled(mut self, quiet: &BTreeSet<BlockNo>) -> Finding {
        let holds = match &self.basis {
            Basis::Fixed => true,
            Basis::Locks(locks) => locks.iter().all(|lock| quiet.contains(lock)),
            Basis::Volume => false,
        };
        if !holds && self.finding.severity == Severity::Error {
            self.finding.severity = Severity::Note;
            self.finding.what.push_str(" (or hosts are just changing it: not proven)");
        }
        self.finding
    }
}
