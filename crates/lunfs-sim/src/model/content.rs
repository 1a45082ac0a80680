//! Bytes that say what they are.
//!
//! A write fills each 512-byte sector of a file with its file, its place and its number, so that
//! every sector that is read can be traced to the write that made it, or to none.

use std::rc::Rc;

use crate::chance::mix;

/// The model's unit: the block of the file system.
pub const BLOCK: usize = 4096;
/// What every medium writes whole or not at all.
pub const SECTOR: usize = 512;

const MAGIC: u64 = u64::from_be_bytes(*b"lunfstag");

/// What one block of a file holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// Zeroes.
    Zero,
    /// The tagged bytes of one write.
    Tagged(u64),
    /// Parts of several writes.
    Mixed(Rc<[u8]>),
}

/// The sector `sector` of file `file` as write `write` fills it.
pub fn sector(file: u64, sector: u64, write: u64) -> [u8; SECTOR] {
    let mut bytes = [0; SECTOR];
    let head = [MAGIC, file, sector, write];
    let start = mix(file ^ mix(sector ^ mix(write)));
    for (index, word) in bytes.chunks_exact_mut(8).enumerate() {
        let value = head.get(index).copied().unwrap_or_else(|| mix(start ^ index as u64));
        word.copy_from_slice(&value.to_le_bytes());
    }
    bytes
}

/// The bytes from `at` on, `len` of them, as write `write` fills them.
pub fn fill(file: u64, at: u64, len: usize, write: u64) -> Vec<u8> {
    let first = at / SECTOR as u64;
    let skip = usize::try_from(at % SECTOR as u64).unwrap_or(0);
    let mut bytes = Vec::with_capacity(skip + len + SECTOR);
    let mut number = first;
    while bytes.len() < skip + len {
        bytes.extend_from_slice(&sector(file, number, write));
        number += 1;
    }
    bytes.truncate(skip + len);
    bytes.drain(..skip);
    bytes
}

/// The file that a whole tagged sector belongs to.
pub fn tagged_file(bytes: &[u8]) -> Option<u64> {
    let first = bytes.get(..SECTOR)?;
    let word = |index: usize| Some(u64::from_le_bytes(first[index * 8..][..8].try_into().ok()?));
    let (file, number, write) = (word(1)?, word(2)?, word(3)?);
    (word(0)? == MAGIC && *first == sector(file, number, write)).then_some(file)
}

/// What a sector that should not be there says of itself.
pub fn describe(bytes: &[u8]) -> String {
    if bytes.iter().all(|&byte| byte == 0) {
        return "zeroes".to_owned();
    }
    let word = |index: usize| {
        let mut word = [0; 8];
        if let Some(found) = bytes.get(index * 8..index * 8 + 8) {
            word.copy_from_slice(found);
        }
        u64::from_le_bytes(word)
    };
    if word(0) == MAGIC {
        let (file, number, write) = (word(1), word(2), word(3));
        let whole = bytes.get(..SECTOR).is_some_and(|first| first == sector(file, number, write));
        let torn = if whole { "" } else { ", and it is torn" };
        return format!("write {write} of file {file} for sector {number}{torn}");
    }
    format!("foreign bytes {:02x?}...", &bytes[..bytes.len().min(16)])
}

impl Content {
    /// The bytes of block `block` of file `file`.
    pub fn bytes(&self, file: u64, block: u64) -> Vec<u8> {
        match self {
            Content::Zero => vec![0; BLOCK],
            Content::Tagged(write) => fill(file, block * BLOCK as u64, BLOCK, *write),
            Content::Mixed(bytes) => bytes.to_vec(),
        }
    }

    /// This content with `change` applied to `range` of the block.
    pub fn with(
        &self,
        (file, block): (u64, u64),
        range: std::ops::Range<usize>,
        write: Option<u64>,
    ) -> Content {
        if range == (0..BLOCK) {
            return write.map_or(Content::Zero, Content::Tagged);
        }
        if write.is_none() && *self == Content::Zero {
            return Content::Zero;
        }
        let mut bytes = self.bytes(file, block);
        match write {
            None => bytes[range].fill(0),
            Some(write) => {
                let at = block * BLOCK as u64 + range.start as u64;
                let len = range.len();
                bytes[range].copy_from_slice(&fill(file, at, len, write));
            }
        }
        Content::Mixed(Rc::from(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_do_not_depend_on_how_a_write_is_cut() {
        let whole = fill(3, 0, 3 * BLOCK, 9);
        assert_eq!(fill(3, 1000, 5000, 9), whole[1000..6000]);
        assert_eq!(Content::Tagged(9).bytes(3, 1), whole[BLOCK..2 * BLOCK]);
    }

    #[test]
    fn a_sector_tells_where_it_comes_from() {
        let mut bytes = sector(3, 8, 9);
        assert_eq!(describe(&bytes), "write 9 of file 3 for sector 8");
        bytes[300] ^= 1;
        assert!(describe(&bytes).ends_with("torn"));
        assert_eq!(describe(&[0; 512]), "zeroes");
    }

    #[test]
    fn partial_changes_compose() {
        let one = Content::Tagged(1).with((5, 0), 100..200, Some(2));
        let bytes = one.bytes(5, 0);
        assert_eq!(bytes[..100], fill(5, 0, 100, 1));
        assert_eq!(bytes[100..200], fill(5, 100, 100, 2));
        assert_eq!(one.with((5, 0), 0..BLOCK, None), Content::Zero);
        assert_eq!(Content::Zero.with((5, 0), 10..20, None), Content::Zero);
    }
}
