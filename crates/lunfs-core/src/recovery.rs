//! Taking over a dead slot: claim, fence, replay, flush, free (R4).
//!
//! ```text
//!   Live/Joining --silent or gone--> [fence if silent] --> Claimed(by us) --> fence --> replay
//!      |                                                      |                          |
//!      +--last word--> Dead ----------------------------------+      error: Dead <-------+
//!                                                                                        |
//!                                            Free, incarnation + 1 <------- flush -------+
//! ```
//!
//! Invariants:
//! - Nothing is replayed before the fence is confirmed after the claim.
//! - A claim is handed back only after every replay write of ours was answered (N25); a claimer
//!   that overran its deadline stops instead.
//! - A replay write that failed may land later. Its claim is never handed back nor tried again by
//!   the claimer: it ends with the claimer's life, and whoever comes next fences the claimer first.

use std::collections::btree_map::Entry;
use std::time::Duration;

use lunfs_format::{
    BlockNo, ClaimFailure, Descriptor, Holder, Incarnation, JOURNAL_ORPHANS, Lock, LockObject,
    Pulse, PulseState, RECORD, SlotNo,
};

use crate::env::{Instant, Life};
use crate::error::{Error, Kind, Result};
use crate::io::Settled;
use crate::journal::replay::{self, Place, Replayed, Unapplied};
use crate::liveness::{Observation, claim_wait};
use crate::types::FileId;
use crate::volume::Volume;

/// A claim that lasts longer makes its claimer stop (H22).
const CLAIM_DEADLINE: Duration = Duration::from_secs(60);
/// How long the parent of a program that is gone may take to write its last word.
const LAST_WORD_GRACE: Duration = Duration::from_millis(400);
/// Pause between two looks at a slot that somebody waits for.
const LOOK: Duration = Duration::from_millis(150);
/// Pause after a fence that was not confirmed.
const FENCE_PAUSE: Duration = Duration::from_secs(2);

/// What this host watches of another slot.
pub struct Watch {
    observation: Observation,
    looked: Instant,
    gone_since: Option<Instant>,
}

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

impl Volume {
    /// Is it time to read this slot again?
    pub(crate) fn look_is_due(&self, slot: SlotNo) -> bool {
        let watches = self.watches.borrow();
        watches.get(&slot).is_none_or(|w| self.now().since(w.looked) >= LOOK)
    }

    /// Good time for which a watched slot has been silent.
    pub(crate) fn silence_of(&self, slot: SlotNo) -> Option<Duration> {
        self.watches.borrow().get(&slot).map(|w| w.observation.silence())
    }

    /// Reads a slot, draws conclusions, and recovers it if it is dead.
    pub(crate) async fn look_at(&self, slot: SlotNo) -> Result<()> {
        if slot == self.me().slot {
            return Ok(());
        }
        let submitted = self.now();
        let seen = self.region.read(&self.io, slot).await?;
        let Some(pulse) = seen.pulse else {
            self.note_damaged(slot);
            return Ok(());
        };
        self.learn(&pulse, submitted);
        self.recover_if_dead(&pulse).await
    }

    /// Takes note of a slot whose pulse cannot be decoded. It is neither free nor live: nobody may
    /// guess whether its host lives, or which life it was (Q16).
    pub(crate) fn note_damaged(&self, slot: SlotNo) {
        let now = self.now();
        if let Entry::Vacant(unknown) = self.damaged.borrow_mut().entry(slot) {
            unknown.insert(now);
            tracing::error!(
                event = "slot-damaged",
                slot = slot.0,
                at = self.geometry().slot_offset(slot),
                "the pulse of this slot is damaged: nobody can tell whether its host lives, so \
                 what it had locked stays locked; unmount everywhere and run `lunfs check --repair`"
            );
        }
    }

    /// Has this slot been damaged for so long that nobody is about to mend it? A host that lives
    /// does not write over it; one that was read in a bad moment has pulsed since.
    pub(crate) fn is_damaged(&self, slot: SlotNo) -> bool {
        let since = self.damaged.borrow().get(&slot).copied();
        since.is_some_and(|since| self.now().since(since) > claim_wait(self.sb.timing))
    }

    /// Draws conclusions from what was just learned of a slot.
    pub(crate) async fn look_again(&self, slot: SlotNo) -> Result<()> {
        let seen = self.watches.borrow().get(&slot).map(|w| w.observation.seen().clone());
        match seen {
            Some(pulse) => self.recover_if_dead(&pulse).await,
            None => Ok(()),
        }
    }

    /// Is the program that wrote this pulse gone, with all its writes? A mark of life speaks only
    /// for programs of this boot of this machine.
    pub(crate) fn is_proven_gone(&self, pulse: &Pulse) -> bool {
        pulse.boot == self.options.identity.boot && self.io.env.fence.life(pulse.slot) == Life::Gone
    }

    /// Takes note of a pulse that was read.
    pub(crate) fn learn(&self, pulse: &Pulse, submitted: Instant) {
        self.know(pulse.slot, pulse.incarnation.0);
        self.damaged.borrow_mut().remove(&pulse.slot);
        if pulse.slot == self.me().slot {
            return;
        }
        let now = self.now();
        let well = self.pulsed_well();
        let gone = self.is_proven_gone(pulse);
        let mut watches = self.watches.borrow_mut();
        match watches.get_mut(&pulse.slot) {
            Some(watch) => {
                let new_life = watch.observation.seen().incarnation != pulse.incarnation;
                watch.observation.look(pulse, submitted, now, well);
                watch.looked = now;
                watch.gone_since =
                    if gone { watch.gone_since.filter(|_| !new_life).or(Some(now)) } else { None };
            }
            None => {
                watches.insert(
                    pulse.slot,
                    Watch {
                        observation: Observation::first(pulse.clone(), now),
                        looked: now,
                        gone_since: gone.then_some(now),
                    },
                );
            }
        }
    }

    fn evidence(&self, pulse: &Pulse) -> Evidence {
        let watches = self.watches.borrow();
        let watch = watches.get(&pulse.slot);
        let known = self.known.borrow();
        Evidence {
            gone: watch.and_then(|w| w.gone_since).map(|since| self.now().since(since)),
            silent: watch.is_some_and(|w| w.observation.is_ripe() && w.observation.seen() == pulse),
            claimer_over: pulse.claimer.is_some_and(|c| {
                c == self.me() || known.get(&c.slot).is_some_and(|now| *now > c.incarnation.0)
            }),
        }
    }

    /// May this host try to recover that life again, after it could not?
    fn is_due(&self, pulse: &Pulse) -> bool {
        self.unrecovered.borrow().get(&dead_of(pulse)).is_none_or(|again| *again <= self.now())
    }

    async fn recover_if_dead(&self, pulse: &Pulse) -> Result<()> {
        if let Some(claimer) = pulse.claimer
            && claimer.slot != self.me().slot
        {
            // The claimer may have died: it is recovered first, then its claim is void.
            Box::pin(self.look_at(claimer.slot)).await?;
        }
        let verdict = judge(pulse, self.evidence(pulse));
        if verdict == Verdict::Leave || !self.io.is_open() || !self.is_due(pulse) {
            return Ok(());
        }
        let _one = self.recovering.lock().await;
        let fresh = self.region.pulse(&self.io, pulse.slot).await?;
        // Whoever had the turn before may have failed at this very slot: the claim that it keeps
        // looks like one that was left over.
        if fresh != *pulse || !self.is_due(pulse) {
            return Ok(());
        }
        self.take_over(&fresh, verdict).await
    }

    async fn take_over(&self, victim: &Pulse, verdict: Verdict) -> Result<()> {
        let slot = victim.slot.0;
        if verdict == Verdict::FenceThenClaim {
            tracing::warn!(event = "fence", slot, name = victim.name, "silent host is stopped");
            if let Err(e) = self.io.env.fence.fence(victim).await {
                tracing::error!(event = "fence-failed", slot, error = %e);
                self.unrecovered.borrow_mut().insert(dead_of(victim), self.now() + FENCE_PAUSE);
                return Ok(());
            }
        }
        let ours_left = victim.claimer == Some(self.me());
        let inherited = victim.claimer.is_some() && !ours_left;
        let mut claim = victim.clone();
        claim.state = PulseState::Claimed;
        claim.claimer = Some(self.me());
        claim.claim_attempts += 1;
        claim.nonce = self.nonce();
        if let Settled::Lost(_) = self.region.swap(&self.io, victim, &claim).await? {
            return Ok(());
        }
        if inherited {
            self.io.count(|c| c.claims_after_claimer += 1);
        }
        tracing::warn!(
            event = "claim",
            slot,
            incarnation = victim.incarnation.0,
            name = victim.name,
            last_word = victim.state == PulseState::Dead,
            "dead host claimed"
        );
        let end = self.now() + CLAIM_DEADLINE;
        let work = std::pin::pin!(self.replay_claimed(&claim));
        let deadline = self.io.env.clock.sleep_until(end);
        match futures_util::future::select(work, deadline).await {
            futures_util::future::Either::Left((done, _)) => {
                self.end_claim(&claim, inherited, done).await
            }
            futures_util::future::Either::Right(((), _)) => {
                // Our replay writes may still land: nobody may touch that journal before we are
                // fenced ourselves (N25).
                self.io.stop(format!("the claim of slot {slot} overran its deadline"));
                Err(Error::new(Kind::Stopped, "a claim overran its deadline"))
            }
        }
    }

    /// The dead host may have been a joiner whose journal does not exist yet.
    async fn replay_claimed(&self, claim: &Pulse) -> std::result::Result<Replayed, Failure> {
        // The fence is confirmed after the claim: nothing of the victim lands from here on.
        self.io.env.fence.fence(claim).await.map_err(|e| Failure::Fence(e.to_string()))?;
        let Some(cluster) = claim.journal else { return Ok(Replayed::default()) };
        if !self.is_journal_of(cluster, claim.slot).await.map_err(Failure::of)? {
            return Ok(Replayed::default());
        }
        let place = self.journal_place(cluster);
        let dead = dead_of(claim);
        // A joiner has made no progress yet, and may have died before its journal's first header.
        let began = claim.progress > 0;
        let header = replay::header(&self.io, place, dead, began).await.map_err(Failure::of)?;
        let Some(header) = header else { return Ok(Replayed::default()) };
        let wanted = replay::read(&self.io, place, dead, &header).await.map_err(Failure::of)?;
        // The last record may have come no further than a cache of the disk when its host died. A
        // power loss after the first of our writes could then take it, and leave some of its
        // images: half a transaction.
        self.io.flush().await.map_err(Failure::of)?;
        let done = replay::apply(&self.io, self.sb.volume, dead, &wanted).await;
        let done = done.map_err(|e| match e {
            Unapplied::Unwritten(e) if e.kind == Kind::Io => Failure::Write(e),
            Unapplied::Unwritten(e) | Unapplied::Unread(e) => Failure::of(e),
        })?;
        // A crash before this flush: the slot is still claimed, the next claimer replays it all
        // again.
        self.io.flush().await.map_err(Failure::of)?;
        Ok(done)
    }

    /// Frees the slot after a replay, or hands the claim back, or keeps it. `inherited`: an earlier
    /// claimer died in its claim.
    async fn end_claim(
        &self,
        claim: &Pulse,
        inherited: bool,
        done: std::result::Result<Replayed, Failure>,
    ) -> Result<()> {
        let slot = claim.slot.0;
        let done = match done {
            Ok(done) => done,
            Err(Failure::Stopped(e)) => return Err(e),
            Err(Failure::Write(e)) => return self.keep(claim, inherited, e),
            Err(failure) => return self.hand_back(claim, &failure).await,
        };
        let mut free = Pulse::free(claim.slot, Incarnation(claim.incarnation.0 + 1), self.nonce());
        free.journal = claim.journal;
        free.geometry_epoch = claim.geometry_epoch;
        let swapped = self.region.swap(&self.io, claim, &free).await?;
        if let Settled::Lost(found) = swapped
            && !self.is_later(&found, claim)
        {
            self.io.stop(format!("slot {slot} changed under its claimer"));
            return Err(Error::new(Kind::Stopped, "a claimed slot changed"));
        }
        self.know(claim.slot, free.incarnation.0);
        self.io.count(|c| {
            c.takeovers += 1;
            c.replays_with_images += u64::from(done.applied > 0);
            c.images_applied += done.applied;
            c.images_refused += done.refused;
            c.images_in_place += done.in_place;
            c.revokes_used += done.revoked;
        });
        tracing::warn!(
            event = "recovered",
            slot,
            name = claim.name,
            records = done.records,
            applied = done.applied,
            refused = done.refused,
            in_place = done.in_place,
            revoked = done.revoked,
            "dead host recovered"
        );
        if let Some(cluster) = claim.journal {
            let (slot_no, life) = (claim.slot, free.incarnation.0);
            self.spawn(move |volume| async move {
                match volume.adopt_from(cluster, slot_no, life).await {
                    Err(e) if e.kind != Kind::Stopped => {
                        tracing::warn!(event = "adopt", slot, error = %e, "orphans stay listed");
                    }
                    Ok(()) | Err(_) => {}
                }
            });
        }
        Ok(())
    }

    /// Takes over what is still listed of slots that nobody lives in: their last host left or was
    /// recovered before all of it was freed, and nobody may ever come there again.
    pub(crate) async fn adopt_left(&self) -> Result<()> {
        for pulse in self.region.scan(&self.io).await?.into_iter().filter_map(|seen| seen.pulse) {
            let Some(cluster) = pulse.journal.filter(|_| pulse.state == PulseState::Free) else {
                continue;
            };
            if !self.is_journal_of(cluster, pulse.slot).await? {
                continue;
            }
            // A hint: whoever takes it looks again.
            let at = cluster.plus(JOURNAL_ORPHANS);
            let (_, body) = self.read_lock(at).await?;
            let body = Descriptor::decode(&body, self.sb.volume, at.plus(1));
            if body.is_ok_and(|body| body.size > 0) {
                self.adopt_from(cluster, pulse.slot, pulse.incarnation.0).await?;
            }
        }
        Ok(())
    }

    async fn adopt_from(&self, cluster: BlockNo, slot: SlotNo, life: u64) -> Result<()> {
        if let Some(directory) = self.orphan_directory(cluster).await?
            && self.adopt_orphans(directory, slot, life).await? > 0
        {
            self.reap_own().await?;
        }
        Ok(())
    }

    async fn hand_back(&self, claim: &Pulse, failure: &Failure) -> Result<()> {
        tracing::error!(
            event = "claim-handed-back",
            slot = claim.slot.0,
            error = %failure,
            "the dead host could not be recovered by this host"
        );
        let mut back = claim.clone();
        back.state = PulseState::Dead;
        back.claimer = None;
        back.claim_failure = failure.code();
        back.nonce = self.nonce();
        // Somebody else may be able to; we try again, but not at once.
        let pause = Duration::from_millis(500) * (1 << claim.claim_attempts.min(6));
        self.unrecovered.borrow_mut().insert(dead_of(claim), self.now() + pause);
        if let Settled::Lost(found) = self.region.swap(&self.io, claim, &back).await?
            && !self.is_later(&found, claim)
        {
            self.io.stop(format!("slot {} changed under its claimer", claim.slot));
            return Err(Error::new(Kind::Stopped, "a claimed slot changed"));
        }
        self.io.count(|c| c.claims_handed_back += 1);
        Ok(())
    }

    /// A replay write failed, and may still land: nobody may replay that journal, or change what
    /// its host had locked, before we are fenced ourselves. So the claim ends with our life.
    ///
    /// The first to meet such a write stops, as after any other: its path may be the reason. When
    /// an earlier claimer died already, the block is, and stopping would take down every host in
    /// turn.
    fn keep(&self, claim: &Pulse, inherited: bool, failed: Error) -> Result<()> {
        let slot = claim.slot.0;
        if !inherited {
            self.io.stop(format!("a write of the replay of slot {slot} failed: {failed}"));
            return Err(Error::new(Kind::Stopped, failed.what));
        }
        tracing::error!(
            event = "claim-kept",
            slot,
            name = claim.name,
            error = %failed,
            "the dead host cannot be recovered: what it had locked stays locked; once the storage \
             is well, unmount this host, and another one recovers both"
        );
        self.unrecovered.borrow_mut().insert(dead_of(claim), Instant::FAR);
        self.io.count(|c| c.claims_kept += 1);
        Ok(())
    }

    /// Was this host unable to recover that life?
    pub(crate) fn is_unrecovered(&self, dead: Holder) -> bool {
        self.unrecovered.borrow().contains_key(&dead)
    }

    /// A slot whose claim this host keeps.
    pub(crate) fn kept_claim(&self) -> Option<SlotNo> {
        let unrecovered = self.unrecovered.borrow();
        unrecovered.iter().find(|(_, again)| **again == Instant::FAR).map(|(dead, _)| dead.slot)
    }

    /// Is this image of a slot one of a later life: did our change land, and somebody join since?
    pub(crate) fn is_later(&self, found: &[u8], than: &Pulse) -> bool {
        Pulse::decode(&found[..RECORD], self.sb.volume, than.slot)
            .is_ok_and(|now| now.incarnation > than.incarnation)
    }

    pub(crate) fn journal_place(&self, cluster: BlockNo) -> Place {
        Place { volume: self.sb.volume, cluster, cluster_blocks: u64::from(self.sb.cluster_blocks) }
    }

    /// Is this cluster, by its lock, the journal of this slot?
    pub(crate) async fn is_journal_of(&self, cluster: BlockNo, slot: SlotNo) -> Result<bool> {
        if self.geometry().cluster_of(cluster).is_none() {
            return Ok(false);
        }
        let bytes = self.io.read_record(cluster.offset()).await?;
        let lock = Lock::decode(&bytes[..RECORD], self.sb.volume, cluster)
            .map_err(|e| Error::corrupt(cluster, &e))?;
        Ok(lock.object == LockObject::Journal && lock.payload == u64::from(slot.0))
    }

    /// The orphan directory in a journal's cluster, if it was ever initialised.
    pub(crate) async fn orphan_directory(&self, cluster: BlockNo) -> Result<Option<FileId>> {
        let addr = cluster.plus(JOURNAL_ORPHANS);
        let (lock, _) = self.read_lock(addr).await?;
        Ok(lock.map(|l| FileId { addr, birth: l.generation.birth }))
    }
}

/// The life that a claim is about.
fn dead_of(claim: &Pulse) -> Holder {
    Holder { slot: claim.slot, incarnation: claim.incarnation }
}

/// Why a claim came to nothing.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("its fence is not confirmed: {0}")]
    Fence(String),
    #[error("{0}")]
    Io(Error),
    #[error("{0}")]
    Corrupt(Error),
    #[error("{0}")]
    Write(Error),
    #[error("{0}")]
    Stopped(Error),
}

impl Failure {
    fn of(e: Error) -> Failure {
        match e.kind {
            Kind::Corrupt => Failure::Corrupt(e),
            Kind::Stopped => Failure::Stopped(e),
            _ => Failure::Io(e),
        }
    }

    fn code(&self) -> ClaimFailure {
        match self {
            Failure::Fence(_) => ClaimFailure::Fence,
            Failure::Io(_) | Failure::Write(_) | Failure::Stopped(_) => ClaimFailure::Io,
            Failure::Corrupt(_) => ClaimFailure::Corrupt,
        }
    }
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
}
