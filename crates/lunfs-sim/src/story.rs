//! What happened, for people: kept while a seed is explained, and cut down to what a finding is
//! about.
//!
//! Everybody's births, deaths, pauses and claims belong to every story; of locks, blocks and
//! operations only those that the finding names.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;

use lunfs_format::{BlockNo, Cluster, Lock, Pulse, RECORD, SlotNo, VolumeId, kind, kind_of};

use crate::executor::Owner;
use crate::model::content::{describe, tagged_file};
use crate::trace::seconds;

/// Most lines that are kept; the oldest go first.
const LINES_MAX: usize = 3_000_000;
/// Most lines that are told of what the finding names.
const TOLD_MAX: usize = 400;

/// What a line is about.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Subject {
    /// A program, a slot or the whole world.
    Life,
    /// A lock or a block of metadata.
    Block(u64),
    /// Bytes of a file of the model.
    File(u64),
    /// What a worker did or saw.
    Work,
}

struct Line {
    time: u64,
    owner: Owner,
    subject: Subject,
    text: String,
}

/// The lines of one run; empty unless somebody wants them.
#[derive(Default)]
pub struct Story {
    is_wanted: Cell<bool>,
    lines: RefCell<Vec<Line>>,
}

impl Story {
    /// Begins to keep lines.
    pub fn want(&self) {
        self.is_wanted.set(true);
    }

    /// Are lines kept?
    pub fn is_wanted(&self) -> bool {
        self.is_wanted.get()
    }

    fn add(&self, time: u64, owner: Owner, subject: Subject, text: String) {
        let mut lines = self.lines.borrow_mut();
        if lines.len() == LINES_MAX {
            lines.drain(..LINES_MAX / 2);
        }
        lines.push(Line { time, owner, subject, text });
    }

    /// Something that concerns a program or the world.
    pub fn life(&self, time: u64, owner: Owner, text: impl FnOnce() -> String) {
        if self.is_wanted.get() {
            self.add(time, owner, Subject::Life, text());
        }
    }

    /// Something that a worker does or sees.
    pub fn work(&self, time: u64, owner: Owner, text: impl FnOnce() -> String) {
        if self.is_wanted.get() {
            self.add(time, owner, Subject::Work, text());
        }
    }

    /// A slot changed.
    pub fn slot(&self, time: u64, owner: Owner, (before, after): (Option<&Pulse>, &Pulse)) {
        if !self.is_wanted.get() {
            return;
        }
        let same = |before: &Pulse| {
            (before.state, before.incarnation, before.claimer)
                == (after.state, after.incarnation, after.claimer)
        };
        if before.is_some_and(same) {
            return;
        }
        let by = after.claimer.map_or(String::new(), |claimer| format!(", claimed by {claimer}"));
        let was = before.map_or("?".to_owned(), |before| format!("{:?}", before.state));
        let (slot, state, life) = (after.slot, after.state, after.incarnation);
        let text = format!("slot {slot}: {was} -> {state:?}, life {life}{by}");
        self.add(time, owner, Subject::Life, text);
    }

    /// A block changed.
    pub fn block(&self, (time, owner): (u64, Owner), at: u64, bytes: &[u8], volume: VolumeId) {
        if !self.is_wanted.get() {
            return;
        }
        let block = at / lunfs_format::BLOCK as u64;
        if let Some(file) = tagged_file(bytes) {
            let text = format!("block {block}: {} lands", describe(bytes));
            self.add(time, owner, Subject::File(file), text);
        } else if kind_of(bytes).is_some() {
            let text = format!("block {block}: {} lands", structure(block, bytes, volume));
            self.add(time, owner, Subject::Block(block), text);
        }
    }

    /// The lines that belong to `finding`, and how many there are of all. `addresses`: blocks that
    /// the finding does not name but is about.
    pub fn tell(&self, finding: &str, addresses: &[u64]) -> Vec<String> {
        let blocks: BTreeSet<u64> = ["block ", "lock "]
            .iter()
            .flat_map(|word| numbers_behind(finding, word))
            .chain(addresses.iter().copied())
            .collect();
        let files: BTreeSet<u64> = numbers_behind(finding, "file ").collect();
        let words = words_of(finding);
        let lines = self.lines.borrow();
        let concerns = |line: &&Line| match &line.subject {
            Subject::Life => true,
            Subject::Block(block) => blocks.contains(block) || blocks.contains(&(block + 1)),
            Subject::File(file) => files.contains(file),
            Subject::Work => words.iter().any(|word| line.text.contains(word)),
        };
        let told: Vec<&Line> = lines.iter().filter(concerns).collect();
        let special = |line: &Line| line.subject != Subject::Life;
        let surplus = told.iter().filter(|line| special(line)).count().saturating_sub(TOLD_MAX);
        let mut skipped = 0;
        told.into_iter()
            .filter(|line| {
                skipped += usize::from(special(line));
                !special(line) || skipped > surplus
            })
            .map(|line| {
                let owner = line.owner.to_string();
                format!("{} {owner:>5}  {}", seconds(line.time), line.text)
            })
            .collect()
    }
}

/// Numbers that follow `word` in a text.
pub fn numbers_behind<'a>(text: &'a str, word: &'a str) -> impl Iterator<Item = u64> + 'a {
    text.match_indices(word).filter_map(|(at, _)| {
        let digits = &text[at + word.len()..];
        let end = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
        digits[..end].parse().ok()
    })
}

/// What lines of workers must contain to belong to a finding: its files, its workers, its names.
fn words_of(finding: &str) -> Vec<String> {
    let mut words = Vec::new();
    for file in numbers_behind(finding, "file ") {
        words.extend(["", ":", " "].map(|end| format!("file {file}{end}")).into_iter().take(1));
    }
    words.extend(numbers_behind(finding, "worker ").map(|worker| format!("worker {worker} ")));
    words.extend(finding.split('"').skip(1).step_by(2).map(str::to_owned));
    words.retain(|word| word.len() > 2);
    words
}

/// What a metadata block says it is, in a few words.
fn structure(block: u64, bytes: &[u8], volume: VolumeId) -> String {
    let at = BlockNo(block);
    if let Some(record) = bytes.get(..RECORD)
        && let Ok(lock) = Lock::decode(record, volume, at)
    {
        let by = lock.holder.map_or(String::new(), |holder| format!(" of {holder}"));
        return format!("lock {:?}{by}, generation {}", lock.mode, lock.generation);
    }
    if let Ok(cluster) = Cluster::decode(bytes, volume, at) {
        return format!("cluster header, version {}", cluster.version);
    }
    let name = match kind_of(bytes) {
        Some(kind::DESCRIPTOR) => "descriptor",
        Some(kind::NODE) => "node",
        Some(kind::CLUSTER) => "cluster header",
        Some(kind::JOURNAL_HEADER) => "journal header",
        Some(kind::JOURNAL_RECORD) => "journal record",
        Some(kind::SUPERBLOCK) => "superblock",
        Some(_) | None => "structure",
    };
    match bytes.get(40..56) {
        Some(version) => {
            let word = |from: usize| {
                version[from..from + 8].iter().rev().fold(0_u64, |sum, &b| sum << 8 | u64::from(b))
            };
            format!("{name}, version {}.{}", word(0), word(8))
        }
        None => name.to_owned(),
    }
}

/// A slot as a checker decoded it.
pub fn pulse(bytes: &[u8], volume: VolumeId, slot: SlotNo) -> Option<Pulse> {
    Pulse::decode(bytes.get(..RECORD)?, volume, slot).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_story_holds_lives_and_what_the_finding_names() {
        let story = Story::default();
        story.want();
        let owner = Owner(3);
        story.life(1, owner, || "starts".to_owned());
        story.work(2, owner, || "worker 1 calls write 4 of file 62".to_owned());
        story.work(3, owner, || "worker 2 calls write 4 of file 63".to_owned());
        story.add(4, owner, Subject::Block(10), "block 10: lock".to_owned());
        story.add(5, owner, Subject::Block(90), "block 90: lock".to_owned());
        let told = story.tell("file 62 reads zeroes; lock 10 is free", &[]);
        let texts: Vec<&str> = told.iter().filter_map(|line| line.split("  ").last()).collect();
        assert_eq!(texts, ["starts", "worker 1 calls write 4 of file 62", "block 10: lock"]);
    }

    #[test]
    fn numbers_are_found_behind_their_word() {
        let found: Vec<u64> =
            numbers_behind("R5: writes block 12 under lock 7", "block ").collect();
        assert_eq!(found, [12]);
    }
}
