//! What one run is like: drawn from its seed, and reducible by hand.
//!
//! Everything is drawn first and taken away afterwards, so that a run with less of something is
//! otherwise the run of its seed: that is how a failing seed is shrunk.

use lunfs_format::Timing;

use crate::chance::Chance;
use crate::disk::Model as DiskModel;
use crate::disk::faults::{Latency, MILLISECOND, Rates, SECOND};
use crate::disk::medium::Before;
use crate::workload::Pace;
use crate::workload::kinds::Kind;
use crate::workload::setup::SetupOptions;
use crate::world::WorldOptions;

/// Most hosts of a world.
pub const HOSTS_MAX: u64 = 8;
/// Bytes of a cluster on simulated volumes.
const CLUSTER: u64 = 4 << 20;

/// What one run is like.
#[derive(Clone, Debug)]
pub struct Parameters {
    /// The world.
    pub world: WorldOptions,
    /// What the device promises, and so what may be asked of the volume.
    pub mode: Mode,
    /// How much happens in what time.
    pub tempo: Tempo,
    /// Slots of the volume.
    pub slots: u32,
    /// How fast hosts notice a death.
    pub timing: Timing,
    /// How often requests go wrong.
    pub rates: Rates,
    /// Virtual time with faults.
    pub duration: u64,
    /// How busy workers are.
    pub pace: Pace,
    /// What each worker does.
    pub kinds: Vec<Kind>,
    /// Mean time between two events that the schedule makes.
    pub event_every: u64,
    /// After so many events no more are made.
    pub events_max: u64,
    /// Weights of the kinds of events.
    pub weights: [u64; Event::ALL.len()],
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

/// What the device promises.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// What lunfs needs of it. Everything is asked of the volume.
    Sound,
    /// Some reads show metadata with a flipped bit or of another place. An operation may fail with
    /// "corrupt" while that goes on; all else is asked as ever.
    Lying,
    /// It loses its cache under living hosts and tells nobody (H25). Acknowledged work may be
    /// gone; R1, R4 and the absence of panics and circles are still asked.
    Forgetful,
    /// It goes back to an earlier time under living hosts (H5). All of them must stop.
    BackInTime,
}

/// How much happens in what time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tempo {
    /// Operations all the time, faults every few seconds, for a minute or some.
    Dense,
    /// Hours, with pauses of seconds between operations and of minutes between faults.
    Sparse,
}

/// What the schedule does to the world.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A program dies.
    Crash,
    /// A program dies at one of its next submissions, or right after it.
    CrashAtSubmission,
    /// A program is not run for a while.
    Pause,
    /// The same, between its look at the clock and the device.
    PauseAtSubmission,
    /// The whole disk stalls.
    Stall,
    /// One host's path stalls.
    StallHost,
    /// A program unmounts.
    Leave,
    /// The power of all fails.
    PowerLoss,
    /// Several programs die one after the other, while they take each other over.
    CrashChain,
    /// A program dies, and its host mounts and unmounts again and again.
    Flap,
}

impl Event {
    /// All of them.
    pub const ALL: [Event; 10] = [
        Event::Crash,
        Event::CrashAtSubmission,
        Event::Pause,
        Event::PauseAtSubmission,
        Event::Stall,
        Event::StallHost,
        Event::Leave,
        Event::PowerLoss,
        Event::CrashChain,
        Event::Flap,
    ];

    fn fault(self) -> Fault {
        match self {
            Event::Crash | Event::CrashAtSubmission | Event::CrashChain | Event::Flap => {
                Fault::Crashes
            }
            Event::Pause | Event::PauseAtSubmission => Fault::Pauses,
            Event::Stall | Event::StallHost => Fault::Stalls,
            Event::Leave => Fault::Unmounts,
            Event::PowerLoss => Fault::PowerLosses,
        }
    }
}

/// Kinds of faults that can be left out of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Fault {
    /// Deaths of programs at random moments.
    Crashes,
    /// Deaths of claimers.
    ClaimerDeaths,
    /// Blocks that a claimer cannot write.
    SpoiledBlocks,
    /// Pauses of programs.
    Pauses,
    /// Stalls of disk and paths.
    Stalls,
    /// Unmounts.
    Unmounts,
    /// Losses of power.
    PowerLosses,
    /// Requests that fail or stay in doubt.
    Failures,
    /// Requests that are done twice or answered late.
    LateAnswers,
    /// Reads that are fetched block by block.
    ScatteredReads,
    /// Fences that fail or know nothing.
    FenceFailures,
    /// Parents that outlive their programs.
    Parents,
}

/// What of the drawn parameters is replaced.
#[derive(Clone, Debug, Default, PartialEq, Eq, clap::Args)]
pub struct Reduction {
    /// So many hosts at most.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    pub hosts: Option<u64>,
    /// So many workers on each host at most.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    pub workers: Option<u64>,
    /// Virtual minutes with faults in each seed; drawn from the seed if not given.
    #[arg(long)]
    pub virtual_minutes: Option<u64>,
    /// The same in seconds.
    #[arg(long, conflicts_with = "virtual_minutes")]
    pub virtual_seconds: Option<u64>,
    /// So many events of the schedule at most.
    #[arg(long)]
    pub events: Option<u64>,
    /// Leave these kinds of faults out.
    #[arg(long, value_enum, value_delimiter = ',')]
    pub without: Vec<Fault>,
}

impl Reduction {
    /// As arguments of the command line, each with a blank before it.
    pub fn arguments(&self) -> String {
        let mut line = String::new();
        let numbers = [
            ("hosts", self.hosts),
            ("workers", self.workers),
            ("virtual-minutes", self.virtual_minutes),
            ("virtual-seconds", self.virtual_seconds),
            ("events", self.events),
        ];
        for (name, number) in numbers {
            if let Some(number) = number {
                line.push_str(&format!(" --{name} {number}"));
            }
        }
        let names: Vec<String> = self
            .without
            .iter()
            .filter_map(clap::ValueEnum::to_possible_value)
            .map(|value| value.get_name().to_owned())
            .collect();
        if !names.is_empty() {
            line.push_str(&format!(" --without {}", names.join(",")));
        }
        line
    }

    fn duration(&self) -> Option<u64> {
        let seconds = self.virtual_minutes.map(|minutes| minutes * 60).or(self.virtual_seconds);
        seconds.map(|seconds| seconds * SECOND)
    }

    /// Takes from `parameters` what is not wanted.
    pub fn apply(&self, parameters: &mut Parameters) {
        let fewer = |drawn: usize, most: Option<u64>| {
            most.and_then(|most| usize::try_from(most).ok()).map_or(drawn, |most| drawn.min(most))
        };
        let world = &mut parameters.world;
        world.hosts = fewer(world.hosts, self.hosts);
        world.workers = fewer(world.workers, self.workers);
        parameters.duration = self.duration().unwrap_or(parameters.duration);
        parameters.events_max = self.events.unwrap_or(parameters.events_max);
        for &fault in &self.without {
            parameters.remove(fault);
        }
    }
}

impl Parameters {
    /// Draws a run from its seed.
    pub fn draw(seed: u64) -> Parameters {
        let chance = Chance::stream(seed, "parameters");
        let tempo = if chance.percent(75) { Tempo::Dense } else { Tempo::Sparse };
        let mode = draw_mode(&chance);
        // Whoever joins reads all slots: most volumes have few, so that joining is cheap.
        let slots = *chance.pick(&[64, 64, 64, 64, 256, 1024]);
        let hosts = match tempo {
            Tempo::Dense => *chance.pick(&[1, 2, 2, 3, 3, 4, 5, 6, 8]),
            Tempo::Sparse => chance.between(1, 4),
        };
        let workers = if tempo == Tempo::Sparse { 1 } else { *chance.pick(&[1, 1, 2, 3]) };
        let kinds = draw_kinds(&chance, hosts * workers);
        let dense = tempo == Tempo::Dense;
        let busy = hosts * workers;
        let drawn = Parameters {
            world: WorldOptions {
                seed,
                hosts: usize::try_from(hosts).unwrap_or(1),
                workers: usize::try_from(workers).unwrap_or(1),
                disk: draw_disk(&chance, seed, hosts, slots),
                verbose: false,
            },
            mode,
            tempo,
            slots,
            timing: if chance.percent(70) { Timing::FAST } else { Timing::CALM },
            rates: draw_rates(&chance, tempo, mode),
            duration: match (tempo, chance.below(10)) {
                (Tempo::Dense, 0) => chance.between(120, 240) * SECOND,
                (Tempo::Dense, _) => chance.between(30, 90) * SECOND,
                (Tempo::Sparse, _) => chance.between(20, 180) * 60 * SECOND,
            },
            pace: Pace {
                think: match tempo {
                    Tempo::Dense => *chance.pick(&[5, 20, 20, 60]) * busy * MILLISECOND,
                    Tempo::Sparse => *chance.pick(&[5, 20, 60]) * SECOND,
                },
                across: u32::try_from(*chance.pick(&[10, 40, 40, 90])).unwrap_or(40),
            },
            kinds,
            event_every: match tempo {
                Tempo::Dense => *chance.pick(&[500, 1_000, 2_000, 6_000]) * MILLISECOND,
                Tempo::Sparse => *chance.pick(&[60, 300, 900]) * SECOND,
            },
            events_max: u64::MAX,
            weights: draw_weights(&chance),
            kill_claimers: *chance.pick(&[0, 0, 20, 50]),
            spoil_claims: *chance.pick(&[0, 0, 10, 40]),
            parents: *chance.pick(&[0, 50, 100]),
            restart_max: *chance.pick(&[100, 1_000, if dense { 5_000 } else { 300_000 }])
                * MILLISECOND,
            setup: SetupOptions { common: 3, common_size: 128 * 1024, arena: 3 },
        };
        drawn.of_its_mode()
    }

    /// Events that a world of another mode cannot judge are left out.
    fn of_its_mode(mut self) -> Parameters {
        match self.mode {
            Mode::Sound | Mode::Lying => {}
            Mode::Forgetful => {
                self.rates = Rates::NONE;
                self.world.disk.writes_through = false;
            }
            Mode::BackInTime => {
                self.rates = Rates::NONE;
                self.spoil_claims = 0;
            }
        }
        self
    }

    /// Leaves a kind of fault out.
    pub fn remove(&mut self, fault: Fault) {
        for (weight, event) in self.weights.iter_mut().zip(Event::ALL) {
            if event.fault() == fault {
                *weight = 0;
            }
        }
        let (rates, none) = (&mut self.rates, Rates::NONE);
        match fault {
            Fault::ClaimerDeaths => self.kill_claimers = 0,
            Fault::SpoiledBlocks => self.spoil_claims = 0,
            Fault::Parents => self.parents = 0,
            Fault::Stalls => rates.stall = 0,
            Fault::Failures => {
                let (late_answer, doubled) = (rates.late_answer, rates.doubled);
                let (stall, read_scattered) = (rates.stall, rates.read_scattered);
                let (fence_failed, life_unknown) = (rates.fence_failed, rates.life_unknown);
                *rates = Rates {
                    late_answer,
                    doubled,
                    stall,
                    read_scattered,
                    fence_failed,
                    life_unknown,
                    read_lies: rates.read_lies,
                    ..none
                };
            }
            Fault::LateAnswers => (rates.late_answer, rates.doubled) = (0, 0),
            Fault::ScatteredReads => rates.read_scattered = 0,
            Fault::FenceFailures => (rates.fence_failed, rates.life_unknown) = (0, 0),
            Fault::Crashes | Fault::Pauses | Fault::Unmounts | Fault::PowerLosses => {}
        }
    }
}

fn draw_mode(chance: &Chance) -> Mode {
    match chance.below(100) {
        0..88 => Mode::Sound,
        88..94 => Mode::Lying,
        94..97 => Mode::Forgetful,
        _ => Mode::BackInTime,
    }
}

/// Mostly one kind for each worker; sometimes one for all, which is how storms begin.
fn draw_kinds(chance: &Chance, workers: u64) -> Vec<Kind> {
    let same = chance.percent(25).then(|| *chance.pick(&Kind::ALL));
    let draw = |_| match same {
        Some(kind) => kind,
        None if chance.percent(50) => Kind::Mixed,
        None => *chance.pick(&Kind::ALL),
    };
    (0..workers).map(draw).collect()
}

fn draw_disk(chance: &Chance, seed: u64, hosts: u64, slots: u32) -> DiskModel {
    let unit = *chance.pick(&[512, 512, 512, 4096]);
    let size = if chance.percent(15) {
        // A tiny volume is full all the time: every host has a journal, little is left.
        let heads = ((4 << 20) + u64::from(slots) * 8 * u64::from(unit)).next_multiple_of(CLUSTER);
        heads + (hosts + chance.between(3, 5)) * CLUSTER
    } else {
        *chance.pick(&[128, 256, 256, 512]) << 20
    };
    DiskModel {
        unit,
        size,
        writes_through: chance.percent(25),
        before: if chance.percent(70) { Before::Ghosts(seed) } else { Before::Zeroes },
        latency: Latency::draw(chance),
    }
}

fn draw_rates(chance: &Chance, tempo: Tempo, mode: Mode) -> Rates {
    let mut rates = if chance.percent(25) { Rates::NONE } else { Rates::draw(chance) };
    if tempo == Tempo::Sparse {
        // Hours of it: what ends a host must stay an event.
        rates.write_in_doubt /= 20;
        rates.flush_in_doubt /= 20;
        rates.compare_unflushed /= 20;
        rates.stall /= 10;
        rates.late_answer /= 10;
    }
    let often = *chance.pick(&[100, 1_000, 10_000]);
    rates.read_lies = if mode == Mode::Lying { often } else { 0 };
    rates
}

/// Of each kind of event some runs see none, some see many.
fn draw_weights(chance: &Chance) -> [u64; Event::ALL.len()] {
    Event::ALL.map(|event| {
        let weight = *chance.pick(&[0, 1, 1, 4]);
        match event {
            Event::Crash | Event::CrashAtSubmission => weight.max(1),
            Event::PowerLoss | Event::CrashChain | Event::Flap | Event::Stall => weight.min(1),
            Event::Pause | Event::PauseAtSubmission | Event::StallHost | Event::Leave => weight,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_with_less_is_otherwise_the_run_of_its_seed() {
        for seed in 0..200 {
            let drawn = Parameters::draw(seed);
            let mut reduced = drawn.clone();
            let reduction = Reduction {
                hosts: Some(2),
                without: vec![Fault::Crashes, Fault::Failures],
                ..Reduction::default()
            };
            reduction.apply(&mut reduced);
            assert!(reduced.world.hosts <= 2 && reduced.world.workers == drawn.world.workers);
            assert_eq!(reduced.kinds, drawn.kinds);
            assert_eq!(reduced.weights[0], 0);
            assert_eq!(reduced.rates.write_in_doubt, 0);
            assert_eq!(reduced.rates.doubled, drawn.rates.doubled);
        }
    }

    #[test]
    fn the_seeds_cover_hosts_disks_modes_and_kinds() {
        let all: Vec<Parameters> = (0..2_000).map(Parameters::draw).collect();
        let count = |wanted: &dyn Fn(&Parameters) -> bool| all.iter().filter(|p| wanted(p)).count();
        for mode in [Mode::Sound, Mode::Lying, Mode::Forgetful, Mode::BackInTime] {
            assert!(count(&|p| p.mode == mode) > 20, "{mode:?}");
        }
        for kind in Kind::ALL {
            assert!(count(&|p| p.kinds.contains(&kind)) > 100, "{kind:?}");
        }
        assert!(count(&|p| p.world.hosts == 8) > 20);
        assert!(count(&|p| p.world.disk.writes_through) > 200);
        assert!(count(&|p| p.tempo == Tempo::Sparse) > 200);
    }
}
