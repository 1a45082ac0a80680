//! What is exported: each export with its socket, its clients, and its end.
//!
//! ```text
//!  start             first client               unexport, unmount, stop
//!  -----> unused -----------------> in use ------------------------------> name gone, closing
//!           ^   last client leaves    |                                          |
//!           +-------------------------+                        last request ends v
//!                                                                              gone
//! ```
//!
//! Invariants:
//! - A socket has one export. It is made for one user, with mode 0600 (socket.rs).
//! - An export whose socket is gone has no new clients.
//! - Nothing is exported once `end_all` was called.

use std::cell::{Cell, RefCell};
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use lunfs_core::{FileId, Volume};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::net::UnixStream;
use tokio::sync::{Notify, watch};
use tokio::task;

use super::file::ExportedFile;
use super::nbd;
use crate::error::{HostError, Result};
use crate::fuse::FILE_SYSTEM;
use crate::mount_table::mount_of;
use crate::socket::{Bound, Name, Owner, Socket};

/// Exports of one mount: with all their clients they have descriptors enough.
const EXPORTS_MAX: usize = 32;
/// Clients of one export; one more is sent away.
const CLIENTS_MAX: usize = 16;
/// How long the requests of clients that are sent away may take to end.
const END_MAX: Duration = Duration::from_secs(5);
/// How long the place of a socket may take to take it, and to let it go.
const BIND_MAX: Duration = Duration::from_secs(5);
const REMOVE_MAX: Duration = Duration::from_secs(1);
/// Pause where no client can be accepted.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);

/// How clients speak to an export.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Protocol {
    /// Network block device, over a socket of this machine.
    Nbd,
}

impl Protocol {
    fn name(self) -> &'static str {
        match self {
            Protocol::Nbd => "NBD",
        }
    }
}

/// An export that is asked for.
pub(crate) struct Order {
    pub protocol: Protocol,
    /// The file, and its path below the mount point.
    pub file: FileId,
    pub path: String,
    pub socket: PathBuf,
    pub read_only: bool,
    pub owner: Owner,
}

/// Exports that are meant.
pub(crate) enum Wanted {
    /// The one at this socket.
    Socket(PathBuf),
    /// All of this file: by its path when it was exported, or as it is found now.
    File(String, Option<FileId>),
}

/// All exports of one mount.
pub(crate) struct Exports {
    volume: Rc<Volume>,
    read_only: bool,
    list: RefCell<Vec<Rc<Export>>>,
    is_over: Cell<bool>,
}

struct Export {
    protocol: Protocol,
    id: FileId,
    path: String,
    read_only: bool,
    socket: Socket,
    clients: Cell<usize>,
    client_left: Notify,
    ending: watch::Sender<bool>,
}

impl Exports {
    /// No exports yet, of a mount that may itself be read-only.
    pub fn new(volume: &Rc<Volume>, read_only: bool) -> Rc<Exports> {
        let volume = Rc::clone(volume);
        Rc::new(Exports { volume, read_only, list: RefCell::default(), is_over: Cell::new(false) })
    }

    /// Exports a file; returns what `list` says of it.
    pub async fn start(&self, order: Order) -> Result<Value> {
        let read_only = order.read_only || self.read_only;
        let name = order.path.rsplit('/').next().unwrap_or_default().to_owned();
        // Open before anything waits: from here on it is not given to anybody else.
        let file = Rc::new(ExportedFile::open(&self.volume, order.file, name, read_only));
        file.size().await.map_err(|e| HostError::new(format!("cannot export it: {e}")))?;
        if self.list.borrow().len() >= EXPORTS_MAX {
            return Err(HostError::new(format!(
                "{EXPORTS_MAX} files of this mount are exported already: end one of them"
            )));
        }
        let socket = bind(order.socket, order.owner).await?;
        if self.is_over.get() {
            remove(vec![socket.name]).await;
            return Err(HostError::new("this mount is ending"));
        }
        let export = Rc::new(Export {
            protocol: order.protocol,
            id: order.file,
            path: order.path,
            read_only,
            socket,
            clients: Cell::new(0),
            client_left: Notify::new(),
            ending: watch::Sender::new(false),
        });
        tracing::info!(event = "export", "{} is exported", export.shown());
        self.list.borrow_mut().push(Rc::clone(&export));
        let told = export.told();
        task::spawn_local(accept(export, file));
        Ok(told)
    }

    /// Each export.
    pub fn list(&self) -> Value {
        self.list.borrow().iter().map(|export| export.told()).collect()
    }

    /// Names those that have clients.
    pub fn in_use(&self) -> Vec<String> {
        let list = self.list.borrow();
        let used = list.iter().filter(|export| export.clients.get() > 0);
        used.map(|export| export.use_shown()).collect()
    }

    /// Ends exports, and with `force` also those that have clients; returns how many.
    pub async fn end(&self, wanted: &Wanted, force: bool) -> Result<usize> {
        let meant: Vec<_> = self.list.borrow().iter().filter(|it| it.is(wanted)).cloned().collect();
        if let Some(used) = meant.iter().find(|export| export.clients.get() > 0 && !force) {
            let what = used.use_shown();
            return Err(HostError::new(format!(
                "{what}; nothing was done: end them, or use --force"
            )));
        }
        self.list.borrow_mut().retain(|export| !meant.iter().any(|it| Rc::ptr_eq(it, export)));
        // The name goes before the listener: one that is still there has somebody behind it.
        remove(meant.iter().map(|export| export.socket.name.clone()).collect()).await;
        for export in &meant {
            export.end();
        }
        for export in &meant {
            if tokio::time::timeout(END_MAX, export.until_unused()).await.is_err() {
                return Err(HostError::new(format!(
                    "{} is not exported any more, but requests of its clients wait for the \
                     storage; they end with it",
                    export.path
                )));
            }
        }
        Ok(meant.len())
    }

    /// No client can come any more. Ends when the last has left.
    pub async fn until_unused(&self) {
        self.is_over.set(true);
        let all = self.list.borrow().clone();
        remove(all.iter().map(|export| export.socket.name.clone()).collect()).await;
        for export in all {
            export.until_unused().await;
        }
    }

    /// Ends all of them, with their clients; what they asked for may still be under way.
    pub fn end_all(&self) {
        self.is_over.set(true);
        let all = self.list.take();
        if all.is_empty() {
            return;
        }
        let names = all.iter().map(|export| export.socket.name.clone()).collect();
        let (say, said) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            remove_now(names);
            say.send(())
        });
        if said.recv_timeout(REMOVE_MAX).is_err() {
            tracing::warn!(event = "export", "sockets stay behind: their place does not answer");
        }
        for export in all {
            export.end();
        }
    }
}

impl Drop for Exports {
    fn drop(&mut self) {
        self.end_all();
    }
}

impl Export {
    fn is(&self, wanted: &Wanted) -> bool {
        match wanted {
            Wanted::Socket(path) => self.socket.name.path() == path,
            Wanted::File(path, id) => self.path == *path || *id == Some(self.id),
        }
    }

    fn told(&self) -> Value {
        json!({
            "protocol": self.protocol,
            "path": self.path,
            "socket": self.socket.name.path().display().to_string(),
            "read_only": self.read_only,
            "clients": self.clients.get(),
        })
    }

    fn shown(&self) -> String {
        let (path, protocol) = (&self.path, self.protocol.name());
        format!("{path} over {protocol} at {}", self.socket.name.path().display())
    }

    fn use_shown(&self) -> String {
        let clients = match self.clients.get() {
            1 => "a client".to_owned(),
            count => format!("{count} clients"),
        };
        format!("{clients} of the export of {} (lunfs unexport --force ends it)", self.shown())
    }

    fn end(&self) {
        self.ending.send_replace(true);
        tracing::info!(event = "export", "{} is not exported any more", self.shown());
    }

    async fn until_unused(&self) {
        loop {
            let left = self.client_left.notified();
            if self.clients.get() == 0 {
                return;
            }
            left.await;
        }
    }
}

/// On a thread of its own, as `bind`.
async fn remove(names: Vec<Name>) {
    let removing = task::spawn_blocking(move || remove_now(names));
    if tokio::time::timeout(REMOVE_MAX, removing).await.is_err() {
        tracing::warn!(event = "export", "a socket stays behind: its place does not answer");
    }
}

fn remove_now(names: Vec<Name>) {
    for name in names {
        if let Err(e) = name.remove() {
            tracing::warn!(event = "export", "{} stays behind: {e}", name.path().display());
        }
    }
}

/// On a thread of its own: the directory may be on a file system that does not answer.
async fn bind(path: PathBuf, owner: Owner) -> Result<Socket> {
    let shown = path.display().to_string();
    let failed = |e| refused(&shown, e);
    must_lie_elsewhere(&path)?;
    let binding = task::spawn_blocking(move || Bound::chosen(&path, owner));
    let bound = tokio::time::timeout(BIND_MAX, binding).await.map_err(io::Error::from);
    let bound = bound.and_then(|bound| bound.map_err(io::Error::other)?);
    bound.and_then(Bound::listen).map_err(failed)
}

fn refused(shown: &str, error: io::Error) -> HostError {
    let what = match error.kind() {
        io::ErrorKind::AlreadyExists => {
            return HostError::new(format!(
                "{shown} is there already, and is no socket that was left behind; nothing was \
                 done: give another name, or remove it"
            ));
        }
        _ => format!("cannot listen on {shown}"),
    };
    HostError::io(what, error)
}

/// A socket on a mount that we serve would have us wait for ourselves.
fn must_lie_elsewhere(path: &Path) -> Result<()> {
    let shown = path.display();
    if !path.is_absolute() {
        return Err(HostError::new(format!("{shown} is no absolute path")));
    }
    match mount_of(path)? {
        Some(mount) if mount.kind == FILE_SYSTEM => Err(HostError::new(format!(
            "{shown} lies on a lunfs mount, where no daemon listens: give a name elsewhere, as in \
             /run"
        ))),
        _ => Ok(()),
    }
}

/// Takes clients until the export ends.
async fn accept(export: Rc<Export>, file: Rc<ExportedFile>) {
    let mut ending = export.ending.subscribe();
    let listener = Rc::clone(&export.socket.listener);
    loop {
        let accepted = tokio::select! {
            biased;
            _ = ending.wait_for(|it| *it) => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) if export.clients.get() < CLIENTS_MAX => {
                serve(Rc::clone(&export), Rc::clone(&file), stream);
            }
            Ok(_) => tracing::warn!(
                event = "export",
                "{} has {CLIENTS_MAX} clients: one more was sent away",
                export.shown()
            ),
            Err(e) => {
                // Out of descriptors, for example: others may end soon.
                tracing::warn!(event = "export", "cannot accept a client: {e}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

fn serve(export: Rc<Export>, file: Rc<ExportedFile>, stream: UnixStream) {
    let client = Client::new(export);
    task::spawn_local(async move {
        let mut ending = client.0.ending.subscribe();
        let ended = async move { drop(ending.wait_for(|it| *it).await) };
        let served = match client.0.protocol {
            Protocol::Nbd => nbd::serve(stream, file, ended).await,
        };
        let shown = client.0.shown();
        match served {
            Ok(()) => tracing::debug!(event = "export", "{shown}: a client left"),
            Err(e) if e.kind() == io::ErrorKind::InvalidData => {
                tracing::warn!(event = "export", "{shown}: a client was sent away: {e}");
            }
            Err(e) => tracing::debug!(event = "export", "{shown}: a client was lost: {e}"),
        }
    });
}

/// A client, counted while it is here.
struct Client(Rc<Export>);

impl Client {
    fn new(export: Rc<Export>) -> Client {
        export.clients.set(export.clients.get() + 1);
        Client(export)
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.0.clients.set(self.0.clients.get() - 1);
        self.0.client_left.notify_waiters();
    }
}
