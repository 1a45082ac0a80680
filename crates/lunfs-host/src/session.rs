//! The life of one mount: from the first pulse after joining to the end of the process.
//!
//! ```text
//!                 ready                    umount(8), SIGTERM, control: unmount
//!  joined --> serving files  ------------------------------> kernel's mount gone
//!     \            |                                                |
//!      \           | fenced, or stopped itself                      | volume.unmount()
//!       v          v                                                v
//!        Stopped: the process ends; the mount answers ENOTCONN    Unmounted: slot freed, exit 0
//! ```
//!
//! Order of a clean end: first the kernel's mount, so that no request can come any more; then the
//! volume, which makes all durable and frees the slot; then the process. A crash before the slot is
//! free is a dead host like any other.

use std::io;
use std::rc::Rc;
use std::time::Duration;

use lunfs_core::{StopReason, Volume};
use rustix::io::Errno;
use rustix::mount::UnmountFlags;
use serde_json::Value;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::{self, JoinHandle};

use crate::control::{About, Control, Response, Unmount};
use crate::error::{HostError, Result};
use crate::fuse::{FuseMount, FuseOptions};
use crate::mount_table::Mount;
use crate::users::{User, users_of};

/// How long users may keep a mount busy after SIGTERM.
const TERM_PATIENCE: Duration = Duration::from_secs(5);
/// Pause between attempts to unmount a busy mount.
const BUSY_PAUSE: Duration = Duration::from_millis(100);
/// How long the kernel may take to end the session after it unmounted.
const SESSION_END_MAX: Duration = Duration::from_secs(1);
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
    terminate: Signal,
    interrupt: Signal,
    _control: Control,
}

fn start(volume: &Rc<Volume>, fuse: &FuseOptions, about: About) -> Result<Session> {
    let listen = |kind| signal(kind).map_err(|e| HostError::io("cannot listen to signals", e));
    let (terminate, interrupt) =
        (listen(SignalKind::terminate())?, listen(SignalKind::interrupt())?);
    let kernel = FuseMount::start(volume, fuse)?;
    match Control::start(volume, about, kernel.mount()) {
        Ok((control, wanted)) => {
            let volume = Rc::clone(volume);
            Ok(Session { volume, kernel, wanted, terminate, interrupt, _control: control })
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
                Event::KernelUnmounted => return self.finish(serving).await,
                Event::Signal => (true, TERM_PATIENCE, None),
                Event::Wanted(wish) => (wish.force, wish.deadline, Some((wish.answer, wish.told))),
            };
            let mount = self.kernel.mount().clone();
            let detached = tokio::select! {
                biased;
                reason = &mut *serving => return Ok(Ending::Stopped(why_stopped(reason))),
                detached = detach(mount, force, patience) => detached,
            };
            let outcome = match detached {
                Ok(()) => Some(self.finish_after_detach(serving).await),
                Err(_) => None,
            };
            if let Some((answer, told)) = caller {
                // The caller may have gone; the answer must leave before the process does.
                drop(answer.send(response(&detached, outcome.as_ref())));
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
            _ = self.terminate.recv() => Event::Signal,
            _ = self.interrupt.recv() => Event::Signal,
            Some(wish) = self.wanted.recv() => Event::Wanted(wish),
        }
    }

    async fn finish_after_detach(
        &mut self,
        serving: &mut JoinHandle<StopReason>,
    ) -> Result<Ending> {
        // The last answers on their way. Copies of the mount in other namespaces, and users whom
        // it was taken from, keep the session up; they get errors from now on.
        if tokio::time::timeout(SESSION_END_MAX, self.kernel.ended()).await.is_err() {
            tracing::warn!(event = "unmount", "the file system is still in use somewhere");
        }
        self.finish(serving).await
    }

    /// No request can come any more: make all durable, free the slot. A signal gives up.
    async fn finish(&mut self, serving: &mut JoinHandle<StopReason>) -> Result<Ending> {
        let volume = Rc::clone(&self.volume);
        let began = tokio::time::Instant::now();
        let mut leaving = std::pin::pin!(volume.unmount());
        let left = loop {
            tokio::select! {
                biased;
                left = &mut leaving => break left,
                _ = self.terminate.recv() => {}
                _ = self.interrupt.recv() => {}
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
    Busy(Vec<User>),
    Failed(io::Error),
}

/// Takes the kernel's mount away: at once, or with `force` when its users had time to leave, and
/// then also from under them.
async fn detach(mount: Mount, force: bool, patience: Duration) -> Result<(), Attached> {
    let began = tokio::time::Instant::now();
    loop {
        match unmount(&mount, UnmountFlags::empty()).await {
            // Invalid, absent: somebody else has unmounted it, which is just as good.
            Ok(()) | Err(Errno::INVAL | Errno::NOENT) => return Ok(()),
            Err(Errno::BUSY) if !force => return Err(Attached::Busy(users(mount).await)),
            Err(Errno::BUSY) if began.elapsed() < patience => {}
            Err(Errno::BUSY) => {
                let users = users(mount.clone()).await;
                tracing::warn!(event = "unmount", ?users, "unmounting from under its users");
                return unmount(&mount, UnmountFlags::DETACH)
                    .await
                    .map_err(|e| Attached::Failed(e.into()));
            }
            Err(e) => return Err(Attached::Failed(e.into())),
        }
        tokio::time::sleep(BUSY_PAUSE).await;
    }
}

/// On a thread of its own: unmounting writes back what mmap made dirty, through us.
async fn unmount(mount: &Mount, flags: UnmountFlags) -> Result<(), Errno> {
    let point = mount.point.clone();
    let done = task::spawn_blocking(move || rustix::mount::unmount(&point, flags)).await;
    done.unwrap_or(Err(Errno::IO))
}

async fn users(mount: Mount) -> Vec<User> {
    task::spawn_blocking(move || users_of(&mount)).await.unwrap_or_default()
}

fn response(detached: &Result<(), Attached>, outcome: Option<&Result<Ending>>) -> Response {
    match (detached, outcome) {
        (Err(Attached::Busy(users)), _) => Response::Error(format!(
            "the mount is busy: {}; end them, or use --force",
            users.iter().map(shown).collect::<Vec<_>>().join("; ")
        )),
        (Err(Attached::Failed(e)), _) => {
            Response::Error(format!("the kernel does not unmount: {e}"))
        }
        (Ok(()), Some(Ok(Ending::Stopped(why)))) => Response::Error(format!(
            "the kernel's mount is gone, but the slot was not freed ({why}); others take it over"
        )),
        (Ok(()), Some(Ok(Ending::Lossy(why)))) => Response::Error(format!(
            "unmounted, but not everything could be written ({why}); what was synced is there"
        )),
        (Ok(()), Some(Err(e))) => Response::Error(e.sentence()),
        (Ok(()), Some(Ok(Ending::Unmounted)) | None) => Response::Ok(Value::Null),
    }
}

fn shown(user: &User) -> String {
    let first = user.uses.first().map_or("", String::as_str);
    let more = match user.uses.len() {
        0 | 1 => String::new(),
        count => format!(" and {} more", count - 1),
    };
    format!("{} ({}): {first}{more}", user.name, user.pid)
}
