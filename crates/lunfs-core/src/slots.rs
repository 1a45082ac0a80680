//! The heartbeat region: reading slots and doorbells, joining, claiming.
//!
//! Invariant: a slot changes only by compare-and-write of exactly the image that was read (R4),
//! so a late pulse and a claim exclude each other.

use futures_util::future::join_all;
use lunfs_format::{
    BLOCK, BellState, BlockNo, DOORBELLS, Doorbell, Geometry, Pulse, PulseState, RECORD, SlotNo,
    VolumeId,
};

use crate::error::{Error, Result};
use crate::io::{Io, Settled};

/// Slots read at once by a scan.
const SCAN: u32 = 64;

/// A slot as it was read.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Which slot.
    pub slot: SlotNo,
    /// Its pulse; `None`: corrupt, neither free nor live, nobody may guess (Q16).
    pub pulse: Option<Pulse>,
}

/// The heartbeat region of a volume.
#[derive(Clone, Copy)]
pub struct Region {
    /// The volume.
    pub volume: VolumeId,
    /// Where things lie.
    pub geometry: Geometry,
}

impl Region {
    fn logical_block(&self) -> usize {
        self.geometry.logical_block as usize
    }

    fn decode(&self, slot: SlotNo, bytes: &[u8]) -> Seen {
        Seen { slot, pulse: Pulse::decode(&bytes[..RECORD], self.volume, slot).ok() }
    }

    /// Reads one slot's pulse.
    pub async fn read(&self, io: &Io, slot: SlotNo) -> Result<Seen> {
        let bytes = io.read_record(self.geometry.slot_offset(slot)).await?;
        Ok(self.decode(slot, &bytes))
    }

    /// Reads a pulse that must be readable.
    pub async fn pulse(&self, io: &Io, slot: SlotNo) -> Result<Pulse> {
        self.read(io, slot).await?.pulse.ok_or_else(|| {
            let at = BlockNo(self.geometry.slot_offset(slot) / BLOCK as u64);
            Error::damaged(at, format!("slot {slot} is neither free nor live"))
        })
    }

    /// Reads a slot, pulse and doorbell, in one read.
    pub async fn read_whole(&self, io: &Io, slot: SlotNo) -> Result<Vec<u8>> {
        io.read_at(self.geometry.slot_offset(slot), self.geometry.slot_len()).await
    }

    /// The doorbell of a slot that was read whole.
    pub fn doorbell<'a>(&self, whole: &'a [u8]) -> &'a [u8] {
        &whole[self.logical_block()..]
    }

    /// The entries of a doorbell that can be read.
    pub fn bells(&self, slot: SlotNo, doorbell: &[u8]) -> Vec<(u32, Doorbell)> {
        let entries = (0..DOORBELLS).zip(doorbell.chunks_exact(self.logical_block()));
        let decoded = entries.filter_map(|(entry, bytes)| {
            Some((entry, Doorbell::decode(&bytes[..RECORD], self.volume, slot, entry).ok()?))
        });
        decoded.collect()
    }

    /// Reads slots `first..first+count` in one read.
    pub async fn read_range(&self, io: &Io, first: SlotNo, count: u32) -> Result<Vec<Seen>> {
        let count = count.min(self.geometry.slot_count - first.0);
        let len = self.geometry.slot_len();
        let bytes = io.read_at(self.geometry.slot_offset(first), len * count as usize).await?;
        Ok((0..count)
            .map(|i| self.decode(SlotNo(first.0 + i), &bytes[i as usize * len..]))
            .collect())
    }

    /// Reads all slots.
    pub async fn scan(&self, io: &Io) -> Result<Vec<Seen>> {
        let reads = (0..self.geometry.slot_count)
            .step_by(SCAN as usize)
            .map(|first| self.read_range(io, SlotNo(first), SCAN));
        let mut all = Vec::new();
        for part in join_all(reads).await {
            all.extend(part?);
        }
        Ok(all)
    }

    /// Replaces exactly `expect` by `new`.
    pub async fn swap(&self, io: &Io, expect: &Pulse, new: &Pulse) -> Result<Settled> {
        io.compare_and_write(
            self.geometry.slot_offset(expect.slot),
            &expect.encode(self.volume),
            &new.encode(self.volume),
        )
        .await
    }

    /// Puts a request into a doorbell entry of `slot` that is not in use; `false`: all are.
    pub async fn ring(&self, io: &Io, slot: SlotNo, prefer: u32, bell: &Doorbell) -> Result<bool> {
        let whole = self.read_whole(io, slot).await?;
        let bells = self.bells(slot, self.doorbell(&whole));
        let order = (0..DOORBELLS).map(|i| (i + prefer) % DOORBELLS);
        for entry in order {
            let Some((_, old)) = bells.iter().find(|(e, _)| *e == entry) else { continue };
            let stale = old.target_incarnation != bell.target_incarnation;
            if old.state == BellState::Rung && !stale {
                continue;
            }
            if let Settled::Won = self.swap_bell(io, slot, entry, old, bell).await? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Replaces one doorbell entry.
    pub async fn swap_bell(
        &self,
        io: &Io,
        slot: SlotNo,
        entry: u32,
        expect: &Doorbell,
        new: &Doorbell,
    ) -> Result<Settled> {
        io.compare_and_write(
            self.geometry.doorbell_offset(slot, entry),
            &expect.encode(self.volume, slot, entry),
            &new.encode(self.volume, slot, entry),
        )
        .await
    }
}

/// May a host with this name and machine join beside what it sees? The reason if not.
pub fn may_join(seen: &[Seen], name: &str, boot: [u8; 16], machine: [u8; 16]) -> Option<String> {
    for pulse in seen.iter().filter_map(|s| s.pulse.as_ref()) {
        let lives = matches!(pulse.state, PulseState::Joining | PulseState::Live);
        if lives && pulse.machine != machine && pulse.boot != boot {
            return Some(format!(
                "slot {} is in use by host {:?} of another machine, and this source offers no \
                 compare-and-write that works between machines: only hosts of one machine may \
                 mount it",
                pulse.slot, pulse.name
            ));
        }
        if lives && pulse.name == name && pulse.boot == boot {
            return Some(format!(
                "a host named {name:?} has this volume mounted (slot {}); choose another name with \
                 --host, or wait until its death is noticed",
                pulse.slot
            ));
        }
    }
    None
}
