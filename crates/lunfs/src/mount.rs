//! `lunfs mount`: starts what a host consists of, and returns when files can be used.
//!
//! ```text
//!  lunfs mount             lunfs mount --detached         lunfs daemon
//!  (what you typed) ----->  the parent ----------------->  the daemon: serves files
//!      |            starts      |              starts         |
//!      |                        | <-- slot, then "ready" -----+
//!      | <---- "mounted" -------+
//!    exit 0                     | waits; when the daemon has died: its last word
//! ```
//!
//! With `--foreground` what you typed is the parent. Parent and daemon are then one process group,
//! led by the parent: killing the group is the death of a machine.

mod point;

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};

use anyhow::{Context, Result, bail};
use clap::Args;
use lunfs_host::parent::{self, Ended};
use lunfs_host::{Signals, format_guard};
use rustix::process::{Pid, Signal};

use crate::out::say;
use crate::{logging, name, place, runtime};

/// What the daemon says once files can be used.
pub const READY: &str = "ready";

/// What to mount, where, and as whom.
#[derive(Args)]
pub struct Options {
    /// Image file or block device with a volume
    source: PathBuf,
    /// Empty directory (see --nonempty), outside of other mounts of this volume
    dir: PathBuf,
    /// Name of this host on the volume, one line [default: the machine's]
    #[arg(long, value_parser = name::host)]
    host: Option<String>,
    /// Stay here; parent and daemon are one process group
    #[arg(long)]
    foreground: bool,
    /// Refuse what would change files. The storage must be writable all the same: a host writes its
    /// pulse, its locks and its journal
    #[arg(long)]
    read_only: bool,
    /// Mount also where the directory holds something, which is hidden until the unmount
    #[arg(long)]
    nonempty: bool,
    /// Log to this file, in a directory that exists [default: /run/lunfs/log/HOST-PID.jsonl]
    #[arg(long)]
    log: Option<PathBuf>,
    /// We are the parent in the background
    #[arg(long, hide = true, conflicts_with = "foreground")]
    detached: bool,
}

/// Mounts, and waits for the end of the mount where it stays in the foreground.
pub fn run(options: &Options) -> Result<ExitCode> {
    needs()?;
    point::must_be_free(&options.dir, &place::source(&options.source)?, options.nonempty)?;
    if options.foreground {
        lead_group()?;
        return be_parent(options);
    }
    if options.detached {
        rustix::process::setsid().context("cannot leave the terminal")?;
        return be_parent(options);
    }
    start_detached(options)
}

fn needs() -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        bail!("mounting needs root; nothing was done");
    }
    let fuse = std::fs::File::options().read(true).write(true).open("/dev/fuse");
    fuse.map(drop).context("/dev/fuse cannot be used; load the module with `modprobe fuse`")
}

/// Makes this process the leader of a group, if it is not one.
fn lead_group() -> Result<()> {
    if rustix::process::getpgrp() == rustix::process::getpid() {
        return Ok(());
    }
    rustix::process::setpgid(None, None).context("cannot make a process group")
}

/// Starts the parent in the background and passes on what it says.
fn start_detached(options: &Options) -> Result<ExitCode> {
    let mut parent = Command::new(std::env::current_exe().context("where is lunfs?")?)
        .arg("mount")
        .arg("--detached")
        .args(options.arguments())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start the parent")?;
    let mut line = String::new();
    BufReader::new(parent.stdout.take().context("stdout is piped")?).read_line(&mut line)?;
    if line.is_empty() {
        // It has said why on our stderr.
        let status = parent.wait()?;
        return Ok(ExitCode::from(status.code().and_then(|c| u8::try_from(c).ok()).unwrap_or(1)));
    }
    say!("{}", line.trim_end());
    Ok(ExitCode::SUCCESS)
}

/// Starts the daemon, says when files can be used, and outlives it.
fn be_parent(options: &Options) -> Result<ExitCode> {
    let source = place::source(&options.source)?;
    // Hosts that reach the same bytes under another name do not see our marks, nor we theirs.
    if let Some(user) = format_guard::foreign_user(&source)? {
        bail!("{} is {user}; nothing was mounted", source.display());
    }
    let host = match &options.host {
        Some(name) => name.clone(),
        None => machine_name()?,
    };
    let log = match &options.log {
        Some(log) => std::path::absolute(log).context("cannot tell where the log is")?,
        None => logging::default_path(&host)?,
    };
    point::must_not_hide(&options.dir, &log)?;
    logging::start(&log, options.foreground)?;
    let mut daemon = start_daemon(options, &source, &host, &log)?;
    pass_signals_to(&daemon)?;
    // It closes when we die, whatever we die of: then the daemon knows (daemon.rs).
    let _alive = daemon.stdin.take();

    let mut said = BufReader::new(daemon.stdout.take().context("stdout is piped")?);
    let (mut slot, mut ready) = (String::new(), String::new());
    said.read_line(&mut slot)?;
    said.read_line(&mut ready)?;
    let was_mounted = ready.trim() == READY;
    if was_mounted {
        let (source, dir) = (source.display(), options.dir.display());
        say!("mounted {source} on {dir} as {host}, log {}", log.display());
        std::io::stdout().flush()?;
        if options.detached {
            leave_terminal()?;
        }
    }
    let ended = parent::watch(&mut daemon, &source, slot.as_bytes())?;
    tell(&ended, was_mounted, &host)
}

/// The daemon is another start of this program: no memory and no descriptor is shared with it.
fn start_daemon(options: &Options, source: &Path, host: &str, log: &Path) -> Result<Child> {
    let mut daemon = Command::new(std::env::current_exe().context("where is lunfs?")?);
    daemon.arg("daemon").arg(source).arg(&options.dir).args(["--host", host]);
    daemon.arg("--log").arg(log);
    if options.read_only {
        daemon.arg("--read-only");
    }
    if options.detached {
        daemon.arg("--detached");
    }
    daemon.stdin(Stdio::piped()).stdout(Stdio::piped());
    daemon.spawn().context("cannot start the daemon")
}

/// A signal to end is for the daemon, which unmounts; the parent ends when it has.
fn pass_signals_to(daemon: &Child) -> Result<()> {
    let daemon = Pid::from_child(daemon);
    let (ready, is_ready) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        runtime::block_on(async move {
            let mut signals = Signals::listen()?;
            ready.send(())?;
            loop {
                signals.recv().await;
                // It may have ended; then there is nothing to unmount.
                let _ = rustix::process::kill_process(daemon, Signal::TERM);
            }
            #[expect(unreachable_code, reason = "names the type of the block's result")]
            Ok(())
        })
    });
    is_ready.recv().context("cannot listen to signals")
}

fn tell(ended: &Ended, was_mounted: bool, host: &str) -> Result<ExitCode> {
    match ended {
        Ended::Clean if was_mounted => Ok(ExitCode::SUCCESS),
        // The daemon itself has said why.
        Ended::Clean | Ended::NeverJoined(_) => Ok(ExitCode::FAILURE),
        Ended::NothingToSay(_) if !was_mounted => Ok(ExitCode::FAILURE),
        Ended::LastWord => bail!(
            "the daemon of {host} died; other hosts know, and go on. All that was made durable is \
             safe; unmount the dead mount and mount again"
        ),
        Ended::NothingToSay(why) => bail!(
            "the daemon of {host} ended, and there is nothing to tell the other hosts: {why}. All \
             that was made durable is safe; unmount the dead mount and mount again"
        ),
    }
}

/// Gives up the terminal that the first command may still be read from.
pub fn leave_terminal() -> Result<()> {
    let nowhere = std::fs::File::options().read(true).write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdout(&nowhere)?;
    rustix::stdio::dup2_stderr(&nowhere)?;
    Ok(())
}

fn machine_name() -> Result<String> {
    let path = "/proc/sys/kernel/hostname";
    let name = std::fs::read_to_string(path)
        .with_context(|| format!("cannot read {path}; give a name with --host"))?;
    let name = name.trim();
    name::host(name).with_context(|| format!("give a name with --host: this machine's, {name:?}"))
}

impl Options {
    /// The arguments that make another start of this program do the same.
    fn arguments(&self) -> Vec<std::ffi::OsString> {
        let mut arguments = Vec::new();
        if let Some(host) = &self.host {
            arguments.extend(["--host".into(), host.into()]);
        }
        if let Some(log) = &self.log {
            arguments.extend(["--log".into(), log.into()]);
        }
        if self.read_only {
            arguments.push("--read-only".into());
        }
        if self.nonempty {
            arguments.push("--nonempty".into());
        }
        // Names may begin with a dash.
        arguments.extend(["--".into(), self.source.clone().into(), self.dir.clone().into()]);
        arguments
    }
}
