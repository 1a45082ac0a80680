//! Where things lie on a volume.
//!
//! Invariant: a `Geometry` follows from the size of the volume, its logical block, its cluster size
//! and its slots; whatever a superblock says beyond these four is compared with it.
//!
//! Map: docs/format.md#map-of-a-volume.

use crate::units::{BLOCK, BlockNo, SlotNo};

/// The system lock that counts the clusters ever initialised.
pub const FRONTIER_LOCK: BlockNo = BlockNo(258);
/// The system lock that a rename of a directory takes.
pub const RENAME_LOCK: BlockNo = BlockNo(260);
/// The first block of the heartbeat region.
pub const HEARTBEAT_START: BlockNo = BlockNo(1024);
/// Most slots of a heartbeat region, and as many as there are unless fewer are wished.
pub const SLOT_COUNT_MAX: u32 = 1024;
/// Dead hosts keep their slots until somebody recovers them.
const SLOT_COUNT_MIN: u32 = 64;

/// Slots are counted from zero to here.
pub(crate) fn is_slot(slot: SlotNo) -> bool {
    slot.0 < SLOT_COUNT_MAX
}

/// Doorbell entries of each slot.
pub const DOORBELLS: u32 = 7;

/// Where the lock of the orphan directory lies in a journal's cluster; its body is behind it.
pub const JOURNAL_ORPHANS: u64 = 2;
/// Where the two copies of the journal header lie in a journal's cluster.
pub const JOURNAL_HEADERS: [u64; 2] = [4, 5];
/// Where the ring of records starts in a journal's cluster.
pub const JOURNAL_RING: u64 = 6;

/// Logical blocks of a slot: the pulse and the doorbell entries.
const SLOT_RECORDS: u32 = 1 + DOORBELLS;
const CLUSTER_BLOCKS_MIN: u32 = 1024;
const CLUSTER_BLOCKS_MAX: u32 = 16384;
const CLUSTERS_MIN: u64 = 4;
/// Clusters start at a multiple of so many blocks, as stripes of arrays do.
const CLUSTERS_ALIGN: u64 = 1024;
/// A map entry holds a block number of 40 bits.
const VOLUME_BLOCKS_MAX: u64 = 1 << 40;
/// As many clusters a volume should have at least, before clusters become larger.
const CLUSTERS_WANTED: u64 = 64;

/// Why a volume cannot be made like this.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// The volume is too small.
    #[error("the volume is too small: {need} bytes are needed")]
    TooSmall {
        /// Bytes that suffice.
        need: u64,
    },
    /// The volume is too large.
    #[error("the volume is too large: {limit} bytes are the limit")]
    TooLarge {
        /// Bytes that are possible.
        limit: u64,
    },
    /// The logical block is neither 512 bytes nor 4 KiB.
    #[error("a logical block of {found} bytes is not supported")]
    BadLogicalBlock {
        /// Its bytes.
        found: u32,
    },
    /// The cluster size is no power of two between 1024 and 16384.
    #[error("{found} blocks are no cluster: it has a power of two from 1024 to 16384")]
    BadClusterBlocks {
        /// Its blocks.
        found: u32,
    },
    /// The number of slots is no power of two between 64 and 1024.
    #[error("{found} slots: a volume has a power of two from 64 to 1024")]
    BadSlotCount {
        /// Slots.
        found: u32,
    },
}

/// Sizes that may be wished for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sizes {
    /// Blocks of a cluster; `None`: it grows with the volume.
    pub cluster_blocks: Option<u32>,
    /// Slots of the heartbeat region, one for each host; `None`: the most.
    pub slot_count: Option<u32>,
}

/// Where things lie on a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Unit of compare-and-write in bytes: 512 or 4096.
    pub logical_block: u32,
    /// Blocks of a cluster.
    pub cluster_blocks: u32,
    /// Slots of the heartbeat region.
    pub slot_count: u32,
    /// Blocks of the volume.
    pub volume_blocks: u64,
    /// Whole clusters that fit.
    pub cluster_count: u64,
    /// First block of cluster 0.
    pub clusters_start: BlockNo,
}

impl Geometry {
    /// How a volume of `size` bytes is laid out.
    pub fn plan(size: u64, logical_block: u32, sizes: Sizes) -> Result<Geometry, PlanError> {
        let volume_blocks = size / BLOCK as u64;
        let cluster_blocks = sizes.cluster_blocks.unwrap_or_else(|| default_cluster(volume_blocks));
        let slot_count = sizes.slot_count.unwrap_or(SLOT_COUNT_MAX);
        Geometry::of(volume_blocks, logical_block, cluster_blocks, slot_count)
    }

    /// The geometry that follows from these four numbers.
    pub(crate) fn of(
        volume_blocks: u64,
        logical_block: u32,
        cluster_blocks: u32,
        slot_count: u32,
    ) -> Result<Geometry, PlanError> {
        if !matches!(logical_block, 512 | 4096) {
            return Err(PlanError::BadLogicalBlock { found: logical_block });
        }
        let in_range = (CLUSTER_BLOCKS_MIN..=CLUSTER_BLOCKS_MAX).contains(&cluster_blocks);
        if !in_range || !cluster_blocks.is_power_of_two() {
            return Err(PlanError::BadClusterBlocks { found: cluster_blocks });
        }
        let in_range = (SLOT_COUNT_MIN..=SLOT_COUNT_MAX).contains(&slot_count);
        if !in_range || !slot_count.is_power_of_two() {
            return Err(PlanError::BadSlotCount { found: slot_count });
        }
        if volume_blocks > VOLUME_BLOCKS_MAX {
            return Err(PlanError::TooLarge { limit: VOLUME_BLOCKS_MAX * BLOCK as u64 });
        }
        let slot_len = u64::from(SLOT_RECORDS) * u64::from(logical_block);
        let heartbeat_blocks = u64::from(slot_count) * slot_len / BLOCK as u64;
        let heartbeat_end = HEARTBEAT_START.0 + heartbeat_blocks;
        let clusters_start = BlockNo(heartbeat_end.next_multiple_of(CLUSTERS_ALIGN));
        let blocks_min = clusters_start.0 + CLUSTERS_MIN * u64::from(cluster_blocks);
        if volume_blocks < blocks_min {
            return Err(PlanError::TooSmall { need: blocks_min * BLOCK as u64 });
        }
        Ok(Geometry {
            logical_block,
            cluster_blocks,
            slot_count,
            volume_blocks,
            cluster_count: (volume_blocks - clusters_start.0) / u64::from(cluster_blocks),
            clusters_start,
        })
    }

    /// Bytes of a slot.
    pub fn slot_len(&self) -> usize {
        SLOT_RECORDS as usize * self.logical_block as usize
    }

    /// Where a slot starts, and its pulse, in bytes.
    ///
    /// # Panics
    /// If there is no such slot.
    pub fn slot_offset(&self, slot: SlotNo) -> u64 {
        assert!(slot.0 < self.slot_count, "there is no slot {slot}");
        HEARTBEAT_START.offset() + u64::from(slot.0) * self.slot_len() as u64
    }

    /// Where a doorbell entry of a slot starts, in bytes.
    ///
    /// # Panics
    /// If there is no such slot or entry.
    pub fn doorbell_offset(&self, slot: SlotNo, entry: u32) -> u64 {
        assert!(entry < DOORBELLS, "there is no doorbell entry {entry}");
        self.slot_offset(slot) + u64::from(1 + entry) * u64::from(self.logical_block)
    }

    /// The address in the header of a record of the heartbeat region: index 0 is the pulse.
    pub fn record_address(&self, slot: SlotNo, index: u32) -> u64 {
        record_address(slot, index)
    }

    /// The first block of a cluster: its lock.
    pub fn cluster_start(&self, index: u64) -> BlockNo {
        self.clusters_start.plus(index.saturating_mul(u64::from(self.cluster_blocks)))
    }

    /// The cluster that a block lies in, if it lies in one.
    pub fn cluster_of(&self, block: BlockNo) -> Option<u64> {
        let behind = block.0.checked_sub(self.clusters_start.0)?;
        let index = behind / u64::from(self.cluster_blocks);
        (index < self.cluster_count).then_some(index)
    }

    /// Blocks of the ring of a journal.
    pub fn ring_blocks(&self) -> u64 {
        u64::from(self.cluster_blocks) - JOURNAL_RING
    }
}

/// The same with both logical block sizes.
pub(crate) fn record_address(slot: SlotNo, index: u32) -> u64 {
    u64::from(slot.0) * u64::from(SLOT_RECORDS) + u64::from(index)
}

fn default_cluster(volume_blocks: u64) -> u32 {
    let wanted = (volume_blocks / CLUSTERS_WANTED)
        .clamp(u64::from(CLUSTER_BLOCKS_MIN), u64::from(CLUSTER_BLOCKS_MAX));
    1 << wanted.ilog2()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn the_heartbeat_region_ends_where_the_clusters_start() {
        for (logical_block, start) in [(512, 2048), (4096, 9216)] {
            let geometry = Geometry::plan(1024 * MIB, logical_block, Sizes::default()).unwrap();
            let last = geometry.slot_offset(SlotNo(SLOT_COUNT_MAX - 1));
            assert_eq!(geometry.clusters_start, BlockNo(start));
            assert_eq!(last + geometry.slot_len() as u64, geometry.clusters_start.offset());
        }
    }

    #[test]
    fn fewer_slots_leave_the_clusters_aligned() {
        let of = |slots, logical_block| {
            let sizes = Sizes { slot_count: Some(slots), ..Sizes::default() };
            Geometry::plan(1024 * MIB, logical_block, sizes)
        };
        for (slots, logical_block, start) in
            [(64, 512, 2048), (128, 512, 2048), (64, 4096, 2048), (256, 4096, 3072)]
        {
            let geometry = of(slots, logical_block).unwrap();
            assert_eq!((geometry.slot_count, geometry.clusters_start), (slots, BlockNo(start)));
        }
        for found in [0, 32, 100, 2048] {
            assert_eq!(of(found, 512), Err(PlanError::BadSlotCount { found }));
        }
    }

    #[test]
    fn the_cluster_grows_with_the_volume() {
        let cluster = |size| Geometry::plan(size, 512, Sizes::default()).unwrap().cluster_blocks;
        assert_eq!(cluster(24 * MIB), 1024);
        assert_eq!(cluster(511 * MIB), 1024);
        assert_eq!(cluster(512 * MIB), 2048);
        assert_eq!(cluster(1023 * MIB), 2048);
        assert_eq!(cluster(4096 * MIB), 16384);
        assert_eq!(cluster(1 << 50), 16384);
    }

    #[test]
    fn a_volume_has_at_least_four_clusters() {
        let need = (2048 + 4 * 1024) * 4096;
        assert_eq!(Geometry::plan(need, 512, Sizes::default()).unwrap().cluster_count, 4);
        assert_eq!(
            Geometry::plan(need - 1, 512, Sizes::default()),
            Err(PlanError::TooSmall { need })
        );
        assert_eq!(Geometry::plan(0, 512, Sizes::default()), Err(PlanError::TooSmall { need }));
    }

    #[test]
    fn absurd_wishes_are_refused() {
        let plan = |size, logical, cluster_blocks| {
            let sizes = Sizes { cluster_blocks, ..Sizes::default() };
            Geometry::plan(size, logical, sizes).unwrap_err()
        };
        assert_eq!(plan(1 << 30, 1024, None), PlanError::BadLogicalBlock { found: 1024 });
        for found in [0, 512, 1025, 32768] {
            let error = plan(1 << 30, 512, Some(found));
            assert_eq!(error, PlanError::BadClusterBlocks { found });
        }
        assert_eq!(plan(u64::MAX, 512, None), PlanError::TooLarge { limit: 1 << 52 });
    }

    #[test]
    fn a_block_is_found_in_its_cluster_only() {
        let geometry = Geometry::plan(64 * MIB, 512, Sizes::default()).unwrap();
        let last = geometry.cluster_count - 1;
        let end = geometry.cluster_start(geometry.cluster_count);
        assert_eq!(geometry.cluster_of(geometry.cluster_start(3)), Some(3));
        assert_eq!(geometry.cluster_of(geometry.cluster_start(3).plus(1023)), Some(3));
        assert_eq!(geometry.cluster_of(BlockNo(end.0 - 1)), Some(last));
        assert_eq!(geometry.cluster_of(end), None);
        assert_eq!(geometry.cluster_of(BlockNo(2047)), None);
        assert_eq!(geometry.cluster_of(BlockNo(u64::MAX)), None);
    }

    #[test]
    fn the_records_of_a_slot_lie_one_after_the_other() {
        let geometry = Geometry::plan(64 * MIB, 512, Sizes::default()).unwrap();
        let slot = SlotNo(5);
        assert_eq!(geometry.slot_offset(slot), 1024 * 4096 + 5 * 4096);
        assert_eq!(geometry.doorbell_offset(slot, 0), geometry.slot_offset(slot) + 512);
        assert_eq!(geometry.doorbell_offset(slot, 6), geometry.slot_offset(slot) + 7 * 512);
        assert_eq!(geometry.record_address(slot, 7), 47);
        assert_eq!(geometry.ring_blocks(), 1018);
    }
}
