//! `lunfs export`: offers a file of a mounted volume as a disk, one subcommand for each protocol.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Args, Subcommand};
use lunfs_host::control::Request;
use lunfs_host::export::Protocol;

use crate::out::say;
use crate::place;

/// How clients will speak to it.
#[derive(Args)]
pub struct Options {
    #[command(subcommand)]
    protocol: Command,
}

#[derive(Subcommand)]
enum Command {
    /// As a network block device, over a socket of this machine
    Nbd(Nbd),
}

/// Which file, and where.
#[derive(Args)]
struct Nbd {
    /// File on a mounted volume
    path: PathBuf,
    /// Where clients connect: a name that is free, or a socket that was left behind
    #[arg(long)]
    socket: PathBuf,
    /// Clients may only read
    #[arg(long)]
    read_only: bool,
    /// For scripts
    #[arg(long)]
    json: bool,
}

/// Asks the program that serves the mount; returns when clients may connect.
pub fn run(options: &Options) -> Result<ExitCode> {
    let Command::Nbd(nbd) = &options.protocol;
    let (mount, path) = place::file(&nbd.path)?;
    let socket = place::free_name(&nbd.socket)?;
    let request = Request::Export {
        protocol: Protocol::Nbd,
        path,
        socket: text(&socket)?,
        read_only: nbd.read_only,
    };
    let told = place::ask(&mount, &request)?;
    if nbd.json {
        say!("{told}");
        return Ok(ExitCode::SUCCESS);
    }
    let (path, socket) = (nbd.path.display(), socket.display());
    let how = if told["read_only"] == true { ", read-only" } else { "" };
    say!("{path} is exported at nbd+unix:///?socket={socket}{how}");
    Ok(ExitCode::SUCCESS)
}

fn text(path: &Path) -> Result<String> {
    Ok(path.to_str().context("the name of the socket is not UTF-8")?.to_owned())
}
