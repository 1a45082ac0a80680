//! The superblock: what a volume is.
//!
//! Bytes: docs/format.md#superblock.

use zerocopy::little_endian::{U32, U64};

use crate::error::{DecodeError, must_be_valid, require};
use crate::geometry::{Geometry, PlanError};
use crate::header::{Heading, RawHeader, Structure, kind, make, open};
use crate::layout::{Layout, raw};
use crate::map_entry::FILE_BLOCK_BLOCKS;
use crate::units::{BLOCK, Block, BlockNo, Version, VolumeId};

/// Where the two copies of the superblock lie.
pub const SUPERBLOCK_COPIES: [BlockNo; 2] = [BlockNo(0), BlockNo(256)];

/// The bits of `incompat` that this version knows.
const INCOMPAT_KNOWN: u64 = 0;

raw! {
    RawSuperblock, LAYOUT, "Superblock" {
        header: RawHeader,
        compat: U64,
        ro_compat: U64,
        incompat: U64,
        label: [u8; 64],
        logical_block: U32,
        file_block_blocks: U32,
        cluster_blocks: U32,
        slot_count: U32,
        volume_blocks: U64,
        cluster_count: U64,
        clusters_start: U64,
        root: U64,
        root_birth: U64,
        created_seconds: U64,
        hash_key: [u8; 16],
        pulse_ms: U32,
        lease_ms: U32,
        claim_ms: U32,
        reserved1: U32 = zero,
        geometry_epoch: U64,
        device_identity: [u8; 128] = zero,
        reserved2: [u8; 3712] = zero,
    }
}

const _: () = assert!(size_of::<RawSuperblock>() == BLOCK);

impl Structure for RawSuperblock {
    const KIND: u16 = kind::SUPERBLOCK;
    const FIELDS: Layout = LAYOUT;
}

/// How fast hosts notice that another one is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Timing {
    /// One pulse each so many milliseconds.
    pub pulse_ms: u32,
    /// How long a good pulse lets a host write.
    pub lease_ms: u32,
    /// Silence after which a host whose fence is not proven is fenced and claimed.
    pub claim_ms: u32,
}

/// Shortest pause between two pulses.
const PULSE_MS_MIN: u32 = 100;
/// Longest silence before a host is claimed.
const CLAIM_MS_MAX: u32 = 3_600_000;

impl Timing {
    /// For devices that answer quickly.
    pub const FAST: Timing = Timing { pulse_ms: 1000, lease_ms: 4000, claim_ms: 12000 };
    /// For devices that pause for seconds when a path fails.
    pub const CALM: Timing = Timing { pulse_ms: 1000, lease_ms: 4000, claim_ms: 16000 };

    /// Hosts that pulse without a pause, or find a dead one only after hours, serve nobody: no
    /// volume was made like that.
    fn check(self) -> Result<(), DecodeError> {
        require(self.pulse_ms >= PULSE_MS_MIN, "pulse_ms", self.pulse_ms)?;
        require(self.claim_ms <= CLAIM_MS_MAX, "claim_ms", self.claim_ms)?;
        require(self.lease_ms > self.pulse_ms, "lease_ms", self.lease_ms)?;
        require(self.claim_ms > self.lease_ms, "claim_ms", self.claim_ms)
    }
}

/// What a volume is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Superblock {
    /// Identity of the volume.
    pub volume: VolumeId,
    /// Name for people, at most 64 bytes.
    pub label: String,
    /// Features that a version without them may ignore.
    pub compat: u64,
    /// Features that allow reading only.
    pub ro_compat: u64,
    /// Features without which nothing may be touched.
    pub incompat: u64,
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
    /// Address of the root directory's lock.
    pub root: BlockNo,
    /// Birth of the root directory.
    pub root_birth: u64,
    /// When the volume was made, in seconds since 1970.
    pub created_seconds: u64,
    /// Secret of the directory hash.
    pub hash_key: [u8; 16],
    /// How fast hosts notice that another one is gone.
    pub timing: Timing,
    /// Rises when the volume grows; also the version of the superblock.
    pub geometry_epoch: u64,
}

impl Superblock {
    /// Reads the copy that lies at `at`.
    pub fn decode(bytes: &[u8], at: BlockNo) -> Result<Superblock, DecodeError> {
        let raw = open::<RawSuperblock>(bytes, None, at.0)?;
        let incompat = raw.incompat.get();
        if incompat & !INCOMPAT_KNOWN != 0 {
            // The other fields may mean something else now.
            return Err(DecodeError::UnknownFeatures { incompat: incompat & !INCOMPAT_KNOWN });
        }
        let file_block_blocks = raw.file_block_blocks.get();
        require(file_block_blocks == FILE_BLOCK_BLOCKS, "file_block_blocks", file_block_blocks)?;
        raw.header.require_no_owner()?;
        require(raw.header.birth == 0, "birth", raw.header.birth)?;
        require(raw.header.version == raw.geometry_epoch, "version", raw.header.version)?;
        let superblock = Superblock {
            volume: VolumeId(raw.header.volume),
            label: text("label", &raw.label)?,
            compat: raw.compat.get(),
            ro_compat: raw.ro_compat.get(),
            incompat,
            logical_block: raw.logical_block.get(),
            cluster_blocks: raw.cluster_blocks.get(),
            slot_count: raw.slot_count.get(),
            volume_blocks: raw.volume_blocks.get(),
            cluster_count: raw.cluster_count.get(),
            clusters_start: BlockNo(raw.clusters_start.get()),
            root: BlockNo(raw.root.get()),
            root_birth: raw.root_birth.get(),
            created_seconds: raw.created_seconds.get(),
            hash_key: raw.hash_key,
            timing: Timing {
                pulse_ms: raw.pulse_ms.get(),
                lease_ms: raw.lease_ms.get(),
                claim_ms: raw.claim_ms.get(),
            },
            geometry_epoch: raw.geometry_epoch.get(),
        };
        superblock.check()?;
        Ok(superblock)
    }

    /// Makes the copy that lies at `at`.
    ///
    /// # Panics
    /// If `decode` would refuse it.
    pub fn encode(&self, at: BlockNo) -> Box<Block> {
        must_be_valid("superblock", self.check());
        let heading = Heading {
            volume: self.volume,
            address: at.0,
            version: Version { birth: 0, count: self.geometry_epoch },
            owner: BlockNo(0),
        };
        make(heading, |raw: &mut RawSuperblock| {
            raw.compat = self.compat.into();
            raw.ro_compat = self.ro_compat.into();
            raw.incompat = self.incompat.into();
            put_text(&mut raw.label, &self.label);
            raw.logical_block = self.logical_block.into();
            raw.file_block_blocks = FILE_BLOCK_BLOCKS.into();
            raw.cluster_blocks = self.cluster_blocks.into();
            raw.slot_count = self.slot_count.into();
            raw.volume_blocks = self.volume_blocks.into();
            raw.cluster_count = self.cluster_count.into();
            raw.clusters_start = self.clusters_start.0.into();
            raw.root = self.root.0.into();
            raw.root_birth = self.root_birth.into();
            raw.created_seconds = self.created_seconds.into();
            raw.hash_key = self.hash_key;
            raw.pulse_ms = self.timing.pulse_ms.into();
            raw.lease_ms = self.timing.lease_ms.into();
            raw.claim_ms = self.timing.claim_ms.into();
            raw.geometry_epoch = self.geometry_epoch.into();
        })
    }

    /// Where things lie on the volume.
    pub fn geometry(&self) -> Geometry {
        Geometry {
            logical_block: self.logical_block,
            cluster_blocks: self.cluster_blocks,
            slot_count: self.slot_count,
            volume_blocks: self.volume_blocks,
            cluster_count: self.cluster_count,
            clusters_start: self.clusters_start,
        }
    }

    fn check(&self) -> Result<(), DecodeError> {
        check_text("label", &self.label)?;
        let unknown = self.incompat & !INCOMPAT_KNOWN;
        require(unknown == 0, "incompat", unknown)?;
        let expected = Geometry::of(
            self.volume_blocks,
            self.logical_block,
            self.cluster_blocks,
            self.slot_count,
        );
        let expected = expected.map_err(|error| match error {
            PlanError::BadLogicalBlock { found } => DecodeError::field("logical_block", found),
            PlanError::BadClusterBlocks { found } => DecodeError::field("cluster_blocks", found),
            PlanError::BadSlotCount { found } => DecodeError::field("slot_count", found),
            PlanError::TooSmall { .. } | PlanError::TooLarge { .. } => {
                DecodeError::field("volume_blocks", self.volume_blocks)
            }
        })?;
        let fits = self.cluster_count == expected.cluster_count;
        require(fits, "cluster_count", self.cluster_count)?;
        let follows = self.clusters_start == expected.clusters_start;
        require(follows, "clusters_start", self.clusters_start.0)?;
        require(expected.cluster_of(self.root).is_some(), "root", self.root.0)?;
        require(self.geometry_epoch > 0, "geometry_epoch", self.geometry_epoch)?;
        self.timing.check()
    }
}

/// Reads a text padded with zeroes.
pub(crate) fn text(field: &'static str, bytes: &[u8; 64]) -> Result<String, DecodeError> {
    let len = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    let (text, _) = bytes.split_at(len);
    let text = std::str::from_utf8(text).map_err(|_| DecodeError::BadText { field })?;
    check_text(field, text)?;
    Ok(text.to_owned())
}

/// Refuses a text that would not be the same after it was read back.
pub(crate) fn check_text(field: &'static str, text: &str) -> Result<(), DecodeError> {
    let good = text.len() <= 64 && !text.contains('\0');
    if good { Ok(()) } else { Err(DecodeError::BadText { field }) }
}

/// Writes a text that was checked.
pub(crate) fn put_text(bytes: &mut [u8; 64], text: &str) {
    for (byte, letter) in bytes.iter_mut().zip(text.bytes()) {
        *byte = letter;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::geometry::Sizes;
    use crate::samples::{self, VOLUME};
    use crate::testing::{disk_tests, with, with_bytes};

    disk_tests! {
        LAYOUT, samples::superblock();
        encode: |superblock: &Superblock, _, at| superblock.encode(BlockNo(at)),
        decode: |bytes: &[u8], _, at| Superblock::decode(bytes, BlockNo(at)),
    }

    fn refused(field: &str, value: u64) -> DecodeError {
        let bytes = samples::superblock().encode(BlockNo(AT));
        let bytes = with(bytes.as_slice(), &LAYOUT, field, value);
        Superblock::decode(&bytes, BlockNo(AT)).unwrap_err()
    }

    #[test]
    fn features_that_are_not_known_are_refused_by_name() {
        assert_eq!(refused("incompat", 6), DecodeError::UnknownFeatures { incompat: 6 });
    }

    #[test]
    fn a_geometry_that_does_not_follow_is_refused() {
        for (field, value) in [
            ("logical_block", 1024),
            ("file_block_blocks", 32),
            ("cluster_blocks", 1025),
            ("cluster_blocks", 512),
            ("slot_count", 32),
            ("slot_count", 1023),
            ("volume_blocks", 5000),
            ("volume_blocks", u64::MAX),
            ("cluster_count", 0),
            ("cluster_count", u64::MAX),
            ("clusters_start", 0),
            ("root", 0),
            ("root", u64::MAX),
            ("pulse_ms", 0),
            ("pulse_ms", 99),
            ("claim_ms", 3_600_001),
            ("lease_ms", 1000),
            ("claim_ms", 4000),
        ] {
            assert_eq!(refused(field, value), DecodeError::BadField { field, value });
        }
    }

    #[test]
    fn a_volume_with_large_logical_blocks_survives_the_disk() {
        let geometry = {
            let sizes = Sizes { cluster_blocks: Some(4096), ..Sizes::default() };
            Geometry::plan(1 << 40, 4096, sizes).unwrap()
        };
        let superblock = Superblock {
            logical_block: 4096,
            cluster_blocks: 4096,
            volume_blocks: geometry.volume_blocks,
            cluster_count: geometry.cluster_count,
            clusters_start: geometry.clusters_start,
            root: geometry.cluster_start(1),
            ..samples::superblock()
        };
        for at in SUPERBLOCK_COPIES {
            let decoded = Superblock::decode(superblock.encode(at).as_slice(), at).unwrap();
            assert_eq!(decoded, superblock);
            assert_eq!(decoded.geometry(), geometry);
            assert_eq!(decoded.volume, VOLUME);
        }
    }

    #[test]
    fn a_label_that_is_no_text_is_refused() {
        let bytes = samples::superblock().encode(BlockNo(AT));
        for label in [&b"a\0b"[..], b"\xff"] {
            let bytes = with_bytes(bytes.as_slice(), 88, label);
            let error = Superblock::decode(&bytes, BlockNo(AT)).unwrap_err();
            assert_eq!(error, DecodeError::BadText { field: "label" });
        }
    }

    #[test]
    #[should_panic(expected = "refusing to write an invalid superblock: label is not a text")]
    fn a_label_that_is_too_long_is_not_written() {
        Superblock { label: "x".repeat(65), ..samples::superblock() }.encode(BlockNo(0));
    }
}
