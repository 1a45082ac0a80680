//! The pulse of a slot: is this host alive, and may it be taken over.
//!
//! Invariants: a claimer is named exactly in state claimed; the header's version is incarnation
//! and counter, so that a pulse never looks older than an earlier one.
//!
//! Bytes: docs/format.md#pulse.

use zerocopy::little_endian::{U16, U32, U64};

use crate::error::{DecodeError, must_be_valid, require};
use crate::geometry::{is_slot, record_address};
use crate::header::{Heading, RawHeader, Structure, kind, make, open};
use crate::layout::{Layout, numbered, raw};
use crate::superblock::{Timing, check_text, put_text, text};
use crate::units::{BlockNo, Holder, Incarnation, RECORD, Record, SlotNo, Version, VolumeId};

const HAS_PARENT: u16 = 1;
const PROGRAM_ONLY: u16 = 2;
const IO_CLEAN: u16 = 4;

raw! {
    RawPulse, LAYOUT, "Pulse" {
        header: RawHeader,
        state: U16,
        flags: U16,
        slot: U32,
        incarnation: U64,
        counter: U64,
        progress: U64,
        nonce: U64,
        run: [u8; 16],
        boot: [u8; 16],
        machine: [u8; 16],
        name: [u8; 64],
        journal: U64,
        pulse_ms: U32,
        lease_ms: U32,
        claim_ms: U32,
        pid: U32,
        pid_start: U64,
        pid_namespace: U64,
        fence_key: U64 = zero,
        claimer_slot: U32,
        claim_attempts: U32,
        claimer_incarnation: U64,
        fence_progress: U64,
        claim_failure: U32,
        reserved1: U32 = zero,
        geometry_epoch: U64,
        layer_epoch: U64 = zero,
        ballot: [u8; 64] = zero,
        reserved2: [u8; 136] = zero,
    }
}

const _: () = assert!(size_of::<RawPulse>() == RECORD);

impl Structure for RawPulse {
    const KIND: u16 = kind::PULSE;
    const FIELDS: Layout = LAYOUT;
}

numbered! {
    /// What a slot is used for.
    pub enum PulseState, "state" {
        /// Nobody uses it.
        Free = 1,
        /// A host is about to.
        Joining = 2,
        /// A host uses it.
        Live = 3,
        /// Another host takes over what its host left.
        Claimed = 4,
        /// Its host is gone and said so; nobody has claimed it.
        Dead = 5,
    }
}

numbered! {
    /// Why the last claim of a slot was handed back.
    pub enum ClaimFailure, "claim_failure" {
        /// None was.
        None = 0,
        /// The fence was not confirmed.
        Fence = 1,
        /// The device failed.
        Io = 2,
        /// The journal cannot be read.
        Corrupt = 3,
    }
}

/// What a slot says of its host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pulse {
    /// Own number.
    pub slot: SlotNo,
    /// Number of the slot's current life.
    pub incarnation: Incarnation,
    /// What the slot is used for.
    pub state: PulseState,
    /// A parent watches the program.
    pub has_parent: bool,
    /// The last word says that the program ended, not the machine.
    pub program_only: bool,
    /// The I/O of the host was proven drained.
    pub io_clean: bool,
    /// Pulses of this life.
    pub counter: u64,
    /// Rises when the host served its doorbells and commits.
    pub progress: u64,
    /// Random at each write.
    pub nonce: u64,
    /// Random, made when the program started.
    pub run: [u8; 16],
    /// Boot id of the machine.
    pub boot: [u8; 16],
    /// Machine id.
    pub machine: [u8; 16],
    /// Host name, at most 64 bytes.
    pub name: String,
    /// The journal's cluster.
    pub journal: Option<BlockNo>,
    /// The timing that this host keeps.
    pub timing: Timing,
    /// The program's process, in `pid_namespace`.
    pub pid: u32,
    /// Start time of the process, in clock ticks since boot.
    pub pid_start: u64,
    /// Inode of the process's pid namespace.
    pub pid_namespace: u64,
    /// Who takes over: exactly in state claimed.
    pub claimer: Option<Holder>,
    /// Claims begun since this life ended.
    pub claim_attempts: u32,
    /// Why the last claim was handed back.
    pub claim_failure: ClaimFailure,
    /// A bit for each extent whose fence is confirmed.
    pub fence_progress: u64,
    /// The geometry that this host sees.
    pub geometry_epoch: u64,
}

impl Pulse {
    /// A slot that nobody uses, after its life `incarnation`.
    pub fn free(slot: SlotNo, incarnation: Incarnation, nonce: u64) -> Pulse {
        Pulse {
            slot,
            incarnation,
            state: PulseState::Free,
            has_parent: false,
            program_only: false,
            io_clean: false,
            counter: 0,
            progress: 0,
            nonce,
            run: [0; 16],
            boot: [0; 16],
            machine: [0; 16],
            name: String::new(),
            journal: None,
            timing: Timing::default(),
            pid: 0,
            pid_start: 0,
            pid_namespace: 0,
            claimer: None,
            claim_attempts: 0,
            claim_failure: ClaimFailure::None,
            fence_progress: 0,
            geometry_epoch: 0,
        }
    }

    /// Reads the pulse of `slot`.
    pub fn decode(bytes: &[u8], volume: VolumeId, slot: SlotNo) -> Result<Pulse, DecodeError> {
        let raw = open::<RawPulse>(bytes, Some(volume), record_address(slot, 0))?;
        raw.header.require_no_owner()?;
        require(raw.slot == slot.0, "slot", raw.slot)?;
        require(raw.header.birth == raw.incarnation, "birth", raw.header.birth)?;
        require(raw.header.version == raw.counter, "version", raw.header.version)?;
        let flags = raw.flags.get();
        require(flags & !(HAS_PARENT | PROGRAM_ONLY | IO_CLEAN) == 0, "flags", flags)?;
        let state = PulseState::from_number(raw.state)?;
        let claimer = match state {
            PulseState::Claimed => Some(Holder {
                slot: SlotNo(raw.claimer_slot.get()),
                incarnation: Incarnation(raw.claimer_incarnation.get()),
            }),
            _ => {
                require(raw.claimer_slot == 0, "claimer_slot", raw.claimer_slot)?;
                let incarnation = raw.claimer_incarnation;
                require(incarnation == 0, "claimer_incarnation", incarnation)?;
                None
            }
        };
        let pulse = Pulse {
            slot,
            incarnation: Incarnation(raw.incarnation.get()),
            state,
            has_parent: flags & HAS_PARENT != 0,
            program_only: flags & PROGRAM_ONLY != 0,
            io_clean: flags & IO_CLEAN != 0,
            counter: raw.counter.get(),
            progress: raw.progress.get(),
            nonce: raw.nonce.get(),
            run: raw.run,
            boot: raw.boot,
            machine: raw.machine,
            name: text("name", &raw.name)?,
            journal: (raw.journal != 0).then(|| BlockNo(raw.journal.get())),
            timing: Timing {
                pulse_ms: raw.pulse_ms.get(),
                lease_ms: raw.lease_ms.get(),
                claim_ms: raw.claim_ms.get(),
            },
            pid: raw.pid.get(),
            pid_start: raw.pid_start.get(),
            pid_namespace: raw.pid_namespace.get(),
            claimer,
            claim_attempts: raw.claim_attempts.get(),
            claim_failure: ClaimFailure::from_number(raw.claim_failure)?,
            fence_progress: raw.fence_progress.get(),
            geometry_epoch: raw.geometry_epoch.get(),
        };
        pulse.check()?;
        Ok(pulse)
    }

    /// Makes the record.
    ///
    /// # Panics
    /// If `decode` would refuse it.
    pub fn encode(&self, volume: VolumeId) -> Box<Record> {
        must_be_valid("pulse", self.check());
        let heading = Heading {
            volume,
            address: record_address(self.slot, 0),
            version: Version { birth: self.incarnation.0, count: self.counter },
            owner: BlockNo(0),
        };
        make(heading, |raw: &mut RawPulse| {
            raw.state = u16::from(self.state.number()).into();
            raw.flags = self.flags().into();
            raw.slot = self.slot.0.into();
            raw.incarnation = self.incarnation.0.into();
            raw.counter = self.counter.into();
            raw.progress = self.progress.into();
            raw.nonce = self.nonce.into();
            raw.run = self.run;
            raw.boot = self.boot;
            raw.machine = self.machine;
            put_text(&mut raw.name, &self.name);
            raw.journal = self.journal.unwrap_or_default().0.into();
            raw.pulse_ms = self.timing.pulse_ms.into();
            raw.lease_ms = self.timing.lease_ms.into();
            raw.claim_ms = self.timing.claim_ms.into();
            raw.pid = self.pid.into();
            raw.pid_start = self.pid_start.into();
            raw.pid_namespace = self.pid_namespace.into();
            let claimer = self.claimer.unwrap_or_default();
            raw.claimer_slot = claimer.slot.0.into();
            raw.claim_attempts = self.claim_attempts.into();
            raw.claimer_incarnation = claimer.incarnation.0.into();
            raw.fence_progress = self.fence_progress.into();
            raw.claim_failure = u32::from(self.claim_failure.number()).into();
            raw.geometry_epoch = self.geometry_epoch.into();
        })
    }

    fn flags(&self) -> u16 {
        let flag = |set: bool, bit: u16| if set { bit } else { 0 };
        flag(self.has_parent, HAS_PARENT)
            | flag(self.program_only, PROGRAM_ONLY)
            | flag(self.io_clean, IO_CLEAN)
    }

    fn check(&self) -> Result<(), DecodeError> {
        check_text("name", &self.name)?;
        let is_claimed = self.state == PulseState::Claimed;
        require(self.claimer.is_some() == is_claimed, "state", self.state.number())?;
        if let Some(claimer) = self.claimer {
            require(is_slot(claimer.slot), "claimer_slot", claimer.slot.0)?;
        }
        require(self.journal != Some(BlockNo(0)), "journal", 0u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::samples::{self, VOLUME};
    use crate::testing::{disk_tests, with};

    fn dead() -> Pulse {
        Pulse { state: PulseState::Dead, claimer: None, journal: None, ..samples::pulse() }
    }

    disk_tests! {
        LAYOUT, samples::pulse(), dead(), Pulse::free(SlotNo(7), Incarnation(9), 1);
        encode: |pulse: &Pulse, volume, _| pulse.encode(volume),
        decode: |bytes: &[u8], volume, at| Pulse::decode(bytes, volume, SlotNo(at as u32)),
    }

    /// Found by damaged volumes: whoever saw such a claim looked at the slot of its claimer.
    #[test]
    fn a_claimer_in_a_slot_that_does_not_exist_is_refused() {
        let bytes = samples::pulse().encode(VOLUME);
        let bytes = with(bytes.as_slice(), &LAYOUT, "claimer_slot", 1024);
        let error = Pulse::decode(&bytes, VOLUME, SlotNo(7)).unwrap_err();
        assert_eq!(error, DecodeError::BadField { field: "claimer_slot", value: 1024 });
    }

    #[test]
    fn fields_that_contradict_each_other_are_refused() {
        for (field, value) in [
            ("state", 0),
            ("state", 6),
            ("flags", 8),
            ("slot", 8),
            ("claimer_slot", 1),
            ("claimer_incarnation", 1),
            ("claim_failure", 4),
        ] {
            let bytes = with(dead().encode(VOLUME).as_slice(), &LAYOUT, field, value);
            let error = Pulse::decode(&bytes, VOLUME, SlotNo(7)).unwrap_err();
            assert_eq!(error, DecodeError::BadField { field, value });
        }
    }

    #[test]
    fn the_version_is_the_life_and_its_pulses() {
        let bytes = samples::pulse().encode(VOLUME);
        let header = crate::peek_header(bytes.as_slice()).unwrap();
        assert_eq!(header.version, Version { birth: 3, count: 1234 });
        assert_eq!((header.kind, header.address), (kind::PULSE, 56));
        let bytes = with(bytes.as_slice(), &LAYOUT, "counter", 1233);
        let error = Pulse::decode(&bytes, VOLUME, SlotNo(7)).unwrap_err();
        assert_eq!(error, DecodeError::BadField { field: "version", value: 1234 });
    }

    #[test]
    fn every_flag_is_kept() {
        for bits in 0..8 {
            let pulse = Pulse {
                has_parent: bits & 1 != 0,
                program_only: bits & 2 != 0,
                io_clean: bits & 4 != 0,
                ..samples::pulse()
            };
            let decoded = Pulse::decode(pulse.encode(VOLUME).as_slice(), VOLUME, SlotNo(7));
            assert_eq!(decoded, Ok(pulse));
        }
    }

    #[test]
    #[should_panic(expected = "refusing to write an invalid pulse")]
    fn a_claim_without_claimer_is_not_written() {
        Pulse { claimer: None, ..samples::pulse() }.encode(VOLUME);
    }
}
