//! The operations, on the core's thread: node to file, call the volume, translate the answer.

use std::cell::RefCell;
use std::rc::Rc;

use fuser::{Errno, FileAttr, Generation};
use lunfs_core::env::Clock;
use lunfs_core::{
    Attr, DirEntry, Fallocate, FileId, FileKind, Kind, New, RenameMode, Seek, SetAttr, Space,
    Volume, XattrMode,
};

use super::nodes::{Handles, Nodes};
use super::translate::{MODE_BITS, OrErrno, file_attr, generation};
use crate::clock::HostClock;

/// Result of an operation.
pub type Answer<T> = Result<T, Errno>;

/// A file the kernel is told about.
pub struct Entry {
    pub attr: FileAttr,
    pub generation: Generation,
}

/// What a write carries besides its data.
#[derive(Clone, Copy)]
pub struct WriteKind {
    /// The file is open for appending: the kernel's idea of the end may be old.
    pub append: bool,
    /// The writer may not keep set-id bits.
    pub kills_privileges: bool,
    /// It survives any crash once it is answered.
    pub durable: bool,
}

/// An xattr answer: the size asked for first, or the bytes.
pub enum Xattr {
    Size(u32),
    Bytes(Vec<u8>),
}

/// One mounted volume as the kernel sees it.
pub struct Server {
    volume: Rc<Volume>,
    nodes: RefCell<Nodes>,
    handles: RefCell<Handles>,
}

impl Server {
    pub fn new(volume: Rc<Volume>) -> Server {
        let nodes = RefCell::new(Nodes::new(volume.root()));
        Server { volume, nodes, handles: RefCell::default() }
    }

    fn file(&self, node: u64) -> Answer<FileId> {
        self.nodes.borrow().file(node)
    }

    /// An open file is known by its handle, also when the name is gone.
    fn file_of(&self, node: u64, handle: Option<u64>) -> Answer<FileId> {
        match handle {
            Some(handle) => self.handles.borrow().file(handle),
            None => self.file(node),
        }
    }

    fn entry(&self, attr: &Attr) -> Entry {
        let node = self.nodes.borrow_mut().remember(attr.id);
        Entry { attr: file_attr(attr, node), generation: generation(attr.id) }
    }

    fn attr(&self, attr: &Attr) -> FileAttr {
        file_attr(attr, self.nodes.borrow().number(attr.id))
    }

    // ---- names -------------------------------------------------------------------------------

    pub async fn lookup(&self, dir: u64, name: Vec<u8>) -> Answer<Entry> {
        let attr = self.volume.lookup(self.file(dir)?, &name).await.or_errno()?;
        Ok(self.entry(&attr))
    }

    pub fn forget(&self, node: u64, lookups: u64) {
        self.nodes.borrow_mut().forget(node, lookups);
    }

    /// Makes a file of any kind. In a set-group-id directory the group is the directory's.
    pub async fn make(&self, dir: u64, name: Vec<u8>, mut new: New) -> Answer<Entry> {
        let dir = self.file(dir)?;
        let parent = self.volume.getattr(dir).await.or_errno()?;
        new.mode &= MODE_BITS;
        if parent.mode & libc::S_ISGID != 0 {
            new.gid = parent.gid;
            if new.kind == FileKind::Directory {
                new.mode |= libc::S_ISGID;
            }
        }
        let attr = self.volume.create(dir, &name, new).await.or_errno()?;
        Ok(self.entry(&attr))
    }

    /// Makes and opens a regular file.
    ///
    /// If another host made the name since the kernel looked, the kernel must not open that file
    /// unchecked: ESTALE makes it walk the path again, find the file, and ask for permission.
    pub async fn create(
        &self,
        dir: u64,
        name: Vec<u8>,
        new: New,
        exclusive: bool,
    ) -> Answer<(Entry, u64)> {
        let entry = self.make(dir, name, new).await.map_err(|error| match error {
            Errno::EEXIST if !exclusive => Errno::ESTALE,
            error => error,
        })?;
        let handle = self.open(entry.attr.ino.0)?;
        Ok((entry, handle))
    }

    pub async fn link(&self, node: u64, dir: u64, name: Vec<u8>) -> Answer<Entry> {
        let (file, dir) = (self.file(node)?, self.file(dir)?);
        let attr = self.volume.link(file, dir, &name).await.or_errno()?;
        Ok(self.entry(&attr))
    }

    pub async fn unlink(&self, dir: u64, name: Vec<u8>) -> Answer<()> {
        self.volume.unlink(self.file(dir)?, &name).await.or_errno()
    }

    pub async fn rmdir(&self, dir: u64, name: Vec<u8>) -> Answer<()> {
        self.volume.rmdir(self.file(dir)?, &name).await.or_errno()
    }

    pub async fn rename(
        &self,
        from: (u64, Vec<u8>),
        to: (u64, Vec<u8>),
        mode: Answer<RenameMode>,
    ) -> Answer<()> {
        let (dir, to_dir) = (self.file(from.0)?, self.file(to.0)?);
        self.volume.rename(dir, &from.1, to_dir, &to.1, mode?).await.or_errno()
    }

    pub async fn readlink(&self, node: u64) -> Answer<Vec<u8>> {
        self.volume.readlink(self.file(node)?).await.or_errno()
    }

    // ---- attributes --------------------------------------------------------------------------

    pub async fn getattr(&self, node: u64, handle: Option<u64>) -> Answer<FileAttr> {
        let attr = self.volume.getattr(self.file_of(node, handle)?).await.or_errno()?;
        Ok(self.attr(&attr))
    }

    pub async fn setattr(&self, node: u64, handle: Option<u64>, set: SetAttr) -> Answer<FileAttr> {
        let attr = self.volume.setattr(self.file_of(node, handle)?, set).await.or_errno()?;
        Ok(self.attr(&attr))
    }

    pub async fn get_xattr(&self, node: u64, name: Vec<u8>, size: u32) -> Answer<Xattr> {
        if is_posix_acl(&name) {
            return Err(Errno::ENODATA);
        }
        let value = self.volume.get_xattr(self.file(node)?, &name).await.or_errno()?;
        sized(value, size)
    }

    pub async fn list_xattrs(&self, node: u64, size: u32) -> Answer<Xattr> {
        let names = self.volume.list_xattrs(self.file(node)?).await.or_errno()?;
        let list = names.into_iter().flat_map(|name| name.into_iter().chain([0])).collect();
        sized(list, size)
    }

    pub async fn set_xattr(
        &self,
        node: u64,
        name: Vec<u8>,
        value: Vec<u8>,
        mode: Answer<XattrMode>,
    ) -> Answer<()> {
        if !is_kept(&name) {
            return Err(Errno::EOPNOTSUPP);
        }
        self.volume.set_xattr(self.file(node)?, &name, &value, mode?).await.or_errno()
    }

    pub async fn remove_xattr(&self, node: u64, name: Vec<u8>) -> Answer<()> {
        self.volume.remove_xattr(self.file(node)?, &name).await.or_errno()
    }

    // ---- open files --------------------------------------------------------------------------

    pub fn open(&self, node: u64) -> Answer<u64> {
        let file = self.file(node)?;
        self.volume.open(file);
        Ok(self.handles.borrow_mut().add(file))
    }

    pub fn close(&self, handle: u64) {
        let file = self.handles.borrow_mut().remove(handle);
        if let Some(file) = file {
            self.volume.close(file);
        }
    }

    /// close(2) says it if nothing can be made durable any more.
    pub fn flush(&self) -> Answer<()> {
        if self.volume.stopped().is_some() { Err(Errno::EIO) } else { Ok(()) }
    }

    pub async fn read(&self, handle: u64, at: u64, len: u32) -> Answer<Vec<u8>> {
        let file = self.file_of(0, Some(handle))?;
        self.volume.read(file, at, len as usize).await.or_errno()
    }

    pub async fn write(&self, handle: u64, at: u64, data: Vec<u8>, kind: WriteKind) -> Answer<u32> {
        let file = self.file_of(0, Some(handle))?;
        let len = u32::try_from(data.len()).map_err(|_| Errno::EINVAL)?;
        if kind.kills_privileges {
            self.kill_privileges(file).await?;
        }
        if kind.append {
            self.volume.append(file, data).await.or_errno()?;
        } else {
            self.volume.write(file, at, data).await.or_errno()?;
        }
        if kind.durable {
            self.volume.fsync(file).await.or_errno()?;
        }
        Ok(len)
    }

    /// Direct writes reach us without the kernel having cleared set-id bits and capabilities.
    async fn kill_privileges(&self, file: FileId) -> Answer<()> {
        let mode = self.volume.getattr(file).await.or_errno()?.mode;
        let runs_as_group = mode & libc::S_ISGID != 0 && mode & libc::S_IXGRP != 0;
        let kept = mode & !libc::S_ISUID & !(if runs_as_group { libc::S_ISGID } else { 0 });
        if kept != mode {
            let set = SetAttr { mode: Some(kept & MODE_BITS), ..SetAttr::default() };
            self.volume.setattr(file, set).await.or_errno()?;
        }
        if mode & 0o111 == 0 {
            // What cannot be run has no use of capabilities; do not ask at every write.
            return Ok(());
        }
        match self.volume.remove_xattr(file, b"security.capability").await {
            Err(error) if error.kind == Kind::NoAttribute => Ok(()),
            outcome => outcome.or_errno(),
        }
    }

    pub async fn fsync(&self, handle: u64) -> Answer<()> {
        let file = self.file_of(0, Some(handle))?;
        self.volume.fsync(file).await.or_errno()
    }

    pub async fn fallocate(
        &self,
        handle: u64,
        at: u64,
        len: u64,
        mode: Answer<Fallocate>,
    ) -> Answer<()> {
        let file = self.file_of(0, Some(handle))?;
        self.volume.fallocate(file, at, len, mode?).await.or_errno()
    }

    pub async fn seek(&self, handle: u64, at: i64, what: Answer<Seek>) -> Answer<i64> {
        let (file, what) = (self.file_of(0, Some(handle))?, what?);
        let at = u64::try_from(at).map_err(|_| Errno::ENXIO)?;
        match self.volume.seek(file, at, what).await {
            Ok(found) => i64::try_from(found).map_err(|_| Errno::EOVERFLOW),
            // Behind the end, or no data until there.
            Err(error) if error.kind == Kind::NotFound => Err(Errno::ENXIO),
            Err(error) => Err(error).or_errno(),
        }
    }

    // ---- directories and the volume ----------------------------------------------------------

    /// The numbers of "." and "..".
    pub async fn dots(&self, handle: u64) -> Answer<(u64, u64)> {
        let dir = self.file_of(0, Some(handle))?;
        let attr = self.volume.getattr(dir).await.or_errno()?;
        let nodes = self.nodes.borrow();
        Ok((nodes.number(dir), nodes.number(attr.parent)))
    }

    /// Some entries behind the cookie `after`, with their numbers; none: the end.
    pub async fn readdir(&self, handle: u64, after: u64) -> Answer<Vec<(u64, DirEntry)>> {
        /// About as many as fit the kernel's usual buffer of one page.
        const AT_ONCE: usize = 100;
        let dir = self.file_of(0, Some(handle))?;
        let entries = self.volume.readdir(dir, after, AT_ONCE).await.or_errno()?;
        let nodes = self.nodes.borrow();
        Ok(entries.into_iter().map(|entry| (nodes.number(entry.id), entry)).collect())
    }

    pub async fn space(&self) -> Answer<Space> {
        self.volume.space().await.or_errno()
    }

    /// The time of day, for `utimensat(UTIME_NOW)`.
    pub fn now() -> lunfs_format::Timestamp {
        HostClock.wall()
    }
}

fn is_posix_acl(name: &[u8]) -> bool {
    name.starts_with(b"system.posix_acl_")
}

/// Whether attributes of this namespace are kept. What no file system knows is refused; so are
/// ACLs: kept but not obeyed would be worse, `cp -a` must notice.
fn is_kept(name: &[u8]) -> bool {
    [&b"user."[..], b"trusted.", b"security."].iter().any(|known| name.starts_with(known))
}

/// The size protocol of xattrs: zero asks for the size.
fn sized(bytes: Vec<u8>, size: u32) -> Answer<Xattr> {
    let len = u32::try_from(bytes.len()).map_err(|_| Errno::ERANGE)?;
    match size {
        0 => Ok(Xattr::Size(len)),
        _ if len > size => Err(Errno::ERANGE),
        _ => Ok(Xattr::Bytes(bytes)),
    }
}
