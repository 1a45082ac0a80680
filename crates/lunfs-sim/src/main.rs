//! `lunfs-sim`: runs seeds until one breaks a rule.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Parser, Subcommand};
use lunfs_core::Counters;
use lunfs_sim::disk::faults::SECOND;
use lunfs_sim::enumerate;
use lunfs_sim::met::Met;
use lunfs_sim::schedule::{Outcome, Parameters, run};
use lunfs_sim::trace::seconds;

/// Seeds from which on everything must have been met.
const SEEDS_FOR_ALL: u64 = 200;

/// Runs lunfs in a world that breaks, and checks every rule.
#[derive(Debug, Parser)]
#[command(name = "lunfs-sim", version, args_conflicts_with_subcommands = true)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
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
    /// Virtual minutes with faults in each seed; drawn from the seed if not given.
    #[arg(long)]
    virtual_minutes: Option<u64>,
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

#[derive(Debug, Subcommand)]
enum Command {
    /// Crashes every operation at every write, and its recovery, too.
    Enumerate(enumerate::command::Options),
}

impl Arguments {
    fn parameters(&self, seed: u64) -> Parameters {
        let duration = self.virtual_minutes.map(|minutes| minutes * 60 * SECOND);
        Parameters::draw(seed, self.verbose, duration)
    }

    /// The seeds to run, one after the other; with `--minutes` they end when the time is over.
    fn seeds(&self) -> impl Iterator<Item = u64> {
        let (first, count) = match (self.seed, self.minutes) {
            (Some(seed), _) => (seed, 1),
            (None, Some(_)) => (self.from, u64::MAX),
            (None, None) => (self.from, self.seeds),
        };
        let limit = self.minutes.map(|minutes| Duration::from_secs(60) * minutes);
        let begun = Instant::now();
        (first..first.saturating_add(count))
            .take_while(move |_| limit.is_none_or(|limit| begun.elapsed() < limit))
    }

    /// The command that shows the same again.
    fn again(&self, seed: u64) -> String {
        let minutes = self
            .virtual_minutes
            .map_or(String::new(), |minutes| format!(" --virtual-minutes {minutes}"));
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
            ("claims of dead claimers", counters.claims_after_claimer),
            ("claims handed back", counters.claims_handed_back),
            ("claims kept", counters.claims_kept),
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
    if let Some(Command::Enumerate(options)) = &arguments.command {
        return if enumerate::command::run(options) {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        };
    }
    let mut totals = Totals::default();
    let mut count = 0;
    for seed in arguments.seeds() {
        count += 1;
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

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(arguments: &str) -> Arguments {
        let words = ["lunfs-sim"].into_iter().chain(arguments.split_whitespace());
        Arguments::try_parse_from(words).expect("arguments that are understood")
    }

    #[test]
    fn the_printed_command_repeats_the_seed_as_it_was_run() {
        for run in [
            "",
            "--from 7 --minutes 3 --twice --keep-going",
            "--seeds 9 --virtual-minutes 2",
            "--minutes 1 --virtual-minutes 5 --twice",
        ] {
            let run = parsed(run);
            let again = run.again(4711);
            let (_, arguments) = again.split_once(" -- ").expect("arguments behind cargo's");
            let repeated = parsed(arguments);
            assert_eq!(repeated.seeds().collect::<Vec<_>>(), [4711]);
            assert_eq!(repeated.virtual_minutes, run.virtual_minutes);
            assert_eq!(repeated.twice, run.twice);
        }
    }

    #[test]
    fn a_run_by_the_clock_begins_where_it_is_told() {
        let run = parsed("--from 30 --minutes 60");
        assert_eq!(run.seeds().take(3).collect::<Vec<_>>(), [30, 31, 32]);
        assert_eq!(parsed("--from 30 --seeds 2").seeds().collect::<Vec<_>>(), [30, 31]);
    }
}
