//! Corners: sizes nobody writes, errors in the middle, damaged blocks, leaving while others wait.
//! Each is the story of how something was lost, or waited for without end.

mod support;

use futures_util::future::join;
use lunfs_core::{Fallocate, Kind, RenameMode, SetAttr, StopReason, Volume, XattrMode};
use lunfs_format::{
    BLOCK, BlockNo, Cluster, Content, Descriptor, Holder, Incarnation, JOURNAL_ORPHANS, Lock,
    LockMode, LockObject, SlotNo, Stamp, Tree, Version, VolumeId,
};
use support::{
    Ram, block_on, check_clean, damage, directory, env, env_with_disk, file, formatted, left_after,
    mount, pattern, served, sleep, within,
};

/// A hole over a file of terabytes without a block went through every file block that could be
/// there, without ever giving others a turn: the host lost its lease over it.
#[test]
fn a_hole_in_nothing_takes_no_time() {
    let (env, time) = env(256 << 20);
    block_on(&time, async {
        formatted(&env).await;
        let a = mount(&env, "a").await;
        served(&[&a], async {
            let id = a.create(a.root(), b"sparse", file()).await.expect("works").id;
            let size = 1 << 46;
            let set = SetAttr { size: Some(size), ..SetAttr::default() };
            a.setattr(id, set).await.expect("works");
            a.write(id, 1 << 40, pattern(300_000, 1)).await.expect("works");
            a.write(id, 1 << 44, pattern(300_000, 2)).await.expect("works");
            a.fallocate(id, 5000, 1 << 44, Fallocate::PunchHole).await.expect("works");
            assert_eq!(a.read(id, 1 << 40, 300_000).await.expect("works"), vec![0; 300_000]);
            let rest = a.read(id, 1 << 44, 300_000).await.expect("works");
            assert_eq!(rest[..5000], vec![0; 5000]);
            assert_eq!(rest[5000..], pattern(300_000, 2)[5000..]);
            a.fallocate(id, 0, size, Fallocate::PunchHole).await.expect("works");
            assert_eq!(a.read(id, 1 << 44, 300_000).await.expect("works"), vec![0; 300_000]);
            a.sync().await.expect("works");
            assert_eq!(a.getattr(id).await.expect("works").blocks, 0);
        })
        .await;
    });
}

/// To zero a range gave up the space of a file that had all of it promised: a guest that wrote
/// zeroes to a preallocated disk met a full volume later.
#[test]
fn zeroing_keeps_the_space_that_was_promised() {
    let (env, time) = env(256 << 20);
    block_on(&time, async {
        formatted(&env).await;
        let a = mount(&env, "a").await;
        served(&[&a], async {
            let id = a.create(a.root(), b"thick", file()).await.expect("works").id;
            let whole = Fallocate::Allocate { keep_size: false };
            a.fallocate(id, 0, 4 << 20, whole).await.expect("works");
            a.write(id, 1 << 20, pattern(1 << 20, 1)).await.expect("works");
            a.sync().await.expect("works");
            let before = a.getattr(id).await.expect("works").blocks;
            let zero = Fallocate::ZeroRange { keep_size: true };
            a.fallocate(id, 5000, 3 << 20, zero).await.expect("works");
            a.sync().await.expect("works");
            assert_eq!(a.getattr(id).await.expect("works").blocks, before);
            assert_eq!(a.read(id, 1 << 20, 1 << 20).await.expect("works"), vec![0; 1 << 20]);
        })
        .await;
    });
}

/// A long write was put into the map before the size said so. The host died in between; whoever
/// made the file longer then found bytes that nobody had been told of, where zeroes belong.
#[test]
fn nothing_comes_up_behind_the_end_of_a_file() {
    let (env, time) = env(512 << 20);
    block_on(&time, async {
        formatted(&env).await;
        let a = mount(&env, "a").await;
        let b = mount(&env, "b").await;
        served(&[&b], async {
            let id = served(&[&a], async {
                let id = a.create(a.root(), b"f", file()).await.expect("works").id;
                a.fsync(id).await.expect("works");
                a.write(id, 0, pattern(11 << 20, 1)).await.expect("works");
                sleep(&env, 200).await;
                id
            })
            .await;
            env.fence.leave(a.slot());
            let size = b.getattr(id).await.expect("works").size;
            let set = SetAttr { size: Some(11 << 20), ..SetAttr::default() };
            b.setattr(id, set).await.expect("works");
            let found = b.read(id, size, 11 << 20).await.expect("works");
            assert!(found.iter().all(|byte| *byte == 0), "size was {size}");
        })
        .await;
    });
}

/// Who left did not answer its doorbell any more while it waited for its own last operations.
/// Another host, which they waited for, waited for a lock of the one that left.
#[test]
fn who_leaves_gives_up_locks_until_its_operations_ended() {
    for round in 0..4 {
        let (env, time) = env(256 << 20);
        block_on(&time, async {
            formatted(&env).await;
            let a = mount(&env, "a").await;
            let story = async {
                let b = mount(&env, "b").await;
                let dir = served(&[&b], async {
                    let dir = b.create(b.root(), b"dir", directory()).await.expect("works").id;
                    b.create(dir, b"f", file()).await.expect("works");
                    b.sync().await.expect("works");
                    dir
                })
                .await;
                env.fence.leave(b.slot());
                drop(b);
                // A recovers it, and keeps the lock of the orphan directory that it looked into.
                sleep(&env, 8000 + round * 50).await;
                assert_eq!(a.counters().takeovers, 1);
                let b = mount(&env, "b").await;
                served(&[&b], async {
                    // Has the directory, and waits for the orphan directory.
                    let other = b.unlink(dir, b"f");
                    let mine = async {
                        sleep(&env, 20).await;
                        a.create(dir, b"g", file()).await
                    };
                    let leave = async {
                        sleep(&env, 40).await;
                        a.unmount().await
                    };
                    let all = join(other, join(mine, leave));
                    let (other, (_, left)) = within(&env, 60_000, all).await;
                    other.expect("unlinks");
                    left.expect("leaves");
                })
                .await;
            };
            assert_eq!(join(a.serve(), story).await.0, StopReason::Unmounted);
        });
    }
}

/// The lock of a file whose descriptor is damaged stayed with whoever met it first; all others
/// waited for it instead of being told.
#[test]
fn a_damaged_file_is_an_error_on_every_host() {
    let (env, time, disk) = env_with_disk(256 << 20);
    block_on(&time, async {
        formatted(&env).await;
        let a = mount(&env, "a").await;
        let id =
            left_after(&a, async { a.create(a.root(), b"f", file()).await.expect("works").id })
                .await;
        env.fence.leave(a.slot());
        disk.put(id.addr.plus(1).offset() + 512, &[0xAB; 512]);
        let a = mount(&env, "a").await;
        let b = mount(&env, "b").await;
        served(&[&a, &b], async {
            for v in [&a, &b, &a] {
                let answer = within(&env, 60_000, v.getattr(id)).await;
                assert_eq!(answer.expect_err("damaged").kind, Kind::Corrupt);
                let set = SetAttr { mode: Some(0), ..SetAttr::default() };
                let answer = within(&env, 60_000, v.setattr(id, set)).await;
                assert_eq!(answer.expect_err("damaged").kind, Kind::Corrupt);
            }
        })
        .await;
    });
}

/// A map that points to where no block of a file can be, or to free blocks, took the program down,
/// and each that came after it.
#[test]
fn a_map_that_points_nowhere_is_an_error() {
    for block in [5, 1 << 39, 2, 3] {
        let (env, time, disk) = env_with_disk(256 << 20);
        block_on(&time, async {
            formatted(&env).await;
            let a = mount(&env, "a").await;
            let id = left_after(&a, async {
                let id = a.create(a.root(), b"f", file()).await.expect("works").id;
                a.write(id, 0, pattern(300_000, 1)).await.expect("works");
                id
            })
            .await;
            env.fence.leave(a.slot());
            damage(&disk, &a, id, |body| {
                let Content::Tree(Tree::Inline(node)) = &mut body.content else { panic!("a map") };
                let entry = lunfs_format::MapEntry::decode(&node.entries[1].1).expect("an entry");
                // Outside all clusters, across the end of its own, free.
                let at = entry.block.expect("has one");
                let geometry = a.superblock().geometry();
                let cluster = geometry.cluster_of(at).expect("in one");
                let end = geometry.cluster_start(cluster + 1);
                let block = match block {
                    2 => BlockNo(end.0 - 9),
                    3 => BlockNo(end.0 - 64),
                    outside => BlockNo(outside),
                };
                let bad = lunfs_format::MapEntry { block: Some(block), ..entry };
                node.entries[1].1 = bad.encode().to_vec();
            });
            let a = mount(&env, "a").await;
            served(&[&a], async {
                let set = SetAttr { size: Some(10), ..SetAttr::default() };
                let cut = a.setattr(id, set).await;
                // What is free already shows when the cluster is here to free it in.
                let found = cut.map_or_else(|e| e.kind == Kind::Corrupt, |_| block == 3);
                assert!(found, "{block}");
                let id = a.create(a.root(), b"g", file()).await.expect("works").id;
                a.unlink(a.root(), b"f").await.expect("works");
                sleep(&env, 20_000).await;
                a.write(id, 0, pattern(300_000, 1)).await.expect("works");
                a.fsync(id).await.expect("works");
            })
            .await;
        });
    }
}

/// A name whose file is gone, as the target of a rename, was looked up again and again.
#[test]
fn a_rename_over_a_name_without_a_file_ends() {
    let (env, time, disk) = env_with_disk(256 << 20);
    block_on(&time, async {
        formatted(&env).await;
        let a = mount(&env, "a").await;
        let id = left_after(&a, async {
            let id = a.create(a.root(), b"gone", file()).await.expect("works").id;
            a.create(a.root(), b"f", file()).await.expect("works");
            id
        })
        .await;
        env.fence.leave(a.slot());
        disk.put(id.addr.offset(), &[0; 512]);
        let a = mount(&env, "a").await;
        served(&[&a], async {
            let root = a.root();
            let over = a.rename(root, b"f", root, b"gone", RenameMode::Replace);
            let answer = within(&env, 60_000, over).await;
            assert_eq!(answer.expect_err("damaged").kind, Kind::Corrupt);
        })
        .await;
    });
}

/// Who leaves with a deleted file that was still open lists it; nobody freed it before somebody
/// came to the very same slot.
#[test]
fn space_of_orphans_comes_back_when_their_host_has_left() {
    let (env, time) = env(256 << 20);
    block_on(&time, async {
        formatted(&env).await;
        let a = mount(&env, "a").await;
        let b = mount(&env, "b").await;
        served(&[&a], async {
            let before = left_after(&b, async {
                b.create(b.root(), b"other", file()).await.expect("works");
                let before = a.space().await.expect("works").free;
                let id = b.create(b.root(), b"f", file()).await.expect("works").id;
                b.open(id);
                b.write(id, 0, pattern(40 << 20, 1)).await.expect("works");
                b.sync().await.expect("works");
                b.unlink(b.root(), b"f").await.expect("works");
                before
            })
            .await;
            env.fence.leave(b.slot());
            sleep(&env, 200_000).await;
            a.space().await.expect("works");
            let after = a.space().await.expect("works").free;
            assert!(after + 100 > before, "{before} before, {after} after");
        })
        .await;
    });
}

/// All attributes of a deleted file were freed in one transaction, however many there were.
#[test]
fn a_file_with_many_attributes_can_be_deleted() {
    let (env, time) = env(512 << 20);
    block_on(&time, async {
        formatted(&env).await;
        let a = mount(&env, "a").await;
        served(&[&a], async {
            a.create(a.root(), b"first", file()).await.expect("works");
            a.sync().await.expect("works");
            let before = a.space().await.expect("works").free;
            let id = a.create(a.root(), b"f", file()).await.expect("works").id;
            for i in 0..200 {
                let name = format!("user.{i:0200}");
                let value = pattern(64 << 10, i as u8);
                a.set_xattr(id, name.as_bytes(), &value, XattrMode::Any).await.expect("works");
            }
            a.unlink(a.root(), b"f").await.expect("works");
            sleep(&env, 30_000).await;
            assert_eq!(a.space().await.expect("works").free, before);
        })
        .await;
    });
}

/// The only host of a full volume died. Its slot was not free, a new slot had no journal, and there
/// was no empty cluster for one: nobody could ever mount that volume again.
#[test]
fn a_full_volume_whose_hosts_died_can_be_mounted() {
    let (env, time) = env(256 << 20);
    block_on(&time, async {
        formatted(&env).await;
        let a = mount(&env, "a").await;
        let last = served(&[&a], async {
            for i in 0.. {
                let name = format!("f{i}");
                let id = match a.create(a.root(), name.as_bytes(), file()).await {
                    Ok(made) => made.id,
                    Err(_) => return i - 1,
                };
                if a.write(id, 0, pattern(8 << 20, i as u8)).await.is_err() {
                    return i - 1;
                }
                a.fsync(id).await.expect("works");
            }
            unreachable!("a volume has an end")
        })
        .await;
        env.fence.leave(a.slot());
        let b = mount(&env, "b").await;
        assert_eq!(b.slot(), a.slot(), "there is one journal");
        left_after(&b, async {
            let name = format!("f{last}");
            let id = b.lookup(b.root(), name.as_bytes()).await.expect("was synced").id;
            let data = b.read(id, 0, 8 << 20).await.expect("reads");
            assert!(data == pattern(8 << 20, last as u8), "the bytes of {name}");
            b.unlink(b.root(), name.as_bytes()).await.expect("works");
        })
        .await;
        check_clean(&env).await;
    });
}

/// Makes files of this size until nothing more fits; how many there are.
async fn fill(a: &Volume, size: usize) -> u32 {
    for i in 0.. {
        let name = format!("f{i} of {size}");
        let Ok(made) = a.create(a.root(), name.as_bytes(), file()).await else { return i };
        if a.write(made.id, 0, pattern(size, i as u8)).await.is_err() {
            return i;
        }
    }
    unreachable!("a volume has an end")
}

/// The only host of a full volume died, came back, deleted and wrote at once: no space, for as long
/// as it went from cluster to cluster to free what was deleted.
#[test]
fn what_was_just_deleted_is_space_for_the_next_write() {
    let (env, time) = env(256 << 20);
    block_on(&time, async {
        formatted(&env).await;
        let size = 16 << 20;
        let a = mount(&env, "a").await;
        let files = served(&[&a], async {
            let files = fill(&a, size).await;
            a.sync().await.expect("works");
            files
        })
        .await;
        env.fence.leave(a.slot());
        let a = mount(&env, "a").await;
        served(&[&a], async {
            for i in 0..files {
                let name = format!("f{i} of {size}");
                a.unlink(a.root(), name.as_bytes()).await.expect("works");
            }
            let id = a.create(a.root(), b"new", file()).await.expect("works").id;
            for i in 0..100u64 {
                a.write(id, i << 20, pattern(1 << 20, 7)).await.expect("there is space");
            }
            a.fsync(id).await.expect("works");
        })
        .await;
    });
}

/// `df` promised space that only metadata may use.
#[test]
fn what_is_kept_for_metadata_is_free_but_not_available() {
    let (env, time) = env(256 << 20);
    block_on(&time, async {
        formatted(&env).await;
        let a = mount(&env, "a").await;
        served(&[&a], async {
            fill(&a, 1 << 20).await;
            fill(&a, 4096).await;
            a.sync().await.expect("works");
            let space = a.space().await.expect("works");
            let clusters = a.superblock().cluster_count;
            assert!(space.available <= 4 * clusters, "{space:?}");
            assert!(space.free >= 32 * clusters, "{space:?}");
        })
        .await;
    });
}

/// One bit of a lock was read wrong, and its file was called deleted: whoever asked was told that
/// it is gone, and the orphans of a dead host whose list's lock was read so stayed for ever.
#[test]
fn a_damaged_lock_is_not_a_deleted_file() {
    let (env, time, ram) = env_with_disk(256 << 20);
    block_on(&time, async {
        formatted(&env).await;
        let a = mount(&env, "a").await;
        let id = served(&[&a], async {
            let id = a.create(a.root(), b"f", file()).await.expect("works").id;
            a.fsync(id).await.expect("works");
            id
        })
        .await;
        env.fence.leave(a.slot());
        let mut lock = ram.get(id.addr.offset(), 512);
        lock[100] ^= 4;
        ram.put(id.addr.offset(), &lock);
        let b = mount(&env, "b").await;
        served(&[&b], async {
            for error in [b.getattr(id).await.err(), b.write(id, 0, vec![1; 10]).await.err()] {
                let error = error.expect("a lock that says nothing");
                assert_eq!(error.kind, Kind::Corrupt, "{error}");
                assert!(error.to_string().contains(&format!("block {}", id.addr)), "{error}");
            }
            lock[100] ^= 4;
            ram.put(id.addr.offset(), &lock);
            b.getattr(id).await.expect("it was there all the time");
        })
        .await;
    });
}

fn lock_at(disk: &Ram, volume: VolumeId, at: BlockNo) -> Lock {
    Lock::decode(&disk.get(at.offset(), 512), volume, at).expect("a lock")
}

/// A cluster that had served for files became a journal. Where a file had been deleted lay the new
/// host's orphan directory, born at the number of its slot's life, which was lower: generations at
/// an address began again, and who still knew a file of that birth there would have found it.
#[test]
fn an_orphan_directory_is_born_after_what_lay_in_its_place() {
    let (env, time, disk) = env_with_disk(256 << 20);
    block_on(&time, async {
        formatted(&env).await;
        let a = mount(&env, "a").await;
        served(&[&a], async {
            let sb = a.superblock();
            let geometry = sb.geometry();
            // The next joiner takes the last empty cluster; ours is behind it.
            let cluster = geometry.cluster_start(sb.cluster_count - 2);
            let at = cluster.plus(1);
            let header = disk.get(at.offset(), BLOCK);
            let mut header = Cluster::decode(&header, sb.volume, at).expect("a header");
            header.version.count = 40;
            let body = header.encode(sb.volume, at);
            disk.put(at.offset(), &body[..]);
            let mut lock = lock_at(&disk, sb.volume, cluster);
            lock.stamp = Stamp {
                version: header.version,
                checksum: lunfs_format::stored_checksum(&body[..]),
            };
            disk.put(cluster.offset(), &lock.encode(sb.volume, cluster)[..]);
            let b = mount(&env, "b").await;
            let lock = lock_at(&disk, sb.volume, cluster.plus(JOURNAL_ORPHANS));
            assert_eq!(lock.holder, Some(b.me()));
            assert!(lock.generation.birth > 40, "{}", lock.generation);
        })
        .await;
    });
}

/// Where a journal was to begin lay what a create had left that was never recorded: a lock of the
/// very birth that the orphan directory would have, over the body of a file deleted long ago. The
/// host called its own orphan directory deleted, and nobody could ever mount in that slot again.
#[test]
fn an_orphan_directory_is_made_over_a_create_that_was_never_recorded() {
    // The second time somebody has called it deleted, as every host did once.
    for mode in [LockMode::Exclusive, LockMode::Void] {
        joins_over_what_a_create_left(mode);
    }
}

fn joins_over_what_a_create_left(mode: LockMode) {
    let (env, time, disk) = env_with_disk(256 << 20);
    block_on(&time, async {
        formatted(&env).await;
        let a = mount(&env, "a").await;
        let (sb, geometry) = (a.superblock().clone(), a.superblock().geometry());
        // The next joiner takes the last empty cluster; ours is behind it.
        let orphans = geometry.cluster_start(sb.cluster_count - 2).plus(JOURNAL_ORPHANS);
        let of_the_dead = Holder { slot: SlotNo(9), incarnation: Incarnation(0) };
        let root = a.root();
        let body = disk.get(root.addr.plus(1).offset(), BLOCK);
        let mut body = Descriptor::decode(&body, sb.volume, root.addr.plus(1)).expect("the root");
        (body.kind, body.version) = (lunfs_format::FileKind::Void, Version { birth: 1, count: 7 });
        body.content = Content::Empty;
        let lock = Lock {
            mode,
            object: LockObject::Descriptor,
            holder: (mode == LockMode::Exclusive).then_some(of_the_dead),
            generation: Version { birth: 2, count: 1 },
            nonce: 77,
            stamp: Stamp::default(),
            giver: None,
            payload: 0,
        };
        disk.put(orphans.offset(), &lock.encode(sb.volume, orphans)[..]);
        let at = orphans.plus(1);
        disk.put(at.offset(), &body.encode(sb.volume, at)[..]);
        served(&[&a], async {
            let b = mount(&env, "b").await;
            let lock = lock_at(&disk, sb.volume, orphans);
            assert_eq!(lock.holder, Some(b.me()));
            assert_eq!(lock.generation.birth, 2, "the very birth that lay there");
            served(&[&b], async {
                b.create(root, b"f", file()).await.expect("works");
            })
            .await;
        })
        .await;
    });
}
