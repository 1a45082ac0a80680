//! Crash enumeration: every crash of every operation, not some of them.
//!
//! ```text
//!  fixture -> case: operations on a recording disk -> events
//!                       |  before each event: every legal subset of what is not durable
//!                       v
//!                     image -> another host recovers, looks, leaves; the walker -> verdict
//!                       |                                          (once for equal images)
//!                       v
//!                     the recovery recorded -> its events -> images -> a third host -> verdict
//! ```
//!
//! | module | what it owns |
//! |---|---|
//! | `image` | contents of a disk, cheap to copy and compare |
//! | `recorder`, `doors` | the doors of the core |
//! | `surviving` | what a crash may leave |
//! | `step`, `operation`, `act` | what is asked of a mount |
//! | `model`, `verdict`, `seen` | what may be seen afterwards |
//! | `fixture`, `case` | the prepared volume; one recorded run |
//! | `survivor` | recovery by another host, and the walker |
//! | `engine`, `command` | all of it together, counted |
//!
//! Nothing here is random: the same code enumerates the same states.

mod act;
mod case;
pub mod command;
mod doors;
mod engine;
mod fixture;
mod image;
mod model;
mod operation;
mod recorder;
mod seen;
mod step;
mod surviving;
mod survivor;
mod verdict;
