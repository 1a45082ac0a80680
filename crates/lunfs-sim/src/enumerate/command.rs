//! `lunfs-sim enumerate`: which cases, how far, and the table that comes of it.

use std::time::Instant;

use clap::Args;

use super::case::{Case, Syncs};
use super::engine::{Bounds, Counts, Engine};
use super::fixture::{Fixture, Kind};
use super::operation::{Operation, of_a_full_volume, of_the_first_host, of_two_hosts, operations};
use super::surviving::{Bound, Tears};

/// What to enumerate.
#[derive(Args, Debug)]
pub struct Options {
    /// Up to so many writes that are not durable: every subset of them. 6 if not given, for
    /// pairs 3.
    #[arg(long)]
    bound: Option<u32>,
    /// The same while a recovery is crashed.
    #[arg(long, default_value_t = 4)]
    second_bound: u32,
    /// Only operations whose names contain one of these.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Pairs of operations instead of single ones.
    #[arg(long)]
    pairs: bool,
    /// Crash the recovery of pairs, too.
    #[arg(long, requires = "pairs")]
    twice: bool,
    /// Do not crash any recovery.
    #[arg(long, conflicts_with = "twice")]
    once: bool,
    /// Of all cases only each so many-th.
    #[arg(long, default_value_t = 1)]
    every: usize,
}

/// Volumes of one kind, and what is tried on them.
struct Group {
    kind: Kind,
    cases: Vec<Case>,
}

impl Options {
    fn bounds(&self) -> Bounds {
        let tears = if self.pairs { Tears::Few } else { Tears::Each };
        let writes = self.bound.unwrap_or(if self.pairs { 3 } else { 6 });
        let first = Bound { writes, tears };
        let second = Bound { writes: self.second_bound, tears: Tears::None };
        let is_crashed = self.twice || !self.once && !self.pairs;
        Bounds { first, second: is_crashed.then_some(second) }
    }

    fn wanted(&self, mut operations: Vec<Operation>) -> Vec<Operation> {
        let is_wanted = |name: &str| self.only.iter().any(|word| name.contains(word.as_str()));
        operations.retain(|operation| self.only.is_empty() || is_wanted(operation.name));
        operations
    }

    fn groups(&self) -> Vec<Group> {
        let usual = self.wanted(operations());
        let mut groups = if self.pairs {
            let pairs = usual.iter().flat_map(|one| usual.iter().map(move |other| [one, other]));
            vec![Group { kind: Kind::Usual, cases: both(pairs) }]
        } else {
            let usual = [usual, self.wanted(of_two_hosts())].concat();
            [
                (Kind::Usual, usual),
                (Kind::New, self.wanted(of_the_first_host())),
                (Kind::Full, self.wanted(of_a_full_volume())),
            ]
            .map(|(kind, single)| Group { kind, cases: both(single.iter().map(|one| [one])) })
            .into()
        };
        for group in &mut groups {
            let cases = std::mem::take(&mut group.cases);
            group.cases = cases.into_iter().step_by(self.every.max(1)).collect();
        }
        groups.retain(|group| !group.cases.is_empty());
        groups
    }
}

/// Each with and without an fsync after each operation.
fn both<'a, const N: usize>(some: impl Iterator<Item = [&'a Operation; N]>) -> Vec<Case> {
    some.flat_map(|one| [Syncs::Never, Syncs::Each].map(|syncs| Case::of(&one, syncs))).collect()
}

/// Runs it; `false`: something broke a rule.
pub fn run(options: &Options) -> bool {
    let started = Instant::now();
    let mut total = Counts::default();
    println!("{}", heading());
    for group in options.groups() {
        match Fixture::build(group.kind) {
            Ok(fixture) => run_group(Engine::new(fixture, options.bounds()), &group, &mut total),
            Err(why) => {
                println!("  breaks a rule:\n  {:?}: it cannot be prepared: {why}", group.kind);
                return false;
            }
        }
    }
    println!("{}", row("total", &total));
    println!(
        "states counted: {} of {} cases, {} different; {} recoveries crashed; {} findings; {:.0} s",
        total.images + total.second_images,
        total.cases,
        total.distinct + total.second_distinct,
        total.crashed,
        total.findings.len(),
        started.elapsed().as_secs_f64()
    );
    total.findings.is_empty()
}

fn run_group(mut engine: Engine, group: &Group, total: &mut Counts) {
    for case in &group.cases {
        let counts = engine.run(case);
        println!("{}", row(&case.name, &counts));
        for finding in &counts.findings {
            println!("  breaks a rule:\n  {finding}");
        }
        total.add(&counts);
    }
}

fn heading() -> String {
    format!(
        "{:52}{:>7}{:>7}{:>9}{:>8}{:>9}{:>9} | {:>7}{:>8}{:>9}{:>9}{:>9} |{:>8}",
        "operation",
        "writes",
        "points",
        "images",
        "torn",
        "distinct",
        "left out",
        "crashed",
        "points",
        "images",
        "distinct",
        "left out",
        "seconds"
    )
}

fn row(name: &str, c: &Counts) -> String {
    format!(
        "{name:52}{:7}{:7}{:9}{:8}{:9}{:9.0} | {:7}{:8}{:9}{:9}{:9.0} |{:8.1}",
        c.writes,
        c.points,
        c.images,
        c.torn,
        c.distinct,
        c.left_out,
        c.crashed,
        c.second_points,
        c.second_images,
        c.second_distinct,
        c.second_left_out,
        c.took.as_secs_f64()
    )
}
