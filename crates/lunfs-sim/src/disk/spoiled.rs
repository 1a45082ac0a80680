//! Blocks that nobody can write any more, however often it is tried.

use std::ops::Range;

use crate::executor::Owner;

/// Blocks that cannot be written: each write to them ends in doubt.
#[derive(Clone, Debug)]
pub enum Spoiled {
    /// Those of the `countdown`-th plain write of this program from now.
    Next {
        owner: Owner,
        countdown: u32,
    },
    Blocks(Range<u64>),
}

/// Is a write of these blocks one to spoiled blocks, or the one that spoils them?
pub fn meets(spoiled: &mut Option<Spoiled>, by: Owner, blocks: Range<u64>) -> bool {
    match spoiled {
        Some(Spoiled::Next { owner, countdown }) if *owner == by => {
            *countdown = countdown.saturating_sub(1);
            let is_it = *countdown == 0;
            if is_it {
                *spoiled = Some(Spoiled::Blocks(blocks));
            }
            is_it
        }
        Some(Spoiled::Blocks(there)) => there.start < blocks.end && blocks.start < there.end,
        Some(Spoiled::Next { .. }) | None => false,
    }
}
