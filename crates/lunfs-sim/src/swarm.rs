//! Many seeds, one after the other or several at a time, until one breaks a rule.

mod report;
mod shrink;

use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::time::{Duration, Instant};

use lunfs_sim::schedule::parameters::Reduction;
use lunfs_sim::schedule::{Outcome, Parameters, run as run_world};

use report::Totals;

/// What to run.
#[derive(Clone, Debug, clap::Args)]
#[group(skip)]
pub struct Arguments {
    /// Run this one seed.
    #[arg(long, conflicts_with_all = ["seeds", "from", "minutes"])]
    seed: Option<u64>,
    /// How many seeds to run.
    #[arg(long, default_value_t = 20)]
    seeds: u64,
    /// The first of them.
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// Run seeds until so many minutes have passed on our own clock; a seed in progress ends.
    #[arg(long, conflicts_with = "seeds", value_parser = clap::value_parser!(u32).range(1..))]
    minutes: Option<u32>,
    /// So many seeds at a time, each on a thread of its own.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    jobs: u32,
    #[command(flatten)]
    reduction: Reduction,
    /// Run each seed twice and compare the traces.
    #[arg(long)]
    twice: bool,
    /// Go on after a finding.
    #[arg(long)]
    keep_going: bool,
    /// Do not look for a smaller run that breaks the same rule.
    #[arg(long)]
    no_shrink: bool,
    /// Print every event.
    #[arg(long, conflicts_with = "jobs")]
    verbose: bool,
    /// End with one line for machines.
    #[arg(long)]
    json: bool,
}

/// What came of one seed.
struct Run {
    seed: u64,
    outcome: Outcome,
    /// What the second run had instead, if it differed.
    differs: Option<(u64, u64)>,
}

impl Arguments {
    fn parameters(&self, seed: u64) -> Parameters {
        let mut parameters = Parameters::draw(seed);
        self.reduction.apply(&mut parameters);
        parameters.world.verbose = self.verbose;
        parameters
    }

    /// The first seed, and the one behind the last.
    fn range(&self) -> (u64, u64) {
        let (first, count) = match (self.seed, self.minutes) {
            (Some(seed), _) => (seed, 1),
            (None, Some(_)) => (self.from, u64::MAX),
            (None, None) => (self.from, self.seeds),
        };
        (first, first.saturating_add(count))
    }

    fn limit(&self) -> Option<Duration> {
        self.minutes.map(|minutes| Duration::from_secs(60) * minutes)
    }

    /// The command that shows the same again.
    fn again(&self, seed: u64, reduction: &Reduction) -> String {
        let twice = if self.twice { " --twice" } else { "" };
        let arguments = reduction.arguments();
        format!("cargo run --release -p lunfs-sim -- --seed {seed}{arguments}{twice}")
    }

    fn run_seed(&self, seed: u64) -> Run {
        let outcome = run_world(&self.parameters(seed));
        let second = self.twice.then(|| run_world(&self.parameters(seed)));
        let differs = second
            .filter(|second| (second.hash, second.events) != (outcome.hash, outcome.events))
            .map(|second| (second.hash, second.events));
        Run { seed, outcome, differs }
    }
}

/// Runs the seeds; the code says whether all were fine.
pub fn run(arguments: &Arguments) -> ExitCode {
    let begun = Instant::now();
    let mut totals = Totals::default();
    let (first, end) = arguments.range();
    let next = AtomicU64::new(first);
    let is_over = AtomicBool::new(false);
    let (sender, results) = channel();
    std::thread::scope(|scope| {
        for _ in 0..arguments.jobs {
            let (sender, next, is_over) = (sender.clone(), &next, &is_over);
            scope.spawn(move || work(arguments, (next, end), (begun, is_over), &sender));
        }
        drop(sender);
        for run in results {
            let is_fine = totals.take(arguments, &run);
            if !is_fine && !arguments.keep_going {
                is_over.store(true, Ordering::Relaxed);
                shrink_and_tell(arguments, &run);
                break;
            }
        }
    });
    totals.end(arguments, begun.elapsed())
}

/// Takes one seed after the other, until there is none or somebody has seen enough.
fn work(
    arguments: &Arguments,
    (next, end): (&AtomicU64, u64),
    (begun, is_over): (Instant, &AtomicBool),
    results: &Sender<Run>,
) {
    loop {
        let seed = next.fetch_add(1, Ordering::Relaxed);
        let is_late = arguments.limit().is_some_and(|limit| begun.elapsed() >= limit);
        if seed >= end || is_late || is_over.load(Ordering::Relaxed) {
            return;
        }
        if results.send(arguments.run_seed(seed)).is_err() {
            return;
        }
    }
}

fn shrink_and_tell(arguments: &Arguments, run: &Run) {
    let Some(finding) = run.outcome.findings.first() else { return };
    let mut reduction = arguments.reduction.clone();
    if !arguments.no_shrink {
        let smaller = shrink::shrink(run.seed, &reduction, finding);
        println!("  smaller after {} runs: {}", smaller.runs, smaller.finding);
        println!("  again: {}", arguments.again(run.seed, &smaller.reduction));
        reduction = smaller.reduction;
    }
    let (seed, less) = (run.seed, reduction.arguments());
    println!("  story: cargo run --release -p lunfs-sim -- explain --seed {seed}{less}");
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    fn parsed(arguments: &str) -> Arguments {
        let words = ["lunfs-sim"].into_iter().chain(arguments.split_whitespace());
        crate::Arguments::try_parse_from(words).expect("arguments that are understood").swarm
    }

    #[test]
    fn the_printed_command_repeats_the_seed_as_it_was_run() {
        for run in [
            "",
            "--from 7 --minutes 3 --twice --keep-going",
            "--seeds 9 --virtual-minutes 2",
            "--minutes 1 --virtual-seconds 5 --twice --jobs 2",
            "--hosts 2 --workers 1 --events 7 --without crashes,power-losses,failures",
        ] {
            let run = parsed(run);
            let again = run.again(4711, &run.reduction);
            let (_, arguments) = again.split_once(" -- ").expect("arguments behind cargo's");
            let repeated = parsed(arguments);
            assert_eq!(repeated.range(), (4711, 4712));
            assert_eq!(repeated.reduction, run.reduction);
            assert_eq!(repeated.twice, run.twice);
        }
    }

    #[test]
    fn a_run_by_the_clock_begins_where_it_is_told() {
        let run = parsed("--from 30 --minutes 60");
        assert_eq!(run.range(), (30, u64::MAX));
        assert_eq!(run.limit(), Some(Duration::from_secs(3_600)));
        assert_eq!(parsed("--from 30 --seeds 2").range(), (30, 32));
    }
}
