//! Before `format`: is there anything on the source that somebody may miss, or does somebody use
//! it? Before `mount`: does somebody use it in a way that our marks cannot see?
//!
//! Signatures are for the sentence; the rule is simpler: only zeroes are free.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use lunfs_format::{BLOCK, BlockNo, SLOT_COUNT_MAX, SUPERBLOCK_COPIES, Superblock, kind, kind_of};

use crate::disk::{Access, Source, SourceKind};
use crate::error::{HostError, Result};
use crate::loop_devices::loop_devices;
use crate::{mount_table, ofd};

/// How much of the start must be zero.
const HEAD: usize = 8 << 20;
/// How much of the end is searched for backup headers.
const TAIL: usize = 1 << 20;

/// Names what would be lost by writing a new volume to `path`, or who uses it; `None`: it is free.
pub fn what_is_there(path: &Path) -> Result<Option<String>> {
    let source = Source::open(path, Access::ReadOnly)?;
    if let Some(user) = user_of(&source)? {
        return Ok(Some(user));
    }
    let (head, tail) =
        ends(&source).map_err(|e| HostError::io(format!("cannot read {}", path.display()), e))?;
    Ok(data_in(&head, &tail))
}

/// Names who uses `path`: a mount, swap, another layer of the kernel, hosts of a lunfs volume.
pub fn in_use(path: &Path) -> Result<Option<String>> {
    user_of(&Source::open(path, Access::ReadOnly)?)
}

/// Names who uses `path` without being a host of the volume on it: a mount of another file
/// system, swap, another layer of the kernel, or hosts that reach the same bytes under another
/// name.
pub fn foreign_user(path: &Path) -> Result<Option<String>> {
    foreign_user_of(&Source::open(path, Access::ReadOnly)?)
}

// ---- users -----------------------------------------------------------------------------------

fn user_of(source: &Source) -> Result<Option<String>> {
    match host_on(source)? {
        Some(slot) => Ok(Some(format!("a mounted lunfs volume: a program here runs slot {slot}"))),
        None => foreign_user_of(source),
    }
}

/// The first slot whose life mark is held.
fn host_on(source: &Source) -> Result<Option<u64>> {
    let marked = ofd::held_elsewhere(source, ofd::LIFE_BASE, u64::from(SLOT_COUNT_MAX));
    let marked = marked.map_err(|e| {
        HostError::io(format!("cannot see the life marks of {}", source.path().display()), e)
    })?;
    Ok(marked.map(|byte| byte - ofd::LIFE_BASE))
}

fn foreign_user_of(source: &Source) -> Result<Option<String>> {
    let path = source.path();
    if source.kind() == SourceKind::Image {
        let device = backed_loop_device(path);
        return Ok(device.map(|device| format!("the image behind the loop device {device}")));
    }
    let about = fs::metadata(path)
        .map_err(|e| HostError::io(format!("cannot stat {}", path.display()), e))?;
    match hosts_beneath(about.rdev())? {
        Some(user) => Ok(Some(user)),
        None => device_in_use(path, about.rdev()),
    }
}

/// Marks on a loop device, on its image and on another loop device of that image do not meet: hosts
/// on two of them would not see each other.
fn hosts_beneath(number: u64) -> Result<Option<String>> {
    let (major, minor) = (libc::major(number), libc::minor(number));
    let about = format!("/sys/dev/block/{major}:{minor}/loop/backing_file");
    let Ok(image) = fs::read_to_string(about) else { return Ok(None) };
    let image = Path::new(image.trim_end_matches('\n'));
    let twins = loop_devices_of(image).into_iter().map(|name| Path::new("/dev").join(name));
    for name in twins.chain([image.to_owned()]) {
        if fs::metadata(&name).is_ok_and(|about| about.rdev() == number) {
            continue;
        }
        let Ok(source) = Source::open(&name, Access::ReadOnly) else { continue };
        if let Some(slot) = host_on(&source)? {
            let name = name.display();
            return Ok(Some(format!("the same bytes as {name}, where a host runs slot {slot}")));
        }
    }
    Ok(None)
}

fn device_in_use(path: &Path, number: u64) -> Result<Option<String>> {
    let device = (libc::major(number), libc::minor(number));
    if let Some(mount) = mount_table::mounts()?.into_iter().find(|mount| mount.device == device) {
        return Ok(Some(format!(
            "a {} file system mounted at {}",
            mount.kind,
            mount.point.display()
        )));
    }
    let about = format!("/sys/dev/block/{}:{}", device.0, device.1);
    if let Some(holder) = first_name(&Path::new(&about).join("holders")) {
        return Ok(Some(format!("a part of the device {holder}")));
    }
    // Exclusive to the kernel too: fails while it is mounted elsewhere, swap, RAID, LVM or dm.
    let mut options = OpenOptions::new();
    match options.read(true).custom_flags(libc::O_EXCL).open(path) {
        Ok(_) => Ok(None),
        Err(e) if e.raw_os_error() == Some(libc::EBUSY) => {
            Ok(Some("a device that the kernel uses (mount, swap, RAID or device mapper)".into()))
        }
        Err(e) => Err(HostError::io(format!("cannot open {} exclusively", path.display()), e)),
    }
}

fn first_name(dir: &Path) -> Option<String> {
    let entry = fs::read_dir(dir).ok()?.next()?.ok()?;
    Some(entry.file_name().to_string_lossy().into_owned())
}

/// The loop device that shows this image, if there is one.
fn backed_loop_device(path: &Path) -> Option<String> {
    loop_devices_of(&fs::canonicalize(path).ok()?).into_iter().next()
}

/// The loop devices that show this image.
fn loop_devices_of(image: &Path) -> Vec<String> {
    let devices = loop_devices().into_iter();
    devices.filter(|device| device.backing == image).map(|device| device.name).collect()
}

// ---- data ------------------------------------------------------------------------------------

/// Read directly from the device: what the kernel caches of a shared one may be old.
fn ends(source: &Source) -> io::Result<(Vec<u8>, Vec<u8>)> {
    let size = source.capabilities().size;
    let part = |len: usize| usize::try_from(size).unwrap_or(len).min(len);
    let head = source.read_now(0, part(HEAD))?;
    let tail = source.read_now(size - part(TAIL) as u64, part(TAIL))?;
    Ok((head, tail))
}

/// What the first and last bytes of a source say.
fn data_in(head: &[u8], tail: &[u8]) -> Option<String> {
    if let Some(volume) = lunfs_volume(head) {
        return Some(volume);
    }
    if let Some(known) = SIGNATURES.iter().find(|s| s.is_in(head)) {
        return Some(known.name.to_owned());
    }
    if let Some(backup) = backup_in(tail) {
        return Some(backup.to_owned());
    }
    let position = head.iter().position(|byte| *byte != 0)?;
    Some(format!("unknown data: byte {position} is not zero"))
}

fn lunfs_volume(head: &[u8]) -> Option<String> {
    let copies = SUPERBLOCK_COPIES.map(|at| (at, block_at(head, at)));
    let known = copies.iter().find_map(|(at, block)| Superblock::decode((*block)?, *at).ok());
    if let Some(volume) = known {
        return Some(format!("the lunfs volume {:?} ({})", volume.label, volume.volume));
    }
    // Damaged, or of another version: still not ours to overwrite.
    let looks_like = |block: Option<&[u8]>| block.and_then(kind_of) == Some(kind::SUPERBLOCK);
    copies.iter().any(|(_, block)| looks_like(*block)).then(|| "a damaged lunfs volume".into())
}

fn block_at(head: &[u8], at: BlockNo) -> Option<&[u8]> {
    let start = usize::try_from(at.offset()).ok()?;
    head.get(start..start + BLOCK)
}

struct Signature {
    name: &'static str,
    places: &'static [usize],
    bytes: &'static [u8],
}

impl Signature {
    fn is_in(&self, head: &[u8]) -> bool {
        self.places
            .iter()
            .any(|at| head.get(*at..).is_some_and(|rest| rest.starts_with(self.bytes)))
    }
}

const fn sign(name: &'static str, places: &'static [usize], bytes: &'static [u8]) -> Signature {
    Signature { name, places, bytes }
}

/// Most telling first: a partition table may hide in front of a file system.
const SIGNATURES: &[Signature] = &[
    sign("a LUKS encrypted device", &[0], b"LUKS\xba\xbe"),
    sign("a qcow2 image", &[0], b"QFI\xfb"),
    sign("a VMDK image", &[0], b"KDMV"),
    sign("a VHDX image", &[0], b"vhdxfile"),
    sign("an LVM physical volume", &[0, 512, 1024, 1536], b"LABELONE"),
    sign("a Linux RAID member", &[0, 4096], b"\xfc\x4e\x2b\xa9"),
    sign("a VMFS file system", &[1 << 20], b"\x0d\xd0\x01\xc0"),
    sign("a VMFS file system", &[2 << 20], b"\x5e\xf1\xab\x2f"),
    sign("an XFS file system", &[0], b"XFSB"),
    sign("a btrfs file system", &[65600], b"_BHRfS_M"),
    sign("an ext2, ext3 or ext4 file system", &[1080], b"\x53\xef"),
    sign("an F2FS file system", &[1024], b"\x10\x20\xf5\xf2"),
    sign("an OCFS2 file system", &[1024, 2048, 4096, 8192], b"OCFSV2"),
    sign("a GFS2 file system", &[65536], b"\x01\x16\x19\x70"),
    sign("a bcachefs or bcache device", &[4120], BCACHE),
    sign("a ReiserFS file system", &[65588], b"ReIs"),
    sign("a JFS file system", &[32768], b"JFS1"),
    sign("a SquashFS file system", &[0], b"hsqs"),
    sign("an NTFS file system", &[3], b"NTFS    "),
    sign("an exFAT file system", &[3], b"EXFAT   "),
    sign("a FAT file system", &[54], b"FAT1"),
    sign("a FAT file system", &[82], b"FAT32"),
    sign("swap space", &[4086, 65526], b"SWAPSPACE2"),
    sign("swap space", &[4086, 65526], b"SWAP-SPACE"),
    sign("an ISO 9660 file system", &[32769], b"CD001"),
    sign("a UDF file system", &[32769, 34817], b"BEA01"),
    sign("a ZFS pool member", ZFS_PLACES, b"\x0c\xb1\xba\x00\x00\x00\x00\x00"),
    sign("a ZFS pool member", ZFS_PLACES, b"\x00\x00\x00\x00\x00\xba\xb1\x0c"),
    sign("a GPT partition table", &[512, 4096], b"EFI PART"),
    sign("an MBR partition table or boot sector", &[510], b"\x55\xaa"),
];

const BCACHE: &[u8] = b"\xc6\x85\x73\xf6\x4e\x1a\x45\xca\x82\x65\xf5\x7f\x48\xba\x6d\x81";

/// The uberblocks of the first two labels, at every 1024 bytes of their arrays.
const ZFS_PLACES: &[usize] = &{
    let mut places = [0; 256];
    let mut index = 0;
    while index < 256 {
        let label = (index / 128) * (256 << 10);
        places[index] = label + (128 << 10) + (index % 128) * 1024;
        index += 1;
    }
    places
};

/// What leaves its only or second header at the end.
fn backup_in(tail: &[u8]) -> Option<&'static str> {
    let from_end = |distance: usize, bytes: &[u8]| {
        let at = tail.len().checked_sub(distance);
        at.is_some_and(|at| tail[at..].starts_with(bytes))
    };
    if from_end(512, b"EFI PART") || from_end(4096, b"EFI PART") {
        return Some("the backup of a GPT partition table, at the end");
    }
    // Formats 0.90 and 1.0, at aligned places before the end.
    let raid = tail.chunks(4096).any(|page| page.starts_with(b"\xfc\x4e\x2b\xa9"));
    raid.then_some("a Linux RAID member, by its header at the end")
}

#[cfg(test)]
#[path = "format_guard_tests.rs"]
mod tests;
