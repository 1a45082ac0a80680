//! A volume with something of everything, damaged in one way at a time.

mod damage;
mod disk;
mod live;
mod sample;
mod structure;

use std::cell::Cell;

use disk::{Memory, block_on};
use lunfs_format::{BlockNo, SlotNo};
use sample::Sample;

use super::*;
use crate::error::Kind;

/// Checks a volume that nobody uses.
fn offline(disk: &Memory) -> Report {
    block_on(check(disk, &Options { offline: true, progress: None })).expect("it can be checked")
}

/// Checks a volume that hosts may use.
fn online(disk: &Memory) -> Report {
    block_on(check(disk, &Options::default())).expect("it can be checked")
}

/// One way to damage a volume, and a part of the error that it must cause.
type Damage = (&'static str, fn(&Sample));

/// Does each damage to the sample, and looks for its error among at most `errors_max`.
fn each_is_found(errors_max: usize, damages: &[Damage]) {
    for (needle, damage) in damages {
        let sample = Sample::new();
        damage(&sample);
        let report = offline(&sample.disk);
        let errors: Vec<String> = report.errors().map(ToString::to_string).collect();
        let is_found = errors.iter().any(|error| error.contains(needle));
        assert!(is_found, "{needle:?} is not among {errors:#?}");
        assert!(errors.len() <= errors_max, "{needle:?} causes {errors:#?}");
    }
}

#[test]
fn a_new_volume_is_clean() {
    for logical_block in [512, 4096] {
        let (disk, superblock) = disk::formatted(logical_block);
        let report = offline(&disk);
        let counts = Report {
            directories: 1,
            blocks_used: 4 * 2 + 2,
            blocks_free: 4 * (u64::from(superblock.cluster_blocks) - 2) - 2,
            clusters: 4,
            ..Report::default()
        };
        assert_eq!(report, counts);
    }
}

#[test]
fn a_volume_with_something_of_everything_is_clean() {
    let sample = Sample::new();
    let report = offline(&sample.disk);
    let findings: Vec<String> = report.findings.iter().map(ToString::to_string).collect();
    assert_eq!(
        findings,
        [format!(
            "note: block {}: /big: 1 file blocks are allocated beyond the end",
            sample.big.plus(1)
        )]
    );
    assert!(report.is_clean());
    assert_eq!((report.files, report.directories, report.symlinks, report.others), (8, 3, 1, 1));
    assert_eq!((report.orphans, report.clusters), (5, 4));
    assert_eq!((report.live_slots, report.pending_journals), (vec![], vec![]));
    let blocks = u64::from(sample.superblock.cluster_blocks);
    assert_eq!(report.blocks_used, blocks + 2 * 3 + sample.allocated());
    assert_eq!(report.blocks_used + report.blocks_free, 4 * blocks);
}

#[test]
fn progress_ends_with_all_blocks_in_use() {
    let sample = Sample::new();
    let seen = Cell::new((0, 0));
    let progress = |done, total| {
        assert!(seen.get().0 <= done && done <= total);
        seen.set((done, total));
    };
    let options = Options { offline: true, progress: Some(&progress) };
    block_on(check(&sample.disk, &options)).expect("it can be checked");
    assert_eq!(seen.get(), (sample.allocated(), sample.allocated()));
}

#[test]
fn without_a_superblock_nothing_can_be_said() {
    let sample = Sample::new();
    sample.flip(BlockNo(0), 100);
    sample.flip(BlockNo(256), 100);
    let error = block_on(check(&sample.disk, &Options::default())).unwrap_err();
    assert_eq!(error.kind, Kind::Corrupt);
    assert!(error.what.contains("block 256: the checksum does not match"), "{error}");
    let empty = Memory::new(0, 512);
    let error = block_on(check(&empty, &Options::default())).unwrap_err();
    assert_eq!(error.kind, Kind::Io);
}

#[test]
fn a_device_that_fails_proves_nothing() {
    let sample = Sample::new();
    sample.disk.fail(sample.big);
    let error = block_on(check(&sample.disk, &Options::default())).unwrap_err();
    assert_eq!(error.kind, Kind::Io);
    assert!(error.what.contains(&format!("block {} cannot be read", sample.big)), "{error}");
}

#[test]
fn any_flipped_byte_of_metadata_is_found_and_nothing_panics() {
    let sample = Sample::new();
    for at in sample.metadata() {
        for offset in [5, 45, 300] {
            sample.flip(at, offset);
            assert!(!offline(&sample.disk).is_clean(), "byte {offset} of block {at}");
            sample.flip(at, offset);
        }
    }
    assert!(offline(&sample.disk).is_clean());
}

/// Numbers that look random and are the same in each run.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 11).unwrap() % end
    }

    fn of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())]
    }

    fn byte(&mut self, end: usize) -> u8 {
        u8::try_from(self.below(end)).unwrap()
    }
}

#[test]
fn no_bytes_make_the_walk_panic_or_run_forever() {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let sample = Sample::new();
    let metadata = sample.metadata();
    let addresses: Vec<u64> =
        metadata.iter().map(|at| at.0).chain([0, 1, 1 << 39, u64::MAX]).collect();
    let mut noticed = 0;
    for _ in 0..150 {
        let mut before = Vec::new();
        for _ in 0..=random.below(3) {
            let at = random.of(&metadata);
            let mut bytes = sample.disk.block(at);
            before.push((at, bytes.clone()));
            // Small numbers, and addresses of other structures, reach deeper than noise.
            let area = random.of(&[64, 256, 1000]);
            let offset = 64 + random.below(area);
            match random.below(3) {
                0 => bytes[offset] = random.byte(256),
                1 => bytes[offset] = random.byte(9),
                _ => bytes[offset..][..8].copy_from_slice(&random.of(&addresses).to_le_bytes()),
            }
            disk::seal(&mut bytes);
            sample.disk.put(at, &bytes);
        }
        noticed += u32::from(!offline(&sample.disk).is_clean());
        for (at, bytes) in before.iter().rev() {
            sample.disk.put(*at, bytes);
        }
    }
    assert!(noticed > 100, "only {noticed} of 150 damages were noticed");
    assert!(offline(&sample.disk).is_clean());
}

#[test]
fn a_slot_that_is_in_use_is_an_error_only_offline() {
    let sample = Sample::new();
    sample.live(SlotNo(7), 1);
    assert!(online(&sample.disk).is_clean());
    let report = offline(&sample.disk);
    let errors: Vec<String> = report.errors().map(ToString::to_string).collect();
    assert_eq!(errors.len(), 2, "{errors:#?}");
    assert!(errors[0].contains("slot 7 (host \"a\") is live"), "{errors:#?}");
    assert!(errors[1].contains("nothing about it is proven"), "{errors:#?}");
}
