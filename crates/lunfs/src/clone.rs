//! `lunfs clone`: a disk that begins as another one is now, or was at a snapshot.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::Args;
use lunfs_host::control::Request;

use crate::name::DiskAt;
use crate::out::say;
use crate::place;

/// Of what, and where.
#[derive(Args)]
pub struct Options {
    /// Disk on a mounted volume, as it is now, or one of its snapshots. A disk whose own name has
    /// an @ is named with one behind it
    #[arg(value_name = "DISK[@NAME]")]
    source: DiskAt,
    /// Name of the new disk, on the same mount
    path: PathBuf,
    /// For scripts
    #[arg(long)]
    json: bool,
}

/// Both go their own ways afterwards; nothing is copied until one of them writes.
pub fn run(options: &Options) -> Result<ExitCode> {
    let DiskAt { disk, snapshot } = &options.source;
    let (from, source) = place::file(disk)?;
    let (mount, path) = place::name_on_mount(&options.path)?;
    if from.device != mount.device {
        bail!(
            "{} and {} are on different mounts; nothing was done: a clone is made on the mount \
             of its source, and every host of the volume sees it",
            disk.display(),
            options.path.display()
        );
    }
    let request = Request::CloneDisk { source, snapshot: snapshot.clone(), path };
    let mut told = place::ask(&mount, &request)?;
    if options.json {
        told["path"] = std::path::absolute(&options.path)?.display().to_string().into();
        say!("{told}");
        return Ok(ExitCode::SUCCESS);
    }
    let (path, disk) = (options.path.display(), disk.display());
    match snapshot {
        Some(name) => say!("{path} begins as {disk}@{name}"),
        None => say!("{path} begins as {disk} is now"),
    }
    Ok(ExitCode::SUCCESS)
}
