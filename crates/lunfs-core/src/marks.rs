//! Every life mark of a volume at once: nobody has it mounted, and nobody comes.

use lunfs_format::{Pulse, SlotNo};

use crate::env::{Env, Fence, FenceError};
use crate::error::{Error, Kind, Result};

/// The life marks that this program has taken. They are given back at the end.
pub struct Marks<'e> {
    fence: &'e dyn Fence,
    taken: u32,
}

impl Marks<'_> {
    /// Takes the marks of all slots. `Busy`: a program here runs one of them; none is kept.
    pub fn take_all(env: &Env, slots: u32) -> Result<Marks<'_>> {
        let mut marks = Marks { fence: &*env.fence, taken: 0 };
        for slot in (0..slots).map(SlotNo) {
            let taken = marks.fence.enter(slot);
            if !taken.map_err(|e| Error::new(Kind::Io, e.to_string()))? {
                let why = format!(
                    "a program here runs slot {slot}; nothing was changed, unmount everywhere first"
                );
                return Err(Error::new(Kind::Busy, why));
            }
            marks.taken += 1;
        }
        Ok(marks)
    }

    /// Proves that the program of this slot is over. Its mark is free meanwhile, and afterwards if
    /// that is not proven: the others suffice to keep everybody out.
    pub async fn fence(&self, of: &Pulse) -> std::result::Result<(), FenceError> {
        self.fence.leave(of.slot);
        self.fence.fence(of).await?;
        match self.fence.enter(of.slot)? {
            true => Ok(()),
            false => Err(FenceError(format!("somebody else looks at slot {} as well", of.slot))),
        }
    }

    /// Keeps them for as long as this program lives: what it wrote may still land.
    pub fn keep(mut self) {
        self.taken = 0;
    }
}

impl Drop for Marks<'_> {
    fn drop(&mut self) {
        (0..self.taken).map(SlotNo).for_each(|slot| self.fence.leave(slot));
    }
}
