//! Before `format`: is there anything on the source that somebody may miss, or does somebody use
//! it? Before `mount`: does somebody use it in a way that our marks cannot see?
//!
//! Signatures are for the sentence; the rule is simpler: only zeroes are free.
//!
//! ```text
//!  image file     all that is written (holes are not): at most 64 MiB of it may be zeroes
//!  block device   the first 16 MiB |  .  .  64 KiB at each of 256 places  .  .  | the last 16 MiB
//! ```

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use lunfs_format::{BLOCK, BlockNo, SLOT_COUNT_MAX, SUPERBLOCK_COPIES, Superblock, kind, kind_of};
use rustix::fs::SeekFrom;
use rustix::io::Errno;

use crate::disk::{Access, Source, SourceKind};
use crate::error::{HostError, Result};
use crate::loop_devices::loop_devices;
use crate::{mount_table, ofd};

/// How much of an image's start is searched for signatures, and of a device's start and end must
/// be zero.
const END: u64 = 16 << 20;
/// Places between them that must be zero on a device, and how much of each.
const PLACES: u64 = 256;
const PLACE: usize = 64 << 10;
/// How much of what is written to an image is read.
const WRITTEN_MAX: u64 = 64 << 20;
/// How much of the end is searched for backup headers.
const TAIL: usize = 1 << 20;
/// How much is read at once.
const CHUNK: usize = 1 << 20;

/// Names what would be lost by writing a new volume to `path`, or who uses it; `None`: it is free.
pub fn what_is_there(path: &Path) -> Result<Option<String>> {
    let source = Source::open(path, Access::ReadOnly)?;
    if let Some(user) = user_of(&source)? {
        return Ok(Some(user));
    }
    let found = match source.kind() {
        SourceKind::Image => File::open(path).and_then(|image| data_in_image(&image)),
        SourceKind::BlockDevice => data_on_device(&source),
    };
    found.map_err(|e| HostError::io(format!("cannot read {}", path.display()), e))
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

/// Of an image only this machine has a cache, so it is read through that: all bytes, also a rest
/// that is no whole block.
fn data_in_image(image: &File) -> io::Result<Option<String>> {
    let size = image.metadata()?.len();
    let part = usize::try_from(size.min(END)).unwrap_or_default();
    let (mut head, mut tail) = (vec![0; part], vec![0; part]);
    image.read_exact_at(&mut head, 0)?;
    image.read_exact_at(&mut tail, size - part as u64)?;
    match known_in(&head, &tail) {
        Some(known) => Ok(Some(known)),
        None => written_to(image, size),
    }
}

/// What is written to an image and not zero, or too much to look at.
fn written_to(image: &File, size: u64) -> io::Result<Option<String>> {
    let (mut at, mut left) = (0, WRITTEN_MAX);
    // Ends: `at` rises, or there is no more data.
    while let Some((start, end)) = written_from(image, at, size)? {
        let readable = end.min(start + left);
        if let Some(found) = not_zero(image, start, readable)? {
            return Ok(Some(found));
        }
        if readable < end {
            return Ok(Some(format!(
                "more than {} MiB that were written, zeroes as far as they were read (byte \
                 {readable})",
                WRITTEN_MAX >> 20
            )));
        }
        left -= readable - start;
        at = end;
    }
    Ok(None)
}

/// The first bytes from `at` on that were written, as the file system knows it.
fn written_from(image: &File, at: u64, size: u64) -> io::Result<Option<(u64, u64)>> {
    if at >= size {
        return Ok(None);
    }
    let start = match rustix::fs::seek(image, SeekFrom::Data(at)) {
        Ok(start) => start,
        Err(Errno::NXIO) => return Ok(None),
        // It does not know: all of it may be.
        Err(Errno::INVAL) => return Ok(Some((at, size))),
        Err(e) => return Err(e.into()),
    };
    Ok(Some((start, rustix::fs::seek(image, SeekFrom::Hole(start))?)))
}

fn not_zero(image: &File, start: u64, end: u64) -> io::Result<Option<String>> {
    let mut buffer = vec![0; CHUNK];
    let mut at = start;
    while at < end {
        let len = usize::try_from(end - at).unwrap_or(CHUNK).min(CHUNK);
        image.read_exact_at(&mut buffer[..len], at)?;
        if let Some(found) = unknown_in(&buffer[..len], at) {
            return Ok(Some(found));
        }
        at += len as u64;
    }
    Ok(None)
}

/// Read directly from the device: what the kernel caches of a shared one may be old.
fn data_on_device(source: &Source) -> io::Result<Option<String>> {
    let size = source.capabilities().size;
    let part = usize::try_from(size.min(END)).unwrap_or_default();
    let (head, tail) = (source.read_now(0, part)?, source.read_now(size - part as u64, part)?);
    if let Some(known) = known_in(&head, &tail) {
        return Ok(Some(known));
    }
    let ends = unknown_in(&head, 0).or_else(|| unknown_in(&tail, size - part as u64));
    if ends.is_some() {
        return Ok(ends);
    }
    for at in places(size) {
        if let Some(found) = unknown_in(&source.read_now(at, PLACE)?, at) {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

/// Where a device is looked at between its ends: at even distances, at whole blocks.
fn places(size: u64) -> impl Iterator<Item = u64> {
    let between = size.saturating_sub(2 * END + PLACE as u64);
    let count = if between == 0 { 0 } else { PLACES };
    let place = move |index| END + between / PLACES * index + between % PLACES * index / PLACES;
    (0..count).map(move |index| place(index) / BLOCK as u64 * BLOCK as u64)
}

/// What the first and last bytes of a source say, if they say what is there.
fn known_in(head: &[u8], tail: &[u8]) -> Option<String> {
    if let Some(volume) = lunfs_volume(head) {
        return Some(volume);
    }
    if let Some(known) = SIGNATURES.iter().find(|s| s.is_in(head)) {
        return Some(known.name.to_owned());
    }
    backup_in(&tail[tail.len().saturating_sub(TAIL)..]).map(str::to_owned)
}

/// `bytes` lie at `start`.
fn unknown_in(bytes: &[u8], start: u64) -> Option<String> {
    let at = start + bytes.iter().position(|byte| *byte != 0)? as u64;
    Some(format!("unknown data: byte {at} is not zero"))
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
