//! `lunfs disk`: files that can have snapshots and clones, one subcommand for each thing to do.

mod create;
mod import;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use lunfs_host::Mount;
use lunfs_host::control::{self, Request};
use serde_json::{Value, json};

use crate::out::say;
use crate::size::{Change, Size};
use crate::{place, snapshot};

/// Directories below each other that `list` goes down; links are not followed.
const DEPTH_MAX: usize = 256;
/// What guests read and write as a whole.
const SECTOR: u64 = 512;

/// What to do.
#[derive(Args)]
pub struct Options {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Make a disk: empty, or with the contents of an image
    Create(create::Create),
    /// List the disks in a directory and below it
    List(List),
    /// Say what a disk is
    Info(Which),
    /// Make a disk longer, or cut it
    Resize(Resize),
    /// Delete a disk with its snapshots
    Delete(Delete),
}

#[derive(Args)]
struct List {
    /// Directory or mount point; all mounts of this machine if there is none
    dir: Option<PathBuf>,
    /// For scripts
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
struct Which {
    /// Disk on a mounted volume
    disk: PathBuf,
    /// For scripts
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
struct Resize {
    /// Disk on a mounted volume
    disk: PathBuf,
    /// The new size, or how much more or less, as in 20G, +10G or -512M
    #[arg(allow_hyphen_values = true)]
    size: Change,
    /// It may become smaller: what lies behind its new end is lost
    #[arg(long)]
    shrink: bool,
}

#[derive(Args)]
struct Delete {
    /// Disk on a mounted volume
    disk: PathBuf,
}

/// Asks the program that serves the mount.
pub fn run(options: &Options) -> Result<ExitCode> {
    match &options.command {
        Command::Create(options) => create::run(options),
        Command::List(options) => list(options),
        Command::Info(options) => describe(options),
        Command::Resize(options) => resize(options),
        Command::Delete(options) => delete(options),
    }
}

/// A size that a guest can have as a disk.
fn checked(size: u64) -> Result<u64> {
    if size == 0 || !size.is_multiple_of(SECTOR) {
        bail!(
            "a disk has whole sectors of {SECTOR} bytes; {size} bytes are none; nothing was done"
        );
    }
    Ok(size)
}

fn describe(Which { disk, json }: &Which) -> Result<ExitCode> {
    let mut told = snapshot::of_disk(disk)?;
    if *json {
        told["path"] = absolute(disk)?;
        say!("{told}");
        return Ok(ExitCode::SUCCESS);
    }
    say!("{:14}{}", "disk", disk.display());
    say!("{:14}{}", "size", bytes(&told["size"]));
    say!("{:14}{}", "allocated", bytes(&told["allocated"]));
    let snapshots = &told["snapshots"];
    say!("{:14}{}", "snapshots", snapshots.as_array().map_or(0, Vec::len));
    if snapshots.as_array().is_some_and(|all| !all.is_empty()) {
        snapshot::print(snapshots);
    }
    Ok(ExitCode::SUCCESS)
}

fn resize(Resize { disk, size, shrink }: &Resize) -> Result<ExitCode> {
    let (mount, path) = place::file(disk)?;
    let told = place::ask(&mount, &Request::Disk { path: path.clone() })?;
    let now = told["size"].as_u64().context("no size in the answer")?;
    let shown = disk.display();
    let size = size.of(now).with_context(|| {
        format!("{shown} has {}: so much less or more is no size; nothing was done", Size(now))
    })?;
    let size = checked(size)?;
    if size < now && !shrink {
        bail!(
            "{shown} has {}: all that lies behind {} would be lost; nothing was done. Make its \
             file systems and partitions smaller first, then give --shrink",
            Size(now),
            Size(size)
        );
    }
    place::ask(&mount, &Request::ResizeDisk { path, size })?;
    say!("{shown} has {} now, it had {}", Size(size), Size(now));
    Ok(ExitCode::SUCCESS)
}

fn delete(Delete { disk }: &Delete) -> Result<ExitCode> {
    // A link would be left to nothing, so it is not followed.
    let (mount, path) = place::name_on_mount(disk)?;
    let told = place::ask(&mount, &Request::DeleteDisk { path })?;
    let shown = disk.display();
    match (told["names_left"].as_u64(), told["snapshots"].as_u64()) {
        (Some(0) | None, Some(0) | None) => say!("{shown} is deleted"),
        (Some(0) | None, Some(1)) => say!("{shown} is deleted, with its snapshot"),
        (Some(0) | None, Some(all)) => say!("{shown} is deleted, with its {all} snapshots"),
        _ => say!("{shown} is deleted; the disk has another name and stays"),
    }
    Ok(ExitCode::SUCCESS)
}

fn list(List { dir, json }: &List) -> Result<ExitCode> {
    let places = match dir {
        Some(dir) => vec![(std::path::absolute(dir)?, place::file(dir)?)],
        None => mounts()?,
    };
    let (mut disks, mut is_whole) = (Vec::new(), true);
    for (shown, (mount, path)) in places {
        match below(&mount, path, &shown) {
            Ok(found) => disks.extend(found),
            Err(e) if dir.is_some() => return Err(e),
            // One that is dead or hangs does not hide the others.
            Err(e) => {
                eprintln!("lunfs: {e:#}");
                is_whole = false;
            }
        }
    }
    is_whole &= disks.iter().all(|disk| disk["error"].is_null());
    if *json {
        say!("{}", json!({ "disks": disks }));
    } else {
        say!("{:>10}  {:>10}  {:>9}  disk", "size", "allocated", "snapshots");
        disks.iter().for_each(print);
    }
    Ok(if is_whole { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn mounts() -> Result<Vec<(PathBuf, (Mount, String))>> {
    let mounts = control::mounts_here()?;
    let places = mounts.into_iter().map(|mount| {
        let root = place::path_on(&mount, &mount.point)?;
        Ok((mount.point.clone(), (mount, root)))
    });
    places.collect()
}

/// All disks below a directory, each with its path.
fn below(mount: &Mount, path: String, shown: &Path) -> Result<Vec<Value>> {
    let mut disks = Vec::new();
    let mut open = vec![Directory { path, shown: shown.to_owned(), depth: 0 }];
    while let Some(dir) = open.pop() {
        let mut next = Some(0);
        while let Some(after) = next {
            let request = Request::Disks { path: dir.path.clone(), after };
            let told = place::ask(mount, &request)?;
            disks.extend(entries(&told["disks"]).map(|disk| dir.beside(disk)));
            let names = entries(&told["directories"]).filter_map(Value::as_str);
            open.extend(names.filter_map(|name| dir.inside(name)));
            next = told["next"].as_u64();
        }
    }
    disks.sort_by(|one, other| one["path"].as_str().cmp(&other["path"].as_str()));
    Ok(disks)
}

fn entries(list: &Value) -> impl Iterator<Item = &Value> {
    list.as_array().into_iter().flatten()
}

/// A directory to be looked into.
struct Directory {
    /// Below the root of the volume.
    path: String,
    /// As it is called here.
    shown: PathBuf,
    depth: usize,
}

impl Directory {
    /// What is said of a disk in it, with the disk's whole path.
    fn beside(&self, disk: &Value) -> Value {
        let mut disk = disk.clone();
        let name = disk["path"].as_str().unwrap_or_default();
        disk["path"] = self.shown.join(name).display().to_string().into();
        disk
    }

    /// A directory in it, unless that is too deep.
    fn inside(&self, name: &str) -> Option<Directory> {
        let path = format!("{}/{name}", self.path);
        let inside = Directory { path, shown: self.shown.join(name), depth: self.depth + 1 };
        (inside.depth <= DEPTH_MAX).then_some(inside)
    }
}

fn print(disk: &Value) {
    let path = disk["path"].as_str().unwrap_or_default();
    if let Some(why) = disk["error"].as_str() {
        eprintln!("lunfs: {path}: {why}");
        return;
    }
    let (size, allocated) = (bytes(&disk["size"]), bytes(&disk["allocated"]));
    say!("{size:>10}  {allocated:>10}  {:>9}  {path}", disk["snapshots"].to_string());
}

fn bytes(value: &Value) -> String {
    Size(value.as_u64().unwrap_or(0)).to_string()
}

fn absolute(path: &Path) -> Result<Value> {
    Ok(std::path::absolute(path)?.display().to_string().into())
}
