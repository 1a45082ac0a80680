//! What a host may believe of a lock that it sees.

mod support;

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use futures_util::future::join;
use lunfs_core::env::Env;
use lunfs_core::{FileId, Kind, RenameMode, StopReason, Volume};
use lunfs_format::{BlockNo, Lock, RENAME_LOCK, RecordHead};
use support::moody::{Ask, Fault, Moody, World, world};
use support::{
    Ram, beside, block_on, check_clean, check_mounted, directory, file, formatted, journal_headers,
    left_after, mount, pattern, served, sleep, within,
};

/// The lock of the root, when it is given to somebody by name, comes as far as a cache of the disk.
/// Returns how often it was.
fn root_is_given_into_a_cache(disk: &Moody, v: &Volume) -> Rc<Cell<u32>> {
    let (volume, root) = (v.superblock().volume, v.root().addr);
    let given = Rc::new(Cell::new(0));
    let count = given.clone();
    disk.when(move |asked| {
        let is_given = asked.ask == Ask::Swap
            && asked.at == root.offset()
            && Lock::decode(asked.new, volume, root).is_ok_and(|lock| lock.giver.is_some());
        count.set(count.get() + u32::from(is_given));
        is_given.then_some(Fault::Cache)
    });
    given
}

/// A lock was given by name, which the one it named saw before it was durable. It gave a file a
/// second name, durably, and the power failed: the lock of the directory was the giver's again.
/// Replay refused the directory, whose lock another life held, and applied the rest: the file had
/// two links and one name.
#[test]
fn a_lock_that_was_given_is_durable_before_what_is_committed_under_it() {
    let World { env, time, disk } = world();
    block_on(&time, async {
        formatted(&env).await;
        let (a, b) = (mount(&env, "a").await, mount(&env, "b").await);
        let root = b.root();
        served(&[&a, &b], async {
            let id = b.create(root, b"old", file()).await.expect("works").id;
            b.write(id, 0, pattern(5000, 2)).await.expect("works");
            b.sync().await.expect("works");
            a.create(root, b"of a", file()).await.expect("works");
            a.sync().await.expect("works");
            let given = root_is_given_into_a_cache(&disk, &a);
            b.link(id, root, b"new").await.expect("works");
            b.fsync(root).await.expect("works");
            assert_eq!(given.get(), 1);
        })
        .await;
        disk.lose_power();
        disk.well();
        env.fence.leave(a.slot());
        env.fence.leave(b.slot());
        drop((a, b));

        let c = mount(&env, "c").await;
        left_after(&c, async {
            let kept = c.lookup(root, b"new").await.expect("it was made durable").id;
            assert_eq!(c.read(kept, 0, 1 << 20).await.expect("reads"), pattern(5000, 2));
            // Both dead hosts are recovered.
            sleep(&env, 10_000).await;
        })
        .await;
        check_clean(&env).await;
    });
}

/// A file was read without its lock. The answer came late: when it was looked at, the holder had
/// died and been recovered, so its lock was stale and seemed to say that all is in place. But the
/// answer showed the disk as it had been before.
#[test]
fn what_was_read_before_a_recovery_is_not_what_it_brought() {
    let World { env, time, disk } = world();
    block_on(&time, async {
        formatted(&env).await;
        let (a, b) = (mount(&env, "a").await, mount(&env, "b").await);
        let root = a.root();
        let (mut of_a, mut of_b) = (Box::pin(a.serve()), Box::pin(b.serve()));
        let id = beside(join(&mut of_a, &mut of_b), async {
            let id = a.create(root, b"f", file()).await.expect("works").id;
            a.write(id, 0, pattern(1000, 1)).await.expect("works");
            a.sync().await.expect("works");
            // In place.
            sleep(&env, 7000).await;
            a.write(id, 0, pattern(5000, 2)).await.expect("works");
            a.fsync(id).await.expect("works");
            id
        })
        .await;
        let is_first = Cell::new(true);
        disk.when(move |asked| {
            let is_it = asked.ask == Ask::Read && asked.at == id.addr.offset();
            (is_it && is_first.replace(false)).then_some(Fault::Slow(Duration::from_secs(3)))
        });
        env.fence.leave(a.slot());
        let reads = async { b.getattr(id).await.expect("it was made durable").size };
        let recovers = async {
            b.create(root, b"other", file()).await.expect("the root was of the dead host");
            assert_eq!(b.counters().takeovers, 1);
        };
        let both = join(reads, within(&env, 2500, recovers));
        let (size, ()) = beside(of_b, both).await;
        assert_eq!(size, 5000);
    });
}

/// Host `a` dies with a file that is in its journal only.
async fn dies_with_a_file(
    env: &Env,
    a: &Rc<Volume>,
    other: impl Future<Output = StopReason>,
) -> FileId {
    let id = beside(join(a.serve(), other), async {
        let id = a.create(a.root(), b"f", file()).await.expect("works").id;
        a.write(id, 0, pattern(5000, 2)).await.expect("works");
        a.fsync(id).await.expect("works");
        id
    })
    .await;
    env.fence.leave(a.slot());
    id
}

/// A dead host had a file's lock; its journal was replayed. The next one took the lock, could not
/// read the body in that moment, and gave the lock back as free. Its stamp was of a time before the
/// dead host had written, and bound again: for whoever read the file without the lock, and for
/// every check, a write had come from nowhere.
#[test]
fn a_lock_whose_body_cannot_be_read_goes_back_as_it_was() {
    let World { env, time, disk } = world();
    block_on(&time, async {
        formatted(&env).await;
        let (a, b) = (mount(&env, "a").await, mount(&env, "b").await);
        let mut of_b = Box::pin(b.serve());
        let id = dies_with_a_file(&env, &a, &mut of_b).await;
        let recovers = b.clone();
        disk.when(move |asked| {
            let is_body = asked.ask == Ask::Read && asked.at == id.addr.plus(1).offset();
            (is_body && recovers.counters().takeovers > 0).then_some(Fault::Fail)
        });
        let unmounted = async {
            let write = b.write(id, 0, pattern(10, 3));
            let failed = within(&env, 10_000, write).await.expect_err("its body is not read");
            assert_eq!(failed.kind, Kind::Io, "{failed}");
            disk.well();
            check_mounted(&env).await;
            let read = b.read(id, 0, 1 << 20).await.expect("it can be read again");
            assert_eq!(read, pattern(5000, 2));
            b.unmount().await.expect("works");
        };
        join(of_b, unmounted).await;
        check_clean(&env).await;
    });
}

/// A host died with a file that was in its journal only. While another one replayed that, this
/// structure was misread once.
fn inherited_through(fault: fn(u64) -> Fault, misread: impl Fn(&Ram, &Volume, FileId) -> BlockNo) {
    let World { env, time, disk } = world();
    block_on(&time, async {
        formatted(&env).await;
        let (a, b) = (mount(&env, "a").await, mount(&env, "b").await);
        let (root, mut of_b) = (a.root(), Box::pin(b.serve()));
        let id = dies_with_a_file(&env, &a, &mut of_b).await;
        let place = misread(&disk.ram, &a, id).offset();
        let is_first = Rc::new(Cell::new(true));
        let lied = is_first.clone();
        disk.when(move |asked| {
            let sees = asked.ask == Ask::Read && asked.at <= place;
            let is_it = sees && place < asked.at + asked.len as u64;
            (is_it && is_first.replace(false)).then(|| fault(place))
        });
        let unmounted = async {
            let found = b.lookup(root, b"f").await.expect("it was made durable").id;
            assert!(!lied.get(), "nothing was misread");
            assert_eq!(b.read(found, 0, 1 << 20).await.expect("reads"), pattern(5000, 2));
            b.unmount().await.expect("works");
        };
        join(of_b, unmounted).await;
        check_clean(&env).await;
    });
}

/// A lock was misread in a replay. It seemed to be none, so the image of its file was refused, and
/// the image of the directory that names the file was not.
#[test]
fn a_lock_misread_in_a_replay_costs_nothing() {
    inherited_through(Fault::Lie, |_, _, id| id.addr);
    inherited_through(Fault::Blank, |_, _, id| id.addr);
}

/// The last record of a journal was misread. It seemed to be torn, and was lost.
#[test]
fn a_record_misread_in_a_replay_costs_nothing() {
    inherited_through(Fault::Lie, |ram, a, _| {
        let (header, _) = journal_headers(ram, a)[0];
        let volume = a.superblock().volume;
        let heads = (1..1000).map(|behind| header.plus(behind)).filter_map(|at| {
            let head = RecordHead::decode(&ram.get(at.offset(), 4096), volume, at).ok()?;
            Some((head.sequence, at))
        });
        heads.max().expect("there are records").1
    });
}

/// The lock of the volume that a moved directory needs was misread. It seemed to be gone, like that
/// of a deleted file, so the directory seemed to be.
#[test]
fn a_misread_lock_of_the_volume_is_damage_and_no_stale_handle() {
    let World { env, time, disk } = world();
    block_on(&time, async {
        formatted(&env).await;
        let a = mount(&env, "a").await;
        let work = async {
            let root = a.root();
            for name in [b"d", b"e"] {
                a.create(root, name, directory()).await.expect("works");
            }
            let into = a.lookup(root, b"e").await.expect("it is there").id;
            let place = RENAME_LOCK.offset();
            disk.when(move |asked| {
                (asked.ask == Ask::Read && asked.at == place).then_some(Fault::Lie(place))
            });
            let moved = || a.rename(root, b"d", into, b"d", RenameMode::Replace);
            let misread = moved().await.expect_err("its lock is misread");
            assert_eq!(misread.kind, Kind::Corrupt, "{misread}");
            disk.well();
            moved().await.expect("works");
        };
        left_after(&a, work).await;
        check_clean(&env).await;
    });
}
