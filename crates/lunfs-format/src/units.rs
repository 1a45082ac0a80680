//! Numbers that must not be confused with each other.

use std::fmt;

/// Bytes of a block.
pub const BLOCK: usize = 4096;
/// Bytes of a record.
pub const RECORD: usize = 512;

/// The bytes of a metadata block.
pub type Block = [u8; BLOCK];
/// The bytes of a record.
pub type Record = [u8; RECORD];

/// The number of a block, counted from the start of the volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct BlockNo(pub u64);

impl BlockNo {
    /// Where the block starts, in bytes. An address that no volume has gives the largest offset,
    /// where every device refuses to read.
    pub fn offset(self) -> u64 {
        self.0.saturating_mul(BLOCK as u64)
    }

    /// The block `blocks` behind this one.
    pub fn plus(self, blocks: u64) -> BlockNo {
        BlockNo(self.0.saturating_add(blocks))
    }
}

impl fmt::Display for BlockNo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The number of a slot in the heartbeat region.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct SlotNo(pub u32);

impl fmt::Display for SlotNo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The number of a slot's life: rises whenever somebody takes the slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Incarnation(pub u64);

impl fmt::Display for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The identity of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct VolumeId(pub [u8; 16]);

impl fmt::Display for VolumeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, byte) in self.0.iter().enumerate() {
            if matches!(index, 4 | 6 | 8 | 10) {
                f.write_str("-")?;
            }
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

/// The version of what is stored at an address, or the generation of a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Version {
    /// Which allocation of the address; compared first.
    pub birth: u64,
    /// Which change since then, counted from one.
    pub count: u64,
}

impl Version {
    /// The version of the next change.
    pub fn next(self) -> Version {
        let count = self.count.checked_add(1).expect("2^64 versions are never used up");
        Version { birth: self.birth, count }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.birth, self.count)
    }
}

/// A moment of the calendar.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Timestamp {
    /// Seconds since 1970.
    pub seconds: i64,
    /// Nanoseconds of the second, below 10^9.
    pub nanos: u32,
}

/// One life of one slot: who may change something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Holder {
    /// Its slot.
    pub slot: SlotNo,
    /// Which life of the slot.
    pub incarnation: Incarnation,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.slot, self.incarnation)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_compare_birth_first() {
        let old = Version { birth: 1, count: 9 };
        let reborn = Version { birth: 2, count: 1 };
        assert!(old < old.next() && old.next() < reborn);
        assert_eq!(old.to_string(), "1.9");
    }

    #[test]
    fn an_identity_reads_like_a_uuid() {
        let id = VolumeId(std::array::from_fn(|i| i as u8 * 17));
        assert_eq!(id.to_string(), "00112233-4455-6677-8899-aabbccddeeff");
    }

    #[test]
    fn an_absurd_address_does_not_wrap() {
        assert_eq!(BlockNo(3).plus(2).offset(), 5 * 4096);
        assert_eq!(BlockNo(u64::MAX).plus(1).offset(), u64::MAX);
    }
}
