//! Structures whose checksums are right and whose fields are not: written by a bug, or by somebody.
//! Each ended the program of a host, and of each that came after it.

mod support;

use lunfs_core::env::Env;
use lunfs_core::{Error, FileId, Kind, Seek, SetAttr, Volume, XattrMode};
use lunfs_format::{
    BLOCK, BlockNo, Cluster, Content, Descriptor, JOURNAL_HEADERS, JOURNAL_RING, JournalHeader,
    Node, RecordEntry, RecordHead, Tree, kind, kind_of, stored_checksum,
};
use support::{
    Ram, Time, block_on, damage, directory, env_with_disk, file, formatted, left_after, mount,
    pattern, served, sleep,
};

/// A directory `d` and in it a file `f` of several file blocks; nobody has the volume mounted.
struct Sample {
    env: Env,
    time: Time,
    disk: std::rc::Rc<Ram>,
    d: FileId,
    f: FileId,
}

fn sample() -> Sample {
    let (env, time, disk) = env_with_disk(64 << 20);
    let (d, f) = block_on(&time, async {
        formatted(&env).await;
        let a = mount(&env, "a").await;
        let made = left_after(&a, async {
            let d = a.create(a.root(), b"d", directory()).await.expect("works").id;
            let f = a.create(d, b"f", file()).await.expect("works").id;
            a.write(f, 0, pattern(600_000, 1)).await.expect("works");
            (d, f)
        })
        .await;
        env.fence.leave(a.slot());
        made
    });
    Sample { env, time, disk, d, f }
}

/// What `work` meets on the sample after a body was changed. The host goes on afterwards.
fn met<T>(
    is_directory: bool,
    change: impl FnOnce(&mut Descriptor),
    work: impl AsyncFnOnce(&Volume, FileId, FileId) -> T,
) -> T {
    let Sample { env, time, disk, d, f } = sample();
    block_on(&time, async {
        let a = mount(&env, "a").await;
        damage(&disk, &a, if is_directory { d } else { f }, change);
        served(&[&a], async {
            let found = work(&a, d, f).await;
            a.create(a.root(), b"new", file()).await.expect("the host works");
            a.sync().await.expect("the host works");
            found
        })
        .await
    })
}

fn is_damage(found: &Error) {
    assert_eq!(found.kind, Kind::Corrupt, "{found}");
    assert!(found.what.contains("`lunfs check`"), "{found}");
    assert!(found.what.bytes().any(|byte| byte.is_ascii_digit()), "{found}");
}

#[test]
fn a_file_with_a_name_and_no_links_is_an_error() {
    let unlink = async |v: &Volume, d, _| v.unlink(d, b"f").await.expect_err("it is damaged");
    is_damage(&met(false, |body| body.nlink = 0, unlink));
}

#[test]
fn a_directory_that_counts_too_few_entries_is_an_error() {
    let unlink = async |v: &Volume, d, _| v.unlink(d, b"f").await.expect_err("it is damaged");
    is_damage(&met(true, |body| body.size = 0, unlink));
}

#[test]
fn a_map_with_a_key_of_no_file_is_an_error() {
    let last = |body: &mut Descriptor| {
        let Content::Tree(Tree::Inline(node)) = &mut body.content else { panic!("a map") };
        node.entries.last_mut().expect("entries").0 = u64::MAX.to_be_bytes().to_vec();
    };
    let cut = async |v: &Volume, _, f| {
        let set = SetAttr { size: Some(5), ..SetAttr::default() };
        v.setattr(f, set).await.expect_err("it is damaged")
    };
    is_damage(&met(false, last, cut));
    let seek = async |v: &Volume, _, f| v.seek(f, 525_000, Seek::Data).await.expect_err("damaged");
    is_damage(&met(false, last, seek));
}

/// What a record was to hold did not fit into its block: the service that writes records ended, and
/// the host with it.
#[test]
fn a_descriptor_without_room_is_an_error_before_it_is_in_a_record() {
    let fill = |body: &mut Descriptor| {
        let hole = |n: u64| (n.to_be_bytes().to_vec(), vec![0; 16]);
        // More than a map keeps in its descriptor: it was made by nobody.
        let entries = (0..120).map(hole).collect();
        body.content = Content::Tree(Tree::Inline(Node { level: 0, entries }));
    };
    let set = async |v: &Volume, _, f| {
        v.set_xattr(f, b"user.c", &[3; 900], XattrMode::Any).await.expect_err("there is no room")
    };
    is_damage(&met(false, fill, set));
}

/// An empty page, and not the first one again: whoever lists a directory would never end.
#[test]
fn nothing_is_listed_behind_the_last_cookie() {
    let list = async |v: &Volume, d, _| v.readdir(d, u64::MAX, 10).await.expect("works").len();
    assert_eq!(met(true, |_| {}, list), 0);
}

#[test]
fn a_read_behind_the_end_of_all_numbers_is_empty() {
    let read = async |v: &Volume, _, f| v.read(f, u64::MAX - 1, 9).await.expect("works");
    assert_eq!(met(false, |_| {}, read), b"");
}

/// The bitmap says that the blocks of a file in use are free. They were given to the next file, and
/// the first one's body was overwritten in memory and on disk.
#[test]
fn a_bitmap_that_calls_a_block_in_use_free_gives_it_to_nobody_who_can_know() {
    let Sample { env, time, disk, d, f } = sample();
    block_on(&time, async {
        let a = mount(&env, "a").await;
        let geometry = a.superblock().geometry();
        let start = geometry.cluster_start(geometry.cluster_of(f.addr).expect("in one"));
        let at = start.plus(1);
        let bytes = disk.get(at.offset(), BLOCK);
        let mut cluster = Cluster::decode(&bytes, a.superblock().volume, at).expect("a header");
        cluster.bitmap.set_run((d.addr.0 - start.0) as u32, 4, false);
        cluster.version = cluster.version.next();
        disk.put(at.offset(), &cluster.encode(a.superblock().volume, at)[..]);
        served(&[&a], async {
            // Both are held here.
            a.setattr(d, SetAttr { mode: Some(0o700), ..SetAttr::default() }).await.expect("works");
            a.setattr(f, SetAttr { mode: Some(0o600), ..SetAttr::default() }).await.expect("works");
            for n in 0..8 {
                let name = format!("n{n}").into_bytes();
                if let Err(e) = a.create(a.root(), &name, file()).await {
                    is_damage(&e);
                }
            }
            a.sync().await.expect("the host works");
            let (kind, found) = (a.getattr(d).await, a.getattr(f).await);
            assert_eq!(kind.expect("it is there still").mode, 0o700);
            assert_eq!(found.expect("it is there still").mode, 0o600);
            sleep(&env, 3000).await;
        })
        .await;
    });
}

/// An image that names one block and lies in the journal for another would be written there.
#[test]
fn a_journal_that_names_another_block_than_its_image_is_not_replayed() {
    let (env, time, disk) = env_with_disk(64 << 20);
    block_on(&time, async {
        formatted(&env).await;
        let a = mount(&env, "a").await;
        let (slot, volume) = (a.slot(), a.superblock().volume);
        served(&[&a], async {
            let f = a.create(a.root(), b"f", file()).await.expect("works").id;
            a.fsync(f).await.expect("works");
        })
        .await;
        env.fence.leave(slot);
        let (at, _) = support::journal_headers(&disk, &a)[0];
        let cluster = BlockNo(at.0 - at.0 % 1024);
        drop(a);
        let ring = (JOURNAL_RING..1024).map(|offset| cluster.plus(offset));
        let is_head =
            |at: &BlockNo| kind_of(&disk.get(at.offset(), BLOCK)) == Some(kind::JOURNAL_RECORD);
        for at in ring.filter(is_head) {
            let mut head =
                RecordHead::decode(&disk.get(at.offset(), BLOCK), volume, at).expect("one");
            for entry in &mut head.entries {
                if let RecordEntry::Image { block, .. } = entry {
                    *block = BlockNo(0);
                }
            }
            disk.put(at.offset(), &head.encode(volume, at)[..]);
        }
        let superblock = disk.get(0, BLOCK);
        let b = mount(&env, "b").await;
        served(&[&b], sleep(&env, 5000)).await;
        assert_eq!(b.counters().takeovers, 0);
        assert!(b.counters().claims_handed_back > 0);
        assert_eq!(stored_checksum(&disk.get(0, BLOCK)), stored_checksum(&superblock));
    });
}

#[test]
fn a_journal_that_begins_behind_its_ring_is_not_replayed() {
    let (env, time, disk) = env_with_disk(64 << 20);
    block_on(&time, async {
        formatted(&env).await;
        let a = mount(&env, "a").await;
        let volume = a.superblock().volume;
        served(&[&a], async {
            a.create(a.root(), b"f", file()).await.expect("works");
            a.sync().await.expect("works");
        })
        .await;
        env.fence.leave(a.slot());
        for (at, header) in support::journal_headers(&disk, &a) {
            let lie = JournalHeader { tail_position: u64::MAX, ..header };
            disk.put(at.offset(), &lie.encode(volume, at)[..]);
        }
        assert_eq!(JOURNAL_HEADERS.len(), 2);
        drop(a);
        let b = mount(&env, "b").await;
        served(&[&b], sleep(&env, 5000)).await;
        assert_eq!(b.counters().takeovers, 0);
        assert!(b.counters().claims_handed_back > 0);
    });
}
