//! Bytes that say what they are.
//!
//! A write fills each 512-byte sector of a file with its file, its place and its number, so that
//! every sector that is read can be traced to the write that made it, or to none.

use std::ops::Range;
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
    let start = mix(file ^ mix(sector ^ mix(write))) | 1;
    for (index, word) in bytes.chunks_exact_mut(8).enumerate() {
        let value = start.wrapping_mul(2 * index as u64 + 1);
        word.copy_from_slice(&value.to_le_bytes());
    }
    for (word, value) in bytes.chunks_exact_mut(8).zip(head) {
        word.copy_from_slice(&value.to_le_bytes());
    }
    bytes
}

/// The bytes from `at` on, `len` of them, as write `write` fills them.
pub fn fill(file: u64, at: u64, len: usize, write: u64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(len);
    each_sector(at, len, |number, range| {
        bytes.extend_from_slice(&sector(file, number, write)[range]);
        true
    });
    bytes
}

/// The sectors of a range: calls `see` with the number of each and the part of it, until `false`.
fn each_sector(at: u64, len: usize, mut see: impl FnMut(u64, Range<usize>) -> bool) -> bool {
    let end = at + len as u64;
    let mut at = at;
    while at < end {
        let (number, from) = (at / SECTOR as u64, at % SECTOR as u64);
        let to = (from + end - at).min(SECTOR as u64);
        let part = |at: u64| usize::try_from(at).unwrap_or(0);
        if !see(number, part(from)..part(to)) {
            return false;
        }
        at += to - from;
    }
    true
}

/// Are these the bytes from `at` on as write `write` fills them?
fn is_filled(file: u64, at: u64, bytes: &[u8], write: u64) -> bool {
    let mut rest = bytes;
    each_sector(at, bytes.len(), |number, range| {
        let (part, behind) = rest.split_at(range.len());
        rest = behind;
        sector(file, number, write)[range] == *part
    })
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

    /// Are these the bytes of `range` of block `block` of file `file`?
    pub fn matches(&self, (file, block): (u64, u64), range: Range<usize>, bytes: &[u8]) -> bool {
        match self {
            Content::Zero => bytes.len() == range.len() && bytes.iter().all(|&byte| byte == 0),
            Content::Tagged(write) => {
                let at = block * BLOCK as u64 + range.start as u64;
                bytes.len() == range.len() && is_filled(file, at, bytes, *write)
            }
            Content::Mixed(all) => all[range] == *bytes,
        }
    }

    /// This content with `change` applied to `range` of the block.
    pub fn with(
        &self,
        (file, block): (u64, u64),
        range: Range<usize>,
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
        let part = 700..2_000;
        let bytes = &whole[BLOCK + part.start..BLOCK + part.end];
        assert!(Content::Tagged(9).matches((3, 1), part.clone(), bytes));
        assert!(!Content::Tagged(8).matches((3, 1), part, bytes));
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
