//! The fence of images and of devices used by one machine: marks and pidfds.
//!
//! Every program holds the life mark of its slot on the open file description that carries its
//! I/O (ofd.rs). So a free mark means: the program is gone, and all it submitted has landed or
//! never will. A held mark of a silent program means: verify that its process is the one the slot
//! describes, kill it, and wait until the mark is free.
//!
//! ```text
//! mark free -> its process is gone: fenced (of a device: if it was on this machine)
//! mark held -> same boot, machine, pid namespace?  no: refused
//!           -> pidfd                               gone: wait for the mark
//!           -> same start time?                    no: refused
//!           -> SIGKILL -> wait for the mark        free: fenced; not within 10 s: refused
//! ```
//!
//! Invariant: nothing is killed whose start time was not read after its pidfd was opened.

use std::cell::Cell;
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use lunfs_core::Identity;
use lunfs_core::env::{Answer, Fence, FenceError, Life};
use lunfs_format::{Pulse, SlotNo};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::clock::boottime;
use crate::disk::{Source, SourceKind};
use crate::identity::process_start;
use crate::ofd;

/// How often the mark of a killed program is looked at.
const POLL: Duration = Duration::from_millis(2);
/// How long a killed program may take to end and its I/O to land.
const DRAIN_MAX: Duration = Duration::from_secs(10);

/// The fence by life marks and pidfds.
pub struct ImageFence {
    inner: Rc<Inner>,
}

struct Inner {
    source: Arc<Source>,
    identity: Identity,
    own: Cell<Option<SlotNo>>,
    drain_max: Duration,
}

impl ImageFence {
    /// A fence for the program `identity`, whose I/O goes through `source`.
    pub fn new(source: Arc<Source>, identity: Identity) -> ImageFence {
        ImageFence::with_drain_max(source, identity, DRAIN_MAX)
    }

    fn with_drain_max(source: Arc<Source>, identity: Identity, drain_max: Duration) -> ImageFence {
        let own = Cell::new(None);
        ImageFence { inner: Rc::new(Inner { source, identity, own, drain_max }) }
    }
}

impl Fence for ImageFence {
    fn enter(&self, slot: SlotNo) -> Result<bool, FenceError> {
        let taken = ofd::try_lock(&*self.inner.source, life_byte(slot))
            .map_err(|e| FenceError(format!("cannot take the life mark of slot {slot}: {e}")))?;
        if taken {
            self.inner.own.set(Some(slot));
        }
        Ok(taken)
    }

    fn leave(&self, slot: SlotNo) {
        if let Err(e) = ofd::unlock(&*self.inner.source, life_byte(slot)) {
            tracing::warn!(event = "life_mark", %slot, "cannot give the life mark back: {e}");
        }
        if self.inner.own.get() == Some(slot) {
            self.inner.own.set(None);
        }
    }

    /// Speaks for programs of this boot of this machine only: the core asks for no others. (A
    /// host of another machine leaves no mark here.)
    fn life(&self, slot: SlotNo) -> Life {
        match self.inner.is_marked(slot) {
            Ok(true) => Life::Present,
            Ok(false) => Life::Gone,
            Err(e) => {
                tracing::warn!(event = "life_mark", %slot, "cannot look at the life mark: {e}");
                Life::Unknown
            }
        }
    }

    fn fence(&self, victim: &Pulse) -> Answer<Result<(), FenceError>> {
        let (inner, victim) = (Rc::clone(&self.inner), victim.clone());
        Box::pin(async move {
            let outcome = inner.fence(&victim).await;
            let (slot, pid) = (victim.slot, victim.pid);
            match &outcome {
                Ok(()) => tracing::info!(event = "fenced", %slot, pid, "the host is gone"),
                Err(e) => tracing::warn!(event = "fence_refused", %slot, pid, "{e}"),
            }
            outcome
        })
    }

    fn ended(&self, victim: &Pulse) -> Answer<Result<(), FenceError>> {
        let (inner, victim) = (Rc::clone(&self.inner), victim.clone());
        Box::pin(async move {
            inner.judge_free_mark(&victim)?;
            inner.wait_for_end(&victim).await
        })
    }

    fn method(&self) -> &'static str {
        match self.inner.source.kind() {
            SourceKind::Image => "image file",
            SourceKind::BlockDevice => "block device of one machine",
        }
    }
}

/// Where the life mark of a slot is.
pub(crate) fn life_byte(slot: SlotNo) -> u64 {
    ofd::LIFE_BASE + u64::from(slot.0)
}

impl Inner {
    /// Does a program run this slot?
    fn is_marked(&self, slot: SlotNo) -> io::Result<bool> {
        if self.own.get() == Some(slot) {
            return Ok(true);
        }
        Ok(ofd::held_elsewhere(&*self.source, life_byte(slot), 1)?.is_some())
    }

    async fn fence(&self, victim: &Pulse) -> Result<(), FenceError> {
        let slot = victim.slot;
        let looked = |e| FenceError(format!("cannot look at the life mark of slot {slot}: {e}"));
        if self.own.get() == Some(slot) {
            return Err(FenceError(format!("slot {slot} is this program's own")));
        }
        if !self.is_marked(slot).map_err(looked)? {
            self.judge_free_mark(victim)?;
            return self.wait_for_end(victim).await;
        }
        self.check_kin(victim)?;
        if let Some(process) = open_verified(victim)? {
            tracing::warn!(event = "kill", %slot, pid = victim.pid, "stopping a silent host");
            kill(&process).map_err(|e| {
                FenceError(format!("cannot kill process {} of slot {slot}: {e}", victim.pid))
            })?;
        }
        self.wait_for_free_mark(victim).await
    }

    /// An image cannot be reached by another machine, and an earlier boot of this one is over. A
    /// device could be: its mark speaks for programs of this machine only.
    fn judge_free_mark(&self, victim: &Pulse) -> Result<(), FenceError> {
        if self.source.kind() == SourceKind::Image || victim.machine == self.identity.machine {
            return Ok(());
        }
        Err(refuse(victim, "it runs on another machine, which can use this block device too"))
    }

    /// A free mark whose process lives: it has its mark elsewhere, because it reaches the disk
    /// under another name (a loop device and its image, two paths). Its writes are not over.
    async fn wait_for_end(&self, victim: &Pulse) -> Result<(), FenceError> {
        if self.check_kin(victim).is_err() {
            return Ok(());
        }
        let began = boottime();
        while lives(victim) {
            if boottime().since(began) > self.drain_max {
                return Err(refuse(
                    victim,
                    "its life mark is free here, but its process lives: it uses this disk under \
                     another name, such as a loop device or another path; unmount one of the two",
                ));
            }
            tokio::time::sleep(POLL).await;
        }
        Ok(())
    }

    /// Can the victim's process be told from here?
    fn check_kin(&self, victim: &Pulse) -> Result<(), FenceError> {
        let us = &self.identity;
        let differs = if victim.machine != us.machine {
            "its machine id is not ours, but its life mark is held on this machine"
        } else if victim.boot != us.boot {
            "its boot id is not ours, but its life mark is held on this machine"
        } else if victim.pid_namespace != us.pid_namespace {
            "it runs in another pid namespace; stop it there (or its container)"
        } else if victim.run == us.run || victim.pid == us.pid {
            "it is this program itself"
        } else if victim.pid == 0 || victim.pid_start == 0 {
            "it does not say which process it is"
        } else {
            return Ok(());
        };
        Err(refuse(victim, differs))
    }

    async fn wait_for_free_mark(&self, victim: &Pulse) -> Result<(), FenceError> {
        let began = boottime();
        while self.is_marked(victim.slot).unwrap_or(true) {
            if boottime().since(began) > self.drain_max {
                let wait = self.drain_max;
                return Err(refuse(
                    victim,
                    &format!(
                        "its process was killed or is gone, but its I/O has not landed for \
                     {wait:?}; is the device of this machine stuck?"
                    ),
                ));
            }
            tokio::time::sleep(POLL).await;
        }
        Ok(())
    }
}

fn refuse(victim: &Pulse, why: &str) -> FenceError {
    let Pulse { slot, name, pid, .. } = victim;
    FenceError(format!("host {name:?} (slot {slot}, process {pid}) cannot be fenced: {why}"))
}

/// A pidfd of the victim's process; `None`: there is no such process any more.
///
/// The order makes it free of races: the start time is read after the pidfd was opened. If the
/// number was given to another process before that, the start time differs; if it is after, the
/// pidfd still names the old one, and the signal finds nobody.
fn open_verified(victim: &Pulse) -> Result<Option<OwnedFd>, FenceError> {
    let pid = i32::try_from(victim.pid).ok().and_then(Pid::from_raw);
    let pid = pid.ok_or_else(|| refuse(victim, "its process number makes no sense"))?;
    let process = match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(process) => process,
        Err(Errno::SRCH) => return Ok(None),
        Err(e) => return Err(refuse(victim, &format!("its process cannot be opened: {e}"))),
    };
    match process_start(victim.pid) {
        Ok(Some(start)) if start == victim.pid_start => Ok(Some(process)),
        Ok(_) => Err(refuse(victim, "its process number now belongs to another process")),
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ESRCH)) => Ok(None),
        Err(e) => Err(refuse(victim, &format!("its process cannot be verified: {e}"))),
    }
}

/// Is the victim's process there, and has it not ended?
fn lives(victim: &Pulse) -> bool {
    let Ok(Some(process)) = open_verified(victim) else { return false };
    let mut polled = [PollFd::new(&process, PollFlags::IN)];
    // A pidfd can be read from when its process has ended, also before anybody waited for it.
    !matches!(poll(&mut polled, Some(&Timespec::default())), Ok(1))
}

fn kill(process: &OwnedFd) -> Result<(), Errno> {
    match pidfd_send_signal(process, Signal::KILL) {
        Err(Errno::SRCH) => Ok(()),
        answer => answer,
    }
}

#[cfg(test)]
#[path = "fence_tests.rs"]
mod tests;
