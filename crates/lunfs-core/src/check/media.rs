//! Reading a volume: the superblock, blocks, locks with their bodies.
//!
//! Invariant: nothing is read outside the volume.

use lunfs_format::{
    BLOCK, BlockNo, DecodeError, Geometry, Lock, LockMode, SUPERBLOCK_COPIES, Superblock, VolumeId,
    stored_checksum,
};

use super::claim::{Basis, Claims};
use crate::env::Disk;
use crate::error::{Error, Kind, Result};

/// Reads under way at once.
pub(super) const PARALLEL: usize = 32;
/// Attempts of one read.
const ATTEMPTS_MAX: u32 = 3;

/// A volume that is being read.
pub(super) struct Media<'d> {
    disk: &'d dyn Disk,
    pub superblock: Superblock,
    pub geometry: Geometry,
    /// Copies of the superblock that were read and are none.
    pub damaged_copies: Vec<BlockNo>,
}

/// A lock and the block behind it.
pub(super) struct Pair {
    pub lock: std::result::Result<Lock, DecodeError>,
    pub body: Vec<u8>,
}

impl<'d> Media<'d> {
    /// Reads both copies of the superblock; one valid copy is enough to go on.
    pub async fn open(disk: &'d dyn Disk, claims: &mut Claims) -> Result<Media<'d>> {
        let device = disk.capabilities();
        let mut copies = Vec::new();
        for at in SUPERBLOCK_COPIES {
            let copy = match read(disk, device.size, at.offset(), BLOCK).await {
                Ok(bytes) => Superblock::decode(&bytes, at)
                    .map_err(|why| Error::new(Kind::Corrupt, format!("block {at}: {why}"))),
                Err(why) => Err(why),
            };
            copies.push((at, copy));
        }
        let is_damaged =
            |copy: &Result<Superblock>| copy.as_ref().is_err_and(|why| why.kind == Kind::Corrupt);
        let damaged = copies.iter().filter(|(_, copy)| is_damaged(copy));
        let damaged_copies = damaged.map(|(at, _)| *at).collect();
        let superblock = choose(copies, claims)?;
        let geometry = superblock.geometry();
        if device.size / (BLOCK as u64) < superblock.volume_blocks {
            return Err(Error::new(
                Kind::Invalid,
                format!(
                    "the volume has {} blocks of 4 KiB, the device only {}: it cannot be checked",
                    superblock.volume_blocks,
                    device.size / BLOCK as u64
                ),
            ));
        }
        if device.logical_block != superblock.logical_block {
            claims.note(
                None,
                format!(
                    "the volume was formatted for logical blocks of {} bytes, this device has {}: \
                     it cannot be mounted here",
                    superblock.logical_block, device.logical_block
                ),
            );
        }
        Ok(Media { disk, superblock, geometry, damaged_copies })
    }

    /// The identity of the volume.
    pub fn volume(&self) -> VolumeId {
        self.superblock.volume
    }

    /// Reads whole blocks.
    pub async fn blocks(&self, at: BlockNo, count: usize) -> Result<Vec<u8>> {
        self.bytes(at.offset(), count * BLOCK).await
    }

    /// Reads bytes of the volume.
    pub async fn bytes(&self, at: u64, len: usize) -> Result<Vec<u8>> {
        let size = self.superblock.volume_blocks * BLOCK as u64;
        read(self.disk, size, at, len).await
    }

    /// Reads a lock and the block behind it.
    pub async fn pair(&self, at: BlockNo) -> Result<Pair> {
        let mut bytes = self.blocks(at, 2).await?;
        let mut body = bytes.split_off(BLOCK);
        let lock = self.lock_in(&bytes, at);
        let is_bound = |lock: Lock| lock.mode == LockMode::Free;
        if lock.is_ok_and(|lock| is_bound(lock) && lock.stamp.checksum != stored_checksum(&body)) {
            // One read of two blocks is not one moment: a body that was read before its holder let
            // go is no damage.
            body = self.blocks(at.plus(1), 1).await?;
        }
        Ok(Pair { lock, body })
    }

    /// Reads a lock alone.
    pub async fn lock(&self, at: BlockNo) -> Result<std::result::Result<Lock, DecodeError>> {
        Ok(self.lock_in(&self.blocks(at, 1).await?, at))
    }

    /// The lock in the first logical block of `bytes`.
    pub fn lock_in(&self, bytes: &[u8], at: BlockNo) -> std::result::Result<Lock, DecodeError> {
        let record = bytes.get(..self.superblock.logical_block as usize);
        Lock::decode(record.ok_or(DecodeError::BadLength)?, self.volume(), at)
    }
}

/// Reads bytes below `size`.
async fn read(disk: &dyn Disk, size: u64, at: u64, len: usize) -> Result<Vec<u8>> {
    let fail = |why: &str| {
        let block = at / BLOCK as u64;
        Error::new(Kind::Io, format!("block {block} cannot be read, so nothing is proven: {why}"))
    };
    if at.checked_add(len as u64).is_none_or(|end| end > size) {
        return Err(fail("the device ends before it"));
    }
    let mut attempt = 1;
    loop {
        match disk.read(at, len).await {
            Ok(bytes) if bytes.len() == len => return Ok(bytes),
            Ok(bytes) => return Err(fail(&format!("{} bytes came of {len}", bytes.len()))),
            Err(why) if attempt == ATTEMPTS_MAX => return Err(fail(&why.to_string())),
            Err(_) => attempt += 1,
        }
    }
}

type Copies = Vec<(BlockNo, Result<Superblock>)>;

/// The superblock to go on with.
fn choose(copies: Copies, claims: &mut Claims) -> Result<Superblock> {
    let mut valid: Vec<Superblock> = Vec::new();
    let mut refused = Vec::new();
    for (at, copy) in copies {
        match copy {
            Ok(superblock) => valid.push(superblock),
            Err(why) => refused.push((at, why)),
        }
    }
    if valid.is_empty() {
        // One that cannot be read may be good: then nothing is proven.
        let unread = refused.iter().any(|(_, why)| why.kind == Kind::Io);
        let whys: Vec<&str> = refused.iter().map(|(_, why)| why.what.as_str()).collect();
        return Err(Error::no_volume(if unread { Kind::Io } else { Kind::Corrupt }, &whys));
    }
    for (at, why) in refused {
        let what = format!("a copy of the superblock is of no use: {}", why.what);
        claims.error(at, Basis::Fixed, what);
    }
    if valid.windows(2).any(|pair| pair[0] != pair[1]) {
        claims.error(
            SUPERBLOCK_COPIES[1],
            Basis::Fixed,
            "the two copies of the superblock differ: hosts may disagree about the volume; the \
             check goes on with the one of the higher geometry epoch",
        );
    }
    // Of equal ones the first.
    let best =
        valid.into_iter().reduce(|a, b| if b.geometry_epoch > a.geometry_epoch { b } else { a });
    Ok(best.expect("one copy is valid"))
}
