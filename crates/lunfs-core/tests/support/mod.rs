//! A world without faults, with a disk in memory, and what stories on it begin and end with.
#![allow(dead_code, reason = "each test file uses a part of it")]

pub mod moody;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

use futures_util::future::{Either, join, select, select_all};
use lunfs_core::env::{Answer, Capabilities, Clock, Compared, Disk, Env, Instant, IoError};
use lunfs_core::{FileId, FileKind, FormatOptions, New, StopReason, Volume, format_volume};
use lunfs_doors::{Dice, Limits, Marks};
pub use lunfs_doors::{Time, sleep};
use lunfs_format::{BLOCK, BlockNo, Descriptor, JournalHeader, Sizes, Timing, kind, kind_of};

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

/// The four doors of hosts on one new disk.
pub fn env(size: u64) -> (Env, Time) {
    let (env, time, _) = env_with_disk(size);
    (env, time)
}

/// The same, with the disk itself for looking at and damaging it.
pub fn env_with_disk(size: u64) -> (Env, Time, Rc<Ram>) {
    let time = Time::begin();
    let disk =
        Rc::new(Ram { size, time: time.clone(), blocks: Rc::default(), flushes: Cell::new(0) });
    let env = Env {
        disk: disk.clone(),
        fence: Rc::new(Marks::default()),
        clock: Rc::new(time.clone()),
        rng: Rc::new(Dice::default()),
    };
    (env, time, disk)
}

/// Polls until done; when nothing moves, time does.
pub fn block_on<T>(time: &Time, story: impl Future<Output = T>) -> T {
    time.run(Limits::NONE, story).unwrap_or_else(|endless| panic!("{endless}"))
}

/// Mounts as a host of this name.
pub async fn mount(env: &Env, name: &str) -> Rc<Volume> {
    lunfs_doors::mount(env, name).await.expect("mounts")
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
    formatted_as(env, Sizes { cluster_blocks: Some(1024), slot_count: Some(64) }).await;
}

/// Makes a volume of these sizes.
pub async fn formatted_as(env: &Env, sizes: Sizes) {
    let options = FormatOptions { label: "t".into(), timing: Timing::FAST, sizes };
    format_volume(env, &options).await.expect("formats");
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
    check(env, true).await;
}

/// The same of a mounted one.
pub async fn check_mounted(env: &Env) {
    check(env, false).await;
}

async fn check(env: &Env, offline: bool) {
    let options = lunfs_core::check::Options { offline, progress: None };
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

/// Does `work` while a host serves, which leaves then.
pub async fn left_after<T>(host: &Rc<Volume>, work: impl Future<Output = T>) -> T {
    let work = async {
        let done = work.await;
        host.unmount().await.expect("leaves");
        done
    };
    let (ended, done) = join(host.serve(), work).await;
    assert_eq!(ended, StopReason::Unmounted);
    done
}

/// Runs `story` on two hosts that both serve and leave then; the volume is clean after that.
pub async fn on_two_hosts(env: &Env, story: impl AsyncFnOnce(&Rc<Volume>, &Rc<Volume>)) {
    let (a, b) = (mount(env, "a").await, mount(env, "b").await);
    left_after(&b, left_after(&a, story(&a, &b))).await;
    check_clean(env).await;
}

/// Ends when a host has taken over so many.
pub async fn taken_over(env: &Env, by: &Volume, count: u64) {
    while by.counters().takeovers < count {
        sleep(env, 1).await;
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
