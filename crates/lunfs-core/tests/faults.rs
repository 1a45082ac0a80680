//! What a disk may do to a host: fail, hang, leave in doubt, forget at a power loss.

mod support;

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use futures_util::future::{Either, join, select};
use lunfs_core::env::Env;
use lunfs_core::{SetAttr, StopReason};
use lunfs_format::{Pulse, PulseState, RECORD, SlotNo, VolumeId, kind, kind_of};
use support::moody::{Ask, Asked, Fault, World, moody, why, world};
use support::{
    beside, block_on, check_clean, env_with_disk, file, formatted, journal_headers, left_after,
    mount, pattern, sleep, taken_over,
};

/// H25: what a device that failed to flush still has is not known. Nothing is acknowledged after
/// that, and the host stops.
#[test]
fn a_failed_flush_stops_the_host() {
    let World { env, time, disk } = world();
    block_on(&time, async {
        formatted(&env).await;
        let a = mount(&env, "a").await;
        let story = async {
            let id = a.create(a.root(), b"f", file()).await.expect("works").id;
            a.write(id, 0, pattern(10_000, 1)).await.expect("works");
            disk.when(|asked| (asked.ask == Ask::Flush).then_some(Fault::Fail));
            a.fsync(id).await.expect_err("the flush failed");
        };
        let (stopped, ()) = join(a.serve(), story).await;
        assert!(why(stopped).contains("a flush failed"));
    });
}

/// N41: an image file's compare-and-write is flushed by its host, and a flush that failed says so
/// once: the next one says that all is well. The host found its pulse on the disk, took it for a
/// good one, flushed again and acknowledged what a power loss then took.
#[test]
fn a_pulse_whose_flush_failed_stops_the_host() {
    let World { env, time, disk } = world();
    block_on(&time, async {
        formatted(&env).await;
        let a = mount(&env, "a").await;
        let story = async {
            let id = a.create(a.root(), b"f", file()).await.expect("works").id;
            a.write(id, 0, pattern(10_000, 1)).await.expect("works");
            let slot = a.superblock().geometry().slot_offset(a.slot());
            disk.when(move |asked| {
                (asked.ask == Ask::Swap && asked.at == slot).then_some(Fault::Unflushed)
            });
            sleep(&env, 1_500).await;
            disk.well();
            a.fsync(id).await.expect_err("what was written may be lost");
        };
        let (stopped, ()) = join(a.serve(), story).await;
        assert!(why(stopped).contains("a flush failed"));
    });
}

/// N41: the same where a lock is handed over.
#[test]
fn a_lock_whose_flush_failed_stops_its_holder() {
    let World { env, time, disk } = world();
    block_on(&time, async {
        formatted(&env).await;
        let a = mount(&env, "a").await;
        let b = mount(&env, "b").await;
        let story = async {
            let id = a.create(a.root(), b"f", file()).await.expect("works").id;
            let other = a.create(a.root(), b"g", file()).await.expect("works").id;
            a.write(id, 0, pattern(10_000, 1)).await.expect("works");
            a.sync().await.expect("works");
            let lock = id.addr.offset();
            disk.when(move |asked| {
                (asked.ask == Ask::Swap && asked.at == lock).then_some(Fault::Unflushed)
            });
            // Whoever comes first to that lock: it is given up for b, or taken by it.
            let read = select(Box::pin(b.read(id, 0, 100)), Box::pin(sleep(&env, 1_000))).await;
            drop(read);
            disk.well();
            a.write(other, 0, pattern(10_000, 2)).await.expect_err("it has stopped");
            a.fsync(other).await.expect_err("what was written may be lost");
        };
        let (stopped, _) = join(a.serve(), select(Box::pin(b.serve()), Box::pin(story))).await;
        assert!(why(stopped).contains("a flush failed"));
    });
}

/// Q21: a write that failed may land later; the host does not go on as if it knew.
#[test]
fn a_failed_write_stops_the_host() {
    let World { env, time, disk } = world();
    block_on(&time, async {
        formatted(&env).await;
        let a = mount(&env, "a").await;
        let story = async {
            let id = a.create(a.root(), b"f", file()).await.expect("works").id;
            disk.when(|asked| (asked.ask == Ask::Write).then_some(Fault::Fail));
            a.write(id, 0, pattern(10_000, 1)).await.expect_err("the write failed");
        };
        let (stopped, ()) = join(a.serve(), story).await;
        assert!(why(stopped).contains("a write of block"));
    });
}

/// H23: pulses go out, but nobody answers the doorbell: others would wait for ever.
#[test]
fn a_host_whose_doorbell_hangs_gives_itself_up() {
    let World { env, time, disk } = world();
    block_on(&time, async {
        formatted(&env).await;
        let a = mount(&env, "a").await;
        let geometry = a.superblock().geometry();
        let (slot, len) = (geometry.slot_offset(a.slot()), geometry.slot_len());
        let began = env.clock.now();
        disk.when(move |asked| {
            let is_doorbell = asked.ask == Ask::Read && (asked.at, asked.len) == (slot, len);
            is_doorbell.then_some(Fault::Hang)
        });
        let stopped = a.serve().await;
        assert!(why(stopped).contains("hanging"));
        let took = env.clock.now().since(began);
        assert!(took > Duration::from_secs(30) && took < Duration::from_secs(33), "{took:?}");
    });
}

/// H23: pulses go out and the doorbell is read, but a record never ends: others would wait for
/// ever for what this host has to make durable first.
#[test]
fn a_host_whose_commits_hang_gives_itself_up() {
    let World { env, time, disk } = world();
    block_on(&time, async {
        formatted(&env).await;
        let a = mount(&env, "a").await;
        let story = async {
            disk.hang_records();
            let began = env.clock.now();
            let id = a.create(a.root(), b"f", file()).await.expect("is only in memory").id;
            a.fsync(id).await.expect_err("the record hangs");
            let took = env.clock.now().since(began);
            assert!(took > Duration::from_secs(30) && took < Duration::from_secs(33), "{took:?}");
        };
        let (stopped, ()) = join(a.serve(), story).await;
        assert!(why(stopped).contains("hanging"));
    });
}

/// A path that answers with errors for ten seconds: the lease ends, and the host goes on.
#[test]
fn a_path_that_fails_for_a_while_suspends_and_stops_nobody() {
    let World { env, time, disk } = world();
    block_on(&time, async {
        formatted(&env).await;
        let a = mount(&env, "a").await;
        left_after(&a, async {
            let id = a.create(a.root(), b"f", file()).await.expect("works").id;
            a.sync().await.expect("works");
            sleep(&env, 10_000).await;
            disk.when(|_| Some(Fault::Fail));
            sleep(&env, 10_000).await;
            assert!(a.is_suspended());
            disk.well();
            a.getattr(id).await.expect("works again");
            assert_eq!(a.counters().resumes, 1);
        })
        .await;
    });
}

/// A host could neither learn whether its release of a lock had landed nor look. It believed that
/// it still had the lock, while the next holder wrote.
#[test]
fn a_lock_that_stays_in_doubt_stops_its_holder() {
    let World { env, time, disk } = world();
    block_on(&time, async {
        formatted(&env).await;
        let a = mount(&env, "a").await;
        let b = mount(&env, "b").await;
        let story = async {
            let id = a.create(a.root(), b"f", file()).await.expect("works").id;
            a.write(id, 0, pattern(100, 1)).await.expect("works");
            a.sync().await.expect("works");
            b.lookup(b.root(), b"f").await.expect("works");
            let lock = id.addr.offset();
            a.write(id, 0, pattern(100, 2)).await.expect("works");
            let (is_doubtful, after) = (Cell::new(false), Duration::from_millis(5));
            disk.when(move |asked| match asked.ask {
                Ask::Swap if asked.at == lock && !is_doubtful.replace(true) => {
                    Some(Fault::Doubt { lands: true, after })
                }
                Ask::Read if asked.at == lock && asked.len == 512 && is_doubtful.get() => {
                    Some(Fault::Fail)
                }
                _ => None,
            });
            b.write(id, 0, pattern(100, 3)).await.expect("works");
            sleep(&env, 3_000).await;
        };
        let both = join(a.serve(), select(Box::pin(b.serve()), Box::pin(story)));
        let (stopped, _) = both.await;
        assert!(why(stopped).contains("stays in doubt"));
    });
}

/// A release of a lock was done, tried once more by the device, and answered with the miscompare of
/// the second try; the block could not be read then. "Miscompare" was taken for "never done": the
/// holder believed that it still had the lock, while the next one wrote. Found by exploring
/// `lunfs-model`.
#[test]
fn a_miscompare_that_cannot_be_looked_at_stops_its_holder() {
    let World { env, time, disk } = world();
    block_on(&time, async {
        formatted(&env).await;
        let a = mount(&env, "a").await;
        let b = mount(&env, "b").await;
        let story = async {
            let id = a.create(a.root(), b"f", file()).await.expect("works").id;
            a.write(id, 0, pattern(100, 1)).await.expect("works");
            a.sync().await.expect("works");
            b.lookup(b.root(), b"f").await.expect("works");
            let lock = id.addr.offset();
            a.write(id, 0, pattern(100, 2)).await.expect("works");
            let is_done = Cell::new(false);
            disk.when(move |asked| match asked.ask {
                Ask::Swap if asked.at == lock && !is_done.replace(true) => Some(Fault::Twice),
                Ask::Read if asked.at == lock && asked.len == 512 && is_done.get() => {
                    Some(Fault::Fail)
                }
                _ => None,
            });
            b.write(id, 0, pattern(100, 3)).await.expect("works");
            sleep(&env, 3_000).await;
        };
        let both = join(a.serve(), select(Box::pin(b.serve()), Box::pin(story)));
        let (stopped, _) = both.await;
        assert!(why(stopped).contains("stays in doubt"));
    });
}

/// Is this the compare-and-write that frees the slot of `volume`?
fn frees_slot(asked: Asked<'_>, of: VolumeId, slot: SlotNo) -> bool {
    asked.ask == Ask::Swap
        && Pulse::decode(&asked.new[..RECORD.min(asked.len)], of, slot)
            .is_ok_and(|pulse| pulse.state == PulseState::Free)
}

/// The compare-and-write that frees a slot was in doubt; before the host looked, another one had
/// joined there. The host that left said that its slot had changed under it.
#[test]
fn a_host_that_leaves_in_doubt_may_be_followed_at_once() {
    let World { env, time, disk } = world();
    block_on(&time, async {
        formatted(&env).await;
        let a = mount(&env, "a").await;
        let (slot, of) = (a.slot(), a.superblock().volume);
        let follow = async {
            while disk.doubts.get() == 0 {
                sleep(&env, 10).await;
            }
            env.fence.leave(slot);
            let c = mount(&env, "c").await;
            assert_eq!(c.slot(), slot);
            c
        };
        let leave = async {
            a.create(a.root(), b"f", file()).await.expect("works");
            let after = Duration::from_secs(1);
            disk.when(move |asked| {
                frees_slot(asked, of, slot).then_some(Fault::Doubt { lands: true, after })
            });
            a.unmount().await.expect("a clean end");
        };
        let (end, ((), c)) = join(a.serve(), join(leave, follow)).await;
        assert_eq!(end, StopReason::Unmounted);
        beside(c.serve(), async { c.lookup(c.root(), b"f").await.expect("made durable") }).await;
    });
}

/// A pulse was under way when its host left. Answered with a doubt, it looked, found the slot free
/// before the host knew that it had freed it, and called that a foreign hand.
#[test]
fn a_pulse_that_is_overtaken_by_its_hosts_leaving_stops_nobody() {
    let World { env, time, disk } = world();
    block_on(&time, async {
        formatted(&env).await;
        let a = mount(&env, "a").await;
        let (slot, of) = (a.slot(), a.superblock().volume);
        let at = a.superblock().geometry().slot_offset(slot);
        let leave = async {
            let [pulse, free] = [100, 300].map(Duration::from_millis);
            disk.when(move |asked| {
                let is_free = frees_slot(asked, of, slot);
                let after = if is_free { free } else { pulse };
                let is_it = asked.ask == Ask::Swap && asked.at == at;
                is_it.then_some(Fault::Doubt { lands: is_free, after })
            });
            while disk.doubts.get() == 0 {
                sleep(&env, 1).await;
            }
            a.unmount().await.expect("a clean end");
        };
        assert_eq!(join(a.serve(), leave).await.0, StopReason::Unmounted);
    });
}

/// The device stalled for longer than the lease at the very last write of an unmount. Pulses had
/// ended by then, so the lease never opened again, and unmount waited for ever.
#[test]
fn an_unmount_ends_although_its_last_write_stalls() {
    let World { env, time, disk } = world();
    block_on(&time, async {
        formatted(&env).await;
        let a = mount(&env, "a").await;
        let (slot, of) = (a.slot(), a.superblock().volume);
        let story = async {
            let after = Duration::from_secs(6);
            let stalled = Cell::new(false);
            disk.when(move |asked| {
                let first = frees_slot(asked, of, slot) && !stalled.replace(true);
                first.then_some(Fault::Doubt { lands: false, after })
            });
            let patience = env.clock.sleep(Duration::from_secs(120));
            match select(Box::pin(a.unmount()), patience).await {
                Either::Left(_) => {}
                Either::Right(_) => panic!("unmount waits for ever"),
            }
        };
        select(Box::pin(a.serve()), Box::pin(story)).await;
    });
}

/// A record was being written while a host left: the journal looked empty, and the slot was free
/// before the record was durable. Nobody replays the journal of a free slot.
#[test]
fn what_a_record_in_flight_holds_stays_after_unmount() {
    for micros in (90_000..103_000).step_by(250) {
        let World { env, time, .. } = world();
        block_on(&time, async {
            formatted(&env).await;
            let a = mount(&env, "a").await;
            left_after(&a, async {
                a.create(a.root(), b"first", file()).await.expect("works");
                a.sync().await.expect("works");
                sleep(&env, 10_000).await;
                a.create(a.root(), b"f", file()).await.expect("works");
                env.clock.sleep(Duration::from_micros(micros)).await;
            })
            .await;
            env.fence.leave(a.slot());
            check_clean(&env).await;
            let b = mount(&env, "b").await;
            beside(b.serve(), async {
                let found = b.lookup(b.root(), b"f").await;
                assert!(found.is_ok(), "lost by an unmount {micros} us after the create");
            })
            .await;
        });
    }
}

/// A file is cut, grows again, and the power fails: the zeroes behind the cut were never flushed,
/// but the record with the new size was durable.
#[test]
fn what_was_cut_off_does_not_come_back_at_a_power_loss() {
    let World { env, time, disk } = world();
    block_on(&time, async {
        formatted(&env).await;
        let a = mount(&env, "a").await;
        let root = a.root();
        beside(a.serve(), async {
            let id = a.create(root, b"f", file()).await.expect("works").id;
            a.write(id, 0, vec![7; 100_000]).await.expect("works");
            a.fsync(id).await.expect("works");
            a.setattr(id, SetAttr { size: Some(10), ..SetAttr::default() }).await.expect("works");
            a.fsync(id).await.expect("works");
            sleep(&env, 10_000).await;
            a.write(id, 2000, vec![8; 10]).await.expect("works");
            sleep(&env, 1_000).await;
        })
        .await;
        disk.lose_power();
        env.fence.leave(SlotNo(0));
        let b = mount(&env, "b").await;
        beside(b.serve(), async {
            let id = b.lookup(root, b"f").await.expect("was synced").id;
            let found = b.read(id, 0, 4096).await.expect("reads");
            assert!(found[10.min(found.len())..].iter().all(|b| *b == 0 || *b == 8), "{found:?}");
        })
        .await;
    });
}

/// The newest header of a dead host's journal has rotted, the other copy is of an earlier life.
/// Taking the journal for empty would have lost all that the host had made durable.
#[test]
fn a_journal_without_its_newest_header_is_not_taken_for_empty() {
    let World { env, time, disk } = world();
    block_on(&time, async {
        formatted(&env).await;
        // A first life, so that the other copy is valid.
        let first = mount(&env, "a").await;
        left_after(&first, async {}).await;
        env.fence.leave(first.slot());
        let a = mount(&env, "a").await;
        assert_eq!(a.slot(), first.slot());
        let root = a.root();
        let b = beside(a.serve(), async {
            let b = mount(&env, "b").await;
            let id = a.create(root, b"f", file()).await.expect("works").id;
            a.fsync(id).await.expect("works");
            b
        })
        .await;
        let headers = journal_headers(&disk.ram, &a);
        assert!(headers.len() == 2, "{headers:?}");
        let newest = headers.into_iter().max_by_key(|(_, header)| header.version.count);
        disk.ram.put(newest.expect("two").0.offset(), &[0x55; 512]);
        env.fence.leave(a.slot());
        beside(b.serve(), async {
            sleep(&env, 20_000).await;
            assert!(b.counters().claims_handed_back > 0);
            assert_eq!(b.counters().takeovers, 0);
        })
        .await;
    });
}

/// Q16: a slot whose pulse has rotted is neither free nor live: nobody takes it.
#[test]
fn a_slot_that_cannot_be_read_is_taken_by_nobody() {
    let World { env, time, disk } = world();
    block_on(&time, async {
        formatted(&env).await;
        let a = mount(&env, "a").await;
        let slot = a.superblock().geometry().slot_offset(a.slot());
        let b = beside(a.serve(), async { mount(&env, "b").await }).await;
        let mut bytes = disk.ram.get(slot, 512);
        bytes[100] ^= 1;
        disk.ram.put(slot, &bytes);
        env.fence.leave(a.slot());
        beside(b.serve(), async {
            sleep(&env, 60_000).await;
            assert_eq!(b.counters().takeovers + b.counters().claims_handed_back, 0);
            let c = mount(&env, "c").await;
            assert!(c.slot() != a.slot() && c.slot() != b.slot());
            assert_eq!(disk.ram.get(slot, 512), bytes);
        })
        .await;
    });
}

/// A host dies between the void body of a deleted file and its void lock. Whoever took that lock
/// kept it, and could not give it up when asked.
#[test]
fn a_file_whose_deleter_died_halfway_is_finished_by_another() {
    let World { env, time, disk } = world();
    block_on(&time, async {
        formatted(&env).await;
        let a = mount(&env, "a").await;
        let root = a.root();
        let b = beside(a.serve(), async {
            let b = mount(&env, "b").await;
            let id = a.create(root, b"f", file()).await.expect("works").id;
            a.write(id, 0, pattern(10_000, 1)).await.expect("works");
            a.sync().await.expect("works");
            let lock = id.addr.offset();
            disk.when(move |asked| {
                (asked.ask == Ask::Swap && asked.at == lock).then_some(Fault::Hang)
            });
            a.unlink(root, b"f").await.expect("works");
            sleep(&env, 1_000).await;
            b
        })
        .await;
        disk.well();
        env.fence.leave(a.slot());
        left_after(&b, async {
            taken_over(&env, &b, 1).await;
            sleep(&env, 10_000).await;
        })
        .await;
        check_clean(&env).await;
    });
}

/// Q18: a copy of an image in use is a volume of its own: nobody holds a mark on it, so its hosts
/// are dead there, and are recovered.
#[test]
fn a_copy_of_an_image_in_use_is_a_volume_whose_hosts_died() {
    let World { env, time, disk } = world();
    block_on(&time, async {
        formatted(&env).await;
        let a = mount(&env, "a").await;
        let root = a.root();
        beside(a.serve(), async {
            let id = a.create(root, b"f", file()).await.expect("works").id;
            a.write(id, 0, pattern(10_000, 1)).await.expect("works");
            a.fsync(id).await.expect("works");
            let copy = Rc::new(disk.ram.copy());
            let fence = env_with_disk(0).0.fence;
            let copied = Env { disk: moody(copy, &time), fence, ..env.clone() };
            let c = mount(&copied, "c").await;
            beside(c.serve(), async {
                let id = c.lookup(root, b"f").await.expect("was synced").id;
                assert_eq!(c.read(id, 0, 1 << 20).await.expect("reads"), pattern(10_000, 1));
                assert_eq!(c.counters().takeovers, 1);
            })
            .await;
        })
        .await;
    });
}

/// S27: a first copy of the superblock that the device could not read ended a mount, though the
/// second copy was good.
#[test]
fn one_copy_of_the_superblock_is_enough() {
    let World { env, time, disk } = world();
    block_on(&time, async {
        formatted(&env).await;
        disk.when(|asked| (asked.ask == Ask::Read && asked.at == 0).then_some(Fault::Fail));
        let a = mount(&env, "a").await;
        left_after(&a, async {}).await;
        disk.when(|asked| (asked.ask == Ask::Read).then_some(Fault::Fail));
        let none = lunfs_core::read_superblock(&env).await.expect_err("nothing can be read");
        assert_eq!(none.kind, lunfs_core::Kind::Io);
    });
}

/// A joiner died between its orphan directory and its journal's first header. Whoever recovered it
/// held the directory's lock to look for orphans; the next joiner of that slot made the directory
/// again, over a lock that was another host's. When that joiner died, too, the first host still
/// believed to hold an empty directory, and what was listed in it was freed by nobody.
#[test]
fn an_orphan_directory_that_its_recoverer_holds_is_not_made_again() {
    let World { env, time, disk } = world();
    block_on(&time, async {
        formatted(&env).await;
        let a = mount(&env, "a").await;
        left_after(&a, async {
            disk.when(|asked| {
                let is_header = kind_of(asked.new) == Some(kind::JOURNAL_HEADER);
                (asked.ask == Ask::Write && is_header).then_some(Fault::Hang)
            });
            let joined = select(Box::pin(mount(&env, "b")), Box::pin(sleep(&env, 2_000))).await;
            assert!(matches!(joined, Either::Right(_)), "it has no header");
            drop(joined);
            disk.well();
            let hosts = a.hosts().await.expect("reads");
            let dead = hosts.iter().find(|host| !host.is_self).expect("it began to join").slot;
            env.fence.leave(dead);
            sleep(&env, 10_000).await;
            assert_eq!(a.counters().takeovers, 1);
            let c = mount(&env, "c").await;
            assert_eq!(c.slot(), dead, "it has a journal");
            let before = a.space().await.expect("reads").free;
            let work = async {
                let id = c.create(c.root(), b"f", file()).await.expect("works").id;
                c.write(id, 0, pattern(8 << 20, 1)).await.expect("works");
                c.open(id);
                c.unlink(c.root(), b"f").await.expect("works");
                c.sync().await.expect("works");
            };
            beside(c.serve(), work).await;
            env.fence.leave(dead);
            sleep(&env, 30_000).await;
            assert_eq!(a.counters().takeovers, 2);
            a.space().await.expect("reads");
            let after = a.space().await.expect("reads").free;
            assert!(after + 100 > before, "what c had deleted is free: {before}, {after}");
        })
        .await;
        check_clean(&env).await;
    });
}
