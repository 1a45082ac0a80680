//! The answering side, on the core's thread.

use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use lunfs_core::{Error, FileId, FileKind, HostStatus, Kind, LockStatus, StopReason, Volume};
use lunfs_format::{BlockNo, SlotNo};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::task;

use super::{Request, Response, socket_path};
use crate::error::{HostError, Result};
use crate::export::{Exports, Order, Protocol, Wanted};
use crate::mount_table::Mount;
use crate::socket::{Bound, Owner, Socket};

/// Longest request line.
const REQUEST_MAX: u64 = 64 << 10;
/// How long a connection may take to ask, and to take its answer.
const ASK_MAX: Duration = Duration::from_secs(10);
/// Callers served at once. One more is told so and sent away.
const CALLERS_MAX: usize = 64;

/// What `info` says besides what the volume knows.
#[derive(Clone, Debug)]
pub struct About {
    /// Name of this host.
    pub name: String,
    /// The source, as given.
    pub source: String,
    /// How other hosts make sure that this one is gone.
    pub fence: &'static str,
    /// The kernel refuses changes.
    pub read_only: bool,
}

/// A request to unmount. Answering it ends the caller's wait; afterwards `told` ends when the
/// answer has been sent.
pub struct Unmount {
    /// Even if it is busy.
    pub force: bool,
    /// With `force`: how long to wait for its users first.
    pub deadline: Duration,
    /// Where the answer goes.
    pub answer: oneshot::Sender<Response>,
    /// Ends when the answer was sent or cannot be.
    pub told: oneshot::Receiver<()>,
}

/// The listening socket; removed when dropped, unless its name belongs to another mount already:
/// the kernel gives our number away once it has unmounted us.
pub struct Control {
    socket: Socket,
    accepting: task::JoinHandle<()>,
}

pub(super) struct Served {
    pub(super) volume: Rc<Volume>,
    about: About,
    pub(super) mount: Mount,
    exports: Rc<Exports>,
    unmounts: mpsc::UnboundedSender<Unmount>,
}

impl Control {
    /// Listens for requests about `mount`; must be called inside a `LocalSet`. Requests to unmount
    /// come out of the receiver.
    pub fn start(
        volume: &Rc<Volume>,
        about: About,
        mount: &Mount,
        exports: &Rc<Exports>,
    ) -> Result<(Control, mpsc::UnboundedReceiver<Unmount>)> {
        let socket = listen(&socket_path(mount.device))?;
        let listener = Rc::clone(&socket.listener);
        let (unmounts, wanted) = mpsc::unbounded_channel();
        let (volume, exports) = (Rc::clone(volume), Rc::clone(exports));
        let mount = mount.clone();
        let served = Rc::new(Served { volume, about, mount, exports, unmounts });
        let accepting = task::spawn_local(accept(listener, served));
        Ok((Control { socket, accepting }, wanted))
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        self.accepting.abort();
        if let Err(e) = self.socket.name.remove() {
            let path = self.socket.name.path().display();
            tracing::warn!(event = "control", "{path} stays behind: {e}");
        }
    }
}

fn listen(path: &Path) -> Result<Socket> {
    let bound = Bound::replacing(path).and_then(Bound::listen);
    bound.map_err(|e| HostError::io(format!("cannot listen on {}", path.display()), e))
}

async fn accept(listener: Rc<UnixListener>, served: Rc<Served>) {
    let turns = Arc::new(Semaphore::new(CALLERS_MAX));
    loop {
        match listener.accept().await {
            Ok((stream, _)) => match Arc::clone(&turns).try_acquire_owned() {
                Ok(turn) => serve(stream, turn, Rc::clone(&served)),
                Err(_) => send_away(&stream),
            },
            Err(e) => {
                // Out of descriptors, for example: others may end soon.
                tracing::warn!(event = "control", "cannot accept a caller: {e}");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    }
}

fn serve(stream: UnixStream, turn: OwnedSemaphorePermit, served: Rc<Served>) {
    task::spawn_local(async move {
        let _turn = turn;
        if let Err(e) = converse(stream, &served).await {
            tracing::debug!(event = "control", "a caller went away: {e}");
        }
    });
}

/// A new socket takes a short line at once. Who does not read it learns the same from the end.
fn send_away(stream: &UnixStream) {
    let why = format!("{CALLERS_MAX} callers are being served: ask again in a moment");
    let answer = line_of(&Response::Error(why));
    if let Err(e) = stream.try_write(&answer) {
        tracing::debug!(event = "control", "a caller too many was not told: {e}");
    }
}

fn line_of(response: &Response) -> Vec<u8> {
    let mut line = serde_json::to_vec(response).expect("a response is plain data");
    line.push(b'\n');
    line
}

async fn converse(mut stream: UnixStream, served: &Served) -> io::Result<()> {
    let caller = stream.peer_cred()?;
    let owner = Owner { uid: caller.uid(), gid: caller.gid() };
    let mut line = String::new();
    let mut reader = BufReader::new((&mut stream).take(REQUEST_MAX));
    tokio::time::timeout(ASK_MAX, reader.read_line(&mut line)).await??;
    let (response, _told) = match serde_json::from_str(&line) {
        Ok(request) => served.answer(request, owner).await,
        Err(e) => (Response::Error(format!("this is no request: {e}")), None),
    };
    // Who asks and does not listen must not keep the answer here for ever.
    tokio::time::timeout(ASK_MAX, stream.write_all(&line_of(&response))).await?
}

impl Served {
    /// The second value is dropped when the response has been sent.
    async fn answer(
        &self,
        request: Request,
        owner: Owner,
    ) -> (Response, Option<oneshot::Sender<()>>) {
        let outcome = match request {
            Request::Info => self.info().await,
            Request::Hosts => self.hosts().await,
            Request::Locks { path } => self.locks(path.as_deref()).await,
            Request::Counters => Ok(self.counters()),
            Request::Sync => self.volume.sync().await.map(|()| Value::Null),
            Request::Exports => Ok(self.exports.list()),
            Request::Disk { path } => self.disk(&path).await,
            Request::Disks { path, after } => self.disks(&path, after).await,
            Request::CreateDisk { path, size } => self.create_disk(&path, size, owner).await,
            Request::ResizeDisk { path, size } => self.resize_disk(&path, size).await,
            Request::DeleteDisk { path } => self.delete_disk(&path).await,
            Request::CloneDisk { source, snapshot, path } => {
                self.clone_disk((&source, snapshot.as_deref()), &path, owner).await
            }
            Request::CreateSnapshot { path, name } => self.create_snapshot(&path, &name).await,
            Request::DeleteSnapshot { path, name } => self.delete_snapshot(&path, &name).await,
            Request::Export { protocol, path, socket, read_only } => {
                let socket = PathBuf::from(socket);
                return (self.export((protocol, read_only), path, socket, owner).await, None);
            }
            Request::Unexport { socket, path, force } => {
                return (self.unexport(socket, path, force).await, None);
            }
            Request::Unmount { force, deadline_ms } => {
                return self.unmount(force, Duration::from_millis(deadline_ms)).await;
            }
        };
        let response = match outcome {
            Ok(value) => Response::Ok(value),
            Err(e) => Response::Error(e.to_string()),
        };
        (response, None)
    }

    async fn unmount(
        &self,
        force: bool,
        deadline: Duration,
    ) -> (Response, Option<oneshot::Sender<()>>) {
        let (answer, answered) = oneshot::channel();
        let (sent, told) = oneshot::channel();
        // If nobody takes it, we are ending already, and `answered` says so.
        drop(self.unmounts.send(Unmount { force, deadline, answer, told }));
        let ending = || Response::Error("this mount is ending already".into());
        (answered.await.unwrap_or_else(|_| ending()), Some(sent))
    }

    async fn export(
        &self,
        (protocol, read_only): (Protocol, bool),
        path: String,
        socket: PathBuf,
        owner: Owner,
    ) -> Response {
        let file = match self.find_plain(&path).await {
            Ok(file) => file,
            Err(e) => return Response::Error(e.to_string()),
        };
        let order = Order { protocol, file, path, socket, read_only, owner };
        self.exports.start(order).await.map_or_else(|e| Response::Error(e.sentence()), Response::Ok)
    }

    async fn unexport(
        &self,
        socket: Option<String>,
        path: Option<String>,
        force: bool,
    ) -> Response {
        let wanted = match (socket, path) {
            (Some(socket), None) => Wanted::Socket(socket.into()),
            // The name may be gone; the export is not.
            (None, Some(path)) => {
                let now = self.find(&path).await.ok();
                Wanted::File(path, now)
            }
            _ => return Response::Error("this names no export: a socket or a path does".into()),
        };
        match self.exports.end(&wanted, force).await {
            Ok(0) => Response::Error("this is not exported".into()),
            Ok(count) => Response::Ok(json!({ "ended": count })),
            Err(e) => Response::Refused(e.sentence()),
        }
    }

    async fn info(&self) -> lunfs_core::Result<Value> {
        let (volume, about) = (&self.volume, &self.about);
        let superblock = volume.superblock();
        let stopped = volume.stopped().map(|reason| match reason {
            StopReason::Unmounted => "unmounted".to_owned(),
            StopReason::Stopped(why) => why,
        });
        // A suspended host cannot ask for the space; the rest is worth saying nevertheless.
        let space = tokio::time::timeout(Duration::from_secs(1), volume.space()).await;
        let space = space.ok().and_then(Result::ok);
        Ok(json!({
            "label": superblock.label,
            "volume": superblock.volume.to_string(),
            "source": about.source,
            "mountpoint": self.mount.point.display().to_string(),
            "device": format!("{}:{}", self.mount.device.0, self.mount.device.1),
            "name": about.name,
            "slot": volume.slot().0,
            "pid": std::process::id(),
            "read_only": about.read_only,
            "fence": about.fence,
            "stopped": stopped,
            "logical_block": superblock.logical_block,
            "volume_blocks": superblock.volume_blocks,
            "cluster_blocks": superblock.cluster_blocks,
            "pulse_ms": superblock.timing.pulse_ms,
            "lease_ms": superblock.timing.lease_ms,
            "claim_ms": superblock.timing.claim_ms,
            "blocks_total": space.map(|space| space.total),
            "blocks_free": space.map(|space| space.free),
            "blocks_available": space.map(|space| space.available),
        }))
    }

    async fn hosts(&self) -> lunfs_core::Result<Value> {
        Ok(self.volume.hosts().await?.iter().map(host).collect())
    }

    async fn locks(&self, path: Option<&str>) -> lunfs_core::Result<Value> {
        let wanted = match path {
            Some(path) => Some(self.find(path).await?.addr),
            None => None,
        };
        let is_wanted = |lock: &LockStatus| wanted.is_none_or(|addr: BlockNo| addr == lock.addr);
        let mut locks = self.volume.locks();
        locks.retain(is_wanted);
        Ok(locks.iter().map(lock).collect())
    }

    fn counters(&self) -> Value {
        let list = self.volume.counters().list();
        list.into_iter().map(|(name, count)| (name.to_owned(), json!(count))).collect()
    }

    async fn find_plain(&self, path: &str) -> lunfs_core::Result<FileId> {
        let file = self.find(path).await?;
        match self.volume.getattr(file).await?.kind {
            FileKind::File => Ok(file),
            _ => Err(Error::new(Kind::Invalid, format!("{path} is no plain file"))),
        }
    }

    /// Walks a path below the mount point; links are not followed.
    pub(super) async fn find(&self, path: &str) -> lunfs_core::Result<FileId> {
        let point = self.mount.point.display();
        let mut file = self.volume.root();
        for name in path.split('/').filter(|name| !name.is_empty() && *name != ".") {
            let found = self.volume.lookup(file, name.as_bytes()).await;
            let found = found.map_err(|Error { kind, what }| {
                Error::new(kind, format!("{path} below {point}, at {name:?}: {what}"))
            });
            file = found?.id;
        }
        Ok(file)
    }
}

fn host(status: &HostStatus) -> Value {
    let SlotNo(slot) = status.slot;
    let Some(pulse) = &status.pulse else {
        return json!({ "slot": slot, "state": "corrupt", "is_self": status.is_self });
    };
    json!({
        "slot": slot,
        "state": format!("{:?}", pulse.state).to_lowercase(),
        "is_self": status.is_self,
        "name": pulse.name,
        "incarnation": pulse.incarnation.0,
        "counter": pulse.counter,
        "progress": pulse.progress,
        "pid": pulse.pid,
        "boot": hex(&pulse.boot),
        "machine": hex(&pulse.machine),
        "has_parent": pulse.has_parent,
        "claimer": pulse.claimer.map(|holder| holder.to_string()),
        "claim_attempts": pulse.claim_attempts,
        "claim_failure": format!("{:?}", pulse.claim_failure).to_lowercase(),
        "silence_ms": status.silence_ms,
    })
}

fn lock(status: &LockStatus) -> Value {
    json!({
        "address": status.addr.0,
        "mode": format!("{:?}", status.mode).to_lowercase(),
        "holder": status.holder.map(|holder| holder.to_string()),
        "generation": status.generation.to_string(),
    })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
