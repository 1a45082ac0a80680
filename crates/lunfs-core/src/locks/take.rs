//! Taking locks: guards of what this host holds, and asking other hosts for the rest.
//!
//! Invariants:
//! - A task that waits for a lock that another host holds has no other guard, or only guards of
//!   files without pending changes, taken in address order: no circle of hosts can wait.
//! - An entry says that its lock is held only once the body of its object was read or is known to
//!   be current.
//! - A lock whose object is gone is voided, not kept.

use std::rc::Rc;
use std::time::Duration;

use lunfs_format::{
    BellState, BlockNo, Cluster, Descriptor, Doorbell, FileKind, Holder, Lock, LockObject, Request,
    Version,
};

use super::{Entry, ReadGuard, Wish, WishKind, WriteGuard, stamp_matches};
use crate::env::{Instant, Life};
use crate::error::{Error, Kind, Result};
use crate::io::Settled;
use crate::lock::{Judged, acquired, given_back, judge, voided};
use crate::meta::{Cached, Meta};
use crate::volume::Volume;

/// A ring that was not followed by a change of the lock is repeated after this time.
const RING_AGAIN: Duration = Duration::from_millis(400);
/// Shortest and longest pause between two looks at a lock that is waited for.
const POLL: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(15));
/// How long a cluster is waited for whose holder lives; longer than a takeover.
const CLUSTER_WAIT: Duration = Duration::from_secs(20);
/// Misses after which several locks are taken in order, waiting.
const MISSES_MAX: u32 = 4;

/// What reading a lock that we may not have found.
enum Attempt {
    Done,
    Again,
    /// By whom, and since which change of the lock.
    HeldBy(Holder, Version),
}

impl Volume {
    /// Takes a lock for changing its object, waiting for other hosts if need be.
    pub(crate) async fn hold(&self, wish: impl Into<Wish>) -> Result<WriteGuard> {
        let wish = wish.into();
        loop {
            let entry = self.locks.entry(wish.addr, wish.birth, wish.object());
            let guard = entry.rw.clone().write_owned().await;
            if entry.held.get().is_none() {
                self.acquire(&entry).await?;
            }
            if !self.locks.is_known(&entry) {
                continue;
            }
            entry.used.set(self.now());
            return Ok(WriteGuard { entry, _guard: guard });
        }
    }

    /// Takes several locks. Misses retry without holding any while they wait; after a few misses
    /// they are taken in address order (H28).
    pub(crate) async fn hold_all(&self, wishes: &[Wish]) -> Result<Vec<WriteGuard>> {
        let mut wishes = wishes.to_vec();
        wishes.sort();
        wishes.dedup();
        for _ in 0..MISSES_MAX {
            for wish in &wishes {
                drop(self.hold(*wish).await?);
            }
            if let Some(guards) = self.try_hold_all(&wishes).await {
                return Ok(guards);
            }
        }
        // Files that are held while waiting must have nothing pending: a cluster they reserved
        // space in could not be released meanwhile (the invariant above).
        let mut guards = Vec::new();
        for wish in &wishes {
            let guard = self.hold(*wish).await?;
            if wish.kind == WishKind::Descriptor {
                self.write_back(&guard).await?;
            }
            guards.push(guard);
        }
        Ok(guards)
    }

    async fn try_hold_all(&self, wishes: &[Wish]) -> Option<Vec<WriteGuard>> {
        let mut guards = Vec::new();
        for wish in wishes {
            let entry = self.locks.exactly(*wish)?;
            let guard = entry.rw.clone().write_owned().await;
            if !self.locks.is_known(&entry) || entry.held.get().is_none() {
                return None;
            }
            entry.used.set(self.now());
            guards.push(WriteGuard { entry, _guard: guard });
        }
        Some(guards)
    }

    /// Takes a lock only if that needs no waiting for another host.
    pub(crate) async fn try_take(&self, wish: Wish) -> Result<Option<ReadGuard>> {
        let entry = self.locks.entry(wish.addr, wish.birth, wish.object());
        if let Some(guard) = entry.try_read() {
            return Ok(Some(guard));
        }
        let Ok(guard) = entry.rw.clone().try_write_owned() else { return Ok(None) };
        if entry.held.get().is_none() {
            match self.attempt(&entry).await? {
                Attempt::Done => {}
                Attempt::Again | Attempt::HeldBy(..) => return Ok(None),
            }
        }
        entry.used.set(self.now());
        Ok(Some(WriteGuard { entry, _guard: guard }.downgrade()))
    }

    /// Takes a lock for changing its object if no other host holds it. Waits for other tasks of
    /// this host only.
    pub(crate) async fn try_hold(&self, wish: Wish) -> Result<Option<WriteGuard>> {
        let entry = self.locks.entry(wish.addr, wish.birth, wish.object());
        let guard = entry.rw.clone().write_owned().await;
        while entry.held.get().is_none() {
            match self.attempt(&entry).await? {
                Attempt::Done => {}
                Attempt::Again => self.sleep_about(POLL.0).await,
                Attempt::HeldBy(..) => return Ok(None),
            }
        }
        Ok(Some(WriteGuard { entry, _guard: guard }))
    }

    /// A read guard if this host holds the lock.
    pub(crate) async fn read_held(&self, wish: Wish) -> Option<ReadGuard> {
        let entry = self.locks.exactly(wish)?;
        let guard = entry.rw.clone().read_owned().await;
        entry.held.get()?;
        entry.used.set(self.now());
        Some(ReadGuard { entry, _guard: guard })
    }

    /// Takes the lock on disk; the caller has the write guard.
    async fn acquire(&self, entry: &Rc<Entry>) -> Result<()> {
        let mut rung: Option<(Holder, Version, Instant)> = None;
        let mut pause = POLL.0;
        let began = self.now();
        loop {
            let (holder, generation) = match self.attempt(entry).await? {
                Attempt::Done => return Ok(()),
                Attempt::Again => {
                    self.sleep_about(POLL.0).await;
                    continue;
                }
                Attempt::HeldBy(holder, generation) => (holder, generation),
            };
            // Of another generation is a lock that left and came back between two looks: our
            // request may have come while it was gone, and nobody remembers it.
            let ring = rung.is_none_or(|(h, g, at)| {
                (h, g) != (holder, generation) || self.now().since(at) > RING_AGAIN
            });
            if ring && self.ring(holder, &[entry.addr], Request::HandOver).await? {
                rung = Some((holder, generation, self.now()));
                pause = POLL.0;
            }
            self.watch(holder).await?;
            self.give_up_waiting(entry, holder, began)?;
            self.sleep_about(pause).await;
            pause = (pause * 3 / 2).min(POLL.1);
        }
    }

    /// Nothing else is waited for with an end: programs rather wait for a lock than fail. But space
    /// can be looked for elsewhere, who leaves waits for nobody that cannot be recovered, and
    /// nobody waits for a slot of which nothing can be known any more.
    fn give_up_waiting(&self, entry: &Entry, holder: Holder, began: Instant) -> Result<()> {
        if self.is_damaged(holder.slot) {
            let why = format!(
                "lock {} is held by slot {}, whose pulse is damaged; nothing was changed, unmount \
                 everywhere and run `lunfs check --repair`",
                entry.addr, holder.slot
            );
            return Err(Error::new(Kind::Corrupt, why));
        }
        let is_cluster = entry.object == LockObject::Cluster;
        let is_dead = self.is_unrecovered(holder) && (is_cluster || self.is_closing());
        if is_dead || (is_cluster && self.now().since(began) > CLUSTER_WAIT) {
            let state =
                if is_dead { "died and cannot be recovered" } else { "does not give it up" };
            let why = format!("lock {} is held by slot {}, which {state}", entry.addr, holder.slot);
            return Err(Error::new(Kind::Busy, why));
        }
        Ok(())
    }

    /// Waits until a live holder lets go of an object that we only want to read, or did and took it
    /// again.
    pub(crate) async fn ask_to_read(
        &self,
        wish: Wish,
        holder: Holder,
        generation: Version,
    ) -> Result<()> {
        let entry = self.locks.entry(wish.addr, wish.birth, wish.object());
        self.mark_contended(&entry);
        let mut rung = self.ring(holder, &[wish.addr], Request::LetGo).await?;
        let mut pause = POLL.0;
        let end = self.now() + RING_AGAIN;
        while self.now() < end {
            self.sleep_about(pause).await;
            pause = (pause * 3 / 2).min(POLL.1);
            let (lock, _) = self.read_lock(wish.addr).await?;
            let judged = lock.map(|l| judge(&l, self.me(), |slot| self.known_incarnation(slot)));
            // A holder that was recovered meanwhile stays named: its lock is stale.
            let still = judged == Some(Judged::Held(holder));
            if !still || lock.is_none_or(|l| l.generation != generation) {
                return Ok(());
            }
            if !rung {
                rung = self.ring(holder, &[wish.addr], Request::LetGo).await?;
            }
            self.watch(holder).await?;
        }
        Ok(())
    }

    async fn attempt(&self, entry: &Rc<Entry>) -> Result<Attempt> {
        let (lock, body) = match entry.object {
            LockObject::Descriptor => self.read_object(entry.addr).await?,
            _ => match self.read_lock(entry.addr).await? {
                (None, _) => return Err(Error::damaged(entry.addr, "a lock is always here")),
                found => found,
            },
        };
        let gone = || Error::new(Kind::Stale, format!("no lock of this file at {}", entry.addr));
        let lock = lock.ok_or_else(gone)?;
        if lock.generation.birth != entry.birth || lock.object != entry.object {
            return Err(gone());
        }
        match judge(&lock, self.me(), |slot| self.known_incarnation(slot)) {
            // The compare-and-write compares the very image that was read beside this body: if the
            // stamp binds and matches, the body is current.
            Judged::Free => {
                let body = stamp_matches(&lock.stamp, &body).then_some(&body[..]);
                self.take(entry, &lock, body).await
            }
            Judged::Stale(_) => {
                let taken = self.take(entry, &lock, None).await?;
                self.io.count(|c| c.locks_stale += u64::from(matches!(taken, Attempt::Done)));
                Ok(taken)
            }
            // Handed to us by name, or a compare-and-write of ours landed late (H4). That it can be
            // read does not make it durable: a power loss could give it back to the one before us,
            // and leave what we committed under it to no replay. So it is taken like any other.
            Judged::Ours => self.take(entry, &lock, None).await,
            Judged::Held(holder) => Ok(Attempt::HeldBy(holder, lock.generation)),
            Judged::Gone => Err(gone()),
            Judged::Unsupported => Err(Error::new(
                Kind::Unsupported,
                format!("lock {} is in mode {:?}; a newer lunfs is needed", entry.addr, lock.mode),
            )),
        }
    }

    async fn take(&self, entry: &Rc<Entry>, lock: &Lock, body: Option<&[u8]>) -> Result<Attempt> {
        let mine = acquired(lock, self.me(), self.nonce());
        let won = self.swap_lock(entry.addr, lock, &mine).await?;
        let Settled::Won = won else { return Ok(Attempt::Again) };
        self.io.count(|c| c.locks_acquired += 1);
        self.install_or_undo(entry, lock, mine, body).await?;
        Ok(Attempt::Done)
    }

    /// Changes a lock that we hold. Nobody else may while we live: if somebody did, we stop.
    pub(crate) async fn swap_held(&self, addr: BlockNo, old: &Lock, new: &Lock) -> Result<()> {
        match self.swap_lock(addr, old, new).await? {
            Settled::Won => Ok(()),
            Settled::Lost(_) => {
                self.io.stop(format!("lock {addr} changed under its exclusive holder"));
                Err(Error::new(Kind::Stopped, "a lock changed under its holder"))
            }
        }
    }

    /// A lock over a void body: its holder died while it deleted the object. We finish that, or
    /// nobody could ever take the lock from us again. For the same reason a lock over a body that
    /// cannot be read is given back as it was: everybody who asks is to find out, not to wait.
    async fn install_or_undo(
        &self,
        entry: &Rc<Entry>,
        before: &Lock,
        lock: Lock,
        body: Option<&[u8]>,
    ) -> Result<()> {
        let installed = self.install(entry, lock, body).await;
        let undone = match installed.as_ref().map_err(|e| e.kind) {
            Ok(()) | Err(Kind::Stopped) => return installed,
            Err(Kind::Stale) => voided(&lock, self.nonce()),
            Err(_) => given_back(before, &lock, self.me(), self.nonce()),
        };
        self.swap_lock(entry.addr, &lock, &undone).await?;
        installed
    }

    /// Reads the body of a lock that is ours now and remembers both.
    async fn install(&self, entry: &Rc<Entry>, lock: Lock, body: Option<&[u8]>) -> Result<()> {
        let at = entry.addr.plus(1);
        if self.cache.borrow().get(at).is_some_and(|known| known.lock != entry.addr) {
            return Err(Error::damaged(at, "it belongs to two objects at once"));
        }
        let meta = match entry.object {
            LockObject::System | LockObject::Journal => None,
            LockObject::Cluster | LockObject::Descriptor => {
                let read;
                let bytes = match body {
                    Some(bytes) => bytes,
                    None => {
                        read = self.io.read(at, 1).await?;
                        &read
                    }
                };
                Some(self.decode_body(entry, &lock, bytes)?)
            }
        };
        if let Some((meta, version)) = meta {
            if let Meta::Cluster(cluster) = &meta {
                self.alloc.borrow_mut().held(cluster);
            }
            self.cache.borrow_mut().put(at, Cached { meta, lock: entry.addr, version });
        }
        entry.held.set(Some(lock));
        Ok(())
    }

    /// Decodes the body of a lock. Under an exclusive holder it must be valid by itself and not
    /// older than the stamp (N32).
    pub(crate) fn decode_body(
        &self,
        entry: &Entry,
        lock: &Lock,
        bytes: &[u8],
    ) -> Result<(Meta, lunfs_format::Version)> {
        let at = entry.addr.plus(1);
        let corrupt = |e| Error::corrupt(at, &e);
        let (meta, version) = if entry.object == LockObject::Cluster {
            let cluster = Cluster::decode(bytes, self.sb.volume, at).map_err(corrupt)?;
            let is_it = self.geometry().cluster_of(entry.addr) == Some(cluster.index)
                && cluster.blocks == self.sb.cluster_blocks;
            if !is_it {
                return Err(Error::damaged(at, "the header of another cluster is here"));
            }
            let version = cluster.version;
            (Meta::Cluster(Rc::new(cluster)), version)
        } else {
            let body = Descriptor::decode(bytes, self.sb.volume, at).map_err(corrupt)?;
            // What lay here before. The lock alone was written when its author died.
            if body.version.birth != lock.generation.birth {
                return Err(Error::damaged(at, "the body of an earlier object is here"));
            }
            if body.kind == FileKind::Void {
                return Err(Error::new(Kind::Stale, format!("the file at {} is gone", entry.addr)));
            }
            let version = body.version;
            (Meta::Descriptor(Rc::new(body)), version)
        };
        if version < lock.stamp.version {
            let seen = lock.stamp.version;
            return Err(Error::damage(format!(
                "block {at} has version {version}, but its lock saw {seen}: a write was lost; \
                 nothing was changed"
            )));
        }
        Ok((meta, version))
    }

    /// Rings for locks at their holder; `false`: the doorbell is full. A full or lost one is tried
    /// again by the caller.
    pub(crate) async fn ring(
        &self,
        holder: Holder,
        locks: &[BlockNo],
        request: Request,
    ) -> Result<bool> {
        let bell = Doorbell {
            state: BellState::Rung,
            request,
            ringer: self.me(),
            target_incarnation: holder.incarnation,
            nonce: self.nonce(),
            locks: locks.to_vec(),
        };
        let prefer = self.me().slot.0 % lunfs_format::DOORBELLS;
        let rung = self.region.ring(&self.io, holder.slot, prefer, &bell).await?;
        self.io.count(|c| c.rings += u64::from(rung));
        Ok(rung)
    }

    /// Looks whether the holder of something we wait for is still alive, and recovers it if not.
    pub(crate) async fn watch(&self, holder: Holder) -> Result<()> {
        let gone = self.io.env.fence.life(holder.slot) == Life::Gone;
        if gone || self.look_is_due(holder.slot) || self.known_incarnation(holder.slot).is_none() {
            self.look_at(holder.slot).await?;
        }
        Ok(())
    }
}
