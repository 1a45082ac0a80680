//! Two hosts on a disk without faults: locks are handed over, and a dead host is taken over.

mod support;

use std::rc::Rc;

use futures_util::future::{Either, join, select};
use lunfs_core::env::Env;
use lunfs_core::{FormatOptions, StopReason, Volume, format_volume};
use lunfs_format::Timing;
use support::{Time, block_on, directory, env, file, mount, pattern};

async fn formatted(env: &Env) {
    let options =
        FormatOptions { label: "test".into(), timing: Timing::FAST, cluster_blocks: None };
    format_volume(env, &options).await.expect("formats");
}

/// Runs `story` on two hosts that both serve.
fn with_two(story: impl AsyncFnOnce(&Rc<Volume>, &Rc<Volume>)) {
    let (env, time) = env(256 << 20);
    block_on(&time, async {
        formatted(&env).await;
        let a = mount(&env, "a").await;
        let serve_a = Box::pin(a.serve());
        let rest = async {
            let b = mount(&env, "b").await;
            let work = async {
                story(&a, &b).await;
                a.unmount().await.expect("a unmounts");
                b.unmount().await.expect("b unmounts");
            };
            join(b.serve(), work).await.0
        };
        let (a_ended, b_ended) = join(serve_a, rest).await;
        assert_eq!((a_ended, b_ended), (StopReason::Unmounted, StopReason::Unmounted));
        //CHECK
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

/// Polls `host` until `other` ends, then lets it die.
async fn until<T>(host: impl Future<Output = StopReason>, other: impl Future<Output = T>) -> T {
    match select(Box::pin(host), Box::pin(other)).await {
        Either::Left((why, _)) => panic!("a host stopped: {why:?}"),
        Either::Right((out, _)) => out,
    }
}

#[test]
fn a_survivor_finds_what_the_dead_host_had_synced() {
    let (env, time): (Env, Time) = env(256 << 20);
    block_on(&time, async {
        formatted(&env).await;
        let a = mount(&env, "a").await;
        let dead = a.slot();
        let root = a.root();
        let b = until(a.serve(), async {
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
        until(b.serve(), async {
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
