//! `lunfs-sim`: runs seeds until one breaks a rule.

use std::process::ExitCode;

use clap::Parser;
use lunfs_core::Counters;
use lunfs_sim::disk::faults::SECOND;
use lunfs_sim::met::Met;
use lunfs_sim::schedule::{Outcome, Parameters, run};
use lunfs_sim::trace::seconds;

/// Seeds from which on everything must have been met.
const SEEDS_FOR_ALL: u64 = 200;

/// Runs lunfs in a world that breaks, and checks every rule.
#[derive(Debug, Parser)]
#[command(name = "lunfs-sim", version)]
struct Arguments {
    /// Run this one seed.
    #[arg(long, conflicts_with_all = ["seeds", "from"])]
    seed: Option<u64>,
    /// How many seeds to run.
    #[arg(long, default_value_t = 20)]
    seeds: u64,
    /// The first of them.
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// Virtual minutes with faults; drawn from the seed if not given.
    #[arg(long)]
    minutes: Option<u64>,
    /// Run each seed twice and compare the traces.
    #[arg(long)]
    twice: bool,
    /// Go on after a finding.
    #[arg(long)]
    keep_going: bool,
    /// Print every event.
    #[arg(long)]
    verbose: bool,
}

impl Arguments {
    fn parameters(&self, seed: u64) -> Parameters {
        Parameters::draw(seed, self.verbose, self.minutes.map(|minutes| minutes * 60 * SECOND))
    }

    /// The command that shows the same again.
    fn again(&self, seed: u64) -> String {
        let minutes = self.minutes.map_or(String::new(), |minutes| format!(" --minutes {minutes}"));
        let twice = if self.twice { " --twice" } else { "" };
        format!("cargo run --release -p lunfs-sim -- --seed {seed}{minutes}{twice}")
    }
}

#[derive(Default)]
struct Totals {
    met: Met,
    counters: Counters,
    events: u64,
    time: u64,
    broken: u64,
}

impl Totals {
    fn add(&mut self, outcome: &Outcome) {
        self.met.add(&outcome.met);
        self.counters.add(&outcome.counters);
        self.events += outcome.events;
        self.time += outcome.time;
    }

    fn lines(&self) -> Vec<(&'static str, u64)> {
        let mut lines = self.met.list();
        lines.extend(self.counters.list());
        lines
    }

    /// What a proof needs and this one did not meet.
    fn missing(&self) -> Vec<&'static str> {
        let (met, counters) = (&self.met, &self.counters);
        let needed = [
            ("takeovers", counters.takeovers),
            ("replays that applied images", counters.replays_with_images),
            ("images applied", counters.images_applied),
            ("images refused by R7", counters.images_refused),
            ("revokes used", counters.revokes_used),
            ("in-doubt compare-and-writes that had landed", counters.in_doubt_landed),
            ("in-doubt compare-and-writes that had not", counters.in_doubt_not_landed),
            ("in-doubt compare-and-writes replaced by others", counters.in_doubt_lost),
            ("resumes after suspension", counters.resumes),
            ("handovers", counters.handovers),
            ("recoverer deaths", met.recoverer_deaths),
            ("crashes", met.crashes),
            ("fence kills", met.fence_kills),
            ("pauses at submission", met.pauses_at_submission),
            ("power losses", met.power_losses),
            ("blocks lost by power losses", met.blocks_lost),
            ("last words", met.last_words),
            ("audits with loss", met.audits_with_loss),
        ];
        needed.into_iter().filter(|(_, number)| *number == 0).map(|(name, _)| name).collect()
    }
}

fn report(arguments: &Arguments, seed: u64, outcome: &Outcome, totals: &mut Totals) -> bool {
    if outcome.findings.is_empty() {
        return true;
    }
    totals.broken += 1;
    println!("seed {seed} breaks a rule:");
    for finding in &outcome.findings {
        println!("  {finding}");
    }
    if !arguments.keep_going {
        println!("  the last events:");
        for event in &outcome.recent {
            println!("    {event}");
        }
    }
    println!("  again: {}", arguments.again(seed));
    false
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let seeds = match arguments.seed {
        Some(seed) => seed..seed + 1,
        None => arguments.from..arguments.from + arguments.seeds,
    };
    let count = seeds.end - seeds.start;
    let mut totals = Totals::default();
    for seed in seeds {
        let outcome = run(&arguments.parameters(seed));
        totals.add(&outcome);
        let mut is_fine = report(&arguments, seed, &outcome, &mut totals);
        if arguments.twice {
            let second = run(&arguments.parameters(seed));
            if (second.hash, second.events) != (outcome.hash, outcome.events) {
                println!(
                    "seed {seed} is not deterministic: {} events and {:#x}, then {} and {:#x}",
                    outcome.events, outcome.hash, second.events, second.hash
                );
                println!("  again: {}", arguments.again(seed));
                totals.broken += u64::from(is_fine);
                is_fine = false;
            }
        }
        if !is_fine && !arguments.keep_going {
            return ExitCode::FAILURE;
        }
    }
    println!(
        "{count} seeds, {} s of virtual time, {} events",
        seconds(totals.time).trim(),
        totals.events
    );
    for (name, number) in totals.lines() {
        println!("{number:>12}  {}", name.replace('_', " "));
    }
    if totals.broken > 0 {
        println!("{} seeds break a rule", totals.broken);
        return ExitCode::FAILURE;
    }
    let missing = totals.missing();
    if count >= SEEDS_FOR_ALL && !missing.is_empty() {
        println!("never met: {}", missing.join(", "));
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}
