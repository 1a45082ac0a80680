//! One mount of a volume: its state, and how it joins, serves and leaves.
//!
//! Join (join.rs), pulses and doorbells (service.rs) and unmount are the same in the simulator and
//! in a real host; the caller only polls `serve` beside its operations.

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::BTreeMap;
use std::rc::{Rc, Weak};
use std::time::Duration;

use futures_util::future::{LocalBoxFuture, join_all};
use lunfs_format::{BlockNo, Geometry, Holder, PulseState, SlotNo, Superblock, Timestamp};
use tokio::sync::{Mutex, Notify, mpsc};

use crate::allocate::{Allocator, available_of};
use crate::counters::Counters;
use crate::disk::Stack;
use crate::env::Instant;
use crate::error::{Error, Kind, Result};
use crate::inode::Inode;
use crate::io::Io;
use crate::journal::Journal;
use crate::liveness::Liveness;
use crate::locks::Locks;
use crate::meta::Cache;
use crate::recovery::Watch;
use crate::slots::Region;
use crate::types::{FileId, HostStatus, LockStatus, MountOptions, Space, StopReason};
use crate::view::Readings;

/// A task of the volume itself.
pub(crate) type Task = LocalBoxFuture<'static, ()>;

/// How often an operation looks for space: what it finds may suffice for a single file block, or
/// another host be faster.
const SPACE_TRIES: u32 = 16;

/// What our pulses are to say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Intent {
    pub state: PulseState,
    pub journal: Option<lunfs_format::BlockNo>,
}

/// How far a mount has come. It only goes on:
///
/// ```text
/// Serving --unmount--> Closing --nothing under way--> Drained --in place--> Leaving --> Ended
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    /// Operations run.
    Serving,
    /// New operations are refused, and those under way end.
    Closing,
    /// None is under way: requests of others are not served any more.
    Drained,
    /// The slot becomes free: no pulse begins any more.
    Leaving,
    /// It is free, and nothing of ours reaches the disk.
    Ended,
}

/// A mounted volume.
pub struct Volume {
    weak: Weak<Volume>,
    pub(crate) sb: Superblock,
    pub(crate) io: Io,
    pub(crate) region: Region,
    pub(crate) options: MountOptions,
    pub(crate) me: Cell<Holder>,
    pub(crate) live: RefCell<Option<Liveness>>,
    pub(crate) intent: Cell<Intent>,
    pub(crate) pulse_now: Notify,
    pub(crate) pulsed: Notify,
    pub(crate) pulsed_at: Cell<Instant>,
    pub(crate) was_open: Cell<bool>,
    pub(crate) progress: Cell<u64>,
    pub(crate) busy_since: [Cell<Option<Instant>>; 2],
    pub(crate) locks: Locks,
    pub(crate) cache: RefCell<Cache>,
    pub(crate) alloc: RefCell<Allocator>,
    pub(crate) readings: RefCell<Readings>,
    pub(crate) inodes: RefCell<BTreeMap<FileId, Rc<Inode>>>,
    /// What is below the tops and in the snapshots that this host holds, and by which lock.
    pub(crate) stacks: RefCell<BTreeMap<FileId, (BlockNo, Rc<Stack>)>>,
    pub(crate) journal_cell: OnceCell<Rc<Journal>>,
    pub(crate) orphans_cell: OnceCell<FileId>,
    /// The incarnation that each slot was seen to have reached, and the count of `lives_learned`
    /// then.
    pub(crate) known: RefCell<BTreeMap<SlotNo, (u64, u64)>>,
    /// How often one of them has risen.
    pub(crate) lives_learned: Cell<u64>,
    pub(crate) watches: RefCell<BTreeMap<SlotNo, Watch>>,
    /// Dead hosts that this one could not recover, and when it may try again.
    pub(crate) unrecovered: RefCell<BTreeMap<Holder, Instant>>,
    /// Slots whose pulse cannot be decoded, and since when.
    pub(crate) damaged: RefCell<BTreeMap<SlotNo, Instant>>,
    pub(crate) recovering: Mutex<()>,
    /// The service that writes back is at work, or unmount, which it must not disturb.
    pub(crate) writing_back: Mutex<()>,
    pub(crate) flushing: Mutex<()>,
    pub(crate) dirtied: Notify,
    pub(crate) spawned: mpsc::UnboundedSender<Task>,
    pub(crate) to_run: RefCell<Option<mpsc::UnboundedReceiver<Task>>>,
    pub(crate) tasks: Cell<u64>,
    pub(crate) tasks_done: Notify,
    pub(crate) operations: Cell<u64>,
    pub(crate) reaping: Mutex<()>,
    /// When this host last began to look for space and found none.
    pub(crate) space_sought: Mutex<Instant>,
    pub(crate) phase: Cell<Phase>,
    pub(crate) ending: Notify,
}

/// An operation under way.
pub(crate) struct Operation<'v> {
    volume: &'v Volume,
}

impl Drop for Operation<'_> {
    fn drop(&mut self) {
        self.volume.operations.set(self.volume.operations.get() - 1);
        self.volume.tasks_done.notify_waiters();
    }
}

impl Volume {
    pub(crate) fn new(sb: Superblock, io: Io, options: MountOptions) -> Rc<Volume> {
        let (spawned, to_run) = mpsc::unbounded_channel();
        let region = Region { volume: sb.volume, geometry: sb.geometry() };
        Rc::new_cyclic(|weak| Volume {
            weak: weak.clone(),
            alloc: RefCell::new(Allocator::new(sb.geometry(), 0)),
            sb,
            io,
            region,
            options,
            me: Cell::new(Holder::default()),
            live: RefCell::new(None),
            intent: Cell::new(Intent { state: PulseState::Joining, journal: None }),
            pulse_now: Notify::new(),
            pulsed: Notify::new(),
            pulsed_at: Cell::new(Instant(0)),
            was_open: Cell::new(true),
            progress: Cell::new(0),
            busy_since: [Cell::new(None), Cell::new(None)],
            locks: Locks::default(),
            cache: RefCell::default(),
            readings: RefCell::default(),
            inodes: RefCell::default(),
            stacks: RefCell::default(),
            journal_cell: OnceCell::new(),
            orphans_cell: OnceCell::new(),
            known: RefCell::default(),
            lives_learned: Cell::new(0),
            watches: RefCell::default(),
            unrecovered: RefCell::default(),
            damaged: RefCell::default(),
            recovering: Mutex::new(()),
            writing_back: Mutex::new(()),
            flushing: Mutex::new(()),
            dirtied: Notify::new(),
            spawned,
            to_run: RefCell::new(Some(to_run)),
            tasks: Cell::new(0),
            tasks_done: Notify::new(),
            operations: Cell::new(0),
            reaping: Mutex::new(()),
            space_sought: Mutex::new(Instant(0)),
            phase: Cell::new(Phase::Serving),
            ending: Notify::new(),
        })
    }

    pub(crate) fn weak(&self) -> Weak<Volume> {
        self.weak.clone()
    }

    /// The root directory.
    pub fn root(&self) -> FileId {
        FileId { addr: self.sb.root, birth: self.sb.root_birth }
    }

    /// This mount's slot.
    pub fn slot(&self) -> SlotNo {
        self.me.get().slot
    }

    /// This mount's slot and the number of its life.
    pub fn me(&self) -> Holder {
        self.me.get()
    }

    /// What the volume says of itself.
    pub fn superblock(&self) -> &Superblock {
        &self.sb
    }

    pub(crate) fn geometry(&self) -> &Geometry {
        &self.region.geometry
    }

    /// Why this mount stopped, if it did.
    pub fn stopped(&self) -> Option<StopReason> {
        if self.phase.get() == Phase::Ended {
            return Some(StopReason::Unmounted);
        }
        self.io.stopped().map(StopReason::Stopped)
    }

    /// Is its lease over, so that operations wait?
    pub fn is_suspended(&self) -> bool {
        !self.io.is_open()
    }

    /// What happened so far.
    pub fn counters(&self) -> Counters {
        self.io.counters.get()
    }

    pub(crate) fn journal(&self) -> &Rc<Journal> {
        self.journal_cell.get().expect("a mounted volume has a journal")
    }

    pub(crate) fn own_orphans(&self) -> FileId {
        *self.orphans_cell.get().expect("a mounted volume has an orphan directory")
    }

    /// Locks that are not released to make room.
    pub(crate) fn is_kept(&self, addr: lunfs_format::BlockNo) -> bool {
        self.orphans_cell.get().is_some_and(|o| o.addr == addr)
    }

    pub(crate) fn now(&self) -> Instant {
        self.io.env.clock.now()
    }

    pub(crate) fn wall(&self) -> Timestamp {
        self.io.env.clock.wall()
    }

    pub(crate) fn nonce(&self) -> u64 {
        self.io.env.rng.next()
    }

    /// Sleeps between half and one and a half of `d`, so that hosts do not march in step.
    pub(crate) async fn sleep_about(&self, d: Duration) {
        let parts = u32::try_from(self.nonce() % 1024).expect("small");
        self.io.env.clock.sleep(d / 2 + d * parts / 1024).await;
    }

    pub(crate) fn know(&self, slot: SlotNo, incarnation: u64) {
        let mut known = self.known.borrow_mut();
        let (reached, learned) = known.entry(slot).or_default();
        if incarnation > *reached {
            self.lives_learned.set(self.lives_learned.get() + 1);
            (*reached, *learned) = (incarnation, self.lives_learned.get());
        }
        let now = *reached;
        // Who was recovered is of no concern any more.
        let mut unrecovered = self.unrecovered.borrow_mut();
        unrecovered.retain(|dead, _| dead.slot != slot || dead.incarnation.0 >= now);
    }

    pub(crate) fn known_incarnation(&self, slot: SlotNo) -> Option<u64> {
        self.known.borrow().get(&slot).map(|(reached, _)| *reached)
    }

    /// Did this host learn that a life in this slot was over when `lives_learned` was beyond that?
    pub(crate) fn learned_since(&self, slot: SlotNo, lives_learned: u64) -> bool {
        self.known.borrow().get(&slot).is_some_and(|(_, learned)| *learned > lives_learned)
    }

    pub(crate) fn writable(&self) -> Result<()> {
        if self.options.read_only {
            return Err(Error::new(Kind::ReadOnly, "mounted read-only"));
        }
        Ok(())
    }

    /// Counts an operation while it lasts; refused once unmount has begun.
    pub(crate) fn operation(&self) -> Result<Operation<'_>> {
        if self.is_closing() {
            return Err(Error::new(Kind::Stopped, "the volume is being unmounted"));
        }
        self.operations.set(self.operations.get() + 1);
        Ok(Operation { volume: self })
    }

    pub(crate) fn note_dirty(&self) {
        self.dirtied.notify_one();
    }

    /// A mount that could not be left is left again, and does not serve meanwhile.
    pub(crate) fn reach(&self, phase: Phase) {
        self.phase.set(self.phase.get().max(phase));
    }

    pub(crate) fn is_closing(&self) -> bool {
        self.phase.get() >= Phase::Closing
    }

    /// Runs a task of the volume's own beside the operations. After unmount began it is dropped.
    pub(crate) fn spawn<F>(&self, task: impl FnOnce(Rc<Volume>) -> F)
    where
        F: Future<Output = ()> + 'static,
    {
        if !self.is_closing() {
            self.spawn_service(task);
        }
    }

    /// Runs a task that other hosts may wait for, also while unmount waits for operations: those
    /// may wait for other hosts, which wait for locks of ours.
    pub(crate) fn spawn_service<F>(&self, task: impl FnOnce(Rc<Volume>) -> F)
    where
        F: Future<Output = ()> + 'static,
    {
        let Some(volume) = self.weak.upgrade() else { return };
        if self.phase.get() >= Phase::Drained {
            return;
        }
        self.tasks.set(self.tasks.get() + 1);
        let work = task(volume.clone());
        let counted = async move {
            work.await;
            volume.tasks.set(volume.tasks.get() - 1);
            volume.tasks_done.notify_waiters();
        };
        // The receiver lives as long as the volume; without it nothing is served any more.
        let _ = self.spawned.send(Box::pin(counted));
    }

    /// Runs an operation; when no space is left, other hosts are asked for some and it runs again.
    pub(crate) async fn with_space<T>(&self, op: impl AsyncFnMut() -> Result<T>) -> Result<T> {
        let _operation = self.operation()?;
        let answer = self.seeking_space(op).await;
        // What it says of the volume ("exists", attributes) may be of the past on a host that was
        // stopped meanwhile (H15).
        self.io.pass().await?;
        answer
    }

    async fn seeking_space<T>(&self, mut op: impl AsyncFnMut() -> Result<T>) -> Result<T> {
        let mut waits = 0;
        for round in 0..SPACE_TRIES {
            match op().await {
                Err(e) if e.kind == Kind::NoSpace => {
                    if round == 0 {
                        self.settle_freed().await?;
                    } else if !self.seek_space(&mut waits).await? {
                        return Err(e);
                    }
                }
                other => return other,
            }
        }
        op().await
    }

    /// Counts an open handle.
    pub fn open(&self, file: FileId) {
        let inode = self.inode(file);
        inode.opens.set(inode.opens.get() + 1);
    }

    /// Counts it down; the last handle of a deleted file lets its space go.
    pub fn close(&self, file: FileId) {
        let inode = self.inode(file);
        inode.opens.set(inode.opens.get().saturating_sub(1));
        self.reap_if_closed(file);
        self.leave_disk(file);
    }

    /// Everything acknowledged so far survives any crash from now on.
    pub async fn sync(&self) -> Result<()> {
        let _operation = self.operation()?;
        self.write_back_with_space().await?;
        self.flush_data(self.io.flushes_begun()).await?;
        self.journal().commit(&self.io).await
    }

    /// Writes back every file with pending changes, with space from other hosts if need be.
    pub(crate) async fn write_back_with_space(&self) -> Result<()> {
        self.seeking_space(async || self.write_back_dirty().await).await
    }

    /// Writes back every file with pending changes. An error of one does not keep the others.
    async fn write_back_dirty(&self) -> Result<()> {
        let dirty: Vec<FileId> =
            self.inodes.borrow().values().filter(|i| i.is_dirty()).map(|i| i.id).collect();
        let mut first = Ok(());
        for id in dirty {
            match self.write_back_living(id).await {
                Err(e) if e.kind == Kind::Stopped => return Err(e),
                Err(e) => {
                    let what = format!("file {} cannot be written back: {e}", id.addr);
                    first = first.and(Err(Error::new(e.kind, what)));
                }
                Ok(()) => {}
            }
        }
        first
    }

    /// Writes back a file's pending changes; what was pending of a file that is gone went with it.
    async fn write_back_living(&self, id: FileId) -> Result<()> {
        match self.hold_dirty(id).await {
            // Its own lock says so. Of any other lock the same would be a failure like others.
            Err(e) if e.kind == Kind::Stale => Ok(()),
            Err(e) => Err(e),
            Ok(Some(guard)) => self.write_back(&guard).await,
            Ok(None) => Ok(()),
        }
    }

    /// Space of the volume, as last seen. A cluster that cannot be read has none.
    pub async fn space(&self) -> Result<Space> {
        let initialised = self.initialised().await?;
        let to_read = self.alloc.borrow_mut().unread(initialised);
        for chunk in to_read.chunks(32) {
            let peeks = chunk.iter().map(async |index| (*index, self.peek_cluster(*index).await));
            for (index, peek) in join_all(peeks).await {
                match peek {
                    Ok(seen) => {
                        let header = seen.and_then(|(_, header)| header);
                        let free = header.map_or(0, |header| header.bitmap.count_free());
                        self.alloc.borrow_mut().saw(index, free);
                    }
                    Err(e) if e.kind == Kind::Io => {
                        if self.alloc.borrow_mut().could_not_see(index) {
                            tracing::warn!(event = "cluster", index, error = %e, "is not counted");
                        }
                    }
                    Err(e) => return Err(e),
                }
            }
        }
        let per_cluster = self.sb.cluster_blocks - 2;
        let untouched = self.sb.cluster_count.saturating_sub(initialised);
        let (free, available) = self.alloc.borrow().free_seen();
        Ok(Space {
            total: self.sb.cluster_count * u64::from(per_cluster),
            free: free + untouched * u64::from(per_cluster),
            available: available + untouched * available_of(per_cluster),
        })
    }

    /// All slots in use, read now.
    pub async fn hosts(&self) -> Result<Vec<HostStatus>> {
        let seen = self.region.scan(&self.io).await?;
        Ok(seen
            .into_iter()
            .filter(|s| s.pulse.as_ref().is_none_or(|p| p.state != PulseState::Free))
            .map(|s| HostStatus {
                slot: s.slot,
                is_self: s.slot == self.slot(),
                silence_ms: self
                    .silence_of(s.slot)
                    .map(|d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX)),
                pulse: s.pulse,
            })
            .collect())
    }

    /// The locks this host holds.
    pub fn locks(&self) -> Vec<LockStatus> {
        self.locks
            .held()
            .iter()
            .filter_map(|entry| {
                let lock = entry.held()?;
                Some(LockStatus {
                    addr: entry.addr,
                    mode: lock.mode,
                    holder: lock.holder,
                    generation: lock.generation,
                })
            })
            .collect()
    }
}
