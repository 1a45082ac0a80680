//! What the bytes of a lunfs volume mean.
//!
//! Bytes come in, checked values go out, and back. This crate reads no disk and knows no clock.
//! `decode` accepts any bytes and never panics; `encode` panics rather than write what `decode`
//! would refuse.
//!
//! Bytes: docs/format.md.

#![forbid(unsafe_code)]
#![cfg_attr(not(test), deny(clippy::indexing_slicing))]

mod checksum;
mod cluster;
mod content;
mod descriptor;
mod doorbell;
mod error;
mod geometry;
mod header;
mod journal;
mod layer;
#[doc(hidden)]
pub mod layout;
mod lock;
mod map_entry;
mod node;
mod pulse;
#[cfg(test)]
#[path = "../tests/samples/mod.rs"]
mod samples;
mod superblock;
#[cfg(test)]
mod testing;
mod units;

pub use checksum::{is_blank, stored_checksum};
pub use cluster::{Bitmap, Cluster};
pub use content::{Content, Tree};
pub use descriptor::{AREA, Descriptor, EntryValue, FileKind, SIZE_MAX};
pub use doorbell::{BellState, DOORBELL_LOCKS, Doorbell, Request};
pub use error::DecodeError;
pub use geometry::{
    DOORBELLS, FRONTIER_LOCK, Geometry, HEARTBEAT_START, JOURNAL_HEADERS, JOURNAL_ORPHANS,
    JOURNAL_RING, PlanError, RENAME_LOCK, SLOT_COUNT_MAX, Sizes,
};
pub use header::{Header, kind, kind_of, peek_header};
pub use journal::{ENTRIES_PER_HEAD, JournalHeader, RecordEntry, RecordHead, chain};
pub use layer::{Layer, LayerRef, Snapshot};
pub use lock::{Lock, LockMode, LockObject, Stamp};
pub use map_entry::{FILE_BLOCK_BLOCKS, MapEntry};
pub use node::{INLINE_HEADER, NODE_CAPACITY, Node, NodeBlock};
pub use pulse::{ClaimFailure, Pulse, PulseState};
pub use superblock::{SUPERBLOCK_COPIES, Superblock, Timing};
pub use units::{
    BLOCK, Block, BlockNo, Holder, Incarnation, RECORD, Record, SlotNo, Timestamp, Version,
    VolumeId,
};
