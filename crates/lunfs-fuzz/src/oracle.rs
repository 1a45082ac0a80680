//! What must hold whatever a host met.

use std::collections::{BTreeMap, BTreeSet};

use lunfs_core::{Error, FileId, Kind};
use lunfs_format::{BlockNo, kind_of};

use crate::history::sector_of;
use crate::world::Image;

const SECTOR: usize = 512;
const ZEROES: [u8; SECTOR] = [0; SECTOR];

/// What a host found on a volume.
#[derive(Default)]
pub struct Found {
    /// Errors that speak of damage.
    pub damage: Vec<String>,
    /// Blocks of contents that two files showed.
    pub shared: Vec<String>,
    /// Sectors that are not of the file that showed them.
    pub foreign: Vec<String>,
    /// Whose contents each block was.
    owners: BTreeMap<BlockNo, FileId>,
}

impl Found {
    /// Takes note of an error.
    ///
    /// # Panics
    /// If it speaks of damage without saying where it is and what to do.
    pub fn note<T>(&mut self, doing: &str, result: lunfs_core::Result<T>) -> Option<T> {
        let error = match result {
            Ok(value) => return Some(value),
            Err(error) => error,
        };
        if error.kind == Kind::Corrupt {
            require_place_and_cure(&error);
            self.damage.push(format!("{doing}: {error}"));
        }
        None
    }

    /// Contents came from these blocks. What bears the mark of a structure was read on the way.
    pub fn owns(&mut self, id: FileId, blocks: BTreeSet<BlockNo>, image: &Image) {
        let is_contents = |block: &BlockNo| kind_of(image.block(*block)).is_none();
        for block in blocks.into_iter().filter(is_contents) {
            let owner = *self.owners.entry(block).or_insert(id);
            if owner != id && image.block(block).iter().any(|byte| *byte != 0) {
                self.shared.push(format!("{block} is of {} and of {}", owner.addr, id.addr));
            }
        }
    }

    /// These bytes were read from a file. Each sector of the past says whose it is.
    pub fn contents(&mut self, id: FileId, at: u64, bytes: &[u8]) {
        let first = at / SECTOR as u64;
        for (number, sector) in (first..).zip(bytes.chunks(SECTOR)) {
            // Of a changed end only a part may be here.
            let is_own = || sector == &sector_of(id, number)[..sector.len()];
            if sector != &ZEROES[..sector.len()] && !is_own() {
                self.foreign.push(format!("sector {number} of {}", id.addr));
            }
        }
    }
}

/// # Panics
/// If an error about damage does not say where it is and what to do.
pub fn require_place_and_cure(error: &Error) {
    let has_place = error.what.bytes().any(|byte| byte.is_ascii_digit());
    let cures = ["`lunfs check", "check the path"];
    let has_cure = cures.iter().any(|cure| error.what.contains(cure));
    assert!(has_place && has_cure, "an error without place or cure: {error}");
}
