//! Space: which blocks of the clusters this host holds are free, reserved or in use. `seek` looks
//! for more where there is none left.
//!
//! Invariants:
//! - A block is reserved only in a cluster whose lock this host holds, under a read guard that
//!   lasts until the reservation is committed or dropped: the lock cannot leave meanwhile (Q7).
//! - A block is in use or reserved or quarantined, or free; a freed block leaves quarantine only
//!   when the record that frees it is durable and no in-place write is under way (Q6).

mod seek;

use std::collections::BTreeMap;
use std::rc::Weak;

use lunfs_format::{Bitmap, BlockNo, Cluster, Geometry, Lock, LockObject, RECORD};

use crate::error::{Error, Kind, Result};
use crate::locks::{ReadGuard, Wish, WishKind};
use crate::volume::Volume;

/// Blocks of a cluster that nothing new may use, so that what was accepted can always be written
/// back, and what is there deleted.
const METADATA_RESERVE: u32 = 96;
/// Clusters looked at in one search for a free one.
const SEARCH_MAX: u64 = 4096;
/// Clusters of other hosts whose free space is read again each time it is asked for.
const RENEWED: u64 = 64;
/// Clusters that one extension of the frontier initialises.
const FRONTIER_STEP: u64 = 64;

struct Space {
    /// Which time of holding this cluster it is; frees of an earlier time are in its header
    /// already.
    epoch: u64,
    /// In use, reserved or quarantined.
    busy: Bitmap,
    free: u32,
    /// Where the next search for a whole group begins.
    next: u32,
}

/// Blocks of a group, which is what a file block takes.
const GROUP: u32 = 64;

impl Space {
    /// Where `len` blocks go. What is small goes beside what is small, so that groups of 64 stay
    /// whole for file blocks while many small things come and go.
    fn place(&mut self, len: u32) -> Option<u32> {
        let group = |from| self.busy.find_group(from);
        let whole = || group(self.next).or_else(|| group(0));
        let start = if len < GROUP { self.busy.find_beside(len).or_else(whole) } else { whole() };
        if len >= GROUP {
            self.next = start.map_or(0, |start| start + len);
        }
        start.or_else(|| self.busy.find_run(len, 0))
    }
}

/// What this host knows about free space.
pub struct Allocator {
    geometry: Geometry,
    held: BTreeMap<u64, Space>,
    /// Free blocks of clusters, as last read.
    seen: BTreeMap<u64, u32>,
    current: Option<u64>,
    epochs: u64,
    /// Where the next renewal of what was seen begins.
    renewed: u64,
    /// Where this host begins to look for clusters.
    home: u64,
    /// What the last search in vain was for: a run of so many blocks beside so many free ones.
    missed: (u32, u32),
}

/// Blocks that new contents may take in a cluster with so many free ones.
pub(crate) fn available_of(free: u32) -> u64 {
    u64::from(free.saturating_sub(METADATA_RESERVE))
}

impl Allocator {
    /// Knows nothing yet; hosts of different slots begin at different places.
    pub fn new(geometry: Geometry, slot: u32) -> Allocator {
        let spread = u64::from(slot).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32;
        Allocator {
            geometry,
            held: BTreeMap::new(),
            seen: BTreeMap::new(),
            current: None,
            epochs: 0,
            renewed: 0,
            home: spread,
            missed: (1, 0),
        }
    }

    /// A cluster's lock was taken.
    pub fn held(&mut self, cluster: &Cluster) {
        let free = cluster.bitmap.count_free();
        self.seen.insert(cluster.index, free);
        self.epochs += 1;
        let space = Space { epoch: self.epochs, busy: cluster.bitmap.clone(), free, next: 0 };
        self.held.insert(cluster.index, space);
    }

    /// A cluster's lock was given up.
    pub fn gave(&mut self, lock: BlockNo) {
        if let Some(index) = self.geometry.cluster_of(lock) {
            if let Some(space) = self.held.remove(&index) {
                self.seen.insert(index, space.free);
            }
            if self.current == Some(index) {
                self.current = None;
            }
        }
    }

    /// Blocks free as last seen, and those of them that new contents may take.
    pub fn free_seen(&self) -> (u64, u64) {
        let each = self.seen.iter().map(|(i, free)| self.held.get(i).map_or(*free, |s| s.free));
        each.fold((0, 0), |(free, available), one| {
            (free + u64::from(one), available + available_of(one))
        })
    }

    /// Remembers how many blocks of a cluster were free when it was read.
    pub fn saw(&mut self, index: u64, free: u32) {
        self.seen.insert(index, free);
    }

    /// Remembers that a cluster could not be read, which counts as full; `true`: that is new.
    pub fn could_not_see(&mut self, index: u64) -> bool {
        self.seen.insert(index, 0) != Some(0)
    }

    /// Clusters never read so far, and the next few whose reading is to be renewed.
    pub fn unread(&mut self, initialised: u64) -> Vec<u64> {
        let (from, to) = (self.renewed, self.renewed + RENEWED.min(initialised));
        self.renewed = if initialised == 0 { 0 } else { to % initialised };
        let due = |i: &u64| (from..to).contains(i) || (from..to).contains(&(i + initialised));
        (0..initialised)
            .filter(|i| !self.held.contains_key(i))
            .filter(|i| !self.seen.contains_key(i) || due(i))
            .collect()
    }

    fn take(&mut self, index: u64, len: u32, reserve: u32) -> Option<u32> {
        let space = self.held.get_mut(&index)?;
        if space.free < len + reserve {
            return None;
        }
        let start = space.place(len)?;
        space.busy.set_run(start, len, true);
        space.free -= len;
        Some(start)
    }

    /// The time of holding the cluster of this block.
    pub fn epoch_of(&self, start: BlockNo) -> u64 {
        let index = self.geometry.cluster_of(start);
        index.and_then(|i| self.held.get(&i)).map_or(0, |space| space.epoch)
    }

    /// A freed run whose record is durable may be handed out again. If the cluster was given away
    /// meanwhile and came back, its header had the run free already, and it may be in use again.
    pub fn give_back_freed(&mut self, run: Freed) {
        if self.epoch_of(run.start) == run.epoch {
            self.give_back(run.start, run.len);
        }
    }

    /// Blocks that nobody refers to may be handed out again.
    pub fn give_back(&mut self, start: BlockNo, len: u64) {
        let Some(index) = self.geometry.cluster_of(start) else { return };
        let first = start.0 - self.geometry.cluster_start(index).0;
        if let Some(space) = self.held.get_mut(&index) {
            let (first, len) = (first as u32, len as u32);
            space.busy.set_run(first, len, false);
            space.free += len;
            space.next = space.next.min(first);
        }
    }

    fn order(&self) -> Vec<u64> {
        let first = self.current.into_iter();
        let rest = self.held.keys().copied().filter(|i| Some(*i) != self.current);
        first.chain(rest).collect()
    }
}

/// A run that a transaction freed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Freed {
    /// First block.
    pub start: BlockNo,
    /// Blocks.
    pub len: u64,
    /// Time of holding its cluster when it was freed.
    pub epoch: u64,
}

/// Blocks set aside for one use. Dropped without being committed, they are free again.
pub struct Reservation {
    /// First block.
    pub start: BlockNo,
    /// Blocks.
    pub len: u64,
    /// Version that what is stored there starts above.
    pub birth: u64,
    /// Keeps the cluster's lock here.
    pub guard: ReadGuard,
    volume: Weak<Volume>,
    committed: bool,
}

impl Reservation {
    /// The blocks are in use by a finished transaction.
    pub fn commit(mut self) {
        self.committed = true;
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if !self.committed
            && let Some(volume) = self.volume.upgrade()
        {
            volume.alloc.borrow_mut().give_back(self.start, self.len);
        }
    }
}

/// What the space is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// What somebody asks for and may be refused: contents, files, names, attributes. Leaves a
    /// reserve.
    New,
    /// Metadata that something accepted needs, or something given up: may use the reserve.
    Metadata,
}

impl Volume {
    /// Sets a run of blocks aside, without waiting for another host.
    pub(crate) async fn reserve(&self, len: u32, purpose: Purpose) -> Result<Reservation> {
        let reserve = if purpose == Purpose::New { METADATA_RESERVE } else { 0 };
        loop {
            if let Some(reservation) = self.reserve_held(len, reserve) {
                return self.refuse_known(reservation);
            }
            if !self.take_cluster(len + reserve).await? {
                self.alloc.borrow_mut().missed = (len, reserve);
                return Err(Error::new(Kind::NoSpace, "no run of free blocks is left"));
            }
        }
    }

    /// Refuses space that only a damaged bitmap can call free: this host knows an object there. It
    /// stays set aside as long as the cluster is here, so that the next try goes elsewhere.
    fn refuse_known(&self, reserved: Reservation) -> Result<Reservation> {
        let run = reserved.start..reserved.start.plus(reserved.len);
        let known = self.cache.borrow().first_in(run.clone());
        let Some(known) = known.or_else(|| self.locks.first_held_in(run)) else {
            return Ok(reserved);
        };
        let header = reserved.guard.entry.addr.plus(1);
        reserved.commit();
        let why = format!("block {known} is in use, and the bitmap says that it is free");
        Err(Error::damaged(header, why))
    }

    fn reserve_held(&self, len: u32, reserve: u32) -> Option<Reservation> {
        let order = self.alloc.borrow().order();
        for index in order {
            let lock = self.geometry().cluster_start(index);
            let Some(guard) = self.locks.get(lock).and_then(|e| e.try_read()) else { continue };
            let Some(offset) = self.alloc.borrow_mut().take(index, len, reserve) else { continue };
            self.alloc.borrow_mut().current = Some(index);
            let birth = {
                let cache = self.cache.borrow();
                let header = cache.get(lock.plus(1)).expect("the header of a held cluster");
                header.version.count + 1
            };
            return Some(Reservation {
                start: lock.plus(u64::from(offset)),
                len: u64::from(len),
                birth,
                guard,
                volume: self.weak(),
                committed: false,
            });
        }
        None
    }

    /// Refuses a run that a damaged block names and that no allocation can have given.
    pub(crate) fn check_run(&self, start: BlockNo, len: u64) -> Result<()> {
        let blocks = u64::from(self.sb.cluster_blocks);
        let offset = self
            .geometry()
            .cluster_of(start)
            .map(|index| start.0 - self.geometry().cluster_start(index).0);
        match offset {
            // A cluster's first two blocks are its lock and its header.
            Some(offset) if offset >= 2 && offset.saturating_add(len) <= blocks => Ok(()),
            _ => {
                let what = format!("{len} blocks at {start} are not blocks of a cluster");
                Err(Error::damage(what))
            }
        }
    }

    fn cluster_wish(&self, index: u64) -> Wish {
        let addr = self.geometry().cluster_start(index);
        Wish { addr, birth: 0, kind: WishKind::Cluster }
    }

    /// Takes one more cluster with at least `need` free blocks that nobody holds.
    async fn take_cluster(&self, need: u32) -> Result<bool> {
        let initialised = self.initialised().await?;
        let home = self.alloc.borrow().home;
        for step in 0..initialised.min(SEARCH_MAX) {
            let index = (home + step) % initialised;
            let skip = {
                let alloc = self.alloc.borrow();
                alloc.held.contains_key(&index) || alloc.seen.get(&index).is_some_and(|f| *f < need)
            };
            if skip {
                continue;
            }
            match self.take_if_free(index, need).await {
                Ok(true) => {
                    self.alloc.borrow_mut().current = Some(index);
                    return Ok(true);
                }
                Ok(false) => {}
                // A new host made it its journal behind that look. No file is gone.
                Err(e) if e.kind == Kind::Stale => self.alloc.borrow_mut().saw(index, 0),
                // One bad block is no reason to find no space elsewhere.
                Err(e) if matches!(e.kind, Kind::Io | Kind::Corrupt) => {
                    tracing::warn!(event = "cluster", index, error = %e, "is left alone");
                    self.alloc.borrow_mut().saw(index, 0);
                }
                Err(e) => return Err(e),
            }
        }
        self.extend_frontier(false).await
    }

    async fn take_if_free(&self, index: u64, need: u32) -> Result<bool> {
        Ok(self.looks_free(index, need).await?
            && self.try_take(self.cluster_wish(index)).await?.is_some())
    }

    /// Reads a cluster's header without its lock: a hint.
    async fn looks_free(&self, index: u64, need: u32) -> Result<bool> {
        let Some((lock, cluster)) = self.peek_cluster(index).await? else {
            self.alloc.borrow_mut().saw(index, 0);
            return Ok(false);
        };
        let Some(cluster) = cluster else { return Ok(false) };
        let free = cluster.bitmap.count_free();
        self.alloc.borrow_mut().saw(index, free);
        let held = lock.holder.is_some_and(|h| {
            self.known_incarnation(h.slot).is_none_or(|now| h.incarnation.0 >= now)
        });
        Ok(free >= need && !held)
    }

    /// Lock and header of a cluster for files as they are on the disk: a hint. The header may be
    /// one that cannot be decoded.
    pub(crate) async fn peek_cluster(&self, index: u64) -> Result<Option<(Lock, Option<Cluster>)>> {
        let start = self.geometry().cluster_start(index);
        let (lock, body) = self.read_lock(start).await?;
        let header = || Cluster::decode(&body, self.sb.volume, start.plus(1)).ok();
        Ok(lock.filter(|lock| lock.object == LockObject::Cluster).map(|lock| (lock, header())))
    }

    /// Clusters that were ever initialised.
    pub(crate) async fn initialised(&self) -> Result<u64> {
        let at = lunfs_format::FRONTIER_LOCK;
        let bytes = self.io.read_record(at.offset()).await?;
        let lock = Lock::decode(&bytes[..RECORD], self.sb.volume, at)
            .map_err(|e| Error::corrupt(at, &e))?;
        if lock.payload > self.sb.cluster_count {
            let why = format!("the frontier {} is behind the last cluster", lock.payload);
            return Err(Error::damaged(at, why));
        }
        Ok(lock.payload)
    }

    /// Initialises more clusters under the frontier's lock, held exclusively on this host too: two
    /// tasks that both did it would write over clusters that are in use already. `false`: the
    /// volume has no more, or another host is at it and `wait` is not allowed.
    pub(crate) async fn extend_frontier(&self, wait: bool) -> Result<bool> {
        let at = lunfs_format::FRONTIER_LOCK;
        let wish = Wish { addr: at, birth: 0, kind: WishKind::System };
        let seen = self.initialised().await?;
        if seen >= self.sb.cluster_count {
            return Ok(false);
        }
        let guard = if wait {
            self.hold(wish).await?
        } else {
            match self.try_hold(wish).await? {
                Some(guard) => guard,
                None => return Ok(false),
            }
        };
        let lock = guard.entry.held().expect("just taken");
        let from = lock.payload;
        let to = (from + FRONTIER_STEP).min(self.sb.cluster_count);
        // Another task or host may have been faster: then there is more already.
        if from == seen {
            for index in from..to {
                for (block, bytes) in crate::format::empty_cluster(&self.sb, index) {
                    self.io.write(block, bytes, true).await?;
                }
            }
        }
        // A crash before this leaves clusters initialised that nobody believes in: the next host
        // does it again. Nobody uses them before the frontier says so.
        let payload = if from == seen { to } else { from };
        let raised = Lock { payload, ..lock };
        let none = lunfs_format::Stamp::default();
        let new = crate::lock::released(&raised, self.me().slot, None, none, self.nonce());
        self.swap_held(at, &lock, &new).await?;
        guard.entry.set_held(None);
        Ok(payload > seen)
    }

    /// Writes back the files that have space reserved in this cluster; `false`: not all could be.
    pub(crate) async fn write_back_users(&self, cluster: BlockNo) -> Result<bool> {
        let users: Vec<_> = self
            .inodes
            .borrow()
            .values()
            .filter(|inode| inode.reserves_in(cluster))
            .map(|inode| inode.id)
            .collect();
        let mut all = true;
        for id in users {
            match self.write_back_id(id).await {
                Err(e) if e.kind == Kind::Stopped => return Err(e),
                done => all &= done.is_ok(),
            }
        }
        Ok(all)
    }
}

#[cfg(test)]
mod tests {
    use lunfs_format::Sizes;

    use super::*;

    const BLOCKS: u32 = 8192;

    fn one_cluster() -> Allocator {
        let small = Sizes { cluster_blocks: Some(BLOCKS), ..Sizes::default() };
        let geometry = Geometry::plan(1 << 32, 512, small).expect("fits");
        let mut alloc = Allocator::new(geometry, 0);
        alloc.held(&Cluster::new(0, BLOCKS));
        alloc
    }

    /// S25: large and small files of a busy volume come and go at four fifths full. When small runs
    /// went wherever the last search had ended, one file block of fourteen found no place though a
    /// fifth of the volume was free.
    #[test]
    fn what_is_small_leaves_whole_groups_to_file_blocks() {
        let mut alloc = one_cluster();
        let mut there: Vec<(u32, u32)> = Vec::new();
        let (mut dice, mut tried, mut refused) = (0x9E37_79B9_7F4A_7C15_u64, 0, 0);
        let mut roll = |below: u32| {
            dice ^= dice << 13;
            dice ^= dice >> 7;
            dice ^= dice << 17;
            (dice % u64::from(below)) as u32
        };
        for _ in 0..200_000 {
            let used = BLOCKS - alloc.free_seen().0 as u32;
            if used < BLOCKS / 5 * 4 {
                let large = roll(8) == 0;
                let len = if large { 64 } else { 1 + roll(8) };
                tried += u32::from(large);
                match alloc.take(0, len, 0) {
                    Some(start) => there.push((start, len)),
                    None => refused += u32::from(large),
                }
            } else {
                let (start, len) = there.swap_remove(roll(there.len() as u32) as usize);
                let first = alloc.geometry.cluster_start(0);
                alloc.give_back(first.plus(u64::from(start)), u64::from(len));
            }
        }
        assert!(refused * 1000 < tried, "{refused} of {tried} file blocks found no place");
    }
}
