//! The journal of a slot: its header and the head blocks of its records.
//!
//! Bytes: docs/format.md#journal-header, docs/format.md#journal-record.

use std::mem::offset_of;

use zerocopy::IntoBytes;
use zerocopy::little_endian::{U16, U32, U64};

use crate::error::{DecodeError, must_be_valid, require};
use crate::header::{
    Heading, RawHeader, Structure, kind, make, open, require_reserved_zero, require_zero,
};
use crate::layout::{Layout, raw};
use crate::units::{BLOCK, Block, BlockNo, Incarnation, SlotNo, Version, VolumeId};

/// Entries of a head block.
pub const ENTRIES_PER_HEAD: usize = 62;

const KIND_IMAGE: u16 = 1;
const KIND_REVOKE: u16 = 2;

raw! {
    RawJournalHeader, HEADER_LAYOUT, "Journal header" {
        header: RawHeader,
        slot: U32,
        reserved1: U32 = zero,
        incarnation: U64,
        tail_sequence: U64,
        tail_position: U64,
        previous: U64,
        reserved2: [u8; 3992] = zero,
    }
}

raw! {
    RawRecordHead, RECORD_LAYOUT, "Journal record" {
        header: RawHeader,
        slot: U32,
        head_index: U16,
        head_count: U16,
        entry_count: U32,
        image_count: U32,
        previous: U64,
        durable: U64,
        reserved1: [u8; 32] = zero,
        entries: [RawRecordEntry; ENTRIES_PER_HEAD],
    }
}

raw! {
    RawRecordEntry, ENTRY_LAYOUT, "Journal record entry" {
        kind: U16,
        reserved0: U16 = zero,
        checksum: U32,
        block: U64,
        lock: U64,
        lock_birth: U64,
        lock_version: U64,
        birth: U64,
        version: U64,
        reserved1: U64 = zero,
    }
}

const _: () = assert!(size_of::<RawJournalHeader>() == BLOCK);
const _: () = assert!(size_of::<RawRecordHead>() == BLOCK);

impl Structure for RawJournalHeader {
    const KIND: u16 = kind::JOURNAL_HEADER;
    const FIELDS: Layout = HEADER_LAYOUT;
}

impl Structure for RawRecordHead {
    const KIND: u16 = kind::JOURNAL_RECORD;
    const FIELDS: Layout = RECORD_LAYOUT;
}

/// Where replay of a journal starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JournalHeader {
    /// Whose journal.
    pub slot: SlotNo,
    /// Which life of the slot wrote it.
    pub incarnation: Incarnation,
    /// Version of the header: of the two copies the higher one counts.
    pub version: Version,
    /// First record that replay reads.
    pub tail_sequence: u64,
    /// Where it lies: block of the ring.
    pub tail_position: u64,
    /// Chain value that it must carry.
    pub previous: u64,
}

impl JournalHeader {
    /// Reads the copy at `at`.
    pub fn decode(
        bytes: &[u8],
        volume: VolumeId,
        at: BlockNo,
    ) -> Result<JournalHeader, DecodeError> {
        let raw = open::<RawJournalHeader>(bytes, Some(volume), at.0)?;
        raw.header.require_no_owner()?;
        Ok(JournalHeader {
            slot: SlotNo(raw.slot.get()),
            incarnation: Incarnation(raw.incarnation.get()),
            version: raw.header.version(),
            tail_sequence: raw.tail_sequence.get(),
            tail_position: raw.tail_position.get(),
            previous: raw.previous.get(),
        })
    }

    /// Makes the copy that lies at `at`.
    pub fn encode(&self, volume: VolumeId, at: BlockNo) -> Box<Block> {
        let heading = Heading { volume, address: at.0, version: self.version, owner: BlockNo(0) };
        make(heading, |raw: &mut RawJournalHeader| {
            raw.slot = self.slot.0.into();
            raw.incarnation = self.incarnation.0.into();
            raw.tail_sequence = self.tail_sequence.into();
            raw.tail_position = self.tail_position.into();
            raw.previous = self.previous.into();
        })
    }
}

/// What a record does to one block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordEntry {
    /// Writes an image, which follows the head blocks.
    Image {
        /// Where the image belongs.
        block: BlockNo,
        /// The one lock that covers it.
        lock: BlockNo,
        /// Generation of the lock when the image was taken.
        lock_generation: Version,
        /// Version of the image.
        version: Version,
        /// Checksum field of the image.
        checksum: u32,
    },
    /// Cancels every image of the block in this journal up to and including this record.
    Revoke {
        /// Which block.
        block: BlockNo,
    },
}

/// A head block of a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordHead {
    /// Whose record.
    pub slot: SlotNo,
    /// Which life of the slot wrote it.
    pub incarnation: Incarnation,
    /// Number of the record.
    pub sequence: u64,
    /// Which head block of the record this is.
    pub head_index: u16,
    /// Head blocks of the record.
    pub head_count: u16,
    /// Images of the whole record.
    pub image_count: u32,
    /// Chain value of the record before.
    pub previous: u64,
    /// Every record up to this sequence was durable when this one was submitted.
    pub durable: u64,
    /// At most 62.
    pub entries: Vec<RecordEntry>,
}

impl RecordHead {
    /// Reads the head block at `at`.
    pub fn decode(bytes: &[u8], volume: VolumeId, at: BlockNo) -> Result<RecordHead, DecodeError> {
        let raw = open::<RawRecordHead>(bytes, Some(volume), at.0)?;
        raw.header.require_no_owner()?;
        let Some((entries, unused)) = raw.entries.split_at_checked(raw.entry_count.get() as usize)
        else {
            return Err(DecodeError::field("entry_count", raw.entry_count));
        };
        require_zero(unused.as_bytes(), BLOCK - size_of_val(unused))?;
        let entries = entries.iter().enumerate();
        let entries = entries.map(|(index, entry)| RecordEntry::decode(entry, index));
        let head = RecordHead {
            slot: SlotNo(raw.slot.get()),
            incarnation: Incarnation(raw.header.birth.get()),
            sequence: raw.header.version.get(),
            head_index: raw.head_index.get(),
            head_count: raw.head_count.get(),
            image_count: raw.image_count.get(),
            previous: raw.previous.get(),
            durable: raw.durable.get(),
            entries: entries.collect::<Result<_, _>>()?,
        };
        head.check()?;
        Ok(head)
    }

    /// Makes the block that lies at `at`.
    ///
    /// # Panics
    /// If `decode` would refuse it.
    pub fn encode(&self, volume: VolumeId, at: BlockNo) -> Box<Block> {
        must_be_valid("journal record", self.check());
        let heading = Heading {
            volume,
            address: at.0,
            version: Version { birth: self.incarnation.0, count: self.sequence },
            owner: BlockNo(0),
        };
        make(heading, |raw: &mut RawRecordHead| {
            raw.slot = self.slot.0.into();
            raw.head_index = self.head_index.into();
            raw.head_count = self.head_count.into();
            raw.entry_count = (self.entries.len() as u32).into();
            raw.image_count = self.image_count.into();
            raw.previous = self.previous.into();
            raw.durable = self.durable.into();
            for (place, entry) in raw.entries.iter_mut().zip(&self.entries) {
                *place = entry.encode();
            }
        })
    }

    fn check(&self) -> Result<(), DecodeError> {
        let len = self.entries.len();
        require(len <= ENTRIES_PER_HEAD, "entry_count", len as u64)?;
        require(self.head_index < self.head_count, "head_index", self.head_index)?;
        let is_image = |entry: &&RecordEntry| matches!(entry, RecordEntry::Image { .. });
        let here = self.entries.iter().filter(is_image).count() as u64;
        let all = u64::from(self.image_count);
        let agrees = if self.head_count == 1 { here == all } else { here <= all };
        require(agrees, "image_count", all)
    }
}

impl RecordEntry {
    fn decode(raw: &RawRecordEntry, index: usize) -> Result<RecordEntry, DecodeError> {
        let offset = offset_of!(RawRecordHead, entries) + index * size_of::<RawRecordEntry>();
        require_reserved_zero(raw.as_bytes(), &ENTRY_LAYOUT, offset)?;
        let block = BlockNo(raw.block.get());
        match raw.kind.get() {
            KIND_IMAGE => Ok(RecordEntry::Image {
                block,
                lock: BlockNo(raw.lock.get()),
                lock_generation: Version {
                    birth: raw.lock_birth.get(),
                    count: raw.lock_version.get(),
                },
                version: Version { birth: raw.birth.get(), count: raw.version.get() },
                checksum: raw.checksum.get(),
            }),
            KIND_REVOKE => {
                require(raw.checksum == 0, "checksum", raw.checksum)?;
                require(raw.lock == 0, "lock", raw.lock)?;
                require(raw.lock_birth == 0, "lock_birth", raw.lock_birth)?;
                require(raw.lock_version == 0, "lock_version", raw.lock_version)?;
                require(raw.birth == 0, "birth", raw.birth)?;
                require(raw.version == 0, "version", raw.version)?;
                Ok(RecordEntry::Revoke { block })
            }
            other => Err(DecodeError::field("kind", other)),
        }
    }

    fn encode(&self) -> RawRecordEntry {
        let (kind, block, lock, lock_generation, version, checksum) = match *self {
            RecordEntry::Image { block, lock, lock_generation, version, checksum } => {
                (KIND_IMAGE, block, lock, lock_generation, version, checksum)
            }
            RecordEntry::Revoke { block } => {
                (KIND_REVOKE, block, BlockNo(0), Version::default(), Version::default(), 0)
            }
        };
        RawRecordEntry {
            kind: kind.into(),
            reserved0: 0.into(),
            checksum: checksum.into(),
            block: block.0.into(),
            lock: lock.0.into(),
            lock_birth: lock_generation.birth.into(),
            lock_version: lock_generation.count.into(),
            birth: version.birth.into(),
            version: version.count.into(),
            reserved1: 0.into(),
        }
    }
}

/// The chain value of a record, from the checksum fields of its head blocks: the next record
/// carries it, so that a record of an earlier round of the ring is never taken for its successor.
pub fn chain(sequence: u64, head_checksums: &[u32]) -> u64 {
    head_checksums
        .iter()
        .fold(sequence, |value, sum| value.wrapping_mul(31).wrapping_add(u64::from(*sum)))
}

#[cfg(test)]
mod header_tests {
    use super::*;
    use crate::samples;
    use crate::testing::disk_tests;

    disk_tests! {
        HEADER_LAYOUT, samples::journal_header();
        encode: |header: &JournalHeader, volume, at| header.encode(volume, BlockNo(at)),
        decode: |bytes: &[u8], volume, at| JournalHeader::decode(bytes, volume, BlockNo(at)),
    }
}

#[cfg(test)]
mod record_tests {
    use super::*;
    use crate::samples::{self, VOLUME};
    use crate::testing::{disk_tests, with, with_bytes};

    const AT_BLOCK: BlockNo = BlockNo(5000);
    const FIRST: usize = 128;
    const SECOND: usize = 128 + 64;

    fn full() -> RecordHead {
        let entries = (0..62).map(|n| RecordEntry::Revoke { block: BlockNo(n) }).collect();
        RecordHead { entries, head_index: 1, head_count: 2, ..samples::record_head() }
    }

    disk_tests! {
        RECORD_LAYOUT, samples::record_head(), full();
        encode: |head: &RecordHead, volume, at| head.encode(volume, BlockNo(at)),
        decode: |bytes: &[u8], volume, at| RecordHead::decode(bytes, volume, BlockNo(at)),
    }

    fn decode(bytes: &[u8]) -> DecodeError {
        RecordHead::decode(bytes, VOLUME, AT_BLOCK).unwrap_err()
    }

    #[test]
    fn counts_that_contradict_each_other_are_refused() {
        let bytes = samples::record_head().encode(VOLUME, AT_BLOCK);
        for (field, value) in [
            ("head_index", 1),
            ("image_count", 0),
            ("image_count", 2),
            ("entry_count", 63),
            ("entry_count", u64::from(u32::MAX)),
        ] {
            let bytes = with(bytes.as_slice(), &RECORD_LAYOUT, field, value);
            assert_eq!(decode(&bytes), DecodeError::BadField { field, value });
        }
        let headless = with(bytes.as_slice(), &RECORD_LAYOUT, "head_count", 0);
        assert_eq!(decode(&headless), DecodeError::field("head_index", 0u64));
        let fewer = with(bytes.as_slice(), &RECORD_LAYOUT, "entry_count", 1);
        assert_eq!(decode(&fewer), DecodeError::Reserved { offset: SECOND });
    }

    #[test]
    fn a_reserved_byte_of_an_entry_is_refused() {
        let bytes = samples::record_head().encode(VOLUME, AT_BLOCK);
        for entry in [FIRST, SECOND] {
            for offset in [2, 3, 56, 63].map(|offset| entry + offset) {
                let bytes = with_bytes(bytes.as_slice(), offset, &[1]);
                assert_eq!(decode(&bytes), DecodeError::Reserved { offset });
            }
        }
    }

    #[test]
    fn a_revoke_names_a_block_and_nothing_else() {
        let bytes = samples::record_head().encode(VOLUME, AT_BLOCK);
        for (offset, field) in [
            (4, "checksum"),
            (16, "lock"),
            (24, "lock_birth"),
            (32, "lock_version"),
            (40, "birth"),
            (48, "version"),
        ] {
            let bytes = with_bytes(bytes.as_slice(), SECOND + offset, &[5]);
            assert_eq!(decode(&bytes), DecodeError::field(field, 5u64));
        }
        let bytes = with_bytes(bytes.as_slice(), SECOND, &[3]);
        assert_eq!(decode(&bytes), DecodeError::field("kind", 3u64));
    }

    #[test]
    fn the_chain_depends_on_every_head_and_their_order() {
        assert_eq!(chain(5, &[]), 5);
        assert_eq!(chain(5, &[7]), 5 * 31 + 7);
        assert_eq!(chain(5, &[7, 9]), (5 * 31 + 7) * 31 + 9);
        assert_eq!(chain(u64::MAX, &[u32::MAX]), (u64::from(u32::MAX)).wrapping_sub(31));
    }
}
