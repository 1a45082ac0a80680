//! The rules of lunfs, without a kernel, a clock, a thread or chance of its own.
//!
//! | module | what it owns |
//! |---|---|
//! | `env` | the four doors out: disk, fence, clock, chance |
//! | `io` | the lease gate (R1), settling compare-and-writes in doubt (R2) |
//! | `liveness` | our own pulses, other hosts' silence (R1..R3): pure decisions |
//! | `slots` | the heartbeat region: slots and doorbells |
//! | `last_word` | what the parent of a dead program says: pure decisions |
//! | `settle` | how a compare-and-write ended (R2): pure decisions |
//! | `claim` | when and how a dead slot is taken over (R4): pure decisions |
//! | `recovery` | claim, fence, replay, free |
//! | `marks`, `alone` | who has a volume for itself, and frees a slot where none is free |
//! | `lock`, `locks` | who may change an object: decisions (R5), caching and handing over (R6) |
//! | `journal` | the redo journal and its replay (R7..R9) |
//! | `meta`, `transaction`, `allocate` | cached metadata, atomic changes, space |
//! | `tree` | the B+tree of directories, maps and attributes |
//! | `inode`, `view` | what a host knows of a file; reading with and without its lock |
//! | `data`, `directory`, `attributes`, `orphans` | operations on files |
//! | `volume`, `join`, `service` | one mount: its state, coming and going, its services |
//! | `format` | an empty volume |
//! | `check` | the walker that shares no code with the above |
//!
//! Rules R1..R14 and their order of writes: docs/protocol.md.
#![forbid(unsafe_code)]

mod allocate;
mod alone;
mod attributes;
pub mod check;
pub mod claim;
mod counters;
mod data;
mod directory;
mod disk;
pub mod env;
mod error;
mod format;
mod inode;
mod io;
mod join;
pub mod journal;
pub mod last_word;
pub mod liveness;
pub mod lock;
mod locks;
mod marks;
mod meta;
mod orphans;
mod recovery;
mod service;
pub mod settle;
mod slots;
mod transaction;
pub mod tree;
mod types;
mod view;
mod volume;

pub use counters::Counters;
pub use disk::SnapshotStatus;
pub use error::{Error, Kind, Result};
pub use format::{FormatOptions, format_volume, read_superblock};
pub use types::{
    Attr, DirEntry, Fallocate, FileId, FileKind, HostStatus, Identity, LockStatus, MountOptions,
    New, RenameMode, Seek, SetAttr, Space, StopReason, XattrMode,
};
pub use volume::Volume;
