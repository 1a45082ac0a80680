//! An undamaged volume and its past, made once by the real core.
//!
//! ```text
//!  formatted -> a works -> a and b work -> a died -> both died -> c recovered, left -> d died
//!      0           1            2             3          4               5              6
//! ```
//!
//! Each number is a snapshot of the whole disk: a moment at which everybody loses power, and a
//! place from which old versions of blocks come.

use std::collections::BTreeSet;
use std::pin::pin;
use std::rc::Rc;

use futures_util::future::{Either, LocalBoxFuture, join, join_all, select};
use lunfs_core::{
    Fallocate, FileId, FileKind, FormatOptions, New, RenameMode, StopReason, Volume, XattrMode,
    format_volume,
};
use lunfs_format::{
    BlockNo, FRONTIER_LOCK, HEARTBEAT_START, RECORD, RENAME_LOCK, SUPERBLOCK_COPIES, Sizes,
    Superblock, Timing,
};

use crate::world::{Image, World};

/// Clusters of the volume: files, three journals, and some room.
const CLUSTERS: usize = 7;
const CLUSTER_BLOCKS: usize = 1024;
/// Slots whose records may be damaged.
const SLOTS: u64 = 6;
const SECTOR: usize = 512;

/// Where a structure or a block of contents lies: in all snapshots the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// Its block.
    pub block: BlockNo,
    /// Where it begins in the block.
    pub offset: usize,
    /// Its bytes.
    pub len: usize,
}

/// The past.
pub struct History {
    /// Whole disks, oldest first.
    pub snapshots: Vec<Image>,
    /// Everything that was ever written, but for slots that nobody used.
    pub places: Vec<Place>,
    /// Those of `places` that lie in journals.
    pub journal: Vec<Place>,
    /// What the volume is.
    pub superblock: Superblock,
}

/// A host and its services.
pub struct Host {
    /// Its mount.
    pub volume: Rc<Volume>,
    /// What must be polled while it lives.
    pub serving: LocalBoxFuture<'static, StopReason>,
}

/// Mounts as a host of this name.
pub async fn mount(world: &World, name: &str) -> lunfs_core::Result<Host> {
    let volume = lunfs_doors::mount(&world.env(), name).await?;
    let served = volume.clone();
    Ok(Host { volume, serving: Box::pin(async move { served.serve().await }) })
}

/// Polls hosts until `story` ends.
pub async fn beside<T>(hosts: &mut [&mut Host], story: impl Future<Output = T>) -> T {
    let serving = join_all(hosts.iter_mut().map(|host| &mut host.serving));
    match select(serving, pin!(story)).await {
        Either::Left((why, _)) => panic!("hosts of the history stopped: {why:?}"),
        Either::Right((out, _)) => out,
    }
}

/// A file to be made.
pub fn new(kind: FileKind) -> New {
    let target = if kind == FileKind::Symlink { b"d/f1".to_vec() } else { Vec::new() };
    New { kind, mode: 0o644, uid: 1, gid: 2, rdev: 0, target }
}

/// Contents that say whose they are, and where in the file each sector belongs.
pub fn tagged(id: FileId, from: u64, len: usize) -> Vec<u8> {
    let first = from / SECTOR as u64;
    (first..)
        .take(len.div_ceil(SECTOR))
        .flat_map(|sector| sector_of(id, sector))
        .take(len)
        .collect()
}

/// One sector of a file.
pub fn sector_of(id: FileId, sector: u64) -> [u8; SECTOR] {
    let mut bytes = [0; SECTOR];
    for (word, value) in bytes.chunks_mut(8).zip([id.addr.0, id.birth, sector, !0].iter().cycle()) {
        word.copy_from_slice(&value.to_le_bytes());
    }
    bytes
}

impl History {
    /// Makes it. The same each time.
    pub fn make() -> History {
        let blocks = 2048 + CLUSTERS * CLUSTER_BLOCKS;
        let world = World::new(Image::blank(blocks));
        let blank = world.medium.image();
        let (superblock, snapshots) = world.run(story(&world));
        let mut places = records(&snapshots);
        places.extend(structures(&blank, &snapshots));
        let journals: BTreeSet<u64> = (0..SLOTS).filter_map(|slot| journal(&world, slot)).collect();
        let geometry = superblock.geometry();
        let in_journal = |place: &&Place| {
            geometry.cluster_of(place.block).is_some_and(|index| journals.contains(&index))
        };
        let journal = places.iter().filter(in_journal).copied().collect();
        History { snapshots, places, journal, superblock }
    }
}

/// The cluster of the journal that a slot names at the end.
fn journal(world: &World, slot: u64) -> Option<u64> {
    let image = world.medium.image();
    let superblock = Superblock::decode(image.block(BlockNo(0)), BlockNo(0)).ok()?;
    let bytes = image.block(HEARTBEAT_START.plus(slot));
    let slot = lunfs_format::SlotNo(u32::try_from(slot).ok()?);
    let pulse = lunfs_format::Pulse::decode(&bytes[..RECORD], superblock.volume, slot).ok()?;
    superblock.geometry().cluster_of(pulse.journal?)
}

/// Records of the heartbeat region, system locks and superblocks.
fn records(snapshots: &[Image]) -> Vec<Place> {
    let blocks = SUPERBLOCK_COPIES.into_iter().chain([FRONTIER_LOCK, RENAME_LOCK]);
    let whole = blocks.map(|block| Place { block, offset: 0, len: lunfs_format::BLOCK });
    let slots = (0..SLOTS).flat_map(|slot| {
        let block = HEARTBEAT_START.plus(slot);
        (0..8).map(move |record| Place { block, offset: record * RECORD, len: RECORD })
    });
    let never = snapshots.is_empty();
    whole.chain(slots).filter(|_| !never).collect()
}

/// Everything in clusters that was written at any time.
fn structures(blank: &Image, snapshots: &[Image]) -> Vec<Place> {
    let was_written = |block: &BlockNo| snapshots.iter().any(|s| !s.is_shared(blank, *block));
    let blocks = (2048..blank.blocks()).map(BlockNo).filter(was_written);
    blocks.map(|block| Place { block, offset: 0, len: lunfs_format::BLOCK }).collect()
}

async fn story(world: &World) -> (Superblock, Vec<Image>) {
    let options = FormatOptions {
        label: "fuzz".into(),
        timing: Timing::FAST,
        sizes: Sizes {
            cluster_blocks: u32::try_from(CLUSTER_BLOCKS).ok(),
            // Whoever joins reads all slots: few make more inputs.
            slot_count: Some(64),
        },
    };
    let superblock = format_volume(&world.env(), &options).await.expect("it is formatted");
    let mut past = vec![world.medium.image()];
    let mut a = mount(world, "a").await.expect("a mounts");
    let v = a.volume.clone();
    beside(&mut [&mut a], files_of_a(&v)).await;
    past.push(world.medium.image());
    let mut b = beside(&mut [&mut a], mount(world, "b")).await.expect("b mounts");
    let w = b.volume.clone();
    beside(&mut [&mut a, &mut b], work_of_b(&v, &w)).await;
    past.push(world.medium.image());
    beside(&mut [&mut a, &mut b], last_work_of_a(&v)).await;
    world.marks.kill(v.slot());
    drop((a, v));
    past.push(world.medium.image());
    beside(&mut [&mut b], last_work_of_b(&w)).await;
    world.marks.kill(w.slot());
    drop((b, w));
    past.push(world.medium.image());
    let mut c = mount(world, "c").await.expect("c mounts");
    let u = c.volume.clone();
    beside(&mut [&mut c], work_of_c(world, &u)).await;
    let served = join(u.unmount(), &mut c.serving).await;
    assert_eq!(served, (Ok(()), StopReason::Unmounted));
    world.marks.kill(u.slot());
    drop((c, u));
    past.push(world.medium.image());
    let mut d = mount(world, "d").await.expect("d mounts");
    let x = d.volume.clone();
    beside(&mut [&mut d], work_of_d(&x)).await;
    world.marks.kill(x.slot());
    drop((d, x));
    past.push(world.medium.image());
    (superblock, past)
}

async fn make(v: &Volume, dir: FileId, name: &str, len: usize) -> FileId {
    let made = v.create(dir, name.as_bytes(), new(FileKind::File)).await.expect("makes a file");
    if len > 0 {
        v.write(made.id, 0, tagged(made.id, 0, len)).await.expect("writes");
    }
    made.id
}

/// One thing of each kind; a directory whose names need a tree.
async fn files_of_a(v: &Volume) {
    let root = v.root();
    make(v, root, "empty", 0).await;
    make(v, root, "inline", 1024).await;
    let small = make(v, root, "small", 3 * 4096).await;
    make(v, root, "large", 300 * 1024).await;
    let sparse = make(v, root, "sparse", 0).await;
    for block in [0u64, 3, 9] {
        let at = block * 262_144 + 4096;
        v.write(sparse, at, tagged(sparse, at, 4096)).await.expect("writes");
        v.fsync(sparse).await.expect("syncs");
    }
    v.create(root, b"link", new(FileKind::Symlink)).await.expect("makes a link");
    v.create(root, b"pipe", new(FileKind::Fifo)).await.expect("makes a pipe");
    let d = v.create(root, b"d", new(FileKind::Directory)).await.expect("makes a directory").id;
    let f1 = make(v, d, "f1", 5000 - 5000 % SECTOR).await;
    for n in 0..70 {
        let name = format!("a-rather-long-name-so-that-few-fit-into-one-node-{n:04}");
        v.link(f1, d, name.as_bytes()).await.expect("links");
    }
    v.set_xattr(small, b"user.a", &[1; 300], XattrMode::Any).await.expect("sets");
    v.set_xattr(small, b"user.b", &[2; 6000], XattrMode::Any).await.expect("sets");
    v.sync().await.expect("syncs");
}

/// Locks change hands, runs are freed and taken again.
async fn work_of_b(a: &Volume, b: &Volume) {
    let root = b.root();
    let small = b.lookup(root, b"small").await.expect("is there").id;
    b.write(small, 4096, tagged(small, 4096, 8192)).await.expect("writes");
    let large = b.lookup(root, b"large").await.expect("is there").id;
    b.setattr(large, lunfs_core::SetAttr { size: Some(80 * 1024), ..Default::default() })
        .await
        .expect("cuts");
    b.fallocate(large, 8192, 16384, Fallocate::PunchHole).await.expect("punches");
    let mine = b.create(root, b"of-b", new(FileKind::Directory)).await.expect("makes").id;
    make(b, mine, "first", 70 * 1024).await;
    make(b, mine, "second", 2048).await;
    b.rename(root, b"inline", mine, b"moved", RenameMode::Replace).await.expect("renames");
    b.sync().await.expect("syncs");
    let attr = a.lookup(root, b"small").await.expect("is there");
    assert_eq!(a.read(attr.id, 4096, 512).await.expect("reads"), tagged(attr.id, 4096, 512));
    a.sync().await.expect("syncs");
}

/// Names of open files go; what is left of them waits in the orphan directory.
async fn last_work_of_a(v: &Volume) {
    let root = v.root();
    let gone = make(v, root, "gone", 70 * 1024).await;
    v.open(gone);
    v.sync().await.expect("syncs");
    v.unlink(root, b"gone").await.expect("unlinks");
    let d = v.lookup(root, b"d").await.expect("is there").id;
    for n in 0..20 {
        let name = format!("a-rather-long-name-so-that-few-fit-into-one-node-{n:04}");
        v.unlink(d, name.as_bytes()).await.expect("unlinks");
    }
    make(v, d, "last-of-a", 4096).await;
    v.sync().await.expect("syncs");
}

async fn last_work_of_b(w: &Volume) {
    let mine = w.lookup(w.root(), b"of-b").await.expect("is there").id;
    for n in 0..5 {
        let made = make(w, mine, &format!("late-{n}"), 4096 * (n + 1)).await;
        w.fsync(made).await.expect("syncs");
    }
    w.unlink(mine, b"second").await.expect("unlinks");
    w.sync().await.expect("syncs");
}

/// Recovers both, finds all of it, leaves.
async fn work_of_c(world: &World, u: &Volume) {
    world.pass(7000).await;
    let d = u.lookup(u.root(), b"d").await.expect("is there").id;
    u.lookup(d, b"last-of-a").await.expect("was synced");
    let mine = u.lookup(u.root(), b"of-b").await.expect("is there").id;
    let late = u.lookup(mine, b"late-4").await.expect("was synced").id;
    u.set_xattr(late, b"user.c", b"c", XattrMode::Any).await.expect("sets");
    u.sync().await.expect("syncs");
    world.pass(6000).await;
}

/// Records that nobody has put in place yet.
async fn work_of_d(x: &Volume) {
    let root = x.root();
    let mine = x.create(root, b"of-d", new(FileKind::Directory)).await.expect("makes").id;
    for n in 0..12 {
        let made = make(x, mine, &format!("f{n}"), 512 * (n % 5) * 9).await;
        x.fsync(made).await.expect("syncs");
    }
    let large = x.lookup(root, b"large").await.expect("is there").id;
    x.append(large, tagged(large, 80 * 1024, 40 * 1024)).await.expect("appends");
    x.rename(mine, b"f3", root, b"f3", RenameMode::Replace).await.expect("renames");
    x.unlink(mine, b"f4").await.expect("unlinks");
    x.sync().await.expect("syncs");
}
