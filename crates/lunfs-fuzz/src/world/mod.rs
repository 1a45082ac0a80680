//! The four doors of a host in a world where everything is counted.
//!
//! Invariants:
//! - Nothing waits for real time; the same story runs the same way each time.
//! - Polls, requests and bytes have bounds, and who exceeds one has panicked: a loop that turns in
//!   circles ends here, and so does one that reads the volume again and again.

mod disk;

use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use futures_util::future::{Either, select};
use lunfs_core::env::{Clock, Env};
use lunfs_doors::{Dice, Limits, Marks, Time};

pub use disk::{Image, Medium};

/// What a story may use up before it is said to turn in circles. In virtual time, stories of
/// damaged volumes bound themselves.
const LIMITS: Limits = Limits { polls: 400_000, polls_at_once: 20_000, ..Limits::NONE };

/// A disk and the hosts around it.
#[derive(Clone)]
pub struct World {
    /// The disk.
    pub medium: Rc<Medium>,
    /// Its time.
    time: Time,
    /// Who lives.
    pub marks: Rc<Marks>,
    dice: Rc<Dice>,
}

impl World {
    /// Nobody has it mounted.
    pub fn new(image: Image) -> World {
        let time = Time::begin();
        World {
            medium: Rc::new(Medium::new(image, time.clone())),
            time,
            marks: Rc::default(),
            dice: Rc::default(),
        }
    }

    /// The doors of one host.
    pub fn env(&self) -> Env {
        Env {
            disk: self.medium.clone(),
            fence: self.marks.clone(),
            clock: Rc::new(self.time.clone()),
            rng: self.dice.clone(),
        }
    }

    /// Polls a story until it is done.
    ///
    /// # Panics
    /// If that takes more than any story of ours needs, or nothing can ever happen again.
    pub fn run<T>(&self, story: impl Future<Output = T>) -> T {
        self.time.run(LIMITS, story).unwrap_or_else(|endless| panic!("{endless}"))
    }

    /// Ends after some milliseconds.
    pub async fn pass(&self, ms: u64) {
        self.time.sleep(Duration::from_millis(ms)).await;
    }

    /// Lets services that wait for seconds have their turn.
    pub async fn pass_services(&self) {
        self.pass(6500).await;
    }

    /// What `story` ends with, if it does within this time.
    pub async fn within<T>(&self, ms: u64, story: impl Future<Output = T>) -> Option<T> {
        match select(pin!(story), pin!(self.pass(ms))).await {
            Either::Left((out, _)) => Some(out),
            Either::Right(((), _)) => None,
        }
    }
}
