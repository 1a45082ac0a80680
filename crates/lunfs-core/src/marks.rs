//! Every life mark of a volume at once: nobody has it mounted, and nobody comes.

use lunfs_format::{Pulse, SlotNo};

use crate::env::{Env, Fence, FenceError};
use crate::error::{Error, Kind, Result};

/// The life marks that this program has taken. They are given back at the end, if they are not kept
/// then.
pub struct Marks<'e> {
    fence: &'e dyn Fence,
    taken: u32,
    is_kept: bool,
}

impl Marks<'_> {
    /// Takes the marks of all slots. `Busy`: a program here runs one of them; none is kept.
    pub fn take_all(env: &Env, slots: u32) -> Result<Marks<'_>> {
        let mut marks = Marks { fence: &*env.fence, taken: 0, is_kept: false };
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

    /// Proves that the program of this slot is over. It may live where its mark is not seen.
    pub async fn ended(&self, of: &Pulse) -> std::result::Result<(), FenceError> {
        self.fence.ended(of).await
    }

    /// From now on they stay until this program ends: what is written now may still land when it is
    /// not answered as it should be.
    pub fn keep(&mut self) {
        self.is_kept = true;
    }

    /// All that was written is answered, and went well.
    pub fn let_go(&mut self) {
        self.is_kept = false;
    }
}

impl Drop for Marks<'_> {
    fn drop(&mut self) {
        let taken = if self.is_kept { 0 } else { self.taken };
        (0..taken).map(SlotNo).for_each(|slot| self.fence.leave(slot));
    }
}
