//! `lunfs snapshot`: keeps a disk as it is now, lists what was kept, and deletes it.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Subcommand};
use lunfs_host::control::Request;
use serde_json::{Value, json};

use crate::out::say;
use crate::size::Size;
use crate::{name, place};

/// What to do.
#[derive(Args)]
pub struct Options {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Keep a disk as it is now, with all that was written and answered before
    Create(Named),
    /// List the snapshots of a disk
    List(List),
    /// Delete a snapshot; clones that were made of it stay
    Delete(Named),
}

#[derive(Args)]
struct Named {
    /// The disk, and a name without / and @
    #[arg(value_name = "DISK@NAME", value_parser = name::snapshot)]
    snapshot: (PathBuf, String),
}

#[derive(Args)]
struct List {
    /// Disk on a mounted volume
    disk: PathBuf,
    /// For scripts
    #[arg(long)]
    json: bool,
}

/// Asks the program that serves the mount.
pub fn run(options: &Options) -> Result<ExitCode> {
    match &options.command {
        Command::Create(named) => create(named),
        Command::List(list) => print_all(list),
        Command::Delete(named) => delete(named),
    }
}

fn create(Named { snapshot: (disk, name) }: &Named) -> Result<ExitCode> {
    let (mount, path) = place::file(disk)?;
    place::ask(&mount, &Request::CreateSnapshot { path, name: name.clone() })?;
    let disk = disk.display();
    say!("{disk}@{name} keeps {disk} as it is now");
    Ok(ExitCode::SUCCESS)
}

fn delete(Named { snapshot: (disk, name) }: &Named) -> Result<ExitCode> {
    let (mount, path) = place::file(disk)?;
    place::ask(&mount, &Request::DeleteSnapshot { path, name: name.clone() })?;
    say!("{}@{name} is deleted", disk.display());
    Ok(ExitCode::SUCCESS)
}

fn print_all(list: &List) -> Result<ExitCode> {
    let disk = of_disk(&list.disk)?;
    let snapshots = disk["snapshots"].clone();
    if list.json {
        say!("{}", json!({ "snapshots": snapshots }));
    } else {
        print(&snapshots);
    }
    Ok(ExitCode::SUCCESS)
}

/// A disk as the program that serves it describes it.
pub fn of_disk(path: &Path) -> Result<Value> {
    let (mount, inside) = place::file(path)?;
    place::ask(&mount, &Request::Disk { path: inside })
}

/// A line for each snapshot.
pub fn print(snapshots: &Value) {
    say!("{:24}  {:>10}  snapshot", "created", "size");
    for snapshot in snapshots.as_array().into_iter().flatten() {
        let text = |key: &str| snapshot[key].as_str().unwrap_or("-");
        let size = Size(snapshot["size"].as_u64().unwrap_or(0)).to_string();
        say!("{:24}  {size:>10}  {}", text("created"), text("name"));
    }
}
