//! The host's redo journal: writing it, moving its tail, replaying a dead host's.
//!
//! Bytes: docs/format.md#journal-record. Order of writes: docs/protocol.md#journal.

pub mod replay;
mod write;

pub use write::{Admission, Journal, Revoked};
