//! What CI and developers run on this workspace, in plain Rust.
//!
//! `test` is everything a change must pass, `tidy` the rules no other tool checks, `prove` the
//! claims of the README and the documents on real mounts, `fuzz` what any bytes may do. See
//! docs/testing.md.

mod deny;
mod fuzz;
mod prove;
mod shell;
mod soak;
mod test;
mod tidy;
mod tools;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Tasks of the lunfs workspace.
#[derive(Parser)]
#[command(name = "xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Run everything a change must pass: what CI runs
    Test(test::Options),
    /// Check the rules of CONTRIBUTING.md that no other tool checks
    Tidy,
    /// Run fuzz targets under libFuzzer
    Fuzz(fuzz::Options),
    /// Run one named scenario on real mounts, or list them
    Prove(prove::Options),
    /// Kill, stop, unmount and mount real hosts at random, and look whether anything is lost
    Torture(prove::torture::Options),
    /// Search for hours: enumeration, fuzzing, torture and seeds; adds a row to docs/soak.md
    Soak(soak::Options),
    /// Write files and log what is durable; scenarios run it as a process of its own
    #[command(hide = true)]
    ProveWriter(prove::writer::Options),
    /// Be the first program of a virtual machine; a scenario boots it
    #[command(hide = true)]
    ProveGuest(prove::guest::Options),
}

/// How a task ended when nothing went wrong on the way.
enum Ending {
    Passed,
    Failed,
    CouldNotRun,
}

fn main() -> ExitCode {
    if let Some(cargo) = std::env::var_os(deny::STANDS_IN_FOR) {
        return deny::stand_in(&cargo);
    }
    let ending = match Arguments::parse().task {
        Task::Test(options) => test::run(&options),
        Task::Tidy => tidy::run(),
        Task::Fuzz(options) => fuzz::run(&options),
        Task::Prove(options) => prove::run(&options),
        Task::Torture(options) => prove::torture::task(&options),
        Task::Soak(options) => soak::run(&options),
        Task::ProveWriter(options) => prove::writer::run(&options),
        Task::ProveGuest(options) => prove::guest::run_init(&options),
    };
    match ending {
        Ok(Ending::Passed) => ExitCode::SUCCESS,
        Ok(Ending::Failed) => ExitCode::FAILURE,
        Ok(Ending::CouldNotRun) => ExitCode::from(2),
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The workspace this program was built from.
fn root() -> PathBuf {
    let here = std::env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    here.parent().map_or(here.clone(), std::path::Path::to_path_buf)
}

/// Whether a skipped part counts as a failure.
fn in_ci() -> bool {
    std::env::var("CI").is_ok_and(|value| value == "true")
}
