//! What a command was pointed at: a source, or a mount.

use std::fs;
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use lunfs_host::control::{self, Request};
use lunfs_host::{HostError, Mount};
use serde_json::Value;

use crate::CouldNotRun;

/// A source that may or may not be mounted, or a mount.
pub enum Place {
    /// An image file or a block device.
    Source(PathBuf),
    /// A mounted volume.
    Mount(Mount),
}

impl Place {
    /// Files and block devices are sources, everything else must be a mount.
    pub fn of(path: &Path) -> Result<Place> {
        // First of all, because a mount that hangs cannot be looked at.
        let mount = control::mount_at(path).map_err(or_silence)?;
        if let Some(mount) = mount.map_or_else(|| control::lies_in(path), |it| Ok(Some(it)))? {
            return Ok(Place::Mount(mount));
        }
        let is_source = fs::metadata(path)
            .is_ok_and(|about| about.is_file() || about.file_type().is_block_device());
        if is_source {
            return Ok(Place::Source(source(path)?));
        }
        Ok(Place::Mount(mount_around(path)?))
    }
}

/// Asks the program that serves a mount. One that does not answer leaves nothing known.
pub fn ask(mount: &Mount, request: &Request) -> Result<Value> {
    control::call(&mount.point, request).map_err(or_silence)
}

fn or_silence(error: HostError) -> anyhow::Error {
    match error.is_silence() {
        true => CouldNotRun(error.sentence()).into(),
        false => error.into(),
    }
}

/// A file on a mount: the mount, and its path there as daemons take it.
pub fn file(path: &Path) -> Result<(Mount, String)> {
    let (mount, inside) = control::file_on_mount(path).map_err(or_silence)?;
    Ok((mount, below_root(&inside)?))
}

/// A name on a mount that need not be there yet, in a directory that is. What it names is not
/// followed if it is a link.
pub fn name_on_mount(path: &Path) -> Result<(Mount, String)> {
    let shown = path.display();
    let name = path.file_name().with_context(|| format!("{shown} is no name of a file"))?;
    let name = name.to_str().context("the path is not UTF-8")?;
    let dir = std::path::absolute(path)?;
    let dir = dir.parent().with_context(|| format!("{shown} is no name of a file"))?;
    let (mount, inside) = file(dir)?;
    let is_in_root = inside.is_empty();
    Ok((mount, if is_in_root { name.to_owned() } else { format!("{inside}/{name}") }))
}

/// A file by its name alone: it may be gone, and its server hang.
pub fn path_on(mount: &Mount, path: &Path) -> Result<String> {
    let name = std::path::absolute(path)?;
    below_root(&mount.root.join(name.strip_prefix(&mount.point)?))
}

fn below_root(inside: &Path) -> Result<String> {
    let path = inside.to_str().context("the path is not UTF-8")?;
    Ok(path.trim_start_matches('/').to_owned())
}

/// A name that need not exist in a directory that does, without links in it: a daemon has a working
/// directory of its own.
pub fn free_name(path: &Path) -> Result<PathBuf> {
    let shown = path.display();
    let name = path.file_name().with_context(|| format!("{shown} is no name of a file"))?;
    let dir = std::path::absolute(path)?;
    let dir = dir.parent().with_context(|| format!("{shown} is no name of a file"))?;
    Ok(source(dir)?.join(name))
}

/// The mount at or around a path.
pub fn mount_around(path: &Path) -> Result<Mount> {
    control::find_mount(path).map_err(or_silence)
}

/// A source by its one name, without links: hosts and tools must mean the same.
pub fn source(path: &Path) -> Result<PathBuf> {
    fs::canonicalize(path).with_context(|| format!("cannot find {}", path.display()))
}
