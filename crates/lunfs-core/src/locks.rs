//! The locks this host holds: acquiring, keeping, asking for and handing over.
//!
//! Invariants:
//! - R6: a lock is given up only after its operations drained, its file's pending changes and the
//!   journal are durable, what it covers is in place, and the device was flushed.
//! - While a task waits for a lock that another host holds, it holds no other guard, or only guards
//!   of files without pending changes, taken in address order: no circle of hosts can wait.
//! - Guards are granted first come first served, so a request to release waits only for
//!   operations that began before it.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{join, join_all};
use lunfs_format::{
    BellState, BlockNo, Cluster, Descriptor, Doorbell, FileKind, Holder, Lock, LockObject, RECORD,
    Request, Stamp, stored_checksum,
};
use tokio::sync::{OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock};

use crate::env::{Instant, Life};
use crate::error::{Error, Kind, Result};
use crate::io::Settled;
use crate::lock::{Judged, acquired, judge, released, voided};
use crate::meta::{Cached, Meta};
use crate::types::FileId;
use crate::volume::Volume;

/// A ring that was not followed by a change of the lock is repeated after this time.
const RING_AGAIN: Duration = Duration::from_millis(400);
/// How long a lock that another host's readers asked for is read without taking it.
const CONTENDED: Duration = Duration::from_secs(3);
/// Shortest and longest pause between two looks at a lock that is waited for.
const POLL: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(15));
/// Idle locks near a requested one that are released together with it.
const NEIGHBOURS_MAX: usize = 192;
/// Misses after which several locks are taken in order, waiting.
const MISSES_MAX: u32 = 4;

/// A lock as this host knows it.
pub struct Entry {
    /// Its address.
    pub addr: BlockNo,
    /// Birth of the object; a lock of another birth is another object's.
    pub birth: u64,
    /// What it covers.
    pub object: LockObject,
    rw: Arc<RwLock<()>>,
    held: Cell<Option<Lock>>,
    contended_until: Cell<Instant>,
    used: Cell<Instant>,
}

impl Entry {
    /// The image on disk while this host holds it.
    pub fn held(&self) -> Option<Lock> {
        self.held.get()
    }

    /// Remembers that this host holds it, or no longer does.
    pub fn set_held(&self, lock: Option<Lock>) {
        self.held.set(lock);
    }

    /// A read guard if nobody waits to change or release the object.
    pub fn try_read(self: &Rc<Self>) -> Option<ReadGuard> {
        let guard = self.rw.clone().try_read_owned().ok()?;
        self.held.get()?;
        Some(ReadGuard { entry: self.clone(), _guard: guard })
    }
}

/// Leave to read the object while this host holds its lock.
pub struct ReadGuard {
    /// The lock.
    pub entry: Rc<Entry>,
    _guard: OwnedRwLockReadGuard<()>,
}

/// Leave to change the object.
pub struct WriteGuard {
    /// The lock.
    pub entry: Rc<Entry>,
    _guard: OwnedRwLockWriteGuard<()>,
}

/// All locks that this host knows.
#[derive(Default)]
pub struct Locks {
    /// By address and birth: a stale handle never gets the entry of the file that is there now.
    entries: RefCell<BTreeMap<(BlockNo, u64), Rc<Entry>>>,
}

impl Locks {
    /// The entry of this lock, made if need be.
    pub fn entry(&self, addr: BlockNo, birth: u64, object: LockObject) -> Rc<Entry> {
        let mut entries = self.entries.borrow_mut();
        if let Some(entry) = entries.get(&(addr, birth)) {
            return entry.clone();
        }
        let entry = Rc::new(Entry {
            addr,
            birth,
            object,
            rw: Arc::new(RwLock::new(())),
            held: Cell::new(None),
            contended_until: Cell::new(Instant(0)),
            used: Cell::new(Instant(0)),
        });
        entries.insert((addr, birth), entry.clone());
        entry
    }

    /// The entry of the lock at this address that is held, or else any.
    pub fn get(&self, addr: BlockNo) -> Option<Rc<Entry>> {
        let entries = self.entries.borrow();
        let mut here = entries.range((addr, 0)..=(addr, u64::MAX)).map(|(_, e)| e);
        here.clone().find(|e| e.held.get().is_some()).or_else(|| here.next()).cloned()
    }

    fn exactly(&self, wish: Wish) -> Option<Rc<Entry>> {
        self.entries.borrow().get(&(wish.addr, wish.birth)).cloned()
    }

    fn is_known(&self, entry: &Rc<Entry>) -> bool {
        let entries = self.entries.borrow();
        entries.get(&(entry.addr, entry.birth)).is_some_and(|now| Rc::ptr_eq(now, entry))
    }

    /// Generation at which this host holds the lock.
    pub fn generation(&self, addr: BlockNo) -> Option<lunfs_format::Version> {
        Some(self.get(addr)?.held.get()?.generation)
    }

    /// Forgets a lock whose object is gone.
    pub fn forget(&self, addr: BlockNo) {
        self.entries.borrow_mut().retain(|(at, _), _| *at != addr);
    }

    /// All held locks.
    pub fn held(&self) -> Vec<Rc<Entry>> {
        self.entries.borrow().values().filter(|e| e.held.get().is_some()).cloned().collect()
    }

    /// Forgets entries that nobody uses and this host does not hold.
    pub fn trim(&self) {
        self.entries.borrow_mut().retain(|_, e| e.held.get().is_some() || Rc::strong_count(e) > 1);
    }

    /// Held descriptor locks near `addr`, within `span` blocks, that nobody uses now.
    fn neighbours(&self, addr: BlockNo, span: u64) -> Vec<Rc<Entry>> {
        let from = BlockNo(addr.0.saturating_sub(span));
        self.entries
            .borrow()
            .range((from, 0)..=(addr.plus(span), u64::MAX))
            .map(|(_, e)| e)
            .filter(|e| e.addr != addr && e.held.get().is_some())
            .filter(|e| e.object == LockObject::Descriptor && Rc::strong_count(e) == 1)
            .take(NEIGHBOURS_MAX)
            .cloned()
            .collect()
    }

    /// The held descriptor locks that were not used for longest.
    pub fn idle(&self, count: usize) -> Vec<Rc<Entry>> {
        let mut idle: Vec<Rc<Entry>> = self
            .entries
            .borrow()
            .values()
            .filter(|e| e.held.get().is_some() && e.object == LockObject::Descriptor)
            .filter(|e| Rc::strong_count(e) == 1)
            .cloned()
            .collect();
        idle.sort_by_key(|e| e.used.get());
        idle.truncate(count);
        idle
    }
}

/// Which lock an operation wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Wish {
    /// Its address.
    pub addr: BlockNo,
    /// Birth of the object that is meant.
    pub birth: u64,
    /// What it covers.
    pub kind: WishKind,
}

/// What a wished lock covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum WishKind {
    /// A file.
    Descriptor,
    /// A cluster.
    Cluster,
    /// Nothing on disk: the lock itself is all.
    System,
}

impl From<FileId> for Wish {
    fn from(id: FileId) -> Wish {
        Wish { addr: id.addr, birth: id.birth, kind: WishKind::Descriptor }
    }
}

impl Wish {
    fn object(self) -> LockObject {
        match self.kind {
            WishKind::Descriptor => LockObject::Descriptor,
            WishKind::Cluster => LockObject::Cluster,
            WishKind::System => LockObject::System,
        }
    }
}

/// What reading a lock that we may not have found.
enum Attempt {
    Done,
    Again,
    HeldBy(Holder),
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
                Attempt::Again | Attempt::HeldBy(_) => return Ok(None),
            }
        }
        entry.used.set(self.now());
        Ok(Some(ReadGuard { entry: entry.clone(), _guard: guard.downgrade() }))
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
                Attempt::HeldBy(_) => return Ok(None),
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

    /// Makes a lock that this host has just initialised on disk known as held.
    pub(crate) fn adopt_new(&self, addr: BlockNo, lock: Lock) {
        self.locks.forget(addr);
        let entry = self.locks.entry(addr, lock.generation.birth, lock.object);
        entry.held.set(Some(lock));
        entry.used.set(self.now());
    }

    /// Should the object be read without taking its lock, because readers of several hosts use it?
    pub(crate) fn is_contended(&self, addr: BlockNo) -> bool {
        self.locks.get(addr).is_some_and(|e| self.now() < e.contended_until.get())
    }

    fn mark_contended(&self, entry: &Entry) {
        entry.contended_until.set(self.now() + CONTENDED);
    }

    /// Reads lock and body with one read.
    pub(crate) async fn read_lock(&self, addr: BlockNo) -> Result<(Option<Lock>, Vec<u8>)> {
        let bytes = self.io.read(addr, 2).await?;
        let lock = Lock::decode(&bytes[..RECORD], self.sb.volume, addr).ok();
        Ok((lock, bytes[lunfs_format::BLOCK..].to_vec()))
    }

    /// Takes the lock on disk; the caller has the write guard.
    async fn acquire(&self, entry: &Rc<Entry>) -> Result<()> {
        let mut rung: Option<(Holder, Instant)> = None;
        let mut pause = POLL.0;
        loop {
            let holder = match self.attempt(entry).await? {
                Attempt::Done => return Ok(()),
                Attempt::Again => {
                    self.sleep_about(POLL.0).await;
                    continue;
                }
                Attempt::HeldBy(holder) => holder,
            };
            let ring = rung.is_none_or(|(h, at)| h != holder || self.now().since(at) > RING_AGAIN);
            if ring {
                self.ring(holder, &[entry.addr], Request::HandOver).await?;
                rung = Some((holder, self.now()));
                pause = POLL.0;
            }
            self.watch(holder).await?;
            self.sleep_about(pause).await;
            pause = (pause * 3 / 2).min(POLL.1);
        }
    }

    /// Waits until a live holder lets go of an object that we only want to read.
    pub(crate) async fn ask_to_read(&self, wish: Wish, holder: Holder) -> Result<()> {
        let entry = self.locks.entry(wish.addr, wish.birth, wish.object());
        self.mark_contended(&entry);
        self.ring(holder, &[wish.addr], Request::LetGo).await?;
        let mut pause = POLL.0;
        let end = self.now() + RING_AGAIN;
        while self.now() < end {
            self.sleep_about(pause).await;
            pause = (pause * 3 / 2).min(POLL.1);
            let (lock, _) = self.read_lock(wish.addr).await?;
            let judged = lock.map(|l| judge(&l, self.me(), |slot| self.known_incarnation(slot)));
            // A holder that was recovered meanwhile stays named: its lock is stale.
            if judged != Some(Judged::Held(holder)) {
                return Ok(());
            }
            self.watch(holder).await?;
        }
        Ok(())
    }

    async fn attempt(&self, entry: &Rc<Entry>) -> Result<Attempt> {
        let (lock, body) = self.read_lock(entry.addr).await?;
        let gone = || Error::new(Kind::Stale, format!("no lock of this file at {}", entry.addr));
        let lock = lock.ok_or_else(gone)?;
        if lock.generation.birth != entry.birth || lock.object != entry.object {
            return Err(gone());
        }
        match judge(&lock, self.me(), |slot| self.known_incarnation(slot)) {
            Judged::Free => self.take(entry, &lock, &body, false).await,
            Judged::Stale(_) => self.take(entry, &lock, &body, true).await,
            Judged::Ours => {
                // Handed to us by name, or a compare-and-write of ours landed late (H4).
                self.install_or_void(entry, lock, None).await?;
                Ok(Attempt::Done)
            }
            Judged::Held(holder) => Ok(Attempt::HeldBy(holder)),
            Judged::Gone => Err(gone()),
            Judged::Unsupported => Err(Error::new(
                Kind::Unsupported,
                format!("lock {} is in mode {:?}; a newer lunfs is needed", entry.addr, lock.mode),
            )),
        }
    }

    async fn take(
        &self,
        entry: &Rc<Entry>,
        lock: &Lock,
        body: &[u8],
        stale: bool,
    ) -> Result<Attempt> {
        let mine = acquired(lock, self.me(), self.nonce());
        let won = self.swap_lock(entry.addr, lock, &mine).await?;
        let Settled::Won = won else { return Ok(Attempt::Again) };
        self.io.count(|c| {
            c.locks_acquired += 1;
            c.locks_stale += u64::from(stale);
        });
        // The compare-and-write compared the very image that was read beside this body: if the
        // stamp binds and matches, the body is current.
        let body = (!stale && stamp_matches(&lock.stamp, body)).then_some(body);
        self.install_or_void(entry, mine, body).await?;
        Ok(Attempt::Done)
    }

    pub(crate) async fn swap_lock(&self, addr: BlockNo, old: &Lock, new: &Lock) -> Result<Settled> {
        self.io
            .compare_and_write(
                addr.offset(),
                &old.encode(self.sb.volume, addr),
                &new.encode(self.sb.volume, addr),
            )
            .await
    }

    /// A lock over a void body: its holder died while it deleted the object. We finish that, or
    /// nobody could ever take the lock from us again.
    async fn install_or_void(
        &self,
        entry: &Rc<Entry>,
        lock: Lock,
        body: Option<&[u8]>,
    ) -> Result<()> {
        let installed = self.install(entry, lock, body).await;
        if installed.as_ref().is_err_and(|e| e.kind == Kind::Stale) {
            self.swap_lock(entry.addr, &lock, &voided(&lock, self.nonce())).await?;
        }
        installed
    }

    /// Reads the body of a lock that is ours now and remembers both.
    async fn install(&self, entry: &Rc<Entry>, lock: Lock, body: Option<&[u8]>) -> Result<()> {
        let at = entry.addr.plus(1);
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
            let version = cluster.version;
            (Meta::Cluster(Rc::new(cluster)), version)
        } else {
            let body = Descriptor::decode(bytes, self.sb.volume, at).map_err(corrupt)?;
            if body.kind == FileKind::Void {
                return Err(Error::new(Kind::Stale, format!("the file at {} is gone", entry.addr)));
            }
            let version = body.version;
            (Meta::Descriptor(Rc::new(body)), version)
        };
        if version < lock.stamp.version {
            return Err(Error::new(
                Kind::Corrupt,
                format!(
                    "block {at} has version {version}, but its lock saw {}: a write was lost; \
                     nothing was changed, run `lunfs check`",
                    lock.stamp.version
                ),
            ));
        }
        Ok((meta, version))
    }

    /// Rings for locks at their holder. A full or lost doorbell is tried again by the caller.
    async fn ring(&self, holder: Holder, locks: &[BlockNo], request: Request) -> Result<()> {
        let bell = Doorbell {
            state: BellState::Rung,
            request,
            ringer: self.me(),
            target_incarnation: holder.incarnation,
            nonce: self.nonce(),
            locks: locks.to_vec(),
        };
        let prefer = self.me().slot.0 % lunfs_format::DOORBELLS;
        if self.region.ring(&self.io, holder.slot, prefer, &bell).await? {
            self.io.count(|c| c.rings += 1);
        }
        Ok(())
    }

    /// Looks whether the holder of something we wait for is still alive, and recovers it if not.
    async fn watch(&self, holder: Holder) -> Result<()> {
        let gone = self.io.env.fence.life(holder.slot) == Life::Gone;
        if gone || self.look_is_due(holder.slot) || self.known_incarnation(holder.slot).is_none() {
            self.look_at(holder.slot).await?;
        }
        Ok(())
    }

    /// Serves one request from the doorbell: hands over or lets go what we hold.
    pub(crate) async fn serve_bell(&self, bell: Doorbell) -> Result<()> {
        self.io.count(|c| c.rings_served += 1);
        for addr in &bell.locks {
            let entry = match self.locks.get(*addr) {
                Some(entry) if entry.held.get().is_some() => entry,
                Some(_) | None => match self.unknown_but_ours(*addr).await? {
                    Some(entry) => entry,
                    None => continue,
                },
            };
            let successor = match bell.request {
                Request::HandOver => Some(bell.ringer),
                Request::LetGo => {
                    self.mark_contended(&entry);
                    None
                }
            };
            self.release(&entry, successor).await?;
        }
        Ok(())
    }

    /// A lock that names us on disk though we do not know it is released on request (H4).
    async fn unknown_but_ours(&self, addr: BlockNo) -> Result<Option<Rc<Entry>>> {
        let (lock, _) = self.read_lock(addr).await?;
        let Some(lock) = lock.filter(|l| l.holder == Some(self.me())) else { return Ok(None) };
        let kind = match lock.object {
            LockObject::Cluster => WishKind::Cluster,
            LockObject::Descriptor => WishKind::Descriptor,
            LockObject::System => WishKind::System,
            LockObject::Journal => return Ok(None),
        };
        let wish = Wish { addr, birth: lock.generation.birth, kind };
        match self.hold(wish).await {
            Ok(guard) => Ok(Some(guard.entry)),
            Err(e) if e.kind == Kind::Stopped => Err(e),
            Err(_) => Ok(None),
        }
    }

    /// Gives a lock up, to `successor` or to nobody, with its idle neighbours to nobody.
    pub(crate) async fn release(&self, entry: &Rc<Entry>, successor: Option<Holder>) -> Result<()> {
        let guard = if entry.object == LockObject::Cluster {
            // The guard is asked for first: nobody reserves space here from now on. It is granted
            // once the files that did have written their maps back (Q7).
            let wanted = entry.rw.clone().write_owned();
            let (guard, written) = join(wanted, self.write_back_users(entry.addr)).await;
            written?;
            guard
        } else {
            entry.rw.clone().write_owned().await
        };
        if entry.held.get().is_none() {
            return Ok(());
        }
        let mut batch = vec![(WriteGuard { entry: entry.clone(), _guard: guard }, successor)];
        if entry.object == LockObject::Descriptor {
            let near = self.locks.neighbours(entry.addr, u64::from(self.sb.cluster_blocks));
            for neighbour in near {
                if let Ok(guard) = neighbour.rw.clone().try_write_owned() {
                    batch.push((WriteGuard { entry: neighbour, _guard: guard }, None));
                }
            }
        }
        self.release_all(batch).await
    }

    /// Releases idle locks so that memory stays bounded.
    pub(crate) async fn release_idle(&self, count: usize) -> Result<()> {
        let batch: Vec<_> = self
            .locks
            .idle(count)
            .into_iter()
            .filter(|e| !self.is_kept(e.addr))
            .filter_map(|entry| {
                let guard = entry.rw.clone().try_write_owned().ok()?;
                Some((WriteGuard { entry, _guard: guard }, None))
            })
            .collect();
        self.release_all(batch).await?;
        self.locks.trim();
        Ok(())
    }

    /// R6 for several locks at once: the caller's guards say that their operations drained.
    async fn release_all(&self, mut batch: Vec<(WriteGuard, Option<Holder>)>) -> Result<()> {
        let mut locks = BTreeSet::new();
        let mut failed = Ok(());
        let mut ready = Vec::new();
        for (guard, successor) in batch.drain(..) {
            let written = match guard.entry.object {
                LockObject::Descriptor => self.write_back(&guard).await,
                LockObject::Cluster | LockObject::Journal | LockObject::System => Ok(()),
            };
            match written {
                Ok(()) => {
                    locks.insert(guard.entry.addr);
                    ready.push((guard, successor));
                }
                // One file that cannot be written back keeps its own lock, not its neighbours'.
                Err(e) => failed = failed.and(Err(e)),
            }
        }
        let batch = ready;
        self.journal().commit(&self.io).await?;
        self.journal().place_locks(&self.io, &locks).await?;
        // A crash before the next write leaves the lock ours and stale: replay finds all of it in
        // place. After it the next holder finds the body in place and flushed.
        let jobs = batch.iter().map(|(guard, successor)| self.give(&guard.entry, *successor));
        for answer in join_all(jobs).await {
            answer?;
        }
        failed
    }

    async fn give(&self, entry: &Rc<Entry>, successor: Option<Holder>) -> Result<()> {
        let Some(lock) = entry.held.get() else { return Ok(()) };
        let stamp = {
            let cache = self.cache.borrow();
            cache.get(entry.addr.plus(1)).map_or(Stamp::default(), |cached| Stamp {
                version: cached.version,
                checksum: stored_checksum(&cached.encode(self.sb.volume, entry.addr.plus(1))[..]),
            })
        };
        let new = released(&lock, self.me().slot, successor, stamp, self.nonce());
        self.swap_lock(entry.addr, &lock, &new).await?;
        entry.held.set(None);
        self.cache.borrow_mut().forget_lock(entry.addr);
        if entry.object == LockObject::Cluster {
            self.alloc.borrow_mut().gave(entry.addr);
        }
        self.io.count(|c| {
            c.locks_released += 1;
            c.handovers += u64::from(successor.is_some());
        });
        Ok(())
    }
}

/// Is this body the one that the stamp describes?
pub fn stamp_matches(stamp: &Stamp, body: &[u8]) -> bool {
    lunfs_format::peek_header(body).is_ok_and(|h| h.version == stamp.version)
        && stored_checksum(body) == stamp.checksum
}
