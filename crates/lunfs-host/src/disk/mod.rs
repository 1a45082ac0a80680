//! Disks: image files and block devices, reached through io_uring with direct I/O.
//!
//! ```text
//!  core's thread         UringDisk
//!                       /    |     \           channels; answers come back as oneshots
//!  threads        driver    caw    unmap
//!                 io_uring  batches chunks
//!                       \    |     /
//!  kernel                 Source               one open file description for everything
//! ```
//!
//! Invariants:
//! - All I/O and all marks go through one open file description (ofd.rs says why).
//! - A write is compared with its `until` right before each submission, also of a remainder (R1).
//! - Nothing is submitted before the answer is awaited; once submitted, dropping the answer does
//!   not take it back.
//!
//! The rules: docs/protocol.md#image-files.

mod buffer;
mod caw;
mod driver;
mod source;
mod unmap;
mod uring;

pub use caw::{Exchange, compare_and_write_now};
pub use source::{Access, Source, SourceKind};
pub use uring::UringDisk;
