//! The cluster header: which blocks of a cluster are in use.
//!
//! Invariants: the lock and the header itself are always in use; nothing at or above the
//! cluster's end is.
//!
//! Bytes: docs/format.md#cluster.

use zerocopy::little_endian::{U32, U64};

use crate::error::{DecodeError, must_be_valid, require};
use crate::header::{Heading, RawHeader, Structure, kind, make, open};
use crate::layout::{Layout, raw};
use crate::units::{BLOCK, Block, BlockNo, Version, VolumeId};

/// Blocks of a cluster that are never free: its lock and its header.
const FIXED: u32 = 2;
const WORD: u32 = u64::BITS;

raw! {
    RawCluster, LAYOUT, "Cluster" {
        header: RawHeader,
        index: U64,
        blocks: U32,
        free: U32,
        reserved1: [u8; 48] = zero,
        bitmap: [U64; 256],
        reserved2: [u8; 1920] = zero,
    }
}

const _: () = assert!(size_of::<RawCluster>() == BLOCK);

impl Structure for RawCluster {
    const KIND: u16 = kind::CLUSTER;
    const FIELDS: Layout = LAYOUT;
}

/// A cluster of blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cluster {
    /// Version of the header.
    pub version: Version,
    /// Address of the lock that covers it.
    pub owner: BlockNo,
    /// Number of the cluster.
    pub index: u64,
    /// Blocks of the cluster.
    pub blocks: u32,
    /// Which of them are in use.
    pub bitmap: Bitmap,
}

impl Cluster {
    /// A cluster of which nothing is allocated, without version and owner yet.
    ///
    /// # Panics
    /// If no cluster has so many blocks.
    pub fn new(index: u64, blocks: u32) -> Cluster {
        must_be_valid("cluster", check_blocks(blocks));
        let mut bitmap = Bitmap { blocks, words: vec![0; (blocks / WORD) as usize] };
        bitmap.set_run(0, FIXED, true);
        Cluster { version: Version::default(), owner: BlockNo(0), index, blocks, bitmap }
    }

    /// Reads the header at `at`.
    pub fn decode(bytes: &[u8], volume: VolumeId, at: BlockNo) -> Result<Cluster, DecodeError> {
        let raw = open::<RawCluster>(bytes, Some(volume), at.0)?;
        let blocks = raw.blocks.get();
        check_blocks(blocks)?;
        let Some((words, beyond)) = raw.bitmap.split_at_checked((blocks / WORD) as usize) else {
            return Err(DecodeError::field("blocks", blocks));
        };
        for word in beyond {
            require(*word == 0, "bitmap", *word)?;
        }
        let cluster = Cluster {
            version: raw.header.version(),
            owner: raw.header.owner(),
            index: raw.index.get(),
            blocks,
            bitmap: Bitmap { blocks, words: words.iter().map(|word| word.get()).collect() },
        };
        cluster.check()?;
        require(raw.free == cluster.bitmap.count_free(), "free", raw.free)?;
        Ok(cluster)
    }

    /// Makes the block that lies at `at`.
    ///
    /// # Panics
    /// If `decode` would refuse it.
    pub fn encode(&self, volume: VolumeId, at: BlockNo) -> Box<Block> {
        must_be_valid("cluster", self.check());
        let heading = Heading { volume, address: at.0, version: self.version, owner: self.owner };
        make(heading, |raw: &mut RawCluster| {
            raw.index = self.index.into();
            raw.blocks = self.blocks.into();
            raw.free = self.bitmap.count_free().into();
            for (place, word) in raw.bitmap.iter_mut().zip(&self.bitmap.words) {
                *place = (*word).into();
            }
        })
    }

    /// Is nothing in it in use but its lock and header?
    pub fn is_empty(&self) -> bool {
        self.bitmap.count_free() == self.blocks - FIXED
    }

    fn check(&self) -> Result<(), DecodeError> {
        check_blocks(self.blocks)?;
        require(self.bitmap.blocks == self.blocks, "blocks", self.bitmap.blocks)?;
        let fixed_in_use = (0..FIXED).all(|block| self.bitmap.get(block));
        require(fixed_in_use, "bitmap", self.bitmap.word(0))
    }
}

fn check_blocks(blocks: u32) -> Result<(), DecodeError> {
    let good = blocks.is_power_of_two() && (1024..=16384).contains(&blocks);
    require(good, "blocks", blocks)
}

/// Which blocks of a cluster are in use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bitmap {
    blocks: u32,
    words: Vec<u64>,
}

impl Bitmap {
    /// Whether block `index` is in use; nothing behind the cluster's end can be had.
    pub fn get(&self, index: u32) -> bool {
        index >= self.blocks || self.word(index / WORD) & (1 << (index % WORD)) != 0
    }

    /// Marks the `len` blocks from `start` on as in use or free.
    ///
    /// # Panics
    /// If they reach behind the cluster's end, or the lock or header would become free.
    pub fn set_run(&mut self, start: u32, len: u32, used: bool) {
        let end = start.checked_add(len).filter(|end| *end <= self.blocks);
        let end = end.expect("a run of blocks ends within its cluster");
        assert!(used || start >= FIXED, "a cluster's lock and header are never free");
        let mut at = start;
        while at < end {
            let bits = (WORD - at % WORD).min(end - at);
            let mask = (u64::MAX >> (WORD - bits)) << (at % WORD);
            if let Some(word) = self.words.get_mut((at / WORD) as usize) {
                *word = if used { *word | mask } else { *word & !mask };
            }
            at += bits;
        }
    }

    /// The first run of `len` free blocks that starts at or behind `from`.
    pub fn find_run(&self, len: u32, from: u32) -> Option<u32> {
        let mut start = self.next(from, false);
        while start < self.blocks {
            let end = self.next(start, true);
            if end - start >= len {
                return Some(start);
            }
            start = self.next(end, false);
        }
        None
    }

    /// The first group of 64 blocks, all free, that starts at or behind `from`.
    pub fn find_group(&self, from: u32) -> Option<u32> {
        let first = from.div_ceil(WORD);
        (first..self.blocks / WORD).find(|index| self.word(*index) == 0).map(|index| index * WORD)
    }

    /// The first run of `len` free blocks inside a group of 64 of which others are in use.
    pub fn find_beside(&self, len: u32) -> Option<u32> {
        (0..self.blocks / WORD).find_map(|index| {
            let word = self.word(index);
            let start = if word == 0 { None } else { first_run(!word, len) }?;
            Some(index * WORD + start)
        })
    }

    /// What is in use here or there, of bitmaps of one size.
    pub fn union(&self, other: &Bitmap) -> Bitmap {
        let words = self.words.iter().zip(&other.words).map(|(one, two)| one | two).collect();
        Bitmap { blocks: self.blocks, words }
    }

    /// Blocks that are free.
    pub fn count_free(&self) -> u32 {
        self.words.iter().map(|word| word.count_zeros()).sum()
    }

    /// The first block at or behind `from` that is in use, or free; the cluster's end if none is.
    fn next(&self, from: u32, used: bool) -> u32 {
        let mut at = from;
        while at < self.blocks {
            let word = self.word(at / WORD);
            let wanted = if used { word } else { !word } >> (at % WORD);
            if wanted != 0 {
                return at + wanted.trailing_zeros();
            }
            at = (at / WORD + 1) * WORD;
        }
        self.blocks
    }

    fn word(&self, index: u32) -> u64 {
        self.words.get(index as usize).copied().unwrap_or(u64::MAX)
    }
}

/// The lowest place in `bits` at which `len` of them in a row are set.
fn first_run(bits: u64, len: u32) -> Option<u32> {
    let (mut starts, mut checked) = (bits, 1);
    while checked < len.min(WORD) {
        let step = checked.min(len - checked);
        starts &= starts >> step;
        checked += step;
    }
    (starts != 0 && len <= WORD).then(|| starts.trailing_zeros())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::samples::{self, VOLUME};
    use crate::testing::{Random, disk_tests, with, with_bytes};

    const AT_BLOCK: BlockNo = BlockNo(2049);

    disk_tests! {
        LAYOUT, samples::cluster(), Cluster::new(0, 1024), Cluster::new(9, 16384);
        encode: |cluster: &Cluster, volume, at| cluster.encode(volume, BlockNo(at)),
        decode: |bytes: &[u8], volume, at| Cluster::decode(bytes, volume, BlockNo(at)),
    }

    #[test]
    fn a_bitmap_that_contradicts_the_numbers_is_refused() {
        let bytes = samples::cluster().encode(VOLUME, AT_BLOCK);
        let first_word = samples::cluster().bitmap.word(0);
        for (field, value) in [
            ("blocks", 0),
            ("blocks", 512),
            ("blocks", 32768),
            ("blocks", 1 << 31),
            ("free", 0),
            ("free", 1946),
            ("bitmap", first_word & !1),
            ("bitmap", first_word & !2),
        ] {
            let bytes = with(bytes.as_slice(), &LAYOUT, field, value);
            let error = Cluster::decode(&bytes, VOLUME, AT_BLOCK).unwrap_err();
            assert_eq!(error, DecodeError::BadField { field, value });
        }
    }

    #[test]
    fn a_bit_behind_the_end_is_refused() {
        let bytes = samples::cluster().encode(VOLUME, AT_BLOCK);
        let bytes = with_bytes(bytes.as_slice(), 128 + 2048 / 8, &[1]);
        let error = Cluster::decode(&bytes, VOLUME, AT_BLOCK).unwrap_err();
        assert_eq!(error, DecodeError::BadField { field: "bitmap", value: 1 });
    }

    #[test]
    fn the_bits_lie_as_documented() {
        let mut cluster = Cluster::new(0, 1024);
        cluster.bitmap.set_run(13, 1, true);
        let bytes = cluster.encode(VOLUME, AT_BLOCK);
        assert_eq!(bytes[128..131], [0b11, 1 << 5, 0]);
    }

    fn is_free(model: &[bool], at: usize, len: usize) -> bool {
        !model[at..at + len].contains(&true)
    }

    #[test]
    fn runs_are_found_as_if_every_block_were_looked_at() {
        let mut random = Random::new();
        let mut bitmap = Cluster::new(0, 1024).bitmap;
        let mut model = vec![false; 1024];
        model[..2].fill(true);
        for _ in 0..2000 {
            let start = 2 + random.below(1022);
            let len = random.below(150).min(1024 - start);
            let used = random.below(2) == 0;
            bitmap.set_run(start as u32, len as u32, used);
            model[start..start + len].fill(used);

            let (len, from) = (1 + random.below(100), random.below(1024));
            let expected = (from..=1024 - len.min(1024 - from))
                .find(|at| model.get(*at..at + len).is_some_and(|run| !run.contains(&true)));
            let found = bitmap.find_run(len as u32, from as u32);
            assert_eq!(found.map(|at| at as usize), expected, "{len} blocks from {from}");
            let group = (0..1024).step_by(64).find(|at| *at >= from && is_free(&model, *at, 64));
            assert_eq!(bitmap.find_group(from as u32).map(|at| at as usize), group, "from {from}");
            let len = 1 + len % 64;
            let beside = (0..1024)
                .filter(|at| at % 64 + len <= 64 && is_free(&model, *at, len))
                .find(|at| !is_free(&model, at / 64 * 64, 64));
            assert_eq!(bitmap.find_beside(len as u32).map(|at| at as usize), beside, "{len}");
            let free = model.iter().filter(|used| !**used).count();
            assert_eq!(bitmap.count_free() as usize, free);
            assert!((0..1024).all(|at| bitmap.get(at) == model[at as usize]));
        }
    }

    #[test]
    fn nothing_is_found_behind_the_end() {
        let bitmap = Cluster::new(0, 1024).bitmap;
        assert_eq!(bitmap.find_run(1022, 0), Some(2));
        assert_eq!(bitmap.find_run(1023, 0), None);
        assert_eq!(bitmap.find_run(1, 1024), None);
        assert_eq!(bitmap.find_run(1, u32::MAX), None);
        assert!(bitmap.get(1024) && bitmap.get(u32::MAX));
    }

    #[test]
    #[should_panic(expected = "never free")]
    fn the_header_is_never_freed() {
        Cluster::new(0, 1024).bitmap.set_run(1, 1, false);
    }

    #[test]
    #[should_panic(expected = "ends within its cluster")]
    fn a_run_behind_the_end_is_a_mistake() {
        Cluster::new(0, 1024).bitmap.set_run(1023, 2, true);
    }
}
