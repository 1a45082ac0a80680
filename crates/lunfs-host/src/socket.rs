//! A listening socket that has a name: made so that nobody else is robbed of it, and removed so.
//!
//! Invariants:
//! - Names change only under a lock, by every daemon of this machine: looking at a name and
//!   changing it are two steps. Names that users choose have a lock of their own, since they may
//!   lie where nothing answers.
//! - A name is removed only while it is still ours. The listener keeps its inode number from being
//!   used again.

use std::fs::{self, File, Permissions};
use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use rustix::fs::Mode;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen, socket_with,
};
use tokio::net::UnixListener;

/// Where the sockets of mounts are; only root may enter.
pub(crate) const DIRECTORY: &str = "/run/lunfs";
/// Locked while a name below `DIRECTORY`, or one that a user chose, changes.
const OURS: &str = DIRECTORY;
const CHOSEN: &str = "/run/lunfs/exports";
/// Callers that the kernel lets wait.
const BACKLOG: i32 = 128;

/// Whom a socket is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Owner {
    pub uid: u32,
    pub gid: u32,
}

/// The name of a socket that was made here.
#[derive(Clone, Debug)]
pub(crate) struct Name {
    path: PathBuf,
    inode: u64,
    lock: &'static str,
}

/// A socket that was just made, by whatever thread.
pub(crate) struct Bound {
    name: Name,
    listener: net::UnixListener,
}

/// A listening socket on the core's thread.
pub(crate) struct Socket {
    pub name: Name,
    pub listener: Rc<UnixListener>,
}

impl Name {
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Takes the name away, if it still is ours.
    pub fn remove(&self) -> io::Result<()> {
        let _alone = lock_names(self.lock)?;
        match fs::symlink_metadata(&self.path) {
            Ok(about) if about.ino() == self.inode => remove_if_there(&self.path),
            Err(e) if e.kind() != ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        }
    }
}

impl Bound {
    /// One of ours: whatever has the name was left by a dead or ending mount.
    pub fn replacing(path: &Path) -> io::Result<Bound> {
        let _alone = lock_names(OURS)?;
        remove_if_there(path)?;
        Bound::make(path, OURS)
    }

    /// A name that a user chose. It replaces nothing but a socket that nobody listens on any more.
    /// Blocks as long as the directory does not answer.
    pub fn chosen(path: &Path, owner: Owner) -> io::Result<Bound> {
        let _alone = lock_names(CHOSEN)?;
        match fs::symlink_metadata(path) {
            Err(e) if e.kind() == ErrorKind::NotFound => {}
            Err(e) => return Err(e),
            Ok(there) if there.file_type().is_socket() && is_stale(path)? => {
                remove_if_there(path)?;
            }
            Ok(_) => return Err(ErrorKind::AlreadyExists.into()),
        }
        let bound = Bound::make(path, CHOSEN)?;
        // Until here it is for us alone.
        if let Err(e) = std::os::unix::fs::lchown(path, Some(owner.uid), Some(owner.gid)) {
            remove_if_there(path)?;
            return Err(e);
        }
        Ok(bound)
    }

    fn make(path: &Path, lock: &'static str) -> io::Result<Bound> {
        let socket = new_socket()?;
        // Before it has a name: there is no moment in which others may connect.
        rustix::fs::fchmod(&socket, Mode::from_raw_mode(0o600))?;
        bind(&socket, &SocketAddrUnix::new(path)?)?;
        fs::set_permissions(path, Permissions::from_mode(0o600))?;
        listen(&socket, BACKLOG)?;
        let inode = fs::symlink_metadata(path)?.ino();
        Ok(Bound { name: Name { path: path.into(), inode, lock }, listener: socket.into() })
    }

    /// Must be called on the core's thread.
    pub fn listen(self) -> io::Result<Socket> {
        let listener = Rc::new(UnixListener::from_std(self.listener)?);
        Ok(Socket { name: self.name, listener })
    }
}

fn new_socket() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?)
}

/// Names change only while this is held.
fn lock_names(path: &str) -> io::Result<File> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    let directory = File::open(path)?;
    directory.lock()?;
    Ok(directory)
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

/// Nobody listens: only then the kernel refuses. A queue that is full is somebody's.
fn is_stale(path: &Path) -> io::Result<bool> {
    let caller = new_socket()?;
    let answer = connect(&caller, &SocketAddrUnix::new(path)?);
    Ok(answer == Err(rustix::io::Errno::CONNREFUSED))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A directory of one test, where there may be sockets.
    fn place(test: &str) -> Option<PathBuf> {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: root is needed for {DIRECTORY}");
            return None;
        }
        let path = std::env::temp_dir().join(format!("lunfs-{test}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Some(path)
    }

    #[test]
    fn nothing_but_a_stale_socket_is_replaced() {
        let Some(dir) = place("socket") else { return };
        let owner = Owner { uid: 1234, gid: 5678 };
        let path = dir.join("a.sock");
        let refused = |path: &Path| {
            let again = Bound::chosen(path, owner);
            assert_eq!(again.err().map(|e| e.kind()), Some(ErrorKind::AlreadyExists));
        };
        let first = Bound::chosen(&path, owner).unwrap();
        let about = fs::metadata(&path).unwrap();
        assert_eq!((about.mode() & 0o7777, about.uid(), about.gid()), (0o600, 1234, 5678));
        refused(&path);
        drop(first);
        drop(Bound::chosen(&path, owner).expect("nobody listens any more"));

        let letter = dir.join("letter");
        fs::write(&letter, "precious").unwrap();
        refused(&letter);
        std::os::unix::fs::symlink(&path, dir.join("link")).unwrap();
        refused(&dir.join("link"));
        assert_eq!(fs::read_to_string(&letter).unwrap(), "precious");
        fs::remove_dir_all(dir).unwrap();
    }
}
