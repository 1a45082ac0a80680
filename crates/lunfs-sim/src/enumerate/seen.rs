//! What was seen of a volume, in a form that can be compared and kept by the thousand.

use std::collections::BTreeMap;

use super::recorder::UNIT;
use crate::chance::mix;

/// One name, and what it stands for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Face {
    /// Kind of file, as a number.
    pub kind: u8,
    /// Permissions.
    pub mode: u32,
    /// Owner and group.
    pub owner: (u32, u32),
    /// Links.
    pub nlink: u32,
    /// Device number.
    pub rdev: u64,
    /// Extended attributes, with the hashes of their values.
    pub xattrs: BTreeMap<String, u64>,
    /// Snapshots of a disk, with the hashes of their contents.
    pub snapshots: BTreeMap<String, u64>,
    /// Bytes of the contents, or of a link's target.
    pub size: u64,
    /// Hash of each logical block of the contents; the last one filled up with zeroes.
    pub units: Vec<u64>,
}

/// Everything seen: each path with the least path of the same file, and what it stands for. The
/// root is the empty path.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Seen(pub Vec<(String, String, Face)>);

/// A hash of some bytes.
pub fn hash(bytes: &[u8]) -> u64 {
    let fold = |sum: u64, chunk: &[u8]| {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        (sum ^ u64::from_le_bytes(word)).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(29)
    };
    mix(bytes.chunks(8).fold(bytes.len() as u64, fold))
}

/// Hashes of the logical blocks of some contents.
pub fn units(content: &[u8]) -> Vec<u64> {
    content.chunks(UNIT).map(unit).collect()
}

/// Hash of one logical block, filled up with zeroes.
pub fn unit(bytes: &[u8]) -> u64 {
    let mut whole = [0; UNIT];
    whole[..bytes.len()].copy_from_slice(bytes);
    hash(&whole)
}
