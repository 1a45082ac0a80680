//! The doors of a host in a world where nothing goes wrong by itself: time that jumps, marks of
//! life in a table, chance that is always the same.
//!
//! | module | what it owns |
//! |---|---|
//! | `time` | the clock, and the loop that polls a story and moves it |
//! | `marks` | who lives |
//! | `dice` | chance |
//! | `host` | how a host mounts and waits here |
//!
//! Disks are not here: each world has its own, and they differ on purpose. The tests of the core
//! have one that breaks where a rule says so, the enumeration one that writes down what it is
//! asked, the fuzz targets one that shares what it holds with its past.
//!
//! Invariants:
//! - Nothing waits for real time; the same story runs the same way each time.
//! - All hosts of a world run on one machine and boot, whose ids are zero.

#![forbid(unsafe_code)]

mod dice;
mod host;
mod marks;
mod time;

pub use dice::Dice;
pub use host::{mount, sleep};
pub use marks::Marks;
pub use time::{Endless, Limits, Time};
