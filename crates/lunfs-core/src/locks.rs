//! The locks this host knows: their table, the guards of tasks, what operations wish for.
//!
//! | module | what it holds |
//! |---|---|
//! | `take` | taking a lock, guards, asking other hosts |
//! | `release` | giving locks up: on request, or because they are idle |
//!
//! Invariants:
//! - An entry is one object: another birth at the same address is another entry.
//! - An entry without a held lock covers nothing; its guards only order tasks of this host.
//! - Guards are granted first come first served, so a request to release waits only for
//!   operations that began before it.

mod release;
mod take;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use lunfs_format::{
    BLOCK, BlockNo, Lock, LockObject, RECORD, Stamp, VolumeId, kind, kind_of, peek_header,
    stored_checksum,
};
use tokio::sync::{OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock};

use crate::env::Instant;
use crate::error::{Error, Result};
use crate::io::Settled;
use crate::types::FileId;
use crate::volume::Volume;

/// How long a lock that another host's readers asked for is read without taking it.
const CONTENDED: Duration = Duration::from_secs(3);
/// Idle locks near a requested one that are released together with it.
const NEIGHBOURS_MAX: usize = 192;

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

impl WriteGuard {
    /// Leave to read only, without a moment in between.
    pub fn downgrade(self) -> ReadGuard {
        ReadGuard { entry: self.entry, _guard: self._guard.downgrade() }
    }
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

    /// The entry of the lock that is meant.
    pub fn exactly(&self, wish: Wish) -> Option<Rc<Entry>> {
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

    /// The first held lock of a range.
    pub fn first_held_in(&self, range: std::ops::Range<BlockNo>) -> Option<BlockNo> {
        let entries = self.entries.borrow();
        let mut inside = entries.range((range.start, 0)..(range.end, 0)).map(|(_, e)| e);
        inside.find(|e| e.held.get().is_some()).map(|e| e.addr)
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

impl Volume {
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
        Ok((lock, bytes[BLOCK..].to_vec()))
    }

    /// The same of an object that may be gone. `None`: something else is here, because the object
    /// was deleted and its place serves again. A lock that is damaged is not that: whoever took it
    /// for a deleted file would answer "gone", or leave an orphan where it is.
    pub(crate) async fn read_object(&self, addr: BlockNo) -> Result<(Option<Lock>, Vec<u8>)> {
        let bytes = self.io.read(addr, 2).await?;
        let lock = match Lock::decode(&bytes[..RECORD], self.sb.volume, addr) {
            Ok(lock) => Some(lock),
            Err(why) if is_damaged(&bytes, self.sb.volume, addr) => {
                return Err(Error::corrupt(addr, &why));
            }
            Err(_) => None,
        };
        Ok((lock, bytes[BLOCK..].to_vec()))
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
}

/// Is this a lock that says nothing any more, or what belongs elsewhere on this volume? A lock is
/// never torn. Without its magic, or with another volume's name, it may be what a guest stores.
fn is_damaged(bytes: &[u8], volume: VolumeId, addr: BlockNo) -> bool {
    match peek_header(bytes) {
        Ok(header) if header.volume != volume => false,
        Ok(header) => header.kind == kind::LOCK || header.address != addr.0,
        Err(_) => kind_of(bytes) == Some(kind::LOCK),
    }
}

/// Is this body the one that the stamp describes?
pub fn stamp_matches(stamp: &Stamp, body: &[u8]) -> bool {
    peek_header(body).is_ok_and(|h| h.version == stamp.version)
        && stored_checksum(body) == stamp.checksum
}
