//! Values of the core as FUSE says them, and back. No state, no decisions.

use std::time::{Duration, SystemTime};

use fuser::{Errno, FileAttr, FileType, Generation, INodeNo, RenameFlags};
use lunfs_core::{Attr, Error, Fallocate, FileId, FileKind, Kind, RenameMode, Seek, XattrMode};
use lunfs_format::Timestamp;

/// Permission bits, set-id bits and the sticky bit.
pub const MODE_BITS: u32 = 0o7777;

/// Longest name in bytes.
pub const NAME_MAX: usize = 255;

/// The one place where errors of the core become numbers.
pub fn errno(error: &Error) -> Errno {
    match error.kind {
        Kind::NotFound => Errno::ENOENT,
        Kind::Exists => Errno::EEXIST,
        Kind::IsDirectory => Errno::EISDIR,
        Kind::NotDirectory => Errno::ENOTDIR,
        Kind::NotEmpty => Errno::ENOTEMPTY,
        Kind::TooLong => Errno::ENAMETOOLONG,
        Kind::NoSpace => Errno::ENOSPC,
        Kind::Busy => Errno::EBUSY,
        Kind::Stale => Errno::ESTALE,
        Kind::Invalid => Errno::EINVAL,
        Kind::ReadOnly => Errno::EROFS,
        Kind::Unsupported => Errno::EOPNOTSUPP,
        Kind::TooManyLinks => Errno::EMLINK,
        Kind::NoAttribute => Errno::ENODATA,
        // "Structure needs cleaning", as ext4 and XFS say it.
        Kind::Corrupt => Errno::from_i32(libc::EUCLEAN),
        Kind::Io | Kind::Stopped => Errno::EIO,
    }
}

/// Results of the core as results of FUSE; what an operator should hear of is logged.
pub trait OrErrno<T> {
    fn or_errno(self) -> Result<T, Errno>;
}

impl<T> OrErrno<T> for lunfs_core::Result<T> {
    fn or_errno(self) -> Result<T, Errno> {
        self.map_err(|error| {
            if matches!(error.kind, Kind::Corrupt | Kind::Io) {
                tracing::error!(event = "operation_failed", kind = ?error.kind, "{error}");
            }
            errno(&error)
        })
    }
}

/// Attributes under the node number `node`.
pub fn file_attr(attr: &Attr, node: u64) -> FileAttr {
    FileAttr {
        ino: INodeNo(node),
        size: attr.size,
        // A damaged count is shown as it is, as far as it can be.
        blocks: attr.blocks.saturating_mul(8),
        atime: to_system(attr.atime),
        mtime: to_system(attr.mtime),
        ctime: to_system(attr.ctime),
        crtime: to_system(attr.btime),
        kind: file_type(attr.kind),
        perm: u16::try_from(attr.mode & MODE_BITS).expect("twelve bits"),
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        // The kernel's 32-bit coding of device numbers, kept as it came.
        rdev: u32::try_from(attr.rdev).unwrap_or(0),
        blksize: 4096,
        flags: 0,
    }
}

/// The generation under which the kernel knows a file.
pub fn generation(id: FileId) -> Generation {
    Generation(id.birth)
}

/// Kinds of the core to kinds of FUSE.
pub fn file_type(kind: FileKind) -> FileType {
    match kind {
        FileKind::File => FileType::RegularFile,
        FileKind::Directory => FileType::Directory,
        FileKind::Symlink => FileType::Symlink,
        FileKind::Fifo => FileType::NamedPipe,
        FileKind::Socket => FileType::Socket,
        FileKind::CharDevice => FileType::CharDevice,
        FileKind::BlockDevice => FileType::BlockDevice,
    }
}

/// The kind that `mknod` asks for.
pub fn kind_of_mode(mode: u32) -> Result<FileKind, Errno> {
    Ok(match mode & libc::S_IFMT {
        0 | libc::S_IFREG => FileKind::File,
        libc::S_IFIFO => FileKind::Fifo,
        libc::S_IFSOCK => FileKind::Socket,
        libc::S_IFCHR => FileKind::CharDevice,
        libc::S_IFBLK => FileKind::BlockDevice,
        _ => return Err(Errno::EINVAL),
    })
}

/// What `rename` shall do with an existing target.
pub fn rename_mode(flags: RenameFlags) -> Result<RenameMode, Errno> {
    if flags == RenameFlags::RENAME_NOREPLACE {
        Ok(RenameMode::NoReplace)
    } else if flags == RenameFlags::RENAME_EXCHANGE {
        Ok(RenameMode::Exchange)
    } else if flags.is_empty() {
        Ok(RenameMode::Replace)
    } else {
        Err(Errno::EINVAL)
    }
}

/// What `fallocate` shall do.
pub fn fallocate_mode(mode: i32) -> Result<Fallocate, Errno> {
    let keep_size = mode & libc::FALLOC_FL_KEEP_SIZE != 0;
    match mode & !libc::FALLOC_FL_KEEP_SIZE {
        0 => Ok(Fallocate::Allocate { keep_size }),
        libc::FALLOC_FL_PUNCH_HOLE if keep_size => Ok(Fallocate::PunchHole),
        libc::FALLOC_FL_ZERO_RANGE => Ok(Fallocate::ZeroRange { keep_size }),
        _ => Err(Errno::EOPNOTSUPP),
    }
}

/// What `lseek` looks for.
pub fn seek_mode(whence: i32) -> Result<Seek, Errno> {
    match whence {
        libc::SEEK_DATA => Ok(Seek::Data),
        libc::SEEK_HOLE => Ok(Seek::Hole),
        _ => Err(Errno::EINVAL),
    }
}

/// What `setxattr` shall do with an existing attribute.
pub fn xattr_mode(flags: i32) -> Result<XattrMode, Errno> {
    match flags {
        0 => Ok(XattrMode::Any),
        libc::XATTR_CREATE => Ok(XattrMode::Create),
        libc::XATTR_REPLACE => Ok(XattrMode::Replace),
        _ => Err(Errno::EINVAL),
    }
}

/// A moment of the core as the standard library has it.
pub fn to_system(moment: Timestamp) -> SystemTime {
    let seconds = Duration::from_secs(moment.seconds.unsigned_abs());
    let whole = match moment.seconds {
        0.. => SystemTime::UNIX_EPOCH.checked_add(seconds),
        _ => SystemTime::UNIX_EPOCH.checked_sub(seconds),
    };
    let nanos = Duration::from_nanos(u64::from(moment.nanos));
    whole.and_then(|whole| whole.checked_add(nanos)).unwrap_or(SystemTime::UNIX_EPOCH)
}

/// A moment of a request. fuser 0.18 makes `UNIX_EPOCH - (seconds + nanos)` of times before 1970,
/// where the nanoseconds ought to be added: this takes it apart again as the kernel sent it.
pub fn from_request(time: SystemTime) -> Timestamp {
    match time.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(since) => Timestamp {
            seconds: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
            nanos: since.subsec_nanos(),
        },
        Err(before) => Timestamp {
            seconds: i64::try_from(before.duration().as_secs()).map_or(i64::MIN, |s| -s),
            nanos: before.duration().subsec_nanos(),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_before_1970_keep_their_nanoseconds() {
        let epoch = SystemTime::UNIX_EPOCH;
        let moment = Timestamp { seconds: -2, nanos: 800_000_000 };
        assert_eq!(to_system(moment), epoch - Duration::from_millis(1200));
        let as_fuser_has_it = epoch - Duration::new(2, 800_000_000);
        assert_eq!(from_request(as_fuser_has_it), moment);
        let later = Timestamp { seconds: 5, nanos: 1 };
        assert_eq!(from_request(to_system(later)), later);
        let first = Timestamp { seconds: i64::MIN, nanos: 0 };
        to_system(first);
    }

    #[test]
    fn requests_that_make_no_sense_are_refused() {
        let both = RenameFlags::RENAME_NOREPLACE | RenameFlags::RENAME_EXCHANGE;
        assert!(rename_mode(both).is_err());
        assert!(rename_mode(RenameFlags::RENAME_WHITEOUT).is_err());
        assert_eq!(rename_mode(RenameFlags::empty()), Ok(RenameMode::Replace));
        assert!(fallocate_mode(libc::FALLOC_FL_PUNCH_HOLE).is_err());
        assert!(fallocate_mode(libc::FALLOC_FL_COLLAPSE_RANGE).is_err());
        let punch = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        assert_eq!(fallocate_mode(punch), Ok(Fallocate::PunchHole));
        assert!(kind_of_mode(libc::S_IFDIR).is_err());
    }
}
