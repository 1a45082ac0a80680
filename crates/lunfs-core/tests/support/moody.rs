//! A disk in memory that fails, hangs, leaves in doubt or forgets where a rule says so.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use lunfs_core::StopReason;
use lunfs_core::env::{Answer, Capabilities, Clock, Compared, Disk, Env, Instant, IoError};
use lunfs_format::{kind, kind_of};

use super::{Ram, Time, env_with_disk};

/// What is asked of the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    /// A read.
    Read,
    /// A plain write.
    Write,
    /// A flush.
    Flush,
    /// A compare-and-write.
    Swap,
}

/// A request: which, where, how long, and what a compare-and-write would write.
#[derive(Clone, Copy)]
pub struct Asked<'a> {
    /// What.
    pub ask: Ask,
    /// Where, in bytes.
    pub at: u64,
    /// How long, in bytes.
    pub len: usize,
    /// What it would write.
    pub new: &'a [u8],
}

/// What it does instead.
#[derive(Clone, Copy, Debug)]
pub enum Fault {
    /// Says that it was not and never will be done.
    Fail,
    /// Never answers.
    Hang,
    /// A compare-and-write that is answered late with a doubt, and lands at once or never.
    Doubt { lands: bool, after: Duration },
    /// A write that comes as far as the disk's cache, and is never answered.
    Cache,
    /// A compare-and-write that is done, done again, and answered with the miscompare of the
    /// second.
    Twice,
    /// A read that shows a flipped bit in the structure at this offset of the disk.
    Lie(u64),
    /// A read that shows nothing where a structure is.
    Blank(u64),
    /// A read that sees the disk as it is now, and is answered later.
    Slow(Duration),
    /// A compare-and-write that is done, and whose flush fails.
    Unflushed,
    /// A write that is answered with a doubt after a moment, and lands much later.
    Late { answer: Duration, landing: Duration },
}

/// Decides about each request; `None`: it is done as on any disk.
pub type Rule = Box<dyn Fn(Asked<'_>) -> Option<Fault>>;

/// A disk in memory that breaks where a rule says so, and forgets what was not flushed.
pub struct Moody {
    pub ram: Rc<Ram>,
    pub time: Time,
    rule: RefCell<Rule>,
    /// Answers of doubt so far.
    pub doubts: Cell<u32>,
    /// What writes without a later flush replaced, the oldest first.
    volatile: Rc<RefCell<Vec<(u64, Vec<u8>)>>>,
    /// What lands later: when, where, what.
    late: RefCell<Vec<(Instant, u64, Vec<u8>)>>,
    /// How many of them flushes took out so far.
    flushed: Rc<Cell<usize>>,
}

impl Moody {
    /// From now on this rule decides.
    pub fn when(&self, rule: impl Fn(Asked<'_>) -> Option<Fault> + 'static) {
        *self.rule.borrow_mut() = Box::new(rule);
    }

    /// From now on no record of a journal ends.
    pub fn hang_records(&self) {
        self.when(|asked| {
            let is_record = kind_of(asked.new) == Some(kind::JOURNAL_RECORD);
            (asked.ask == Ask::Write && is_record).then_some(Fault::Hang)
        });
    }

    /// From now on nothing fails.
    pub fn well(&self) {
        self.when(|_| None);
    }

    /// Has what is late land if it is time.
    fn land(&self) {
        let now = self.time.now();
        let due = |late: &(Instant, u64, Vec<u8>)| late.0 <= now;
        for (_, at, bytes) in self.late.borrow_mut().extract_if(.., |late| due(late)) {
            self.ram.put(at, &bytes);
        }
    }

    /// Forgets what was not flushed.
    pub fn lose_power(&self) {
        for (at, old) in self.volatile.take().into_iter().rev() {
            self.ram.put(at, &old);
        }
    }

    /// Forgets, of what was not flushed, the records of journals.
    pub fn lose_records(&self) {
        let is_record = |(at, _): &(u64, Vec<u8>)| {
            kind_of(&self.ram.get(*at, 4096)) == Some(kind::JOURNAL_RECORD)
        };
        let records: Vec<_> =
            self.volatile.borrow().iter().filter(|w| is_record(w)).cloned().collect();
        for (at, old) in records.into_iter().rev() {
            self.ram.put(at, &old);
        }
    }

    fn fault(&self, asked: Asked<'_>) -> Option<Fault> {
        (*self.rule.borrow())(asked)
    }

    /// What comes of a request instead of what was asked.
    fn broken<T: 'static>(
        &self,
        fault: Option<Fault>,
        asked: Asked<'_>,
    ) -> Option<Answer<Result<T, IoError>>> {
        match fault? {
            Fault::Fail => Some(Box::pin(async { Err(IoError::Failed("broken".into())) })),
            Fault::Hang => Some(Box::pin(std::future::pending())),
            Fault::Cache => {
                let old = self.ram.get(asked.at, asked.new.len());
                self.volatile.borrow_mut().push((asked.at, old));
                self.ram.put(asked.at, asked.new);
                Some(Box::pin(std::future::pending()))
            }
            // The compare-and-write's and the read's own to answer.
            Fault::Twice | Fault::Unflushed | Fault::Slow(_) | Fault::Lie(_) | Fault::Blank(_) => {
                None
            }
            Fault::Doubt { lands, after } => {
                self.doubts.set(self.doubts.get() + 1);
                if lands {
                    self.ram.put(asked.at, asked.new);
                }
                let late = self.time.sleep(after);
                Some(Box::pin(async move {
                    late.await;
                    Err(IoError::InDoubt("no answer".into()))
                }))
            }
            Fault::Late { answer, landing } => {
                let landing = self.time.now() + landing;
                self.late.borrow_mut().push((landing, asked.at, asked.new.to_vec()));
                let answered = self.time.sleep(answer);
                Some(Box::pin(async move {
                    answered.await;
                    Err(IoError::InDoubt("no answer".into()))
                }))
            }
        }
    }
}

impl Disk for Moody {
    fn capabilities(&self) -> Capabilities {
        self.ram.capabilities()
    }
    fn read(&self, at: u64, len: usize) -> Answer<Result<Vec<u8>, IoError>> {
        self.land();
        let asked = Asked { ask: Ask::Read, at, len, new: &[] };
        let fault = self.fault(asked);
        if let Some(Fault::Lie(place) | Fault::Blank(place)) = fault {
            let mut seen = self.ram.get(at, len);
            let from = (place - at) as usize;
            match fault {
                Some(Fault::Blank(_)) => seen[from..from + 512].fill(0),
                _ => seen[from + 100] ^= 1,
            }
            return Box::pin(async { Ok(seen) });
        }
        if let Some(Fault::Slow(after)) = fault {
            let (seen, late) = (self.ram.get(at, len), self.time.sleep(after));
            return Box::pin(async move {
                late.await;
                Ok(seen)
            });
        }
        self.broken(fault, asked).unwrap_or_else(|| self.ram.read(at, len))
    }
    fn write(
        &self,
        at: u64,
        data: Vec<u8>,
        fua: bool,
        until: Instant,
    ) -> Answer<Result<(), IoError>> {
        let asked = Asked { ask: Ask::Write, at, len: data.len(), new: &data };
        if let Some(answer) = self.broken(self.fault(asked), asked) {
            return answer;
        }
        if !fua {
            self.volatile.borrow_mut().push((at, self.ram.get(at, data.len())));
        }
        self.ram.write(at, data, fua, until)
    }
    fn flush(&self) -> Answer<Result<(), IoError>> {
        let asked = Asked { ask: Ask::Flush, at: 0, len: 0, new: &[] };
        if let Some(answer) = self.broken(self.fault(asked), asked) {
            return answer;
        }
        let (done, volatile, flushed) =
            (self.ram.flush(), self.volatile.clone(), self.flushed.clone());
        let answered = flushed.get() + volatile.borrow().len();
        Box::pin(async move {
            done.await?;
            // Another flush may have begun later and ended earlier.
            let new = answered.saturating_sub(flushed.get());
            volatile.borrow_mut().drain(..new);
            flushed.set(flushed.get() + new);
            Ok(())
        })
    }
    fn compare_and_write(
        &self,
        at: u64,
        expect: Vec<u8>,
        new: Vec<u8>,
        until: Instant,
    ) -> Answer<Result<Compared, IoError>> {
        let asked = Asked { ask: Ask::Swap, at, len: new.len(), new: &new };
        let fault = self.fault(asked);
        if let Some(Fault::Twice) = fault {
            let (ram, again) = (self.ram.clone(), (expect.clone(), new.clone()));
            return Box::pin(async move {
                ram.compare_and_write(at, expect, new, until).await?;
                ram.compare_and_write(at, again.0, again.1, until).await
            });
        }
        if let Some(Fault::Unflushed) = fault {
            let done = self.ram.compare_and_write(at, expect, new, until);
            return Box::pin(async move {
                match done.await? {
                    Compared::Written => Err(IoError::Unflushed("the cache is broken".into())),
                    Compared::Miscompare => Ok(Compared::Miscompare),
                }
            });
        }
        if let Some(answer) = self.broken(fault, asked) {
            return answer;
        }
        if self.ram.get(at, expect.len()) == expect {
            // Durable when it is answered, whatever lay there in the cache.
            self.volatile.borrow_mut().retain(|(old, _)| *old != at);
        }
        self.ram.compare_and_write(at, expect, new, until)
    }
    fn unmap(&self, at: u64, len: u64, until: Instant) -> Answer<Result<(), IoError>> {
        self.ram.unmap(at, len, until)
    }
}

/// One host's doors on such a disk.
pub struct World {
    pub env: Env,
    pub time: Time,
    pub disk: Rc<Moody>,
}

/// A new disk without a volume.
pub fn world() -> World {
    let (env, time, ram) = env_with_disk(256 << 20);
    let disk = moody(ram, &time);
    World { env: Env { disk: disk.clone(), ..env }, time, disk }
}

/// A disk that breaks by rules, over another one.
pub fn moody(ram: Rc<Ram>, time: &Time) -> Rc<Moody> {
    let rule: Rule = Box::new(|_| None);
    Rc::new(Moody {
        ram,
        time: time.clone(),
        rule: RefCell::new(rule),
        doubts: Cell::new(0),
        volatile: Rc::default(),
        late: RefCell::default(),
        flushed: Rc::default(),
    })
}

/// Why a host stopped.
pub fn why(stopped: StopReason) -> String {
    match stopped {
        StopReason::Stopped(why) => why,
        StopReason::Unmounted => panic!("it unmounted"),
    }
}
