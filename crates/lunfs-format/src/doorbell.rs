//! A doorbell entry: one host asks another to hand locks over, or to show what space is free.
//!
//! Bytes: docs/format.md#doorbell.

use zerocopy::little_endian::{U16, U32, U64};

use crate::error::{DecodeError, must_be_valid, require};
use crate::geometry::{DOORBELLS, is_slot, record_address};
use crate::header::{Heading, RawHeader, Structure, kind, make, open};
use crate::layout::{Layout, numbered, raw};
use crate::units::{BlockNo, Holder, Incarnation, RECORD, Record, SlotNo, Version, VolumeId};

/// Locks that one entry can ask for.
pub const DOORBELL_LOCKS: usize = 32;

raw! {
    RawDoorbell, LAYOUT, "Doorbell" {
        header: RawHeader,
        state: U16,
        request: U16,
        ringer_slot: U32,
        ringer_incarnation: U64,
        target_incarnation: U64,
        nonce: U64,
        lock_count: U32,
        reserved1: U32 = zero,
        locks: [U64; DOORBELL_LOCKS],
        reserved2: [u8; 152] = zero,
    }
}

const _: () = assert!(size_of::<RawDoorbell>() == RECORD);

impl Structure for RawDoorbell {
    const KIND: u16 = kind::DOORBELL;
    const FIELDS: Layout = LAYOUT;
}

numbered! {
    /// Whether somebody waits at an entry.
    pub enum BellState, "state" {
        /// Nobody ever did.
        Empty = 1,
        /// Somebody does.
        Rung = 2,
        /// The holder has answered.
        Served = 3,
    }
}

numbered! {
    /// What is asked for.
    pub enum Request, "request" {
        /// Hand the locks over to the ringer, by name.
        HandOver = 1,
        /// Let go of the locks: the ringer only wants to read what they cover.
        LetGo = 2,
        /// Put what was freed into the headers of its clusters: the ringer looks for free space.
        ShowSpace = 3,
    }
}

/// What somebody asks of the host that the slot belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Doorbell {
    /// Whether somebody waits.
    pub state: BellState,
    /// What is asked for.
    pub request: Request,
    /// Who asks.
    pub ringer: Holder,
    /// Which life of the holder is asked; another one's request is void.
    pub target_incarnation: Incarnation,
    /// Random at each write.
    pub nonce: u64,
    /// The locks asked for: 1 to 32, none where space is asked for, up to 32 in an empty entry.
    pub locks: Vec<BlockNo>,
}

impl Doorbell {
    /// An entry that nobody ever used.
    pub fn empty(nonce: u64) -> Doorbell {
        Doorbell {
            state: BellState::Empty,
            request: Request::HandOver,
            ringer: Holder::default(),
            target_incarnation: Incarnation(0),
            nonce,
            locks: Vec::new(),
        }
    }

    /// Reads an entry of the holder's `slot`.
    pub fn decode(
        bytes: &[u8],
        volume: VolumeId,
        slot: SlotNo,
        entry: u32,
    ) -> Result<Doorbell, DecodeError> {
        let raw = open::<RawDoorbell>(bytes, Some(volume), address(slot, entry)?)?;
        raw.header.require_no_owner()?;
        // The nonce tells two writes apart; no one compares the age of doorbells.
        require(raw.header.birth == 0, "birth", raw.header.birth)?;
        require(raw.header.version == 0, "version", raw.header.version)?;
        let Some((locks, unused)) = raw.locks.split_at_checked(raw.lock_count.get() as usize)
        else {
            return Err(DecodeError::field("lock_count", raw.lock_count));
        };
        for lock in unused {
            require(*lock == 0, "locks", *lock)?;
        }
        let doorbell = Doorbell {
            state: BellState::from_number(raw.state)?,
            request: Request::from_number(raw.request)?,
            ringer: Holder {
                slot: SlotNo(raw.ringer_slot.get()),
                incarnation: Incarnation(raw.ringer_incarnation.get()),
            },
            target_incarnation: Incarnation(raw.target_incarnation.get()),
            nonce: raw.nonce.get(),
            locks: locks.iter().map(|lock| BlockNo(lock.get())).collect(),
        };
        doorbell.check()?;
        Ok(doorbell)
    }

    /// Makes the record of an entry of the holder's `slot`.
    ///
    /// # Panics
    /// If `decode` would refuse it.
    pub fn encode(&self, volume: VolumeId, slot: SlotNo, entry: u32) -> Box<Record> {
        must_be_valid("doorbell", self.check());
        let address = address(slot, entry).expect("a slot has 7 doorbell entries");
        let heading = Heading { volume, address, version: Version::default(), owner: BlockNo(0) };
        make(heading, |raw: &mut RawDoorbell| {
            raw.state = u16::from(self.state.number()).into();
            raw.request = u16::from(self.request.number()).into();
            raw.ringer_slot = self.ringer.slot.0.into();
            raw.ringer_incarnation = self.ringer.incarnation.0.into();
            raw.target_incarnation = self.target_incarnation.0.into();
            raw.nonce = self.nonce.into();
            raw.lock_count = (self.locks.len() as u32).into();
            for (place, lock) in raw.locks.iter_mut().zip(&self.locks) {
                *place = lock.0.into();
            }
        })
    }

    fn check(&self) -> Result<(), DecodeError> {
        let counts = match (self.state, self.request) {
            (BellState::Empty, _) => 0..=DOORBELL_LOCKS,
            (_, Request::HandOver | Request::LetGo) => 1..=DOORBELL_LOCKS,
            (_, Request::ShowSpace) => 0..=0,
        };
        require(is_slot(self.ringer.slot), "ringer_slot", self.ringer.slot.0)?;
        let count = self.locks.len();
        require(counts.contains(&count), "lock_count", count as u64)?;
        require(!self.locks.contains(&BlockNo(0)), "locks", 0u64)
    }
}

fn address(slot: SlotNo, entry: u32) -> Result<u64, DecodeError> {
    require(entry < DOORBELLS, "entry", entry)?;
    Ok(record_address(slot, 1 + entry))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::samples::{self, VOLUME};
    use crate::testing::{disk_tests, with, with_bytes};

    const SLOT: SlotNo = SlotNo(3);

    fn full() -> Doorbell {
        let locks = (1..=32).map(BlockNo).collect();
        Doorbell { locks, state: BellState::Served, ..samples::doorbell() }
    }

    disk_tests! {
        LAYOUT, samples::doorbell(), full(), Doorbell::empty(5);
        encode: |bell: &Doorbell, volume, at: u64| bell.encode(volume, SlotNo(at as u32), 6),
        decode: |bytes: &[u8], volume, at: u64| {
            Doorbell::decode(bytes, volume, SlotNo(at as u32), 6)
        },
    }

    #[test]
    fn one_of_another_entry_is_refused() {
        let bytes = samples::doorbell().encode(VOLUME, SLOT, 2);
        let decode = |entry| Doorbell::decode(bytes.as_slice(), VOLUME, SLOT, entry).unwrap_err();
        assert_eq!(decode(3), DecodeError::Misdirected { found: 3 * 8 + 1 + 2 });
        assert_eq!(decode(7), DecodeError::BadField { field: "entry", value: 7 });
    }

    #[test]
    fn absurd_requests_are_refused() {
        let bytes = samples::doorbell().encode(VOLUME, SLOT, 0);
        for (field, value) in [
            ("state", 0),
            ("state", 4),
            ("request", 0),
            ("request", 4),
            ("lock_count", 33),
            ("lock_count", u64::from(u32::MAX)),
            ("locks", 0),
        ] {
            let bytes = with(bytes.as_slice(), &LAYOUT, field, value);
            let error = Doorbell::decode(&bytes, VOLUME, SLOT, 0).unwrap_err();
            assert_eq!(error, DecodeError::BadField { field, value });
        }
    }

    #[test]
    fn a_request_for_no_lock_is_refused() {
        let bytes = Doorbell::empty(5).encode(VOLUME, SLOT, 0);
        for state in [BellState::Rung, BellState::Served] {
            let bytes = with(bytes.as_slice(), &LAYOUT, "state", state.number().into());
            let error = Doorbell::decode(&bytes, VOLUME, SLOT, 0).unwrap_err();
            assert_eq!(error, DecodeError::BadField { field: "lock_count", value: 0 });
        }
    }

    #[test]
    fn who_asks_for_space_names_no_lock() {
        let space = samples::doorbell_space();
        let bytes = space.encode(VOLUME, SLOT, 0);
        assert_eq!(Doorbell::decode(bytes.as_slice(), VOLUME, SLOT, 0), Ok(space));
        let bytes = with(bytes.as_slice(), &LAYOUT, "lock_count", 1);
        Doorbell::decode(&bytes, VOLUME, SLOT, 0).unwrap_err();
    }

    #[test]
    fn a_lock_that_is_not_counted_is_refused() {
        let bytes = samples::doorbell().encode(VOLUME, SLOT, 0);
        let bytes = with_bytes(bytes.as_slice(), 104 + 3 * 8, &[1]);
        let error = Doorbell::decode(&bytes, VOLUME, SLOT, 0).unwrap_err();
        assert_eq!(error, DecodeError::BadField { field: "locks", value: 1 });
    }
}
