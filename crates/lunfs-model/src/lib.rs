//! The protocol of lunfs, explored whole: every order of events of small volumes.
//!
//! | module | what it owns |
//! |---|---|
//! | `image` | small images of slots and locks, and the core's values that they stand for |
//! | `explore` | every state: safety by stateright, goals over the whole graph |
//! | `hosts` | locks, takeovers, replay, last words, kept claims; no clock |
//! | `timing` | leases, silence, and what each fence needs |
//! | `ballot` | a sketch: claims on a device without compare-and-write |
//! | `cases` | what is explored, and what must come of it |
//!
//! The guards are the decisions that ship (lunfs-core: `claim`, `settle`, `lock`, `liveness`,
//! `journal::replay`). What the models abstract, and why nothing is lost by it, stands above each.
#![forbid(unsafe_code)]

pub mod ballot;
pub mod cases;
pub mod explore;
pub mod hosts;
pub mod image;
pub mod timing;
