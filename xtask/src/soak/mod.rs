//! `cargo xtask soak`: everything that searches, for hours, and a row in docs/soak.md.
//!
//! ```text
//!   hash of the code -> build -> enumeration -> fuzzing -> torture -> swarm -> hash again -> row
//!                                  10 %          20 %       15 %      the rest
//! ```
//!
//! A piece that ends early, or that cannot run here, leaves its time to the swarm. The swarm begins
//! at the seed behind the last one that ran on the same code. A row counts for the code that it
//! names: where the sources have changed while it ran, there is no row. With `--only` one piece has
//! all of the time; several such runs may go side by side, but not two swarms.

mod code;
mod piece;
pub mod record;
mod swarm;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};

use crate::prove::world;
use crate::{Ending, root};
use piece::Outcome;
use record::{Hundredths, Record, Row};

/// Parts of the time, in percent; the swarm has the rest.
const ENUMERATION: u32 = 10;
const FUZZING: u32 = 20;
const TORTURE: u32 = 15;

/// How long, on how many cores.
#[derive(Args)]
pub struct Options {
    /// For so many hours, as in 8 or 0.5; what is in progress then ends
    #[arg(long, value_parser = hours)]
    hours: Duration,
    /// Processes of the simulator that run at once
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    jobs: u32,
    /// One piece alone, with all of the time
    #[arg(long)]
    only: Option<Searcher>,
}

/// What searches.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Searcher {
    Enumeration,
    Fuzz,
    Torture,
    Swarm,
}

impl Options {
    /// How much of the time a piece has; none if another one has all.
    fn share(&self, searcher: Searcher, percent: u32) -> Option<Duration> {
        match self.only {
            None => Some(self.hours * percent / 100),
            Some(only) => (only == searcher).then_some(self.hours),
        }
    }
}

/// Where the rows are.
pub fn document() -> PathBuf {
    root().join("docs/soak.md")
}

/// Runs all pieces and appends what came of them.
pub fn run(options: &Options) -> Result<Ending> {
    let code = code::hash(&root())?;
    let first = Record::read(&document())?.next_seed(&code);
    let place = root().join("target/soak");
    std::fs::create_dir_all(&place).with_context(|| place.display().to_string())?;
    println!("soak: code {code}, seeds from {first}");
    let simulator = world::build("lunfs-sim")?;
    if !swarm::can_be_counted(&simulator)? {
        bail!("this lunfs-sim has no --json: nothing could be counted, and nothing was run");
    }

    let started = Instant::now();
    let part = |searcher, percent, run: &dyn Fn(Duration) -> Result<Outcome>| {
        options.share(searcher, percent).map(run).transpose()
    };
    let enumerated = part(Searcher::Enumeration, ENUMERATION, &|share| {
        piece::enumeration(&simulator, &place, share)
    })?;
    let fuzzed = part(Searcher::Fuzz, FUZZING, &|share| piece::fuzzing(&place, share))?;
    let tortured = part(Searcher::Torture, TORTURE, &|share| piece::torture(&place, share))?;
    let swarm = match options.share(Searcher::Swarm, 100) {
        Some(_) => swarm::run(&simulator, first, options.jobs, started + options.hours)?,
        None => swarm::Swarm { next: first, ..swarm::Swarm::default() },
    };

    if code::hash(&root())? != code {
        bail!("the sources have changed while it ran: what ran is not what is here, no row");
    }
    let outcomes = [&enumerated, &fuzzed, &tortured];
    let findings: u64 = outcomes.into_iter().flatten().map(Outcome::findings).sum();
    let count = |outcome: &Option<Outcome>| outcome.as_ref().map_or(0, Outcome::count);
    // Read again: another run may have ended meanwhile.
    let mut record = Record::read(&document())?;
    record.rows.push(Row {
        code: code.clone(),
        hours: Hundredths::of(started.elapsed().as_secs_f64() / 3600.0),
        simulated_hours: Hundredths::of(swarm.virtual_seconds / 3600.0),
        crashes: swarm.crashes,
        seeds: (first, swarm.next),
        states: count(&enumerated),
        inputs: count(&fuzzed),
        kills: count(&tortured),
        findings: findings + swarm.findings,
    });
    record.write(&document())?;
    Ok(tell(&record, &code, outcomes.into_iter().flatten()))
}

fn tell<'a>(
    record: &Record,
    code: &str,
    outcomes: impl IntoIterator<Item = &'a Outcome>,
) -> Ending {
    for outcome in outcomes {
        println!("soak: {outcome}");
    }
    let sums = record.sums();
    let sum = sums.iter().find(|sum| sum.row.code == code);
    println!("soak: this code, all runs:\n{}", sum.map_or(String::new(), ToString::to_string));
    let row = record.rows.last();
    if row.is_some_and(|row| row.findings == 0) { Ending::Passed } else { Ending::Failed }
}

fn hours(text: &str) -> Result<Duration> {
    let hours: f64 = text.parse().context("a number of hours, as in 8 or 0.5")?;
    if !(0.01..=1000.0).contains(&hours) {
        bail!("between 0.01 and 1000 hours");
    }
    Ok(Duration::from_secs_f64(hours * 3600.0))
}
