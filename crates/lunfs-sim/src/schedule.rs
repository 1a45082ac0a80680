//! One run: from a seed to a verdict.
//!
//! ```text
//! format, set up | faults: crashes, pauses, stalls, power losses | quiet: everything must end
//! | all unmount | walk | one host looks at everything | walk
//! ```

use std::rc::Rc;

use lunfs_core::{Counters, FormatOptions, format_volume};
use lunfs_format::Timing;

use crate::chance::Chance;
use crate::checkers::walker::walk;
use crate::disk::Model as DiskModel;
use crate::disk::faults::{Latency, MILLISECOND, Rates, Request, SECOND};
use crate::disk::medium::Before;
use crate::executor::Owner;
use crate::finding::Finding;
use crate::host::{Keeping, keep, session};
use crate::met::Met;
use crate::workload::setup::{SetupOptions, set_up};
use crate::workload::{Pace, audit};
use crate::world::{Death, World, WorldOptions};

/// Virtual time for anything that is done while nothing goes wrong.
const QUIET_BOUND: u64 = 150 * SECOND;
/// After this time without faults no error can come from an earlier fault any more.
const SETTLED: u64 = 45 * SECOND;

/// What one run is like.
#[derive(Clone, Debug)]
pub struct Parameters {
    /// The world.
    pub world: WorldOptions,
    /// How fast hosts notice a death.
    pub timing: Timing,
    /// How often requests go wrong.
    pub rates: Rates,
    /// Virtual time with faults.
    pub duration: u64,
    /// How busy workers are.
    pub pace: Pace,
    /// Mean time between two events that the schedule makes.
    pub event_every: u64,
    /// Weights of the kinds of events.
    pub weights: [u64; EVENTS.len()],
    /// In a hundred cases, how often a claimer dies during its claim.
    pub kill_claimers: u32,
    /// In a hundred cases, how often a claimer soon meets a block that nobody can write.
    pub spoil_claims: u32,
    /// In a hundred cases, how often a parent outlives its program.
    pub parents: u32,
    /// Longest time before a host starts again.
    pub restart_max: u64,
    /// The workload's places.
    pub setup: SetupOptions,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Event {
    Crash,
    CrashAtSubmission,
    Pause,
    PauseAtSubmission,
    Stall,
    StallHost,
    Leave,
    PowerLoss,
}

const EVENTS: [Event; 8] = [
    Event::Crash,
    Event::CrashAtSubmission,
    Event::Pause,
    Event::PauseAtSubmission,
    Event::Stall,
    Event::StallHost,
    Event::Leave,
    Event::PowerLoss,
];

impl Parameters {
    /// Draws a run from its seed.
    pub fn draw(seed: u64, verbose: bool, duration: Option<u64>) -> Parameters {
        let chance = Chance::stream(seed, "parameters");
        let hosts = chance.between(1, 4);
        let workers = chance.between(1, 3);
        let unit = *chance.pick(&[512, 512, 4096]);
        let megabytes = *chance.pick(&[128, 256, 256, 512]);
        let before = if chance.percent(70) { Before::Ghosts(seed) } else { Before::Zeroes };
        let duration = duration.unwrap_or_else(|| match chance.below(10) {
            0 => chance.between(120, 300) * SECOND,
            _ => chance.between(30, 90) * SECOND,
        });
        // Of each kind of event some runs see none, some see many.
        let mut weights = [0; EVENTS.len()];
        for weight in &mut weights {
            *weight = *chance.pick(&[0, 1, 1, 4]);
        }
        weights[EVENTS.len() - 1] = weights[EVENTS.len() - 1].min(1);
        let busy = hosts * workers;
        Parameters {
            world: WorldOptions {
                seed,
                hosts: usize::try_from(hosts).unwrap_or(1),
                workers: usize::try_from(workers).unwrap_or(1),
                disk: DiskModel {
                    unit,
                    size: megabytes << 20,
                    before,
                    latency: Latency::draw(&chance),
                },
                verbose,
            },
            timing: if chance.percent(70) { Timing::FAST } else { Timing::CALM },
            rates: if chance.percent(25) { Rates::NONE } else { Rates::draw(&chance) },
            duration,
            pace: Pace {
                think: *chance.pick(&[5, 20, 20, 60]) * busy * MILLISECOND,
                across: u32::try_from(*chance.pick(&[10, 40, 40, 90])).unwrap_or(40),
            },
            event_every: *chance.pick(&[2, 6, 6, 20]) * SECOND,
            weights,
            kill_claimers: *chance.pick(&[0, 0, 20, 50]),
            spoil_claims: *Chance::stream(seed, "spoil").pick(&[0, 0, 10, 40]),
            parents: *chance.pick(&[0, 50, 100]),
            restart_max: *chance.pick(&[100, 2_000, 20_000]) * MILLISECOND,
            setup: SetupOptions { common: 3, common_size: 128 * 1024, arena: 3 },
        }
    }
}

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
    let world = World::new(parameters.world.clone());
    let run = Run { world: Rc::clone(&world), parameters };
    if run.prepare() {
        let keeping = Rc::new(Keeping::default());
        run.turmoil(&keeping);
        run.calm(&keeping);
        run.verdict();
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
}

impl Run<'_> {
    fn is_over(&self) -> bool {
        self.world.findings.any()
    }

    /// An empty volume with the workload's places.
    fn prepare(&self) -> bool {
        let world = &self.world;
        world.pace.set(self.parameters.pace);
        if !format(world, self.parameters.timing) {
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
        world.checkers.know_files(move |file| Some(model.upgrade()?.id(file)?.addr));
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
        while world.executor.now() < end && !self.is_over() {
            let pause = chance.around(parameters.event_every).max(MILLISECOND);
            world.run((world.executor.now() + pause).min(end), || false);
            if world.executor.now() < end && !self.is_over() {
                self.happen(&chance, keeping);
            }
        }
        world.disk.set_rates(Rates::NONE);
    }

    fn trouble_claimers(&self) {
        let (percent, spoil) = (self.parameters.kill_claimers, self.parameters.spoil_claims);
        let chance = Chance::stream(self.parameters.world.seed, "spoiled claims");
        let weak = Rc::downgrade(&self.world);
        self.world.checkers.on_claim(move |claimer| {
            let Some(world) = weak.upgrade() else { return };
            if chance.percent(spoil) {
                world.disk.spoil(claimer, u32::try_from(chance.between(1, 6)).unwrap_or(1));
            }
            if world.is_quiet.get() || !world.chance.percent(percent) {
                return;
            }
            let at = world.executor.now() + world.chance.below(30 * MILLISECOND);
            let inside = Rc::clone(&world);
            world.executor.at(at, move || {
                if inside.is_alive(claimer) && inside.disk.rates() != Rates::NONE {
                    inside.meet(|met| met.recoverer_deaths += 1);
                    crash(&inside, claimer);
                }
            });
        });
    }

    fn happen(&self, chance: &Chance, keeping: &Rc<Keeping>) {
        let world = &self.world;
        let total: u64 = self.parameters.weights.iter().sum();
        let mut draw = chance.below(total);
        let mut chosen = None;
        for (event, weight) in EVENTS.into_iter().zip(self.parameters.weights) {
            if draw < weight {
                chosen = Some(event);
                break;
            }
            draw -= weight;
        }
        let alive = world.alive();
        let (Some(event), false) = (chosen, alive.is_empty()) else { return };
        let victim = *chance.pick(&alive);
        let length = match chance.below(4) {
            0 => chance.between(1, 4) * SECOND,
            1 => chance.between(3_000, 6_000) * MILLISECOND,
            _ => chance.between(1, 30) * SECOND,
        };
        let countdown = u32::try_from(chance.between(1, 12)).unwrap_or(1);
        let kind = *chance.pick(&[None, Some(Request::Compare), Some(Request::Write)]);
        let inside = Rc::clone(world);
        match event {
            Event::Crash => crash(world, victim),
            Event::CrashAtSubmission => {
                let delay = chance.below(MILLISECOND);
                world.disk.arm(victim, countdown, kind, move || {
                    let at = inside.executor.now() + delay;
                    let then = Rc::clone(&inside);
                    inside.executor.at(at, move || crash(&then, victim));
                });
            }
            Event::Pause => world.pause(victim, length),
            Event::PauseAtSubmission => world.disk.arm(victim, countdown, kind, move || {
                inside.meet(|met| met.pauses_at_submission += 1);
                inside.pause(victim, length);
            }),
            Event::Stall => {
                world.meet(|met| met.stalls += 1);
                world.note(Owner::WORLD, "stall", length, "");
                world.disk.stall(Owner::WORLD, world.executor.now() + length / 2);
            }
            Event::StallHost => world.disk.stall(victim, world.executor.now() + length),
            Event::Leave => world.program(victim).leave.raise(),
            Event::PowerLoss => self.lose_power(chance, keeping),
        }
    }

    /// The power fails; sometimes one host then recovers everything and the volume is walked.
    fn lose_power(&self, chance: &Chance, keeping: &Rc<Keeping>) {
        let world = &self.world;
        keeping.is_on.set(false);
        world.lose_power();
        if chance.percent(60) {
            let rates = world.disk.rates();
            world.disk.set_rates(Rates::NONE);
            let host = chance.index(self.parameters.world.hosts);
            world.run(world.executor.now() + SECOND, || false);
            recover_alone(world, host);
            if !self.is_over() {
                walk(world, "after a power loss");
            }
            world.disk.set_rates(rates);
        }
        keeping.is_on.set(true);
    }

    /// Nothing goes wrong any more: everything must end.
    fn calm(&self, keeping: &Rc<Keeping>) {
        let world = &self.world;
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
        if world.counters().claims_kept > 0 && !self.is_over() {
            // The last one to keep a claim does not leave by itself.
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
pub fn format(world: &Rc<World>, timing: Timing) -> bool {
    let (owner, _) = world.new_program(0);
    let env = world.env(owner);
    let options =
        FormatOptions { label: "simulated".to_owned(), timing, cluster_blocks: Some(1024) };
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
            inside.executor.sleep(SECOND / 5).await;
        }
    });
}

fn crash(world: &Rc<World>, victim: Owner) {
    if world.is_alive(victim) {
        world.meet(|met| met.crashes += 1);
        world.kill(victim, Death::Crashed);
    }
}
