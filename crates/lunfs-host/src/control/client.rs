//! The asking side: plain blocking code for command-line tools.

use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::sockopt::{self, Timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use rustix::process::Pid;
use serde_json::Value;

use super::{Request, Response, socket_path};
use crate::error::{HostError, Result};
use crate::fuse::FILE_SYSTEM;
use crate::mount_table::{Mount, mount_of, mounted_at, mounts};

/// How long the answer to a question may take. A look at a path may take as long.
const ANSWER_MAX: Duration = Duration::from_secs(10);
/// How long it may take to make things durable, beyond a deadline the request names.
const PATIENCE: Duration = Duration::from_secs(120);
/// How long a program that takes no callers may keep one waiting.
const CONNECT_MAX: Duration = Duration::from_secs(1);
/// Links followed from a name to a mount point.
const LINKS_MAX: usize = 8;

/// Asks the program that serves the mount at (or around) `path`.
pub fn call(path: &Path, request: &Request) -> Result<Value> {
    let mount = find_mount(path)?;
    let mut connection = Connection::open(&mount)?;
    match connection.ask(request, patience(request))? {
        Response::Ok(value) => Ok(value),
        Response::Error(why) | Response::Refused(why) => Err(HostError::new(why)),
    }
}

/// The lunfs mount at `path`, or the one that `path` lies on.
pub fn find_mount(path: &Path) -> Result<Mount> {
    within(path, |path| {
        let mount = mount_at_now(path)?.map_or_else(|| lies_in(path), |mount| Ok(Some(mount)))?;
        if let Some(mount) = mount {
            return Ok(mount);
        }
        let (name, shown) = (canonical(path)?, path.display());
        if let Some(mount) = mount_of(&name)?.filter(|mount| mount.kind == FILE_SYSTEM) {
            return Ok(mount);
        }
        Err(HostError::new(match points_of(&name)? {
            points if points.is_empty() => format!("{shown} is not on a mounted lunfs volume"),
            points => {
                format!("{shown} is mounted at {}; name such a mount point", points.join(", "))
            }
        }))
    })
}

/// The lunfs mount that `path` lies on by its name alone. No server is asked: who waits for one
/// that hangs may not even be killed.
pub fn lies_in(path: &Path) -> Result<Option<Mount>> {
    let name = std::path::absolute(path)
        .map_err(|e| HostError::io(format!("cannot tell where {} is", path.display()), e))?;
    if name.components().any(|part| part == Component::ParentDir) {
        return Ok(None);
    }
    Ok(mount_of(&name)?.filter(|mount| mount.kind == FILE_SYSTEM))
}

/// The mount that a file lies on, and its path there from the root of the volume. Links are
/// followed; what it finds is not a link.
pub fn file_on_mount(path: &Path) -> Result<(Mount, PathBuf)> {
    within(path, |path| {
        let name = canonical(path)?;
        let Some(mount) = lies_in(&name)? else {
            let shown = path.display();
            return Err(HostError::new(format!("{shown} is not on a mounted lunfs volume")));
        };
        let inside = name.strip_prefix(&mount.point).unwrap_or(&name);
        let path = mount.root.join(inside);
        Ok((mount, path))
    })
}

/// All lunfs mounts seen here, each file system once.
pub fn mounts_here() -> Result<Vec<Mount>> {
    let mut found: Vec<Mount> = Vec::new();
    for mount in mounts()?.into_iter().filter(|mount| mount.kind == FILE_SYSTEM) {
        if !found.iter().any(|other| other.device == mount.device) {
            found.push(mount);
        }
    }
    Ok(found)
}

/// The lunfs mounts whose source is `path`.
pub fn mounts_from(path: &Path) -> Result<Vec<Mount>> {
    within(path, |path| from(&canonical(path)?))
}

fn from(source: &Path) -> Result<Vec<Mount>> {
    let mut mounts = mounts()?;
    mounts.retain(|mount| mount.kind == FILE_SYSTEM && Path::new(&mount.source) == source);
    Ok(mounts)
}

fn points_of(source: &Path) -> Result<Vec<String>> {
    Ok(from(source)?.iter().map(|mount| mount.point.display().to_string()).collect())
}

fn canonical(path: &Path) -> Result<PathBuf> {
    let cannot_find = |e| HostError::io(format!("cannot find {}", path.display()), e);
    fs::canonicalize(path).map_err(cannot_find)
}

/// Looks at a path that may lie on a mount whose server hangs: then the look never ends, and its
/// thread ends with the program.
fn within<T: Send + 'static>(
    path: &Path,
    look: impl FnOnce(&Path) -> Result<T> + Send + 'static,
) -> Result<T> {
    let (say, said) = std::sync::mpsc::channel();
    let owned = path.to_owned();
    std::thread::spawn(move || say.send(look(&owned)));
    said.recv_timeout(ANSWER_MAX).unwrap_or_else(|_| {
        Err(HostError::silence(format!(
            "what serves {} has not answered for {} s; if it is a lunfs mount, its log says what \
             it waits for, and `lunfs unmount --force` of its mount point ends it",
            path.display(),
            ANSWER_MAX.as_secs()
        )))
    })
}

/// The lunfs mount at exactly `path`. It is found in the mount table alone: nothing there can be
/// looked at when the server is dead, and a look never ends when the server hangs.
pub fn mount_at(path: &Path) -> Result<Option<Mount>> {
    within(path, mount_at_now)
}

fn mount_at_now(path: &Path) -> Result<Option<Mount>> {
    let mut name = std::path::absolute(path)
        .map_err(|e| HostError::io(format!("cannot tell where {} is", path.display()), e))?;
    for _ in 0..LINKS_MAX {
        if let Some(around) = lies_in(&name)? {
            return Ok((around.point == name).then_some(around));
        }
        let names = [Some(name.clone()), beside_its_parent(&name)];
        for name in names.iter().flatten() {
            if let Some(mount) = mounted_at(name)?.filter(|mount| mount.kind == FILE_SYSTEM) {
                return Ok(Some(mount));
            }
        }
        // No mount point of ours is a link, so this asks none of our servers.
        let Ok(target) = fs::read_link(&name) else { return Ok(None) };
        name = name.parent().unwrap_or(Path::new("/")).join(target);
    }
    Ok(None)
}

/// The lunfs mounts at `point` and around it; `point` must be absolute and free of links.
pub fn lunfs_mounts_around(point: &Path) -> Result<Vec<Mount>> {
    let mut mounts = mounts()?;
    mounts.retain(|mount| mount.kind == FILE_SYSTEM && point.starts_with(&mount.point));
    Ok(mounts)
}

/// The name with the links in its directory resolved, but not looked at itself.
fn beside_its_parent(absolute: &Path) -> Option<PathBuf> {
    Some(fs::canonicalize(absolute.parent()?).ok()?.join(absolute.file_name()?))
}

/// A conversation with the program that serves a mount.
pub(crate) struct Connection {
    stream: BufReader<UnixStream>,
    point: PathBuf,
}

impl Connection {
    pub(crate) fn open(mount: &Mount) -> Result<Connection> {
        let stream = connect_within(&socket_path(mount.device))
            .map_err(|error| unreachable_server(mount, error))?;
        Ok(Connection { stream: BufReader::new(stream), point: mount.point.clone() })
    }

    /// The process that listens.
    pub(crate) fn server(&self) -> Result<Pid> {
        let peer = sockopt::socket_peercred(self.stream.get_ref());
        peer.map(|peer| peer.pid).map_err(|e| HostError::io(self.nothing_from(), e))
    }

    /// The other end is still held by the program that listens, or waits in its queue.
    pub(crate) fn must_be_open(&self) -> Result<()> {
        let mut polled = [PollFd::new(self.stream.get_ref(), PollFlags::empty())];
        match poll(&mut polled, Some(&Timespec::default())) {
            Ok(0) => Ok(()),
            Ok(_) => Err(HostError::new(format!("{}: it ended", self.nothing_from()))),
            Err(e) => Err(HostError::io(self.nothing_from(), e)),
        }
    }

    /// Sends a request and waits for its answer.
    pub(crate) fn ask(&mut self, request: &Request, patience: Duration) -> Result<Response> {
        let mut line = serde_json::to_vec(request).expect("a request is plain data");
        line.push(b'\n');
        let sent = self.stream.get_mut().write_all(&line);
        sent.map_err(|e| HostError::io(self.nothing_from(), e))?;
        self.answer(patience)
    }

    /// Waits for an answer; after one that did not come in time, again.
    pub(crate) fn answer(&mut self, patience: Duration) -> Result<Response> {
        let mut answer = String::new();
        let read = self
            .stream
            .get_mut()
            .set_read_timeout(Some(patience))
            .and_then(|()| self.stream.read_line(&mut answer));
        match read {
            Ok(0) => Err(HostError::new(format!("{}: it ended", self.nothing_from()))),
            Ok(_) => serde_json::from_str(&answer)
                .map_err(|e| HostError::new(format!("{}: {e}", self.nothing_from()))),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                let (point, seconds) = (self.point.display(), patience.as_secs_f32());
                Err(HostError::silence(format!(
                    "the program that serves {point} has not answered for {seconds} s; its log \
                     says what it waits for, and `lunfs unmount --force {point}` ends it"
                )))
            }
            Err(e) => Err(HostError::io(self.nothing_from(), e)),
        }
    }

    fn nothing_from(&self) -> String {
        format!("no clear answer from the program that serves {}", self.point.display())
    }
}

/// A stopped program takes no callers, and the kernel lets only so many wait.
fn connect_within(socket: &Path) -> io::Result<UnixStream> {
    let caller = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    sockopt::set_socket_timeout(&caller, Timeout::Send, Some(CONNECT_MAX))?;
    connect(&caller, &SocketAddrUnix::new(socket)?)?;
    Ok(UnixStream::from(caller))
}

fn unreachable_server(mount: &Mount, error: io::Error) -> HostError {
    let point = mount.point.display();
    let what = match error.kind() {
        io::ErrorKind::PermissionDenied => {
            format!("only root may ask the program that serves {point}; run this as root (sudo)")
        }
        io::ErrorKind::WouldBlock => {
            return HostError::silence(format!(
                "the program that serves {point} takes no callers; `lunfs unmount --force \
                 {point}` ends it"
            ));
        }
        _ => format!(
            "cannot reach the program that serves {point}; if it is dead, `lunfs unmount {point}` \
             removes the mount, otherwise `lunfs unmount --force {point}` does"
        ),
    };
    HostError::io(what, error)
}

fn patience(request: &Request) -> Duration {
    match request {
        Request::Unmount { deadline_ms, .. } => PATIENCE + Duration::from_millis(*deadline_ms),
        // Who asks for a change has waited for what others wrote before it.
        Request::Sync
        | Request::CreateDisk { .. }
        | Request::ResizeDisk { .. }
        | Request::DeleteDisk { .. }
        | Request::CloneDisk { .. }
        | Request::CreateSnapshot { .. }
        | Request::DeleteSnapshot { .. } => PATIENCE,
        Request::Info
        | Request::Hosts
        | Request::Locks { .. }
        | Request::Disk { .. }
        | Request::Disks { .. }
        | Request::Export { .. }
        | Request::Exports
        | Request::Unexport { .. }
        | Request::Counters => ANSWER_MAX,
    }
}
