//! `lunfs-sim`: runs seeds until one breaks a rule, explains one, or enumerates crashes.
//!
//! Each subcommand has a file of its own.

mod explain;
mod swarm;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use lunfs_sim::enumerate;

/// Runs lunfs in a world that breaks, and checks every rule.
#[derive(Debug, Parser)]
#[command(name = "lunfs-sim", version, args_conflicts_with_subcommands = true)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    swarm: swarm::Arguments,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Tells the story of one seed, up to its finding.
    Explain(explain::Arguments),
    /// Crashes every operation at every write, and its recovery, too.
    Enumerate(enumerate::command::Options),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match arguments.command {
        Some(Command::Explain(arguments)) => explain::run(&arguments),
        Some(Command::Enumerate(options)) if enumerate::command::run(&options) => ExitCode::SUCCESS,
        Some(Command::Enumerate(_)) => ExitCode::FAILURE,
        None => swarm::run(&arguments.swarm),
    }
}
