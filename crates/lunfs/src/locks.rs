//! `lunfs locks`: what a mounted host has locked.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Args;
use lunfs_host::control::Request;
use serde_json::{Value, json};

use crate::out::say;
use crate::place;

/// Which mount, and of which file.
#[derive(Args)]
pub struct Options {
    /// Mount point
    dir: PathBuf,
    /// Only the lock of this file, as a path below the mount point
    path: Option<PathBuf>,
    /// For scripts
    #[arg(long)]
    json: bool,
}

/// Prints a line for each lock.
pub fn run(options: &Options) -> Result<ExitCode> {
    let mount = place::mount_around(&options.dir)?;
    let path = options.path.as_deref().map(|path| below(path, &mount.point)).transpose()?;
    let locks = place::ask(&mount, &Request::Locks { path })?;
    if options.json {
        say!("{}", json!({ "locks": locks }));
        return Ok(ExitCode::SUCCESS);
    }
    say!("{:>12}  {:14} {:>10}  generation", "block", "mode", "holder");
    let rows = locks.as_array().into_iter().flatten();
    for lock in rows.clone() {
        let text = |key: &str| match &lock[key] {
            Value::Null => "-".to_owned(),
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        let (mode, holder, generation) = (text("mode"), text("holder"), text("generation"));
        say!("{:>12}  {mode:14} {holder:>10}  {generation}", text("address"));
    }
    if rows.count() == 0 {
        say!("this host holds no lock there");
    }
    Ok(ExitCode::SUCCESS)
}

/// A path below the mount point, also where the whole path was given.
fn below(path: &Path, point: &Path) -> Result<String> {
    let inside = path.strip_prefix(point).unwrap_or(path);
    Ok(inside.to_str().context("the path is not UTF-8")?.to_owned())
}
