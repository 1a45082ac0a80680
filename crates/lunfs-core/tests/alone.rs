//! A volume on which every slot has a host, alive or dead.

mod support;

use std::rc::Rc;

use futures_util::future::{LocalBoxFuture, join, select_all};
use lunfs_core::env::{Env, Life};
use lunfs_core::{Identity, Kind, MountOptions, StopReason, Volume};
use lunfs_format::{BlockNo, SlotNo};
use support::moody::{Ask, Fault, World, moody};
use support::{
    beside, block_on, check_clean, env_with_disk, file, formatted, mount, pattern, sleep,
};

/// Slots of a volume as the tests make it.
const SLOTS: u32 = 64;

/// A disk with room for a journal of each host.
fn roomy() -> World {
    let (env, time, ram) = env_with_disk(1 << 30);
    let disk = moody(ram, &time);
    World { env: Env { disk: disk.clone(), ..env }, time, disk }
}

type Serving = Vec<LocalBoxFuture<'static, StopReason>>;

/// Why the first of them ended.
async fn first_end(serving: &mut Serving) -> StopReason {
    select_all(serving).await.0
}

/// Hosts in all slots, none of which had its turn again since it was mounted.
async fn crowd(env: &Env) -> Vec<Rc<Volume>> {
    let mut hosts = Vec::new();
    let mut serving = Serving::new();
    for number in 0..SLOTS {
        let name = format!("host{number}");
        let host = if serving.is_empty() {
            mount(env, &name).await
        } else {
            beside(first_end(&mut serving), mount(env, &name)).await
        };
        let served = host.clone();
        serving.push(Box::pin(async move { served.serve().await }));
        hosts.push(host);
    }
    let first = &hosts[0];
    let story = async {
        let id = first.create(first.root(), b"kept", file()).await.expect("works").id;
        first.write(id, 0, pattern(5000, 1)).await.expect("works");
        first.fsync(id).await.expect("works");
    };
    beside(first_end(&mut serving), story).await;
    hosts
}

fn die(env: &Env, hosts: &[Rc<Volume>]) {
    hosts.iter().for_each(|host| env.fence.leave(host.slot()));
}

async fn dead_crowd(env: &Env) -> Vec<Rc<Volume>> {
    let hosts = crowd(env).await;
    die(env, &hosts);
    hosts
}

async fn refused(env: &Env, name: &str) -> lunfs_core::Error {
    let identity = Identity { run: [77; 16], ..Identity::default() };
    let options = MountOptions { name: name.into(), read_only: false, identity };
    Volume::mount(env.clone(), options).await.map(drop).expect_err("it is refused")
}

/// A new volume has 64 clusters initialised. When 63 hosts had each taken one for a journal, the
/// next could not join, however much room there was behind them.
#[test]
fn every_slot_of_a_volume_can_be_joined() {
    let World { env, time, .. } = roomy();
    block_on(&time, async {
        formatted(&env).await;
        assert_eq!(crowd(&env).await.len(), SLOTS as usize);
    });
}

/// S32: 64 hosts lost their power at once on a volume of 64 slots, or one host died 64 times, each
/// time before it had recovered another. Whoever mounted needed a free slot first, and nobody was
/// there any more to free one.
#[test]
fn a_volume_whose_every_slot_has_a_dead_host_can_be_mounted() {
    let World { env, time, .. } = roomy();
    block_on(&time, async {
        formatted(&env).await;
        let hosts = dead_crowd(&env).await;
        drop(hosts);

        let host = mount(&env, "next").await;
        assert_eq!(host.counters().takeovers_alone, 1);
        let story = async {
            let kept = host.lookup(host.root(), b"kept").await.expect("it was made durable").id;
            assert_eq!(host.read(kept, 0, 1 << 20).await.expect("reads"), pattern(5000, 1));
            // The others are recovered as ever.
            sleep(&env, 100_000).await;
            assert_eq!(host.counters().takeovers, u64::from(SLOTS));
            host.unmount().await.expect("works");
        };
        join(host.serve(), story).await;
        check_clean(&env).await;
    });
}

/// A single host that may live is enough: it recovers the others, or is recovered first.
#[test]
fn no_slot_is_freed_while_one_host_may_live() {
    let World { env, time, disk } = roomy();
    block_on(&time, async {
        formatted(&env).await;
        let hosts = crowd(&env).await;
        die(&env, &hosts[..hosts.len() - 1]);
        disk.when(|asked| {
            assert_eq!(asked.ask, Ask::Read, "at {}", asked.at);
            None
        });
        let why = refused(&env, "next").await;
        assert_eq!(why.kind, Kind::Busy, "{why}");
        // It holds no mark back.
        let free = (0..SLOTS).filter(|slot| env.fence.life(SlotNo(*slot)) == Life::Gone);
        assert_eq!(free.count(), hosts.len() - 1);
    });
}

/// Nobody can say whether the host of a damaged slot lives under another name of the disk.
#[test]
fn no_slot_is_freed_while_one_cannot_be_read() {
    let World { env, time, disk } = roomy();
    block_on(&time, async {
        formatted(&env).await;
        let hosts = dead_crowd(&env).await;
        let slot = hosts[20].superblock().geometry().slot_offset(SlotNo(20));
        disk.ram.put(slot, &[0xEE; 512]);
        let why = refused(&env, "next").await;
        assert_eq!(why.kind, Kind::Busy, "{why}");
    });
}

/// What a joiner without a slot failed to write may land as long as it lives. It gives no mark
/// back, so nobody replays the same, or joins, before it has ended.
#[test]
fn a_write_that_failed_without_a_slot_keeps_everybody_out() {
    let World { env, time, disk } = roomy();
    block_on(&time, async {
        formatted(&env).await;
        let hosts = dead_crowd(&env).await;
        let root: BlockNo = hosts[0].root().addr;
        disk.when(move |asked| {
            let is_it = asked.ask == Ask::Write && asked.at == root.plus(1).offset();
            is_it.then_some(Fault::Fail)
        });
        let why = refused(&env, "next").await;
        assert_eq!(why.kind, Kind::Stopped, "{why}");
        disk.well();
        let why = refused(&env, "after").await;
        assert_eq!(why.kind, Kind::Busy, "{why}");

        // Its program ends: the marks are free.
        (0..SLOTS).for_each(|slot| env.fence.leave(SlotNo(slot)));
        drop(hosts);
        let host = mount(&env, "last").await;
        let story = async {
            host.lookup(host.root(), b"kept").await.expect("it was made durable");
        };
        beside(host.serve(), story).await;
    });
}
