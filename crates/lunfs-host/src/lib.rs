//! The real world of lunfs: the only crate with `unsafe`.
//!
//! | module | what it is |
//! |---|---|
//! | `disk` | image files and block devices through io_uring |
//! | `fence`, `identity` | who runs a slot, is he alive, and stopping him |
//! | `clock`, `rng` | time and chance |

mod clock;
pub mod control;
pub mod disk;
mod error;
mod fence;
pub mod format_guard;
pub mod fuse;
mod identity;
mod mount_table;
mod ofd;
pub mod parent;
mod rng;
#[cfg(test)]
mod scratch;
mod session;
mod users;

pub use clock::{HostClock, boottime};
pub use error::{HostError, Result};
pub use fence::ImageFence;
pub use identity::identity;
pub use mount_table::Mount;
pub use rng::{HostRng, random_bytes};
pub use session::{Ending, serve_mount};
pub use users::{User, users_of};
