//! The one disk that all hosts share.
//!
//! A request is planned when it is submitted: at which moments its blocks are touched, when it
//! hardens, when it is answered and with what. Between two of these moments anybody else's
//! request may do the same, so reads see half of a write in flight and writes overtake each other.
//!
//! Invariants:
//! - `until` is compared with the host's clock at submission, and only then (R1). A pause of the
//!   host between that look and the device is possible: such a request is *held* until it ends.
//! - A compare-and-write happens at one moment.
//! - A request outlives the program that made it by at most the drain time, in the state in which
//!   the program's death found it: done, half done, or not done.

pub mod faults;
mod handle;
pub mod medium;
mod plan;
mod reply;
mod spoiled;
pub mod watch;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

use lunfs_core::env::{Compared, Instant, IoError};

use crate::chance::Chance;
use crate::executor::{Executor, Owner};
use crate::trace::{Event, Trace};
use faults::{Fate, Latency, MILLISECOND, Rates, Request, Truth};
use medium::{Answered, Before, Medium};
use plan::{Step, Verdict};
use reply::{Reply, Wait, reply};
use spoiled::Spoiled;
use watch::{Landing, Submission, Watch};

pub use handle::HostDisk;

/// Longest time for which requests of a dead program still land.
pub const DRAIN_MAX: u64 = 300 * MILLISECOND;

/// What a request ended with.
#[derive(Clone, Debug)]
pub(crate) enum Outcome {
    Data(Vec<u8>),
    Done,
    Compared(Compared),
}

pub(crate) type Answer = std::result::Result<Outcome, IoError>;

/// What is wanted of the disk.
pub(crate) struct Wanted {
    pub request: Request,
    pub at: u64,
    pub len: u64,
    pub data: Rc<[u8]>,
    pub expect: Option<Rc<[u8]>>,
    pub fua: bool,
    pub until: Instant,
}

struct Op {
    owner: Owner,
    wanted: Wanted,
    /// First block.
    unit: u64,
    reply: Reply<Answer>,
    answered: Answered,
    /// Its place in the order of calls and answers: what a flush covers.
    called: u64,
    /// Which blocks were touched.
    touched: Vec<bool>,
    buffer: Vec<u8>,
    compared: Option<Compared>,
    /// Steps planned under another epoch are void.
    epoch: u32,
    steps: usize,
    held: bool,
}

type Trigger = (u32, Option<Request>, Box<dyn FnOnce()>);

struct Inner {
    medium: Medium,
    ops: BTreeMap<u64, Op>,
    next_op: u64,
    rates: Rates,
    latency: Latency,
    stalled_until: BTreeMap<Owner, u64>,
    triggers: BTreeMap<Owner, Trigger>,
    spoiled: Option<Spoiled>,
    /// Rises at every call and every answer.
    order: u64,
}

impl Inner {
    fn next_order(&mut self) -> u64 {
        self.order += 1;
        self.order
    }
}

impl Op {
    fn untouched(&self) -> Vec<u32> {
        let untouched = self.touched.iter().enumerate().filter(|(_, touched)| !**touched);
        untouched.map(|(unit, _)| u32::try_from(unit).unwrap_or(u32::MAX)).collect()
    }
}

/// The shared disk.
pub struct SharedDisk {
    executor: Rc<Executor>,
    trace: Rc<Trace>,
    chance: Chance,
    unit: u64,
    size: u64,
    watch: RefCell<Option<Rc<dyn Watch>>>,
    inner: RefCell<Inner>,
    /// Requests that were submitted so far.
    requests: Cell<u64>,
}

/// What kind of disk it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Model {
    /// Logical block: 512 or 4096.
    pub unit: u32,
    /// Size in bytes.
    pub size: u64,
    /// What lies on it before it is written.
    pub before: Before,
    /// How long requests take.
    pub latency: Latency,
}

impl SharedDisk {
    /// A disk without faults.
    pub fn new(
        executor: &Rc<Executor>,
        trace: &Rc<Trace>,
        chance: Chance,
        model: Model,
    ) -> Rc<SharedDisk> {
        Rc::new(SharedDisk {
            executor: Rc::clone(executor),
            trace: Rc::clone(trace),
            chance,
            unit: u64::from(model.unit),
            size: model.size,
            watch: RefCell::new(None),
            inner: RefCell::new(Inner {
                medium: Medium::new(model.unit as usize, model.before),
                ops: BTreeMap::new(),
                next_op: 0,
                rates: Rates::NONE,
                latency: model.latency,
                stalled_until: BTreeMap::new(),
                triggers: BTreeMap::new(),
                spoiled: None,
                order: 0,
            }),
            requests: Cell::new(0),
        })
    }

    /// Who is told of every submission and landing.
    pub fn watch(&self, watch: Rc<dyn Watch>) {
        *self.watch.borrow_mut() = Some(watch);
    }

    /// Size in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Logical block in bytes.
    pub fn unit(&self) -> u64 {
        self.unit
    }

    /// Requests submitted so far.
    pub fn requests(&self) -> u64 {
        self.requests.get()
    }

    /// How often requests go wrong from now on.
    pub fn set_rates(&self, rates: Rates) {
        let mut inner = self.inner.borrow_mut();
        inner.rates = rates;
        if rates == Rates::NONE {
            inner.spoiled = None;
        }
    }

    /// What `owner` writes with its `countdown`-th plain write from now lies on blocks that nobody
    /// can write any more, until nothing goes wrong again.
    pub fn spoil(&self, owner: Owner, countdown: u32) {
        let mut inner = self.inner.borrow_mut();
        if inner.rates != Rates::NONE && !matches!(inner.spoiled, Some(Spoiled::Blocks(_))) {
            inner.spoiled = Some(Spoiled::Next { owner, countdown });
        }
    }

    /// How often requests go wrong now.
    pub fn rates(&self) -> Rates {
        self.inner.borrow().rates
    }

    /// Requests submitted before `until` are not touched before then: of one program, or, with
    /// [`Owner::WORLD`], of all.
    pub fn stall(&self, owner: Owner, until: u64) {
        self.inner.borrow_mut().stalled_until.insert(owner, until);
    }

    /// Calls `action` when `owner` submits the `countdown`-th request from now that is `request`,
    /// or any that changes something. The action may pause the program: the request is then held
    /// between its look at the clock and the device.
    pub fn arm(
        &self,
        owner: Owner,
        countdown: u32,
        request: Option<Request>,
        action: impl FnOnce() + 'static,
    ) {
        self.inner.borrow_mut().triggers.insert(owner, (countdown, request, Box::new(action)));
    }

    fn trace(&self, owner: Owner, what: &'static str, at: u64, len: u64, outcome: &'static str) {
        let time = self.executor.now();
        self.trace.event(Event { time, owner, what, at, len, outcome });
    }

    /// Takes a request in, after its look at the clock.
    pub(crate) fn submit(
        self: &Rc<Self>,
        owner: Owner,
        wanted: Wanted,
        host_now: Instant,
    ) -> Wait<Answer> {
        let (giving, waiting) = reply();
        self.requests.set(self.requests.get() + 1);
        let (request, at, len) = (wanted.request, wanted.at, wanted.len);
        if let Some(fault) = self.refuses(&wanted) {
            self.trace(owner, request.name(), at, len, "beyond the device");
            giving.give(Err(IoError::Failed(fault)));
            return waiting;
        }
        self.trace(owner, request.name(), at, len, if wanted.fua { "fua" } else { "" });
        if request.changes() {
            self.trace.bytes(&wanted.data);
        }
        let watch = self.watch.borrow().clone();
        if let Some(watch) = watch {
            watch.submitted(&Submission {
                time: self.executor.now(),
                owner,
                request,
                at,
                len,
                data: &wanted.data,
                expect: wanted.expect.as_deref(),
                until: wanted.until,
                host_now,
            });
        }
        let (unit, units) = (at / self.unit, len / self.unit);
        let buffer = if request == Request::Read { vec![0; index(len)] } else { Vec::new() };
        let number = {
            let mut inner = self.inner.borrow_mut();
            let number = inner.next_op;
            inner.next_op += 1;
            let called = inner.next_order();
            inner.ops.insert(
                number,
                Op {
                    owner,
                    wanted,
                    unit,
                    reply: giving,
                    answered: Rc::new(Cell::new(u64::MAX)),
                    called,
                    touched: vec![false; index(units)],
                    buffer,
                    compared: None,
                    epoch: 0,
                    steps: 0,
                    held: true,
                },
            );
            number
        };
        if request.changes() {
            self.pull_trigger(owner, request);
        }
        if !self.executor.is_paused(owner) {
            self.release(number);
        }
        waiting
    }

    fn refuses(&self, wanted: &Wanted) -> Option<String> {
        let (at, len) = (wanted.at, wanted.len);
        assert!(
            at % self.unit == 0 && len % self.unit == 0,
            "{} of {len} bytes at {at:#x}: not in logical blocks of {} bytes",
            wanted.request.name(),
            self.unit
        );
        let single = wanted.request == Request::Compare;
        assert!(!single || len == self.unit, "compare-and-write of {len} bytes at {at:#x}");
        let beyond = at.checked_add(len).is_none_or(|end| end > self.size);
        beyond.then(|| format!("{at:#x} + {len:#x} is beyond the device"))
    }

    fn pull_trigger(&self, owner: Owner, request: Request) {
        let due = {
            let mut inner = self.inner.borrow_mut();
            match inner.triggers.get_mut(&owner) {
                Some((countdown, wanted, _)) if wanted.is_none_or(|wanted| wanted == request) => {
                    *countdown = countdown.saturating_sub(1);
                    let is_due = *countdown == 0;
                    is_due.then(|| inner.triggers.remove(&owner)).flatten()
                }
                _ => None,
            }
        };
        if let Some((_, _, action)) = due {
            action();
        }
    }

    /// A held request goes to the device.
    fn release(self: &Rc<Self>, number: u64) {
        let planned = {
            let mut inner = self.inner.borrow_mut();
            let Inner { ops, rates, latency, stalled_until, spoiled, .. } = &mut *inner;
            let Some(op) = ops.get_mut(&number).filter(|op| op.held) else { return };
            op.held = false;
            let is_spoiled = op.wanted.request == Request::Write
                && spoiled::meets(spoiled, op.owner, op.unit..op.unit + op.touched.len() as u64);
            let fate = match is_spoiled {
                true => Fate::InDoubt(Truth::draw(&self.chance)),
                false => op.wanted.request.fate(rates, &self.chance),
            };
            let now = self.executor.now();
            let stall = |owner| stalled_until.get(&owner).copied().unwrap_or(0);
            let start = now.max(stall(op.owner)).max(stall(Owner::WORLD));
            let timing = plan::Timing { now, start, latency: *latency, rates: *rates };
            let steps = plan::plan(
                op.wanted.request,
                &op.untouched(),
                op.wanted.fua,
                fate,
                timing,
                &self.chance,
            );
            op.steps = steps.len();
            steps
        };
        self.schedule(number, 0, planned);
    }

    fn schedule(self: &Rc<Self>, number: u64, epoch: u32, steps: Vec<(u64, Step)>) {
        for (at, step) in steps {
            let disk = Rc::clone(self);
            self.executor.at(at, move || disk.step(number, epoch, step));
        }
    }

    fn step(self: &Rc<Self>, number: u64, epoch: u32, step: Step) {
        let is_current = {
            let mut inner = self.inner.borrow_mut();
            match inner.ops.get_mut(&number) {
                Some(op) if op.epoch == epoch => {
                    op.steps -= 1;
                    true
                }
                _ => false,
            }
        };
        if !is_current {
            return;
        }
        match step {
            Step::Touch(units) => self.touch(number, &units),
            Step::Harden => self.harden(number),
            Step::Answer(verdict) => self.answer(number, verdict),
            Step::Gone => {}
        }
        let mut inner = self.inner.borrow_mut();
        if inner.ops.get(&number).is_some_and(|op| op.steps == 0) {
            let order = inner.next_order();
            if let Some(op) = inner.ops.remove(&number) {
                // Whether or not anybody heard of it: the device is done with it, and the next
                // flush covers it.
                op.answered.set(op.answered.get().min(order));
            }
        }
    }

    fn touch(&self, number: u64, units: &[u32]) {
        let (owner, request, data, landings) = {
            let mut inner = self.inner.borrow_mut();
            let Inner { medium, ops, .. } = &mut *inner;
            let Some(op) = ops.get_mut(&number) else { return };
            let mut landings = Vec::new();
            for &unit in units {
                op.touched[unit as usize] = true;
                let (place, from) = (op.unit + u64::from(unit), unit as usize * index(self.unit));
                if op.wanted.request == Request::Read {
                    let to = from + index(self.unit);
                    medium.read(place, &mut op.buffer[from..to]);
                    continue;
                }
                let mut before = None;
                if let Some(expect) = &op.wanted.expect {
                    let mut found = vec![0; index(self.unit)];
                    medium.read(place, &mut found);
                    let equal = found[..] == expect[..];
                    op.compared =
                        Some(if equal { Compared::Written } else { Compared::Miscompare });
                    if !equal {
                        continue;
                    }
                    before = Some(found);
                } else if op.wanted.data[from..].starts_with(b"LNFS") {
                    let mut found = vec![0; index(self.unit)];
                    medium.read(place, &mut found);
                    before = Some(found);
                }
                medium.land(place, &op.wanted.data, from, &op.answered);
                landings.push((place * self.unit, from, before));
            }
            (op.owner, op.wanted.request, Rc::clone(&op.wanted.data), landings)
        };
        if let Some(&(at, _, _)) = landings.first() {
            self.trace(owner, "lands", at, landings.len() as u64 * self.unit, request.name());
        }
        let Some(watch) = self.watch.borrow().clone() else { return };
        for (at, from, before) in landings {
            let (before, after) = (before.as_deref(), &data[from..from + index(self.unit)]);
            let time = self.executor.now();
            watch.landed(&Landing { time, owner, request, at, before, after });
        }
    }

    fn harden(&self, number: u64) {
        let mut inner = self.inner.borrow_mut();
        let Inner { medium, ops, .. } = &mut *inner;
        let Some(op) = ops.get(&number) else { return };
        for unit in 0..op.wanted.len / self.unit {
            medium.harden(op.unit + unit, &op.answered);
        }
    }

    fn answer(&self, number: u64, verdict: Verdict) {
        let mut inner = self.inner.borrow_mut();
        let order = inner.next_order();
        let Inner { medium, ops, .. } = &mut *inner;
        let Some(op) = ops.get_mut(&number) else { return };
        let doubt = |why: &str| Err(IoError::InDoubt(why.to_owned()));
        let (answer, said) = match verdict {
            Verdict::InDoubt => (doubt("the simulated device did not answer"), "in doubt"),
            Verdict::Failed => {
                (Err(IoError::Failed("the simulated device refused".to_owned())), "failed")
            }
            Verdict::Truth => match op.wanted.request {
                Request::Read => (Ok(Outcome::Data(std::mem::take(&mut op.buffer))), "read"),
                Request::Write | Request::Unmap => (Ok(Outcome::Done), "done"),
                Request::Flush => {
                    medium.flush(op.called);
                    (Ok(Outcome::Done), "flushed")
                }
                Request::Compare => match op.compared {
                    Some(Compared::Written) => {
                        (Ok(Outcome::Compared(Compared::Written)), "written")
                    }
                    Some(Compared::Miscompare) => {
                        (Ok(Outcome::Compared(Compared::Miscompare)), "miscompare")
                    }
                    None => (doubt("never compared"), "in doubt"),
                },
            },
        };
        if answer.is_ok() {
            op.answered.set(order);
        }
        let (owner, at, len) = (op.owner, op.wanted.at, op.wanted.len);
        let reply = std::mem::replace(&mut op.reply, reply().0);
        drop(inner);
        self.trace(owner, "answer", at, len, said);
        reply.give(answer);
    }

    /// The pause of `owner` is over: what it submitted goes to the device.
    pub fn resume(self: &Rc<Self>, owner: Owner) {
        let held: Vec<u64> = {
            let inner = self.inner.borrow();
            let held = inner.ops.iter().filter(|(_, op)| op.owner == owner && op.held);
            held.map(|(&number, _)| number).collect()
        };
        for number in held {
            self.release(number);
        }
    }

    /// The program is dead: each of its requests lands wholly, partly or not, within the drain
    /// time.
    pub fn orphan(self: &Rc<Self>, owner: Owner) {
        let drained = self.executor.now() + self.chance.below(DRAIN_MAX);
        let mut schedules = Vec::new();
        {
            let mut inner = self.inner.borrow_mut();
            inner.triggers.remove(&owner);
            inner.stalled_until.remove(&owner);
            inner
                .ops
                .retain(|_, op| op.owner != owner || (op.wanted.request.changes() && !op.held));
            for (&number, op) in inner.ops.iter_mut().filter(|(_, op)| op.owner == owner) {
                op.epoch += 1;
                let now = self.executor.now();
                let steps = plan::last_steps(&op.untouched(), now, drained, &self.chance);
                op.steps = steps.len();
                schedules.push((number, op.epoch, steps));
            }
        }
        for (number, epoch, steps) in schedules {
            self.schedule(number, epoch, steps);
        }
    }

    /// Has everything that `owner` submitted landed, or never will?
    pub fn is_drained(&self, owner: Owner) -> bool {
        let inner = self.inner.borrow();
        !inner.ops.values().any(|op| op.owner == owner && op.wanted.request.changes())
    }

    /// The power fails: requests in flight are torn, and of each block that was not flushed any
    /// version survives. All programs must be dead. Returns how many blocks lost something.
    pub fn lose_power(&self) -> u64 {
        let mut inner = self.inner.borrow_mut();
        let Inner { medium, ops, .. } = &mut *inner;
        for (_, op) in std::mem::take(ops) {
            if !op.wanted.request.changes() || op.wanted.expect.is_some() {
                continue;
            }
            for unit in op.untouched() {
                if self.chance.percent(50) {
                    let from = unit as usize * index(self.unit);
                    medium.land(op.unit + u64::from(unit), &op.wanted.data, from, &op.answered);
                }
            }
        }
        inner.stalled_until.clear();
        inner.triggers.clear();
        let percent = *self.chance.pick(&[0, 10, 50, 90, 100]);
        let lost = inner.medium.lose_power(&self.chance, percent);
        drop(inner);
        self.trace(Owner::WORLD, "power", lost, u64::from(percent), "lost");
        lost
    }

    /// What a range may read after it was unmapped.
    pub(crate) fn after_unmap(&self, at: u64, len: u64) -> Rc<[u8]> {
        match self.chance.below(3) {
            0 => Rc::from(vec![0; index(len)]),
            1 => Rc::from(self.peek(at, index(len))),
            _ => Rc::from(vec![0xDE; index(len)]),
        }
    }

    /// Reads at once, past all queues: for checkers.
    pub fn peek(&self, at: u64, len: usize) -> Vec<u8> {
        let inner = self.inner.borrow();
        let unit = index(self.unit);
        let mut out = vec![0; len.next_multiple_of(unit)];
        for (number, block) in out.chunks_exact_mut(unit).enumerate() {
            inner.medium.read(at / self.unit + number as u64, block);
        }
        out.truncate(len);
        out
    }
}

fn index(value: u64) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests;
