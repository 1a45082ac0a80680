//! Mending what a check found, where nothing has to be guessed: first a plan, then its writes.
//!
//! What is mended is what hosts meet at (superblock, slots, doorbells) and what can be counted
//! anew (bitmaps). Files and directories are not: what is right there nobody can know.
//!
//! Invariants:
//! - Nobody has the volume mounted: every life mark is ours meanwhile, and whoever still ran a slot
//!   whose pulse is damaged has stopped by himself, since his lease is over.
//! - Each step is of use alone. A crash between two leaves the rest for the next repair.

use std::fmt;

use lunfs_format::{
    Bitmap, BlockNo, Cluster, Doorbell, Incarnation, Lock, LockMode, Pulse, PulseState, RECORD,
    SlotNo, Stamp, stored_checksum,
};

use super::claim::Claims;
use super::media::Media;
use super::report::Options;
use super::run::check;
use super::slots::Slots;
use super::space;
use super::walk::Walk;
use crate::env::{Env, Instant};
use crate::error::{Error, Kind, Result};
use crate::liveness::claim_wait;
use crate::marks::Marks;
use crate::types::Identity;

/// More lives than a slot can have had: a slot of which nothing is left goes on behind them.
const LIVES_SKIPPED: u64 = 1 << 32;

/// One thing that can be mended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Repair {
    /// A damaged copy of the superblock is written again from the other one.
    Superblock {
        /// Where the copy lies.
        at: BlockNo,
    },
    /// A damaged pulse is made anew.
    Pulse {
        /// Which slot.
        slot: SlotNo,
        /// Its last life, as its journal says; or the one it is free at.
        incarnation: Incarnation,
        /// Its journal.
        journal: Option<BlockNo>,
        /// The journal was used: the next host that mounts replays it. Otherwise the slot is free.
        has_died: bool,
    },
    /// A damaged doorbell entry is made empty.
    Doorbell {
        /// Whose.
        slot: SlotNo,
        /// Which.
        entry: u32,
    },
    /// The bitmap of a cluster is made to say what is in use.
    Space {
        /// Which cluster.
        cluster: u64,
        /// What it says.
        says: Bitmap,
        /// What it is to say.
        is: Bitmap,
    },
}

impl fmt::Display for Repair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Repair::Superblock { at } => write!(f, "the copy of the superblock in block {at}"),
            Repair::Pulse { slot, has_died: true, incarnation, .. } => {
                write!(
                    f,
                    "the pulse of slot {slot}: it died in life {incarnation}, the next mount "
                )?;
                f.write_str("recovers it")
            }
            Repair::Pulse { slot, .. } => write!(f, "the pulse of slot {slot}: it is free"),
            Repair::Doorbell { slot, entry } => write!(f, "doorbell entry {entry} of slot {slot}"),
            Repair::Space { cluster, says, is } => {
                let (before, after) = (says.count_free(), is.count_free());
                write!(f, "the bitmap of cluster {cluster}: {after} blocks are free, not {before}")
            }
        }
    }
}

// ---- plan ------------------------------------------------------------------------------------

/// What of all that was found can be mended.
pub(super) fn plan(
    media: &Media<'_>,
    slots: &Slots,
    walk: &Walk<'_, '_>,
    is_at_rest: bool,
) -> Vec<Repair> {
    let mut repairs: Vec<Repair> =
        media.damaged_copies.iter().map(|at| Repair::Superblock { at: *at }).collect();
    // Which journals there are, and so what a slot left, is known only if all clusters are.
    if walk.clusters.is_complete {
        repairs.extend(slots.damaged().filter_map(|slot| pulse(slot, walk)));
    }
    let bells = slots.damaged_bells();
    repairs.extend(bells.map(|(slot, entry)| Repair::Doorbell { slot, entry }));
    if is_at_rest && walk.clusters.is_complete {
        repairs.extend(space::mismatches(walk).map(|found| {
            // What is damaged elsewhere may refer to blocks that seem to be lost.
            let is = if walk.is_partial { found.says.union(&found.wanted) } else { found.wanted };
            Repair::Space { cluster: found.cluster, says: found.says, is }
        }));
        repairs.retain(|r| !matches!(r, Repair::Space { says, is, .. } if says == is));
    }
    repairs
}

/// What a slot was when its pulse was damaged, by its journal and the locks that name it. `None`:
/// they contradict each other, or say too little.
fn pulse(slot: SlotNo, walk: &Walk<'_, '_>) -> Option<Repair> {
    let holders = walk.locks.values().flatten().filter_map(|lock| lock.holder);
    let locked = holders.filter(|holder| holder.slot == slot).map(|holder| holder.incarnation);
    let last_locked = locked.max().unwrap_or_default();
    let mut journals = walk.clusters.journals.iter().filter(|journal| journal.slot == slot);
    let journal = journals.next();
    if journals.next().is_some() {
        return None;
    }
    let at = journal.map(|journal| journal.start);
    match journal.filter(|journal| journal.has_begun) {
        None => Some(Repair::Pulse {
            slot,
            incarnation: Incarnation(last_locked.0.saturating_add(LIVES_SKIPPED)),
            journal: at,
            has_died: false,
        }),
        Some(journal) => {
            // A later life than the journal's got no further than to take the journal.
            let incarnation = journal.life()?;
            (last_locked <= incarnation).then_some(Repair::Pulse {
                slot,
                incarnation,
                journal: at,
                has_died: true,
            })
        }
    }
}

// ---- apply -----------------------------------------------------------------------------------

/// Mends what can be mended on a volume that nobody has mounted, and returns what was.
///
/// `identity` is who repairs: a slot that is made anew is said to have died on this machine, so
/// that the fence of this machine answers for it.
///
/// # Errors
/// `Busy`: somebody has the volume mounted; nothing was changed. Any other: what a check or a
/// write met; what was mended before it stays.
pub async fn repair(env: &Env, identity: &Identity) -> Result<Vec<Repair>> {
    let media = Media::open(&*env.disk, &mut Claims::default()).await?;
    let _marks = Marks::take_all(env, media.geometry.slot_count)?;
    refuse_other_machines(&media, identity).await?;
    let repairs = check(&*env.disk, &Options::default()).await?.repairs;
    if repairs.iter().any(|repair| matches!(repair, Repair::Pulse { .. })) {
        // A host that runs such a slot cannot pulse. When its lease is over it stops.
        env.clock.sleep(claim_wait(media.superblock.timing)).await;
    }
    let work = Work { env, media: &media, identity };
    for repair in &repairs {
        work.apply(repair).await?;
    }
    env.disk.flush().await?;
    Ok(repairs)
}

/// A host of another machine leaves no mark here.
async fn refuse_other_machines(media: &Media<'_>, identity: &Identity) -> Result<()> {
    let slots = Slots::read(media).await?;
    let runs = |pulse: &&Pulse| {
        matches!(pulse.state, PulseState::Joining | PulseState::Live | PulseState::Claimed)
            && pulse.machine != identity.machine
    };
    match slots.live().filter_map(|slot| slots.pulse(slot)).find(runs) {
        None => Ok(()),
        Some(pulse) => Err(Error::new(
            Kind::Busy,
            format!(
                "slot {} is in use by host {:?} of another machine; nothing was changed, unmount \
                 it there, or mount here first if that machine is gone for good",
                pulse.slot, pulse.name
            ),
        )),
    }
}

struct Work<'w> {
    env: &'w Env,
    media: &'w Media<'w>,
    identity: &'w Identity,
}

impl Work<'_> {
    async fn apply(&self, repair: &Repair) -> Result<()> {
        let (volume, geometry) = (self.media.volume(), &self.media.geometry);
        match repair {
            Repair::Superblock { at } => {
                let copy = self.media.superblock.encode(*at);
                self.write(at.offset(), copy.to_vec()).await
            }
            Repair::Pulse { slot, incarnation, journal, has_died } => {
                let mut pulse = Pulse::free(*slot, *incarnation, self.env.rng.next());
                pulse.journal = *journal;
                pulse.geometry_epoch = self.media.superblock.geometry_epoch;
                if *has_died {
                    pulse.state = PulseState::Dead;
                    pulse.timing = self.media.superblock.timing;
                    (pulse.machine, pulse.boot) = (self.identity.machine, self.identity.boot);
                    // It lived to use its journal: a missing header is damage.
                    pulse.progress = 1;
                }
                let record = self.padded(&pulse.encode(volume)[..]);
                self.write(geometry.slot_offset(*slot), record).await
            }
            Repair::Doorbell { slot, entry } => {
                let bell = Doorbell::empty(self.env.rng.next()).encode(volume, *slot, *entry);
                let at = geometry.doorbell_offset(*slot, *entry);
                self.write(at, self.padded(&bell[..])).await
            }
            Repair::Space { cluster, says, is } => self.count_anew(*cluster, says, is).await,
        }
    }

    async fn count_anew(&self, cluster: u64, says: &Bitmap, is: &Bitmap) -> Result<()> {
        let at = self.media.geometry.cluster_start(cluster);
        let pair = self.media.pair(at).await?;
        let lock = pair.lock.map_err(|e| Error::corrupt(at, &e))?;
        let header = Cluster::decode(&pair.body, self.media.volume(), at.plus(1));
        let mut header = header.map_err(|e| Error::corrupt(at.plus(1), &e))?;
        if header.bitmap != *says {
            let why = format!("cluster {cluster} changed while the volume was repaired");
            return Err(Error::new(Kind::Busy, why));
        }
        header.bitmap = is.clone();
        header.version.count += 1;
        let body = header.encode(self.media.volume(), at.plus(1));
        self.write(at.plus(1).offset(), body.to_vec()).await?;
        // A crash before this leaves a header that is newer than its lock saw: whoever takes the
        // lock believes it. The other way round it would be a header that was lost.
        let free = Lock {
            mode: LockMode::Free,
            holder: None,
            giver: None,
            generation: lock.generation.next(),
            nonce: self.env.rng.next(),
            stamp: Stamp { version: header.version, checksum: stored_checksum(&body[..]) },
            ..lock
        };
        let record = self.padded(&free.encode(self.media.volume(), at)[..]);
        self.write(at.offset(), record).await
    }

    /// A record in its logical block.
    fn padded(&self, record: &[u8]) -> Vec<u8> {
        let mut block = vec![0; self.media.superblock.logical_block as usize];
        block[..RECORD].copy_from_slice(record);
        block
    }

    async fn write(&self, at: u64, bytes: Vec<u8>) -> Result<()> {
        Ok(self.env.disk.write(at, bytes, true, Instant::FAR).await?)
    }
}
