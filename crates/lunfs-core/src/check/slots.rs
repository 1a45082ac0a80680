//! The heartbeat region: which hosts there are, and which life each slot has reached.

use futures_util::future::join_all;
use lunfs_format::{
    BLOCK, BlockNo, DOORBELLS, DecodeError, Doorbell, Geometry, Holder, Pulse, PulseState, SlotNo,
};

use super::claim::{Basis, Claims};
use super::media::Media;
use crate::error::Result;

/// Slots read at once.
const READ_SLOTS: u32 = 64;

/// One slot as it was read.
struct Slot {
    pulse: std::result::Result<Pulse, DecodeError>,
    /// Doorbell entries that cannot be decoded.
    bells: Vec<(u32, DecodeError)>,
}

/// All slots, read once.
pub(super) struct Slots {
    geometry: Geometry,
    all: Vec<Slot>,
}

impl Slots {
    /// Reads all slots.
    pub async fn read(media: &Media<'_>) -> Result<Slots> {
        let geometry = media.geometry;
        let len = geometry.slot_len();
        let reads = (0..geometry.slot_count).step_by(READ_SLOTS as usize).map(|first| {
            let count = READ_SLOTS.min(geometry.slot_count - first) as usize;
            media.bytes(geometry.slot_offset(SlotNo(first)), len * count)
        });
        let mut all = Vec::new();
        for bytes in join_all(reads).await {
            for slot in bytes?.chunks_exact(len) {
                let number = SlotNo(u32::try_from(all.len()).expect("1024 slots"));
                all.push(Slot::decode(media, number, slot));
            }
        }
        Ok(Slots { geometry, all })
    }

    fn pulses(&self) -> impl Iterator<Item = (SlotNo, &Slot)> {
        (0..).map(SlotNo).zip(&self.all)
    }

    /// The pulse of a slot; `None`: there is no such slot, or it cannot be decoded.
    pub fn pulse(&self, slot: SlotNo) -> Option<&Pulse> {
        self.all.get(slot.0 as usize)?.pulse.as_ref().ok()
    }

    /// Slots whose pulse cannot be decoded.
    pub fn damaged(&self) -> impl Iterator<Item = SlotNo> {
        self.pulses().filter(|(_, slot)| slot.pulse.is_err()).map(|(number, _)| number)
    }

    /// Doorbell entries that cannot be decoded.
    pub fn damaged_bells(&self) -> impl Iterator<Item = (SlotNo, u32)> {
        self.pulses().flat_map(|(number, slot)| slot.bells.iter().map(move |(e, _)| (number, *e)))
    }

    /// Slots that are not free.
    pub fn live(&self) -> impl Iterator<Item = SlotNo> {
        let is_live =
            |slot: &Slot| slot.pulse.as_ref().is_ok_and(|pulse| pulse.state != PulseState::Free);
        self.pulses().filter(move |(_, slot)| is_live(slot)).map(|(number, _)| number)
    }

    /// Was nobody there from the first reading, this one, to the second? Whoever came and went
    /// raised an incarnation.
    pub fn is_at_rest_until(&self, later: &Slots) -> bool {
        let life = |slot: &Slot| match &slot.pulse {
            Ok(pulse) if pulse.state == PulseState::Free => Some(pulse.incarnation),
            Ok(_) | Err(_) => None,
        };
        let mut pairs = self.all.iter().zip(&later.all);
        pairs.all(|(a, b)| life(a).is_some() && life(a) == life(b))
    }

    /// May this holder be using what it holds, or may somebody replay its journal?
    pub fn may_live(&self, holder: Holder) -> bool {
        match self.all.get(holder.slot.0 as usize).map(|slot| &slot.pulse) {
            None => false,
            Some(Err(_)) => true,
            Some(Ok(pulse)) => holder.incarnation >= pulse.incarnation,
        }
    }

    /// Why nobody can be this holder, which was read before these slots were. Incarnations only
    /// rise, so a life that has not begun now had not begun then.
    pub fn fault_of(&self, holder: Holder) -> Option<String> {
        let Holder { slot: number, incarnation } = holder;
        let Some(slot) = self.all.get(number.0 as usize) else {
            return Some(format!("there is no slot {number}"));
        };
        // A pulse that cannot be decoded was reported; nobody can judge its lives.
        let pulse = slot.pulse.as_ref().ok()?;
        let (has_begun, state) = match pulse.state {
            PulseState::Free => (incarnation < pulse.incarnation, "free"),
            _ => (incarnation <= pulse.incarnation, "in use"),
        };
        let now = pulse.incarnation;
        (!has_begun).then(|| {
            format!("life {incarnation} of slot {number} has not begun: it is {state} at {now}")
        })
    }

    /// Reports damaged records and slots in use.
    pub fn judge(&self, offline: bool, claims: &mut Claims) {
        for (number, slot) in self.pulses() {
            let block = |offset: u64| BlockNo(offset / BLOCK as u64);
            let at = block(self.geometry.slot_offset(number));
            match &slot.pulse {
                Err(why) => claims.error(
                    at,
                    Basis::Fixed,
                    format!(
                        "the pulse of slot {number} is damaged ({why}): nobody can join in this \
                         slot, and nobody knows whether its locks are stale"
                    ),
                ),
                Ok(pulse) if pulse.state != PulseState::Free => {
                    let what = in_use(pulse);
                    if offline {
                        let meant = "the volume was said to be mounted nowhere";
                        claims.error(at, Basis::Fixed, format!("{what}; {meant}"));
                    } else {
                        claims.note(at, what);
                    }
                }
                Ok(_) => {}
            }
            for (entry, why) in &slot.bells {
                let at = block(self.geometry.doorbell_offset(number, *entry));
                let what = format!("doorbell entry {entry} of slot {number} is damaged ({why})");
                claims.error(at, Basis::Fixed, format!("{what}: nobody can ring there"));
            }
        }
    }
}

impl Slot {
    fn decode(media: &Media<'_>, number: SlotNo, bytes: &[u8]) -> Slot {
        let mut records = bytes.chunks_exact(media.superblock.logical_block as usize);
        let pulse = records.next().ok_or(DecodeError::BadLength);
        let pulse = pulse.and_then(|record| Pulse::decode(record, media.volume(), number));
        let bells = (0..DOORBELLS).zip(records).filter_map(|(entry, record)| {
            let bell = Doorbell::decode(record, media.volume(), number, entry);
            Some((entry, bell.err()?))
        });
        Slot { pulse, bells: bells.collect() }
    }
}

fn in_use(pulse: &Pulse) -> String {
    let state = match pulse.state {
        PulseState::Free => "is free",
        PulseState::Joining => "is joining",
        PulseState::Live => "is live",
        PulseState::Claimed => "is being recovered by another host",
        PulseState::Dead => "is dead and waits to be recovered by the next host that mounts",
    };
    format!("slot {} (host {:?}) {state}", pulse.slot, pulse.name)
}
