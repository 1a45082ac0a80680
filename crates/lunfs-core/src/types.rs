//! What callers hand in and get back.

use lunfs_format::{BlockNo, Holder, LockMode, Pulse, SlotNo, Timestamp, Version};

/// Names one file for as long as it lives; never names another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FileId {
    /// Address of its descriptor's lock.
    pub addr: BlockNo,
    /// Birth of that descriptor.
    pub birth: u64,
}

/// What kind of file it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
    /// A character device node.
    CharDevice,
    /// A block device node.
    BlockDevice,
}

impl FileKind {
    pub(crate) fn to_format(self) -> lunfs_format::FileKind {
        use lunfs_format::FileKind as F;
        match self {
            FileKind::File => F::File,
            FileKind::Directory => F::Directory,
            FileKind::Symlink => F::Symlink,
            FileKind::Fifo => F::Fifo,
            FileKind::Socket => F::Socket,
            FileKind::CharDevice => F::CharDevice,
            FileKind::BlockDevice => F::BlockDevice,
        }
    }

    pub(crate) fn of(kind: lunfs_format::FileKind) -> Option<FileKind> {
        use lunfs_format::FileKind as F;
        Some(match kind {
            F::File => FileKind::File,
            F::Directory => FileKind::Directory,
            F::Symlink => FileKind::Symlink,
            F::Fifo => FileKind::Fifo,
            F::Socket => FileKind::Socket,
            F::CharDevice => FileKind::CharDevice,
            F::BlockDevice => FileKind::BlockDevice,
            F::Void | F::Layer => return None,
        })
    }
}

/// Attributes of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attr {
    /// The file.
    pub id: FileId,
    /// Its kind.
    pub kind: FileKind,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Links.
    pub nlink: u32,
    /// Device number of device nodes.
    pub rdev: u64,
    /// Size in bytes; of directories the number of entries.
    pub size: u64,
    /// Blocks of 4 KiB allocated.
    pub blocks: u64,
    /// Last access (set explicitly; reading does not change it).
    pub atime: Timestamp,
    /// Last change of the contents.
    pub mtime: Timestamp,
    /// Last change of anything.
    pub ctime: Timestamp,
    /// Creation.
    pub btime: Timestamp,
    /// Of directories: the parent.
    pub parent: FileId,
    /// It is a disk: it can have snapshots and clones.
    pub is_disk: bool,
}

/// Attributes to change.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SetAttr {
    /// Permission bits.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Size in bytes.
    pub size: Option<u64>,
    /// Last access.
    pub atime: Option<Timestamp>,
    /// Last change of the contents.
    pub mtime: Option<Timestamp>,
    /// Last change of anything; now, if not given.
    pub ctime: Option<Timestamp>,
}

/// A file to be made.
#[derive(Clone, Debug)]
pub struct New {
    /// Its kind.
    pub kind: FileKind,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number of device nodes.
    pub rdev: u64,
    /// Where a symbolic link points.
    pub target: Vec<u8>,
}

/// One name in a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirEntry {
    /// The name.
    pub name: Vec<u8>,
    /// What it names.
    pub id: FileId,
    /// Its kind.
    pub kind: FileKind,
    /// Where to go on after it.
    pub cookie: u64,
}

/// What rename does with an existing target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RenameMode {
    /// It is replaced.
    Replace,
    /// It is an error.
    NoReplace,
    /// The two change places.
    Exchange,
}

/// What fallocate does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fallocate {
    /// Allocates the range; what is not written reads zero.
    Allocate {
        /// The size stays.
        keep_size: bool,
    },
    /// The range reads zero and its space is given back.
    PunchHole,
    /// The range reads zero, and has space of its own as after `Allocate`.
    ZeroRange {
        /// The size stays.
        keep_size: bool,
    },
}

/// What seek looks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seek {
    /// The next byte that was written.
    Data,
    /// The next byte that was not.
    Hole,
}

/// What `set_xattr` does with an existing attribute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum XattrMode {
    /// Creates or replaces it.
    Any,
    /// It must not exist.
    Create,
    /// It must exist.
    Replace,
}

/// Space of the volume in blocks of 4 KiB.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Space {
    /// All blocks that clusters offer.
    pub total: u64,
    /// Those not in use, as last seen.
    pub free: u64,
    /// Those that new contents may take: the rest is kept so that what was accepted can be
    /// written back.
    pub available: u64,
}

/// Who runs a mount; goes into its pulse.
#[derive(Clone, Debug, Default)]
pub struct Identity {
    /// Random, made when the program started.
    pub run: [u8; 16],
    /// Boot id of the machine.
    pub boot: [u8; 16],
    /// Machine id.
    pub machine: [u8; 16],
    /// Process id in its pid namespace.
    pub pid: u32,
    /// Start time of the process in clock ticks since boot.
    pub pid_start: u64,
    /// Inode of the pid namespace.
    pub pid_namespace: u64,
    /// A parent watches this program and writes its last word.
    pub has_parent: bool,
}

/// How to mount.
#[derive(Clone, Debug)]
pub struct MountOptions {
    /// Name of the host, unique among the live hosts of the volume.
    pub name: String,
    /// Operations that change anything are refused.
    pub read_only: bool,
    /// Who runs it.
    pub identity: Identity,
}

/// Why `serve` ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StopReason {
    /// Unmounted cleanly.
    Unmounted,
    /// This host was fenced or stopped itself; the sentence says why.
    Stopped(String),
}

/// A slot that is in use, as last read.
#[derive(Clone, Debug)]
pub struct HostStatus {
    /// The slot.
    pub slot: SlotNo,
    /// Its pulse; `None`: corrupt.
    pub pulse: Option<Pulse>,
    /// It is this mount.
    pub is_self: bool,
    /// Good time for which it has been silent, as far as this host watched it.
    pub silence_ms: Option<u64>,
}

/// A lock this host holds.
#[derive(Clone, Debug)]
pub struct LockStatus {
    /// Its address.
    pub addr: BlockNo,
    /// Its mode on disk.
    pub mode: LockMode,
    /// Its holder.
    pub holder: Option<Holder>,
    /// Its generation.
    pub generation: Version,
}
