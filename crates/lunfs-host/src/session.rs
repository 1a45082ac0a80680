//! The life of one mount: from the first pulse after joining to the end of the process.
//!
//! ```text
//!                 ready                    umount(8), signal, control: unmount
//!  joined --> serving files  ------------------------------> kernel's mount gone
//!     \            |                                                |
//!      \           | fenced, or stopped itself                      | volume.unmount()
//!       v          v                                                v
//!        Stopped: the process ends; the mount answers ENOTCONN    Unmounted: slot freed, exit 0
//! ```
//!
//! Order of a clean end: first the kernel's mount and the exports, so that no request can come any
//! more; then the volume, which makes all durable and frees the slot; then the process. A crash
//! before the slot is free is a dead host like any other.

use std::io;
use std::rc::Rc;
use std::time::Duration;

use lunfs_core::{StopReason, Volume};
use rustix::io::Errno;
use rustix::mount::UnmountFlags;
use serde_json::json;
use tokio::task::{self, JoinHandle};

use crate::busy::{Busy, Verdict, Wish};
use crate::control::{About, Control, Response, Unmount};
use crate::error::Result;
use crate::export::Exports;
use crate::fuse::{FuseMount, FuseOptions};
use crate::mount_table::{Mount, mounted_at};
use crate::signals::Signals;

/// How long users may keep a mount busy after SIGTERM.
const TERM_PATIENCE: Duration = Duration::from_secs(5);
/// Pause between attempts to unmount a busy mount.
const BUSY_PAUSE: Duration = Duration::from_millis(100);
/// How long the kernel may take to end the session after it unmounted.
const SESSION_END_MAX: Duration = Duration::from_secs(1);
/// As long, where a session that does not end means that somebody still needs us.
const SESSION_END_PATIENCE: Duration = Duration::from_secs(5);
/// How long somebody may keep the mount busy in passing.
const PASSING: Duration = Duration::from_secs(1);
/// How long a look at all processes may take.
const LOOK_MAX: Duration = Duration::from_secs(5);
/// How long the caller of `unmount` may take to read the answer.
const TELL_MAX: Duration = Duration::from_secs(1);

/// Signals so soon after the first are the same wish.
const SAME_WISH: Duration = Duration::from_secs(1);

/// How a mount ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Everything is durable and the slot is free.
    Unmounted,
    /// The slot is free, but not everything that was accepted could be written. Says what not.
    Lossy(String),
    /// Nothing is written any more; other hosts take over. The process must end now.
    Stopped(String),
}

/// Serves a volume that has just been joined at a mount point until it ends. Must run inside a
/// `LocalSet`. `ready` is called once files can be used.
pub async fn serve_mount(
    volume: Rc<Volume>,
    fuse: &FuseOptions,
    about: About,
    ready: impl FnOnce(&Mount),
) -> Result<Ending> {
    // First of all: pulses. The lease that joining got is short.
    let mut serving = start_serving(&volume);
    match start(&volume, fuse, about) {
        Ok(mut session) => {
            ready(session.kernel.mount());
            session.run(&mut serving).await
        }
        Err(e) => {
            // Leave as a host that says goodbye, not as one that must be recovered.
            if let Err(e) = volume.unmount().await {
                tracing::error!(event = "unmount", "the slot could not be freed: {e}");
            }
            Err(e)
        }
    }
}

fn start_serving(volume: &Rc<Volume>) -> JoinHandle<StopReason> {
    let volume = Rc::clone(volume);
    task::spawn_local(async move { volume.serve().await })
}

struct Session {
    volume: Rc<Volume>,
    kernel: FuseMount,
    wanted: tokio::sync::mpsc::UnboundedReceiver<Unmount>,
    signals: Signals,
    exports: Rc<Exports>,
    _control: Control,
}

fn start(volume: &Rc<Volume>, fuse: &FuseOptions, about: About) -> Result<Session> {
    let signals = Signals::listen()?;
    let kernel = FuseMount::start(volume, fuse)?;
    let exports = Exports::new(volume, about.read_only);
    match Control::start(volume, about, kernel.mount(), &exports) {
        Ok((control, wanted)) => {
            let volume = Rc::clone(volume);
            Ok(Session { volume, kernel, wanted, signals, exports, _control: control })
        }
        Err(e) => {
            let _ = rustix::mount::unmount(&kernel.mount().point, UnmountFlags::DETACH);
            Err(e)
        }
    }
}

/// What woke the session.
enum Event {
    Stopped(String),
    KernelUnmounted,
    Signal,
    Wanted(Unmount),
}

impl Session {
    async fn run(&mut self, serving: &mut JoinHandle<StopReason>) -> Result<Ending> {
        loop {
            let (force, patience, caller) = match self.next_event(serving).await {
                Event::Stopped(why) => return Ok(Ending::Stopped(why)),
                Event::KernelUnmounted => return self.leave_with_clients(serving).await,
                Event::Signal => (true, TERM_PATIENCE, None),
                Event::Wanted(wish) => (wish.force, wish.deadline, Some((wish.answer, wish.told))),
            };
            let mount = self.kernel.mount().clone();
            let detached = tokio::select! {
                biased;
                reason = &mut *serving => return Ok(Ending::Stopped(why_stopped(reason))),
                detached = detach(mount, &self.exports, force, patience) => detached,
            };
            let is_over = detached.is_ok() && self.is_over(force).await;
            let outcome = match is_over {
                true => Some(self.finish(serving).await),
                false => None,
            };
            self.log_refusal(&detached, caller.is_some());
            if let Some((answer, told)) = caller {
                // The caller may have gone; the answer must leave before the process does.
                let response = match (&detached, &outcome) {
                    (Ok(_), None) => Response::Refused(self.in_use_elsewhere().await),
                    _ => response(&detached, outcome.as_ref()),
                };
                drop(answer.send(response));
                drop(tokio::time::timeout(TELL_MAX, told).await);
            }
            if let Some(outcome) = outcome {
                return outcome;
            }
        }
    }

    async fn next_event(&mut self, serving: &mut JoinHandle<StopReason>) -> Event {
        tokio::select! {
            biased;
            reason = serving => Event::Stopped(why_stopped(reason)),
            ended = self.kernel.ended() => {
                if let Err(e) = ended {
                    tracing::error!(event = "fuse", "the FUSE session ended with an error: {e}");
                }
                Event::KernelUnmounted
            }
            () = self.signals.recv() => Event::Signal,
            Some(wish) = self.wanted.recv() => Event::Wanted(wish),
        }
    }

    /// The administrator's umount does not know of the clients of exports: as with copies of the
    /// mount, we leave with the last. A signal takes it from under them.
    async fn leave_with_clients(&mut self, serving: &mut JoinHandle<StopReason>) -> Result<Ending> {
        let clients = self.exports.in_use();
        if !clients.is_empty() {
            let clients = clients.join("; ");
            tracing::warn!(event = "unmount", clients, "unmounted, but there are clients");
        }
        tokio::select! {
            biased;
            reason = &mut *serving => return Ok(Ending::Stopped(why_stopped(reason))),
            () = self.exports.until_unused() => {}
            () = self.signals.recv() => {}
        }
        self.finish(serving).await
    }

    /// Whether nobody needs us any more, or shall have us, once our mount is gone.
    async fn is_over(&mut self, force: bool) -> bool {
        // The last answers on their way. Copies of the mount in other namespaces, and users whom
        // it was taken from, keep the session up; after force they get errors from now on.
        let limit = if force { SESSION_END_MAX } else { SESSION_END_PATIENCE };
        let has_ended = tokio::time::timeout(limit, self.kernel.ended()).await.is_ok();
        if !has_ended {
            tracing::warn!(event = "unmount", "the file system is still in use somewhere");
        }
        has_ended || force
    }

    /// The mount is gone here, but the kernel still asks us: for a copy that came since we looked,
    /// or that we cannot see.
    async fn in_use_elsewhere(&self) -> String {
        let mount = self.kernel.mount();
        let mut names = look(mount, &self.exports).await.unwrap_or_default().names();
        if names.is_empty() {
            names.push("by nobody who is seen from here".to_owned());
        }
        format!(
            "the mount at {} is gone, but the file system is in use elsewhere: {}. Its daemon goes \
             on for them and leaves with the last; `kill {}` takes it from under them",
            mount.point.display(),
            names.join("; "),
            std::process::id()
        )
    }

    /// Who sent a signal hears nothing but the log.
    fn log_refusal(&self, detached: &Result<Busy, Attached>, has_caller: bool) {
        match detached {
            Err(Attached::Busy(busy)) if !has_caller => {
                tracing::error!(event = "unmount", %busy, "not unmounted");
            }
            Err(Attached::Failed(e)) if !has_caller => {
                tracing::error!(event = "unmount", "the kernel does not unmount: {e}");
            }
            _ => {}
        }
    }

    /// No request can come any more: make all durable, free the slot. A signal gives up.
    async fn finish(&mut self, serving: &mut JoinHandle<StopReason>) -> Result<Ending> {
        self.exports.end_all();
        let volume = Rc::clone(&self.volume);
        let began = tokio::time::Instant::now();
        let mut leaving = std::pin::pin!(volume.unmount());
        let left = loop {
            tokio::select! {
                biased;
                left = &mut leaving => break left,
                () = self.signals.recv() => {}
            }
            // A terminal signals the whole group, and the parent passes it on: that is one wish.
            if began.elapsed() > SAME_WISH {
                break Err(gave_up());
            }
        };
        if let Err(e) = left {
            if self.volume.stopped() == Some(StopReason::Unmounted) {
                return Ok(Ending::Lossy(e.to_string()));
            }
            return Ok(Ending::Stopped(format!("unmount did not finish: {e}")));
        }
        match serving.await {
            Ok(StopReason::Unmounted) => Ok(Ending::Unmounted),
            other => Ok(Ending::Stopped(why_stopped(other))),
        }
    }
}

fn gave_up() -> lunfs_core::Error {
    lunfs_core::Error::new(lunfs_core::Kind::Stopped, "a second signal came")
}

fn why_stopped(reason: std::result::Result<StopReason, task::JoinError>) -> String {
    match reason {
        Ok(StopReason::Stopped(why)) => why,
        Ok(StopReason::Unmounted) => "the volume was unmounted from elsewhere".into(),
        Err(e) => format!("serving the volume failed: {e}"),
    }
}

/// Why the kernel's mount is still there.
enum Attached {
    Busy(Busy),
    Failed(io::Error),
}

/// Takes the kernel's mount away: at once, or with `force` when its users had time to leave, and
/// then also from under them. Returns whom it was taken from.
async fn detach(
    mount: Mount,
    exports: &Exports,
    force: bool,
    patience: Duration,
) -> Result<Busy, Attached> {
    let began = tokio::time::Instant::now();
    loop {
        let wish = match force {
            false => Wish::Gentle,
            true if began.elapsed() < patience => Wish::Force,
            true => Wish::ForceNow,
        };
        let looked = look(&mount, exports).await;
        let is_known = looked.is_some();
        let busy = looked.unwrap_or_else(|| Busy::default().with_exports(exports.in_use()));
        let flags = match busy.verdict(wish) {
            // A program that is just being started has all files of who starts it, for a moment.
            Verdict::Refuse if busy.may_pass() && began.elapsed() < PASSING => {
                tokio::time::sleep(BUSY_PAUSE).await;
                continue;
            }
            Verdict::Refuse => return Err(Attached::Busy(busy)),
            Verdict::Wait => {
                tokio::time::sleep(BUSY_PAUSE).await;
                continue;
            }
            // Nobody knows what is mounted on it: only the kernel may say that nothing is.
            _ if !is_known => UnmountFlags::empty(),
            Verdict::Unmount if wish == Wish::ForceNow => UnmountFlags::DETACH,
            Verdict::Take => {
                tracing::warn!(event = "unmount", %busy, "unmounting from under its users");
                UnmountFlags::DETACH
            }
            Verdict::Unmount => UnmountFlags::empty(),
        };
        match unmount(&mount, flags).await {
            // Invalid, absent: somebody else has unmounted it, which is just as good.
            Ok(()) | Err(Errno::INVAL | Errno::NOENT) => return Ok(busy),
            Err(Errno::BUSY) if !is_known => return Err(Attached::Busy(busy)),
            // It came since we looked, or we cannot see it.
            Err(Errno::BUSY) if !force && began.elapsed() >= PASSING => {
                return Err(Attached::Busy(look(&mount, exports).await.unwrap_or_default()));
            }
            Err(Errno::BUSY) => tokio::time::sleep(BUSY_PAUSE).await,
            Err(e) => return Err(Attached::Failed(e.into())),
        }
    }
}

/// On a thread of its own: unmounting writes back what mmap made dirty, through us.
async fn unmount(mount: &Mount, flags: UnmountFlags) -> Result<(), Errno> {
    let mount = mount.clone();
    let done = task::spawn_blocking(move || {
        // Another one may be at its place by now.
        match mounted_at(&mount.point) {
            Ok(Some(top)) if top.id == mount.id => rustix::mount::unmount(&mount.point, flags),
            _ => Err(Errno::INVAL),
        }
    });
    done.await.unwrap_or(Err(Errno::IO))
}

/// On a thread of its own, too. `None`: the look did not end (a process in the middle of its own
/// end).
async fn look(mount: &Mount, exports: &Exports) -> Option<Busy> {
    let mount = mount.clone();
    let looking = task::spawn_blocking(move || Busy::look(&mount));
    let busy = tokio::time::timeout(LOOK_MAX, looking).await.ok()?.ok()?;
    Some(busy.with_exports(exports.in_use()))
}

fn response(detached: &Result<Busy, Attached>, outcome: Option<&Result<Ending>>) -> Response {
    match (detached, outcome) {
        (Err(Attached::Busy(busy)), _) => Response::Refused(format!("the mount is busy: {busy}")),
        (Err(Attached::Failed(e)), _) => {
            Response::Error(format!("the kernel does not unmount: {e}"))
        }
        (Ok(_), Some(Ok(Ending::Stopped(why)))) => Response::Error(format!(
            "the kernel's mount is gone, but the slot was not freed ({why}); others take it over"
        )),
        (Ok(_), Some(Ok(Ending::Lossy(why)))) => Response::Error(format!(
            "unmounted, but not everything could be written ({why}); what was synced is there"
        )),
        (Ok(_), Some(Err(e))) => Response::Error(e.sentence()),
        (Ok(taken_from), Some(Ok(Ending::Unmounted)) | None) => {
            Response::Ok(json!({ "taken_from": taken_from.names() }))
        }
    }
}
