//! The `lunfs` command: one file per subcommand, each translates and none decides.
//!
//! Exit codes: 0 done; 1 failed, refused, or found something; 2 could not even begin: the command
//! line makes no sense, `check` cannot read the volume, `demo` lacks a part of the machine, or
//! nobody reads what is said.

// They panic when nobody reads; `out::say` ends quietly.
#![deny(clippy::print_stdout)]

mod check;
mod clone;
mod daemon;
mod demo;
mod disk;
mod export;
mod exports;
mod format;
mod hosts;
mod info;
mod inspect;
mod locks;
mod logging;
mod mount;
mod name;
mod out;
mod place;
mod progress;
mod reader;
mod runtime;
mod size;
mod snapshot;
mod unexport;
mod unmount;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// A clustered file system for virtual machine disks: one volume, mounted by many hosts at once.
#[derive(Parser)]
#[command(name = "lunfs", version, max_term_width = 100)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Make an empty volume on an image file or a block device
    Format(format::Options),
    /// Mount a volume; returns when the mount works
    Mount(mount::Options),
    /// Unmount cleanly, or remove what a dead host left mounted
    Unmount(unmount::Options),
    /// Say what a volume or a mount is
    Info(info::Options),
    /// List the hosts of a volume
    Hosts(hosts::Options),
    /// List the locks a mounted host holds
    Locks(locks::Options),
    /// Make, list, resize and delete disks on a mounted volume
    Disk(disk::Options),
    /// Keep a disk as it is now
    Snapshot(snapshot::Options),
    /// Make a disk that begins as another one
    Clone(clone::Options),
    /// Offer a file of a mounted volume as a disk
    Export(export::Options),
    /// List what is exported
    Exports(exports::Options),
    /// End an export
    Unexport(unexport::Options),
    /// Check a volume: exit code 0 clean, 1 found something, 2 could not run
    Check(check::Options),
    /// Show the structures of a volume as they lie on it
    Inspect(inspect::Options),
    /// Show two hosts on one volume, one of which is killed while it writes
    Demo(demo::Options),
    /// Serve a mount; started and watched by `lunfs mount`
    #[command(hide = true)]
    Daemon(daemon::Options),
}

/// The command could not even begin, and says so: nothing was done and nothing is known.
#[derive(Debug)]
struct CouldNotRun(String);

impl std::fmt::Display for CouldNotRun {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for CouldNotRun {}

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::Format(options) => format::run(&options),
        Command::Mount(options) => mount::run(&options),
        Command::Unmount(options) => unmount::run(&options),
        Command::Info(options) => info::run(&options),
        Command::Hosts(options) => hosts::run(&options),
        Command::Locks(options) => locks::run(&options),
        Command::Disk(options) => disk::run(&options),
        Command::Snapshot(options) => snapshot::run(&options),
        Command::Clone(options) => clone::run(&options),
        Command::Export(options) => export::run(&options),
        Command::Exports(options) => exports::run(&options),
        Command::Unexport(options) => unexport::run(&options),
        Command::Check(options) => check::run(&options),
        Command::Inspect(options) => inspect::run(&options),
        Command::Demo(options) => demo::run(&options),
        Command::Daemon(options) => daemon::run(&options),
    };
    result.unwrap_or_else(|error| {
        // Written in one piece: parent and daemon share the terminal.
        eprintln!("lunfs: {error:#}");
        ExitCode::from(if error.is::<CouldNotRun>() { 2 } else { 1 })
    })
}
