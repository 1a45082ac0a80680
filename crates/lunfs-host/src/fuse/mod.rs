//! FUSE: the POSIX face of a volume. It translates, it never decides.
//!
//! ```text
//!  fuser threads    adapter    parses, copies, makes a job of each request (with its reply inside)
//!                     |  unbounded channel; the kernel bounds what is outstanding
//!  core's thread    server     one local task per job: node -> FileId, call the volume, answer
//! ```
//!
//! - A node number is the address of the file's descriptor, 1 for the root; the generation its
//!   birth.
//! - The kernel caches nothing between calls (time-outs zero, direct I/O): what another host
//!   changed is seen at once, and after the lease nothing is answered from a cache (N31). Shared
//!   `mmap` is allowed and is the exception: its pages are as old as their last fault.
//! - Permissions are checked by the kernel (`default_permissions`).
//! - fcntl locks and flock stay local to the host's kernel.
//!
//! What callers may rely on: docs/semantics.md.

mod adapter;
mod mount;
mod nodes;
mod reply;
mod server;
mod translate;

pub(crate) use mount::FILE_SYSTEM;
pub use mount::{FuseMount, FuseOptions};
