//! Exports: files of a mounted volume as disks, by the program that serves the mount.
//!
//! ```text
//!  lunfs export -> control socket -> registry   what is exported, where, and to whom
//!                                       |
//!                                    one task that accepts, one for each connection
//!                                       |
//!                                    nbd    translates; each request is a task of its own
//!                                       |
//!                                    file   an open file of the volume: read, write, zero, sync
//! ```
//!
//! - All of it runs on the core's thread, beside FUSE, and calls only what FUSE calls.
//! - A file is open on the volume as long as it is exported, and as long as a request of an export
//!   that has ended is under way.
//! - What was begun on the volume is never broken off: a connection that is lost loses only its
//!   answers.
//! - A protocol is a module here and a line in `Protocol`.
//!
//! What callers may rely on: docs/semantics.md#exports.

mod file;
mod nbd;
mod registry;

pub use registry::Protocol;
pub(crate) use registry::{Exports, Order, Wanted};
