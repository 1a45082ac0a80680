//! Single damaged blocks under running hosts: an error that names place and cure, never a wait
//! without an end.

mod support;

use std::rc::Rc;

use futures_util::future::join;
use lunfs_core::{FileId, Kind, Volume};
use support::moody::why;
use support::{
    Ram, beside, block_on, env_with_disk, file, formatted, left_after, mount, pattern, sleep,
    within,
};

/// Overwrites a host's pulse with what is no pulse.
fn damage_pulse(disk: &Ram, of: &Volume) {
    let at = of.superblock().geometry().slot_offset(of.slot());
    disk.put(at, &[0xA5; 512]);
}

/// A mounts, makes a file and is gone without a trace; returns both.
async fn left_behind(env: &lunfs_core::env::Env) -> (Rc<Volume>, FileId) {
    let a = mount(env, "a").await;
    let work = async {
        let id = a.create(a.root(), b"f", file()).await.expect("works").id;
        a.write(id, 0, pattern(5000, 1)).await.expect("works");
        a.sync().await.expect("works");
        id
    };
    let id = beside(a.serve(), work).await;
    (a, id)
}

/// Everything that needed one of its locks hung in the kernel for ever, without a line in the log,
/// and the host that waited could not even be unmounted.
#[test]
fn what_a_damaged_slot_had_locked_is_an_error_and_no_endless_wait() {
    let (env, time, disk) = env_with_disk(256 << 20);
    block_on(&time, async {
        formatted(&env).await;
        let (a, id) = left_behind(&env).await;
        damage_pulse(&disk, &a);
        env.fence.leave(a.slot());
        let b = mount(&env, "b").await;
        let story = async {
            let read = within(&env, 30_000, b.getattr(id)).await.expect_err("nobody can know");
            assert_eq!(read.kind, Kind::Corrupt);
            assert!(read.what.contains(&format!("slot {}", a.slot())), "{read}");
            assert!(read.what.contains("--repair"), "{read}");
            let made = within(&env, 30_000, b.create(b.root(), b"g", file())).await;
            assert_eq!(made.expect_err("the directory is locked").kind, Kind::Corrupt);
            within(&env, 60_000, b.unmount()).await.expect("leaves");
        };
        join(b.serve(), story).await;
    });
}

/// It was suspended for ever: its pulses did not fit what was on the disk, and what was on the disk
/// was nothing that could be judged.
#[test]
fn a_host_whose_own_pulse_is_damaged_stops_when_its_lease_is_over() {
    let (env, time, disk) = env_with_disk(256 << 20);
    block_on(&time, async {
        formatted(&env).await;
        let a = mount(&env, "a").await;
        let story = async {
            sleep(&env, 2_000).await;
            damage_pulse(&disk, &a);
        };
        let stopped = within(&env, 20_000, join(a.serve(), story)).await.0;
        assert!(why(stopped).contains("is damaged on the disk"));
    });
}

/// A bad reading of another host's slot is no reason to give up: the next pulse lies over it.
#[test]
fn a_slot_that_is_readable_again_is_waited_for_as_ever() {
    let (env, time, disk) = env_with_disk(256 << 20);
    block_on(&time, async {
        formatted(&env).await;
        let (a, id) = left_behind(&env).await;
        let at = a.superblock().geometry().slot_offset(a.slot());
        let pulse = disk.get(at, 512);
        damage_pulse(&disk, &a);
        let b = mount(&env, "b").await;
        let story = async {
            let mended = async {
                sleep(&env, 6_000).await;
                disk.put(at, &pulse);
                env.fence.leave(a.slot());
            };
            let read = within(&env, 30_000, join(b.getattr(id), mended)).await.0;
            assert_eq!(read.expect("was recovered").size, 5000);
        };
        beside(b.serve(), story).await;
    });
}

/// Programs were told of a stale handle, which a program tries again; the name is damage.
#[test]
fn a_name_whose_lock_is_damaged_is_damage_and_no_stale_handle() {
    let (env, time, disk) = env_with_disk(256 << 20);
    block_on(&time, async {
        formatted(&env).await;
        let a = mount(&env, "a").await;
        let id =
            left_after(&a, async { a.create(a.root(), b"f", file()).await.expect("works").id })
                .await;
        env.fence.leave(a.slot());
        disk.put(id.addr.offset() + 100, &[0xFF; 8].repeat(64));
        let b = mount(&env, "b").await;
        let story = async {
            let found = b.lookup(b.root(), b"f").await.expect_err("damaged");
            assert_eq!(found.kind, Kind::Corrupt);
            assert!(found.what.contains(&id.addr.to_string()), "{found}");
            let removed = b.unlink(b.root(), b"f").await.expect_err("damaged");
            assert_eq!(removed.kind, Kind::Corrupt);
        };
        beside(b.serve(), story).await;
    });
}
