//! Atomic changes of metadata: collected aside, then put into the running compound at once.
//!
//! Invariants:
//! - Nothing of a transaction is visible before `finish`, and all of it after: the part that
//!   changes the cache and the compound never waits.
//! - Space comes from reservations and goes back in the same transaction that drops the last
//!   reference. Where the cluster of a freed run is another host's, the run is listed in this
//!   host's orphan directory instead, in the same transaction, and freed later: an operation never
//!   waits for a cluster.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use lunfs_format::{BlockNo, Cluster, Content, Descriptor, Node, Tree, Version};

use crate::allocate::{Freed, Purpose, Reservation};
use crate::error::{Error, Kind, Result};
use crate::journal::{Admission, Revoked};
use crate::locks::{ReadGuard, WriteGuard};
use crate::meta::{Cached, Meta};
use crate::orphans::Orphan;
use crate::tree::{self, NodeStore, NodeStoreMut};
use crate::volume::Volume;

/// Images that one operation may need beyond those it names: headers of clusters and the path in
/// the orphan directory.
const SLACK: u64 = 24;

struct Change {
    meta: Meta,
    lock: BlockNo,
}

/// A transaction being collected.
pub struct Transaction<'v> {
    volume: &'v Volume,
    changes: BTreeMap<BlockNo, Change>,
    births: BTreeMap<BlockNo, u64>,
    reservations: Vec<Reservation>,
    freed: Vec<Run>,
    /// Freed runs whose clusters the guards below keep here.
    direct: Vec<Run>,
    guards: BTreeMap<u64, ReadGuard>,
    gone: BTreeSet<BlockNo>,
    listed: Vec<Orphan>,
    unlisted: Vec<(BlockNo, Orphan)>,
    orphan_guard: Option<WriteGuard>,
    admission: Admission,
    purpose: Purpose,
}

#[derive(Clone, Copy, Debug)]
struct Run {
    start: BlockNo,
    len: u64,
    /// It held metadata, so its images in the journal must be revoked.
    metadata: bool,
}

impl Volume {
    /// Begins a transaction that will log about `blocks` images, and whose nodes serve `purpose`.
    pub(crate) async fn begin(&self, blocks: u64, purpose: Purpose) -> Result<Transaction<'_>> {
        let admission = self.journal().admit(&self.io, blocks + SLACK).await?;
        Ok(Transaction {
            volume: self,
            changes: BTreeMap::new(),
            births: BTreeMap::new(),
            reservations: Vec::new(),
            freed: Vec::new(),
            direct: Vec::new(),
            guards: BTreeMap::new(),
            gone: BTreeSet::new(),
            listed: Vec::new(),
            unlisted: Vec::new(),
            orphan_guard: None,
            admission,
            purpose,
        })
    }

    /// The node at this address, covered by `lock`, which this host holds.
    pub(crate) async fn node_of(&self, lock: BlockNo, at: BlockNo) -> Result<Rc<Node>> {
        if let Some(Cached { meta: Meta::Node(node), lock: covers, .. }) =
            self.cache.borrow().get(at)
            && *covers == lock
        {
            return Ok(node.clone());
        }
        let block = self.read_node(lock, at).await?;
        let node = Rc::new(block.node);
        let mut cache = self.cache.borrow_mut();
        if cache.get(at).is_some_and(|known| known.lock != lock) {
            return Err(Error::damaged(at, format!("a tree of {lock} has it, and another object")));
        }
        if cache.get(at).is_none() {
            let meta = Meta::Node(node.clone());
            cache.put(at, Cached { meta, lock, version: block.version });
        }
        Ok(node)
    }
}

impl<'v> Transaction<'v> {
    /// The new body of a descriptor whose write guard the caller has.
    pub fn put_descriptor(&mut self, lock: BlockNo, descriptor: Descriptor) {
        let meta = Meta::Descriptor(Rc::new(descriptor));
        self.changes.insert(lock.plus(1), Change { meta, lock });
    }

    /// The body of a new descriptor, at a reserved place.
    pub fn put_new_descriptor(&mut self, reserved: Reservation, descriptor: Descriptor) {
        let lock = reserved.start;
        self.births.insert(lock.plus(1), reserved.birth);
        self.reservations.push(reserved);
        self.put_descriptor(lock, descriptor);
    }

    /// Reserved blocks that hold file contents from now on.
    pub fn use_reserved(&mut self, reserved: Reservation) {
        self.reservations.push(reserved);
    }

    /// Gives up a run of blocks that held file contents.
    pub fn free_run(&mut self, start: BlockNo, len: u64) {
        self.freed.push(Run { start, len, metadata: false });
    }

    /// Gives up the two blocks of a descriptor whose lock is void.
    pub fn free_descriptor(&mut self, lock: BlockNo) {
        self.freed.push(Run { start: lock, len: 2, metadata: false });
    }

    /// Lists something in this host's orphan directory.
    pub fn list_orphan(&mut self, orphan: Orphan) {
        self.listed.push(orphan);
    }

    /// Takes something out of the orphan directory at `directory`, whose guard the caller has or
    /// which is this host's own.
    pub fn unlist_orphan(&mut self, directory: BlockNo, orphan: Orphan) {
        self.unlisted.push((directory, orphan));
    }

    /// The tree operations of one object, on this transaction.
    pub fn tree<'t>(&'t mut self, lock: BlockNo) -> TreeOf<'t, 'v> {
        let purpose = self.purpose;
        TreeOf { tx: self, lock, purpose, nodes: 0 }
    }

    /// The same of an orphan directory. What it lists is given up, whatever that makes room for.
    fn orphan_tree<'t>(&'t mut self, lock: BlockNo) -> TreeOf<'t, 'v> {
        TreeOf { tx: self, lock, purpose: Purpose::Metadata, nodes: 0 }
    }

    /// Does what it was admitted for cover another `blocks` images, beside what it may need for
    /// orphans? Headers of clusters are the caller's to count, but for those of new nodes.
    pub fn has_room(&self, blocks: u64) -> bool {
        let (changes, nodes) = (self.changes.len() as u64, self.reservations.len() as u64);
        changes + nodes + blocks + SLACK <= self.admission.blocks()
    }

    /// Makes everything visible and puts it into the running compound.
    pub async fn finish(mut self) -> Result<()> {
        self.prepare().await?;
        self.apply();
        Ok(())
    }

    /// All that can fail or wait: decides how each freed run goes and changes orphan directories.
    pub async fn prepare(&mut self) -> Result<()> {
        self.sort_freed()?;
        self.change_orphans().await?;
        // Others may have freed the same blocks meanwhile, where two objects have them.
        let direct = std::mem::take(&mut self.direct);
        direct.iter().try_for_each(|run| self.check_in_use(*run))?;
        self.direct = direct;
        self.check_sizes()
    }

    /// Refuses a body that no block can hold. What was found inside of it was larger than we make
    /// it.
    fn check_sizes(&self) -> Result<()> {
        for (at, change) in &self.changes {
            if let Meta::Descriptor(body) = &change.meta
                && !body.fits()
            {
                return Err(Error::damaged(*at, "no room is left in a descriptor"));
            }
        }
        Ok(())
    }

    /// Makes everything visible at once. Never waits, never fails.
    pub fn apply(mut self) {
        let direct = std::mem::take(&mut self.direct);
        let mut headers: BTreeMap<u64, Cluster> = BTreeMap::new();
        for reservation in &self.reservations {
            self.set_bits(&mut headers, reservation.start, reservation.len, true);
        }
        for run in &direct {
            self.set_bits(&mut headers, run.start, run.len, false);
        }
        for (index, header) in headers {
            let lock = self.volume.geometry().cluster_start(index);
            self.changes
                .insert(lock.plus(1), Change { meta: Meta::Cluster(Rc::new(header)), lock });
        }
        let blocks = self.publish();
        let is_larger = blocks.len() as u64 > self.admission.blocks();
        self.volume.io.count(|c| c.transactions_too_large += u64::from(is_larger));
        let revokes: Vec<Revoked> = self.gone.iter().map(|at| Revoked(*at)).collect();
        let freed: Vec<Freed> = {
            let alloc = self.volume.alloc.borrow();
            let freed = |run: &Run| {
                let epoch = alloc.epoch_of(run.start);
                Freed { start: run.start, len: run.len, epoch }
            };
            direct.iter().map(freed).collect()
        };
        self.volume.journal().add(blocks, revokes, freed);
        for reservation in self.reservations.drain(..) {
            reservation.commit();
        }
    }

    /// Runs whose cluster this host holds are freed now; the others are listed as orphans.
    fn sort_freed(&mut self) -> Result<()> {
        for run in std::mem::take(&mut self.freed) {
            self.volume.check_run(run.start, run.len)?;
            if run.metadata {
                self.gone.insert(run.start);
            }
            let index = self.volume.geometry().cluster_of(run.start).expect("a run in a cluster");
            if !self.guards.contains_key(&index) {
                let lock = self.volume.geometry().cluster_start(index);
                if let Some(guard) = self.volume.locks.get(lock).and_then(|e| e.try_read()) {
                    self.guards.insert(index, guard);
                }
            }
            if self.guards.contains_key(&index) {
                self.check_in_use(run)?;
                self.check_once(run)?;
                self.direct.push(run);
            } else {
                self.listed.push(Orphan::Run { start: run.start, len: run.len });
            }
        }
        Ok(())
    }

    /// Refuses a run that only a damaged block can have named: one that is free already.
    fn check_in_use(&self, run: Run) -> Result<()> {
        let index = self.volume.geometry().cluster_of(run.start).expect("a run in a cluster");
        let lock = self.volume.geometry().cluster_start(index);
        let header = self.volume.cached_cluster(lock);
        let (first, len) = ((run.start.0 - lock.0) as u32, run.len as u32);
        let is_free = (first..first + len).any(|block| !header.bitmap.get(block));
        if is_free { Err(free_already(run)) } else { Ok(()) }
    }

    /// Refuses a run of which this transaction frees a part already.
    fn check_once(&self, run: Run) -> Result<()> {
        let end = run.start.0 + run.len;
        let is_twice =
            self.direct.iter().any(|r| r.start.0 < end && run.start.0 < r.start.0 + r.len);
        if is_twice { Err(free_already(run)) } else { Ok(()) }
    }

    async fn change_orphans(&mut self) -> Result<()> {
        if self.listed.is_empty() && self.unlisted.is_empty() {
            return Ok(());
        }
        let own = self.volume.own_orphans();
        // Last of all guards, and its holder waits for nothing but the disk. It lasts until the
        // changes are in the cache, which is when this transaction is dropped.
        let guard = self.volume.hold(own).await?;
        let listed = std::mem::take(&mut self.listed);
        let unlisted = std::mem::take(&mut self.unlisted);
        let mut bodies: BTreeMap<BlockNo, Descriptor> = BTreeMap::new();
        // First out, then in: a run that could not be freed after all stays listed.
        for (directory, orphan) in unlisted {
            let mut body = self.orphan_body(&mut bodies, directory);
            self.unlist_in(directory, &mut body, orphan).await?;
            bodies.insert(directory, body);
        }
        for orphan in listed {
            let mut body = self.orphan_body(&mut bodies, own.addr);
            self.list_in(own.addr, &mut body, orphan).await?;
            bodies.insert(own.addr, body);
        }
        for (lock, body) in bodies {
            self.put_descriptor(lock, body);
        }
        self.orphan_guard = Some(guard);
        Ok(())
    }

    fn orphan_body(&self, bodies: &mut BTreeMap<BlockNo, Descriptor>, lock: BlockNo) -> Descriptor {
        bodies.remove(&lock).unwrap_or_else(|| self.volume.cached_descriptor(lock))
    }

    async fn list_in(
        &mut self,
        lock: BlockNo,
        body: &mut Descriptor,
        orphan: Orphan,
    ) -> Result<()> {
        let mut tree = content_tree(body);
        let mut store = self.orphan_tree(lock);
        tree::insert(&mut store, &mut tree, ORPHANS_INLINE, &orphan.key(), &[]).await?;
        let nodes = store.nodes;
        body.blocks = body.blocks.saturating_add_signed(nodes);
        body.size += 1;
        body.content = Content::Tree(tree);
        Ok(())
    }

    async fn unlist_in(
        &mut self,
        lock: BlockNo,
        body: &mut Descriptor,
        orphan: Orphan,
    ) -> Result<()> {
        let mut tree = content_tree(body);
        let mut store = self.orphan_tree(lock);
        let old = tree::remove(&mut store, &mut tree, ORPHANS_INLINE, &orphan.key()).await?;
        if old.is_none() {
            // Somebody else freed it already: freeing it again would free what is there now.
            return Err(Error::new(Kind::NotFound, "no such orphan is listed any more"));
        }
        let nodes = store.nodes;
        body.blocks = body.blocks.saturating_add_signed(nodes);
        let fewer = body.size.checked_sub(1);
        body.size =
            fewer.ok_or_else(|| Error::damaged(lock, "it has more entries than it says"))?;
        body.content = Content::Tree(tree);
        // Nodes that the removal freed: their cluster may be another host's, and deciding that now
        // would begin again. They are listed and freed later.
        for run in std::mem::take(&mut self.freed) {
            self.gone.insert(run.start);
            let again = Orphan::Run { start: run.start, len: run.len };
            let mut tree = content_tree(body);
            let mut store = self.orphan_tree(lock);
            tree::insert(&mut store, &mut tree, ORPHANS_INLINE, &again.key(), &[]).await?;
            body.blocks = body.blocks.saturating_add_signed(store.nodes);
            body.size += 1;
            body.content = Content::Tree(tree);
        }
        Ok(())
    }

    fn set_bits(&self, headers: &mut BTreeMap<u64, Cluster>, start: BlockNo, len: u64, used: bool) {
        let geometry = self.volume.geometry();
        let index = geometry.cluster_of(start).expect("a run in a cluster");
        let first = geometry.cluster_start(index);
        let header = headers
            .entry(index)
            .or_insert_with(|| Cluster::clone(&self.volume.cached_cluster(first)));
        let (offset, len) = ((start.0 - first.0) as u32, len as u32);
        let once = (offset..offset + len).all(|i| header.bitmap.get(i) != used);
        // Going on would give somebody's block to somebody else.
        assert!(once, "{len} blocks at {start} are taken or freed twice");
        header.bitmap.set_run(offset, len, used);
    }

    /// Puts the changed blocks into the cache; returns what the journal has to know of each.
    fn publish(&mut self) -> Vec<(BlockNo, BlockNo, Version)> {
        let mut cache = self.volume.cache.borrow_mut();
        for at in &self.gone {
            cache.forget(*at);
        }
        let mut blocks = Vec::new();
        for (at, change) in std::mem::take(&mut self.changes) {
            let generation = self
                .volume
                .locks
                .generation(change.lock)
                .expect("a transaction changes only what a held lock covers");
            let version = match self.births.get(&at) {
                Some(birth) => Version { birth: *birth, count: 0 },
                None => cache.get(at).expect("changed blocks were read").version,
            };
            cache.put(at, Cached { meta: change.meta, lock: change.lock, version });
            blocks.push((at, change.lock, generation));
        }
        blocks
    }
}

fn free_already(run: Run) -> Error {
    let Run { start, len, .. } = run;
    Error::damage(format!(
        "{len} blocks at {start} are given up but free already; nothing was changed"
    ))
}

/// Bytes that the orphan directory keeps in its descriptor.
const ORPHANS_INLINE: usize = 3000;

fn content_tree(body: &mut Descriptor) -> Tree {
    match std::mem::replace(&mut body.content, Content::Empty) {
        Content::Tree(tree) => tree,
        Content::Empty | Content::Bytes(_) => Tree::Empty,
    }
}

/// The nodes of one object's trees, as a transaction sees and changes them.
pub struct TreeOf<'t, 'v> {
    tx: &'t mut Transaction<'v>,
    lock: BlockNo,
    purpose: Purpose,
    /// Node blocks that the operations added (or, negative, gave up).
    pub nodes: i64,
}

impl NodeStore for TreeOf<'_, '_> {
    async fn node(&self, at: BlockNo) -> Result<Rc<Node>> {
        if let Some(Change { meta: Meta::Node(node), .. }) = self.tx.changes.get(&at) {
            return Ok(node.clone());
        }
        self.tx.volume.node_of(self.lock, at).await
    }
}

impl NodeStoreMut for TreeOf<'_, '_> {
    fn put(&mut self, at: BlockNo, node: Node) {
        let meta = Meta::Node(Rc::new(node));
        self.tx.changes.insert(at, Change { meta, lock: self.lock });
    }

    async fn allocate(&mut self) -> Result<BlockNo> {
        let reserved = self.tx.volume.reserve(1, self.purpose).await?;
        let at = reserved.start;
        self.tx.births.insert(at, reserved.birth);
        self.tx.reservations.push(reserved);
        self.nodes += 1;
        Ok(at)
    }

    fn free(&mut self, at: BlockNo) {
        self.nodes -= 1;
        self.tx.changes.remove(&at);
        if self.tx.births.remove(&at).is_some() {
            // Made and given up in one transaction: nobody ever saw it.
            self.tx.reservations.retain(|r| r.start != at);
        } else {
            self.tx.freed.push(Run { start: at, len: 1, metadata: true });
        }
    }
}

impl Volume {
    /// The cached body of a descriptor whose lock this host holds.
    pub(crate) fn cached_descriptor(&self, lock: BlockNo) -> Descriptor {
        match self.cache.borrow().get(lock.plus(1)).map(|c| c.meta.clone()) {
            Some(Meta::Descriptor(body)) => Descriptor::clone(&body),
            Some(_) | None => panic!("the body of the held lock {lock} is not cached"),
        }
    }

    fn cached_cluster(&self, lock: BlockNo) -> Rc<Cluster> {
        match self.cache.borrow().get(lock.plus(1)).map(|c| c.meta.clone()) {
            Some(Meta::Cluster(header)) => header,
            Some(_) | None => panic!("the header of the held cluster {lock} is not cached"),
        }
    }
}
