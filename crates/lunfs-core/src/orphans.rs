//! What has no name any more but still has space: deleted files that are open or not yet emptied,
//! and freed runs in clusters that another host held.
//!
//! Each host lists its orphans in a directory of its own, inside its journal's cluster. Invariants:
//! - An orphan is listed by the transaction that takes its last reference, and unlisted by the one
//!   that frees it: a crash leaks nothing (R12).
//! - A deleted file's lock becomes void, durably, before its descriptor's blocks are free: whoever
//!   still knows its address finds no file there.
//! - Orphans of a dead host are moved to the recoverer's own list, then treated as its own.

use std::ops::Bound;

use lunfs_format::{
    BlockNo, Content, Descriptor, FileKind, LockMode, MapEntry, PulseState, SlotNo, Tree, Version,
};

use crate::allocate::Purpose;
use crate::data::Held;
use crate::error::{Error, Kind, Result};
use crate::lock::voided;
use crate::locks::{Wish, WishKind, WriteGuard};
use crate::tree;
use crate::types::FileId;
use crate::volume::Volume;

/// Entries treated in one step.
const BATCH: usize = 32;

/// Something without a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Orphan {
    /// A file without links.
    File(FileId),
    /// Blocks that nothing refers to.
    Run {
        /// First block.
        start: BlockNo,
        /// Blocks.
        len: u64,
    },
}

impl Orphan {
    /// Its key in the orphan directory.
    pub fn key(&self) -> Vec<u8> {
        let (what, a, b) = match *self {
            Orphan::File(id) => (0u8, id.addr.0, id.birth),
            Orphan::Run { start, len } => (1, start.0, len),
        };
        let mut key = vec![what];
        key.extend_from_slice(&a.to_be_bytes());
        key.extend_from_slice(&b.to_be_bytes());
        key
    }

    /// What a key names.
    pub fn of_key(key: &[u8]) -> Option<Orphan> {
        let (what, rest) = key.split_first()?;
        let (a, b) = rest.split_at_checked(8)?;
        let a = BlockNo(u64::from_be_bytes(a.try_into().ok()?));
        let b = u64::from_be_bytes(b.try_into().ok()?);
        match what {
            0 => Some(Orphan::File(FileId { addr: a, birth: b })),
            1 => Some(Orphan::Run { start: a, len: b }),
            _ => None,
        }
    }
}

impl Volume {
    /// Entries of an orphan directory whose guard the caller has.
    async fn orphans_in(&self, directory: FileId, after: Option<&Orphan>) -> Result<Vec<Orphan>> {
        let Content::Tree(tree) = self.current(directory).content else { return Ok(Vec::new()) };
        let store = Held { volume: self, id: directory };
        let key = after.map(Orphan::key);
        let from = key.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
        let found = tree::scan(&store, &tree, from, BATCH).await?;
        found
            .iter()
            .map(|(key, _)| {
                Orphan::of_key(key).ok_or_else(|| {
                    Error::damaged(directory.addr, "an orphan directory with an unknown entry")
                })
            })
            .collect()
    }

    /// Moves the orphans of a recovered slot to our own list, as long as nobody lives in that slot:
    /// what a new host lists there may be open, and is its own to free.
    pub(crate) async fn adopt_orphans(
        &self,
        directory: FileId,
        slot: SlotNo,
        incarnation: u64,
    ) -> Result<u64> {
        let mut adopted = 0;
        loop {
            let _guard = self.hold(Wish::from(directory)).await?;
            // A host that joins after this look cannot list anything before we let go of the lock.
            let pulse = self.region.pulse(&self.io, slot).await?;
            if pulse.state != PulseState::Free || pulse.incarnation.0 != incarnation {
                return Ok(adopted);
            }
            let batch = self.orphans_in(directory, None).await?;
            if batch.is_empty() {
                return Ok(adopted);
            }
            let mut tx = self.begin(4 * batch.len() as u64, Purpose::Metadata).await?;
            for orphan in &batch {
                tx.unlist_orphan(directory.addr, *orphan);
                tx.list_orphan(*orphan);
            }
            tx.finish().await?;
            adopted += batch.len() as u64;
        }
    }

    /// Frees all our orphans that nobody has open here.
    pub(crate) async fn reap_own(&self) -> Result<()> {
        let _alone = self.reaping.lock().await;
        let own = self.own_orphans();
        let mut after: Option<Orphan> = None;
        loop {
            let batch = {
                let _guard = self.hold(Wish::from(own)).await?;
                self.orphans_in(own, after.as_ref()).await?
            };
            let Some(last) = batch.last() else { return Ok(()) };
            after = Some(*last);
            for orphan in batch {
                if self.is_closing() {
                    return Ok(());
                }
                let freed = match orphan {
                    Orphan::File(id) => {
                        let open = self.inodes.borrow().get(&id).is_some_and(|i| i.opens.get() > 0);
                        if open { Ok(()) } else { self.reap(id).await }
                    }
                    Orphan::Run { start, len } => self.free_listed(start, len).await,
                };
                match freed {
                    Err(e) if e.kind == Kind::Stopped => return Err(e),
                    // One that cannot be freed stays listed and keeps no other one.
                    Err(e) => tracing::warn!(event = "reap", ?orphan, error = %e, "it stays"),
                    Ok(()) => {}
                }
            }
        }
    }

    /// Does our own list have anything that may be freed now?
    pub(crate) fn has_orphans(&self) -> bool {
        let own = self.own_orphans();
        self.locks.get(own.addr).is_some_and(|e| e.held().is_some())
            && self.cached_descriptor(own.addr).size > 0
    }

    /// Frees a listed run; its cluster may have to come from another host.
    async fn free_listed(&self, start: BlockNo, len: u64) -> Result<()> {
        let Some(index) = self.geometry().cluster_of(start) else {
            let own = self.own_orphans().addr;
            return Err(Error::damaged(own, format!("it lists a run at {start}, in no cluster")));
        };
        let addr = self.geometry().cluster_start(index);
        // One that is ours already must not be waited for: what has space reserved in it may itself
        // need a block of it to be written back.
        if self.locks.get(addr).is_none_or(|entry| entry.held().is_none()) {
            drop(self.hold(Wish { addr, birth: 0, kind: WishKind::Cluster }).await?);
        }
        let mut tx = self.begin(8, Purpose::Metadata).await?;
        tx.unlist_orphan(self.own_orphans().addr, Orphan::Run { start, len });
        tx.free_run(start, len);
        freed_once(tx.finish().await)
    }

    /// Begins to free a deleted file if no handle on this host keeps it.
    pub(crate) fn reap_if_closed(&self, id: FileId) {
        let inode = self.inode(id);
        if inode.opens.get() > 0 || !inode.unlinked.get() {
            return;
        }
        inode.unlinked.set(false);
        self.spawn(move |volume| async move {
            if let Err(e) = volume.reap(id).await
                && e.kind != Kind::Stopped
            {
                // It stays listed; the next mount of this slot tries again.
                tracing::warn!(event = "reap", file = %id.addr, error = %e, "a deleted file stays");
            }
        });
    }

    /// Frees a file without links: contents, attributes, then the descriptor itself.
    pub(crate) async fn reap(&self, id: FileId) -> Result<()> {
        match self.give_up_layers(id).await {
            // The disk is gone, or another task has just given them up: the disk itself will tell.
            Err(e) if e.kind == Kind::Stale => {}
            other => other?,
        }
        match self.leave_below(id).await {
            Err(e) if e.kind == Kind::Stale => {}
            other => other?,
        }
        let guard = match self.hold(Wish::from(id)).await {
            Ok(guard) => guard,
            Err(e) if e.kind == Kind::Stale => return self.reap_void(id).await,
            Err(e) => return Err(e),
        };
        if let Some(inode) = self.inodes.borrow().get(&id) {
            // What was never in a transaction dies with the file.
            *inode.pending.borrow_mut() = None;
        }
        let body = self.current(id);
        if body.top.is_some() {
            return Err(Error::damaged(id.addr, "a disk that is listed as an orphan has a top"));
        }
        if body.layer.names > 0 || body.layer.children > 0 {
            return Err(Error::damaged(
                id.addr,
                "a layer is listed as an orphan and has referrers",
            ));
        }
        if body.nlink > 0 {
            return Err(Error::damaged(id.addr, "it is listed as an orphan and has a name"));
        }
        while self.empty_some(id).await? {
            if self.is_closing() {
                return Ok(());
            }
        }
        self.void(&guard, id).await?;
        drop(guard);
        self.reap_void(id).await
    }

    /// Frees some of a deleted file's contents; `false`: nothing is left.
    async fn empty_some(&self, id: FileId) -> Result<bool> {
        let mut body = self.current(id);
        let mut tx = self.begin(BATCH as u64 + 8, Purpose::Metadata).await?;
        let tree = match std::mem::replace(&mut body.content, Content::Empty) {
            Content::Tree(tree) => tree,
            Content::Empty | Content::Bytes(_) => Tree::Empty,
        };
        if tree == Tree::Empty {
            if body.xattrs == Tree::Empty {
                return Ok(false);
            }
            for _ in 0..BATCH {
                let last = {
                    let seen = tx.tree(id.addr);
                    tree::last(&seen, &body.xattrs, None).await?
                };
                let Some((key, _)) = last else { break };
                let mut store = tx.tree(id.addr);
                tree::remove(&mut store, &mut body.xattrs, 0, &key).await?;
            }
        } else {
            let mut tree = tree;
            for _ in 0..BATCH {
                // The transaction's own view of the tree is needed once it has changed nodes.
                let last = {
                    let seen = tx.tree(id.addr);
                    tree::last(&seen, &tree, None).await?
                };
                let Some((key, value)) = last else { break };
                if matches!(body.kind, FileKind::File | FileKind::Layer) {
                    let damaged = |e| Error::damaged(id.addr, format!("a map entry: {e}"));
                    let entry = MapEntry::decode(&value).map_err(damaged)?;
                    if let Some(start) = entry.block {
                        tx.free_run(start, u64::from(entry.grains));
                    }
                }
                let mut store = tx.tree(id.addr);
                tree::remove(&mut store, &mut tree, 0, &key).await?;
            }
            body.content = Content::Tree(tree);
        }
        body.size = 0;
        body.blocks = 0;
        tx.put_descriptor(id.addr, body);
        tx.finish().await?;
        Ok(true)
    }

    /// Writes the last body, then makes the lock void: from now on nobody can take this object.
    async fn void(&self, guard: &WriteGuard, id: FileId) -> Result<()> {
        let mut tx = self.begin(2, Purpose::Metadata).await?;
        let old = self.current(id);
        let body = Descriptor {
            kind: FileKind::Void,
            nlink: 0,
            size: 0,
            blocks: 0,
            layer: lunfs_format::Layer::default(),
            content: Content::Empty,
            xattrs: Tree::Empty,
            version: Version::default(),
            ..old
        };
        tx.put_descriptor(id.addr, body);
        tx.finish().await?;
        self.journal().commit(&self.io).await?;
        self.journal().place_locks(&self.io, &[id.addr].into()).await?;
        // A crash before the next write leaves a stale lock over a void body; after it the lock
        // says the same. Only then may the blocks serve for anything else.
        let Some(lock) = guard.entry.held() else { return Ok(()) };
        self.swap_held(id.addr, &lock, &voided(&lock, self.nonce())).await?;
        guard.entry.set_held(None);
        self.cache.borrow_mut().forget_lock(id.addr);
        self.locks.forget(id.addr);
        self.forget_stack(id.addr);
        self.inodes.borrow_mut().remove(&id);
        Ok(())
    }

    /// Frees the blocks of a descriptor whose lock is void, or whose body is.
    async fn reap_void(&self, id: FileId) -> Result<()> {
        let (lock, _) = self.read_object(id.addr).await?;
        // No such lock: it was freed, and its place serves for something else.
        let Some(lock) = lock.filter(|l| l.generation.birth == id.birth) else { return Ok(()) };
        if lock.mode != LockMode::Void {
            // Its host died between body and lock: nobody else takes a void body, so nobody holds
            // it.
            self.swap_lock(id.addr, &lock, &voided(&lock, self.nonce())).await?;
        }
        let mut tx = self.begin(8, Purpose::Metadata).await?;
        tx.unlist_orphan(self.own_orphans().addr, Orphan::File(id));
        tx.free_descriptor(id.addr);
        freed_once(tx.finish().await)
    }
}

/// The removal from the list and the freeing are one transaction; if the orphan is no longer
/// listed, somebody else has freed it.
fn freed_once(done: Result<()>) -> Result<()> {
    match done {
        Err(e) if e.kind == Kind::NotFound => Ok(()),
        other => other,
    }
}
