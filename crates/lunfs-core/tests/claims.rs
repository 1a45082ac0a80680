//! What comes of a claim when the disk fails during the replay.

mod support;

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use futures_util::future::{Either, LocalBoxFuture, join, select};
use lunfs_core::env::{Answer, Env, Fence, FenceError, Life};
use lunfs_core::{Fallocate, FileId, Identity, Kind, MountOptions, SetAttr, StopReason, Volume};
use lunfs_format::{BlockNo, Pulse, SlotNo};
use support::moody::{Ask, Fault, Moody, World, why, world};
use support::{
    beside, block_on, check_clean, directory, file, formatted, journal_headers, mount, pattern,
    sleep, taken_over, within,
};

/// A host that is polled now and then.
struct Polled {
    volume: Rc<Volume>,
    serve: LocalBoxFuture<'static, StopReason>,
}

async fn polled(env: &Env, name: &str) -> Polled {
    let volume = mount(env, name).await;
    let served = volume.clone();
    Polled { volume, serve: Box::pin(async move { served.serve().await }) }
}

/// A host that died with an fsynced file which is in its journal only, and two that may recover it.
struct Death {
    a: Rc<Volume>,
    b: Polled,
    c: Polled,
    /// A file of `c`, in a directory of its own.
    own: FileId,
    victim: FileId,
}

async fn death(env: &Env) -> Death {
    death_after(env, async |_, _, _| {}).await
}

/// The same. Before it dies, `a` does something beside `c` with the file that is in its journal.
async fn death_after(
    env: &Env,
    last: impl AsyncFnOnce(&Volume, &Volume, (FileId, FileId)),
) -> Death {
    let mut a = polled(env, "a").await;
    let mut b = beside(&mut a.serve, polled(env, "b")).await;
    let mut c = beside(join(&mut a.serve, &mut b.serve), polled(env, "c")).await;
    let story = async {
        let (root, c) = (c.volume.root(), &c.volume);
        let home = c.create(root, b"c", directory()).await.expect("works").id;
        let own = c.create(home, b"own", file()).await.expect("works").id;
        c.fsync(own).await.expect("works");
        // From here on the root is locked by the one that dies.
        let victim = a.volume.create(root, b"f", file()).await.expect("works").id;
        a.volume.fsync(victim).await.expect("works");
        last(&a.volume, c, (victim, own)).await;
        (own, victim)
    };
    let hosts = join(&mut a.serve, join(&mut b.serve, &mut c.serve));
    let (own, victim) = beside(hosts, story).await;
    env.fence.leave(a.volume.slot());
    Death { a: a.volume, b, c, own, victim }
}

/// Fails or hangs each write of a block in place.
fn spoil(disk: &Moody, block: BlockNo, fault: Fault) {
    disk.when(move |asked| {
        (asked.ask == Ask::Write && asked.at == block.offset()).then_some(fault)
    });
}

/// N25: a claimer whose replay hangs may not hand the claim back, since its writes may land: it
/// stops, and the next one fences it first.
#[test]
fn a_claim_beyond_its_deadline_stops_its_claimer() {
    let World { env, time, disk } = world();
    block_on(&time, async {
        formatted(&env).await;
        let Death { b, victim, .. } = death(&env).await;
        spoil(&disk, victim.addr.plus(1), Fault::Hang);
        let began = env.clock.now();
        let stopped = b.serve.await;
        let b = b.volume;
        assert!(why(stopped).contains("overran its deadline"));
        let took = env.clock.now().since(began);
        assert!(took > Duration::from_secs(60) && took < Duration::from_secs(75), "{took:?}");
        assert_eq!(b.counters().claims_handed_back, 0);
    });
}

/// S17: one block that could not be written stopped every host in turn. Now the first claimer
/// stops, since its path may be the reason; the second one keeps its claim and works on.
#[test]
fn a_block_that_cannot_be_written_stops_one_claimer_not_all() {
    let World { env, time, disk } = world();
    block_on(&time, async {
        formatted(&env).await;
        let Death { a, b, c, own, victim } = death(&env).await;
        spoil(&disk, victim.addr.plus(1), Fault::Fail);
        let stopped = b.serve.await;
        assert!(why(stopped).contains("replay of slot 0 failed"));
        env.fence.leave(b.volume.slot());

        let (c, mut serving) = (c.volume, c.serve);
        let d = beside(&mut serving, async {
            while c.counters().claims_kept == 0 {
                sleep(&env, 100).await;
            }
            sleep(&env, 100_000).await;
            assert_eq!((c.counters().claims_kept, c.counters().claims_handed_back), (1, 0));
            c.write(own, 0, pattern(10_000, 1)).await.expect("works on");
            c.fsync(own).await.expect("works on");
            mount(&env, "d").await
        })
        .await;
        // Nobody takes the claim from a host that lives, and that host does not free its slot.
        let story = async {
            sleep(&env, 100_000).await;
            assert_eq!(d.counters().takeovers + d.counters().claims_after_claimer, 0);
            let left = c.unmount().await.expect_err("its writes may land");
            assert!(left.what.contains("may still land"), "{left}");
        };
        let mut serving_d = Box::pin(d.serve());
        let (left, ()) = beside(&mut serving_d, join(serving, story)).await;
        assert!(why(left).contains("have to take this host over"));
        env.fence.leave(c.slot());
        disk.well();

        let story = async {
            d.getattr(victim).await.expect("what was durable is there");
            assert_eq!(d.read(own, 0, 1 << 20).await.expect("reads"), pattern(10_000, 1));
            assert_eq!(d.counters().takeovers, 2, "{} and {}", a.slot(), c.slot());
            d.unmount().await.expect("works");
        };
        assert_eq!(join(serving_d, story).await.0, StopReason::Unmounted);
        check_clean(&env).await;
    });
}

/// A joiner found no place for a journal, recovered dead hosts, and kept the claim of one: a write
/// of its replay had failed. Then it gave its slot back, which said that nothing of its could land
/// any more; whoever came next replayed the same journal and went on, under a write still to land.
#[test]
fn a_joiner_that_keeps_a_claim_does_not_free_its_slot() {
    let World { env, time, disk } = world();
    block_on(&time, async {
        formatted(&env).await;
        let Death { a, b, c, victim, .. } = death_after(&env, async |a, c, (victim, own)| {
            a.sync().await.expect("works");
            let all = 1 << 40;
            c.setattr(own, SetAttr { size: Some(all), ..SetAttr::default() }).await.expect("works");
            let allocate = Fallocate::Allocate { keep_size: true };
            let full = c.fallocate(own, 0, all, allocate).await.expect_err("not that much");
            assert_eq!(full.kind, Kind::NoSpace);
            c.sync().await.expect("works");
            let set = SetAttr { mode: Some(0o600), ..SetAttr::default() };
            a.setattr(victim, set).await.expect("works");
            a.fsync(victim).await.expect("works");
        })
        .await;
        let c = c.volume;
        env.fence.leave(c.slot());
        spoil(&disk, victim.addr.plus(1), Fault::Fail);
        assert!(why(b.serve.await).contains("replay of slot 0 failed"));
        env.fence.leave(b.volume.slot());
        drop((a, b.volume, c));

        let identity = Identity { run: [77; 16], ..Identity::default() };
        let options = MountOptions { name: "d".into(), read_only: false, identity };
        let refused = Volume::mount(env.clone(), options).await.map(drop);
        let refused = refused.expect_err("it keeps a claim");
        assert!(refused.what.contains("may still land"), "{refused}");
    });
}

/// An unmount had the turn of recoveries from its beginning on. What it wrote back could wait for
/// what a dead host held, and nobody on its host could recover that.
#[test]
fn an_unmount_that_writes_back_holds_up_no_recovery() {
    let World { env, time, disk } = world();
    block_on(&time, async {
        formatted(&env).await;
        let Death { c, own, .. } = death(&env).await;
        let (c, mut serve) = (c.volume, c.serve);
        let leaves = async {
            c.write(own, 0, pattern(5000, 1)).await.expect("works");
            // The flush that the write-back begins with does not end.
            let is_first = Cell::new(true);
            disk.when(move |asked| {
                (asked.ask == Ask::Flush && is_first.replace(false)).then_some(Fault::Hang)
            });
            c.unmount().await
        };
        let recovers = within(&env, 10_000, taken_over(&env, &c, 1));
        let both = select(Box::pin(leaves), Box::pin(recovers));
        let first = beside(&mut serve, both).await;
        assert!(matches!(first, Either::Right(_)), "the unmount did not wait");
    });
}

/// A fence that cannot do its work for a while.
struct Refusing {
    inner: Rc<dyn Fence>,
    refuses: Cell<bool>,
}

impl Fence for Refusing {
    fn enter(&self, slot: SlotNo) -> Result<bool, FenceError> {
        self.inner.enter(slot)
    }
    fn leave(&self, slot: SlotNo) {
        self.inner.leave(slot);
    }
    fn life(&self, slot: SlotNo) -> Life {
        self.inner.life(slot)
    }
    fn fence(&self, victim: &Pulse) -> Answer<Result<(), FenceError>> {
        if self.refuses.get() {
            return Box::pin(async { Err(FenceError("its process lives".to_owned())) });
        }
        self.inner.fence(victim)
    }
    fn ended(&self, victim: &Pulse) -> Answer<Result<(), FenceError>> {
        self.inner.ended(victim)
    }
    fn method(&self) -> &'static str {
        self.inner.method()
    }
}

/// A free mark is evidence enough for a claim, and not for a replay: the program may go on under
/// another name of the disk. So the fence is asked once more when the claim has landed.
#[test]
fn a_claim_that_cannot_be_fenced_is_handed_back() {
    let World { mut env, time, .. } = world();
    let refuses = Cell::new(true);
    let fence = Rc::new(Refusing { inner: env.fence.clone(), refuses });
    env.fence = fence.clone();
    block_on(&time, async {
        formatted(&env).await;
        let Death { b, c, victim, .. } = death(&env).await;
        let (b, c) = ((b.volume, b.serve), (c.volume, c.serve));
        let story = async {
            sleep(&env, 20_000).await;
            let of = |v: &Volume| (v.counters().takeovers, v.counters().claims_handed_back);
            let (of_b, of_c) = (of(&b.0), of(&c.0));
            assert_eq!(of_b.0 + of_c.0, 0, "replayed without a fence");
            assert!(of_b.1 + of_c.1 > 0, "nobody tried");
            fence.refuses.set(false);
            b.0.getattr(victim).await.expect("what was durable is there");
            assert_eq!(b.0.counters().takeovers + c.0.counters().takeovers, 1);
        };
        beside(join(b.1, c.1), story).await;
    });
}

/// Two tasks of the second claimer waited for the dead host. When the first one's replay had met a
/// write in doubt and kept the claim, the other one took it for a claim that was left over, and
/// finished it. The late write then landed over what came after.
#[test]
fn a_kept_claim_is_not_taken_up_by_who_waited_meanwhile() {
    let World { env, time, disk } = world();
    block_on(&time, async {
        formatted(&env).await;
        let Death { b, c, victim, .. } = death(&env).await;
        let late =
            Fault::Late { answer: Duration::from_millis(200), landing: Duration::from_secs(30) };
        let (times, body) = (Cell::new(0), victim.addr.plus(1).offset());
        disk.when(move |asked| {
            let is_it = asked.ask == Ask::Write && asked.at == body;
            times.set(times.get() + u32::from(is_it));
            match times.get() {
                1 if is_it => Some(Fault::Fail),
                2 if is_it => Some(late),
                _ => None,
            }
        });
        let stopped = b.serve.await;
        assert!(why(stopped).contains("replay of slot 0 failed"));
        env.fence.leave(b.volume.slot());
        let (root, one) = (c.volume.root(), &c.volume);
        let for_the_root = Box::pin(one.create(root, b"x", file()));
        // Comes while the replay waits for its answer, and sees a claim of its own host.
        let for_the_file = Box::pin(async {
            taken_over(&env, one, 1).await;
            sleep(&env, 100).await;
            one.write(victim, 0, pattern(100, 1)).await
        });
        let waiters = join(
            select(for_the_root, Box::pin(sleep(&env, 20_000))),
            select(for_the_file, Box::pin(sleep(&env, 20_000))),
        );
        beside(c.serve, waiters).await;
        assert_eq!((one.counters().claims_kept, one.counters().takeovers), (1, 1), "only of b");
    });
}

/// S23: after a claim was handed back the host paused for up to 32 s, and recovered no other dead
/// host meanwhile, nor could it be unmounted.
#[test]
fn a_slot_that_cannot_be_recovered_holds_up_no_other() {
    let World { env, time, disk } = world();
    block_on(&time, async {
        formatted(&env).await;
        let Death { a, mut b, mut c, own, .. } = death(&env).await;
        let headers = journal_headers(&disk.ram, &a);
        disk.when(move |asked| {
            let is_header = headers.iter().any(|(at, _)| at.offset() == asked.at);
            (asked.ask == Ask::Read && is_header).then_some(Fault::Fail)
        });
        let handed_back = |of: &Polled| of.volume.counters().claims_handed_back;
        beside(join(&mut b.serve, &mut c.serve), sleep(&env, 20_000)).await;
        assert!(handed_back(&b) + handed_back(&c) > 3, "the pause is long by now");
        env.fence.leave(c.volume.slot());
        let died = env.clock.now();
        let story = async {
            b.volume.getattr(own).await.expect("is recovered");
            b.volume.unmount().await.expect("works");
        };
        assert_eq!(join(b.serve, story).await.0, StopReason::Unmounted);
        let took = env.clock.now().since(died);
        assert!(took < Duration::from_secs(3), "{took:?}");
    });
}
