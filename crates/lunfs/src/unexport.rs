//! `lunfs unexport`: ends the export at a socket, or all exports of a file.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::Args;
use lunfs_host::Mount;
use lunfs_host::control::{self, Request};

use crate::out::say;
use crate::{exports, place};

/// Which export.
#[derive(Args)]
pub struct Options {
    /// Socket of an export, or an exported file
    what: PathBuf,
    /// Even if it has clients: they lose the connection
    #[arg(long)]
    force: bool,
}

/// Returns when nothing that its clients asked for is under way.
pub fn run(options: &Options) -> Result<ExitCode> {
    let force = options.force;
    let of_file = match control::lies_in(&options.what)? {
        // By the name alone: the file may be gone.
        Some(mount) => place::path_on(&mount, &options.what).map(|path| (mount, path)),
        None => place::file(&options.what),
    };
    let (mount, request) = match of_file {
        Ok((mount, path)) => (mount, Request::Unexport { socket: None, path: Some(path), force }),
        Err(_) => {
            let (mount, socket) = at_socket(&options.what)?;
            (mount, Request::Unexport { socket: Some(socket), path: None, force })
        }
    };
    place::ask(&mount, &request)?;
    say!("{} is not exported any more", options.what.display());
    Ok(ExitCode::SUCCESS)
}

/// The mount that has an export there.
fn at_socket(path: &Path) -> Result<(Mount, String)> {
    let socket = place::free_name(path)?;
    let socket = socket.to_str().context("the name of the socket is not UTF-8")?;
    let mut silent = Vec::new();
    for mount in control::mounts_here()? {
        match exports::of_mount(&mount) {
            Ok(found) if found.iter().any(|export| export["socket"] == socket) => {
                return Ok((mount, socket.to_owned()));
            }
            Ok(_) => {}
            Err(e) => silent.push(format!("; not known of one mount: {e:#}")),
        }
    }
    bail!(
        "{} is neither an export nor on a mounted lunfs volume{}",
        path.display(),
        silent.concat()
    )
}
