//! Bugs that were found by reading, each as the story of how it lost something.

mod support;

use futures_util::future::{Either, join, join_all, select};
use lunfs_core::env::Env;
use lunfs_core::{SetAttr, Volume};
use lunfs_format::{BlockNo, Lock};
use support::{
    beside, block_on, directory, env, env_with_disk, file, formatted, mount, pattern, sleep,
    taken_over,
};

async fn disk_lock(env: &Env, v: &Volume, at: BlockNo) -> Option<Lock> {
    let b = env.disk.read(at.offset(), 512).await.expect("works");
    Lock::decode(&b, v.superblock().volume, at).ok()
}

/// Two writers of one host ran out of clusters together. Both initialised the same 64; the slower
/// one wrote over a cluster that the faster one had taken, and another host could take it too.
#[test]
fn two_tasks_do_not_both_initialise_the_same_clusters() {
    let (env, time) = env(1 << 30);
    block_on(&time, async {
        formatted(&env).await;
        let x = mount(&env, "x").await;
        let y = mount(&env, "y").await;
        let a = mount(&env, "a").await;
        let work = async {
            let mut ids = Vec::new();
            for i in 0..8 {
                ids.push(
                    a.create(a.root(), format!("f{i}").as_bytes(), file()).await.expect("works").id,
                );
            }
            // 8 writers, 40 MiB each: more than the 64 clusters of 4 MiB that format made.
            let writers = ids.iter().map(|id| {
                let a = &a;
                async move {
                    for n in 0..40u64 {
                        a.write(*id, n << 20, pattern(1 << 20, n as u8)).await.expect("writes");
                    }
                }
            });
            let late = a.create(a.root(), b"late", file()).await.expect("works").id;
            let (ar, er) = (&a, &env);
            let ninth = async {
                er.clock.sleep_until(lunfs_core::env::Instant(1_275_000_000)).await;
                ar.write(late, 0, pattern(1 << 20, 9)).await.expect("writes");
            };
            join(join_all(writers), ninth).await;
            a.sync().await.expect("works");
            let mut bad = 0;
            for l in a.locks() {
                let d = disk_lock(&env, &a, l.addr).await;
                if d.is_none_or(|d| d.generation != l.generation || d.holder != l.holder) {
                    bad += 1;
                }
            }
            assert_eq!(bad, 0);
        };
        let all = join(a.serve(), join(x.serve(), y.serve()));
        beside(all, work).await;
    });
}

/// The cut kept the tail's run in a pending change; the write behind it replaced that change and
/// forgot the run.
#[test]
fn a_cut_file_that_grows_again_gives_its_old_tail_back() {
    let (env, time) = env(256 << 20);
    block_on(&time, async {
        formatted(&env).await;
        let a = mount(&env, "a").await;
        let work = async {
            let id = a.create(a.root(), b"first", file()).await.expect("works").id;
            a.write(id, 0, pattern(10000, 1)).await.expect("works");
            a.sync().await.expect("works");
            let before = a.space().await.expect("works").free;
            let id = a.create(a.root(), b"f", file()).await.expect("works").id;
            a.write(id, 0, pattern(256 << 10, 1)).await.expect("works");
            a.fsync(id).await.expect("works");
            a.setattr(id, SetAttr { size: Some(100 << 10), ..SetAttr::default() })
                .await
                .expect("works");
            a.write(id, 100 << 10, pattern(10_000, 1)).await.expect("works");
            a.sync().await.expect("works");
            a.unlink(a.root(), b"f").await.expect("works");
            sleep(&env, 20_000).await;
            a.sync().await.expect("works");
            let after = a.space().await.expect("works").free;
            assert_eq!(before, after);
        };
        beside(a.serve(), work).await;
    });
}

/// Overwriting in place leaves no map change. The file was closed, forgotten and opened again;
/// fsync then knew of nothing to flush.
#[test]
fn fsync_after_reopening_flushes_what_was_overwritten() {
    let (env, time, disk) = env_with_disk(256 << 20);
    block_on(&time, async {
        formatted(&env).await;
        let a = mount(&env, "a").await;
        let work = async {
            let id = a.create(a.root(), b"f", file()).await.expect("works").id;
            a.open(id);
            a.write(id, 0, pattern(256 << 10, 1)).await.expect("works");
            a.fsync(id).await.expect("works");
            sleep(&env, 7000).await;
            a.write(id, 0, pattern(256 << 10, 2)).await.expect("works");
            let written = disk.flushes.get();
            a.close(id);
            sleep(&env, 900).await;
            a.open(id);
            a.fsync(id).await.expect("works");
            let now = disk.flushes.get();
            assert!(now > written);
        };
        beside(a.serve(), work).await;
    });
}

/// R1: what a host remembers may be another host's by now; it answers only under an open lease.
#[test]
fn a_suspended_host_answers_nothing_from_its_cache() {
    let (env, time) = env(256 << 20);
    block_on(&time, async {
        formatted(&env).await;
        let a = mount(&env, "a").await;
        let work = async { a.create(a.root(), b"f", file()).await.expect("works").id };
        let id = beside(a.serve(), work).await;
        sleep(&env, 30_000).await;
        assert!(a.is_suspended());
        let five_seconds = || env.clock.sleep(std::time::Duration::from_secs(5));
        let answer = select(Box::pin(a.getattr(id)), five_seconds()).await;
        assert!(matches!(answer, Either::Right(_)), "answered from the cache after the lease");
        let again = Box::pin(a.create(a.root(), b"f", file()));
        let answer = select(again, five_seconds()).await;
        assert!(matches!(answer, Either::Right(_)), "said \"exists\" after the lease");
    });
}

/// A run freed in a cluster that another host holds is listed, and was freed only at the next
/// mount.
#[test]
fn space_in_another_hosts_clusters_comes_back_while_mounted() {
    let (env, time) = env(256 << 20);
    block_on(&time, async {
        formatted(&env).await;
        let a = mount(&env, "a").await;
        let b = mount(&env, "b").await;
        let work = async {
            let id = a.create(a.root(), b"first", file()).await.expect("works").id;
            a.write(id, 0, pattern(10000, 1)).await.expect("works");
            a.sync().await.expect("works");
            let before = a.space().await.expect("works").free;
            let id = a.create(a.root(), b"f", file()).await.expect("works").id;
            for n in 0..20u64 {
                a.write(id, n << 20, pattern(1 << 20, 1)).await.expect("works");
            }
            a.sync().await.expect("works");
            b.unlink(b.root(), b"f").await.expect("works");
            sleep(&env, 300_000).await;
            let after = a.space().await.expect("works").free;
            assert!(after + 100 > before);
        };
        beside(join(a.serve(), b.serve()), work).await;
    });
}

/// Two recoveries adopted orphans at once; both freed each run, the second time perhaps somebody
/// else's.
#[test]
fn orphans_of_two_dead_hosts_are_freed_once() {
    let (env, time) = env(512 << 20);
    block_on(&time, async {
        formatted(&env).await;
        let d = mount(&env, "d").await;
        let story = async {
            let b = mount(&env, "b").await;
            let c = mount(&env, "c").await;
            let a = mount(&env, "a").await;
            let work = async {
                let work = async {
                    for f in 0..4 {
                        let id = a
                            .create(a.root(), format!("f{f}").as_bytes(), file())
                            .await
                            .expect("works")
                            .id;
                        for n in 0..30u64 {
                            a.write(id, n << 20, pattern(1 << 20, 1)).await.expect("works");
                        }
                    }
                    a.sync().await.expect("works");
                    for f in 0..2 {
                        b.unlink(b.root(), format!("f{f}").as_bytes()).await.expect("works");
                    }
                    for f in 2..4 {
                        c.unlink(c.root(), format!("f{f}").as_bytes()).await.expect("works");
                    }
                    sleep(&env, 5_000).await;
                    b.sync().await.expect("works");
                    c.sync().await.expect("works");
                };
                beside(join(b.serve(), c.serve()), work).await;
                env.fence.leave(b.slot());
                env.fence.leave(c.slot());
                while d.counters().takeovers + a.counters().takeovers < 2 {
                    sleep(&env, 1).await;
                }
                sleep(&env, 60_000).await;
            };
            beside(a.serve(), work).await;
        };
        beside(d.serve(), story).await;
    });
}

/// Operations went on while the host left: a record written after the last checkpoint is never
/// replayed, because the slot is free.
#[test]
fn what_was_synced_while_unmounting_stays() {
    let (env, time) = env(256 << 20);
    block_on(&time, async {
        formatted(&env).await;
        let a = mount(&env, "a").await;
        let acked = std::cell::RefCell::new(Vec::new());
        let work = async {
            let user = async {
                for i in 0.. {
                    let name = format!("f{i}");
                    let Ok(f) = a.create(a.root(), name.as_bytes(), file()).await else { break };
                    if a.write(f.id, 0, pattern(3000, i as u8)).await.is_err() {
                        break;
                    }
                    if a.fsync(f.id).await.is_err() {
                        break;
                    }
                    acked.borrow_mut().push(name);
                }
            };
            let leave = async {
                sleep(&env, 300).await;
                a.unmount().await.expect("works");
            };
            join(user, leave).await;
        };
        join(a.serve(), work).await;
        env.fence.leave(a.slot());
        let b = mount(&env, "b").await;
        let work = async {
            let mut lost = vec![];
            let acked = acked.borrow().clone();
            for name in &acked {
                if b.lookup(b.root(), name.as_bytes()).await.is_err() {
                    lost.push(name.clone());
                }
            }
            assert!(lost.is_empty());
        };
        beside(b.serve(), work).await;
    });
}

/// A host died after it had put the lock of a new file into free space. Its next life put the body
/// of another file there: same block, and the same birth, because nothing was ever recorded. The
/// replay of that life took the leftover lock for the body, already there, and left it.
#[test]
fn a_lock_left_in_free_space_is_not_taken_for_the_body_that_came_after_it() {
    let (env, time) = env(256 << 20);
    block_on(&time, async {
        formatted(&env).await;
        let b = mount(&env, "b").await;
        let story = async {
            // One block of data moves the second file by one: its lock comes where, without the
            // data, its body would.
            for len in [3000, 100] {
                let a = mount(&env, "a").await;
                let work = async {
                    let x = a.create(a.root(), b"x", file()).await.expect("works").id;
                    a.write(x, 0, pattern(len, 1)).await.expect("works");
                    let y = a.create(a.root(), b"y", file()).await.expect("works").id;
                    a.write(y, 0, pattern(100, 2)).await.expect("works");
                    if len == 100 {
                        a.fsync(y).await.expect("works");
                    }
                };
                beside(a.serve(), work).await;
                let takeovers = b.counters().takeovers;
                env.fence.leave(a.slot());
                drop(a);
                taken_over(&env, &b, takeovers + 1).await;
            }
            let y = b.lookup(b.root(), b"y").await.expect("it was synced").id;
            assert_eq!(b.read(y, 0, 200).await.expect("its body is there"), pattern(100, 2));
        };
        beside(b.serve(), story).await;
    });
}

/// A reader had asked the holder to let go when the holder died. It recovered the holder itself,
/// and went on waiting for the dead to give the lock up until it was time to ask again.
#[test]
fn who_waits_to_read_goes_on_as_soon_as_the_holder_is_recovered() {
    let (env, time) = env(256 << 20);
    block_on(&time, async {
        formatted(&env).await;
        let b = mount(&env, "b").await;
        let story = async {
            let a = mount(&env, "a").await;
            let work = async {
                a.create(a.root(), b"x", file()).await.expect("works");
                a.sync().await.expect("works");
            };
            beside(a.serve(), work).await;
            env.fence.leave(a.slot());
            drop(a);
            let recovered = async {
                taken_over(&env, &b, 1).await;
                env.clock.now()
            };
            let found = async {
                b.lookup(b.root(), b"x").await.expect("it was synced");
                env.clock.now()
            };
            let (recovered, found) = join(recovered, found).await;
            let waited = found.since(recovered);
            assert!(waited < std::time::Duration::from_millis(50), "{waited:?}");
        };
        beside(b.serve(), story).await;
    });
}

/// The holder had given the lock to nobody, for a reader or beside another one, when the request
/// to hand it over came; its own writers took it again before the asker looked. The asker waited
/// 400 ms until it asked again, and listing a few directories of a busy host took seconds.
#[test]
fn who_asks_a_busy_host_does_not_wait_until_it_is_time_to_ask_again() {
    let (env, time) = env(256 << 20);
    block_on(&time, async {
        formatted(&env).await;
        let b = mount(&env, "b").await;
        let story = async {
            let a = mount(&env, "a").await;
            let done = std::cell::Cell::new(false);
            let dirs = join_all((0..4).map(|d| {
                let a = &a;
                async move {
                    let name = format!("d{d}");
                    a.create(a.root(), name.as_bytes(), directory()).await.expect("works").id
                }
            }))
            .await;
            let writers = join_all(dirs.iter().map(|dir| {
                let (a, done) = (&a, &done);
                async move {
                    for i in 0.. {
                        if done.get() {
                            return;
                        }
                        let name = format!("f{i}");
                        let f = a.create(*dir, name.as_bytes(), file()).await.expect("works").id;
                        a.write(f, 0, pattern(100, 1)).await.expect("works");
                        a.fsync(f).await.expect("works");
                    }
                }
            }));
            let asker = async {
                let mut waits = Vec::new();
                for i in 0..10 {
                    for dir in &dirs {
                        let began = env.clock.now();
                        b.readdir(*dir, 0, 1000).await.expect("lists");
                        let name = format!("b{i}");
                        b.create(*dir, name.as_bytes(), file()).await.expect("works");
                        waits.push(env.clock.now().since(began));
                    }
                }
                done.set(true);
                waits
            };
            let work = join(writers, asker);
            let (_, waits) = beside(a.serve(), work).await;
            // The first ring waits until the doorbell is looked at, every 200 ms.
            let longest = waits.iter().max().expect("some");
            assert!(*longest < std::time::Duration::from_millis(350), "{waits:?}");
        };
        beside(b.serve(), story).await;
    });
}
