//! Space that is there and was refused, or was not there any more for those it was kept for.

mod support;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

use futures_util::future::join;
use lunfs_core::env::Env;
use lunfs_core::{FileId, Kind, SetAttr, Volume, XattrMode};
use lunfs_format::{BLOCK, BlockNo, Cluster, Lock, LockObject, Sizes, Stamp};
use support::moody::{Ask, Fault, World, moody, world};
use support::{
    beside, block_on, directory, env, env_with_disk, file, formatted, formatted_as, left_after,
    mount, on_two_hosts, pattern, served, sleep, within,
};

const FILE_BLOCK: u64 = 256 << 10;

/// File blocks of which only a grain is written, as many as a descriptor's map holds by itself.
async fn fill_map(host: &Volume, id: FileId) -> u64 {
    let mut before = 0;
    for i in 0.. {
        host.write(id, i * FILE_BLOCK, pattern(4096, 1)).await.expect("writes");
        host.fsync(id).await.expect("syncs");
        let blocks = host.getattr(id).await.expect("attrs").blocks;
        if blocks - before > 64 {
            return i;
        }
        before = blocks;
    }
    unreachable!("a map does not stay small for ever")
}

/// A file whose map needs another block with the next entry, and how many entries it has.
async fn file_with_full_map(host: &Volume, dir: FileId) -> (FileId, u64) {
    let probe = host.create(dir, b"probe", file()).await.expect("works").id;
    let entries = fill_map(host, probe).await;
    host.unlink(dir, b"probe").await.expect("works");
    let large = host.create(dir, b"large", file()).await.expect("works").id;
    for i in 0..entries {
        host.write(large, i * FILE_BLOCK, pattern(4096, 2)).await.expect("works");
    }
    (large, entries)
}

/// Writes to the file in pieces of this size until nothing more fits.
async fn fill_file(host: &Volume, id: FileId, from: u64, size: usize) -> u64 {
    for i in from.. {
        if let Err(e) = host.write(id, i * size as u64, pattern(size, i as u8)).await {
            assert_eq!(e.kind, Kind::NoSpace, "{e}");
            return i;
        }
    }
    unreachable!("a volume has an end")
}

/// Gives each of these files an attribute of this size, until there is no place for one.
async fn fill_with_attributes(host: &Volume, files: &[FileId], len: usize) {
    let name = format!("user.{len}");
    for id in files {
        let value = pattern(len, 5);
        if let Err(e) = host.set_xattr(*id, name.as_bytes(), &value, XattrMode::Any).await {
            assert_eq!(e.kind, Kind::NoSpace, "{e}");
            return;
        }
    }
    panic!("an attribute for each file, and the volume is not full");
}

/// What is kept for what was accepted already went to attributes of other files, which any user may
/// set. A write had its data on the disk and needed one block more for its map: it could never be
/// written back, its file's lock could not be given to anybody, who wanted to read it waited for as
/// long as nobody deleted something, and the unmount of its host lost it.
#[test]
fn attributes_leave_what_accepted_writes_need() {
    let (env, time) = env(64 << 20);
    block_on(&time, async {
        formatted(&env).await;
        on_two_hosts(&env, async |a, b| {
            let dir = a.create(a.root(), b"a", directory()).await.expect("works").id;
            let (large, entries) = file_with_full_map(a, dir).await;
            let mut named = Vec::new();
            for i in 0..400 {
                let name = format!("f{i}");
                named.push(a.create(dir, name.as_bytes(), file()).await.expect("works").id);
            }
            let spare = a.create(dir, b"spare", file()).await.expect("works").id;
            a.write(spare, 0, pattern(1 << 20, 3)).await.expect("works");
            let full = a.create(dir, b"full", file()).await.expect("works").id;
            fill_file(a, full, 0, 1 << 20).await;
            a.sync().await.expect("works");
            fill_with_attributes(a, &named, 60_000).await;
            fill_with_attributes(a, &named, 1_500).await;
            let nothing = SetAttr { size: Some(0), ..SetAttr::default() };
            a.setattr(spare, nothing).await.expect("gives up its data, and nothing else");
            a.sync().await.expect("works");
            a.write(large, entries * FILE_BLOCK, pattern(4096, 4)).await.expect("has space");
            fill_with_attributes(a, &named, 1_600).await;
            let read = b.read(large, entries * FILE_BLOCK, 4096);
            assert!(within(&env, 60_000, read).await.expect("reads") == pattern(4096, 4));
            a.unlink(dir, b"full").await.expect("a full volume can be emptied");
        })
        .await;
    });
}

/// S11: on a full volume another host asks for the only cluster with free blocks, in which a file
/// here has space reserved. Its map needs one more block when it is written back, and nobody may
/// reserve any there while the cluster is to be given up: both waited for ever.
#[test]
fn a_cluster_that_cannot_be_given_yet_stays_useful() {
    let (env, time) = env(264 << 20);
    block_on(&time, async {
        // Four clusters, of which journals take three.
        let sizes = Sizes { cluster_blocks: Some(16 << 10), slot_count: Some(64) };
        formatted_as(&env, sizes).await;
        on_two_hosts(&env, async |a, b| {
            let c = mount(&env, "c").await;
            left_after(&c, async {}).await;
            let root = a.root();
            let made = a.create(root, b"a", directory()).await.expect("works").id;
            let others = b.create(root, b"b", directory()).await.expect("works").id;
            let (large, entries) = file_with_full_map(a, made).await;
            let spare = a.create(made, b"spare", file()).await.expect("works").id;
            a.write(spare, 0, pattern(1 << 20, 3)).await.expect("works");
            a.sync().await.expect("works");
            let full = a.create(made, b"full", file()).await.expect("works").id;
            let end = fill_file(a, full, 0, 1 << 20).await;
            fill_file(a, full, end << 2, 256 << 10).await;
            let name = || format!("{:016x}", env.rng.next()).into_bytes();
            while a.create(made, &name(), file()).await.is_ok() {}
            let nothing = SetAttr { size: Some(0), ..SetAttr::default() };
            a.setattr(spare, nothing).await.expect("gives up its data, and nothing else");
            a.sync().await.expect("works");
            a.write(large, entries * FILE_BLOCK, pattern(4096, 2)).await.expect("has space");
            let made = b.create(others, b"x", file());
            within(&env, 60_000, made).await.expect("gets space in the end");
            let data = a.read(large, entries * FILE_BLOCK, 4096).await.expect("works");
            assert_eq!(data, pattern(4096, 2));
        })
        .await;
    });
}

/// A host had listed runs in a cluster that another one could not give away yet. Freeing them waits
/// for that cluster, which may take long; a search for space took "it goes on" for an answer in
/// every one of its rounds, asked nobody else, and said "no space" while a third host had empty
/// clusters.
#[test]
fn who_waits_for_its_own_freed_space_asks_others_all_the_same() {
    let (env, time, ram) = env_with_disk(64 << 20);
    block_on(&time, async {
        formatted(&env).await;
        let disk = moody(ram, &time);
        let a = mount(&Env { disk: disk.clone(), ..env.clone() }, "a").await;
        let mut serve_a = Box::pin(a.serve());
        let b = beside(&mut serve_a, mount(&env, "b")).await;
        let mut serve_ab = Box::pin(join(serve_a, b.serve()));
        let c = beside(&mut serve_ab, mount(&env, "c")).await;
        let root = a.root();
        let story = async {
            // Most of a cluster of a's, with room for one file block more.
            let shared = a.create(root, b"shared", file()).await.expect("works").id;
            let other = a.create(root, b"other", file()).await.expect("works").id;
            a.write(shared, 0, pattern(13 << 18, 1)).await.expect("works");
            a.sync().await.expect("works");
            let large = c.create(root, b"large", file()).await.expect("works").id;
            c.write(large, 0, pattern(24 << 20, 2)).await.expect("works");
            c.sync().await.expect("works");
            let mine = b.create(root, b"mine", file()).await.expect("works").id;
            b.sync().await.expect("works");
            disk.when(|asked| {
                (asked.ask == Ask::Write && asked.len == 64 << 12).then_some(Fault::Hang)
            });
            let hangs = a.write(other, 0, pattern(1 << 18, 3));
            let rest = async {
                let end = fill_file(&b, mine, 0, 1 << 18).await;
                c.unlink(root, b"large").await.expect("works");
                sleep(&env, 3_000).await;
                b.unlink(root, b"shared").await.expect("works");
                let more = b.write(mine, end << 18, pattern(1 << 18, 4));
                within(&env, 120_000, more).await.expect("c has space");
            };
            beside(hangs, rest).await;
        };
        beside(join(serve_ab, c.serve()), story).await;
    });
}

/// A cluster was seen to be free; before its lock was taken, a new host had made it its journal.
/// "No such file", said the lock that was not the cluster's any more, and the write of a living
/// file was refused as if that were deleted; what was pending was dropped at unmount without a
/// word.
#[test]
fn a_cluster_that_becomes_a_journal_is_no_deleted_file() {
    let World { env, time, disk } = world();
    block_on(&time, async {
        formatted(&env).await;
        let a = mount(&env, "a").await;
        served(&[&a], async {
            let (volume, geometry) = (a.superblock().volume, a.superblock().geometry());
            let (ram, looks) = (disk.ram.clone(), RefCell::new(BTreeMap::new()));
            let made = Rc::new(Cell::new(false));
            let is_made = made.clone();
            disk.when(move |asked| {
                let at = BlockNo(asked.at / BLOCK as u64);
                let is_lock =
                    geometry.cluster_of(at).map(|i| geometry.cluster_start(i)) == Some(at);
                if asked.ask != Ask::Read || !is_lock || is_made.get() {
                    return None;
                }
                let lock = Lock::decode(&ram.get(asked.at, 512), volume, at).ok()?;
                let is_free = lock.object == LockObject::Cluster && lock.holder.is_none();
                *looks.borrow_mut().entry(at).or_insert(0) += u32::from(is_free);
                if looks.borrow()[&at] == 2 {
                    let (object, stamp) = (LockObject::Journal, Stamp::default());
                    let generation = lock.generation.next();
                    let lock = Lock { object, stamp, generation, payload: 5, ..lock };
                    ram.put(asked.at, &lock.encode(volume, at)[..]);
                    is_made.set(true);
                }
                None
            });
            let id = a.create(a.root(), b"f", file()).await.expect("there are others").id;
            assert!(made.get(), "the first cluster it looked at became a journal");
            a.write(id, 0, pattern(1 << 20, 1)).await.expect("works");
            a.fsync(id).await.expect("works");
        })
        .await;
    });
}

/// One header that the device could not read made `df` fail, while searches for space left that
/// cluster out.
#[test]
fn a_cluster_that_cannot_be_read_has_no_space() {
    let World { env, time, disk } = world();
    block_on(&time, async {
        formatted(&env).await;
        let a = mount(&env, "a").await;
        served(&[&a], async {
            a.create(a.root(), b"f", file()).await.expect("works");
            a.sync().await.expect("works");
            let geometry = a.superblock().geometry();
            let before = a.space().await.expect("works");
            let free = |i: &u64| {
                let at = geometry.cluster_start(*i).plus(1);
                let bytes = disk.ram.get(at.offset(), BLOCK);
                let header = Cluster::decode(&bytes, a.superblock().volume, at);
                header.is_ok_and(|header| header.is_empty())
            };
            let index = (1..a.superblock().cluster_count).find(free).expect("an empty one");
            let lost = geometry.cluster_start(index).offset();
            disk.when(move |asked| {
                (asked.ask == Ask::Read && asked.at == lost).then_some(Fault::Fail)
            });
            let mut after = a.space().await.expect("all but one can be read");
            for _ in 0..8 {
                after = a.space().await.expect("all but one can be read");
            }
            assert_eq!(before.free - after.free, u64::from(geometry.cluster_blocks) - 2);
        })
        .await;
    });
}
