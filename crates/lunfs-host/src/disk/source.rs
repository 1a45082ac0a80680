//! Opening a source: is it something whose hosts can all meet, and what does it say of itself.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use lunfs_core::env::{Capabilities, IoError};
use rustix::fs::{AtFlags, StatxFlags};
use rustix::io::Errno;

use super::buffer::AlignedBuffer;
use crate::error::{HostError, Result};
use crate::mount_table;

/// What a source may be used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// For tools that look; no marks, no writes.
    ReadOnly,
    /// For mounts and format.
    ReadWrite,
}

/// What a source is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SourceKind {
    /// A file on a local file system: no other machine can reach it.
    Image,
    /// A block device: other machines may reach it.
    BlockDevice,
}

/// What a flush is answered with.
pub(super) type Flushed = std::result::Result<(), IoError>;

/// An open source: the one open file description that carries all I/O and marks of a program.
#[derive(Debug)]
pub struct Source {
    file: File,
    path: PathBuf,
    kind: SourceKind,
    capabilities: Capabilities,
    /// What the first flush that failed was answered with.
    unflushed: OnceLock<IoError>,
}

impl Source {
    /// Opens an image file or block device for direct I/O, or says why it cannot be a source.
    pub fn open(path: &Path, access: Access) -> Result<Source> {
        let shown = path.display();
        let about =
            fs::metadata(path).map_err(|e| HostError::io(format!("cannot find {shown}"), e))?;
        if about.file_type().is_block_device() {
            open_device(path, about.rdev(), access)
        } else if about.is_file() {
            open_image(path, access)
        } else {
            Err(HostError::new(format!("{shown} is neither an image file nor a block device")))
        }
    }

    /// What it is.
    pub fn kind(&self) -> SourceKind {
        self.kind
    }

    /// The name it was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Size and unit of compare-and-write.
    pub fn capabilities(&self) -> Capabilities {
        self.capabilities
    }

    /// Reads and waits. Offset and length are multiples of the logical block.
    pub fn read_now(&self, at: u64, len: usize) -> io::Result<Vec<u8>> {
        let mut buffer = AlignedBuffer::new(len);
        self.fill(at, &mut buffer.bytes_mut()[..len])?;
        Ok(buffer.bytes()[..len].to_vec())
    }

    /// Flushes and waits.
    pub(super) fn flush_now(&self) -> Flushed {
        let ended = rustix::io::retry_on_intr(|| rustix::fs::fdatasync(&self.file));
        self.flushed(ended.map_err(|e| IoError::Unflushed(e.to_string())))
    }

    /// What a flush that `ended` so is answered with, whoever asked for it. An error is told once,
    /// to one flush of this description: once one has failed, later ones say nothing about what was
    /// written before.
    pub(super) fn flushed(&self, ended: Flushed) -> Flushed {
        if let Err(e) = ended {
            // The first reason stays.
            drop(self.unflushed.set(e));
        }
        self.is_flushable()
    }

    /// Has no flush failed so far?
    pub(super) fn is_flushable(&self) -> Flushed {
        self.unflushed.get().map_or(Ok(()), |e| Err(e.clone()))
    }

    /// Fills an aligned slice from `at`.
    pub(super) fn fill(&self, at: u64, slice: &mut [u8]) -> io::Result<()> {
        let mut done = 0;
        while done < slice.len() {
            match rustix::io::pread(&self.file, &mut slice[done..], at + done as u64) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => done += count,
                Err(Errno::INTR | Errno::AGAIN) => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }
}

impl AsFd for Source {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

fn open_direct(path: &Path, access: Access) -> Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(access == Access::ReadWrite).custom_flags(libc::O_DIRECT);
    options.open(path).map_err(|e| {
        let hint = match e.raw_os_error() {
            Some(libc::EINVAL) => " for direct I/O; its file system may have none, use another one",
            _ => "",
        };
        HostError::io(format!("cannot open {}{hint}", path.display()), e)
    })
}

// ---- image files -----------------------------------------------------------------------------

fn open_image(path: &Path, access: Access) -> Result<Source> {
    let file = open_direct(path, access)?;
    let shown = path.display();
    let about = file.metadata().map_err(|e| HostError::io(format!("cannot stat {shown}"), e))?;
    if !about.is_file() {
        return Err(HostError::new(format!(
            "{shown} was exchanged while it was opened; try again"
        )));
    }
    let found = rustix::fs::fstatfs(&file)
        .map_err(|e| HostError::io(format!("cannot tell the file system of {shown}"), e))?;
    if let Some(name) = remote_file_system(found.f_type as u64 & 0xffff_ffff) {
        return Err(HostError::new(format!(
            "{shown} lies on {name}, whose locks do not prove that a host of another machine is \
             gone; put the image on a local file system, or use a block device"
        )));
    }
    let logical_block = image_alignment(&file, path)?;
    let size = about.len() / u64::from(logical_block) * u64::from(logical_block);
    let capabilities = Capabilities { logical_block, size };
    Ok(Source {
        file,
        path: path.to_owned(),
        kind: SourceKind::Image,
        capabilities,
        unflushed: OnceLock::new(),
    })
}

/// Names the file systems that other machines can reach, or of which that cannot be told.
fn remote_file_system(magic: u64) -> Option<&'static str> {
    Some(match magic {
        0x6969 => "NFS",
        0x517b | 0xff53_4d42 | 0xfe53_4d42 => "SMB",
        0x6573_5546 => "FUSE",
        0x00c3_6400 => "CephFS",
        0x0102_1997 => "9p",
        0x5346_414f | 0x6b41_4653 => "AFS",
        0x0116_1970 => "GFS2",
        0x7461_636f => "OCFS2",
        0x0bd0_0bd0 => "Lustre",
        0x4750_4653 => "GPFS",
        0x1983_0326 => "BeeGFS",
        0x7375_7245 => "Coda",
        0x786f_4256 => "a VirtualBox shared folder",
        0xbacb_acbc => "a VMware shared folder",
        0x7c7c_6673 => "a Parallels shared folder",
        _ => return None,
    })
}

/// The unit in which the file system takes direct I/O: 512 or 4096 bytes.
fn image_alignment(file: &File, path: &Path) -> Result<u32> {
    let shown = path.display();
    let told = rustix::fs::statx(file, "", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN)
        .ok()
        .filter(|x| x.stx_mask & StatxFlags::DIOALIGN.bits() != 0)
        .map(|x| x.stx_dio_offset_align);
    match told {
        Some(0) => Err(HostError::new(format!(
            "{shown} takes no direct I/O; put the image on a file system that does"
        ))),
        Some(1..=512) => Ok(512),
        Some(513..=4096) => Ok(4096),
        Some(more) => Err(HostError::new(format!(
            "{shown} takes direct I/O in units of {more} bytes; lunfs needs 512 or 4096"
        ))),
        None => Ok(tried_alignment(file)),
    }
}

/// Old kernels do not tell; a refused read of 512 bytes does.
fn tried_alignment(file: &File) -> u32 {
    let mut page = AlignedBuffer::new(512);
    match rustix::io::pread(file, &mut page.bytes_mut()[..512], 0) {
        Err(Errno::INVAL) => 4096,
        _ => 512,
    }
}

// ---- block devices ---------------------------------------------------------------------------

fn open_device(path: &Path, number: u64, access: Access) -> Result<Source> {
    let node = kernel_node(path, number)?;
    let file = open_direct(&node, access)?;
    let shown = node.display();
    let about = file.metadata().map_err(|e| HostError::io(format!("cannot stat {shown}"), e))?;
    if about.rdev() != number {
        return Err(HostError::new(format!("{shown} is another device than {}", path.display())));
    }
    if !lies_on_devtmpfs(about.dev())? {
        return Err(HostError::new(format!(
            "{shown} does not lie on the kernel's devtmpfs, so other programs of this machine may \
             not see the marks of this one; mount where /dev is the kernel's own"
        )));
    }
    let logical_block = rustix::fs::ioctl_blksszget(&file)
        .map_err(|e| HostError::io(format!("{shown} does not tell its block size"), e))?;
    if logical_block != 512 && logical_block != 4096 {
        return Err(HostError::new(format!(
            "{shown} has blocks of {logical_block} bytes; lunfs needs 512 or 4096"
        )));
    }
    let size = rustix::fs::seek(&file, rustix::fs::SeekFrom::End(0))
        .map_err(|e| HostError::io(format!("{shown} does not tell its size"), e))?;
    let capabilities = Capabilities { logical_block, size };
    Ok(Source {
        file,
        path: path.to_owned(),
        kind: SourceKind::BlockDevice,
        capabilities,
        unflushed: OnceLock::new(),
    })
}

/// The node that the kernel itself made for this device. Marks belong to the node, and a device
/// may have several: all hosts must use the same one.
fn kernel_node(path: &Path, number: u64) -> Result<PathBuf> {
    let (major, minor) = (libc::major(number), libc::minor(number));
    let about = format!("/sys/dev/block/{major}:{minor}/uevent");
    let text = fs::read_to_string(&about)
        .map_err(|e| HostError::io(format!("{}: cannot read {about}", path.display()), e))?;
    let name = text.lines().find_map(|line| line.strip_prefix("DEVNAME="));
    let name = name.ok_or_else(|| {
        HostError::new(format!("{}: {about} does not name the device", path.display()))
    })?;
    Ok(Path::new("/dev").join(name))
}

fn lies_on_devtmpfs(device: u64) -> Result<bool> {
    let wanted = (libc::major(device), libc::minor(device));
    let mounts = mount_table::mounts()?;
    Ok(mounts.iter().any(|mount| mount.kind == "devtmpfs" && mount.device == wanted))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ofd;
    use crate::scratch::{LoopDevice, Scratch};

    #[test]
    fn an_image_tells_its_size_in_whole_blocks() {
        let scratch = Scratch::image("size", (1 << 20) + 100);
        let source = Source::open(scratch.path(), Access::ReadWrite).unwrap();
        assert_eq!(source.kind(), SourceKind::Image);
        assert_eq!(source.capabilities().size, 1 << 20);
        assert!(matches!(source.capabilities().logical_block, 512 | 4096));
        assert_eq!(source.read_now(4096, 8192).unwrap(), vec![0; 8192]);
    }

    #[test]
    fn a_block_device_is_reached_through_the_kernels_own_node() {
        let scratch = Scratch::image("device", 1 << 20);
        let Some(device) = LoopDevice::attach(scratch.path(), 512) else { return };
        let source = Source::open(&device.node, Access::ReadWrite).unwrap();
        assert_eq!(source.kind(), SourceKind::BlockDevice);
        assert_eq!(source.capabilities(), Capabilities { logical_block: 512, size: 1 << 20 });

        // Another node for the same device, on another file system: still the same marks.
        let alias = scratch.path().with_extension("node");
        let number = fs::metadata(&device.node).unwrap().rdev();
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &alias,
            rustix::fs::FileType::BlockDevice,
            rustix::fs::Mode::from_raw_mode(0o600),
            number,
        )
        .unwrap();
        let other = Source::open(&alias, Access::ReadWrite);
        fs::remove_file(&alias).unwrap();
        assert!(ofd::try_lock(&source, ofd::LIFE_BASE).unwrap());
        assert!(!ofd::try_lock(other.unwrap(), ofd::LIFE_BASE).unwrap());
    }

    #[test]
    fn what_is_no_disk_is_refused_with_a_reason() {
        let refused = |path: &str| Source::open(Path::new(path), Access::ReadOnly).unwrap_err();
        assert!(refused("/dev/null").to_string().contains("neither"));
        assert!(refused("/tmp").to_string().contains("neither"));
        assert!(refused("/no/such/file").to_string().contains("cannot find"));
    }

    #[test]
    fn network_file_systems_have_names() {
        assert_eq!(remote_file_system(0x6969), Some("NFS"));
        assert_eq!(remote_file_system(0xef53), None, "ext4");
        assert_eq!(remote_file_system(0x0102_1994), None, "tmpfs");
    }
}
