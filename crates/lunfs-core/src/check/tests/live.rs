//! A volume that hosts use while it is checked: what they are just changing is no damage.

use lunfs_format::{BlockNo, FileKind, Holder, Incarnation, LockMode, PulseState, SlotNo};

use super::sample::{SLOT, STALE, Sample};
use super::{Report, Severity, offline, online};

const HOST: Holder = Holder { slot: SlotNo(7), incarnation: Incarnation(1) };

fn hold(sample: &Sample, at: BlockNo, holder: Holder) {
    sample.edit_lock(at, |lock| (lock.mode, lock.holder) = (LockMode::Exclusive, Some(holder)));
}

/// What a finding of this kind came out as.
fn severity(report: &Report, needle: &str) -> Option<Severity> {
    report.findings.iter().find(|f| f.what.contains(needle)).map(|f| f.severity)
}

#[test]
fn what_a_live_host_holds_may_be_old_on_disk() {
    let sample = Sample::new();
    sample.live(HOST.slot, 1);
    hold(&sample, sample.file, HOST);
    sample.flip(sample.file.plus(1), 2000);
    let report = online(&sample.disk);
    assert!(report.is_clean(), "{:#?}", report.findings);
    assert_eq!(severity(&report, "/file: its body is damaged"), Some(Severity::Note));
    assert_eq!(severity(&report, "space was not compared"), Some(Severity::Note));
    assert_eq!(report.live_slots, [HOST.slot]);
}

#[test]
fn what_nobody_holds_is_damaged_whoever_is_live() {
    let sample = Sample::new();
    sample.live(HOST.slot, 1);
    hold(&sample, sample.file, STALE);
    sample.flip(sample.file.plus(1), 2000);
    sample.flip(sample.link.plus(1), 2000);
    let report = online(&sample.disk);
    assert_eq!(severity(&report, "/file: its body is damaged"), Some(Severity::Error));
    assert_eq!(severity(&report, "/link: its body is damaged"), Some(Severity::Error));
    assert_eq!(report.errors().count(), 2, "{:#?}", report.findings);
}

#[test]
fn space_and_links_are_not_judged_while_hosts_are_live() {
    let sample = Sample::new();
    sample.live(HOST.slot, 1);
    sample.edit(sample.many, |d| d.nlink = 9);
    sample.edit_cluster(2, |cluster| cluster.bitmap.set_run(10, 1, true));
    let report = online(&sample.disk);
    assert!(report.is_clean(), "{:#?}", report.findings);
    assert_eq!(severity(&report, "links: it says 9, there are 6"), Some(Severity::Note));
    assert_eq!(severity(&report, "leaked"), None);
}

/// A host deletes a file between the walk's reading of its directory and of itself.
#[test]
fn a_file_that_is_deleted_meanwhile_is_no_damage() {
    let sample = Sample::new();
    sample.live(HOST.slot, 1);
    let void = sample.changed_lock(sample.pipe, |lock| {
        (lock.mode, lock.generation) = (LockMode::Void, lock.generation.next());
    });
    let dir = sample.changed_lock(sample.root, |lock| lock.generation = lock.generation.next());
    sample.disk.put_later(sample.root, sample.pipe, &void);
    sample.disk.put_later(sample.root, sample.root, &dir);
    let report = online(&sample.disk);
    assert!(report.is_clean(), "{:#?}", report.findings);
    assert_eq!(
        severity(&report, "/pipe: its lock says that nothing is here"),
        Some(Severity::Note)
    );
}

/// The same, but the directory did not change: the name is left over.
#[test]
fn a_name_without_a_file_is_damage_if_nobody_changed_either() {
    let sample = Sample::new();
    sample.live(HOST.slot, 1);
    sample.edit_lock(sample.pipe, |lock| lock.mode = LockMode::Void);
    let report = online(&sample.disk);
    assert_eq!(
        severity(&report, "/pipe: its lock says that nothing is here"),
        Some(Severity::Error)
    );
}

/// A body read just before its holder let go does not match the lock read just after.
#[test]
fn a_body_that_was_read_before_its_lock_is_read_again() {
    let sample = Sample::new();
    sample.live(HOST.slot, 1);
    let body = sample.disk.block(sample.file.plus(1));
    sample.edit_lock(sample.file, |lock| lock.mode = LockMode::Free);
    sample.disk.put(sample.file.plus(1), &[7; 4096]);
    sample.disk.put_later(sample.file, sample.file.plus(1), &body);
    let report = online(&sample.disk);
    assert_eq!(severity(&report, "/file"), None, "{:#?}", report.findings);
}

#[test]
fn a_holder_from_the_future_is_damage_even_on_a_live_volume() {
    let sample = Sample::new();
    sample.live(HOST.slot, 1);
    hold(&sample, sample.file, Holder { incarnation: Incarnation(2), ..HOST });
    let report = online(&sample.disk);
    assert_eq!(severity(&report, "life 2 of slot 7 has not begun"), Some(Severity::Error));
}

#[test]
fn a_host_that_joins_meanwhile_is_no_holder_from_the_future() {
    let sample = Sample::new();
    hold(&sample, sample.file, HOST);
    let at = sample.slot_block(HOST.slot);
    let free = sample.disk.block(at);
    sample.live(HOST.slot, 1);
    let live = sample.disk.block(at);
    sample.disk.put(at, &free);
    sample.disk.put_later(sample.root, at, &live);
    let report = online(&sample.disk);
    assert!(report.is_clean(), "{:#?}", report.findings);
    assert_eq!(report.live_slots, [HOST.slot]);
    sample.disk.put(at, &free);
    sample.disk.put_later(sample.root, at, &live);
    assert!(!offline(&sample.disk).is_clean(), "nobody may come while it is checked");
}

#[test]
fn a_journal_of_a_life_that_was_not_recovered_is_pending() {
    let sample = Sample::new();
    for state in [PulseState::Live, PulseState::Dead] {
        sample.edit_pulse(SLOT, |pulse| {
            (pulse.state, pulse.incarnation) = (state, STALE.incarnation);
        });
        let report = online(&sample.disk);
        assert!(report.is_clean(), "{:#?}", report.findings);
        assert_eq!(
            (&report.pending_journals[..], &report.live_slots[..]),
            (&[SLOT][..], &[SLOT][..])
        );
    }
    // The half-voided orphan and /held may be stale on disk: their holder was not recovered.
    sample.flip(sample.held.plus(1), 99);
    assert!(online(&sample.disk).is_clean());
}

#[test]
fn one_node_that_two_files_own_is_damage_only_if_both_are_quiet() {
    let sample = Sample::new();
    sample.live(HOST.slot, 1);
    sample.edit_entries(sample.big, |map| map.pop().map_or((), drop));
    let entry = sample.entry("again", sample.file.plus(1), FileKind::File);
    sample.edit_entries(sample.root, |entries| entries.push(entry));
    let needle = "used twice, as the descriptor of";
    assert_eq!(severity(&online(&sample.disk), needle), Some(Severity::Error));
    hold(&sample, sample.root, HOST);
    assert_eq!(severity(&online(&sample.disk), needle), Some(Severity::Note));
}
