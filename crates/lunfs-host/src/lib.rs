//! The real world of lunfs: the only crate with `unsafe`.
//!
//! | module | what it is |
//! |---|---|
//! | `disk` | images and block devices through io_uring; compare-and-write where there is none |
//! | `ofd` | the marks by which programs of one machine meet on a source |
//! | `fence`, `identity` | who runs a slot, is he alive, and stopping him |
//! | `clock`, `rng` | time and chance |
//! | `fuse` | the POSIX face of a volume |
//! | `control` | the socket for command-line tools |
//! | `export` | files of a mount as disks, over NBD |
//! | `socket` | listening sockets: how they get their names, and lose them |
//! | `session`, `signals` | the life of one mount, from joining to the end of the process |
//! | `force` | taking a mount away from a daemon that may not answer |
//! | `parent` | the small program that outlives the daemon and writes its last word |
//! | `format_guard` | what would be lost, and who uses a source |
//! | `mount_table`, `loop_devices` | what the kernel knows of mounts and loop devices |
//! | `busy`, `users`, `copies` | what keeps a mount busy: processes, and mounts elsewhere |
//!
//! A daemon is put together like this, all on one thread, inside a `LocalSet`:
//!
//! ```text
//! UringDisk::open -> ImageFence::new(disk.source(), identity) -> Env { disk, fence, clock, rng }
//!   -> Volume::mount -> parent::announce -> serve_mount -> Ending -> process::exit
//! ```
//!
//! The process ends with `std::process::exit`: after a stop nothing may wait for a device that
//! hangs.

mod busy;
mod clock;
pub mod control;
mod copies;
pub mod disk;
mod error;
pub mod export;
mod fence;
pub mod force;
pub mod format_guard;
pub mod fuse;
mod identity;
mod loop_devices;
mod mount_table;
mod ofd;
pub mod parent;
mod rng;
#[cfg(test)]
mod scratch;
mod session;
mod signals;
mod socket;
mod users;

pub use busy::mounted_below;
pub use clock::{HostClock, boottime};
pub use error::{HostError, Result};
pub use fence::ImageFence;
pub use identity::identity;
pub use mount_table::Mount;
pub use rng::{HostRng, random_bytes};
pub use session::{Ending, serve_mount};
pub use signals::Signals;
