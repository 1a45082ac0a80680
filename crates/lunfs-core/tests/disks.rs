//! Disks, snapshots and clones: stories, and a random history against a model of bytes.

mod support;

use std::collections::BTreeMap;
use std::rc::Rc;

use lunfs_core::{Fallocate, FileId, Kind, Seek, SetAttr, Volume};
use lunfs_format::{Holder, Incarnation, LayerRef, SlotNo};
use support::*;

const MIB: u64 = 1 << 20;
const GRAIN: u64 = 4096;
const FILE_BLOCK: u64 = 64 * GRAIN;

async fn disk(v: &Volume, name: &str, size: u64) -> FileId {
    v.create_disk(v.root(), name.as_bytes(), file(), size).await.expect("makes a disk").id
}

async fn clone(v: &Volume, source: FileId, snapshot: Option<&str>, name: &str) -> FileId {
    let from = (source, snapshot.map(str::as_bytes));
    v.clone_disk(from, v.root(), name.as_bytes(), file()).await.expect("clones").id
}

async fn bytes(v: &Volume, id: FileId) -> Vec<u8> {
    let size = v.getattr(id).await.expect("has attributes").size;
    v.read(id, 0, usize::try_from(size).expect("fits")).await.expect("reads")
}

async fn put(v: &Volume, id: FileId, at: u64, data: &[u8]) {
    v.write(id, at, data.to_vec()).await.expect("writes");
}

#[test]
fn a_snapshot_keeps_what_was_there_and_a_clone_begins_with_it() {
    let (env, time) = env(512 * MIB);
    block_on(&time, async {
        formatted(&env).await;
        on_two_hosts(&env, async |a, b| {
            let d = disk(a, "d", 2 * MIB).await;
            assert_eq!(bytes(a, d).await, vec![0; 2 * MIB as usize]);
            let first = pattern(700_000, 1);
            put(a, d, 1000, &first).await;
            a.snapshot(d, b"one").await.expect("freezes");
            let second = pattern(5000, 2);
            put(a, d, 3000, &second).await;
            let mut old = vec![0; 2 * MIB as usize];
            old[1000..701_000].copy_from_slice(&first);
            let mut new = old.clone();
            new[3000..8000].copy_from_slice(&second);
            assert_eq!(bytes(a, d).await, new);
            let c = clone(b, d, Some("one"), "c").await;
            assert_eq!(bytes(b, c).await, old, "on the other host");
            assert_eq!(bytes(b, d).await, new, "on the other host");
            put(b, c, 0, &pattern(10, 3)).await;
            assert_eq!(bytes(a, d).await, new);
            let e = clone(a, c, None, "e").await;
            old[..10].copy_from_slice(&pattern(10, 3));
            assert_eq!(bytes(a, e).await, old);
            let names: Vec<_> = a.snapshots(d).await.expect("lists").into_iter().collect();
            assert_eq!(names.len(), 1);
            assert_eq!((names[0].name.as_slice(), names[0].size), (&b"one"[..], 2 * MIB));
        })
        .await;
    });
}

#[test]
fn a_disk_that_is_deleted_gives_all_its_space_back() {
    let (env, time) = env(512 * MIB);
    block_on(&time, async {
        formatted(&env).await;
        on_two_hosts(&env, async |a, b| {
            // What directories grow by stays.
            disk(a, "x", MIB).await;
            a.unlink(a.root(), b"x").await.expect("removes");
            sleep(&env, 2000).await;
            let before = a.space().await.expect("counts").free;
            let d = disk(a, "d", 8 * MIB).await;
            for n in 0..5u8 {
                put(a, d, u64::from(n) * MIB, &pattern(MIB as usize, n)).await;
                a.snapshot(d, &[b'a' + n]).await.expect("freezes");
            }
            let c = clone(b, d, Some("c"), "c").await;
            put(b, c, 0, &pattern(1000, 9)).await;
            a.unlink(a.root(), b"d").await.expect("removes");
            sleep(&env, 2000).await;
            let mut expected = vec![0; 8 * MIB as usize];
            for n in 0..3u8 {
                let at = usize::from(n) * MIB as usize;
                expected[at..at + MIB as usize].copy_from_slice(&pattern(MIB as usize, n));
            }
            expected[..1000].copy_from_slice(&pattern(1000, 9));
            assert_eq!(bytes(b, c).await, expected);
            check_mounted(&env).await;
            b.unlink(b.root(), b"c").await.expect("removes");
            sleep(&env, 65_000).await;
            b.sync().await.expect("syncs");
            assert_eq!(a.space().await.expect("counts").free, before);
        })
        .await;
    });
}

#[test]
fn a_disk_that_is_cut_and_grown_again_shows_nothing_of_its_snapshot() {
    let (env, time) = env(512 * MIB);
    block_on(&time, async {
        formatted(&env).await;
        on_two_hosts(&env, async |a, _| {
            let d = disk(a, "d", 2 * MIB).await;
            put(a, d, 0, &pattern(2 * MIB as usize, 1)).await;
            a.snapshot(d, b"s").await.expect("freezes");
            let size = |size| SetAttr { size: Some(size), ..SetAttr::default() };
            let cut = MIB + 5000;
            a.setattr(d, size(cut)).await.expect("cuts");
            a.setattr(d, size(2 * MIB)).await.expect("grows");
            let mut expected = pattern(2 * MIB as usize, 1);
            expected[cut as usize..].fill(0);
            assert_eq!(bytes(a, d).await, expected);
            put(a, d, cut + 100, &[7]).await;
            expected[cut as usize + 100] = 7;
            assert_eq!(bytes(a, d).await, expected);
        })
        .await;
    });
}

#[test]
fn a_disk_in_use_is_refused_to_others_until_its_last_close() {
    let (env, time) = env(512 * MIB);
    block_on(&time, async {
        formatted(&env).await;
        on_two_hosts(&env, async |a, b| {
            let d = disk(a, "d", MIB).await;
            a.open(d);
            put(a, d, 0, b"mine").await;
            let busy = |done: Result<(), lunfs_core::Error>| {
                assert_eq!(done.expect_err("it is in use").kind, Kind::Busy);
            };
            busy(b.read(d, 0, 4).await.map(drop));
            busy(b.write(d, 0, b"yours".to_vec()).await);
            busy(b.snapshot(d, b"s").await);
            busy(b.unlink(b.root(), b"d").await);
            put(a, d, 4, b" still").await;
            assert_eq!(b.getattr(d).await.expect("stat never fails").size, MIB);
            a.close(d);
            sleep(&env, 500).await;
            assert_eq!(b.read(d, 0, 10).await.expect("it is free"), b"mine still");
        })
        .await;
    });
}

/// A stack that is too deep to be read was made without a word, and nothing of the disk could be
/// read from then on.
#[test]
fn a_snapshot_that_would_make_the_stack_too_deep_is_refused() {
    let (env, time) = env(512 * MIB);
    block_on(&time, async {
        formatted(&env).await;
        on_two_hosts(&env, async |a, b| {
            let d = disk(a, "d", MIB).await;
            let mut refused = None;
            for n in 0..1100u64 {
                if n.is_multiple_of(100) {
                    put(a, d, n * 512, &[n as u8; 512]).await;
                }
                // The name goes, the layer stays: it has one above it.
                match a.snapshot(d, b"s").await {
                    Ok(()) => a.delete_snapshot(d, b"s").await.expect("deletes"),
                    Err(e) => {
                        refused = Some((n, e.kind));
                        break;
                    }
                }
            }
            assert_eq!(refused, Some((1024, Kind::TooManyLinks)));
            assert_eq!(b.read(d, 1000 * 512, 512).await.expect("reads"), [1000u64 as u8; 512]);
        })
        .await;
    });
}

/// A snapshot that came between the deletion of the last one and of the top kept its layer for
/// ever, and the disk could never be freed.
#[test]
fn a_snapshot_of_a_disk_that_is_being_deleted_keeps_nothing() {
    let (env, time) = env(512 * MIB);
    block_on(&time, async {
        formatted(&env).await;
        on_two_hosts(&env, async |a, b| {
            for pause in 0..40 {
                let d = disk(a, "d", MIB).await;
                put(a, d, 0, &pattern(100_000, 1)).await;
                a.snapshot(d, b"one").await.expect("freezes");
                a.unlink(a.root(), b"d").await.expect("removes");
                sleep(&env, pause).await;
                let late = b.snapshot(d, b"late").await.expect_err("it is gone");
                assert!(matches!(late.kind, Kind::NotFound | Kind::Stale), "{late}");
            }
            sleep(&env, 65_000).await;
            check_mounted(&env).await;
        })
        .await;
    });
}

/// What a damaged disk names as its top is believed by nobody: it may be a file of somebody, or
/// make a host wait for itself.
#[test]
fn a_disk_with_a_wrong_top_or_user_is_an_error() {
    type Change = fn(&mut lunfs_format::Descriptor, FileId, FileId);
    let changes: [Change; 4] = [
        |body, disk, _| body.top = Some(LayerRef { addr: disk.addr, birth: disk.birth }),
        |body, _, plain| body.top = Some(LayerRef { addr: plain.addr, birth: plain.birth }),
        |body, _, _| body.top.as_mut().expect("a disk").birth += 1,
        |body, _, _| {
            let incarnation = Incarnation(1);
            body.user = Some(Holder { slot: SlotNo(5000), incarnation });
        },
    ];
    for change in changes {
        let (env, time, ram) = env_with_disk(64 * MIB);
        block_on(&time, async {
            formatted(&env).await;
            let a = mount(&env, "a").await;
            let (d, plain) = left_after(&a, async {
                let plain = a.create(a.root(), b"plain", file()).await.expect("makes").id;
                put(&a, plain, 0, &pattern(10_000, 1)).await;
                (disk(&a, "d", MIB).await, plain)
            })
            .await;
            env.fence.leave(a.slot());
            let a = mount(&env, "a").await;
            damage(&ram, &a, d, |body| change(body, d, plain));
            left_after(&a, async {
                let kinds = [
                    a.write(d, 0, vec![9; 4096]).await.expect_err("it is damaged"),
                    a.read(d, 0, 4096).await.expect_err("it is damaged"),
                    a.snapshot(d, b"s").await.expect_err("it is damaged"),
                ]
                .map(|e| e.kind);
                assert!(
                    kinds.iter().all(|k| matches!(k, Kind::Corrupt | Kind::Stale)),
                    "{kinds:?}"
                );
                assert_eq!(bytes(&a, plain).await, pattern(10_000, 1));
            })
            .await;
        });
    }
}

/// A disk as it must be.
#[derive(Clone)]
struct Model {
    id: FileId,
    bytes: Vec<u8>,
    snapshots: BTreeMap<String, Vec<u8>>,
}

/// Numbers that depend on the seed only.
struct Chance(u64);

impl Chance {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963);
        (self.0 >> 33) % end
    }

    /// A place and a length, often at the edges of grains and file blocks.
    fn range(&mut self, size: u64) -> (u64, u64) {
        let unit = [1, 512, GRAIN, FILE_BLOCK][self.below(4) as usize];
        let at = (self.below(size + 1) / unit * unit).min(size);
        let most = [100, GRAIN, 3 * GRAIN, 2 * FILE_BLOCK][self.below(4) as usize];
        let len = 1 + self.below(most);
        let len = if self.below(2) == 0 { len.next_multiple_of(unit) } else { len };
        (at, len.min(size - at))
    }
}

/// One random operation on disks and model.
async fn step(v: &Rc<Volume>, chance: &mut Chance, disks: &mut BTreeMap<String, Model>, n: u64) {
    let names: Vec<String> = disks.keys().cloned().collect();
    let name = names[chance.below(names.len() as u64) as usize].clone();
    let count = disks.len();
    let model = disks.get_mut(&name).expect("it is there");
    let size = model.bytes.len() as u64;
    let id = model.id;
    match chance.below(24) {
        0..=7 => {
            let (at, len) = chance.range(size);
            let data = pattern(len as usize, n as u8 | 1);
            put(v, id, at, &data).await;
            model.bytes[at as usize..(at + len) as usize].copy_from_slice(&data);
        }
        8..=11 => {
            let (at, len) = chance.range(size);
            if len > 0 {
                let mode = match chance.below(3) {
                    0 => Fallocate::Allocate { keep_size: true },
                    1 => Fallocate::PunchHole,
                    _ => Fallocate::ZeroRange { keep_size: true },
                };
                v.fallocate(id, at, len, mode).await.expect("punches");
                if !matches!(mode, Fallocate::Allocate { .. }) {
                    model.bytes[at as usize..(at + len) as usize].fill(0);
                }
            }
        }
        12..=13 => {
            let to = chance.below(5 * FILE_BLOCK);
            let set = SetAttr { size: Some(to), ..SetAttr::default() };
            v.setattr(id, set).await.expect("cuts or grows");
            model.bytes.resize(to as usize, 0);
        }
        14..=16 => {
            let snapshot = format!("s{n}");
            v.snapshot(id, snapshot.as_bytes()).await.expect("freezes");
            model.snapshots.insert(snapshot, model.bytes.clone());
        }
        17 => {
            if let Some(snapshot) = model.snapshots.keys().next().cloned() {
                v.delete_snapshot(id, snapshot.as_bytes()).await.expect("deletes");
                model.snapshots.remove(&snapshot);
            }
        }
        18..=20 => {
            let new = format!("d{n}");
            let last = model.snapshots.iter().next_back();
            let last = last.filter(|_| chance.below(2) == 0);
            let bytes = last.map_or(&model.bytes, |(_, bytes)| bytes).clone();
            let id = clone(v, id, last.map(|(name, _)| name.as_str()), &new).await;
            disks.insert(new, Model { id, bytes, snapshots: BTreeMap::new() });
        }
        21 if count > 1 => {
            v.unlink(v.root(), name.as_bytes()).await.expect("removes");
            disks.remove(&name);
        }
        22 if n.is_multiple_of(2) => v.fsync(id).await.expect("syncs"),
        22 => {
            if let Some((snapshot, bytes)) = model.snapshots.iter().next_back() {
                let found = v.read_snapshot(id, snapshot.as_bytes(), 0, bytes.len()).await;
                assert!(found.expect("reads") == *bytes, "{name}@{snapshot}");
            }
        }
        _ => {
            let at = chance.below(size + 1);
            let data = v.seek(id, at, Seek::Data).await.ok();
            let is_hole = |from: u64, to: u64| {
                model.bytes[from as usize..to as usize].iter().all(|byte| *byte == 0)
            };
            assert!(is_hole(at, data.unwrap_or(size)), "data in a hole at {at}");
        }
    }
}

#[test]
fn a_random_history_of_disks_is_that_of_a_model() {
    let seeds = std::env::var("LUNFS_DISK_SEEDS").ok().and_then(|seeds| seeds.parse().ok());
    for seed in 0..seeds.unwrap_or(4) {
        let (env, time) = env(1024 * MIB);
        block_on(&time, async {
            formatted(&env).await;
            on_two_hosts(&env, async |a, b| {
                let mut chance = Chance(seed);
                let id = disk(a, "d", 4 * FILE_BLOCK).await;
                let bytes = vec![0; 4 * FILE_BLOCK as usize];
                let first = Model { id, bytes, snapshots: BTreeMap::new() };
                let mut disks = BTreeMap::from([("d".to_owned(), first)]);
                for n in 0..150 {
                    let v = if chance.below(3) == 0 { b } else { a };
                    step(v, &mut chance, &mut disks, n).await;
                    let at = chance.below(disks.len() as u64) as usize;
                    let (name, model) = disks.iter().nth(at).expect("below");
                    let other = if chance.below(2) == 0 { a } else { b };
                    let found = self::bytes(other, model.id).await;
                    let wrong = found.iter().zip(&model.bytes).position(|(a, b)| a != b);
                    assert_eq!(wrong, None, "seed {seed}, step {n}: first wrong byte of {name}");
                    assert_eq!(found.len(), model.bytes.len(), "seed {seed}, step {n}: {name}");
                }
                for (name, model) in &disks {
                    for (snapshot, bytes) in &model.snapshots {
                        let copy = format!("copy-{name}-{snapshot}");
                        let copy = clone(a, model.id, Some(snapshot), &copy).await;
                        let found = self::bytes(a, copy).await;
                        assert!(found == *bytes, "seed {seed}: {name}@{snapshot}");
                    }
                }
            })
            .await;
        });
    }
}
