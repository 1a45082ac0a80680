//! What a guest writes to its disk, and how another boot knows that it is all there.
//!
//! Records have numbers from 1 on. Length and bytes of a record follow from its number and a seed,
//! so that nothing has to be remembered: whoever knows the seed knows what must be there. A record
//! is made durable before the next one is begun, so at most one is not whole, the last.
//!
//! ```text
//! Appended   files of an ext4, 64 records each, one behind the other      names, sizes, journal
//! Slots      the disk itself: record n in slot n % 256, slots scattered   old bytes under new ones
//! ```

use std::fs::{self, File};
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use crate::prove::writer::Chance;

/// A record is as long as this or shorter.
pub const RECORD_MAX: u64 = 16 << 10;
const SECTOR: u64 = 512;
const RECORDS_PER_FILE: u64 = 64;
/// Few, so that each is written again and again.
const SLOTS: u64 = 256;
/// Odd: it scatters the slots over any power of two of places.
const SCATTER: u64 = 40_503;

/// Record `number`, of one to 32 sectors.
pub fn record(seed: u64, number: u64) -> Vec<u8> {
    let mut chance = Chance(seed.wrapping_add(number).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    // The first draws of like seeds are alike.
    chance.bytes(64);
    let length = SECTOR * (1 + chance.below(RECORD_MAX / SECTOR));
    let start = [&b"lunfsrec"[..], &number.to_le_bytes()].concat();
    [&start[..], &chance.bytes(length - start.len() as u64)].concat()
}

/// Records one behind the other, in files of one directory.
pub struct Appended {
    dir: PathBuf,
    seed: u64,
    open: Option<File>,
}

impl Appended {
    /// The records below `dir`.
    pub fn new(dir: &Path, seed: u64) -> Appended {
        Appended { dir: dir.into(), seed, open: None }
    }

    /// Makes record `number` durable; all before it are.
    pub fn write(&mut self, number: u64) -> Result<()> {
        let is_first = number.is_multiple_of(RECORDS_PER_FILE) || self.open.is_none();
        if is_first {
            let path = self.path(number);
            let file = File::options().create(true).append(true).open(&path);
            let file = file.with_context(|| path.display().to_string())?;
            // What the last life began and did not end is no record.
            file.set_len(self.length_before(number))?;
            File::open(&self.dir)?.sync_all().context("fsync of the directory")?;
            self.open = Some(file);
        }
        let Some(file) = &mut self.open else { bail!("no file is open") };
        file.write_all(&record(self.seed, number)).context("write")?;
        file.sync_all().context("fsync")
    }

    /// The last whole record. All before it are whole, and behind it is at most a part of the next.
    pub fn highest(&self) -> Result<u64> {
        let mut number = 1;
        loop {
            let path = self.path(number);
            let bytes = match fs::read(&path) {
                Err(error) if error.kind() == ErrorKind::NotFound => Vec::new(),
                bytes => bytes.with_context(|| path.display().to_string())?,
            };
            let (next, is_end) = self.walk(&bytes, number)?;
            number = next;
            if is_end {
                break;
            }
        }
        self.nothing_behind(number)?;
        Ok(number - 1)
    }

    /// The record after the whole ones in `bytes`, and whether it is the one that was begun.
    fn walk(&self, mut bytes: &[u8], mut number: u64) -> Result<(u64, bool)> {
        loop {
            let expected = record(self.seed, number);
            if !bytes.starts_with(&expected) {
                let (found, most) = (bytes.len(), expected.len());
                ensure!(found <= most, "behind record {}: {found} bytes, not its", number - 1);
                return Ok((number, true));
            }
            bytes = &bytes[expected.len()..];
            number += 1;
            if number.is_multiple_of(RECORDS_PER_FILE) {
                ensure!(bytes.is_empty(), "{} bytes behind record {}", bytes.len(), number - 1);
                return Ok((number, false));
            }
        }
    }

    /// No file of records that come after `number` may be there.
    fn nothing_behind(&self, number: u64) -> Result<()> {
        let last = number / RECORDS_PER_FILE;
        for entry in fs::read_dir(&self.dir)? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            let file = name.strip_prefix("records-").and_then(|file| file.parse::<u64>().ok());
            ensure!(file.is_none_or(|file| file <= last), "{name} is there, {number} is not");
        }
        Ok(())
    }

    fn path(&self, number: u64) -> PathBuf {
        self.dir.join(format!("records-{}", number / RECORDS_PER_FILE))
    }

    fn length_before(&self, number: u64) -> u64 {
        let first = (number - number % RECORDS_PER_FILE).max(1);
        (first..number).map(|before| record(self.seed, before).len() as u64).sum()
    }
}

/// Records in slots of a disk without a file system.
pub struct Slots {
    disk: File,
    places: u64,
    seed: u64,
}

impl Slots {
    /// The records on `disk`, whose size in places for records is a power of two.
    pub fn new(disk: File, bytes: u64, seed: u64) -> Result<Slots> {
        let places = bytes / RECORD_MAX;
        ensure!(places.is_power_of_two() && places >= SLOTS, "{places} places on the disk");
        Ok(Slots { disk, places, seed })
    }

    /// Makes record `number` durable; all before it are.
    pub fn write(&mut self, number: u64) -> Result<()> {
        let at = self.at(number % SLOTS);
        self.disk.write_all_at(&record(self.seed, number), at).context("write")?;
        self.disk.sync_data().context("fdatasync")
    }

    /// The last whole record. Each slot has the newest one that belongs there, whole, but for the
    /// slot of the record after it.
    pub fn highest(&self) -> Result<u64> {
        let slots = (0..SLOTS).map(|slot| self.read(slot)).collect::<Result<Vec<_>>>()?;
        let whole = |number: u64| slots[slot_of(number)].starts_with(&record(self.seed, number));
        let claimed = slots.iter().filter_map(|bytes| number_in(bytes));
        let highest = claimed.filter(|number| whole(*number)).max().unwrap_or(0);
        for number in highest.saturating_sub(SLOTS - 2).max(1)..highest {
            ensure!(whole(number), "record {number} is not whole, {highest} is");
        }
        for slot in (highest + 2..=SLOTS).map(slot_of) {
            let is_new = slots[slot].iter().all(|byte| *byte == 0);
            ensure!(is_new, "slot {slot} is not empty, {highest} is the last record");
        }
        Ok(highest)
    }

    fn read(&self, slot: u64) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let mut rest = &self.disk;
        std::io::Seek::seek(&mut rest, std::io::SeekFrom::Start(self.at(slot)))?;
        rest.take(RECORD_MAX).read_to_end(&mut bytes).with_context(|| format!("slot {slot}"))?;
        Ok(bytes)
    }

    fn at(&self, slot: u64) -> u64 {
        slot * SCATTER % self.places * RECORD_MAX
    }
}

fn slot_of(number: u64) -> usize {
    usize::try_from(number % SLOTS).unwrap_or_default()
}

/// The number that the start of a slot speaks of.
fn number_in(bytes: &[u8]) -> Option<u64> {
    let number = bytes.strip_prefix(b"lunfsrec")?.get(..8)?;
    number.try_into().map(u64::from_le_bytes).ok().filter(|number| *number > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEED: u64 = 7;
    const DISK: u64 = RECORD_MAX * 1024;

    fn dir(name: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("lunfs-{name}-{}", std::process::id()));
        fs::create_dir_all(&dir).expect("a directory");
        dir
    }

    fn slots(path: &Path) -> Slots {
        let file = File::options().create(true).truncate(false).read(true).write(true).open(path);
        let file = file.expect("a file");
        file.set_len(DISK).expect("its size");
        Slots::new(file, DISK, SEED).expect("a power of two")
    }

    #[test]
    fn appended_records_are_found_up_to_the_one_that_was_begun() {
        let dir = dir("appended");
        let mut records = Appended::new(&dir, SEED);
        (1..=130).try_for_each(|number| records.write(number)).expect("written");
        assert_eq!(records.highest().expect("whole"), 130);
        let last = File::options().append(true).open(records.path(130)).expect("it is there");
        (&last).write_all(&record(SEED, 131)[..100]).expect("a part");
        assert_eq!(records.highest().expect("a part of the next"), 130);
        let mut again = Appended::new(&dir, SEED);
        again.write(131).expect("over the part");
        assert_eq!(again.highest().expect("whole"), 131);
        let damage = File::options().write(true).open(records.path(130)).expect("it is there");
        damage.write_all_at(b"x", 1_000).expect("damage");
        assert!(again.highest().is_err(), "128 records are not there any more");
        fs::remove_dir_all(dir).expect("gone");
    }

    #[test]
    fn a_lost_file_of_records_is_noticed() {
        let dir = dir("lost");
        let mut records = Appended::new(&dir, SEED);
        (1..=130).try_for_each(|number| records.write(number)).expect("written");
        fs::remove_file(records.path(64)).expect("it was there");
        assert!(records.highest().is_err());
        fs::remove_dir_all(dir).expect("gone");
    }

    #[test]
    fn the_newest_record_of_each_slot_must_be_there() {
        let dir = dir("slots");
        let mut records = slots(&dir.join("disk"));
        assert_eq!(records.highest().expect("an empty disk"), 0);
        (1..=300).try_for_each(|number| records.write(number)).expect("written");
        assert_eq!(records.highest().expect("whole"), 300);
        records.disk.write_all_at(&[0xee; 700], records.at(301 % SLOTS)).expect("begun");
        assert_eq!(records.highest().expect("the next was begun"), 300);
        let older = record(SEED, 20);
        records.disk.write_all_at(&older, records.at(276 % SLOTS)).expect("back in time");
        assert!(records.highest().is_err(), "record 276 became record 20 again");
        fs::remove_dir_all(dir).expect("gone");
    }
}
