//! What a program can ask of a mount: one variant for each operation of `Volume` that changes
//! anything, by path, so that the core and the model can both be told.

use lunfs_core::{Fallocate, FileKind, RenameMode};

/// A path without a slash at its start; empty: the root.
pub type Path = String;

/// One operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// `Volume::create`: a file, directory, link or node.
    Create {
        /// Where.
        path: Path,
        /// What.
        kind: FileKind,
    },
    /// `Volume::link`.
    Link {
        /// The file.
        from: Path,
        /// Its new name.
        to: Path,
    },
    /// `Volume::unlink`.
    Unlink(Path),
    /// `Volume::rmdir`.
    Rmdir(Path),
    /// `Volume::rename`.
    Rename {
        /// From.
        from: Path,
        /// To.
        to: Path,
        /// What becomes of what is there.
        mode: RenameMode,
    },
    /// `Volume::setattr` of the permissions.
    SetMode(Path, u32),
    /// `Volume::setattr` of the size.
    SetSize(Path, u64),
    /// `Volume::write`.
    Write {
        /// The file.
        path: Path,
        /// Where.
        at: u64,
        /// How much.
        len: usize,
        /// Tells these bytes from others.
        salt: u8,
    },
    /// `Volume::append`.
    Append {
        /// The file.
        path: Path,
        /// How much.
        len: usize,
        /// Tells these bytes from others.
        salt: u8,
    },
    /// `Volume::fallocate`.
    Fallocate {
        /// The file.
        path: Path,
        /// Where.
        at: u64,
        /// How much.
        len: u64,
        /// How.
        mode: Fallocate,
    },
    /// `Volume::set_xattr`.
    SetXattr {
        /// The file.
        path: Path,
        /// The attribute.
        name: &'static str,
        /// Bytes of its value.
        len: usize,
        /// Tells these bytes from others.
        salt: u8,
    },
    /// `Volume::remove_xattr`.
    RemoveXattr(Path, &'static str),
    /// `Volume::create_disk`.
    CreateDisk(Path, u64),
    /// `Volume::snapshot`.
    Snapshot(Path, &'static str),
    /// `Volume::delete_snapshot`.
    DeleteSnapshot(Path, &'static str),
    /// `Volume::clone_disk`.
    Clone {
        /// The disk.
        from: Path,
        /// Its snapshot; or as it is now.
        snapshot: Option<&'static str>,
        /// The new disk.
        to: Path,
    },
    /// `Volume::open`.
    Open(Path),
    /// `Volume::close` of what was opened under this path.
    Close(Path),
    /// `Volume::fsync`.
    Fsync(Path),
    /// `Volume::sync`.
    Sync,
    /// Nothing is asked for some milliseconds: what the volume does by itself.
    Idle(u64),
    /// Another host looks at everything, so that all locks must move.
    PeerLooks,
    /// Another host does this, in the same volume.
    Peer(Box<Step>),
    /// `Volume::unmount`, of the other host first.
    Unmount,
}

impl Step {
    /// Does it need another host?
    pub fn is_of_a_peer(&self) -> bool {
        matches!(self, Step::PeerLooks | Step::Peer(_))
    }
}

/// Bytes that say which write they come from, and where they belong.
pub fn pattern(at: u64, len: usize, salt: u8) -> Vec<u8> {
    let byte = |i: u64| {
        let [low, high, ..] = (at + i).to_le_bytes();
        low.wrapping_mul(31).wrapping_add(high.wrapping_mul(7)) ^ salt
    };
    (0..len as u64).map(byte).collect()
}

/// Directory and last name of a path.
pub fn split(path: &str) -> (&str, &str) {
    path.rsplit_once('/').unwrap_or(("", path))
}
