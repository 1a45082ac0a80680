//! `explain`: the story of one seed, up to its finding.

use std::process::ExitCode;

use lunfs_sim::schedule::parameters::Reduction;
use lunfs_sim::schedule::{Parameters, tell};
use lunfs_sim::trace::seconds;

/// Which seed.
#[derive(Clone, Debug, clap::Args)]
#[group(skip)]
pub struct Arguments {
    /// The seed.
    #[arg(long)]
    seed: u64,
    #[command(flatten)]
    reduction: Reduction,
    /// Tell of this, as if a finding named it: "block 12", "file 7", "worker 2"; may be repeated.
    #[arg(long)]
    about: Vec<String>,
}

/// Tells it.
pub fn run(arguments: &Arguments) -> ExitCode {
    let mut parameters = Parameters::draw(arguments.seed);
    arguments.reduction.apply(&mut parameters);
    println!("seed {}:", arguments.seed);
    let Parameters { world, mode, tempo, kinds, .. } = &parameters;
    let disk = &world.disk;
    let cache = if disk.writes_through { "no cache" } else { "a volatile cache" };
    println!("  {mode:?} device, {tempo:?}, {} hosts with {} workers", world.hosts, world.workers);
    println!("  {} MiB in blocks of {} bytes, {cache}", disk.size >> 20, disk.unit);
    println!("  workers: {kinds:?}");
    println!("  rates in a million: {:?}", parameters.rates);
    println!();
    let (outcome, lines) = tell(&parameters, &arguments.about);
    for line in lines {
        println!("{line}");
    }
    println!();
    match outcome.findings.first() {
        Some(finding) => println!("{finding}"),
        None => println!("no finding in {} s", seconds(outcome.time).trim()),
    }
    ExitCode::SUCCESS
}
