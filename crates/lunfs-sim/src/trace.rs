//! What happened, as one number and, for people, as lines.
//!
//! Two runs of one seed must end with the same number: every event of the disk, of the fences and
//! of the hosts goes into it, with its time.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;

use crate::executor::Owner;
use crate::story::Story;

/// Events kept for the report of a finding.
const RECENT_MAX: usize = 4_000;
const FNV_OFFSET: u64 = 0xCBF2_9CE4_8422_2325;
const FNV_PRIME: u64 = 0x0000_0100_0000_01B3;

/// One event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// World time in nanoseconds.
    pub time: u64,
    /// Whose.
    pub owner: Owner,
    /// What: `read`, `crash`, ...
    pub what: &'static str,
    /// Address in bytes, or another number that belongs to `what`.
    pub at: u64,
    /// Length in bytes, or another number.
    pub len: u64,
    /// How it ended or what is remarkable.
    pub outcome: &'static str,
}

impl std::fmt::Display for Event {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} {:>5} {:<10} {:#x} +{:#x} {}",
            seconds(self.time),
            self.owner.to_string(),
            self.what,
            self.at,
            self.len,
            self.outcome
        )
    }
}

/// A short text as a number: its length and its first seven letters, which is enough to tell the
/// few words of a trace apart.
fn word(text: &str) -> u64 {
    let letters = text.bytes().take(7);
    letters.fold(text.len() as u64, |sum, byte| sum << 8 | u64::from(byte))
}

/// World time for people.
pub fn seconds(time: u64) -> String {
    format!("{:>4}.{:06}", time / 1_000_000_000, time / 1_000 % 1_000_000)
}

/// The trace of one run.
pub struct Trace {
    hash: Cell<u64>,
    events: Cell<u64>,
    verbose: bool,
    recent: RefCell<VecDeque<Event>>,
    /// What is told of a finding.
    pub story: Story,
}

impl Trace {
    /// An empty trace; with `verbose` every event is printed as it happens.
    pub fn new(verbose: bool) -> Trace {
        Trace {
            hash: Cell::new(FNV_OFFSET),
            events: Cell::new(0),
            verbose,
            recent: RefCell::new(VecDeque::new()),
            story: Story::default(),
        }
    }

    fn add(&self, value: u64) {
        self.hash.set((self.hash.get() ^ value).wrapping_mul(FNV_PRIME).rotate_left(29));
    }

    /// Takes up one event.
    pub fn event(&self, event: Event) {
        for value in [event.time, u64::from(event.owner.0), event.at, event.len] {
            self.add(value);
        }
        self.add(word(event.what));
        self.add(word(event.outcome));
        self.events.set(self.events.get() + 1);
        if self.verbose {
            eprintln!("{event}");
        }
        let mut recent = self.recent.borrow_mut();
        if recent.len() == RECENT_MAX {
            recent.pop_front();
        }
        recent.push_back(event);
    }

    /// Takes up bytes that were written or read.
    pub fn bytes(&self, data: &[u8]) {
        // Eight sums side by side: one after the other they would wait for each other.
        let mut sums = [FNV_OFFSET; 8];
        for line in data.chunks_exact(64) {
            for (sum, word) in sums.iter_mut().zip(line.chunks_exact(8)) {
                let mut bytes = [0; 8];
                bytes.copy_from_slice(word);
                *sum = (*sum ^ u64::from_le_bytes(bytes)).wrapping_mul(FNV_PRIME).rotate_left(17);
            }
        }
        sums.into_iter().for_each(|sum| self.add(sum));
    }

    /// A line for people, built only if somebody reads it.
    pub fn say(&self, time: u64, owner: Owner, line: impl FnOnce() -> String) {
        if self.story.is_wanted() {
            self.story.work(time, owner, line);
        } else if self.verbose {
            eprintln!("{} {:>5} -- {}", seconds(time), owner.to_string(), line());
        }
    }

    /// The number of this run so far.
    pub fn hash(&self) -> u64 {
        self.hash.get()
    }

    /// Events so far.
    pub fn events(&self) -> u64 {
        self.events.get()
    }

    /// The last `count` events.
    pub fn recent(&self, count: usize) -> Vec<Event> {
        let recent = self.recent.borrow();
        recent.iter().skip(recent.len().saturating_sub(count)).cloned().collect()
    }
}
