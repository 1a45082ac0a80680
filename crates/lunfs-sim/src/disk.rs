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
mod lies;
mod losses;
pub mod medium;
mod op;
mod plan;
mod reads;
mod reply;
mod spoiled;
pub mod watch;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::slice::from_ref;

use lunfs_core::env::{Compared, Instant, IoError};
use lunfs_format::RECORD;

use crate::chance::Chance;
use crate::executor::{Due, Executor, Owner};
use crate::trace::{Event, Trace};
use faults::{Fate, Latency, MILLISECOND, Rates, Request, Truth};
use medium::{Before, Medium};
use op::{Answer, Op, Outcome, Wanted};
use plan::{Step, Units, Verdict};
use reads::Reads;
use reply::{Wait, reply};
use spoiled::Spoiled;
use watch::{Landing, Submission, Watch};

pub use handle::HostDisk;

/// Longest time for which requests of a dead program still land.
pub const DRAIN_MAX: u64 = 300 * MILLISECOND;

type Trigger = (u32, Option<Request>, Box<dyn FnOnce()>);

struct Inner {
    medium: Medium,
    ops: BTreeMap<u64, Op>,
    reads: Reads,
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

    /// The whole medium is about to change.
    fn keep_reads(&mut self) {
        self.reads.keep(&self.medium, &mut self.ops, &(0..u64::MAX));
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
    /// Reads that showed something else than what is there.
    lies: Cell<u64>,
    /// Compare-and-writes whose flush failed.
    unflushed: Cell<u64>,
}

/// What kind of disk it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Model {
    /// Logical block: 512 or 4096.
    pub unit: u32,
    /// Size in bytes.
    pub size: u64,
    /// It has no volatile cache: what was answered is durable, a flush does nothing.
    pub writes_through: bool,
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
                medium: Medium::new(model.unit as usize, model.before, model.writes_through),
                ops: BTreeMap::new(),
                reads: Reads::default(),
                next_op: 0,
                rates: Rates::NONE,
                latency: model.latency,
                stalled_until: BTreeMap::new(),
                triggers: BTreeMap::new(),
                spoiled: None,
                order: 0,
            }),
            requests: Cell::new(0),
            lies: Cell::new(0),
            unflushed: Cell::new(0),
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

    /// Reads that showed something else than what is there, so far.
    pub fn lies(&self) -> u64 {
        self.lies.get()
    }

    /// Compare-and-writes whose flush failed, so far.
    pub fn unflushed(&self) -> u64 {
        self.unflushed.get()
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
                    unit: at / self.unit,
                    count: u32::try_from(len / self.unit).unwrap_or(u32::MAX),
                    reply: Some(giving),
                    answered: Rc::new(Cell::new(u64::MAX)),
                    called,
                    touched: Vec::new(),
                    buffer: None,
                    compared: None,
                    is_unflushed: false,
                    epoch: 0,
                    steps: Vec::new(),
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
        {
            let mut inner = self.inner.borrow_mut();
            let Inner { ops, rates, latency, stalled_until, spoiled, .. } = &mut *inner;
            let Some(op) = ops.get_mut(&number).filter(|op| op.held) else { return };
            op.held = false;
            let (request, fua) = (op.wanted.request, op.wanted.fua);
            let is_spoiled =
                request == Request::Write && spoiled::meets(spoiled, op.owner, op.blocks());
            let fate = match is_spoiled {
                true => Fate::InDoubt(Truth::draw(&self.chance)),
                false => request.fate(rates, &self.chance),
            };
            let now = self.executor.now();
            let stall = |owner| stalled_until.get(&owner).copied().unwrap_or(0);
            let start = now.max(stall(op.owner)).max(stall(Owner::WORLD));
            let timing = plan::Timing { now, start, latency: *latency, rates: *rates };
            let count = if request == Request::Compare { 1 } else { op.count };
            op.steps = plan::plan(request, count, fua, fate, timing, &self.chance);
            op.steps.reverse();
        }
        self.schedule(number, 0);
    }

    /// Waits for the next step of a request, if there is one.
    fn schedule(self: &Rc<Self>, number: u64, epoch: u32) {
        let next = {
            let inner = self.inner.borrow();
            inner.ops.get(&number).and_then(|op| op.steps.last()).map(|&(at, _)| at)
        };
        if let Some(at) = next {
            self.executor.due(at, Rc::clone(self) as Rc<dyn Due>, (number, epoch));
        }
    }

    fn next_step(&self, number: u64, epoch: u32) -> Option<Step> {
        let mut inner = self.inner.borrow_mut();
        let op = inner.ops.get_mut(&number).filter(|op| op.epoch == epoch)?;
        op.steps.pop().map(|(_, step)| step)
    }

    /// A request without further steps is gone.
    fn end(&self, number: u64) {
        let mut inner = self.inner.borrow_mut();
        if inner.ops.get(&number).is_some_and(|op| op.steps.is_empty()) {
            let order = inner.next_order();
            if let Some(op) = inner.ops.remove(&number)
                && !op.is_unflushed
            {
                // Whether or not anybody heard of it: the device is done with it, and the next
                // flush covers it.
                op.answered.set(op.answered.get().min(order));
            }
        }
    }

    fn touch(&self, number: u64, units: Units) {
        let mut inner = self.inner.borrow_mut();
        let Inner { medium, ops, reads, .. } = &mut *inner;
        let Some(op) = ops.get_mut(&number) else { return };
        if op.wanted.request == Request::Read {
            reads.fetch(medium, number, op, &units);
            return;
        }
        let blocks = op.blocks();
        reads.keep(medium, ops, &blocks);
        let Some(op) = ops.get_mut(&number) else { return };
        let all = 0..op.count;
        let runs = if let Units::Some(runs) = &units { &runs[..] } else { from_ref(&all) };
        let size = index(self.unit);
        let mut landed = Vec::new();
        for unit in runs.iter().cloned().flatten() {
            let (place, from) = (op.unit + u64::from(unit), unit as usize * size);
            let there = medium.unit(place);
            let mut before = None;
            if let Some(expect) = &op.wanted.expect {
                let equal = there == &expect[..];
                op.compared = Some(if equal { Compared::Written } else { Compared::Miscompare });
                if !equal {
                    continue;
                }
                before = Some(there.to_vec());
            } else if op.wanted.data[from..].starts_with(b"LNFS") {
                before = Some(there[..RECORD].to_vec());
            }
            medium.land(place, &op.wanted.data, from, &op.answered);
            landed.push((place * self.unit, from, before));
        }
        op.touched.push(units);
        let (owner, request, data) = (op.owner, op.wanted.request, op.data());
        drop(inner);
        let Some(&(at, _, _)) = landed.first() else { return };
        self.trace(owner, "lands", at, landed.len() as u64 * self.unit, request.name());
        let Some(watch) = self.watch.borrow().clone() else { return };
        let time = self.executor.now();
        let landings: Vec<Landing<'_>> = landed
            .iter()
            .map(|(at, from, before)| {
                let (before, after) = (before.as_deref(), &data[*from..from + size]);
                Landing { time, owner, request, at: *at, before, after }
            })
            .collect();
        watch.landed(&landings);
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
        let Inner { medium, ops, reads, rates, .. } = &mut *inner;
        let Some(op) = ops.get_mut(&number) else { return };
        let doubt = |why: &str| Err(IoError::InDoubt(why.to_owned()));
        let (answer, said) = match verdict {
            Verdict::InDoubt => (doubt("the simulated device did not answer"), "in doubt"),
            Verdict::Failed => {
                (Err(IoError::Failed("the simulated device refused".to_owned())), "failed")
            }
            Verdict::Unflushed if op.compared == Some(Compared::Written) => {
                op.is_unflushed = true;
                self.unflushed.set(self.unflushed.get() + 1);
                let why = "the simulated device could not flush".to_owned();
                (Err(IoError::Unflushed(why)), "unflushed")
            }
            Verdict::Truth | Verdict::Unflushed => match op.wanted.request {
                Request::Read => {
                    let mut data = reads.end(medium, number, op);
                    let lies = self.chance.hits(rates.read_lies)
                        && lies::lie(&mut data, op.wanted.at, medium, self.size, &self.chance);
                    self.lies.set(self.lies.get() + u64::from(lies));
                    (Ok(Outcome::Data(data)), if lies { "lies" } else { "read" })
                }
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
        let reply = op.reply.take();
        drop(inner);
        self.trace(owner, "answer", at, len, said);
        if let Some(reply) = reply {
            reply.give(answer);
        }
    }

    /// What a range may read after it was unmapped.
    pub(crate) fn after_unmap(&self, at: u64, len: u64) -> Vec<u8> {
        match self.chance.below(3) {
            0 => vec![0; index(len)],
            1 => self.peek(at, index(len)),
            _ => vec![0xDE; index(len)],
        }
    }

    /// Reads at once, past all queues: for checkers.
    pub fn peek(&self, at: u64, len: usize) -> Vec<u8> {
        self.inner.borrow().medium.range(at, len)
    }

    /// Looks at one block at once, past all queues.
    pub(crate) fn look<T>(&self, at: u64, see: impl FnOnce(&[u8]) -> T) -> T {
        see(self.inner.borrow().medium.unit(at / self.unit))
    }
}

impl Due for SharedDisk {
    fn due(self: Rc<Self>, (number, epoch): (u64, u32)) {
        let Some(step) = self.next_step(number, epoch) else { return };
        match step {
            Step::Touch(units) => self.touch(number, units),
            Step::Harden => self.harden(number),
            Step::Answer(verdict) => self.answer(number, verdict),
            Step::Gone => {}
        }
        self.end(number);
        self.schedule(number, epoch);
    }
}

fn index(value: u64) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests;
