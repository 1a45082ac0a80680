//! One run: from a seed to a verdict.
//!
//! ```text
//! format, set up | faults: crashes, pauses, stalls, power losses | quiet: everything must end
//! | all unmount | walk | one host looks at everything | walk
//! ```

pub mod parameters;

use std::cell::Cell;
use std::rc::Rc;

use lunfs_core::{Counters, FormatOptions, format_volume};
use lunfs_format::{Sizes, Timing};

use crate::chance::Chance;
use crate::checkers::walker::walk;
use crate::disk::faults::{MILLISECOND, Rates, Request, SECOND};
use crate::executor::Owner;
use crate::finding::Finding;
use crate::host::{Keeping, keep, session};
use crate::met::Met;
use crate::story::numbers_behind;
use crate::workload::audit;
use crate::workload::setup::set_up;
use crate::world::{Death, World};
use parameters::{Event, Tempo};
pub use parameters::{Mode, Parameters};

/// Virtual time for anything that is done while nothing goes wrong.
const QUIET_BOUND: u64 = 150 * SECOND;
/// Virtual time within which a host notices that its disk went back in time: pauses and stalls of
/// up to ten minutes end first.
const RETURN_BOUND: u64 = 660 * SECOND;
/// After this time without faults no error can come from an earlier fault any more.
const SETTLED: u64 = 45 * SECOND;

/// What came of a run.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// What must not be.
    pub findings: Vec<Finding>,
    /// What the world met.
    pub met: Met,
    /// What the programs met.
    pub counters: Counters,
    /// The trace's number.
    pub hash: u64,
    /// Events in the trace.
    pub events: u64,
    /// Virtual time.
    pub time: u64,
    /// The last events.
    pub recent: Vec<String>,
}

/// Runs one world from its parameters.
pub fn run(parameters: &Parameters) -> Outcome {
    run_in(parameters, &World::new(parameters.world.clone()))
}

/// Runs one world and tells what belongs to its first finding, or to what is asked `about`.
pub fn tell(parameters: &Parameters, about: &[String]) -> (Outcome, Vec<String>) {
    let world = World::new(parameters.world.clone());
    world.trace.story.want();
    let outcome = run_in(parameters, &world);
    let mut text = outcome.findings.first().map_or(String::new(), |found| found.what.clone());
    about.iter().for_each(|about| text.push_str(&format!("; {about}")));
    let addresses: Vec<u64> = numbers_behind(&text, "file ")
        .filter_map(|file| Some(world.model.id(file)?.addr.0))
        .collect();
    let lines = world.trace.story.tell(&text, &addresses);
    (outcome, lines)
}

fn run_in(parameters: &Parameters, world: &Rc<World>) -> Outcome {
    let run =
        Run { world: Rc::clone(world), parameters, chain: Rc::default(), is_spared: Rc::default() };
    if run.prepare() {
        let keeping = Rc::new(Keeping::default());
        run.turmoil(&keeping);
        if parameters.mode == Mode::BackInTime {
            run.go_back(&keeping);
        } else {
            run.calm(&keeping);
            run.verdict();
        }
    }
    let outcome = Outcome {
        findings: world.findings.all(),
        met: world.met(),
        counters: world.counters(),
        hash: world.trace.hash(),
        events: world.trace.events(),
        time: world.executor.now(),
        recent: world.trace.recent(40).iter().map(ToString::to_string).collect(),
    };
    world.close();
    outcome
}

struct Run<'a> {
    world: Rc<World>,
    parameters: &'a Parameters,
    /// So many of the next claimers die.
    chain: Rc<Cell<u32>>,
    /// No claimer dies while this is set: somebody looks at what a power loss left.
    is_spared: Rc<Cell<bool>>,
}

impl Run<'_> {
    fn is_over(&self) -> bool {
        self.world.findings.any()
    }

    /// An empty volume with the workload's places.
    fn prepare(&self) -> bool {
        let world = &self.world;
        world.pace.set(self.parameters.pace);
        world.kinds.borrow_mut().clone_from(&self.parameters.kinds);
        world.has_lies.set(self.parameters.mode == Mode::Lying);
        if !format(world, self.parameters.timing, self.parameters.slots) {
            return false;
        }
        let options = self.parameters.setup;
        let inside = Rc::clone(world);
        let places = session(world, 0, QUIET_BOUND, move |owner, volume| async move {
            set_up(&inside, owner, &volume, options).await
        });
        match places {
            Some(Ok(places)) => *world.places.borrow_mut() = places,
            Some(Err(error)) => world.findings.add(Owner::WORLD, format!("set-up: {error}")),
            None => {}
        }
        let model = Rc::downgrade(&world.model);
        world.checkers.know_files(move |file| Some(model.upgrade()?.holder_of_bytes(file)?.addr));
        !self.is_over()
    }

    /// Everything goes wrong.
    fn turmoil(&self, keeping: &Rc<Keeping>) {
        let world = &self.world;
        let parameters = self.parameters;
        keeping.is_on.set(true);
        keeping.with_workers.set(true);
        keeping.pause_max.set(parameters.restart_max);
        keeping.parents.set(parameters.parents);
        for host in 0..parameters.world.hosts {
            let keeper = keep(Rc::clone(world), host, Rc::clone(keeping));
            world.executor.spawn(Owner::WORLD, keeper);
        }
        self.trouble_claimers();
        let chance = Chance::stream(parameters.world.seed, "schedule");
        let end = world.executor.now() + parameters.duration;
        world.disk.set_rates(parameters.rates);
        let mut events = 0;
        while world.executor.now() < end && !self.is_over() {
            let pause = chance.around(parameters.event_every).max(MILLISECOND);
            world.run((world.executor.now() + pause).min(end), || false);
            let goes_on = world.executor.now() < end && !self.is_over();
            if goes_on && events < parameters.events_max {
                events += 1;
                self.happen(&chance, keeping);
            }
        }
        world.disk.set_rates(Rates::NONE);
    }

    fn trouble_claimers(&self) {
        let (percent, spoil) = (self.parameters.kill_claimers, self.parameters.spoil_claims);
        let chance = Chance::stream(self.parameters.world.seed, "spoiled claims");
        let weak = Rc::downgrade(&self.world);
        let (chain, is_spared) = (Rc::clone(&self.chain), Rc::clone(&self.is_spared));
        self.world.checkers.on_claim(move |claimer| {
            let Some(world) = weak.upgrade() else { return };
            if chance.percent(spoil) {
                world.disk.spoil(claimer, u32::try_from(chance.between(1, 6)).unwrap_or(1));
            }
            let is_next = chain.get() > 0;
            if is_spared.get()
                || world.is_quiet.get()
                || !(world.chance.percent(percent) || is_next)
            {
                return;
            }
            if is_next {
                chain.set(chain.get() - 1);
                world.meet(|met| met.chained_deaths += 1);
            }
            let at = world.executor.now() + world.chance.below(30 * MILLISECOND);
            let inside = Rc::clone(&world);
            world.executor.at(at, move || {
                if inside.is_alive(claimer) && !inside.progress.is_quiet() {
                    inside.meet(|met| met.recoverer_deaths += 1);
                    crash(&inside, claimer);
                }
            });
        });
    }

    /// Draws what happens, and to whom.
    fn happen(&self, chance: &Chance, keeping: &Rc<Keeping>) {
        let world = &self.world;
        let mut draw = chance.below(self.parameters.weights.iter().sum());
        let mut chosen = None;
        for (event, weight) in Event::ALL.into_iter().zip(self.parameters.weights) {
            if draw < weight {
                chosen = Some(event);
                break;
            }
            draw -= weight;
        }
        if self.parameters.mode == Mode::Forgetful && chance.percent(30) {
            return self.lose_cache();
        }
        let alive = world.alive();
        let (Some(event), false) = (chosen, alive.is_empty()) else { return };
        let victim = *chance.pick(&alive);
        match event {
            Event::Leave => world.program(victim).leave.raise(),
            Event::PowerLoss => self.lose_power(chance, keeping),
            Event::Crash => crash(world, victim),
            Event::CrashChain => {
                self.chain.set(3);
                crash(world, victim);
            }
            Event::Flap => {
                keeping.visits.set(u32::try_from(chance.between(2, 6)).unwrap_or(2));
                world.program(victim).leave.raise();
            }
            Event::CrashAtSubmission | Event::PauseAtSubmission => {
                self.arm(chance, event, victim);
            }
            Event::Pause | Event::Stall | Event::StallHost => self.delay(chance, event, victim),
        }
    }

    /// How long something does not answer: around the lease, or anything.
    fn length(&self, chance: &Chance) -> u64 {
        match chance.below(5) {
            0 => chance.between(1, 4) * SECOND,
            1 => chance.between(3_000, 6_000) * MILLISECOND,
            2 if self.parameters.tempo == Tempo::Sparse => chance.between(60, 600) * SECOND,
            _ => chance.between(1, 30) * SECOND,
        }
    }

    fn arm(&self, chance: &Chance, event: Event, victim: Owner) {
        let length = self.length(chance);
        let countdown = u32::try_from(chance.between(1, 12)).unwrap_or(1);
        let kind = *chance.pick(&[None, Some(Request::Compare), Some(Request::Write)]);
        let delay = chance.below(MILLISECOND);
        let inside = Rc::clone(&self.world);
        self.world.disk.arm(victim, countdown, kind, move || {
            if event == Event::PauseAtSubmission {
                inside.meet(|met| met.pauses_at_submission += 1);
                inside.pause(victim, length);
                return;
            }
            let at = inside.executor.now() + delay;
            let then = Rc::clone(&inside);
            inside.executor.at(at, move || crash(&then, victim));
        });
    }

    fn delay(&self, chance: &Chance, event: Event, victim: Owner) {
        let (world, length) = (&self.world, self.length(chance));
        match event {
            Event::Pause => world.pause(victim, length),
            Event::Stall => {
                world.meet(|met| met.stalls += 1);
                world.note(Owner::WORLD, "stall", length, "");
                world.stall(Owner::WORLD, length / 2);
            }
            _ => world.stall(victim, length),
        }
    }

    /// The disk forgets what was not durable, and tells nobody. From here on the volume need not
    /// hold what it held; who may write what is asked as ever.
    fn lose_cache(&self) {
        let lost = self.world.disk.lose_cache();
        self.world.meet(|met| met.cache_losses += u64::from(lost > 0));
        self.world.findings.only(&["panic", "R1", "R4", "tasks keep"]);
    }

    /// The disk goes back to an earlier time under hosts that had pulsed since: each must stop.
    fn go_back(&self, keeping: &Rc<Keeping>) {
        let world = &self.world;
        if self.is_over() {
            return;
        }
        let pulses = |owner: &Owner| {
            let program = world.program(*owner);
            let volume = program.volume.borrow();
            volume.as_ref().map(|volume| volume.counters().pulses)
        };
        let then: Vec<(Owner, u64)> =
            world.alive().into_iter().filter_map(|owner| Some((owner, pulses(&owner)?))).collect();
        let snapshot = world.disk.snapshot();
        let passed = world.chance.between(1, 60) * SECOND;
        world.run(world.executor.now() + passed, || false);
        if self.is_over() {
            return;
        }
        keeping.is_on.set(false);
        let bound: Vec<Owner> = then
            .iter()
            .filter(|(owner, before)| pulses(owner).is_some_and(|now| now > *before))
            .map(|&(owner, _)| owner)
            .collect();
        world.meet(|met| met.returns_in_time += 1);
        world.findings.only(&["panic", "H5", "tasks keep"]);
        world.disk.roll_back(snapshot);
        let all_ended = || !bound.iter().any(|&owner| world.is_alive(owner));
        world.run(world.executor.now() + RETURN_BOUND, all_ended);
        for &owner in &bound {
            if world.is_alive(owner) {
                world.findings.add(owner, "H5: it lives on a disk that went back in time");
            }
        }
        let ended = bound.iter().filter(|&&owner| !world.is_alive(owner)).count() as u64;
        world.meet(|met| met.stops_by_return += ended);
    }

    /// The power fails; sometimes one host then recovers everything and the volume is walked.
    fn lose_power(&self, chance: &Chance, keeping: &Rc<Keeping>) {
        let world = &self.world;
        keeping.is_on.set(false);
        world.lose_power();
        if chance.percent(60) {
            let rates = world.disk.rates();
            world.disk.set_rates(Rates::NONE);
            self.is_spared.set(true);
            let host = chance.index(self.parameters.world.hosts);
            world.run(world.executor.now() + SECOND, || false);
            recover_alone(world, host);
            if !self.is_over() {
                walk(world, "after a power loss");
            }
            world.disk.set_rates(rates);
            self.is_spared.set(false);
        }
        keeping.is_on.set(true);
    }

    /// Nothing goes wrong any more: everything must end.
    fn calm(&self, keeping: &Rc<Keeping>) {
        let world = &self.world;
        // Who waits for a stalled disk waits for as long as it is stalled.
        world.run(world.trouble_until.get(), || false);
        let begin = world.executor.now();
        keeping.pause_max.set(SECOND);
        world.progress.set_quiet(true);
        self.watch_until(begin + SETTLED, begin);
        world.is_quiet.set(true);
        self.watch_until(begin + SETTLED + 60 * SECOND, begin);
        keeping.is_on.set(false);
        world.is_idle.set(true);
        for owner in world.alive() {
            world.program(owner).leave.raise();
        }
        let limit = world.executor.now() + QUIET_BOUND;
        while !world.alive().is_empty() && world.executor.now() < limit && !self.is_over() {
            self.watch_until(world.executor.now() + SECOND, begin);
            // A mount that was under way has come up meanwhile.
            for owner in world.alive() {
                world.program(owner).leave.raise();
            }
        }
        if !world.alive().is_empty() && !self.is_over() {
            let what = format!("R14: not all hosts unmount: {:?}", world.progress.list());
            world.findings.add(Owner::WORLD, what);
        }
        let is_left = world.counters().claims_kept > 0 || self.parameters.tempo == Tempo::Sparse;
        if is_left && !self.is_over() {
            // The last one to keep a claim does not leave by itself, and hosts that stay away for
            // minutes may have left a dead one to nobody.
            recover_alone(world, 0);
        }
    }

    /// The storage is mended: whoever keeps a claim has to end, so that others recover both.
    fn end_kept_claims(&self) {
        for owner in self.world.alive() {
            let program = self.world.program(owner);
            let volume = program.volume.borrow().clone();
            if volume.is_some_and(|volume| volume.counters().claims_kept > 0) {
                crash(&self.world, owner);
            }
        }
    }

    fn watch_until(&self, end: u64, quiet_since: u64) {
        let world = &self.world;
        while world.executor.now() < end && !self.is_over() {
            world.run((world.executor.now() + SECOND).min(end), || false);
            self.end_kept_claims();
            if let Some((owner, what)) = world.progress.overdue() {
                let all = world.progress.list();
                world.findings.add(owner, format!("{what}; under way: {all:?}"));
            }
            let bound = (quiet_since + QUIET_BOUND).min(world.executor.now());
            if world.executor.now() > quiet_since + QUIET_BOUND
                && let Some((host, why)) = world.locked_out(bound.saturating_sub(QUIET_BOUND))
            {
                let what = format!("R14: host {host} cannot mount any more: {why}");
                world.findings.add(Owner::WORLD, what);
            }
        }
    }

    /// The volume is at rest: it must be sound, and hold what it must.
    fn verdict(&self) {
        let world = &self.world;
        if self.is_over() {
            return;
        }
        walk(world, "at the end");
        if self.is_over() {
            return;
        }
        let host = world.chance.index(self.parameters.world.hosts);
        let (inside, workers) = (Rc::clone(world), world.options.hosts * world.options.workers);
        session(world, host, 4 * QUIET_BOUND, move |owner, volume| async move {
            for worker in 0..workers {
                let volume = Rc::clone(&volume);
                audit::audit_as(Rc::clone(&inside), owner, volume, worker).await;
            }
        });
        if !self.is_over() {
            walk(world, "after the last look");
        }
        let too_large = world.counters().transactions_too_large;
        if too_large > 0 {
            let what = format!("{too_large} transactions had more images than room in the journal");
            world.findings.add(Owner::WORLD, what);
        }
    }
}

/// Makes an empty volume; `false`: it failed, which is a finding.
pub fn format(world: &Rc<World>, timing: Timing, slots: u32) -> bool {
    let (owner, _) = world.new_program(0);
    let env = world.env(owner);
    let sizes = Sizes { cluster_blocks: Some(1024), slot_count: Some(slots) };
    let options = FormatOptions { label: "simulated".to_owned(), timing, sizes };
    let formatting = async move { format_volume(&env, &options).await };
    let result = world.complete(owner, QUIET_BOUND, formatting);
    world.kill(owner, Death::Unmounted);
    match result {
        Some(Ok(_)) => world.checkers.begin(&world.disk),
        Some(Err(error)) => world.findings.add(owner, format!("format: {error}")),
        None => world.findings.add(owner, "format does not end"),
    }
    !world.findings.any()
}

/// One host mounts, waits until all dead slots are recovered, and leaves.
pub fn recover_alone(world: &Rc<World>, host: usize) {
    let inside = Rc::clone(world);
    session(world, host, QUIET_BOUND, move |owner, volume| async move {
        loop {
            match volume.hosts().await {
                Ok(hosts) if hosts.iter().all(|host| host.is_self) => return,
                Ok(_) => {}
                Err(error) => {
                    inside.findings.add(owner, format!("hosts: {error}"));
                    return;
                }
            }
            inside.executor.sleep(SECOND).await;
        }
    });
}

fn crash(world: &Rc<World>, victim: Owner) {
    if world.is_alive(victim) {
        world.meet(|met| met.crashes += 1);
        world.kill(victim, Death::Crashed);
    }
}
