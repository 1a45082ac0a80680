//! A lock: one logical block that says who may change an object.
//!
//! Invariant: a holder is named exactly in mode exclusive.
//!
//! Bytes: docs/format.md#lock.

use zerocopy::little_endian::{U16, U32, U64};

use crate::error::{DecodeError, must_be_valid, require};
use crate::geometry::is_slot;
use crate::header::{Heading, RawHeader, Structure, kind, make, open};
use crate::layout::{Layout, numbered, raw};
use crate::units::{BlockNo, Holder, Incarnation, RECORD, Record, SlotNo, Version, VolumeId};

raw! {
    RawLock, LAYOUT, "Lock" {
        header: RawHeader,
        mode: U16,
        object: U16,
        holder_slot: U32,
        holder_incarnation: U64,
        nonce: U64,
        stamp_birth: U64,
        stamp_version: U64,
        stamp_checksum: U32,
        giver_slot: U32,
        payload: U64,
        holders: [u8; 256] = zero,
        reserved1: [u8; 136] = zero,
    }
}

const _: () = assert!(size_of::<RawLock>() == RECORD);

impl Structure for RawLock {
    const KIND: u16 = kind::LOCK;
    const FIELDS: Layout = LAYOUT;
}

numbered! {
    /// Who may use the object.
    pub enum LockMode, "mode" {
        /// Whoever takes the lock.
        Free = 1,
        /// One host.
        Exclusive = 2,
        /// Hosts that only read.
        Shared = 3,
        /// Hosts that write to its content only.
        MultiWriter = 4,
        /// Nobody may change it.
        Frozen = 5,
        /// There is no object here any more.
        Void = 6,
    }
}

numbered! {
    /// What a lock covers.
    pub enum LockObject, "object" {
        /// A cluster of files.
        Cluster = 1,
        /// A file, directory, symlink or device node.
        Descriptor = 2,
        /// A cluster that is a journal.
        Journal = 3,
        /// Something of the whole volume.
        System = 4,
    }
}

/// What the body was when no one held the lock exclusively. All zero: there is no stamp yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Stamp {
    /// Version of the body.
    pub version: Version,
    /// Checksum field of the body.
    pub checksum: u32,
}

/// Who may change an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lock {
    /// Who may use the object.
    pub mode: LockMode,
    /// What the lock covers.
    pub object: LockObject,
    /// The one host of mode exclusive.
    pub holder: Option<Holder>,
    /// Rises at each change of the lock.
    pub generation: Version,
    /// Random at each write.
    pub nonce: u64,
    /// What the body was when no one held the lock exclusively.
    pub stamp: Stamp,
    /// Who handed the lock to its holder; none: it was taken.
    pub giver: Option<SlotNo>,
    /// Frontier: clusters initialised. Journal: the slot.
    pub payload: u64,
}

impl Lock {
    /// Reads the lock at `at`.
    pub fn decode(bytes: &[u8], volume: VolumeId, at: BlockNo) -> Result<Lock, DecodeError> {
        let raw = open::<RawLock>(bytes, Some(volume), at.0)?;
        raw.header.require_no_owner()?;
        let mode = LockMode::from_number(raw.mode)?;
        let holder = match mode {
            LockMode::Exclusive => Some(Holder {
                slot: SlotNo(raw.holder_slot.get()),
                incarnation: Incarnation(raw.holder_incarnation.get()),
            }),
            _ => {
                require(raw.holder_slot == 0, "holder_slot", raw.holder_slot)?;
                let incarnation = raw.holder_incarnation;
                require(incarnation == 0, "holder_incarnation", incarnation)?;
                None
            }
        };
        let lock = Lock {
            mode,
            object: LockObject::from_number(raw.object)?,
            holder,
            generation: raw.header.version(),
            nonce: raw.nonce.get(),
            stamp: Stamp {
                version: Version { birth: raw.stamp_birth.get(), count: raw.stamp_version.get() },
                checksum: raw.stamp_checksum.get(),
            },
            giver: raw.giver_slot.get().checked_sub(1).map(SlotNo),
            payload: raw.payload.get(),
        };
        lock.check()?;
        Ok(lock)
    }

    /// Makes the record that lies at `at`.
    ///
    /// # Panics
    /// If `decode` would refuse it.
    pub fn encode(&self, volume: VolumeId, at: BlockNo) -> Box<Record> {
        must_be_valid("lock", self.check());
        let heading =
            Heading { volume, address: at.0, version: self.generation, owner: BlockNo(0) };
        make(heading, |raw: &mut RawLock| {
            let holder = self.holder.unwrap_or_default();
            raw.mode = u16::from(self.mode.number()).into();
            raw.object = u16::from(self.object.number()).into();
            raw.holder_slot = holder.slot.0.into();
            raw.holder_incarnation = holder.incarnation.0.into();
            raw.nonce = self.nonce.into();
            raw.stamp_birth = self.stamp.version.birth.into();
            raw.stamp_version = self.stamp.version.count.into();
            raw.stamp_checksum = self.stamp.checksum.into();
            raw.giver_slot = self.giver.map_or(0, |giver| giver.0 + 1).into();
            raw.payload = self.payload.into();
        })
    }

    fn check(&self) -> Result<(), DecodeError> {
        let is_exclusive = self.mode == LockMode::Exclusive;
        require(self.holder.is_some() == is_exclusive, "mode", self.mode.number())?;
        // Who waits for a lock looks at its holder's slot: there must be one.
        if let Some(holder) = self.holder {
            require(is_slot(holder.slot), "holder_slot", holder.slot.0)?;
        }
        let giver = self.giver.map_or(0, |giver| giver.0.saturating_add(1));
        require(self.giver.is_none_or(is_slot), "giver_slot", giver)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::samples::{self, VOLUME};
    use crate::testing::{disk_tests, with};

    const AT_BLOCK: BlockNo = BlockNo(258);

    fn free() -> Lock {
        Lock {
            mode: LockMode::Free,
            object: LockObject::System,
            holder: None,
            stamp: Stamp::default(),
            giver: None,
            ..samples::lock()
        }
    }

    disk_tests! {
        LAYOUT, samples::lock(), free();
        encode: |lock: &Lock, volume, at| lock.encode(volume, BlockNo(at)),
        decode: |bytes: &[u8], volume, at| Lock::decode(bytes, volume, BlockNo(at)),
    }

    #[test]
    fn a_holder_is_named_exactly_in_mode_exclusive() {
        for (field, value) in [
            ("mode", 0),
            ("mode", 7),
            ("object", 0),
            ("object", 5),
            ("holder_slot", 1),
            ("holder_incarnation", 1),
        ] {
            let bytes = with(free().encode(VOLUME, AT_BLOCK).as_slice(), &LAYOUT, field, value);
            let error = Lock::decode(&bytes, VOLUME, AT_BLOCK).unwrap_err();
            assert_eq!(error, DecodeError::BadField { field, value });
        }
    }

    /// Found by damaged volumes: whoever asked for such a lock looked for its holder behind the
    /// last slot, and ended.
    #[test]
    fn a_holder_in_a_slot_that_does_not_exist_is_refused() {
        let bytes = samples::lock().encode(VOLUME, AT_BLOCK);
        for (field, value) in [("holder_slot", 1024), ("giver_slot", 1025)] {
            let bytes = with(bytes.as_slice(), &LAYOUT, field, value);
            let error = Lock::decode(&bytes, VOLUME, AT_BLOCK).unwrap_err();
            assert_eq!(error, DecodeError::BadField { field, value });
        }
    }

    #[test]
    fn slot_zero_as_giver_is_not_nobody() {
        for giver in [None, Some(SlotNo(0)), Some(SlotNo(1023))] {
            let lock = Lock { giver, ..samples::lock() };
            let bytes = lock.encode(VOLUME, AT_BLOCK);
            assert_eq!(Lock::decode(bytes.as_slice(), VOLUME, AT_BLOCK), Ok(lock));
        }
    }

    #[test]
    fn the_rest_of_a_large_logical_block_is_zero() {
        let lock = samples::lock();
        let mut bytes = lock.encode(VOLUME, AT_BLOCK).to_vec();
        bytes.resize(4096, 0);
        assert_eq!(Lock::decode(&bytes, VOLUME, AT_BLOCK), Ok(lock));
        assert_eq!(crate::peek_header(&bytes).unwrap().version, lock.generation);
        bytes[512] = 1;
        let error = Lock::decode(&bytes, VOLUME, AT_BLOCK).unwrap_err();
        assert_eq!(error, DecodeError::Reserved { offset: 512 });
    }

    #[test]
    fn one_of_another_volume_is_refused() {
        let bytes = samples::lock().encode(VOLUME, AT_BLOCK);
        let error = Lock::decode(bytes.as_slice(), VolumeId([9; 16]), AT_BLOCK).unwrap_err();
        assert_eq!(error, DecodeError::ForeignVolume { found: VOLUME });
    }

    #[test]
    #[should_panic(expected = "refusing to write an invalid lock: mode must not be 1")]
    fn a_free_lock_with_a_holder_is_not_written() {
        Lock { mode: LockMode::Free, ..samples::lock() }.encode(VOLUME, AT_BLOCK);
    }
}
