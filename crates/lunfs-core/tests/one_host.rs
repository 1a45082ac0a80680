//! One host on a disk without faults: what operations do when nothing goes wrong.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use lunfs_core::env::{
    Answer, Capabilities, Clock, Compared, Disk, Env, Fence, FenceError, Instant, IoError, Life, Rng,
};
use lunfs_core::{
    Fallocate, FileId, FileKind, FormatOptions, Identity, Kind, MountOptions, New, RenameMode, Seek,
    SetAttr, StopReason, Volume, XattrMode, format_volume,
};
use lunfs_format::{Pulse, SlotNo, Timestamp, Timing};

/// A disk in memory that answers at once.
struct Ram {
    size: u64,
    blocks: RefCell<BTreeMap<u64, [u8; 512]>>,
}

impl Ram {
    fn get(&self, at: u64, len: usize) -> Vec<u8> {
        let blocks = self.blocks.borrow();
        let sectors = at / 512..(at + len as u64) / 512;
        sectors.flat_map(|s| blocks.get(&s).copied().unwrap_or([0; 512])).collect()
    }

    fn put(&self, at: u64, data: &[u8]) {
        let mut blocks = self.blocks.borrow_mut();
        for (i, sector) in data.chunks(512).enumerate() {
            blocks.insert(at / 512 + i as u64, sector.try_into().unwrap());
        }
    }
}

impl Disk for Ram {
    fn capabilities(&self) -> Capabilities {
        Capabilities { logical_block: 512, size: self.size }
    }
    fn read(&self, at: u64, len: usize) -> Answer<Result<Vec<u8>, IoError>> {
        let data = self.get(at, len);
        Box::pin(async move { Ok(data) })
    }
    fn write(&self, at: u64, data: Vec<u8>, _: bool, _: Instant) -> Answer<Result<(), IoError>> {
        self.put(at, &data);
        Box::pin(async { Ok(()) })
    }
    fn flush(&self) -> Answer<Result<(), IoError>> {
        Box::pin(async { Ok(()) })
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
        Box::pin(async move { Ok(if same { Compared::Written } else { Compared::Miscompare }) })
    }
    fn unmap(&self, _: u64, _: u64, _: Instant) -> Answer<Result<(), IoError>> {
        Box::pin(async { Ok(()) })
    }
}

/// Time that jumps to the next timer when nothing else can be done.
#[derive(Clone, Default)]
struct Time {
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

#[derive(Default)]
struct Marks(RefCell<BTreeMap<SlotNo, bool>>);

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

fn env(size: u64) -> (Env, Time) {
    let time = Time::default();
    time.now.set(1_000_000_000);
    let env = Env {
        disk: Rc::new(Ram { size, blocks: RefCell::default() }),
        fence: Rc::new(Marks::default()),
        clock: Rc::new(time.clone()),
        rng: Rc::new(Dice(Cell::new(0x1234_5678_9ABC_DEF1))),
    };
    (env, time)
}

/// Polls until done; when nothing moves, time does.
fn block_on<T>(time: &Time, future: impl Future<Output = T>) -> T {
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

async fn mount(env: &Env, name: &str) -> Rc<Volume> {
    let mut run = [0; 16];
    run[..8].copy_from_slice(&env.rng.next().to_le_bytes());
    let identity = Identity { run, ..Identity::default() };
    let options = MountOptions { name: name.into(), read_only: false, identity };
    Volume::mount(env.clone(), options).await.expect("mounts")
}

/// Formats, mounts, runs `story` while serving, unmounts, and has the walker look.
fn with_volume(story: impl AsyncFnOnce(&Rc<Volume>)) {
    let (env, time) = env(256 << 20);
    block_on(&time, async {
        let options =
            FormatOptions { label: "test".into(), timing: Timing::FAST, cluster_blocks: None };
        format_volume(&env, &options).await.expect("formats");
        let volume = mount(&env, "a").await;
        let work = async {
            story(&volume).await;
            volume.unmount().await.expect("unmounts");
        };
        let (reason, ()) = futures_util::future::join(volume.serve(), work).await;
        assert_eq!(reason, StopReason::Unmounted);
        //CHECK
    });
}

fn file() -> New {
    New { kind: FileKind::File, mode: 0o644, uid: 1, gid: 2, rdev: 0, target: Vec::new() }
}

fn directory() -> New {
    New { kind: FileKind::Directory, mode: 0o755, ..file() }
}

fn pattern(len: usize, salt: u8) -> Vec<u8> {
    (0..len).map(|i| (i as u8).wrapping_mul(31).wrapping_add((i >> 8) as u8) ^ salt).collect()
}

async fn make(v: &Volume, dir: FileId, name: &str) -> FileId {
    v.create(dir, name.as_bytes(), file()).await.expect("creates").id
}

#[test]
fn what_was_written_is_read_at_every_size() {
    with_volume(async |v| {
        for (i, size) in [0, 1, 2048, 2049, 4095, 4096, 70_000, 262_144, 262_145, 1_500_000]
            .into_iter()
            .enumerate()
        {
            let id = make(v, v.root(), &format!("f{i}")).await;
            let data = pattern(size, i as u8);
            v.write(id, 0, data.clone()).await.expect("writes");
            assert_eq!(v.read(id, 0, size + 100).await.expect("reads"), data, "size {size}");
            v.fsync(id).await.expect("syncs");
            assert_eq!(v.read(id, 0, size + 100).await.expect("reads"), data, "size {size}");
        }
    });
}

#[test]
fn small_appends_add_up() {
    with_volume(async |v| {
        let id = make(v, v.root(), "log").await;
        let mut all = Vec::new();
        for i in 0..900 {
            let line = pattern(777, i as u8);
            v.write(id, all.len() as u64, line.clone()).await.expect("writes");
            all.extend(line);
            if i % 100 == 7 {
                v.fsync(id).await.expect("syncs");
            }
        }
        assert_eq!(v.read(id, 0, all.len()).await.expect("reads"), all);
    });
}

#[test]
fn holes_and_cut_tails_read_zero() {
    with_volume(async |v| {
        let id = make(v, v.root(), "sparse").await;
        v.write(id, 1_000_000, b"end".to_vec()).await.expect("writes");
        assert_eq!(v.read(id, 0, 100).await.expect("reads"), vec![0; 100]);
        assert_eq!(v.seek(id, 0, Seek::Data).await.expect("seeks"), 999_424);
        assert_eq!(v.seek(id, 0, Seek::Hole).await.expect("seeks"), 0);
        v.write(id, 0, pattern(9000, 1)).await.expect("writes");
        let size = |size| SetAttr { size: Some(size), ..SetAttr::default() };
        v.setattr(id, size(5000)).await.expect("cuts");
        v.setattr(id, size(9000)).await.expect("extends");
        let mut expect = pattern(9000, 1);
        expect[5000..].fill(0);
        assert_eq!(v.read(id, 0, 10_000).await.expect("reads"), expect);
        v.fallocate(id, 100, 5000, Fallocate::PunchHole).await.expect("punches");
        expect[100..5100].fill(0);
        assert_eq!(v.read(id, 0, 10_000).await.expect("reads"), expect);
        v.setattr(id, size(0)).await.expect("empties");
        assert_eq!(v.getattr(id).await.expect("attrs").blocks, 0);
        v.write(id, 3, b"x".to_vec()).await.expect("writes");
        assert_eq!(v.read(id, 0, 10).await.expect("reads"), b"\0\0\0x");
    });
}

#[test]
fn ten_thousand_names_come_and_go() {
    with_volume(async |v| {
        let dir = v.create(v.root(), b"many", directory()).await.expect("creates").id;
        for i in 0..3000 {
            make(v, dir, &format!("a rather ordinary file name {i}")).await;
        }
        let mut seen = std::collections::BTreeSet::new();
        let mut after = 0;
        loop {
            let some = v.readdir(dir, after, 100).await.expect("lists");
            let Some(last) = some.last() else { break };
            after = last.cookie;
            seen.extend(some.iter().map(|e| e.name.clone()));
        }
        assert_eq!(seen.len(), 3000);
        for i in (0..3000).rev() {
            let name = format!("a rather ordinary file name {i}");
            v.unlink(dir, name.as_bytes()).await.expect("unlinks");
        }
        v.rmdir(v.root(), b"many").await.expect("removes");
    });
}

#[test]
fn names_move_and_links_count() {
    with_volume(async |v| {
        let a = v.create(v.root(), b"a", directory()).await.expect("creates").id;
        let b = v.create(v.root(), b"b", directory()).await.expect("creates").id;
        let f = make(v, a, "f").await;
        v.write(f, 0, b"hello".to_vec()).await.expect("writes");
        assert_eq!(v.link(f, b, b"g").await.expect("links").nlink, 2);
        v.rename(a, b"f", b, b"h", RenameMode::Replace).await.expect("renames");
        assert_eq!(v.lookup(a, b"f").await.unwrap_err().kind, Kind::NotFound);
        assert_eq!(v.lookup(b, b"h").await.expect("finds").id, f);
        let g = make(v, b, "other").await;
        v.rename(b, b"other", b, b"g", RenameMode::Replace).await.expect("replaces");
        assert_eq!(v.lookup(b, b"g").await.expect("finds").id, g);
        assert_eq!(v.getattr(f).await.expect("attrs").nlink, 1);
        v.rename(b, b"g", b, b"h", RenameMode::Exchange).await.expect("exchanges");
        assert_eq!(v.lookup(b, b"g").await.expect("finds").id, f);
        v.rename(v.root(), b"b", a, b"inner", RenameMode::Replace).await.expect("moves");
        let circle = v.rename(v.root(), b"a", b, b"x", RenameMode::Replace).await;
        assert_eq!(circle.unwrap_err().kind, Kind::Invalid);
        assert_eq!(v.rmdir(v.root(), b"a").await.unwrap_err().kind, Kind::NotEmpty);
    });
}

#[test]
fn attributes_of_any_length_are_kept() {
    with_volume(async |v| {
        let id = make(v, v.root(), "f").await;
        for (i, len) in [0, 1, 900, 1024, 1025, 65_536].into_iter().enumerate() {
            let name = format!("user.n{i}");
            let value = pattern(len, 3);
            v.set_xattr(id, name.as_bytes(), &value, XattrMode::Create).await.expect("sets");
            assert_eq!(v.get_xattr(id, name.as_bytes()).await.expect("gets"), value);
        }
        v.set_xattr(id, b"user.n5", b"short", XattrMode::Any).await.expect("sets");
        assert_eq!(v.get_xattr(id, b"user.n5").await.expect("gets"), b"short");
        assert_eq!(v.list_xattrs(id).await.expect("lists").len(), 6);
        v.remove_xattr(id, b"user.n4").await.expect("removes");
        assert_eq!(v.get_xattr(id, b"user.n4").await.unwrap_err().kind, Kind::NoAttribute);
    });
}

#[test]
fn a_deleted_file_lives_while_it_is_open() {
    with_volume(async |v| {
        let id = make(v, v.root(), "f").await;
        v.write(id, 0, pattern(100_000, 5)).await.expect("writes");
        v.open(id);
        v.unlink(v.root(), b"f").await.expect("unlinks");
        assert_eq!(v.read(id, 0, 100_000).await.expect("reads"), pattern(100_000, 5));
        v.close(id);
    });
}

#[test]
fn a_full_volume_says_so_and_is_whole() {
    with_volume(async |v| {
        let mut written = 0;
        let error = loop {
            let id = make(v, v.root(), &format!("big{written}")).await;
            match v.write(id, 0, pattern(8 << 20, written as u8)).await {
                Ok(()) => written += 1,
                Err(e) => break e,
            }
        };
        assert_eq!(error.kind, Kind::NoSpace);
        assert!(written > 20, "only {written} files of 8 MiB fit into 256 MiB");
        for i in 0..written {
            v.unlink(v.root(), format!("big{i}").as_bytes()).await.expect("unlinks");
        }
    });
}
