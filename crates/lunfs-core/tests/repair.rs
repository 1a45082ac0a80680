//! Damage that can be mended without guessing, and is: `lunfs check --repair`.

mod support;

use lunfs_core::check::{self, Repair};
use lunfs_core::env::Env;
use lunfs_core::{Identity, Kind, Volume};
use lunfs_format::{Cluster, DOORBELLS, Lock, SUPERBLOCK_COPIES, SlotNo, Superblock};
use support::{
    Ram, beside, block_on, check_clean, env_with_disk, file, formatted, left_after, mount, pattern,
};

async fn repaired(env: &Env) -> Vec<Repair> {
    check::repair(env, &Identity::default()).await.expect("nobody has it mounted")
}

async fn superblock(env: &Env) -> Superblock {
    let at = SUPERBLOCK_COPIES[1];
    Superblock::decode(&env.disk.read(at.offset(), 4096).await.expect("reads"), at).expect("whole")
}

/// Writes a synced file and returns what must be there.
async fn write_some(v: &Volume) -> Vec<u8> {
    let id = v.create(v.root(), b"f", file()).await.expect("works").id;
    v.write(id, 0, pattern(300_000, 3)).await.expect("works");
    v.fsync(id).await.expect("works");
    pattern(300_000, 3)
}

async fn read_it(v: &Volume) -> Vec<u8> {
    let id = v.lookup(v.root(), b"f").await.expect("is there").id;
    v.read(id, 0, 300_000).await.expect("reads")
}

/// A host that died, whose pulse was damaged afterwards: its journal says which life it was, and
/// what it had made durable is there once somebody has replayed it.
#[test]
fn a_dead_hosts_damaged_pulse_is_made_anew_and_its_journal_replayed() {
    let (env, time, disk) = env_with_disk(256 << 20);
    block_on(&time, async {
        formatted(&env).await;
        let a = mount(&env, "a").await;
        let wanted = beside(a.serve(), write_some(&a)).await;
        env.fence.leave(a.slot());
        let at = a.superblock().geometry().slot_offset(a.slot());
        disk.put(at, &[7; 512]);
        let done = repaired(&env).await;
        let [Repair::Pulse { slot, has_died: true, .. }] = done[..] else { panic!("{done:?}") };
        assert_eq!(slot, a.slot());
        let b = mount(&env, "b").await;
        left_after(&b, async {
            assert!(read_it(&b).await == wanted, "what was synced");
            assert!(b.counters().images_applied > 0);
        })
        .await;
        check_clean(&env).await;
    });
}

/// A slot that was left cleanly, one that nobody ever used, a doorbell, and all that with a copy
/// of the superblock: nothing is lost, and everybody can join again.
#[test]
fn damaged_meeting_places_are_made_anew() {
    let (env, time, disk) = env_with_disk(256 << 20);
    block_on(&time, async {
        formatted(&env).await;
        let a = mount(&env, "a").await;
        let wanted = left_after(&a, async { write_some(&a).await }).await;
        env.fence.leave(a.slot());
        let geometry = superblock(&env).await.geometry();
        disk.put(geometry.slot_offset(a.slot()), &[7; 512]);
        disk.put(geometry.slot_offset(SlotNo(9)), &[7; 512]);
        disk.put(geometry.doorbell_offset(SlotNo(4), DOORBELLS - 1), &[7; 512]);
        disk.put(SUPERBLOCK_COPIES[0].offset(), &[7; 4096]);
        assert_eq!(repaired(&env).await.len(), 4);
        assert_eq!(repaired(&env).await, []);
        let b = mount(&env, "b").await;
        left_after(&b, async {
            assert!(read_it(&b).await == wanted, "what was there");
        })
        .await;
        check_clean(&env).await;
    });
}

/// Lets the header of a cluster say something else, with everything around it right.
async fn edit_bitmap(env: &Env, disk: &Ram, index: u64, edit: impl Fn(&mut Cluster)) {
    let sb = superblock(env).await;
    let at = sb.geometry().cluster_start(index);
    let mut header =
        Cluster::decode(&disk.get(at.plus(1).offset(), 4096), sb.volume, at.plus(1)).expect("one");
    edit(&mut header);
    let body = header.encode(sb.volume, at.plus(1));
    disk.put(at.plus(1).offset(), &body[..]);
    let mut lock = Lock::decode(&disk.get(at.offset(), 512), sb.volume, at).expect("a lock");
    lock.stamp.checksum = lunfs_format::stored_checksum(&body[..]);
    disk.put(at.offset(), &lock.encode(sb.volume, at)[..]);
}

/// Blocks that a bitmap called free although a file has them would have been given to the next one;
/// blocks that it called used although nothing has them were lost for ever.
#[test]
fn a_bitmap_that_lies_is_counted_anew() {
    let (env, time, disk) = env_with_disk(256 << 20);
    block_on(&time, async {
        formatted(&env).await;
        let a = mount(&env, "a").await;
        left_after(&a, async {
            write_some(&a).await;
        })
        .await;
        env.fence.leave(a.slot());
        // The root's descriptor is in use, the end of a cluster that was never used is not.
        edit_bitmap(&env, &disk, 0, |header| header.bitmap.set_run(2, 2, false)).await;
        edit_bitmap(&env, &disk, 40, |header| header.bitmap.set_run(1000, 24, true)).await;
        let options = check::Options { offline: true, progress: None };
        let report = check::check(&*env.disk, &options).await.expect("checks");
        assert_eq!(report.errors().count(), 2, "{:#?}", report.findings);
        assert_eq!(repaired(&env).await.len(), 2);
        check_clean(&env).await;
        let b = mount(&env, "b").await;
        left_after(&b, async {
            assert_eq!(read_it(&b).await.len(), 300_000);
            write_some_more(&b).await;
        })
        .await;
        check_clean(&env).await;
    });
}

async fn write_some_more(v: &Volume) {
    let id = v.create(v.root(), b"g", file()).await.expect("works").id;
    v.write(id, 0, pattern(30 << 20, 4)).await.expect("works");
}

#[test]
fn nothing_is_repaired_while_somebody_has_it_mounted() {
    let (env, time, disk) = env_with_disk(256 << 20);
    block_on(&time, async {
        formatted(&env).await;
        let a = mount(&env, "a").await;
        let at = a.superblock().geometry().slot_offset(SlotNo(9));
        disk.put(at, &[7; 512]);
        let refused = check::repair(&env, &Identity::default()).await.expect_err("a is there");
        assert_eq!(refused.kind, Kind::Busy);
        assert_eq!(disk.get(at, 512), [7; 512]);
        let elsewhere = Identity { machine: [9; 16], ..Identity::default() };
        env.fence.leave(a.slot());
        let refused = check::repair(&env, &elsewhere).await.expect_err("it may live there");
        assert!(refused.what.contains("another machine"), "{refused}");
        assert_eq!(disk.get(at, 512), [7; 512]);
    });
}

/// Both headers of the journal are gone: nobody knows which life it was, or what it had synced.
#[test]
fn what_would_be_a_guess_is_left_alone() {
    let (env, time, disk) = env_with_disk(256 << 20);
    block_on(&time, async {
        formatted(&env).await;
        let a = mount(&env, "a").await;
        beside(a.serve(), write_some(&a)).await;
        env.fence.leave(a.slot());
        for (at, _) in support::journal_headers(&disk, &a) {
            disk.put(at.offset(), &[7; 4096]);
        }
        let at = a.superblock().geometry().slot_offset(a.slot());
        disk.put(at, &[7; 512]);
        assert_eq!(repaired(&env).await, []);
        assert_eq!(disk.get(at, 512), [7; 512]);
    });
}
