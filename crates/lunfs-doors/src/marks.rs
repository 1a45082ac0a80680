//! Marks of life in a table.

use std::cell::RefCell;
use std::collections::BTreeSet;

use lunfs_core::env::{Answer, Fence, FenceError, Life};
use lunfs_format::{Pulse, SlotNo};

/// Who lives. A program that dies here has no write under way: its story was dropped.
#[derive(Default)]
pub struct Marks {
    living: RefCell<BTreeSet<SlotNo>>,
    spares_the_living: bool,
}

impl Marks {
    /// Marks whose fence refuses to kill: who is to be fenced must be dead already.
    pub fn that_spare_the_living() -> Marks {
        Marks { spares_the_living: true, ..Marks::default() }
    }

    /// The program in this slot is gone, whatever it was about to do.
    pub fn kill(&self, slot: SlotNo) {
        self.living.borrow_mut().remove(&slot);
    }
}

impl Fence for Marks {
    fn enter(&self, slot: SlotNo) -> Result<bool, FenceError> {
        Ok(self.living.borrow_mut().insert(slot))
    }
    fn leave(&self, slot: SlotNo) {
        self.kill(slot);
    }
    fn life(&self, slot: SlotNo) -> Life {
        if self.living.borrow().contains(&slot) { Life::Present } else { Life::Gone }
    }
    fn fence(&self, victim: &Pulse) -> Answer<Result<(), FenceError>> {
        if self.spares_the_living && self.life(victim.slot) == Life::Present {
            return Box::pin(async { Err(FenceError("it lives".to_owned())) });
        }
        self.kill(victim.slot);
        Box::pin(async { Ok(()) })
    }
    fn ended(&self, _: &Pulse) -> Answer<Result<(), FenceError>> {
        Box::pin(async { Ok(()) })
    }
    fn method(&self) -> &'static str {
        "memory"
    }
}
