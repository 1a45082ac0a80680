//! One world: a disk, a clock, and programs that come and go.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::Future;
use std::rc::Rc;

use lunfs_core::env::{Clock, Env};
use lunfs_core::{Counters, Volume};
use lunfs_format::{Holder, SlotNo};

use crate::chance::Chance;
use crate::checkers::Checkers;
use crate::checkers::progress::Progress;
use crate::clock::HostClock;
use crate::disk::{HostDisk, Model as DiskModel, SharedDisk};
use crate::executor::{Ended, Executor, Owner};
use crate::fence::HostFence;
use crate::finding::Findings;
use crate::met::Met;
use crate::model::Model;
use crate::signal::Signal;
use crate::trace::{Event, Trace};
use crate::workload::kinds::Kind;
use crate::workload::{Pace, Places};

/// How a program ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Death {
    /// Killed at a random moment.
    Crashed,
    /// Killed by another host's fence.
    Fenced,
    /// It stopped itself.
    Stopped,
    /// It never mounted.
    Refused,
    /// It left cleanly.
    Unmounted,
    /// The power failed.
    PowerLoss,
}

impl Death {
    fn name(self) -> &'static str {
        match self {
            Death::Crashed => "crashed",
            Death::Fenced => "fenced",
            Death::Stopped => "stopped",
            Death::Refused => "refused",
            Death::Unmounted => "unmounted",
            Death::PowerLoss => "power loss",
        }
    }
}

/// One start of one host.
pub struct Program {
    /// Its host.
    pub host: usize,
    /// Random, made when it started.
    pub run: [u8; 16],
    /// The volume, once mounted.
    pub volume: RefCell<Option<Rc<Volume>>>,
    /// Its slot, once mounted.
    pub me: Cell<Option<Holder>>,
    /// Raised when it is asked to unmount.
    pub leave: Signal,
    /// Raised when its unmount returned.
    pub left: Signal,
    /// Its unmount said that not everything could be written.
    pub has_lost: Cell<bool>,
    /// Its workers that still run.
    pub working: Cell<usize>,
    /// How it ended.
    pub death: Cell<Option<Death>>,
    /// Told when it ended.
    pub ended: Signal,
}

/// What a world is made of.
#[derive(Clone, Debug)]
pub struct WorldOptions {
    /// Everything that is random comes from it.
    pub seed: u64,
    /// Number of hosts.
    pub hosts: usize,
    /// Workers of each host.
    pub workers: usize,
    /// The shared disk.
    pub disk: DiskModel,
    /// Print every event.
    pub verbose: bool,
}

/// One world.
pub struct World {
    /// What it is made of.
    pub options: WorldOptions,
    /// Time and tasks.
    pub executor: Rc<Executor>,
    /// What happened.
    pub trace: Rc<Trace>,
    /// The shared disk.
    pub disk: Rc<SharedDisk>,
    /// What should be on it.
    pub model: Rc<Model>,
    /// What must not be.
    pub findings: Rc<Findings>,
    /// Who watches the disk.
    pub checkers: Rc<Checkers>,
    /// Chance for all that has no stream of its own.
    pub chance: Chance,
    clocks: Vec<HostClock>,
    programs: RefCell<BTreeMap<Owner, Rc<Program>>>,
    marks: RefCell<BTreeMap<SlotNo, Owner>>,
    met: Cell<Met>,
    counters: Cell<Counters>,
    /// What is under way.
    pub progress: Rc<Progress>,
    /// Where the workload lives.
    pub places: RefCell<Places>,
    /// How busy workers are.
    pub pace: Cell<Pace>,
    /// What each worker does most.
    pub kinds: RefCell<Vec<Kind>>,
    /// The device may show wrong metadata.
    pub has_lies: Cell<bool>,
    /// When the last stall and the last pause end.
    pub trouble_until: Cell<u64>,
    /// Nothing goes wrong any more: every error is a finding.
    pub is_quiet: Cell<bool>,
    /// Workers end after their current operation.
    pub is_idle: Cell<bool>,
    /// Since when each host has had no mount, and why its last one was refused.
    down: RefCell<BTreeMap<usize, (u64, String)>>,
}

impl World {
    /// A new world.
    pub fn new(options: WorldOptions) -> Rc<World> {
        let seed = options.seed;
        let executor = Executor::new(Chance::stream(seed, "executor"));
        let trace = Rc::new(Trace::new(options.verbose));
        let disk = SharedDisk::new(&executor, &trace, Chance::stream(seed, "disk"), options.disk);
        let findings = Findings::new(&executor);
        let model = Model::new(&findings, options.hosts * options.workers);
        let chance = Chance::stream(seed, "world");
        let clock_chance = Chance::stream(seed, "clocks");
        let clocks = (0..options.hosts).map(|_| HostClock::draw(&executor, &clock_chance));
        let checkers = Checkers::new(&findings, &trace);
        let progress = Progress::new(&executor);
        disk.watch(Rc::clone(&checkers) as Rc<_>);
        let world = Rc::new(World {
            clocks: clocks.collect(),
            executor,
            trace,
            disk,
            model,
            findings,
            checkers,
            chance,
            programs: RefCell::default(),
            marks: RefCell::default(),
            met: Cell::default(),
            counters: Cell::default(),
            progress,
            places: RefCell::default(),
            pace: Cell::new(Pace { think: 10_000_000, across: 40 }),
            kinds: RefCell::default(),
            has_lies: Cell::new(false),
            trouble_until: Cell::new(0),
            is_quiet: Cell::new(false),
            is_idle: Cell::new(false),
            down: RefCell::default(),
            options,
        });
        let weak = Rc::downgrade(&world);
        let is_alone = move |owner| weak.upgrade().is_some_and(|world| world.is_alone(owner));
        world.checkers.know_marks(is_alone);
        world
    }

    /// Does the device show wrong metadata, so that an operation may call it corrupt?
    pub fn is_lied_to(&self) -> bool {
        self.has_lies.get() && !self.is_quiet.get()
    }

    /// Counts something.
    pub fn meet(&self, change: impl FnOnce(&mut Met)) {
        let mut met = self.met.get();
        change(&mut met);
        self.met.set(met);
    }

    /// What was met so far.
    pub fn met(&self) -> Met {
        let mut met = self.met.get();
        met.bytes_checked = self.model.bytes_checked();
        met.reads_that_lied = self.disk.lies();
        met.failed_flushes = self.disk.unflushed();
        met.requests = self.disk.requests();
        met
    }

    /// Counters of all programs that ended and of those that run.
    pub fn counters(&self) -> Counters {
        let mut sum = self.counters.get();
        for program in self.programs.borrow().values() {
            if let Some(volume) = program.volume.borrow().as_ref() {
                sum.add(&volume.counters());
            }
        }
        sum
    }

    /// A line for people.
    pub fn say(&self, owner: Owner, line: impl FnOnce() -> String) {
        self.trace.say(self.executor.now(), owner, line);
    }

    /// An event of the world.
    pub fn note(&self, owner: Owner, what: &'static str, number: u64, outcome: &'static str) {
        let time = self.executor.now();
        self.trace.story.life(time, owner, || {
            let host = self.programs.borrow().get(&owner).map(|program| program.host);
            let host = host.map_or(String::new(), |host| format!(" (host {host})"));
            format!("{what} {outcome}{host} {number}")
        });
        self.trace.event(Event { time, owner, what, at: number, len: 0, outcome });
    }

    /// Starts a program of `host`; it has no tasks yet.
    pub fn new_program(&self, host: usize) -> (Owner, Rc<Program>) {
        let mut programs = self.programs.borrow_mut();
        let owner = Owner(u32::try_from(programs.len() + 1).unwrap_or(u32::MAX));
        let mut run = [0; 16];
        run[..8].copy_from_slice(&self.chance.next().to_le_bytes());
        run[8..].copy_from_slice(&self.chance.next().to_le_bytes());
        let program = Rc::new(Program {
            host,
            run,
            volume: RefCell::new(None),
            me: Cell::new(None),
            leave: Signal::default(),
            left: Signal::default(),
            has_lost: Cell::new(false),
            working: Cell::new(0),
            death: Cell::new(None),
            ended: Signal::default(),
        });
        programs.insert(owner, Rc::clone(&program));
        drop(programs);
        self.meet(|met| met.programs += 1);
        self.checkers.born(owner, run);
        self.note(owner, "starts", host as u64, "");
        (owner, program)
    }

    /// The doors of a program.
    pub fn env(self: &Rc<Self>, owner: Owner) -> Env {
        let host = self.program(owner).host;
        let clock = self.clock(host);
        Env {
            disk: Rc::new(HostDisk::new(&self.disk, owner, clock)),
            fence: Rc::new(HostFence::new(self, owner)),
            clock: Rc::new(clock.clone()) as Rc<dyn Clock>,
            rng: Rc::new(self.chance.fork()),
        }
    }

    /// The clock of a host.
    pub fn clock(&self, host: usize) -> &HostClock {
        &self.clocks[host]
    }

    /// A program that was started.
    pub fn program(&self, owner: Owner) -> Rc<Program> {
        let programs = self.programs.borrow();
        Rc::clone(programs.get(&owner).expect("every owner of an environment is a program"))
    }

    /// The run of a program.
    pub fn run_of(&self, owner: Owner) -> [u8; 16] {
        self.program(owner).run
    }

    /// Does it still run?
    pub fn is_alive(&self, owner: Owner) -> bool {
        self.program(owner).death.get().is_none()
    }

    /// Programs that run, in the order of their start.
    pub fn alive(&self) -> Vec<Owner> {
        let programs = self.programs.borrow();
        let alive = programs.iter().filter(|(_, program)| program.death.get().is_none());
        alive.map(|(&owner, _)| owner).collect()
    }

    /// The running program of a host.
    pub fn running(&self, host: usize) -> Option<Owner> {
        self.alive().into_iter().find(|&owner| self.program(owner).host == host)
    }

    /// Workers of a host.
    pub fn workers_of(&self, host: usize) -> Vec<usize> {
        (host * self.options.workers..(host + 1) * self.options.workers).collect()
    }

    /// Ends a program, its tasks and, within the drain time, its I/O.
    pub fn kill(&self, owner: Owner, death: Death) {
        let program = self.program(owner);
        if program.death.get().is_some() {
            return;
        }
        program.death.set(Some(death));
        self.note(owner, "ends", program.host as u64, death.name());
        if let Some(volume) = program.volume.borrow_mut().take() {
            let mut sum = self.counters.get();
            sum.add(&volume.counters());
            self.counters.set(sum);
        }
        self.executor.kill(owner);
        if death == Death::PowerLoss {
            self.marks.borrow_mut().retain(|_, marked| *marked != owner);
        } else {
            self.disk.orphan(owner);
        }
        // What an unmount could not write is lost as by a death.
        if death != Death::Unmounted || program.has_lost.get() {
            self.model.died(owner, &self.workers_of(program.host));
        }
        program.ended.raise();
    }

    /// A host has its mount.
    pub fn mounted(&self, host: usize) {
        self.down.borrow_mut().remove(&host);
    }

    /// A mount of a host was refused.
    pub fn refused(&self, host: usize, why: &str) {
        let now = self.executor.now();
        let mut down = self.down.borrow_mut();
        let entry = down.entry(host).or_insert((now, String::new()));
        why.clone_into(&mut entry.1);
    }

    /// A host that could not mount since before `since`, and why.
    pub fn locked_out(&self, since: u64) -> Option<(usize, String)> {
        let down = self.down.borrow();
        let (host, (_, why)) = down.iter().find(|(_, (from, _))| *from < since)?;
        Some((*host, why.clone()))
    }

    /// A program stopped itself.
    pub fn stopped(&self, owner: Owner, why: &str) {
        self.say(owner, || format!("stopped: {why}"));
        if self.is_quiet.get() {
            self.findings.add(owner, format!("a host stops although nothing is wrong: {why}"));
        }
    }

    /// Stops polling a program for `length` nanoseconds.
    pub fn pause(&self, owner: Owner, length: u64) {
        if !self.is_alive(owner) {
            return;
        }
        self.meet(|met| met.pauses += 1);
        self.note(owner, "pauses", length, "");
        let end = self.executor.now().saturating_add(length);
        self.trouble_until.set(self.trouble_until.get().max(end));
        let disk = Rc::clone(&self.disk);
        self.executor.pause(owner, end);
        self.executor.at(end, move || disk.resume(owner));
    }

    /// Nothing that `owner` asks of the disk is done for a while; the world owns all of it.
    pub fn stall(&self, owner: Owner, length: u64) {
        let end = self.executor.now().saturating_add(length);
        self.trouble_until.set(self.trouble_until.get().max(end));
        self.disk.stall(owner, end);
    }

    /// The program that has the life mark of `slot`: alive, or dead with I/O in flight.
    pub fn program_of(&self, slot: SlotNo) -> Option<Owner> {
        let mut marks = self.marks.borrow_mut();
        let owner = *marks.get(&slot)?;
        if self.is_alive(owner) || !self.disk.is_drained(owner) {
            return Some(owner);
        }
        marks.remove(&slot);
        None
    }

    /// `owner` takes the life mark of `slot`; `false`: another program has it.
    pub fn enter(&self, slot: SlotNo, owner: Owner) -> bool {
        match self.program_of(slot) {
            Some(marked) => marked == owner,
            None => {
                self.marks.borrow_mut().insert(slot, owner);
                true
            }
        }
    }

    /// Does `owner` hold all life marks?
    fn is_alone(&self, owner: Owner) -> bool {
        let Some((_, geometry)) = self.checkers.volume() else { return false };
        let held = self.marks.borrow().values().filter(|&&marked| marked == owner).count();
        held >= geometry.slot_count as usize
    }

    /// `owner` gives the life mark of `slot` back.
    pub fn leave(&self, slot: SlotNo, owner: Owner) {
        self.marks.borrow_mut().retain(|marked, by| *marked != slot || *by != owner);
    }

    /// The power of disk and hosts fails.
    pub fn lose_power(&self) {
        for owner in self.alive() {
            self.kill(owner, Death::PowerLoss);
        }
        let lost = self.disk.lose_power();
        self.marks.borrow_mut().clear();
        self.checkers.power_lost();
        self.meet(|met| {
            met.power_losses += 1;
            met.blocks_lost += lost;
        });
    }

    /// The end of the world: drops tasks, timers and volumes, which hold what holds them.
    pub fn close(&self) {
        self.executor.clear();
        for program in self.programs.borrow().values() {
            program.volume.borrow_mut().take();
        }
    }

    /// Runs the world until `done`, at most until world time `limit`, and stops at the first
    /// finding.
    pub fn run(&self, limit: u64, mut done: impl FnMut() -> bool) -> Ended {
        let ended = self.executor.run(limit, || self.findings.any() || done());
        match &ended {
            Ended::Panicked(owner, message) => {
                self.findings.add(*owner, format!("panic: {message}"));
            }
            Ended::Circles => {
                self.findings.add(Owner::WORLD, "tasks keep each other awake for ever");
            }
            Ended::Done | Ended::TimeLimit | Ended::Idle => {}
        }
        ended
    }

    /// Runs the world until a future of `owner` ends; `None`: it did not, within `length`.
    pub fn complete<T: 'static>(
        &self,
        owner: Owner,
        length: u64,
        future: impl Future<Output = T> + 'static,
    ) -> Option<T> {
        let result = Rc::new(RefCell::new(None));
        let to = Rc::clone(&result);
        self.executor.spawn(owner, async move {
            let value = future.await;
            *to.borrow_mut() = Some(value);
        });
        self.run(self.executor.now().saturating_add(length), || result.borrow().is_some());

        result.borrow_mut().take()
    }
}
