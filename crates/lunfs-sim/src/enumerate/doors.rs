//! The doors of all hosts of one enumerated world. Only the disk is worth a file of its own.

use std::rc::Rc;

use lunfs_core::env::{Disk, Env};
use lunfs_doors::{Marks, Time};

use crate::chance::Chance;

/// The doors of all hosts of one world. Nobody is fenced here who lives.
pub fn doors(disk: Rc<dyn Disk>, time: &Time, seed: u64) -> Env {
    Env {
        disk,
        fence: Rc::new(Marks::that_spare_the_living()),
        clock: Rc::new(time.clone()),
        rng: Rc::new(Chance::new(seed)),
    }
}
