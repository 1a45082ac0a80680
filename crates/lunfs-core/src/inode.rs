//! What this host knows of a file beyond its cached blocks: open handles, and changes that are
//! not in a transaction yet.
//!
//! Invariants:
//! - R10: a map entry reaches a transaction only after the data it points to was written and a
//!   flush that began later ended. Until then it is a delta here.
//! - Pending changes exist only while the file's lock is held; releasing it writes them back (R6).

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use lunfs_format::{BlockNo, Content, Descriptor, MapEntry, Tree};

use crate::allocate::{Purpose, Reservation};
use crate::data::FILE_BLOCK;
use crate::error::{Error, Result};
use crate::locks::{Wish, WriteGuard};
use crate::tree;
use crate::types::FileId;
use crate::view::MAP_INLINE;
use crate::volume::Volume;

/// Deltas that one transaction carries at most.
const DELTAS_MAX: usize = 48;
/// Images for which one delta asks room in the journal. Where each changes a path of its own, fewer
/// go into one transaction.
const IMAGES_PER_DELTA: u64 = 3;

/// A changed map entry whose data may not be durable yet.
pub struct Delta {
    /// The entry as it will be.
    pub entry: MapEntry,
    /// Space it uses that no transaction knows.
    pub reserved: Option<Reservation>,
    /// Runs it gives up.
    pub replaced: Vec<(BlockNo, u64)>,
    /// Flushes begun when its data was complete.
    pub complete: u64,
}

impl Delta {
    /// Blocks that the file has more once it is in a transaction.
    pub fn growth(&self) -> i64 {
        let reserved = self.reserved.as_ref().map_or(0, |reserved| reserved.len as i64);
        reserved - self.replaced.iter().map(|(_, len)| *len as i64).sum::<i64>()
    }
}

/// Changes that are not in a transaction yet.
pub struct Pending {
    /// The body as it will be, but for the map.
    pub body: Descriptor,
    /// Changed map entries by file block.
    pub deltas: BTreeMap<u64, Delta>,
}

/// A file that this host uses.
pub struct Inode {
    /// The file.
    pub id: FileId,
    /// Open handles on this host.
    pub opens: Cell<u32>,
    /// Flushes begun when data was last written.
    pub written: Cell<Option<u64>>,
    /// Of a disk: the top that this host last used.
    pub top: Cell<Option<FileId>>,
    /// Its last name is gone; its space goes with the last handle.
    pub unlinked: Cell<bool>,
    /// Changes that are not in a transaction yet.
    pub pending: RefCell<Option<Pending>>,
}

impl Inode {
    /// Does it have space reserved in the cluster with this lock?
    pub fn reserves_in(&self, cluster: BlockNo) -> bool {
        self.pending.borrow().as_ref().is_some_and(|p| {
            p.deltas
                .values()
                .filter_map(|d| d.reserved.as_ref())
                .any(|r| r.guard.entry.addr == cluster)
        })
    }

    /// Blocks that it has more than its body says.
    pub fn growth(&self) -> i64 {
        let pending = self.pending.borrow();
        pending.as_ref().map_or(0, |p| p.deltas.values().map(Delta::growth).sum())
    }

    /// Are there changes that no transaction has?
    pub fn is_dirty(&self) -> bool {
        self.pending.borrow().is_some()
    }

    /// Changes the pending body, which starts as `current`.
    pub fn change<T>(
        &self,
        current: impl FnOnce() -> Descriptor,
        f: impl FnOnce(&mut Pending) -> T,
    ) -> T {
        let mut pending = self.pending.borrow_mut();
        let pending =
            pending.get_or_insert_with(|| Pending { body: current(), deltas: BTreeMap::new() });
        f(pending)
    }
}

impl Volume {
    /// The file's entry among those in use.
    pub(crate) fn inode(&self, id: FileId) -> Rc<Inode> {
        self.inodes
            .borrow_mut()
            .entry(id)
            .or_insert_with(|| {
                Rc::new(Inode {
                    id,
                    opens: Cell::new(0),
                    written: Cell::new(None),
                    top: Cell::new(None),
                    unlinked: Cell::new(false),
                    pending: RefCell::new(None),
                })
            })
            .clone()
    }

    /// Forgets files that nobody has open and that have nothing pending.
    pub(crate) fn trim_inodes(&self) {
        // Data that was overwritten in place leaves no delta: fsync must still flush it.
        let is_needed = |inode: &Rc<Inode>| {
            let unflushed = inode.written.get().is_some_and(|w| !self.io.is_flushed_after(w));
            unflushed || inode.opens.get() > 0 || inode.is_dirty() || Rc::strong_count(inode) > 1
        };
        let mut inodes = self.inodes.borrow_mut();
        let needed: BTreeSet<FileId> =
            inodes.values().filter(|inode| is_needed(inode)).map(|inode| inode.id).collect();
        // A disk leads to what is pending of its top.
        inodes.retain(|id, inode| {
            needed.contains(id) || inode.top.get().is_some_and(|top| needed.contains(&top))
        });
    }

    /// The body with pending changes, of a file whose lock this host holds.
    pub(crate) fn current(&self, id: FileId) -> Descriptor {
        if let Some(inode) = self.inodes.borrow().get(&id)
            && let Some(pending) = inode.pending.borrow().as_ref()
        {
            return pending.body.clone();
        }
        self.cached_descriptor(id.addr)
    }

    /// A flush shared by all who ask while it waits its turn. Returns once a flush that began after
    /// `complete` flushes had begun is over.
    pub(crate) async fn flush_data(&self, complete: u64) -> Result<()> {
        let _turn = self.flushing.lock().await;
        self.io.flush_after(complete).await
    }

    /// Writes back the pending changes of a file.
    pub(crate) async fn write_back_id(&self, id: FileId) -> Result<()> {
        match self.hold_dirty(id).await? {
            Some(guard) => self.write_back(&guard).await,
            None => Ok(()),
        }
    }

    /// The guard of a file with pending changes; `None`: it has none.
    pub(crate) async fn hold_dirty(&self, id: FileId) -> Result<Option<WriteGuard>> {
        if !self.inodes.borrow().get(&id).is_some_and(|i| i.is_dirty()) {
            return Ok(None);
        }
        self.hold(Wish::from(id)).await.map(Some)
    }

    /// Writes back the pending changes of a file whose guard the caller has: flush, then one or
    /// more transactions.
    pub(crate) async fn write_back(&self, guard: &WriteGuard) -> Result<()> {
        let id = FileId { addr: guard.entry.addr, birth: guard.entry.birth };
        let Some(inode) = self.inodes.borrow().get(&id).cloned() else { return Ok(()) };
        let newest = {
            let pending = inode.pending.borrow();
            let Some(pending) = pending.as_ref() else { return Ok(()) };
            // A size that grows within a grain brings no delta, but zeroes or data below it: they
            // must be there when the record with the new size is durable.
            let grows = pending.body.size > self.cached_descriptor(id.addr).size;
            let below = inode.written.get().filter(|_| grows);
            pending.deltas.values().map(|d| d.complete).max().max(below)
        };
        if let Some(complete) = newest {
            // A crash before this flush ends may lose the data, but no record points to it yet
            // (R10).
            self.flush_data(complete).await?;
        }
        while self.write_back_some(&inode).await? {}
        Ok(())
    }

    /// One transaction of deltas; the last one carries the body. `true`: more are left.
    async fn write_back_some(&self, inode: &Inode) -> Result<bool> {
        let deltas = {
            let mut pending = inode.pending.borrow_mut();
            let Some(p) = pending.as_mut() else { return Ok(false) };
            let keys: Vec<u64> = p.deltas.keys().take(DELTAS_MAX).copied().collect();
            keys.iter().filter_map(|k| Some((*k, p.deltas.remove(k)?))).collect()
        };
        match self.log_deltas(inode, deltas).await {
            Ok(more) => Ok(more),
            Err((deltas, e)) => {
                // What could not be logged stays pending; its space stays reserved.
                put_back(inode, deltas);
                Err(e)
            }
        }
    }

    /// Logs as many of these deltas as one transaction has room for. `true`: more are left.
    async fn log_deltas(
        &self,
        inode: &Inode,
        mut deltas: Vec<(u64, Delta)>,
    ) -> std::result::Result<bool, (Vec<(u64, Delta)>, Error)> {
        let lock = inode.id.addr;
        let images = IMAGES_PER_DELTA * deltas.len() as u64 + 8;
        let mut tx = match self.begin(images, Purpose::Metadata).await {
            Ok(tx) => tx,
            Err(e) => return Err((deltas, e)),
        };
        let mut map = match inode.pending.borrow().as_ref().map(|p| p.body.content.clone()) {
            Some(Content::Tree(map)) => map,
            Some(Content::Empty | Content::Bytes(_)) | None => Tree::Empty,
        };
        let mut nodes = 0;
        let mut logged = 0;
        let mut headers = BTreeSet::new();
        for (index, delta) in &deltas {
            let runs = delta.reserved.iter().map(|r| r.start);
            let runs = runs.chain(delta.replaced.iter().map(|(start, _)| *start));
            headers.extend(runs.filter_map(|start| self.geometry().cluster_of(start)));
            // Entries far apart in a large map each change a path of their own.
            let worst = headers.len() as u64 + tree::NODES_TOUCHED_MAX as u64;
            if logged > 0 && !tx.has_room(worst) {
                break;
            }
            let mut store = tx.tree(lock);
            let key = index.to_be_bytes();
            let done = if delta.entry == EMPTY_ENTRY {
                tree::remove(&mut store, &mut map, MAP_INLINE, &key).await
            } else {
                let value = delta.entry.encode();
                tree::insert(&mut store, &mut map, MAP_INLINE, &key, &value).await
            };
            nodes += store.nodes;
            if let Err(e) = done {
                return Err((deltas, e));
            }
            logged += 1;
        }
        put_back(inode, deltas.split_off(logged));
        let blocks = nodes + deltas.iter().map(|(_, delta)| delta.growth()).sum::<i64>();
        let (body, more) = {
            let pending = inode.pending.borrow();
            let p = pending.as_ref().expect("pending until written back");
            let mut body = p.body.clone();
            if !(deltas.is_empty() && matches!(body.content, Content::Empty | Content::Bytes(_))) {
                body.content = Content::Tree(map);
            }
            body.blocks = body.blocks.saturating_add_signed(blocks);
            let next = p.deltas.first_key_value().map(|(next, _)| *next);
            if let Some(next) = next {
                // The size on disk covers what this transaction maps, and nothing that the next
                // one will map: a crash in between leaves a shorter file, without holes where data
                // was written and without valid grains beyond its end.
                body.size = body.size.min(next * FILE_BLOCK).max(self.cached_descriptor(lock).size);
            }
            (body, next.is_some())
        };
        for (start, len) in deltas.iter().flat_map(|(_, d)| &d.replaced) {
            tx.free_run(*start, *len);
        }
        if let Err(e) = tx.prepare().await {
            return Err((deltas, e));
        }
        {
            let mut pending = inode.pending.borrow_mut();
            let p = pending.as_mut().expect("pending until written back");
            p.body.content = body.content.clone();
            p.body.blocks = body.blocks;
        }
        for (_, mut delta) in deltas {
            if let Some(reserved) = delta.reserved.take() {
                tx.use_reserved(reserved);
            }
        }
        tx.put_descriptor(lock, body);
        tx.apply();
        if !more {
            *inode.pending.borrow_mut() = None;
        }
        Ok(more)
    }
}

/// Makes deltas pending again that no transaction has.
fn put_back(inode: &Inode, deltas: Vec<(u64, Delta)>) {
    if let Some(pending) = inode.pending.borrow_mut().as_mut() {
        for (index, delta) in deltas {
            pending.deltas.entry(index).or_insert(delta);
        }
    }
}

/// What takes an entry out of the map.
pub const EMPTY_ENTRY: MapEntry = MapEntry { block: None, zero: false, grains: 1, mask: 0 };
