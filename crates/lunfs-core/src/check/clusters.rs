//! The system locks, and what each cluster serves for.

use std::collections::BTreeMap;

use futures_util::future::join_all;
use lunfs_format::{
    BLOCK, Bitmap, BlockNo, Cluster, FRONTIER_LOCK, Incarnation, JOURNAL_HEADERS, JOURNAL_ORPHANS,
    JOURNAL_RING, JournalHeader, Lock, LockObject, RENAME_LOCK, RecordHead, SlotNo,
    stored_checksum,
};

use super::claim::{Basis, Claims};
use super::media::{Media, PARALLEL, Pair};
use super::rules;
use super::slots::Slots;
use crate::error::Result;

/// Blocks of a cluster that are not handed out: its lock and its header.
pub(super) const FIXED: u64 = 2;

/// Blocks of a ring read at once.
const RING_READ: usize = 256;

/// What a cluster serves for.
pub(super) enum Use {
    /// Files; these blocks are in use.
    Files(Bitmap),
    /// A journal.
    Journal,
    /// Its lock or header is damaged.
    Unknown,
}

/// A journal.
pub(super) struct Journal {
    /// Whose it is, by its lock.
    pub slot: SlotNo,
    /// First block of its cluster.
    pub start: BlockNo,
    /// The valid header with the highest version.
    newest: Option<JournalHeader>,
    /// Copies of the header that are valid.
    copies: usize,
    /// Its host lived to use it, so there must be a header and an orphan directory.
    pub has_begun: bool,
}

/// All clusters.
#[derive(Default)]
pub(super) struct Clusters {
    /// By number: those initialised.
    pub uses: Vec<Use>,
    /// `false`: the frontier is damaged, and nobody knows which clusters were initialised.
    pub is_complete: bool,
    pub journals: Vec<Journal>,
    /// Locks as first read.
    pub locks: BTreeMap<BlockNo, Option<Lock>>,
}

impl Clusters {
    /// Reads the system locks and all clusters that were ever initialised.
    pub async fn read(media: &Media<'_>, claims: &mut Claims) -> Result<Clusters> {
        let mut clusters = Clusters::default();
        let frontier = clusters.system_lock(media, FRONTIER_LOCK, "frontier", claims).await?;
        clusters.system_lock(media, RENAME_LOCK, "rename", claims).await?;
        let Some(frontier) = frontier else { return Ok(clusters) };
        clusters.is_complete = true;
        let count = media.superblock.cluster_count;
        if frontier.payload > count {
            claims.error(
                FRONTIER_LOCK,
                Basis::Fixed,
                format!(
                    "the frontier says that {} of {count} clusters are initialised",
                    frontier.payload
                ),
            );
        }
        let all: Vec<u64> = (0..frontier.payload.min(count)).collect();
        for chunk in all.chunks(PARALLEL) {
            let reads = chunk.iter().map(|index| media.pair(media.geometry.cluster_start(*index)));
            for (index, pair) in chunk.iter().zip(join_all(reads).await) {
                clusters.add(media, *index, &pair?, claims);
            }
        }
        for journal in &mut clusters.journals {
            journal.read(media).await?;
        }
        Ok(clusters)
    }

    async fn system_lock(
        &mut self,
        media: &Media<'_>,
        at: BlockNo,
        name: &str,
        claims: &mut Claims,
    ) -> Result<Option<Lock>> {
        let lock = media.lock(at).await?;
        let fault = match &lock {
            Ok(lock) => rules::lock(lock, LockObject::System),
            Err(why) => Some(format!("it is damaged: {why}")),
        };
        if let Some(why) = fault {
            let basis = Basis::Locks(vec![at]);
            claims.error(at, basis, format!("the system lock {name:?} cannot be taken: {why}"));
        }
        self.locks.insert(at, lock.ok());
        Ok(lock.ok())
    }

    fn add(&mut self, media: &Media<'_>, index: u64, pair: &Pair, claims: &mut Claims) {
        let start = media.geometry.cluster_start(index);
        self.locks.insert(start, pair.lock.ok());
        let basis = || Basis::Locks(vec![start]);
        let consequence = "nothing can be allocated or freed in it";
        let lock = match &pair.lock {
            Ok(lock) => lock,
            Err(why) => {
                let what = format!("the lock of cluster {index} is damaged ({why}): {consequence}");
                claims.error(start, basis(), what);
                self.uses.push(Use::Unknown);
                return;
            }
        };
        if lock.object == LockObject::Journal {
            self.uses.push(Use::Journal);
            match u32::try_from(lock.payload) {
                Ok(slot) if slot < media.geometry.slot_count => {
                    self.journals.push(Journal::in_cluster(SlotNo(slot), start));
                }
                Ok(_) | Err(_) => {
                    let what = format!("cluster {index} is the journal of slot {}", lock.payload);
                    claims.error(start, basis(), format!("{what}, which does not exist"));
                }
            }
            return;
        }
        let header = Cluster::decode(&pair.body, media.volume(), start.plus(1));
        let faults = match &header {
            Err(why) => vec![format!("its header is damaged: {why}")],
            Ok(header) => header_faults(media, index, start, lock, header, &pair.body),
        };
        for why in &faults {
            claims.error(start.plus(1), basis(), format!("cluster {index}: {why}; {consequence}"));
        }
        self.uses.push(match header {
            Ok(header) if header.blocks == media.geometry.cluster_blocks => {
                Use::Files(header.bitmap)
            }
            Ok(_) | Err(_) => Use::Unknown,
        });
    }

    /// Why nothing can refer to these blocks, if nothing can.
    pub fn fault_of_place(&self, media: &Media<'_>, start: BlockNo, len: u64) -> Option<String> {
        let Some(index) = media.geometry.cluster_of(start) else {
            return Some("it lies outside of all clusters".into());
        };
        let first = media.geometry.cluster_start(index);
        let offset = start.0 - first.0;
        if offset < FIXED {
            return Some(format!("it lies over the lock or the header of cluster {index}"));
        }
        let end = offset.checked_add(len);
        if end.is_none_or(|end| end > u64::from(media.geometry.cluster_blocks)) {
            return Some(format!("it reaches over the end of cluster {index}"));
        }
        match usize::try_from(index).ok().and_then(|index| self.uses.get(index)) {
            Some(Use::Files(_) | Use::Unknown) => None,
            Some(Use::Journal) => Some(format!("it lies in cluster {index}, which is a journal")),
            None if !self.is_complete => None,
            None => Some(format!("it lies in cluster {index}, which was never initialised")),
        }
    }

    /// Reports what is wrong with the journals, read before `slots` were; returns the slots whose
    /// journals may have to be replayed.
    pub fn judge_journals(
        &self,
        media: &Media<'_>,
        slots: &Slots,
        claims: &mut Claims,
    ) -> Vec<SlotNo> {
        let mut pending = Vec::new();
        for journal in &self.journals {
            if journal.judge(media, slots, claims) {
                pending.push(journal.slot);
            }
        }
        pending.sort();
        pending.dedup();
        pending
    }
}

fn header_faults(
    media: &Media<'_>,
    index: u64,
    start: BlockNo,
    lock: &Lock,
    header: &Cluster,
    body: &[u8],
) -> Vec<String> {
    let blocks = media.geometry.cluster_blocks;
    let wrong_index =
        (header.index != index).then(|| format!("its header is that of cluster {}", header.index));
    let wrong_blocks = (header.blocks != blocks).then(|| {
        format!("its header has {} blocks, the volume's clusters {blocks}", header.blocks)
    });
    [
        rules::lock(lock, LockObject::Cluster),
        wrong_index,
        wrong_blocks,
        rules::owner(header.owner, start),
        rules::stamp(lock, header.version, stored_checksum(body)),
    ]
    .into_iter()
    .flatten()
    .collect()
}

impl Journal {
    fn in_cluster(slot: SlotNo, start: BlockNo) -> Journal {
        Journal { slot, start, newest: None, copies: 0, has_begun: false }
    }

    /// The last life that used it, if its header says so.
    pub fn life(&self) -> Option<Incarnation> {
        let header = self.newest.as_ref().filter(|header| header.slot == self.slot)?;
        Some(header.incarnation)
    }

    /// The lock of its orphan directory.
    pub fn orphans(&self) -> BlockNo {
        self.start.plus(JOURNAL_ORPHANS)
    }

    async fn read(&mut self, media: &Media<'_>) -> Result<()> {
        for offset in JOURNAL_HEADERS {
            let at = self.start.plus(offset);
            let bytes = media.blocks(at, 1).await?;
            if let Ok(header) = JournalHeader::decode(&bytes, media.volume(), at) {
                self.copies += 1;
                let is_newer = self.newest.as_ref().is_none_or(|n| header.version > n.version);
                if is_newer {
                    self.newest = Some(header);
                }
            }
        }
        self.has_begun = self.newest.is_some() || self.has_records(media).await?;
        Ok(())
    }

    /// Was anything ever written to the ring? The header is there before the first record; a host
    /// that died while it joined leaves neither, and an orphan directory that may not be whole.
    async fn has_records(&self, media: &Media<'_>) -> Result<bool> {
        let ring: Vec<u64> = (0..media.geometry.ring_blocks()).collect();
        for piece in ring.chunks(RING_READ) {
            let first = self.start.plus(JOURNAL_RING + piece[0]);
            let bytes = media.blocks(first, piece.len()).await?;
            let mut heads = (first.0..).map(BlockNo).zip(bytes.chunks_exact(BLOCK));
            if heads.any(|(at, bytes)| RecordHead::decode(bytes, media.volume(), at).is_ok()) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Reports what is wrong; `true`: it may have to be replayed.
    fn judge(&self, media: &Media<'_>, slots: &Slots, claims: &mut Claims) -> bool {
        let slot = self.slot;
        let name = format!("the journal of slot {slot}");
        let pulse = slots.pulse(slot);
        if pulse.is_some_and(|pulse| pulse.journal != Some(self.start)) {
            let what = "is not the one that the slot's pulse names: nobody will use or replay it";
            claims.note(self.start, format!("{name} {what}"));
        }
        let at = self.start.plus(JOURNAL_HEADERS[0]);
        let Some(header) = &self.newest else {
            if self.has_begun {
                let what =
                    format!("{name}: both copies of its header are damaged; it cannot be replayed");
                claims.error(at, Basis::Volume, what);
            } else {
                claims.note(at, format!("{name} was never begun: its host died while it joined"));
            }
            return false;
        };
        if self.copies == 1 && header.version.count > 1 {
            claims.note(
                at,
                format!("{name}: one copy of its header is not valid, as a torn write leaves it"),
            );
        }
        if header.slot != slot {
            let what = format!("{name}: its header is that of slot {}", header.slot);
            claims.error(at, Basis::Fixed, format!("{what}; it cannot be replayed"));
            return false;
        }
        if let Some(why) = rules::journal(header, media.geometry.ring_blocks(), slots) {
            claims.error(at, Basis::Fixed, format!("{name}: {why}"));
        }
        slots.live().any(|live| live == slot)
            && pulse.is_some_and(|pulse| pulse.incarnation == header.incarnation)
    }
}
