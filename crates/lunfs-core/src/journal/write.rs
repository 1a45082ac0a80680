//! Writing the journal: one record in flight, in-place writes behind it, then the tail.
//!
//! ```text
//!  transactions --finish--> running compound --close--> record in flight --durable--> dirty
//!                                                                                      |
//!               tail moves <--- flush <--- in-place writes <-- checkpoint or release --+
//! ```
//!
//! Invariants:
//! - R9: a block goes in place only after the record with that image, and all earlier records, are
//!   durable; the tail moves only after in-place writes and a flush.
//! - H3: a record with a new descriptor is written after its lock is durable.
//! - H19: images are taken when a compound closes, and every member is wholly inside by then.
//! - In-place writes happen one set at a time (`placing`), so an older image never lands over a
//!   newer one, and a freed block is handed out again only when none is in flight (Q6).

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use futures_util::future::join_all;
use lunfs_format::{
    BLOCK, Block, BlockNo, ENTRIES_PER_HEAD, Holder, JournalHeader, RecordEntry, RecordHead,
    Version, VolumeId, chain, stored_checksum,
};
use tokio::sync::{Mutex, Notify};

use crate::allocate::Freed;
use crate::error::Result;
use crate::io::Io;
use crate::meta::Cache;

/// Images that one record holds at most.
const RECORD_IMAGES_MAX: usize = 256;
/// In-place writes under way at once.
const PLACING_MAX: usize = 32;

/// A freed metadata block: what its revoke names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Revoked(pub BlockNo);

/// What has been finished but is not in a record yet.
#[derive(Default)]
struct Compound {
    /// Blocks with the generation of the lock that covers each.
    blocks: BTreeMap<BlockNo, (BlockNo, Version)>,
    revokes: BTreeSet<BlockNo>,
    freed: Vec<Freed>,
}

impl Compound {
    fn is_empty(&self) -> bool {
        self.blocks.is_empty() && self.revokes.is_empty() && self.freed.is_empty()
    }
}

/// A durable image that is not in place yet.
struct Dirty {
    image: Rc<Block>,
    lock: BlockNo,
}

/// A record with its images, ready to be written.
struct Closed {
    heads: Vec<RecordHead>,
    images: Vec<(BlockNo, BlockNo, Rc<Block>)>,
    revokes: BTreeSet<BlockNo>,
    freed: Vec<Freed>,
}

struct Ring {
    sequence: u64,
    position: u64,
    previous: u64,
    used: u64,
    header_version: u64,
}

/// The journal of this host.
pub struct Journal {
    volume: VolumeId,
    owner: Holder,
    headers: [BlockNo; 2],
    ring_start: BlockNo,
    ring_blocks: u64,
    running: RefCell<Compound>,
    admitted: Cell<u64>,
    /// Blocks of the record that is being written.
    flying: Cell<u64>,
    ring: RefCell<Ring>,
    dirty: RefCell<BTreeMap<BlockNo, Dirty>>,
    /// Compounds closed so far; the running one has this number plus one.
    closed: Cell<u64>,
    durable: Cell<u64>,
    wanted: Cell<u64>,
    starved: Cell<bool>,
    placing: Mutex<()>,
    /// Flushes begun when the last lock was written that no record must overtake.
    lock_written: Cell<Option<u64>>,
    /// Something was finished or is wanted.
    work: Notify,
    /// A record became durable, or the tail moved.
    progress: Notify,
}

/// Room in the journal that a transaction will need; given back when dropped.
pub struct Admission {
    journal: Rc<Journal>,
    blocks: u64,
}

impl Admission {
    /// Images that it is good for.
    pub fn blocks(&self) -> u64 {
        self.blocks
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        self.journal.admitted.set(self.journal.admitted.get() - self.blocks);
        self.journal.progress.notify_waiters();
    }
}

impl Journal {
    /// The journal in the cluster that starts at `cluster`, empty, for a new life of its slot.
    /// Writes the header: before that the header names an older life, which means "empty" too.
    pub async fn begin(
        io: &Io,
        volume: VolumeId,
        owner: Holder,
        cluster: BlockNo,
        cluster_blocks: u64,
        header_version: u64,
    ) -> Result<Journal> {
        use lunfs_format::{JOURNAL_HEADERS, JOURNAL_RING};
        let journal = Journal {
            volume,
            owner,
            headers: JOURNAL_HEADERS.map(|o| cluster.plus(o)),
            ring_start: cluster.plus(JOURNAL_RING),
            ring_blocks: cluster_blocks - JOURNAL_RING,
            running: RefCell::default(),
            admitted: Cell::new(0),
            flying: Cell::new(0),
            ring: RefCell::new(Ring {
                sequence: 1,
                position: 0,
                previous: 0,
                used: 0,
                header_version,
            }),
            dirty: RefCell::default(),
            closed: Cell::new(0),
            durable: Cell::new(0),
            wanted: Cell::new(0),
            starved: Cell::new(false),
            placing: Mutex::new(()),
            lock_written: Cell::new(None),
            work: Notify::new(),
            progress: Notify::new(),
        };
        journal.write_tail(io, 1, 0, 0).await?;
        Ok(journal)
    }

    /// Waits for room for `blocks` more images. What a checkpoint needs is never counted, so a
    /// waiting transaction cannot keep the journal from being emptied.
    pub async fn admit(self: &Rc<Self>, io: &Io, blocks: u64) -> Result<Admission> {
        loop {
            let progress = self.progress.notified();
            let (running, revokes) = {
                let compound = self.running.borrow();
                (compound.blocks.len() as u64, compound.revokes.len() as u64)
            };
            let used = self.ring.borrow().used + self.flying.get();
            // A head has 62 entries. It is counted for every 16, and 8 more: nobody knows yet what
            // revokes those bring that are still to be added.
            let claimed = running + self.admitted.get() + blocks;
            let need = used + claimed + (claimed + revokes) / 16 + 8;
            if need <= self.ring_blocks || (used == 0 && running == 0 && self.admitted.get() == 0) {
                self.admitted.set(self.admitted.get() + blocks);
                return Ok(Admission { journal: self.clone(), blocks });
            }
            self.starved.set(true);
            self.wanted.set(self.wanted.get().max(self.mark()));
            self.work.notify_one();
            either(progress, io.until_stopped()).await;
            io.pass().await?;
        }
    }

    /// Adds a finished transaction's blocks to the running compound. Never waits: every member is
    /// wholly in one record.
    pub fn add(
        &self,
        blocks: impl IntoIterator<Item = (BlockNo, BlockNo, Version)>,
        revokes: impl IntoIterator<Item = Revoked>,
        freed: impl IntoIterator<Item = Freed>,
    ) {
        let mut running = self.running.borrow_mut();
        for (at, lock, generation) in blocks {
            running.blocks.insert(at, (lock, generation));
        }
        for Revoked(at) in revokes {
            running.blocks.remove(&at);
            running.revokes.insert(at);
        }
        running.freed.extend(freed);
        drop(running);
        self.work.notify_one();
    }

    /// Number of the compound that holds everything finished so far.
    pub fn mark(&self) -> u64 {
        self.closed.get() + u64::from(!self.running.borrow().is_empty())
    }

    /// Waits until everything finished so far is durable.
    pub async fn commit(&self, io: &Io) -> Result<()> {
        self.commit_to(io, self.mark()).await
    }

    /// Waits until compound `mark` is durable.
    pub async fn commit_to(&self, io: &Io, mark: u64) -> Result<()> {
        loop {
            let progress = self.progress.notified();
            if self.durable.get() >= mark {
                return Ok(());
            }
            self.wanted.set(self.wanted.get().max(mark));
            self.work.notify_one();
            either(progress, io.until_stopped()).await;
            io.pass().await?;
        }
    }

    /// Does somebody wait for a commit, or is there enough to make one worth while?
    pub fn is_wanted(&self) -> bool {
        self.wanted.get() > self.durable.get()
            || self.running.borrow().blocks.len() >= RECORD_IMAGES_MAX / 2
    }

    /// Is anything finished that no record holds?
    pub fn has_running(&self) -> bool {
        !self.running.borrow().is_empty()
    }

    /// Should the tail move? More than a third of the ring is used, or somebody waits for room.
    pub fn is_filling(&self) -> bool {
        self.starved.get() || self.ring.borrow().used * 3 > self.ring_blocks
    }

    /// Is there nothing between tail and head, and nothing on its way there? A record that is being
    /// written is in neither the running compound nor the used part of the ring.
    pub fn is_empty(&self) -> bool {
        self.durable.get() == self.closed.get()
            && self.ring.borrow().used == 0
            && self.running.borrow().is_empty()
    }

    /// The lock of a new descriptor was written, and not flushed: the next record waits for that.
    pub fn follows_lock(&self, io: &Io) {
        self.lock_written.set(Some(io.flushes_begun()));
    }

    /// Waits for work.
    pub async fn worked(&self) {
        self.work.notified().await;
    }

    /// Closes the running compound: versions rise, images are taken (H19).
    fn close(&self, cache: &RefCell<Cache>) -> Option<Closed> {
        let compound = self.running.take();
        if compound.is_empty() {
            return None;
        }
        self.closed.set(self.closed.get() + 1);
        let mut cache = cache.borrow_mut();
        let mut entries = Vec::new();
        let mut images = Vec::new();
        for (&at, &(lock, generation)) in &compound.blocks {
            let cached = cache.next_version(at).expect("a block in the compound is cached");
            let image: Rc<Block> = Rc::from(cached.encode(self.volume, at));
            entries.push(RecordEntry::Image {
                block: at,
                lock,
                lock_generation: generation,
                version: cached.version,
                checksum: stored_checksum(&image[..]),
            });
            images.push((at, lock, image));
        }
        entries.extend(compound.revokes.iter().map(|&block| RecordEntry::Revoke { block }));
        let heads = self.heads(&entries, u32::try_from(images.len()).expect("few images"));
        Some(Closed { heads, images, revokes: compound.revokes, freed: compound.freed })
    }

    fn heads(&self, entries: &[RecordEntry], image_count: u32) -> Vec<RecordHead> {
        let ring = self.ring.borrow();
        let chunks: Vec<Vec<RecordEntry>> = if entries.is_empty() {
            vec![Vec::new()]
        } else {
            entries.chunks(ENTRIES_PER_HEAD).map(<[RecordEntry]>::to_vec).collect()
        };
        let head_count = u16::try_from(chunks.len()).expect("few heads");
        (0u16..)
            .zip(chunks)
            .map(|(head_index, entries)| RecordHead {
                slot: self.owner.slot,
                incarnation: self.owner.incarnation,
                sequence: ring.sequence,
                head_index,
                head_count,
                image_count,
                previous: ring.previous,
                // One record is in flight at a time: all earlier ones are durable (N38).
                durable: ring.sequence - 1,
                entries,
            })
            .collect()
    }

    /// Writes one record with all that is ready. Returns the space it freed, which may be handed
    /// out again, or `None` when there was nothing to commit.
    pub async fn write_record(
        &self,
        io: &Io,
        cache: &RefCell<Cache>,
    ) -> Result<Option<Vec<Freed>>> {
        let Some(closed) = self.close(cache) else { return Ok(None) };
        let mark = self.closed.get();
        let position = self.ring.borrow().position;
        let mut bytes = Vec::new();
        let mut checksums = Vec::new();
        for (i, head) in closed.heads.iter().enumerate() {
            let at = self.ring_block(position + i as u64);
            let block = head.encode(self.volume, at);
            checksums.push(stored_checksum(&block[..]));
            bytes.extend_from_slice(&block[..]);
        }
        for (_, _, image) in &closed.images {
            bytes.extend_from_slice(&image[..]);
        }
        let blocks = (bytes.len() / BLOCK) as u64;
        self.flying.set(blocks);
        assert!(
            self.ring.borrow().used + blocks <= self.ring_blocks,
            "admission keeps room for every record"
        );
        // A crash after the record finds the locks of all descriptors that it makes reachable (H3).
        if let Some(begun) = self.lock_written.take() {
            io.flush_after(begun).await?;
        }
        // A crash before this ends loses the whole compound: its checksums do not match and the
        // record is the torn end of the journal (R8). After it, replay finds all of it.
        self.write_ring(io, position, bytes).await?;
        io.count(|c| {
            c.commits += 1;
            c.images_logged += closed.images.len() as u64;
        });
        {
            let mut ring = self.ring.borrow_mut();
            ring.previous = chain(ring.sequence, &checksums);
            ring.sequence += 1;
            ring.position = (ring.position + blocks) % self.ring_blocks;
            ring.used += blocks;
            self.flying.set(0);
        }
        {
            let mut dirty = self.dirty.borrow_mut();
            for at in &closed.revokes {
                dirty.remove(at);
            }
            for (at, lock, image) in closed.images {
                dirty.insert(at, Dirty { image, lock });
            }
        }
        self.durable.set(mark);
        self.progress.notify_waiters();
        if !closed.freed.is_empty() {
            // An in-place write of a block that this record freed may still be under way; it must
            // not land over what comes to that place next (Q6).
            drop(self.placing.lock().await);
        }
        Ok(Some(closed.freed))
    }

    fn ring_block(&self, position: u64) -> BlockNo {
        self.ring_start.plus(position % self.ring_blocks)
    }

    async fn write_ring(&self, io: &Io, position: u64, mut bytes: Vec<u8>) -> Result<()> {
        let start = position % self.ring_blocks;
        let until_end = usize::try_from((self.ring_blocks - start) * BLOCK as u64).expect("fits");
        if bytes.len() <= until_end {
            return io.write(self.ring_block(start), bytes, true).await;
        }
        let rest = bytes.split_off(until_end);
        let (a, b) = futures_util::future::join(
            io.write(self.ring_block(start), bytes, true),
            io.write(self.ring_start, rest, true),
        )
        .await;
        a.and(b)
    }

    /// Writes in place what the given locks cover, and flushes: their bodies may then be read by
    /// whoever gets the locks (R6). Everything finished under them must be durable.
    pub async fn place_locks(&self, io: &Io, locks: &BTreeSet<BlockNo>) -> Result<()> {
        let _placing = self.placing.lock().await;
        let set: Vec<(BlockNo, Rc<Block>)> = self
            .dirty
            .borrow()
            .iter()
            .filter(|(_, d)| locks.contains(&d.lock))
            .map(|(at, d)| (*at, d.image.clone()))
            .collect();
        self.place(io, &set).await?;
        if !set.is_empty() {
            io.flush().await?;
        }
        self.clean(&set);
        Ok(())
    }

    async fn place(&self, io: &Io, set: &[(BlockNo, Rc<Block>)]) -> Result<()> {
        for chunk in set.chunks(PLACING_MAX) {
            let writes = chunk.iter().map(|(at, image)| io.write(*at, image.to_vec(), false));
            for answer in join_all(writes).await {
                answer?;
            }
        }
        Ok(())
    }

    /// What was placed is clean, unless a newer image came meanwhile.
    fn clean(&self, set: &[(BlockNo, Rc<Block>)]) {
        let mut dirty = self.dirty.borrow_mut();
        for (at, image) in set {
            if dirty.get(at).is_some_and(|d| Rc::ptr_eq(&d.image, image)) {
                dirty.remove(at);
            }
        }
    }

    /// Writes everything durable in place, flushes, and moves the tail behind it.
    pub async fn checkpoint(&self, io: &Io) -> Result<()> {
        let _placing = self.placing.lock().await;
        let (sequence, position, previous, used) = {
            let ring = self.ring.borrow();
            (ring.sequence, ring.position, ring.previous, ring.used)
        };
        self.starved.set(false);
        if used == 0 {
            return Ok(());
        }
        let set: Vec<(BlockNo, Rc<Block>)> =
            self.dirty.borrow().iter().map(|(at, d)| (*at, d.image.clone())).collect();
        self.place(io, &set).await?;
        // A crash before the flush ends loses in-place writes, but not the records that repair
        // them: the tail still stands before those.
        io.flush().await?;
        self.clean(&set);
        self.write_tail(io, sequence, position, previous).await?;
        // The space is reused only after the header that gives it up is durable: else replay
        // would start at a place where newer records were written over older ones.
        self.ring.borrow_mut().used -= used;
        io.count(|c| c.checkpoints += 1);
        self.progress.notify_waiters();
        Ok(())
    }

    /// Writes the header in the copy whose turn it is; the other one stays valid meanwhile.
    async fn write_tail(&self, io: &Io, sequence: u64, position: u64, previous: u64) -> Result<()> {
        let (at, image) = {
            let mut ring = self.ring.borrow_mut();
            ring.header_version += 1;
            let at = self.headers[usize::from(ring.header_version % 2 == 1)];
            let header = JournalHeader {
                slot: self.owner.slot,
                incarnation: self.owner.incarnation,
                version: Version { birth: 0, count: ring.header_version },
                tail_sequence: sequence,
                tail_position: position,
                previous,
            };
            (at, header.encode(self.volume, at))
        };
        io.write(at, image.to_vec(), true).await
    }
}

async fn either<A, B>(a: impl Future<Output = A>, b: impl Future<Output = B>) {
    futures_util::future::select(std::pin::pin!(a), std::pin::pin!(b)).await;
}
