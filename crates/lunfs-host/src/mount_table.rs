//! The kernel's table of mounts. It also answers for a mount whose server is dead, where every
//! look at the mount point itself fails or hangs.

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use crate::error::{HostError, Result};

/// One line of `/proc/self/mountinfo`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// Number of the mount; no other mount of this machine has it, in whatever namespace.
    pub id: u64,
    /// The mount it is mounted on.
    pub parent: u64,
    /// Device number of the file system.
    pub device: (u32, u32),
    /// Which directory of the file system is shown.
    pub root: PathBuf,
    /// Where it is mounted.
    pub point: PathBuf,
    /// Its type: `ext4`, `fuse.lunfs`, ...
    pub kind: String,
    /// What is mounted.
    pub source: String,
    /// The peer group in which mounts and unmounts on it are repeated, if it is *shared*.
    pub shared: Option<u64>,
    /// The peer group whose mounts and unmounts are repeated on it, if it is a *slave*.
    pub master: Option<u64>,
}

/// All mounts this program sees, oldest first.
pub fn mounts() -> Result<Vec<Mount>> {
    mounts_in(Path::new("/proc/self/mountinfo"))
}

/// All mounts that the process of this `mountinfo` sees, by the names it has for them.
pub fn mounts_in(path: &Path) -> Result<Vec<Mount>> {
    let text =
        fs::read(path).map_err(|e| HostError::io(format!("cannot read {}", path.display()), e))?;
    Ok(text.split(|byte| *byte == b'\n').filter_map(parse).collect())
}

/// The topmost mount at exactly `point`, which must be absolute and free of links.
pub fn mounted_at(point: &Path) -> Result<Option<Mount>> {
    Ok(mounts()?.into_iter().rev().find(|mount| mount.point == point))
}

/// The mount that `path` lies on; `path` must be absolute and free of links.
pub fn mount_of(path: &Path) -> Result<Option<Mount>> {
    let mut best: Option<Mount> = None;
    for mount in mounts()? {
        let depth = |m: &Mount| m.point.components().count();
        // Of mounts at one point the later covers the earlier.
        if path.starts_with(&mount.point) && best.as_ref().is_none_or(|b| depth(b) <= depth(&mount))
        {
            best = Some(mount);
        }
    }
    Ok(best)
}

/// `36 35 98:0 /root /point options [tags] - type source options`
fn parse(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|byte| *byte == b' ');
    let id = ascii(fields.next()?)?.parse().ok()?;
    let parent = ascii(fields.next()?)?.parse().ok()?;
    let (major, minor) = ascii(fields.next()?)?.split_once(':')?;
    let device = (major.parse().ok()?, minor.parse().ok()?);
    let root = PathBuf::from(unescape(fields.next()?));
    let point = PathBuf::from(unescape(fields.next()?));
    let (mut shared, mut master) = (None, None);
    for tag in fields.by_ref().skip(1).map_while(|field| ascii(field).filter(|tag| *tag != "-")) {
        let group = |name| tag.strip_prefix(name)?.parse().ok();
        shared = shared.or(group("shared:"));
        master = master.or(group("master:"));
    }
    let kind = ascii(fields.next()?)?.to_owned();
    let source = unescape(fields.next()?).to_string_lossy().into_owned();
    Some(Mount { id, parent, device, root, point, kind, source, shared, master })
}

fn ascii(field: &[u8]) -> Option<&str> {
    std::str::from_utf8(field).ok()
}

/// Space, tab, newline and backslash are written as `\ooo`.
fn unescape(field: &[u8]) -> OsString {
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, after)) = rest.split_first() {
        let octal = after.get(..3).and_then(ascii).and_then(|o| u8::from_str_radix(o, 8).ok());
        match octal {
            Some(byte) if first == b'\\' => {
                plain.push(byte);
                rest = &after[3..];
            }
            _ => {
                plain.push(first);
                rest = after;
            }
        }
    }
    OsString::from_vec(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_with_tags_and_escapes_is_understood() {
        let line =
            b"36 35 0:98 / /srv/my\\040disks rw,noatime master:1 shared:4 - fuse.lunfs /a\\134b rw";
        let expected = Mount {
            id: 36,
            parent: 35,
            device: (0, 98),
            root: PathBuf::from("/"),
            point: PathBuf::from("/srv/my disks"),
            kind: "fuse.lunfs".into(),
            source: "/a\\b".into(),
            shared: Some(4),
            master: Some(1),
        };
        assert_eq!(parse(line), Some(expected));
        let plain = parse(b"27 1 254:0 / / rw - ext4 /dev/vda rw").expect("no tags at all");
        assert_eq!((plain.kind.as_str(), plain.shared, plain.master), ("ext4", None, None));
        assert_eq!(parse(b"36 35 nonsense"), None);
    }

    #[test]
    fn every_path_lies_on_a_mount() {
        let root = mounted_at(Path::new("/")).unwrap().expect("the root is mounted");
        assert_eq!(mount_of(Path::new("/no such directory")).unwrap(), Some(root));
        assert_eq!(mount_of(Path::new("/proc/self")).unwrap().unwrap().kind, "proc");
    }
}
