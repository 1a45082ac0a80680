//! fuser's callbacks, on fuser's threads: copy what a request holds, make a job, send it to the
//! core.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::rc::Rc;
use std::time::SystemTime;

use fuser::{
    BsdFileFlags, CopyFileRangeFlags, Errno, FileHandle, FileType, Filesystem, FopenFlags, INodeNo,
    InitFlags, KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData,
    ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite,
    ReplyXattr, Request, TimeOrNow, WriteFlags,
};
use futures_util::future::LocalBoxFuture;
use lunfs_core::{FileKind, New, SetAttr};
use lunfs_format::Timestamp;
use tokio::sync::mpsc::UnboundedSender;

use super::reply::Reply;
use super::server::{Answer, Server, WriteKind};
use super::translate::{
    fallocate_mode, file_type, from_request, kind_of_mode, rename_mode, seek_mode, xattr_mode,
};

/// One request with its reply, to be run on the core's thread.
pub type Job = Box<dyn FnOnce(Rc<Server>) -> LocalBoxFuture<'static, ()> + Send>;

/// Largest read and write of one request.
const MAX_WRITE: u32 = 1 << 20;
/// Asynchronous requests the kernel may have outstanding.
const MAX_BACKGROUND: u16 = 64;
/// Cookies of "." and ".."; those of entries are higher.
const DOT: u64 = 1;
const DOT_DOT: u64 = 2;

/// Turns requests into jobs.
pub struct Adapter {
    pub jobs: UnboundedSender<Job>,
}

impl Adapter {
    fn run<F>(&self, job: impl FnOnce(Rc<Server>) -> F + Send + 'static)
    where
        F: Future<Output = ()> + 'static,
    {
        let job: Job = Box::new(move |server| Box::pin(job(server)));
        // If the core is gone, the job is dropped, and its reply with it: fuser then answers EIO.
        drop(self.jobs.send(job));
    }

    fn make(&self, dir: INodeNo, name: &OsStr, new: New, reply: ReplyEntry) {
        let name = owned(name);
        self.run(move |server| async move { reply.give(server.make(dir.0, name, new).await) });
    }

    fn fsync_handle(&self, handle: FileHandle, reply: ReplyEmpty) {
        self.run(move |server| async move { reply.give(server.fsync(handle.0).await) });
    }

    fn open_node(&self, node: INodeNo, flags: FopenFlags, reply: ReplyOpen) {
        self.run(move |server| async move {
            reply.give(server.open(node.0).map(|handle| (handle, flags)));
        });
    }

    fn close_handle(&self, handle: FileHandle, reply: ReplyEmpty) {
        self.run(move |server| async move {
            server.close(handle.0);
            reply.ok();
        });
    }
}

impl Filesystem for Adapter {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let wanted = [
            // Large direct requests are split and sent together.
            InitFlags::FUSE_ASYNC_DIO,
            InitFlags::FUSE_PARALLEL_DIROPS,
            // Shared mmap of files that are open for direct I/O, and its pages dropped when size or
            // mtime turn out to have changed.
            InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP,
            InitFlags::FUSE_AUTO_INVAL_DATA,
        ];
        for flag in wanted {
            if let Err(missing) = config.add_capabilities(flag) {
                tracing::warn!(event = "fuse", ?missing, "this kernel's FUSE lacks something");
            }
        }
        let refused = |nearest| io::Error::other(format!("FUSE takes {nearest} at most"));
        config.set_max_write(MAX_WRITE).map_err(refused)?;
        config.set_max_background(MAX_BACKGROUND).map_err(|n| refused(n.into()))?;
        Ok(())
    }

    // ---- names -------------------------------------------------------------------------------

    fn lookup(&self, _: &Request, dir: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let name = owned(name);
        self.run(move |server| async move { reply.give(server.lookup(dir.0, name).await) });
    }

    fn forget(&self, _: &Request, node: INodeNo, lookups: u64) {
        self.run(move |server| async move { server.forget(node.0, lookups) });
    }

    fn mknod(
        &self,
        request: &Request,
        dir: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        match kind_of_mode(mode) {
            Ok(kind) => {
                let new = New { rdev: rdev.into(), ..new(request, kind, mode) };
                self.make(dir, name, new, reply);
            }
            Err(error) => reply.error(error),
        }
    }

    fn mkdir(
        &self,
        request: &Request,
        dir: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        reply: ReplyEntry,
    ) {
        self.make(dir, name, new(request, FileKind::Directory, mode), reply);
    }

    fn symlink(
        &self,
        request: &Request,
        dir: INodeNo,
        name: &OsStr,
        target: &Path,
        reply: ReplyEntry,
    ) {
        let target = owned(target.as_os_str());
        let new = New { target, ..new(request, FileKind::Symlink, 0o777) };
        self.make(dir, name, new, reply);
    }

    fn create(
        &self,
        request: &Request,
        dir: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let (name, new) = (owned(name), new(request, FileKind::File, mode));
        let exclusive = flags & libc::O_EXCL != 0;
        self.run(move |server| async move {
            reply.give(server.create(dir.0, name, new, exclusive).await);
        });
    }

    fn link(&self, _: &Request, node: INodeNo, dir: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let name = owned(name);
        self.run(move |server| async move { reply.give(server.link(node.0, dir.0, name).await) });
    }

    fn unlink(&self, _: &Request, dir: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let name = owned(name);
        self.run(move |server| async move { reply.give(server.unlink(dir.0, name).await) });
    }

    fn rmdir(&self, _: &Request, dir: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let name = owned(name);
        self.run(move |server| async move { reply.give(server.rmdir(dir.0, name).await) });
    }

    fn rename(
        &self,
        _: &Request,
        dir: INodeNo,
        name: &OsStr,
        to_dir: INodeNo,
        to_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let (from, to) = ((dir.0, owned(name)), (to_dir.0, owned(to_name)));
        self.run(move |server| async move {
            reply.give(server.rename(from, to, rename_mode(flags)).await);
        });
    }

    fn readlink(&self, _: &Request, node: INodeNo, reply: ReplyData) {
        self.run(move |server| async move { reply.give(server.readlink(node.0).await) });
    }

    // ---- attributes --------------------------------------------------------------------------

    fn getattr(&self, _: &Request, node: INodeNo, handle: Option<FileHandle>, reply: ReplyAttr) {
        let handle = handle.map(|handle| handle.0);
        self.run(move |server| async move { reply.give(server.getattr(node.0, handle).await) });
    }

    fn setattr(
        &self,
        _: &Request,
        node: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        ctime: Option<SystemTime>,
        handle: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let set = SetAttr {
            mode: mode.map(|mode| mode & super::translate::MODE_BITS),
            uid,
            gid,
            size,
            atime: atime.map(moment),
            mtime: mtime.map(moment),
            ctime: ctime.map(from_request),
        };
        let handle = handle.map(|handle| handle.0);
        self.run(
            move |server| async move { reply.give(server.setattr(node.0, handle, set).await) },
        );
    }

    fn setxattr(
        &self,
        _: &Request,
        node: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        let (name, value) = (owned(name), value.to_vec());
        self.run(move |server| async move {
            reply.give(server.set_xattr(node.0, name, value, xattr_mode(flags)).await);
        });
    }

    fn getxattr(&self, _: &Request, node: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let name = owned(name);
        self.run(
            move |server| async move { reply.give(server.get_xattr(node.0, name, size).await) },
        );
    }

    fn listxattr(&self, _: &Request, node: INodeNo, size: u32, reply: ReplyXattr) {
        self.run(move |server| async move { reply.give(server.list_xattrs(node.0, size).await) });
    }

    fn removexattr(&self, _: &Request, node: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let name = owned(name);
        self.run(move |server| async move { reply.give(server.remove_xattr(node.0, name).await) });
    }

    // ---- open files --------------------------------------------------------------------------

    fn open(&self, _: &Request, node: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        self.open_node(node, FopenFlags::FOPEN_DIRECT_IO, reply);
    }

    fn release(
        &self,
        _: &Request,
        _node: INodeNo,
        handle: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.close_handle(handle, reply);
    }

    fn flush(
        &self,
        _: &Request,
        _node: INodeNo,
        _handle: FileHandle,
        _lock_owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        self.run(move |server| async move { reply.give(server.flush()) });
    }

    fn read(
        &self,
        _: &Request,
        _node: INodeNo,
        handle: FileHandle,
        at: u64,
        len: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        self.run(move |server| async move { reply.give(server.read(handle.0, at, len).await) });
    }

    fn write(
        &self,
        _: &Request,
        _node: INodeNo,
        handle: FileHandle,
        at: u64,
        data: &[u8],
        write_flags: WriteFlags,
        flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        // A page that mmap made dirty has its place, whoever wrote it.
        let from_cache = write_flags.contains(WriteFlags::FUSE_WRITE_CACHE);
        let kind = WriteKind {
            append: flags.0 & libc::O_APPEND != 0 && !from_cache,
            kills_privileges: write_flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID),
            // The kernel leaves this to us, for O_SYNC and for RWF_DSYNC of a single write.
            durable: flags.0 & libc::O_DSYNC != 0,
        };
        let data = data.to_vec();
        self.run(move |server| async move {
            reply.give(server.write(handle.0, at, data, kind).await);
        });
    }

    fn fsync(
        &self,
        _: &Request,
        _node: INodeNo,
        handle: FileHandle,
        _datasync: bool,
        reply: ReplyEmpty,
    ) {
        self.fsync_handle(handle, reply);
    }

    fn fallocate(
        &self,
        _: &Request,
        _node: INodeNo,
        handle: FileHandle,
        at: u64,
        len: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        self.run(move |server| async move {
            reply.give(server.fallocate(handle.0, at, len, fallocate_mode(mode)).await);
        });
    }

    fn lseek(
        &self,
        _: &Request,
        _node: INodeNo,
        handle: FileHandle,
        at: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        self.run(move |server| async move {
            reply.give(server.seek(handle.0, at, seek_mode(whence)).await);
        });
    }

    fn copy_file_range(
        &self,
        _: &Request,
        _from: INodeNo,
        _from_handle: FileHandle,
        _from_at: u64,
        _to: INodeNo,
        _to_handle: FileHandle,
        _to_at: u64,
        _len: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        // The kernel then copies by reads and writes, and does not ask again.
        reply.error(Errno::ENOSYS);
    }

    // ---- directories and the volume ----------------------------------------------------------

    fn opendir(&self, _: &Request, node: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        self.open_node(node, FopenFlags::empty(), reply);
    }

    fn releasedir(
        &self,
        _: &Request,
        _node: INodeNo,
        handle: FileHandle,
        _flags: OpenFlags,
        reply: ReplyEmpty,
    ) {
        self.close_handle(handle, reply);
    }

    fn readdir(
        &self,
        _: &Request,
        _node: INodeNo,
        handle: FileHandle,
        after: u64,
        mut reply: ReplyDirectory,
    ) {
        self.run(move |server| async move {
            match fill(&server, handle.0, after, &mut reply).await {
                Ok(()) => reply.ok(),
                Err(error) => reply.error(error),
            }
        });
    }

    fn fsyncdir(
        &self,
        _: &Request,
        _node: INodeNo,
        handle: FileHandle,
        _datasync: bool,
        reply: ReplyEmpty,
    ) {
        self.fsync_handle(handle, reply);
    }

    fn statfs(&self, _: &Request, _node: INodeNo, reply: ReplyStatfs) {
        self.run(move |server| async move { reply.give(server.space().await) });
    }
}

fn owned(name: &OsStr) -> Vec<u8> {
    name.as_bytes().to_vec()
}

fn new(request: &Request, kind: FileKind, mode: u32) -> New {
    New { kind, mode, uid: request.uid(), gid: request.gid(), rdev: 0, target: Vec::new() }
}

fn moment(time: TimeOrNow) -> Timestamp {
    match time {
        TimeOrNow::SpecificTime(time) => from_request(time),
        TimeOrNow::Now => Server::now(),
    }
}

/// Fills a reply with the entries behind the cookie `after`, as many as fit.
async fn fill(
    server: &Server,
    handle: u64,
    mut after: u64,
    reply: &mut ReplyDirectory,
) -> Answer<()> {
    if after < DOT_DOT {
        let (here, parent) = server.dots(handle).await?;
        let dir = FileType::Directory;
        if after < DOT && reply.add(INodeNo(here), DOT, dir, ".") {
            return Ok(());
        }
        if reply.add(INodeNo(parent), DOT_DOT, dir, "..") {
            return Ok(());
        }
        after = DOT_DOT;
    }
    loop {
        let entries = server.readdir(handle, after).await?;
        if entries.is_empty() {
            return Ok(());
        }
        for (node, entry) in entries {
            let name = OsStr::from_bytes(&entry.name);
            if reply.add(INodeNo(node), entry.cookie, file_type(entry.kind), name) {
                return Ok(());
            }
            after = entry.cookie;
        }
    }
}
