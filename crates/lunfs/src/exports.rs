//! `lunfs exports`: what this machine's mounts export.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use lunfs_host::Mount;
use lunfs_host::control::{self, Request};
use serde_json::{Value, json};

use crate::out::say;
use crate::place;

/// Of which mount.
#[derive(Args)]
pub struct Options {
    /// Mount point; all of this machine if there is none
    dir: Option<PathBuf>,
    /// For scripts
    #[arg(long)]
    json: bool,
}

/// Prints a line for each export.
pub fn run(options: &Options) -> Result<ExitCode> {
    let mounts = match &options.dir {
        Some(dir) => vec![place::mount_around(dir)?],
        None => control::mounts_here()?,
    };
    let mut exports = Vec::new();
    for mount in &mounts {
        match of_mount(mount) {
            Ok(found) => exports.extend(found),
            Err(e) if options.dir.is_some() => return Err(e),
            // One that is dead or hangs does not hide the others.
            Err(e) => eprintln!("lunfs: {e:#}"),
        }
    }
    if options.json {
        say!("{}", json!({ "exports": exports }));
        return Ok(ExitCode::SUCCESS);
    }
    say!("{:8} {:10} {:>7}  {:40} file", "protocol", "access", "clients", "socket");
    for export in &exports {
        print(export);
    }
    Ok(ExitCode::SUCCESS)
}

/// The exports of a mount, each with the mount point.
pub fn of_mount(mount: &Mount) -> Result<Vec<Value>> {
    let told = place::ask(mount, &Request::Exports)?;
    let mut exports = told.as_array().cloned().unwrap_or_default();
    for export in &mut exports {
        export["mountpoint"] = mount.point.display().to_string().into();
    }
    Ok(exports)
}

fn print(export: &Value) {
    let text = |key: &str| export[key].as_str().unwrap_or("-").to_owned();
    let access = if export["read_only"] == true { "read-only" } else { "read-write" };
    let file = PathBuf::from(text("mountpoint")).join(text("path").trim_start_matches('/'));
    say!(
        "{:8} {access:10} {:>7}  {:40} {}",
        text("protocol"),
        export["clients"].to_string(),
        text("socket"),
        file.display()
    );
}
