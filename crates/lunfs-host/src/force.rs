//! Taking a mount away within a bounded time, whatever its daemon does.
//!
//! ```text
//!  told to unmount --- answers --------------------------------------> what it says
//!        |
//!   deadline + LEAVE_MAX: silent
//!        v
//!  connection aborted, mount detached --- answers, or its process ends --> taken away
//!        |
//!   LEAVE_MAX: still there
//!        v
//!     SIGKILL --- ends ------> killed: its parent says so on the volume, others take over
//!        |
//!   KILL_MAX: waits in the kernel for its device; it ends when that answers
//! ```
//!
//! A daemon may wait for what never comes (a lock or slot that cannot be read), be stopped, or
//! hang in the device. Aborting the kernel's connection first gives its users an error at once:
//! without it those in the middle of an operation would wait on, and could not even be killed.
//! Killing it is the death of a host as any other: what was made durable is safe.

use std::fs;
use std::io::ErrorKind;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde_json::Value;

use crate::control::{Connection, Request, Response};
use crate::error::{HostError, Result};
use crate::mount_table::{Mount, mounted_at, mounts};

/// How long a daemon may take to leave, beyond the deadline of its users, and once more after
/// its mount was taken away.
const LEAVE_MAX: Duration = Duration::from_secs(5);
/// How long a killed process may take to end; longer takes one that waits for a device.
const KILL_MAX: Duration = Duration::from_secs(5);
/// How long a look at a mount may take before its server counts as silent.
const LOOK_MAX: Duration = Duration::from_secs(1);
/// How long a program that was killed may hold its mount: until its I/O has landed.
const DYING_MAX: Duration = Duration::from_secs(10);

/// Where the kernel shows its FUSE connections.
const CONNECTIONS: &str = "/sys/fs/fuse/connections";

/// How a mount ended by force.
#[derive(Debug, PartialEq, Eq)]
pub enum Forced {
    /// Its daemon made all durable and left. Names whom it took the mount from.
    Clean(Vec<String>),
    /// Its daemon was dead already.
    WasDead,
    /// Its daemon left, and says what was lost or left behind.
    Unclean(String),
    /// Its daemon did not leave in time; the mount is gone.
    TakenAway(Daemon),
}

/// What became of a daemon that did not leave in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Daemon {
    /// It ended by itself once its mount was gone.
    Ended(u32),
    /// It was killed.
    Killed(u32),
    /// It was killed and waits in the kernel, for a device that does not answer.
    Hangs(u32),
    /// Nobody listens for the mount; if its daemon runs, it has lost its mount.
    Unknown,
}

/// Whether the kernel knows that nobody serves the mount any more. A server that hangs is none
/// that is gone.
pub fn is_dead(mount: &Mount) -> bool {
    let (say, said) = std::sync::mpsc::channel();
    let point = mount.point.clone();
    // The look itself may never end; then this thread ends with the program.
    std::thread::spawn(move || say.send(rustix::fs::statfs(&point).err()));
    let mut looked = said.recv_timeout(LOOK_MAX);
    if looked.is_err() && Connection::open(mount).is_err_and(|e| is_refused(&e)) {
        looked = said.recv_timeout(DYING_MAX);
    }
    looked == Ok(Some(Errno::NOTCONN))
}

/// Whether somebody listens for the mount, be it one that hangs. Nothing on the mount is asked: who
/// waits there may not even be killed.
pub fn has_listener(mount: &Mount) -> bool {
    match Connection::open(mount) {
        Ok(_) => true,
        Err(e) => e.is_silence(),
    }
}

/// The socket is there and nobody listens: its program is dead, or about to be.
fn is_refused(error: &HostError) -> bool {
    error.kind() == Some(ErrorKind::ConnectionRefused)
}

/// Unmounts; users have until `deadline`, the daemon a bounded time more.
pub fn unmount(mount: &Mount, deadline: Duration) -> Result<Forced> {
    let mut daemon = match Reached::of(mount) {
        Ok(daemon) => daemon,
        Err(e) if e.kind() == Some(ErrorKind::PermissionDenied) => return Err(e),
        Err(e) => {
            tracing::warn!(event = "force", "{}", e.sentence());
            take_away(mount)?;
            let was_dead = is_refused(&e);
            return Ok(if was_dead { Forced::WasDead } else { Forced::TakenAway(Daemon::Unknown) });
        }
    };
    let deadline_ms = u64::try_from(deadline.as_millis()).unwrap_or(u64::MAX);
    let request = Request::Unmount { force: true, deadline_ms };
    let answer = daemon.connection.ask(&request, deadline.saturating_add(LEAVE_MAX));
    let is_gone = is_detached(mount)?;
    match answer {
        Ok(Response::Ok(value)) => {
            // What was named is a copy of the mount that it served, and is dead now.
            if !is_gone {
                take_away(mount)?;
            }
            return Ok(clean(&value));
        }
        Ok(Response::Error(why)) if is_gone => return Ok(Forced::Unclean(why)),
        Ok(Response::Refused(why)) => return Err(HostError::new(why)),
        // It could not take the mount away, or did not answer: then we do.
        Ok(_) | Err(_) => {}
    }
    take_away(mount)?;
    // With its users gone it may still come to an end.
    Ok(match daemon.connection.answer(LEAVE_MAX) {
        Ok(Response::Ok(value)) => clean(&value),
        Ok(Response::Error(why) | Response::Refused(why)) => Forced::Unclean(why),
        Err(_) => Forced::TakenAway(daemon.end()?),
    })
}

fn clean(value: &Value) -> Forced {
    let names = value["taken_from"].as_array().into_iter().flatten();
    Forced::Clean(names.filter_map(|name| name.as_str().map(str::to_owned)).collect())
}

/// A daemon that listens.
struct Reached {
    connection: Connection,
    pid: Pid,
    process: OwnedFd,
}

impl Reached {
    /// The process is opened while it holds its end of the connection: its number is its own.
    fn of(mount: &Mount) -> Result<Reached> {
        let connection = Connection::open(mount)?;
        let pid = connection.server()?;
        let process = pidfd_open(pid, PidfdFlags::empty())
            .map_err(|e| HostError::io(format!("cannot open process {pid:?}"), e))?;
        connection.must_be_open()?;
        Ok(Reached { connection, pid, process })
    }

    /// Ends it, by a kill if need be.
    fn end(&self) -> Result<Daemon> {
        let pid = u32::try_from(self.pid.as_raw_nonzero().get()).unwrap_or_default();
        if has_ended_within(&self.process, Duration::ZERO)? {
            return Ok(Daemon::Ended(pid));
        }
        match pidfd_send_signal(&self.process, Signal::KILL) {
            Ok(()) | Err(Errno::SRCH) => {}
            Err(e) => return Err(HostError::io(format!("cannot kill process {pid}"), e)),
        }
        let has_ended = has_ended_within(&self.process, KILL_MAX)?;
        Ok(if has_ended { Daemon::Killed(pid) } else { Daemon::Hangs(pid) })
    }
}

/// A pidfd can be read from when its process has ended, also before anybody waited for it.
fn has_ended_within(process: &OwnedFd, limit: Duration) -> Result<bool> {
    let mut polled = [PollFd::new(process, PollFlags::IN)];
    let limit = Timespec::try_from(limit).expect("a short time");
    match poll(&mut polled, Some(&limit)) {
        Ok(ready) => Ok(ready == 1),
        Err(e) => Err(HostError::io("cannot wait for a process", e)),
    }
}

fn is_detached(mount: &Mount) -> Result<bool> {
    Ok(!mounts()?.iter().any(|other| other.id == mount.id))
}

/// Ends every request that waits, then removes the mount also from under its users.
fn take_away(mount: &Mount) -> Result<()> {
    if let Err(e) = abort(mount) {
        // Unmounting by force aborts, too, once the kernel has found the mount point.
        tracing::warn!(event = "force", "the connection could not be aborted: {e}");
    }
    let point = mount.point.display();
    match mounted_at(&mount.point)? {
        Some(top) if top.id == mount.id => {}
        // Of what covers it nothing is known, and nobody can reach ours.
        Some(_) => return Err(HostError::new(format!("another mount covers the one at {point}"))),
        None => return Ok(()),
    }
    match rustix::mount::unmount(&mount.point, UnmountFlags::FORCE | UnmountFlags::DETACH) {
        // Invalid, absent: somebody else has just removed it.
        Ok(()) | Err(Errno::INVAL | Errno::NOENT) => Ok(()),
        Err(e) => Err(HostError::io(format!("cannot take away the mount at {point}"), e)),
    }
}

/// Tells the kernel that no request of this connection will be answered.
fn abort(mount: &Mount) -> std::io::Result<()> {
    let number = (u64::from(mount.device.0) << 20) | u64::from(mount.device.1);
    let abort = format!("{CONNECTIONS}/{number}/abort");
    if !fs::exists(&abort)? {
        // Absent where nobody has mounted the kernel's control file system yet.
        let none = None::<&std::ffi::CStr>;
        rustix::mount::mount("fusectl", CONNECTIONS, "fusectl", MountFlags::empty(), none)?;
    }
    fs::write(abort, "1")
}
