//! A world without faults: a disk in memory, time that jumps, marks of life in a table.
#![allow(dead_code, reason = "each test file uses a part of it")]

pub mod moody;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use futures_util::future::{Either, select, select_all};
use lunfs_core::env::{
    Answer, Capabilities, Clock, Compared, Disk, Env, Fence, FenceError, Instant, IoError, Life,
    Rng,
};
use lunfs_core::{
    FileId, FileKind, FormatOptions, Identity, MountOptions, New, Volume, format_volume,
};
use lunfs_format::{
    BLOCK, BlockNo, Descriptor, JournalHeader, Pulse, Sizes, SlotNo, Timestamp, Timing, kind,
    kind_of,
};

/// A disk in memory with the latency of a good one.
pub struct Ram {
    size: u64,
    time: Time,
    blocks: Rc<RefCell<BTreeMap<u64, [u8; 512]>>>,
    /// Flushes so far.
    pub flushes: Cell<u64>,
}

fn put(blocks: &RefCell<BTreeMap<u64, [u8; 512]>>, at: u64, data: &[u8]) {
    let mut blocks = blocks.borrow_mut();
    for (i, sector) in data.chunks(512).enumerate() {
        blocks.insert(at / 512 + i as u64, sector.try_into().expect("whole sectors"));
    }
}

impl Ram {
    /// Bytes of the disk.
    pub fn get(&self, at: u64, len: usize) -> Vec<u8> {
        let blocks = self.blocks.borrow();
        let sectors = at / 512..(at + len as u64) / 512;
        sectors.flat_map(|s| blocks.get(&s).copied().unwrap_or([0; 512])).collect()
    }

    /// Another disk that holds the same.
    pub fn copy(&self) -> Ram {
        let blocks = Rc::new(RefCell::new(self.blocks.borrow().clone()));
        Ram { size: self.size, time: self.time.clone(), blocks, flushes: Cell::new(0) }
    }

    /// Changes bytes of the disk.
    pub fn put(&self, at: u64, data: &[u8]) {
        put(&self.blocks, at, data);
    }

    fn after(&self, micros: u64) -> Answer<()> {
        self.time.sleep(std::time::Duration::from_micros(micros))
    }
}

impl Disk for Ram {
    fn capabilities(&self) -> Capabilities {
        Capabilities { logical_block: 512, size: self.size }
    }
    fn read(&self, at: u64, len: usize) -> Answer<Result<Vec<u8>, IoError>> {
        let (data, wait) = (self.get(at, len), self.after(200));
        Box::pin(async move {
            wait.await;
            Ok(data)
        })
    }
    fn write(&self, at: u64, data: Vec<u8>, _: bool, _: Instant) -> Answer<Result<(), IoError>> {
        let (blocks, wait) = (self.blocks.clone(), self.after(1000));
        Box::pin(async move {
            wait.await;
            put(&blocks, at, &data);
            Ok(())
        })
    }
    fn flush(&self) -> Answer<Result<(), IoError>> {
        self.flushes.set(self.flushes.get() + 1);
        let wait = self.after(5000);
        Box::pin(async move {
            wait.await;
            Ok(())
        })
    }
    fn compare_and_write(
        &self,
        at: u64,
        expect: Vec<u8>,
        new: Vec<u8>,
        _: Instant,
    ) -> Answer<Result<Compared, IoError>> {
        let same = self.get(at, expect.len()) == expect;
        if same {
            self.put(at, &new);
        }
        let wait = self.after(300);
        Box::pin(async move {
            wait.await;
            Ok(if same { Compared::Written } else { Compared::Miscompare })
        })
    }
    fn unmap(&self, _: u64, _: u64, _: Instant) -> Answer<Result<(), IoError>> {
        Box::pin(async { Ok(()) })
    }
}

/// Time that jumps to the next timer when nothing else can be done.
#[derive(Clone, Default)]
pub struct Time {
    now: Rc<Cell<u64>>,
    timers: Rc<RefCell<BTreeMap<u64, Vec<Waker>>>>,
}

struct Sleep {
    time: Time,
    until: u64,
}

impl Future for Sleep {
    type Output = ();
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if self.time.now.get() >= self.until {
            return Poll::Ready(());
        }
        self.time.timers.borrow_mut().entry(self.until).or_default().push(cx.waker().clone());
        Poll::Pending
    }
}

impl Clock for Time {
    fn now(&self) -> Instant {
        Instant(self.now.get())
    }
    fn sleep_until(&self, at: Instant) -> Answer<()> {
        Box::pin(Sleep { time: self.clone(), until: at.0 })
    }
    fn wall(&self) -> Timestamp {
        Timestamp { seconds: 1_700_000_000, nanos: (self.now.get() % 1_000_000_000) as u32 }
    }
}

/// Who lives.
#[derive(Default)]
pub struct Marks(RefCell<BTreeMap<SlotNo, bool>>);

impl Fence for Marks {
    fn enter(&self, slot: SlotNo) -> Result<bool, FenceError> {
        Ok(self.0.borrow_mut().insert(slot, true).is_none())
    }
    fn leave(&self, slot: SlotNo) {
        self.0.borrow_mut().remove(&slot);
    }
    fn life(&self, slot: SlotNo) -> Life {
        if self.0.borrow().contains_key(&slot) { Life::Present } else { Life::Gone }
    }
    fn fence(&self, victim: &Pulse) -> Answer<Result<(), FenceError>> {
        self.0.borrow_mut().remove(&victim.slot);
        Box::pin(async { Ok(()) })
    }
    fn method(&self) -> &'static str {
        "memory"
    }
}

struct Dice(Cell<u64>);

impl Rng for Dice {
    fn next(&self) -> u64 {
        let mut x = self.0.get();
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        self.0.set(x);
        x
    }
}

/// The four doors of hosts on one new disk.
pub fn env(size: u64) -> (Env, Time) {
    let (env, time, _) = env_with_disk(size);
    (env, time)
}

/// The same, with the disk itself for looking at and damaging it.
pub fn env_with_disk(size: u64) -> (Env, Time, Rc<Ram>) {
    let time = Time::default();
    let disk =
        Rc::new(Ram { size, time: time.clone(), blocks: Rc::default(), flushes: Cell::new(0) });
    time.now.set(1_000_000_000);
    let env = Env {
        disk: disk.clone(),
        fence: Rc::new(Marks::default()),
        clock: Rc::new(time.clone()),
        rng: Rc::new(Dice(Cell::new(0x1234_5678_9ABC_DEF1))),
    };
    (env, time, disk)
}

/// Polls until done; when nothing moves, time does.
pub fn block_on<T>(time: &Time, future: impl Future<Output = T>) -> T {
    let mut future = Box::pin(future);
    let woken = std::sync::Arc::new(Flag::default());
    let waker = Waker::from(woken.clone());
    let mut cx = Context::from_waker(&waker);
    loop {
        woken.0.store(false, std::sync::atomic::Ordering::Relaxed);
        if let Poll::Ready(out) = future.as_mut().poll(&mut cx) {
            return out;
        }
        if woken.0.load(std::sync::atomic::Ordering::Relaxed) {
            continue;
        }
        let next = time.timers.borrow_mut().pop_first();
        let (at, wakers) = next.expect("nothing can ever happen again");
        time.now.set(time.now.get().max(at));
        wakers.into_iter().for_each(Waker::wake);
    }
}

#[derive(Default)]
struct Flag(std::sync::atomic::AtomicBool);

impl std::task::Wake for Flag {
    fn wake(self: std::sync::Arc<Self>) {
        self.0.store(true, std::sync::atomic::Ordering::Relaxed);
    }
}

/// Mounts as a host of this name.
pub async fn mount(env: &Env, name: &str) -> Rc<Volume> {
    let mut run = [0; 16];
    run[..8].copy_from_slice(&env.rng.next().to_le_bytes());
    let identity = Identity { run, ..Identity::default() };
    let options = MountOptions { name: name.into(), read_only: false, identity };
    Volume::mount(env.clone(), options).await.expect("mounts")
}

/// A file to be made.
pub fn file() -> New {
    New { kind: FileKind::File, mode: 0o644, uid: 1, gid: 2, rdev: 0, target: Vec::new() }
}

/// A directory to be made.
pub fn directory() -> New {
    New { kind: FileKind::Directory, mode: 0o755, ..file() }
}

/// Bytes that differ from place to place.
pub fn pattern(len: usize, salt: u8) -> Vec<u8> {
    (0..len).map(|i| (i as u8).wrapping_mul(31).wrapping_add((i >> 8) as u8) ^ salt).collect()
}

/// Makes a volume of small clusters, so that a test meets several.
pub async fn formatted(env: &Env) {
    let sizes = Sizes { cluster_blocks: Some(1024), slot_count: Some(64) };
    let options = FormatOptions { label: "t".into(), timing: Timing::FAST, sizes };
    format_volume(env, &options).await.expect("formats");
}

/// Lets some milliseconds pass.
pub async fn sleep(env: &Env, ms: u64) {
    env.clock.sleep(std::time::Duration::from_millis(ms)).await;
}

/// What `story` ends with; it must not take longer than this.
pub async fn within<T>(env: &Env, ms: u64, story: impl Future<Output = T>) -> T {
    match select(Box::pin(story), Box::pin(sleep(env, ms))).await {
        Either::Left((out, _)) => out,
        Either::Right(((), _)) => panic!("it has not ended after {ms} ms"),
    }
}

/// Polls a host, or several joined, until `story` ends; they must not stop before.
pub async fn beside<H: std::fmt::Debug, T>(
    host: impl Future<Output = H>,
    story: impl Future<Output = T>,
) -> T {
    match select(Box::pin(host), Box::pin(story)).await {
        Either::Left((why, _)) => panic!("a host stopped: {why:?}"),
        Either::Right((out, _)) => out,
    }
}

/// Has the walker look at an unmounted volume.
pub async fn check_clean(env: &Env) {
    let options = lunfs_core::check::Options { offline: true, progress: None };
    let report = lunfs_core::check::check(&*env.disk, &options).await.expect("checks");
    assert!(report.is_clean(), "{:#?}", report.findings);
}

/// Both headers of a host's journal.
pub fn journal_headers(ram: &Ram, of: &Volume) -> Vec<(BlockNo, JournalHeader)> {
    (0..256 << 8)
        .map(BlockNo)
        .filter(|at| kind_of(&ram.get(at.offset(), 4096)) == Some(kind::JOURNAL_HEADER))
        .filter_map(|at| {
            let bytes = ram.get(at.offset(), 4096);
            Some((at, JournalHeader::decode(&bytes, of.superblock().volume, at).ok()?))
        })
        .filter(|(_, header)| header.slot == of.slot())
        .collect()
}

/// Runs `work` while a host serves, which it does not survive by more than that.
pub async fn served<T>(hosts: &[&Rc<Volume>], work: impl Future<Output = T>) -> T {
    let all = select_all(hosts.iter().map(|v| Box::pin(v.serve())));
    match select(all, Box::pin(work)).await {
        Either::Left(((why, _, _), _)) => panic!("{why:?}"),
        Either::Right((done, _)) => done,
    }
}

/// The blocks of a descriptor of an unmounted volume, changed and sealed again.
pub fn damage(disk: &Ram, v: &Volume, id: FileId, change: impl FnOnce(&mut Descriptor)) {
    let at = id.addr.plus(1);
    let volume = v.superblock().volume;
    let bytes = disk.get(at.offset(), BLOCK);
    let mut body = Descriptor::decode(&bytes, volume, at).expect("a descriptor");
    change(&mut body);
    body.version = body.version.next();
    disk.put(at.offset(), &body.encode(volume, at)[..]);
}
