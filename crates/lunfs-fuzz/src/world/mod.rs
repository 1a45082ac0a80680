//! The four doors of a host in a world where everything is counted.
//!
//! Invariants:
//! - Nothing waits for real time; the same story runs the same way each time.
//! - Polls, requests and bytes have bounds, and who exceeds one has panicked: a loop that turns in
//!   circles ends here, and so does one that reads the volume again and again.

mod disk;
mod time;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

use futures_util::future::{Either, select};
use lunfs_core::env::{Answer, Env, Fence, FenceError, Life, Rng};
use lunfs_format::{Pulse, SlotNo};

pub use disk::{Image, Medium};
pub use time::{Time, block_on};

/// Who lives.
#[derive(Default)]
pub struct Marks(RefCell<BTreeMap<SlotNo, bool>>);

impl Marks {
    /// The program in this slot is gone, whatever it was about to do.
    pub fn kill(&self, slot: SlotNo) {
        self.0.borrow_mut().remove(&slot);
    }
}

impl Fence for Marks {
    fn enter(&self, slot: SlotNo) -> Result<bool, FenceError> {
        Ok(self.0.borrow_mut().insert(slot, true).is_none())
    }
    fn leave(&self, slot: SlotNo) {
        self.kill(slot);
    }
    fn life(&self, slot: SlotNo) -> Life {
        if self.0.borrow().contains_key(&slot) { Life::Present } else { Life::Gone }
    }
    fn fence(&self, victim: &Pulse) -> Answer<Result<(), FenceError>> {
        self.kill(victim.slot);
        Box::pin(std::future::ready(Ok(())))
    }
    fn method(&self) -> &'static str {
        "memory"
    }
}

struct Dice(Cell<u64>);

impl Rng for Dice {
    fn next(&self) -> u64 {
        let mut x = self.0.get();
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        self.0.set(x);
        x
    }
}

/// A disk and the hosts around it.
#[derive(Clone)]
pub struct World {
    /// The disk.
    pub medium: Rc<Medium>,
    /// Its time.
    pub time: Time,
    /// Who lives.
    pub marks: Rc<Marks>,
    dice: Rc<Dice>,
}

impl World {
    /// Nobody has it mounted.
    pub fn new(image: Image) -> World {
        let time = Time::default();
        World {
            medium: Rc::new(Medium::new(image, time.clone())),
            time,
            marks: Rc::default(),
            dice: Rc::new(Dice(Cell::new(0x1234_5678_9ABC_DEF1))),
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

    /// What `story` ends with, if it does within this time.
    pub async fn within<T>(&self, ms: u64, story: impl Future<Output = T>) -> Option<T> {
        let story = std::pin::pin!(story);
        match select(story, self.time.pass(ms)).await {
            Either::Left((out, _)) => Some(out),
            Either::Right(((), _)) => None,
        }
    }
}

impl World {
    /// Lets services that wait for seconds have their turn.
    pub async fn pass_services(&self) {
        self.time.pass(6500).await;
    }
}
