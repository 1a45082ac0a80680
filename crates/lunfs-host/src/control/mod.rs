//! The control socket: how `lunfs info`, `locks`, `unmount` reach the program that serves a mount.
//!
//! One request and one answer, each a line of JSON. The socket is
//! `/run/lunfs/<major>-<minor>.sock`, named by the device number of the mounted file system,
//! which the mount table tells even when the server is dead.

mod client;
mod disks;
mod server;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub(crate) use client::Connection;
pub use client::{
    call, file_on_mount, find_mount, lies_in, lunfs_mounts_around, mount_at, mounts_from,
    mounts_here,
};
pub use server::About;
pub(crate) use server::{Control, Unmount};

use crate::export::Protocol;
use crate::socket::DIRECTORY;

/// What a mounted volume can be asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub enum Request {
    /// What is mounted, how, and how it is doing.
    Info,
    /// Slots that are in use.
    Hosts,
    /// Locks this host holds.
    Locks {
        /// Only those of this file, a path below the mount point.
        #[serde(default)]
        path: Option<String>,
    },
    /// Unmount and end.
    Unmount {
        /// Even if it is busy.
        #[serde(default)]
        force: bool,
        /// With `force`: how long to wait for its users first.
        #[serde(default)]
        deadline_ms: u64,
    },
    /// Export a file.
    Export {
        /// How clients speak to it.
        protocol: Protocol,
        /// The file, a path below the mount point.
        path: String,
        /// Where they connect: an absolute path.
        socket: String,
        /// They may only read.
        #[serde(default)]
        read_only: bool,
    },
    /// What is exported.
    Exports,
    /// End exports: the one at a socket, or all of a file.
    Unexport {
        /// The socket, as `Exports` says it.
        #[serde(default)]
        socket: Option<String>,
        /// The file, a path below the mount point.
        #[serde(default)]
        path: Option<String>,
        /// Even if it has clients.
        #[serde(default)]
        force: bool,
    },
    /// What a disk is.
    Disk {
        /// The disk, a path below the mount point.
        path: String,
    },
    /// Disks and directories in a directory, as many as fit one answer.
    Disks {
        /// The directory, a path below the mount point.
        path: String,
        /// Where the last answer ended.
        #[serde(default)]
        after: u64,
    },
    /// Make a disk, which belongs to who asks.
    CreateDisk {
        /// Its path below the mount point.
        path: String,
        /// Bytes.
        size: u64,
    },
    /// Make a disk longer, or cut it.
    ResizeDisk {
        /// The disk.
        path: String,
        /// Bytes.
        size: u64,
    },
    /// Delete a disk with its snapshots.
    DeleteDisk {
        /// The disk.
        path: String,
    },
    /// Make a disk that begins as another one.
    CloneDisk {
        /// The other one.
        source: String,
        /// As it was at this snapshot; as it is now, if none is named.
        #[serde(default)]
        snapshot: Option<String>,
        /// The path of the clone below the mount point.
        path: String,
    },
    /// Make a snapshot.
    CreateSnapshot {
        /// Of this disk.
        path: String,
        /// Its name.
        name: String,
    },
    /// Delete a snapshot.
    DeleteSnapshot {
        /// Of this disk.
        path: String,
        /// Its name.
        name: String,
    },
    /// Numbers of events since the mount.
    Counters,
    /// Make everything durable.
    Sync,
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Response {
    /// It was done; what was asked for.
    Ok(serde_json::Value),
    /// It was not done; why, and what to do.
    Error(String),
    /// It shall not be done, not by force either, or not unless by force: the same.
    Refused(String),
}

/// The socket of the file system with this device number.
fn socket_path(device: (u32, u32)) -> PathBuf {
    PathBuf::from(format!("{DIRECTORY}/{}-{}.sock", device.0, device.1))
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
