//! Taking over a dead slot: claim, fence, replay, flush, free (R4). What is decided, claim.rs
//! decides.
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
    BlockNo, ClaimFailure, Descriptor, Holder, JOURNAL_ORPHANS, Lock, LockObject, Pulse,
    PulseState, RECORD, SlotNo,
};

use crate::claim::{
    End, Evidence, STEPS, Step, Verdict, Worked, claimed, end, freed, handed_back, is_claimer_over,
    is_due, is_inherited, judge,
};
use crate::env::{Answer, FenceError, Instant, Life};
use crate::error::{Error, Kind, Result};
use crate::io::Settled;
use crate::journal::replay::{self, Place, Replayed, Unapplied};
use crate::liveness::{Observation, claim_wait};
use crate::types::FileId;
use crate::volume::Volume;

/// A takeover that lasts longer makes its host stop (H22).
pub(crate) const CLAIM_DEADLINE: Duration = Duration::from_secs(60);
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
        if slot.0 >= self.sb.slot_count {
            let why = format!("something names slot {slot}, of {}", self.sb.slot_count);
            return Err(Error::damage(why));
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
                event = "slot_damaged",
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
        Evidence {
            gone: watch.and_then(|w| w.gone_since).map(|since| self.now().since(since)),
            silent: watch.is_some_and(|w| w.observation.is_ripe() && w.observation.seen() == pulse),
            claimer_over: pulse
                .claimer
                .is_some_and(|c| is_claimer_over(c, self.me(), self.known_incarnation(c.slot))),
        }
    }

    /// May this host try to recover that life again, after it could not?
    fn is_due(&self, pulse: &Pulse) -> bool {
        is_due(self.unrecovered.borrow().get(&dead_of(pulse)).copied(), self.now())
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
                tracing::error!(event = "fence_failed", slot, error = %e);
                self.unrecovered.borrow_mut().insert(dead_of(victim), self.now() + FENCE_PAUSE);
                return Ok(());
            }
        }
        let inherited = is_inherited(victim, self.me());
        let claim = claimed(victim, self.me(), self.nonce());
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
        let work = std::pin::pin!(self.work_off(&claim));
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

    /// The steps of a takeover. A crash in any of them: the slot is still claimed, and the next
    /// claimer does all of them again.
    async fn work_off(&self, claim: &Pulse) -> std::result::Result<Replayed, Failure> {
        let fenced = || self.io.env.fence.fence(claim);
        self.take_steps(claim, fenced).await
    }

    /// The same of a slot whose program is proven over.
    pub(crate) async fn replay_fenced(
        &self,
        victim: &Pulse,
    ) -> std::result::Result<Replayed, Failure> {
        self.take_steps(victim, || Box::pin(async { Ok(()) })).await
    }

    async fn take_steps(
        &self,
        claim: &Pulse,
        fenced: impl Fn() -> Answer<std::result::Result<(), FenceError>>,
    ) -> std::result::Result<Replayed, Failure> {
        let mut done = Replayed::default();
        for step in STEPS {
            match step {
                Step::Fence => fenced().await.map_err(|e| Failure::Fence(e.to_string()))?,
                Step::Replay => done = self.replay_claimed(claim).await?,
                Step::Flush => self.io.flush().await.map_err(Failure::of)?,
            }
        }
        Ok(done)
    }

    /// Nothing is replayed without a journal: a joiner may have died before its own existed.
    async fn replay_claimed(&self, claim: &Pulse) -> std::result::Result<Replayed, Failure> {
        let nothing = Ok(Replayed::default());
        let Some(cluster) = claim.journal else { return nothing };
        if !self.is_journal_of(cluster, claim.slot).await.map_err(Failure::of)? {
            return nothing;
        }
        let place = self.journal_place(cluster);
        let dead = dead_of(claim);
        // A joiner has made no progress yet, and may have died before its journal's first header.
        let began = claim.progress > 0;
        let header = replay::header(&self.io, &place, dead, began).await.map_err(Failure::of)?;
        let Some(header) = header else { return nothing };
        let wanted = replay::read(&self.io, &place, dead, &header).await.map_err(Failure::of)?;
        let done = replay::apply(&self.io, self.sb.volume, dead, &wanted).await;
        done.map_err(|e| match e {
            Unapplied::Unwritten(e) if e.kind == Kind::Io => Failure::Write(e),
            Unapplied::Unwritten(e) | Unapplied::Unread(e) => Failure::of(e),
        })
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
        let worked = done.as_ref().map_or_else(Failure::worked, |_| Worked::Done);
        let done = match (end(worked, inherited), done) {
            (End::Free | End::HandBack, Ok(done)) => done,
            (End::Keep | End::Stop, Ok(_)) => unreachable!("nothing failed"),
            (End::Free | End::HandBack, Err(failure)) => {
                return self.hand_back(claim, &failure).await;
            }
            (End::Keep, Err(failure)) => {
                self.keep(claim, &failure);
                return Ok(());
            }
            (End::Stop, Err(failure)) => return Err(self.stop_in_claim(claim, failure)),
        };
        let free = freed(claim, self.nonce());
        let swapped = self.region.swap(&self.io, claim, &free).await?;
        if let Settled::Lost(found) = swapped
            && !self.is_later(&found, claim)
        {
            self.io.stop(format!("slot {slot} changed under its claimer"));
            return Err(Error::new(Kind::Stopped, "a claimed slot changed"));
        }
        self.note_recovered(claim, &free, done);
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

    /// A slot is free again, with all that its host had made durable in place.
    pub(crate) fn note_recovered(&self, dead: &Pulse, free: &Pulse, done: Replayed) {
        self.know(dead.slot, free.incarnation.0);
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
            slot = dead.slot.0,
            name = dead.name,
            records = done.records,
            applied = done.applied,
            refused = done.refused,
            in_place = done.in_place,
            revoked = done.revoked,
            "dead host recovered"
        );
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
            event = "claim_handed_back",
            slot = claim.slot.0,
            error = %failure,
            "the dead host could not be recovered by this host"
        );
        let back = handed_back(claim, failure.code(), self.nonce());
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

    /// This host stopped, or has to: a write of its replay failed.
    fn stop_in_claim(&self, claim: &Pulse, failure: Failure) -> Error {
        let (Failure::Write(e) | Failure::Stopped(e) | Failure::Io(e) | Failure::Corrupt(e)) =
            failure
        else {
            unreachable!("a fence that failed stops nobody")
        };
        if self.io.stopped().is_some() {
            return e;
        }
        self.io.stop(format!("a write of the replay of slot {} failed: {e}", claim.slot));
        Error::new(Kind::Stopped, e.what)
    }

    /// A replay write failed, and may still land: nobody may replay that journal, or change what
    /// its host had locked, before we are fenced ourselves. So the claim ends with our life.
    fn keep(&self, claim: &Pulse, failed: &Failure) {
        let slot = claim.slot.0;
        tracing::error!(
            event = "claim_kept",
            slot,
            name = claim.name,
            error = %failed,
            "the dead host cannot be recovered: what it had locked stays locked; once the storage \
             is well, unmount this host, and another one recovers both"
        );
        self.unrecovered.borrow_mut().insert(dead_of(claim), Instant::FAR);
        self.io.count(|c| c.claims_kept += 1);
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
        let geometry = self.geometry();
        Place {
            volume: self.sb.volume,
            cluster,
            cluster_blocks: u64::from(self.sb.cluster_blocks),
            clusters: geometry.clusters_start..geometry.cluster_start(geometry.cluster_count),
        }
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
        let (lock, _) = self.read_object(addr).await?;
        Ok(lock.map(|l| FileId { addr, birth: l.generation.birth }))
    }
}

/// The life that a claim is about.
fn dead_of(claim: &Pulse) -> Holder {
    Holder { slot: claim.slot, incarnation: claim.incarnation }
}

/// Why a claim came to nothing.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
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

    fn worked(&self) -> Worked {
        match self {
            Failure::Fence(_) | Failure::Io(_) | Failure::Corrupt(_) => Worked::Answered,
            Failure::Write(_) => Worked::Unanswered,
            Failure::Stopped(_) => Worked::Stopped,
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
