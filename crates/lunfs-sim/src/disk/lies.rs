//! Reads that show something else than what is there: metadata with a flipped bit, or metadata
//! that belongs elsewhere.
//!
//! What guests store carries no checksum of ours, so only blocks that start like a structure are
//! touched, and they still do afterwards: of those nothing wrong may ever be believed.

use lunfs_format::{BLOCK, RECORD};

use super::medium::Medium;
use crate::chance::Chance;

const BITS: usize = 8;
/// Bytes at the start of a structure that say what it is. Without them nobody could tell it from
/// what a guest stored where a deleted file was.
const NAME: usize = 12;

/// Changes one structure among the `bytes` that were read at `at`; `false`: there is none.
pub fn lie(bytes: &mut [u8], at: u64, medium: &Medium, size: u64, chance: &Chance) -> bool {
    let places: Vec<usize> = (0..bytes.len())
        .step_by(RECORD)
        .filter(|&place| bytes[place..].starts_with(b"LNFS"))
        .collect();
    if places.is_empty() {
        return false;
    }
    let place = *chance.pick(&places);
    let is_block = (at as usize + place).is_multiple_of(BLOCK) && bytes.len() >= place + BLOCK;
    let len = if is_block && chance.percent(50) { BLOCK } else { RECORD };
    if chance.percent(50) {
        let bit = NAME * BITS + chance.index((len - NAME) * BITS);
        bytes[place + bit / BITS] ^= 1 << (bit % BITS);
        return true;
    }
    // A read of another place: near, where structures of the same kind lie.
    let steps = chance.between(1, 16) * BLOCK as u64;
    let here = at + place as u64;
    let there = if chance.percent(50) { here + steps } else { here.saturating_sub(steps) };
    if there == here || there + BLOCK as u64 > size {
        return false;
    }
    let found = medium.range(there, len);
    if found[..NAME] == bytes[place..place + NAME]
        || found[..4] != bytes[place..place + 4]
        || found[8..NAME] != bytes[place + 8..place + NAME]
    {
        return false;
    }
    bytes[place..place + len].copy_from_slice(&found);
    true
}
