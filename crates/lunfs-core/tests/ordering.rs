//! What has to be durable before what: each test loses the power, or a host, just in between.

mod support;

use std::cell::Cell;
use std::rc::Rc;

use futures_util::future::{Either, select};
use lunfs_core::SetAttr;
use lunfs_format::{kind, kind_of};
use support::moody::{Ask, Fault, World, world};
use support::{
    beside, block_on, check_clean, file, formatted, left_after, mount, pattern, sleep, taken_over,
};

/// R4: a slot is free only when what was replayed is durable. Nobody replays it once more after a
/// power loss.
#[test]
fn a_replay_is_durable_before_its_slot_is_free() {
    let World { env, time, disk } = world();
    block_on(&time, async {
        formatted(&env).await;
        let a = mount(&env, "a").await;
        let (b, id) = beside(a.serve(), async {
            let b = mount(&env, "b").await;
            let id = a.create(a.root(), b"f", file()).await.expect("works").id;
            a.write(id, 0, pattern(10_000, 1)).await.expect("works");
            a.fsync(id).await.expect("works");
            (b, id)
        })
        .await;
        env.fence.leave(a.slot());
        beside(b.serve(), taken_over(&env, &b, 1)).await;
        disk.lose_power();
        env.fence.leave(b.slot());
        let c = mount(&env, "c").await;
        left_after(&c, async {
            let data = c.read(id, 0, 1 << 20).await.expect("it was synced");
            assert_eq!(data, pattern(10_000, 1));
            taken_over(&env, &c, 1).await;
        })
        .await;
        check_clean(&env).await;
    });
}

/// R4: what is replayed is durable before the first write that follows from it. The record of a
/// dead host had come as far as the disk's cache; its first image was in place when the power
/// failed. The record was lost, the image was not, and half a transaction was left for ever.
#[test]
fn a_record_in_a_cache_is_durable_before_it_is_replayed() {
    let World { env, time, disk } = world();
    block_on(&time, async {
        formatted(&env).await;
        let a = mount(&env, "a").await;
        let b = beside(a.serve(), async {
            let b = mount(&env, "b").await;
            disk.when(|asked| {
                let is_record = kind_of(asked.new) == Some(kind::JOURNAL_RECORD);
                (asked.ask == Ask::Write && is_record).then_some(Fault::Cache)
            });
            a.create(a.root(), b"f", file()).await.expect("is only in memory");
            sleep(&env, 1_000).await;
            b
        })
        .await;
        env.fence.leave(a.slot());
        let placed = Rc::new(Cell::new(0));
        let seen = placed.clone();
        disk.when(move |asked| {
            let is_second = asked.ask == Ask::Write && seen.replace(seen.get() + 1) == 1;
            is_second.then_some(Fault::Hang)
        });
        beside(b.serve(), async {
            while placed.get() < 2 {
                sleep(&env, 1).await;
            }
            sleep(&env, 10).await;
        })
        .await;
        disk.lose_records();
        disk.well();
        env.fence.leave(b.slot());
        let c = mount(&env, "c").await;
        left_after(&c, async {
            taken_over(&env, &c, 2).await;
        })
        .await;
        check_clean(&env).await;
    });
}

/// R9: the tail of the journal moves only when what lies before it is durable in its place.
#[test]
fn the_tail_moves_when_what_it_passes_is_durable() {
    let World { env, time, disk } = world();
    block_on(&time, async {
        formatted(&env).await;
        let a = mount(&env, "a").await;
        beside(a.serve(), async {
            for i in 0..20 {
                let name = format!("f{i}");
                let id = a.create(a.root(), name.as_bytes(), file()).await.expect("works").id;
                a.fsync(id).await.expect("works");
            }
            let before = a.counters().checkpoints;
            while a.counters().checkpoints == before {
                sleep(&env, 1).await;
            }
        })
        .await;
        disk.lose_power();
        env.fence.leave(a.slot());
        let b = mount(&env, "b").await;
        left_after(&b, async {
            for i in 0..20 {
                b.lookup(b.root(), format!("f{i}").as_bytes()).await.expect("it was synced");
            }
        })
        .await;
        check_clean(&env).await;
    });
}

/// R12: what a file gave up is another's only when the record that frees it is durable. Here it
/// never is, so the file has its old bytes still.
#[test]
fn a_freed_block_waits_for_its_record() {
    let World { env, time, disk } = world();
    block_on(&time, async {
        formatted(&env).await;
        let a = mount(&env, "a").await;
        let old = beside(a.serve(), async {
            let old = a.create(a.root(), b"old", file()).await.expect("works").id;
            a.write(old, 0, pattern(256 << 10, 1)).await.expect("works");
            a.fsync(old).await.expect("works");
            disk.hang_records();
            let nothing = SetAttr { size: Some(0), ..SetAttr::default() };
            a.setattr(old, nothing).await.expect("is only in memory");
            sleep(&env, 1_000).await;
            let new = a.create(a.root(), b"new", file()).await.expect("is only in memory").id;
            a.write(new, 0, pattern(256 << 10, 2)).await.expect("has other blocks");
            let synced = select(Box::pin(a.fsync(new)), Box::pin(sleep(&env, 1_000))).await;
            assert!(matches!(synced, Either::Right(_)), "its record hangs, its data is there");
            old
        })
        .await;
        env.fence.leave(a.slot());
        let b = mount(&env, "b").await;
        left_after(&b, async {
            let data = b.read(old, 0, 1 << 20).await.expect("reads");
            assert!(data == pattern(256 << 10, 1), "the bytes of another file");
        })
        .await;
        check_clean(&env).await;
    });
}
