//! Reads a volume that is not mounted, or mounted elsewhere: no locks, no writes, no cache.
//!
//! What is read may change the moment after: good for looking, never for deciding.

use std::path::Path;

use anyhow::{Context, Result, bail};
use lunfs_format::{
    BLOCK, BlockNo, DecodeError, Geometry, Pulse, SUPERBLOCK_COPIES, SlotNo, Superblock,
};
use lunfs_host::disk::{Access, Source};

/// A volume opened for reading.
pub struct Reader {
    source: Source,
    superblock: Superblock,
}

impl Reader {
    /// Opens an image or block device and reads its superblock.
    pub fn open(path: &Path) -> Result<Reader> {
        let source = Source::open(path, Access::ReadOnly)?;
        let superblock = superblock(&source)?;
        Ok(Reader { source, superblock })
    }

    /// The superblock.
    pub fn superblock(&self) -> &Superblock {
        &self.superblock
    }

    /// Where the regions are.
    pub fn geometry(&self) -> Geometry {
        self.superblock.geometry()
    }

    /// One block.
    pub fn block(&self, at: BlockNo) -> Result<Vec<u8>> {
        if at.0 >= self.superblock.volume_blocks {
            let blocks = self.superblock.volume_blocks;
            bail!("the volume has {blocks} blocks, there is no block {at}");
        }
        self.bytes(at.offset(), BLOCK)
    }

    /// Bytes at an offset.
    pub fn bytes(&self, at: u64, len: usize) -> Result<Vec<u8>> {
        read(&self.source, at, len)
    }

    /// The pulse of a slot.
    pub fn pulse(&self, slot: SlotNo) -> Result<Result<Pulse, DecodeError>> {
        let at = self.geometry().slot_offset(slot);
        let bytes = self.bytes(at, self.superblock.logical_block as usize)?;
        Ok(self.decode_pulse(&bytes, slot))
    }

    /// The pulses of all slots that are not free, `Err` where one cannot be understood.
    pub fn pulses(&self) -> Result<Vec<(SlotNo, Result<Pulse, DecodeError>)>> {
        let geometry = self.geometry();
        let slot_len = geometry.slot_len();
        let region = self.bytes(geometry.slot_offset(SlotNo(0)), slot_len * slots(&geometry))?;
        let all = (0..).map(SlotNo).zip(region.chunks_exact(slot_len));
        Ok(all
            .map(|(slot, bytes)| (slot, self.decode_pulse(bytes, slot)))
            .filter(|(_, pulse)| !matches!(pulse, Ok(p) if is_free(p)))
            .collect())
    }

    fn decode_pulse(&self, bytes: &[u8], slot: SlotNo) -> Result<Pulse, DecodeError> {
        let record = bytes.get(..lunfs_format::RECORD).ok_or(DecodeError::BadLength)?;
        Pulse::decode(record, self.superblock.volume, slot)
    }
}

fn is_free(pulse: &Pulse) -> bool {
    pulse.state == lunfs_format::PulseState::Free
}

fn slots(geometry: &Geometry) -> usize {
    geometry.slot_count as usize
}

/// The first copy of the superblock that is valid.
fn superblock(source: &Source) -> Result<Superblock> {
    let mut refusals = Vec::new();
    for copy in SUPERBLOCK_COPIES {
        let decoded = read(source, copy.offset(), BLOCK)
            .and_then(|bytes| Ok(Superblock::decode(&bytes, copy)?));
        match decoded {
            Ok(superblock) => return Ok(superblock),
            Err(why) => refusals.push(format!("block {copy}: {why:#}")),
        }
    }
    bail!("{} holds no lunfs volume ({})", source.path().display(), refusals.join("; "))
}

/// Reads whole blocks of 4 KiB, which every device accepts, and cuts out what was asked for.
fn read(source: &Source, at: u64, len: usize) -> Result<Vec<u8>> {
    let skipped = usize::try_from(at % BLOCK as u64)?;
    let whole = (skipped + len).next_multiple_of(BLOCK);
    let bytes = source
        .read_now(at - skipped as u64, whole)
        .with_context(|| format!("cannot read block {}", at / BLOCK as u64))?;
    Ok(bytes[skipped..skipped + len].to_vec())
}
