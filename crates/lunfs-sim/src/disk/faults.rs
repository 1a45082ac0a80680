//! How the disk behaves: how long it takes, and how often it does what.

use crate::chance::Chance;

/// Nanoseconds of a millisecond.
pub const MILLISECOND: u64 = 1_000_000;
/// Nanoseconds of a second.
pub const SECOND: u64 = 1_000_000_000;

/// How long requests take when nothing is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Latency {
    /// Shortest, in nanoseconds.
    pub low: u64,
    /// Longest.
    pub high: u64,
}

impl Latency {
    /// A fast array.
    pub const USUAL: Latency = Latency { low: 50_000, high: 500_000 };

    /// Draws the character of an array.
    pub fn draw(chance: &Chance) -> Latency {
        match chance.below(10) {
            0 => Latency { low: 500_000, high: 8 * MILLISECOND },
            1 => Latency { low: 100_000, high: 20 * MILLISECOND },
            2 => Latency { low: 10_000, high: 100_000 },
            _ => Latency::USUAL,
        }
    }
}

/// How often requests go wrong, each in a million.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rates {
    /// A request stalls for 0.1 to 6 s.
    pub stall: u32,
    /// A request was done at once but is answered only after 4 to 20 s.
    pub late_answer: u32,
    /// A read fails.
    pub read_failed: u32,
    /// The blocks of a read are fetched one by one in any order.
    pub read_scattered: u32,
    /// A read shows metadata with a flipped bit, or that of another place.
    pub read_lies: u32,
    /// A plain write ends in doubt.
    pub write_in_doubt: u32,
    /// A flush ends in doubt.
    pub flush_in_doubt: u32,
    /// A compare-and-write ends in doubt.
    pub compare_in_doubt: u32,
    /// A compare-and-write is refused and never done.
    pub compare_failed: u32,
    /// A compare-and-write is done, and the flush that should make it durable fails. No later flush
    /// makes up for it (N41).
    pub compare_unflushed: u32,
    /// A write is done twice; of a compare-and-write the second result is reported.
    pub doubled: u32,
    /// A fence reports an error.
    pub fence_failed: u32,
    /// Nothing can be said of a program's life.
    pub life_unknown: u32,
}

impl Rates {
    /// Nothing ever goes wrong.
    pub const NONE: Rates = Rates {
        stall: 0,
        late_answer: 0,
        read_failed: 0,
        read_scattered: 0,
        read_lies: 0,
        write_in_doubt: 0,
        flush_in_doubt: 0,
        compare_in_doubt: 0,
        compare_failed: 0,
        compare_unflushed: 0,
        doubled: 0,
        fence_failed: 0,
        life_unknown: 0,
    };

    /// Draws how bad the world of one run is: each kind of fault is absent, rare or common.
    pub fn draw(chance: &Chance) -> Rates {
        let one = |common: u32| match chance.below(4) {
            0 | 1 => 0,
            2 => common / 10,
            _ => common,
        };
        Rates {
            stall: one(400),
            late_answer: one(300),
            read_failed: one(2_000),
            read_scattered: one(200_000),
            // A device that lies is a world of its own.
            read_lies: 0,
            // Each of these ends a host: a few in a run are enough.
            write_in_doubt: one(120),
            flush_in_doubt: one(200),
            compare_in_doubt: one(10_000),
            compare_failed: one(5_000),
            doubled: one(20_000),
            fence_failed: one(200_000),
            life_unknown: one(200_000),
            compare_unflushed: one(150),
        }
    }
}

/// When a request in doubt is truly done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Truth {
    /// It never is.
    Never,
    /// It was, long before the answer.
    Early,
    /// It will be, after the answer.
    Late,
}

impl Truth {
    /// One of them.
    pub fn draw(chance: &Chance) -> Truth {
        match chance.below(3) {
            0 => Truth::Never,
            1 => Truth::Early,
            _ => Truth::Late,
        }
    }
}

/// What happens to one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It is done and answered.
    Usual,
    /// It is done twice.
    Doubled,
    /// It is done, and answered much later.
    LateAnswer,
    /// The answer is "in doubt".
    InDoubt(Truth),
    /// The answer is an error, and it is never done.
    Failed,
    /// It is done, and the answer says that it is not durable.
    Unflushed,
}

/// What kind of request it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Request {
    /// A read.
    Read,
    /// A plain write.
    Write,
    /// A compare-and-write.
    Compare,
    /// A flush.
    Flush,
    /// An unmap.
    Unmap,
}

impl Request {
    /// Its name in the trace.
    pub fn name(self) -> &'static str {
        match self {
            Request::Read => "read",
            Request::Write => "write",
            Request::Compare => "compare",
            Request::Flush => "flush",
            Request::Unmap => "unmap",
        }
    }

    /// Can it change what is on the disk?
    pub fn changes(self) -> bool {
        matches!(self, Request::Write | Request::Compare | Request::Unmap)
    }

    /// Draws what happens to one request of this kind.
    pub fn fate(self, rates: &Rates, chance: &Chance) -> Fate {
        let (in_doubt, failed, doubled) = match self {
            Request::Read => (0, rates.read_failed, 0),
            Request::Write | Request::Unmap => (rates.write_in_doubt, 0, rates.doubled),
            Request::Compare => (rates.compare_in_doubt, rates.compare_failed, rates.doubled),
            Request::Flush => (rates.flush_in_doubt, 0, 0),
        };
        if self == Request::Compare && chance.hits(rates.compare_unflushed) {
            Fate::Unflushed
        } else if chance.hits(in_doubt) {
            Fate::InDoubt(Truth::draw(chance))
        } else if chance.hits(failed) {
            Fate::Failed
        } else if chance.hits(doubled) {
            Fate::Doubled
        } else if chance.hits(rates.late_answer) {
            Fate::LateAnswer
        } else {
            Fate::Usual
        }
    }
}
