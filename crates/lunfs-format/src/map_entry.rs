//! A map entry: where one file block lies.
//!
//! Bytes: docs/format.md#map-entry.

use crate::error::{DecodeError, must_be_valid, require};
use crate::units::BlockNo;

/// Blocks of a file block, and the grains that a map entry knows of.
pub const FILE_BLOCK_BLOCKS: u32 = 64;

/// Name of each field, its first bit and the bit behind its last.
pub(crate) const BITS: [(&str, u32, u32); 5] = [
    ("block", 0, ZERO_BIT),
    ("zero", ZERO_BIT, GRAINS_BIT),
    ("grains", GRAINS_BIT, RESERVED_BIT),
    ("reserved", RESERVED_BIT, 64),
    ("mask", 64, 128),
];

const ZERO_BIT: u32 = 40;
const GRAINS_BIT: u32 = 41;
const RESERVED_BIT: u32 = 47;
const LEN: usize = 16;

/// Where one file block lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapEntry {
    /// First block of the run that holds the file block.
    pub block: Option<BlockNo>,
    /// Grains that are not valid read zero and never show the layer below.
    pub zero: bool,
    /// Length of the run in grains: 1 to 64.
    pub grains: u8,
    /// Bit g: grain g of the file block is valid in the run.
    pub mask: u64,
}

impl MapEntry {
    /// Makes the value.
    ///
    /// # Panics
    /// If `decode` would refuse it.
    pub fn encode(&self) -> [u8; LEN] {
        must_be_valid("map entry", self.check());
        let low = self.block.unwrap_or_default().0
            | u64::from(self.zero) << ZERO_BIT
            | u64::from(self.grains - 1) << GRAINS_BIT;
        (u128::from(low) | u128::from(self.mask) << 64).to_le_bytes()
    }

    /// Reads the value.
    pub fn decode(bytes: &[u8]) -> Result<MapEntry, DecodeError> {
        let bytes: &[u8; LEN] = bytes.try_into().map_err(|_| DecodeError::BadLength)?;
        let bits = u128::from_le_bytes(*bytes);
        let low = bits as u64;
        if low >> RESERVED_BIT != 0 {
            // The topmost bit of byte 5 and bytes 6 and 7.
            let first = (low >> RESERVED_BIT).trailing_zeros() + RESERVED_BIT;
            return Err(DecodeError::Reserved { offset: (first / 8) as usize });
        }
        let block = low & ((1 << ZERO_BIT) - 1);
        let entry = MapEntry {
            block: (block != 0).then_some(BlockNo(block)),
            zero: low >> ZERO_BIT & 1 != 0,
            grains: (low >> GRAINS_BIT) as u8 + 1,
            mask: (bits >> 64) as u64,
        };
        entry.check()?;
        Ok(entry)
    }

    fn check(&self) -> Result<(), DecodeError> {
        require((1..=64).contains(&self.grains), "grains", self.grains)?;
        let valid_max = match self.block {
            Some(block) => {
                require(block.0 != 0 && block.0 < 1 << ZERO_BIT, "block", block.0)?;
                u64::MAX >> (64 - u32::from(self.grains))
            }
            None => 0,
        };
        require(self.mask & !valid_max == 0, "mask", self.mask)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::samples;
    use crate::testing::Random;

    const HOLE: MapEntry = MapEntry { block: None, zero: false, grains: 1, mask: 0 };

    fn bits(entry: &MapEntry) -> u128 {
        u128::from_le_bytes(entry.encode())
    }

    fn decode(bits: u128) -> Result<MapEntry, DecodeError> {
        MapEntry::decode(&bits.to_le_bytes())
    }

    #[test]
    fn survives_the_disk() {
        for entry in [samples::map_entry(), HOLE, MapEntry { zero: true, grains: 64, ..HOLE }] {
            assert_eq!(MapEntry::decode(&entry.encode()), Ok(entry));
        }
    }

    #[test]
    fn the_bits_lie_as_documented() {
        let entry = samples::map_entry();
        let expected = 0xff_ffff_ffff | 1 << 40 | 47 << 41 | 0xffff_0000 << 64;
        assert_eq!(bits(&entry), expected);
        assert_eq!(HOLE.encode(), [0; 16]);
    }

    #[test]
    fn reserved_bits_are_refused() {
        for bit in 47..64 {
            let error = decode(bits(&samples::map_entry()) | 1 << bit).unwrap_err();
            assert_eq!(error, DecodeError::Reserved { offset: bit / 8 });
        }
        assert_eq!(MapEntry::decode(&[0; 15]), Err(DecodeError::BadLength));
        assert_eq!(MapEntry::decode(&[0; 17]), Err(DecodeError::BadLength));
    }

    #[test]
    fn a_grain_outside_the_run_is_never_valid() {
        let bad_mask = |mask| Err(DecodeError::BadField { field: "mask", value: mask });
        let run = MapEntry { block: Some(BlockNo(1)), zero: false, grains: 3, mask: 0 };
        for mask in 0..8 {
            assert!(MapEntry::decode(&MapEntry { mask, ..run }.encode()).is_ok());
        }
        assert_eq!(decode(bits(&run) | 1 << (64 + 3)), bad_mask(8));
        assert_eq!(decode(1 << 64), bad_mask(1));
        let whole = MapEntry { grains: 64, mask: u64::MAX, ..run };
        assert_eq!(MapEntry::decode(&whole.encode()), Ok(whole));
    }

    #[test]
    fn what_decode_accepts_of_any_bytes_encode_writes_again() {
        let mut random = Random::new();
        for _ in 0..100_000 {
            let bytes: [u8; 16] = std::array::from_fn(|_| random.byte());
            if let Ok(entry) = MapEntry::decode(&bytes) {
                assert_eq!(entry.encode(), bytes);
            }
        }
    }

    #[test]
    #[should_panic(expected = "refusing to write an invalid map entry: grains must not be 0")]
    fn a_run_without_grains_is_not_written() {
        MapEntry { grains: 0, ..HOLE }.encode();
    }
}
