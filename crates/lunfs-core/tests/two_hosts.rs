//! Two hosts on a disk without faults: locks are handed over, and a dead host is taken over.

mod support;

use std::rc::Rc;

use futures_util::future::{join, join_all};
use lunfs_core::env::Env;
use lunfs_core::{Kind, StopReason, Volume};
use lunfs_format::Sizes;
use support::{
    Ram, Time, beside, block_on, directory, env, env_with_disk, file, formatted_as, left_after,
    mount, on_two_hosts, pattern, sleep,
};

/// Runs `story` on two hosts that both serve.
fn with_two(story: impl AsyncFnOnce(&Rc<Volume>, &Rc<Volume>)) {
    let (env, time) = env(256 << 20);
    block_on(&time, async {
        formatted_as(&env, Sizes::default()).await;
        on_two_hosts(&env, story).await;
    });
}

#[test]
fn a_second_host_sees_what_the_first_wrote_and_back() {
    with_two(async |a, b| {
        let dir = a.create(a.root(), b"dir", directory()).await.expect("creates").id;
        for i in 0..50 {
            let name = format!("f{i}");
            let id = a.create(dir, name.as_bytes(), file()).await.expect("creates").id;
            a.write(id, 0, pattern(i * 700, i as u8)).await.expect("writes");
        }
        for i in 0..50 {
            let name = format!("f{i}");
            let id = b.lookup(dir, name.as_bytes()).await.expect("finds").id;
            assert_eq!(b.read(id, 0, 1 << 20).await.expect("reads"), pattern(i * 700, i as u8));
            b.write(id, 0, b"changed by b".to_vec()).await.expect("writes");
        }
        let id = a.lookup(dir, b"f7").await.expect("finds").id;
        assert_eq!(a.read(id, 0, 12).await.expect("reads"), b"changed by b");
        assert_eq!(b.readdir(dir, 0, 1000).await.expect("lists").len(), 50);
        assert!(a.counters().handovers + a.counters().locks_released > 0);
    });
}

#[test]
fn two_hosts_in_one_directory_both_get_on() {
    with_two(async |a, b| {
        let work = async |v: &Rc<Volume>, who: &str| {
            for i in 0..40 {
                let name = format!("{who}{i}");
                let id = v.create(v.root(), name.as_bytes(), file()).await.expect("creates").id;
                v.write(id, 0, pattern(5000, i)).await.expect("writes");
                if i % 3 == 0 {
                    v.unlink(v.root(), name.as_bytes()).await.expect("unlinks");
                }
            }
        };
        join(work(a, "a"), work(b, "b")).await;
        assert_eq!(a.readdir(a.root(), 0, 1000).await.expect("lists").len(), 2 * 26);
        assert_eq!(b.readdir(b.root(), 0, 1000).await.expect("lists").len(), 2 * 26);
    });
}

/// Taking a lock costs a flush: a listing that took each of 20,000 would last minutes.
#[test]
fn who_only_looks_takes_no_lock_and_who_comes_back_does() {
    let (env, time) = env(256 << 20);
    block_on(&time, async {
        formatted_as(&env, Sizes::default()).await;
        let a = mount(&env, "a").await;
        let ids = left_after(&a, async {
            let mut ids = Vec::new();
            for i in 0..50 {
                let name = format!("f{i}");
                ids.push(a.create(a.root(), name.as_bytes(), file()).await.expect("creates").id);
            }
            ids
        })
        .await;
        let b = mount(&env, "b").await;
        let look = async {
            // It takes the lock of its own orphan directory first.
            sleep(&env, 100).await;
            let before = b.counters().locks_acquired;
            for id in ids.iter().flat_map(|id| [id; 3]) {
                b.getattr(*id).await.expect("works");
            }
            assert_eq!(b.counters().locks_acquired, before);
            b.getattr(ids[0]).await.expect("works");
            assert_eq!(b.counters().locks_acquired, before + 1);
        };
        beside(b.serve(), look).await;
    });
}

#[test]
fn a_survivor_finds_what_the_dead_host_had_synced() {
    let (env, time): (Env, Time) = env(256 << 20);
    block_on(&time, async {
        formatted_as(&env, Sizes::default()).await;
        let a = mount(&env, "a").await;
        let dead = a.slot();
        let root = a.root();
        let b = beside(a.serve(), async {
            let b = mount(&env, "b").await;
            for i in 0..30 {
                let name = format!("f{i}");
                let id = a.create(root, name.as_bytes(), file()).await.expect("creates").id;
                a.write(id, 0, pattern(30_000, i)).await.expect("writes");
                a.fsync(id).await.expect("syncs");
            }
            b
        })
        .await;
        // A dies here: nobody polls it any more.
        env.fence.leave(dead);
        beside(b.serve(), async {
            for i in 0..30 {
                let name = format!("f{i}");
                let id = b.lookup(root, name.as_bytes()).await.expect("finds").id;
                assert_eq!(b.read(id, 0, 1 << 20).await.expect("reads"), pattern(30_000, i));
            }
            assert_eq!(b.counters().takeovers, 1);
            assert!(b.counters().images_applied > 0);
        })
        .await;
    });
}

/// Q13: two hosts fill one volume. What one of them deletes then, both may use.
#[test]
fn two_hosts_on_a_full_volume_both_get_on() {
    with_two(async |a, b| {
        let mut made = Vec::new();
        for (host, name) in [(a, b"a"), (b, b"b")] {
            let dir = host.create(host.root(), name, directory()).await.expect("works").id;
            made.push((host, dir));
        }
        let full = join_all(made.iter().map(async |(host, dir)| {
            for i in 0.. {
                let id = host.create(*dir, format!("f{i}").as_bytes(), file()).await?.id;
                host.write(id, 0, pattern(3 << 20, i as u8)).await?;
            }
            Ok::<(), lunfs_core::Error>(())
        }))
        .await;
        for end in full {
            assert_eq!(end.expect_err("the volume is small").kind, Kind::NoSpace);
        }
        for (host, dir) in &made {
            for i in 0..3 {
                host.unlink(*dir, format!("f{i}").as_bytes()).await.expect("frees 3 MiB");
            }
            host.sync().await.expect("works");
            for (host, dir) in &made {
                let id = host.create(*dir, b"again", file()).await.expect("works").id;
                host.write(id, 0, pattern(2 << 20, 7)).await.expect("has space again");
                host.fsync(id).await.expect("works");
                host.unlink(*dir, b"again").await.expect("works");
            }
        }
    });
}

/// A host had filled the volume and deleted everything again: it held every cluster, empty as they
/// were, and no other host found one for its journal.
#[test]
fn who_once_filled_the_volume_locks_nobody_out() {
    let (env, time) = env(64 << 20);
    block_on(&time, async {
        support::formatted(&env).await;
        let a = mount(&env, "a").await;
        let mut serve_a = Box::pin(a.serve());
        let b = beside(&mut serve_a, async {
            let id = a.create(a.root(), b"f", file()).await.expect("works").id;
            for i in 0.. {
                if a.write(id, i << 20, pattern(1 << 20, 1)).await.is_err() {
                    break;
                }
            }
            a.unlink(a.root(), b"f").await.expect("works");
            mount(&env, "b").await
        })
        .await;
        let story = async {
            b.create(b.root(), b"g", file()).await.expect("works");
            a.unmount().await.expect("works");
            b.unmount().await.expect("works");
        };
        let (ends, ()) = join(join(serve_a, b.serve()), story).await;
        assert_eq!(ends, (StopReason::Unmounted, StopReason::Unmounted));
        support::check_clean(&env).await;
    });
}

/// Whole blocks of the disk that carry a header of this kind, by address in bytes.
fn blocks_of_kind(disk: &Ram, from: u64, to: u64, kind: u16) -> Vec<u64> {
    (from..to)
        .step_by(4096)
        .filter(|at| lunfs_format::kind_of(&disk.get(*at, 4096)) == Some(kind))
        .collect()
}

/// Q3: a record rots in the middle of a dead host's journal. Replaying what lies before it would
/// drop what was acknowledged after it, so nothing is replayed, and the claim is handed back.
#[test]
fn a_journal_that_is_broken_in_its_middle_is_not_replayed() {
    let (env, time, disk) = env_with_disk(256 << 20);
    block_on(&time, async {
        formatted_as(&env, Sizes::default()).await;
        let a = mount(&env, "a").await;
        let (root, dead) = (a.root(), a.slot());
        let b = beside(a.serve(), async {
            let b = mount(&env, "b").await;
            for i in 0..12 {
                let name = format!("f{i}");
                let id = a.create(root, name.as_bytes(), file()).await.expect("creates").id;
                a.fsync(id).await.expect("syncs");
            }
            b
        })
        .await;
        let heads = blocks_of_kind(&disk, 0, 256 << 20, lunfs_format::kind::JOURNAL_RECORD);
        assert!(heads.len() >= 10);
        let middle = heads[5];
        let mut bytes = disk.get(middle, 4096);
        bytes[200] ^= 1;
        disk.put(middle, &bytes);
        env.fence.leave(dead);
        beside(b.serve(), async {
            env.clock.sleep(std::time::Duration::from_secs(20)).await;
            assert!(b.counters().claims_handed_back > 0);
            assert_eq!((b.counters().takeovers, b.counters().images_applied), (0, 0));
        })
        .await;
    });
}

/// R8: the last record is torn, inside of an image whose header is whole. It was never
/// acknowledged; everything before it is.
#[test]
fn a_torn_last_record_ends_the_journal() {
    let (env, time, disk) = env_with_disk(256 << 20);
    block_on(&time, async {
        formatted_as(&env, Sizes::default()).await;
        let a = mount(&env, "a").await;
        let (root, dead) = (a.root(), a.slot());
        let b = beside(a.serve(), async {
            let b = mount(&env, "b").await;
            for i in 0..12 {
                let name = format!("f{i}");
                let id = a.create(root, name.as_bytes(), file()).await.expect("creates").id;
                a.fsync(id).await.expect("syncs");
            }
            b
        })
        .await;
        let heads = blocks_of_kind(&disk, 0, 256 << 20, lunfs_format::kind::JOURNAL_RECORD);
        let first_image = heads[heads.len() - 1] + 4096;
        disk.put(first_image + 2048, &[0x55; 512]);
        env.fence.leave(dead);
        left_after(&b, async {
            for i in 0..11 {
                b.lookup(root, format!("f{i}").as_bytes()).await.expect("was synced");
            }
            let last = b.lookup(root, b"f11").await.expect_err("its record was torn");
            assert_eq!(last.kind, Kind::NotFound);
            assert_eq!(b.counters().takeovers, 1);
        })
        .await;
        support::check_clean(&env).await;
    });
}

/// H5: the array goes back to an earlier time under a running host. It stops and says so.
#[test]
fn a_host_whose_disk_goes_back_in_time_stops() {
    let (env, time, disk) = env_with_disk(256 << 20);
    block_on(&time, async {
        formatted_as(&env, Sizes::default()).await;
        let a = mount(&env, "a").await;
        let slot = a.superblock().geometry().slot_offset(a.slot());
        let story = async {
            let before = disk.get(slot, 512);
            env.clock.sleep(std::time::Duration::from_secs(3)).await;
            disk.put(slot, &before);
        };
        let (why, ()) = join(a.serve(), story).await;
        let StopReason::Stopped(why) = why else { panic!("it went on") };
        assert!(why.contains("back in time"), "{why}");
    });
}
