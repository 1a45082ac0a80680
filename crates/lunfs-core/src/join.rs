//! Joining and leaving: how a mount comes to a slot and a journal, and gives the slot back.
//!
//! ```text
//! life mark -> slot Free->Joining -> pulses begin -> journal named in the pulse
//!           -> its cluster taken -> orphan directory, journal header -> Live
//! ```
//!
//! Each arrow is durable before the next begins. A crash between any two leaves a slot that others
//! recover; a journal cluster that was named but not taken is simply not a journal: its lock says
//! so.

use std::ops::Range;
use std::rc::Rc;

use futures_util::future::{Either, select};
use lunfs_format::{
    BlockNo, Cluster, Holder, JOURNAL_ORPHANS, Lock, LockMode, LockObject, Pulse, PulseState,
    Request, SlotNo, Stamp,
};

use crate::allocate::Allocator;
use crate::claim::{Leaving, freed, leaving};
use crate::env::{Env, Instant};
use crate::error::{Error, Kind, Result};
use crate::format::{empty_directory, lock_block, read_superblock};
use crate::io::{Io, Settled};
use crate::journal::Journal;
use crate::journal::replay::newest_header;
use crate::liveness::{Found, Liveness, claim_wait, interval, lease};
use crate::lock::{Judged, acquired, judge, prepared};
use crate::locks::{Wish, stamp_matches};
use crate::slots::{Seen, may_join};
use crate::types::{FileId, MountOptions};
use crate::volume::{Intent, Phase, Volume};

/// How often a joiner without place for a journal looks for a cluster that another host let go.
const ASK_ROUNDS: u32 = 12;
/// How often a joiner that frees a slot looks for one: others may be faster to take it.
const SLOT_TRIES: u32 = 4;

impl Volume {
    /// Mounts the volume as a new host. The caller must poll `serve` from now on.
    pub async fn mount(env: Env, options: MountOptions) -> Result<Rc<Volume>> {
        if options.name.is_empty() || options.name.len() > 64 {
            return Err(Error::new(Kind::Invalid, "a host name has 1 to 64 bytes"));
        }
        loop {
            if let Some(volume) = Volume::join(env.clone(), options.clone()).await? {
                return Ok(volume);
            }
        }
    }

    /// One attempt. `None`: there was no place for a journal, but now a dead host has left a slot
    /// and its journal.
    async fn join(env: Env, options: MountOptions) -> Result<Option<Rc<Volume>>> {
        let sb = read_superblock(&env).await?;
        let io = Io::new(env, sb.logical_block);
        // Until a slot is ours, all we write is the compare-and-write that takes one.
        io.set_lease(Instant::FAR);
        let volume = Volume::new(sb, io, options);
        let joined = volume.take_slot().await?;
        tracing::info!(event = "joining", slot = joined.slot.0, incarnation = joined.incarnation.0);
        let setup = Box::pin(async {
            let done = volume.set_up(joined.journal).await;
            if !matches!(done, Ok(true)) && volume.io.stopped().is_none() {
                if let Leaving::Stop(dead) = leaving(volume.kept_claim()) {
                    return Err(volume.stop_with_claim(dead, "it cannot join"));
                }
                // Others may use the slot at once. All that was written there was answered.
                volume.leave_slot().await?;
                volume.io.close();
                volume.io.env.fence.leave(volume.slot());
            }
            done
        });
        let pulses = Box::pin(volume.pulse_loop());
        let done = match select(setup, pulses).await {
            Either::Left((done, _)) => done,
            Either::Right(((), setup)) => match volume.io.stopped() {
                Some(why) => Err(Error::new(Kind::Stopped, why)),
                None => setup.await,
            },
        };
        if !done? {
            // What the recovery left to do is listed in the journal's cluster: whoever comes there
            // does it. The tasks would keep this volume in memory.
            drop(volume.to_run.borrow_mut().take());
            return Ok(None);
        }
        tracing::info!(event = "live", slot = joined.slot.0, incarnation = joined.incarnation.0);
        volume.spawn(|volume| async move {
            if let Err(e) = volume.reap_own().await {
                tracing::warn!(event = "reap", error = %e, "some deleted files stay for now");
            }
        });
        Ok(Some(volume))
    }

    /// Finds a free slot and takes it. Where none is and nobody has the volume, one is freed first.
    async fn take_slot(&self) -> Result<Pulse> {
        for _ in 0..SLOT_TRIES {
            if let Some(joined) = self.take_free_slot().await? {
                return Ok(joined);
            }
            if !self.free_a_slot().await? {
                break;
            }
        }
        let why = format!(
            "no slot of {} is free: hosts have them, or died in them and were not recovered yet; \
             try again in a minute, or unmount somewhere",
            self.sb.slot_count
        );
        Err(Error::new(Kind::Busy, why))
    }

    async fn take_free_slot(&self) -> Result<Option<Pulse>> {
        let seen = self.region.scan(&self.io).await?;
        let who = &self.options.identity;
        // Programs of this machine that are proven gone are dead; we recover them once we are in.
        let alive: Vec<Seen> = seen.iter().filter(|s| !self.is_gone(s)).cloned().collect();
        if let Some(why) = may_join(&alive, &self.options.name, who.boot, who.machine) {
            return Err(Error::new(Kind::Busy, why));
        }
        // Slots with a journal first: on a full volume there is no place for another one.
        let pulses = || seen.iter().filter_map(|s| s.pulse.as_ref());
        let with_journal = pulses().filter(|pulse| pulse.journal.is_some());
        let without = pulses().filter(|pulse| pulse.journal.is_none());
        for free in with_journal.chain(without) {
            if free.state != PulseState::Free || !self.enter(free.slot)? {
                continue;
            }
            let joined = self.first_pulse(free);
            let began = self.now();
            if let Settled::Lost(_) = self.region.swap(&self.io, free, &joined).await? {
                self.io.env.fence.leave(free.slot);
                continue;
            }
            // The lease counts from before the first submission (R1).
            self.io.set_lease(began + lease(self.sb.timing));
            self.me.set(Holder { slot: joined.slot, incarnation: joined.incarnation });
            *self.alloc.borrow_mut() = Allocator::new(*self.geometry(), joined.slot.0);
            *self.live.borrow_mut() = Some(Liveness::new(joined.clone()));
            self.pulsed_at.set(began);
            self.know(joined.slot, joined.incarnation.0);
            self.intent.set(Intent { state: PulseState::Joining, journal: joined.journal });
            return Ok(Some(joined));
        }
        Ok(None)
    }

    fn is_gone(&self, seen: &Seen) -> bool {
        seen.pulse.as_ref().is_some_and(|p| self.is_proven_gone(p))
    }

    fn enter(&self, slot: SlotNo) -> Result<bool> {
        self.io.env.fence.enter(slot).map_err(|e| Error::new(Kind::Io, e.to_string()))
    }

    fn first_pulse(&self, free: &Pulse) -> Pulse {
        let who = &self.options.identity;
        Pulse {
            state: PulseState::Joining,
            has_parent: who.has_parent,
            counter: 1,
            progress: 0,
            nonce: self.nonce(),
            run: who.run,
            boot: who.boot,
            machine: who.machine,
            name: self.options.name.clone(),
            timing: self.sb.timing,
            pid: who.pid,
            pid_start: who.pid_start,
            pid_namespace: who.pid_namespace,
            geometry_epoch: self.sb.geometry_epoch,
            journal: free.journal,
            ..Pulse::free(free.slot, free.incarnation, 0)
        }
    }

    /// Everything between the slot and being live, under the lease. `false`: there was no place for
    /// a journal, but somebody dead has left one meanwhile.
    async fn set_up(&self, journal: Option<BlockNo>) -> Result<bool> {
        let seen = self.region.scan(&self.io).await?;
        self.refuse_twin(&seen)?;
        for pulse in seen.iter().filter_map(|s| s.pulse.as_ref()) {
            self.learn(pulse, self.now());
        }
        let cluster = match journal {
            Some(cluster) if self.is_journal_of(cluster, self.slot()).await? => cluster,
            Some(_) | None => match self.new_journal().await {
                Err(e) if e.kind == Kind::NoSpace => match self.ask_for_a_journal().await? {
                    Some(cluster) => cluster,
                    None if self.recover_anybody().await? => return Ok(false),
                    None => return Err(e),
                },
                made => made?,
            },
        };
        let place = self.journal_place(cluster);
        let header = newest_header(&self.io, &place).await?;
        let orphans = cluster.plus(JOURNAL_ORPHANS);
        if header.is_none() {
            // No header was ever written, so nothing was ever listed either.
            self.init_orphans(cluster).await?;
        }
        let directory = self.orphan_directory(cluster).await?.ok_or_else(|| {
            Error::damaged(orphans, "the lock of an orphan directory is not here")
        })?;
        let _ = self.orphans_cell.set(directory);
        let journal = Journal::begin(
            &self.io,
            self.sb.volume,
            self.me(),
            cluster,
            u64::from(self.sb.cluster_blocks),
            header.map_or(0, |h| h.version.count),
        )
        .await?;
        let _ = self.journal_cell.set(Rc::new(journal));
        self.progress.set(1);
        self.say(Intent { state: PulseState::Live, journal: Some(cluster) }).await?;
        Ok(true)
    }

    /// Makes an empty orphan directory: its lock first, ours, then the body it covers.
    ///
    /// Its place may have been another object's while the cluster served for files: it is born
    /// after all of them, as the header that the cluster had then says (H3).
    async fn init_orphans(&self, cluster: BlockNo) -> Result<()> {
        let at = cluster.plus(JOURNAL_ORPHANS);
        let bytes = self.io.read(cluster.plus(1), 1).await?;
        let header = Cluster::decode(&bytes, self.sb.volume, cluster.plus(1))
            .map_err(|e| Error::corrupt(cluster.plus(1), &e))?;
        let birth = header.version.count + 1;
        let found = match self.read_lock(at).await {
            Ok((lock, _)) => lock,
            // What a file left: nobody can hold what was never an orphan directory.
            Err(e) if e.kind == Kind::Corrupt => None,
            Err(e) => return Err(e),
        };
        match found {
            // An earlier life of this slot got as far as here; whoever recovered it may hold it.
            Some(lock) if lock.generation.birth == birth => self.inherit_orphans(at, birth).await,
            Some(_) | None => {
                let lock = prepared(birth, self.me(), self.nonce());
                self.io.write(at, lock_block(self.sb.volume, at, &lock), true).await?;
                self.write_empty_orphans(at, birth).await
            }
        }
    }

    /// Takes the lock of an orphan directory that is there already, and makes its body if the one
    /// who made the lock died before that.
    async fn inherit_orphans(&self, at: BlockNo, birth: u64) -> Result<()> {
        match self.hold(Wish::from(FileId { addr: at, birth })).await {
            // No body of this birth: its author died before it wrote one. Or it was a file's that
            // was never recorded, and a host that met the lock called the file deleted.
            Err(e) if matches!(e.kind, Kind::Corrupt | Kind::Stale) => {}
            held => return held.map(drop),
        }
        let (lock, _) = self.read_lock(at).await?;
        if let Some(lock) = lock
            && let Settled::Won =
                self.swap_lock(at, &lock, &acquired(&lock, self.me(), self.nonce())).await?
        {
            return self.write_empty_orphans(at, birth).await;
        }
        Err(Error::new(Kind::Busy, format!("the orphan directory at {at} changed; try again")))
    }

    async fn write_empty_orphans(&self, at: BlockNo, birth: u64) -> Result<()> {
        let blocks = empty_directory(self.sb.volume, at, birth, self.wall(), self.nonce());
        for (body, bytes) in blocks.into_iter().filter(|(block, _)| *block != at) {
            self.io.write(body, bytes, true).await?;
        }
        Ok(())
    }

    /// Two hosts of one name that joined at once: the one in the higher slot goes.
    fn refuse_twin(&self, seen: &[Seen]) -> Result<()> {
        let who = &self.options.identity;
        let others: Vec<Seen> = seen
            .iter()
            .filter(|s| s.slot != self.slot() && !self.is_gone(s))
            .filter(|s| {
                s.slot < self.slot()
                    || s.pulse.as_ref().is_some_and(|p| p.state == PulseState::Live)
            })
            .cloned()
            .collect();
        if let Some(why) = may_join(&others, &self.options.name, who.boot, who.machine) {
            return Err(Error::new(Kind::Busy, why));
        }
        Ok(())
    }

    /// Has our pulses say something, and waits until one that does is on disk.
    async fn say(&self, intent: Intent) -> Result<()> {
        self.intent.set(intent);
        loop {
            let pulsed = self.pulsed.notified();
            let said = self.live.borrow().as_ref().is_some_and(|live| {
                let pulse = live.confirmed();
                pulse.state == intent.state && pulse.journal == intent.journal
            });
            if said {
                return Ok(());
            }
            self.pulse_now.notify_one();
            pulsed.await;
            self.io.pass().await?;
        }
    }

    /// Takes an empty cluster for the journal: named in our pulse first, so that whoever recovers
    /// us knows where to look, then taken by its lock.
    async fn new_journal(&self) -> Result<BlockNo> {
        let mut from = 1;
        loop {
            let initialised = self.initialised().await?;
            if let Some(start) = self.journal_among(from..initialised).await? {
                return Ok(start);
            }
            from = initialised;
            if !self.grow_past(initialised).await? {
                return Err(Error::new(
                    Kind::NoSpace,
                    "no empty cluster is left for this host's journal; free some space on another \
                     host",
                ));
            }
        }
    }

    /// Has more clusters than `seen` initialised. Who is at it, or died in it, is waited for, but
    /// not for ever: its journal may be one that nobody can replay.
    async fn grow_past(&self, seen: u64) -> Result<bool> {
        if seen >= self.sb.cluster_count {
            return Ok(false);
        }
        let has_grown =
            async || Ok(self.initialised().await? > seen || self.extend_frontier(false).await?);
        self.recover_until(has_grown).await
    }

    /// Recovers dead hosts until `done`, or until all had the time to prove that they live.
    async fn recover_until(&self, done: impl AsyncFn() -> Result<bool>) -> Result<bool> {
        let end = self.now() + 2 * claim_wait(self.sb.timing);
        loop {
            if done().await? {
                return Ok(true);
            }
            if self.now() >= end {
                return Ok(false);
            }
            self.look_around(SlotNo(0), self.sb.slot_count).await?;
            self.sleep_about(interval(self.sb.timing) / 4).await;
        }
    }

    async fn journal_among(&self, clusters: Range<u64>) -> Result<Option<BlockNo>> {
        for index in clusters.rev() {
            let start = self.geometry().cluster_start(index);
            let (lock, body) = self.read_lock(start).await?;
            let Some(lock) = lock.filter(|l| self.is_empty_cluster(l, &body, start)) else {
                continue;
            };
            self.say(Intent { state: PulseState::Joining, journal: Some(start) }).await?;
            let ours = Lock {
                mode: LockMode::Free,
                object: LockObject::Journal,
                holder: None,
                generation: lock.generation.next(),
                nonce: self.nonce(),
                stamp: Stamp::default(),
                giver: None,
                payload: u64::from(self.slot().0),
            };
            if let Settled::Won = self.swap_lock(start, &lock, &ours).await? {
                return Ok(Some(start));
            }
        }
        Ok(None)
    }

    /// Has live hosts show their space and let go of an empty cluster, and takes one for a journal.
    /// A host that once filled the volume holds all clusters, empty as they may be by now.
    async fn ask_for_a_journal(&self) -> Result<Option<BlockNo>> {
        tracing::info!(event = "no_journal", "no free cluster for a journal: asking other hosts");
        let mut to_ask = self.other_hosts().await?;
        for _ in 0..ASK_ROUNDS {
            to_ask = self.ring_for_space(to_ask).await?;
            self.sleep_about(interval(self.sb.timing) / 4).await;
            for index in 1..self.initialised().await? {
                if let Some((lock, Some(cluster))) = self.peek_cluster(index).await?
                    && let Some(holder) = lock.holder
                    && cluster.is_empty()
                {
                    let start = self.geometry().cluster_start(index);
                    self.ring(holder, &[start], Request::LetGo).await?;
                    break;
                }
            }
            match self.new_journal().await {
                Err(e) if e.kind == Kind::NoSpace => {}
                made => return made.map(Some),
            }
        }
        Ok(None)
    }

    /// Recovers dead hosts until one was. On a full volume whose hosts all died, nobody could come
    /// back otherwise.
    async fn recover_anybody(&self) -> Result<bool> {
        tracing::warn!(event = "no_journal", "no place for a journal: looking for dead hosts");
        let before = self.counters().takeovers;
        self.recover_until(async || Ok(self.counters().takeovers > before)).await
    }

    fn is_empty_cluster(&self, lock: &Lock, body: &[u8], start: BlockNo) -> bool {
        let judged = judge(lock, self.me(), |slot| self.known_incarnation(slot));
        let settled = match judged {
            Judged::Free => stamp_matches(&lock.stamp, body),
            Judged::Stale(_) => true,
            _ => false,
        };
        settled
            && lock.object == LockObject::Cluster
            && Cluster::decode(body, self.sb.volume, start.plus(1))
                .is_ok_and(|c| c.version >= lock.stamp.version && c.is_empty())
    }

    /// Leaves cleanly: everything durable and in place, then the slot is free at the next
    /// incarnation, which makes every lock we still hold takeable at once.
    pub async fn unmount(&self) -> Result<()> {
        // Operations are refused from here on, and those under way end first: nothing may be
        // acknowledged that the last checkpoint does not carry.
        self.reach(Phase::Closing);
        loop {
            let done = self.tasks_done.notified();
            if self.tasks.get() == 0 && self.operations.get() == 0 {
                break;
            }
            select(std::pin::pin!(done), Box::pin(self.io.until_stopped())).await;
            self.io.pass().await?;
        }
        self.reach(Phase::Drained);
        // The service would go on with what cannot be written back now, and find space when the
        // slot is just becoming free.
        let _alone = self.writing_back.lock().await;
        let written = self.write_back_with_space().await;
        // After the write-back, which may have to recover a host that holds what it needs.
        let _recovering = self.recovering.lock().await;
        self.flush_data(self.io.flushes_begun()).await?;
        while !self.journal().is_empty() {
            self.journal().commit(&self.io).await?;
            self.journal().checkpoint(&self.io).await?;
        }
        self.io.flush().await?;
        if let Leaving::Stop(dead) = leaving(self.kept_claim()) {
            let own = match &written {
                Ok(()) => "all of this host is durable".to_owned(),
                Err(e) => format!("not all of this host is durable: {e}"),
            };
            return Err(self.stop_with_claim(dead, &own));
        }
        self.leave_slot().await?;
        tracing::info!(event = "unmounted", slot = self.slot().0);
        // Nothing of ours may reach the disk from here on: the slot may be another host's already.
        self.reach(Phase::Ended);
        self.io.close();
        self.ending.notify_waiters();
        written
    }

    /// Stops instead of leaving: to free our slot would say that nothing of ours can land any more.
    fn stop_with_claim(&self, dead: SlotNo, own: &str) -> Error {
        let why = format!(
            "{own}; a write for the dead host in slot {dead} failed and may still land: others \
             have to take this host over"
        );
        self.io.stop(why.clone());
        Error::new(Kind::Stopped, why)
    }

    /// Replaces our last image by a free slot. Pulses in flight may come first; each is settled.
    async fn leave_slot(&self) -> Result<()> {
        self.reach(Phase::Leaving);
        loop {
            let confirmed = match self.live.borrow().as_ref() {
                Some(live) => live.confirmed().clone(),
                None => return Ok(()),
            };
            let free = freed(&confirmed, self.nonce());
            let swap = std::pin::pin!(self.region.swap(&self.io, &confirmed, &free));
            let over = self.io.env.clock.sleep_until(self.io.lease_until());
            let settled = match select(swap, over).await {
                Either::Left((settled, _)) => settled?,
                Either::Right(((), _)) => {
                    // Nothing pulses any more: the gate would stay closed for ever. All is in
                    // place, so whoever takes over finds nothing to replay.
                    let why = "the lease ended before the slot was free";
                    self.io.stop(why);
                    return Err(Error::new(Kind::Stopped, why));
                }
            };
            match settled {
                Settled::Won => return Ok(()),
                Settled::Lost(found) if self.is_later(&found, &confirmed) => return Ok(()),
                Settled::Lost(found) => {
                    let seen =
                        Pulse::decode(&found[..lunfs_format::RECORD], self.sb.volume, self.slot())
                            .map_err(|e| {
                                let at = self.geometry().slot_offset(self.slot());
                                Error::corrupt(BlockNo(at / lunfs_format::BLOCK as u64), &e)
                            })?;
                    let judged = self.live.borrow_mut().as_mut().map(|live| live.found(&seen));
                    match judged {
                        Some(Found::Ours(_) | Found::Unchanged) => {}
                        other => {
                            let why = format!("the slot changed while leaving: {other:?}");
                            self.io.stop(why.clone());
                            return Err(Error::new(Kind::Stopped, why));
                        }
                    }
                }
            }
        }
    }
}
