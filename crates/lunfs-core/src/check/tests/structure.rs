//! Damage to what holds the volume together: superblocks, slots, clusters, journals.

use lunfs_format::{
    BlockNo, FRONTIER_LOCK, Holder, Incarnation, JOURNAL_HEADERS, LockMode, LockObject,
    RENAME_LOCK, SlotNo, Superblock, Version,
};

use super::sample::{LIFE, SLOT, Sample};
use super::{each_is_found, offline};

#[test]
fn a_superblock_that_is_damaged_or_different_is_found() {
    each_is_found(
        1,
        &[
            ("block 0: a copy of the superblock is of no use", |s| s.flip(BlockNo(0), 100)),
            ("block 256: a copy of the superblock is of no use", |s| s.flip(BlockNo(256), 9)),
            ("the two copies of the superblock differ", |s| {
                let other = Superblock { label: "other".into(), ..s.superblock.clone() };
                s.disk.put(BlockNo(256), &other.encode(BlockNo(256))[..]);
            }),
        ],
    );
}

#[test]
fn a_damaged_pulse_or_doorbell_is_found() {
    each_is_found(
        2,
        &[
            ("the pulse of slot 9 is damaged", |s| s.flip(s.slot_block(SlotNo(9)), 80)),
            ("doorbell entry 2 of slot 9 is damaged", |s| {
                s.flip(s.slot_block(SlotNo(9)), 3 * 512 + 70);
            }),
        ],
    );
}

#[test]
fn a_holder_that_cannot_be_is_found() {
    fn hold(s: &Sample, slot: SlotNo, incarnation: Incarnation) {
        s.edit_lock(s.file, |lock| {
            (lock.mode, lock.holder) = (LockMode::Exclusive, Some(Holder { slot, incarnation }));
        });
    }
    each_is_found(
        1,
        &[
            ("life 4 of slot 3 has not begun: it is free at 4", |s| hold(s, SLOT, LIFE)),
            ("life 9 of slot 3 has not begun", |s| hold(s, SLOT, Incarnation(9))),
        ],
    );
    let sample = Sample::new();
    hold(&sample, SLOT, Incarnation(3));
    assert!(offline(&sample.disk).is_clean(), "a stale holder is no damage");
}

#[test]
fn a_damaged_system_lock_is_found() {
    each_is_found(
        1,
        &[
            ("the system lock \"rename\" cannot be taken", |s| s.flip(RENAME_LOCK, 70)),
            ("the system lock \"frontier\" cannot be taken", |s| s.flip(FRONTIER_LOCK, 70)),
            ("covers a cluster, not something", |s| {
                s.edit_lock(RENAME_LOCK, |lock| lock.object = LockObject::Cluster);
            }),
            ("the frontier says that 5 of 4 clusters", |s| {
                s.edit_lock(FRONTIER_LOCK, |lock| lock.payload = 5);
            }),
            ("which was never initialised; it was not followed", |s| {
                s.edit_lock(FRONTIER_LOCK, |lock| lock.payload = 0);
            }),
        ],
    );
}

#[test]
fn a_damaged_cluster_is_found() {
    fn start(s: &Sample, index: u64) -> BlockNo {
        s.superblock.geometry().cluster_start(index)
    }
    each_is_found(
        1,
        &[
            ("the lock of cluster 0 is damaged", |s| s.flip(start(s, 0), 70)),
            ("cluster 2: its header is damaged", |s| s.flip(start(s, 2).plus(1), 900)),
            ("cluster 2: its header is that of cluster 3", |s| s.edit_cluster(2, |c| c.index = 3)),
            ("cluster 2: its body belongs to the lock in block 77", |s| {
                s.edit_cluster(2, |c| c.owner = BlockNo(77));
            }),
            ("its header has 2048 blocks, the volume's clusters 1024", |s| {
                s.edit_cluster(2, |c| {
                    let (version, owner) = (c.version, c.owner);
                    *c = lunfs_format::Cluster::new(2, 2048);
                    (c.version, c.owner) = (version, owner);
                });
            }),
            ("cluster 2: its lock covers a descriptor, not a cluster", |s| {
                s.edit_lock(start(s, 2), |lock| lock.object = LockObject::Descriptor);
            }),
            ("cluster 2: its body has version 0.1, its lock saw 0.9: a write was lost", |s| {
                s.edit_lock(start(s, 2), |lock| lock.stamp.version.count = 9);
            }),
            ("cluster 2: its body has the checksum", |s| {
                s.edit_lock(start(s, 2), |lock| lock.stamp.checksum ^= 1);
            }),
        ],
    );
}

#[test]
fn a_damaged_journal_is_found() {
    fn both(s: &Sample, change: impl Fn(&mut lunfs_format::JournalHeader)) {
        s.edit_header(0, &change);
        s.edit_header(1, &change);
    }
    each_is_found(
        2,
        &[
            ("both copies of its header are damaged", |s| {
                s.flip(s.journal.plus(JOURNAL_HEADERS[0]), 70);
                s.flip(s.journal.plus(JOURNAL_HEADERS[1]), 70);
            }),
            ("the journal of slot 3: its header is that of slot 4", |s| {
                both(s, |header| header.slot = SlotNo(4));
            }),
            ("it was written by 3/4, but life 4 of slot 3 has not begun", |s| {
                both(s, |header| header.incarnation = LIFE);
            }),
            ("its tail is at 1018 of a ring of 1018 blocks", |s| {
                both(s, |header| header.tail_position = 1018);
            }),
            ("the orphan directory of slot 3: its lock is damaged", |s| s.flip(s.orphans, 70)),
            ("the orphan directory of slot 3: its body is damaged", |s| {
                s.flip(s.orphans.plus(1), 70);
            }),
            ("the orphan directory of slot 3: orphans: it says 6, there are 5", |s| {
                s.edit(s.orphans, |d| d.size = 6);
            }),
        ],
    );
}

#[test]
fn one_header_copy_that_is_torn_is_worth_a_note() {
    let sample = Sample::new();
    sample.flip(sample.journal.plus(JOURNAL_HEADERS[1]), 700);
    let report = offline(&sample.disk);
    assert!(report.is_clean());
    assert!(report.findings.iter().any(|f| f.what.contains("one copy of its header")));
}

#[test]
fn a_journal_that_its_host_did_not_live_to_begin_is_no_damage() {
    let sample = Sample::new();
    // Cluster 2 once held files; a host took it for its journal and died.
    let start = sample.superblock.geometry().cluster_start(2);
    let left = sample.lock(sample.voided);
    sample.put_lock(start.plus(2), &left);
    sample.edit_lock(start, |lock| {
        (lock.object, lock.payload) = (LockObject::Journal, 11);
        lock.generation = Version { birth: 0, count: 9 };
    });
    let report = offline(&sample.disk);
    assert!(report.is_clean(), "{:#?}", report.findings);
    let notes =
        ["the journal of slot 11 was never begun", "is not the one that the slot's pulse names"];
    for note in notes {
        assert!(report.findings.iter().any(|f| f.what.contains(note)), "{note}");
    }
}

#[test]
fn the_journal_of_no_slot_is_found() {
    each_is_found(
        8,
        &[("is the journal of slot 1024, which does not exist", |s| {
            s.edit_lock(s.journal, |lock| lock.payload = 1024);
        })],
    );
}
