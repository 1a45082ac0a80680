//! An empty volume.

use lunfs_format::{
    BLOCK, Block, BlockNo, Cluster, Content, DOORBELLS, Descriptor, Doorbell, FRONTIER_LOCK,
    FileKind, Geometry, HEARTBEAT_START, Incarnation, Lock, LockMode, LockObject, Pulse, RECORD,
    RENAME_LOCK, SUPERBLOCK_COPIES, Sizes, SlotNo, Stamp, Superblock, Timing, Tree, Version,
    VolumeId, stored_checksum,
};

use crate::env::{Env, Instant};
use crate::error::{Error, Kind, Result};

/// Clusters that format initialises; others follow when they are needed.
const CLUSTERS_FIRST: u64 = 64;

/// How to format.
#[derive(Clone, Debug)]
pub struct FormatOptions {
    /// Name of the volume, at most 64 bytes.
    pub label: String,
    /// Timing of pulses.
    pub timing: Timing,
    /// Sizes that are wished for.
    pub sizes: Sizes,
}

fn lock(object: LockObject, birth: u64, stamp: Stamp, payload: u64, nonce: u64) -> Lock {
    Lock {
        mode: LockMode::Free,
        object,
        holder: None,
        generation: Version { birth, count: 1 },
        nonce,
        stamp,
        giver: None,
        payload,
    }
}

/// A block that holds one record.
pub(crate) fn lock_block(volume: VolumeId, at: BlockNo, lock: &Lock) -> Vec<u8> {
    let mut block = vec![0; BLOCK];
    block[..RECORD].copy_from_slice(&lock.encode(volume, at)[..]);
    block
}

fn stamp_of(version: Version, body: &Block) -> Stamp {
    Stamp { version, checksum: stored_checksum(body) }
}

fn cluster_with(sb: &Superblock, index: u64, used: u32, version: u64) -> Vec<(BlockNo, Vec<u8>)> {
    let at = sb.geometry().cluster_start(index);
    let mut cluster = Cluster::new(index, sb.cluster_blocks);
    cluster.version = Version { birth: 0, count: version };
    cluster.owner = at;
    if used > 0 {
        cluster.bitmap.set_run(2, used, true);
    }
    let body = cluster.encode(sb.volume, at.plus(1));
    let lock = lock(LockObject::Cluster, 0, stamp_of(cluster.version, &body), 0, 0);
    vec![(at.plus(1), body.to_vec()), (at, lock_block(sb.volume, at, &lock))]
}

/// Body and lock of an empty cluster, in the order to write them.
pub(crate) fn empty_cluster(sb: &Superblock, index: u64) -> Vec<(BlockNo, Vec<u8>)> {
    cluster_with(sb, index, 0, 1)
}

/// Body and lock of an empty directory at `at`, in the order to write them.
pub(crate) fn empty_directory(
    volume: VolumeId,
    at: BlockNo,
    birth: u64,
    now: lunfs_format::Timestamp,
    nonce: u64,
) -> Vec<(BlockNo, Vec<u8>)> {
    let version = Version { birth, count: 1 };
    let body = Descriptor {
        version,
        owner: at,
        kind: FileKind::Directory,
        mode: 0o755,
        uid: 0,
        gid: 0,
        nlink: 2,
        rdev: 0,
        size: 0,
        blocks: 0,
        atime: now,
        mtime: now,
        ctime: now,
        btime: now,
        parent: at,
        parent_birth: birth,
        top: None,
        user: None,
        layer: lunfs_format::Layer::default(),
        content: Content::Empty,
        xattrs: Tree::Empty,
    }
    .encode(volume, at.plus(1));
    let lock = lock(LockObject::Descriptor, birth, stamp_of(version, &body), 0, nonce);
    vec![(at.plus(1), body.to_vec()), (at, lock_block(volume, at, &lock))]
}

fn random16(env: &Env) -> [u8; 16] {
    let mut out = [0; 16];
    out[..8].copy_from_slice(&env.rng.next().to_le_bytes());
    out[8..].copy_from_slice(&env.rng.next().to_le_bytes());
    out
}

fn plan(env: &Env, options: &FormatOptions) -> Result<Superblock> {
    let device = env.disk.capabilities();
    let geometry = Geometry::plan(device.size, device.logical_block, options.sizes)
        .map_err(|e| Error::new(Kind::Invalid, e.to_string()))?;
    let now = env.clock.wall();
    Ok(Superblock {
        volume: VolumeId(random16(env)),
        label: options.label.clone(),
        compat: 0,
        ro_compat: 0,
        incompat: 0,
        logical_block: geometry.logical_block,
        cluster_blocks: geometry.cluster_blocks,
        slot_count: geometry.slot_count,
        volume_blocks: geometry.volume_blocks,
        cluster_count: geometry.cluster_count,
        clusters_start: geometry.clusters_start,
        root: geometry.cluster_start(0).plus(2),
        root_birth: 1,
        created_seconds: u64::try_from(now.seconds).unwrap_or(0),
        hash_key: random16(env),
        timing: options.timing,
        geometry_epoch: 1,
    })
}

/// Writes an empty volume over whatever is there. The caller made sure that nothing of value is.
pub async fn format_volume(env: &Env, options: &FormatOptions) -> Result<Superblock> {
    if options.label.len() > 64 {
        return Err(Error::new(Kind::TooLong, "a label has at most 64 bytes"));
    }
    let sb = plan(env, options)?;
    let write = |at: BlockNo, data: Vec<u8>| env.disk.write(at.offset(), data, false, Instant::FAR);
    // First the old superblocks go: a crash from here on leaves no volume rather than half of two.
    for at in SUPERBLOCK_COPIES {
        write(at, vec![0; BLOCK]).await?;
    }
    env.disk.flush().await?;
    write(HEARTBEAT_START, heartbeats(env, &sb)).await?;
    let clusters = sb.cluster_count.min(CLUSTERS_FIRST);
    let frontier = lock(LockObject::System, 0, Stamp::default(), clusters, env.rng.next());
    write(FRONTIER_LOCK, lock_block(sb.volume, FRONTIER_LOCK, &frontier)).await?;
    let rename = lock(LockObject::System, 0, Stamp::default(), 0, env.rng.next());
    write(RENAME_LOCK, lock_block(sb.volume, RENAME_LOCK, &rename)).await?;
    let now = env.clock.wall();
    let root = empty_directory(sb.volume, sb.root, sb.root_birth, now, env.rng.next());
    for (at, bytes) in root {
        write(at, bytes).await?;
    }
    for index in 0..clusters {
        let blocks =
            if index == 0 { cluster_with(&sb, 0, 2, 2) } else { empty_cluster(&sb, index) };
        for (at, bytes) in blocks {
            write(at, bytes).await?;
        }
    }
    env.disk.flush().await?;
    for at in SUPERBLOCK_COPIES {
        write(at, sb.encode(at).to_vec()).await?;
    }
    env.disk.flush().await?;
    Ok(sb)
}

fn heartbeats(env: &Env, sb: &Superblock) -> Vec<u8> {
    let geometry = sb.geometry();
    let step = geometry.logical_block as usize;
    let mut bytes = vec![0; geometry.slot_len() * geometry.slot_count as usize];
    for slot in (0..geometry.slot_count).map(SlotNo) {
        let at = geometry.slot_len() * slot.0 as usize;
        let pulse = Pulse::free(slot, Incarnation(1), env.rng.next());
        bytes[at..at + RECORD].copy_from_slice(&pulse.encode(sb.volume)[..]);
        for entry in 0..DOORBELLS {
            let at = at + step * (entry as usize + 1);
            let bell = Doorbell::empty(env.rng.next());
            bytes[at..at + RECORD].copy_from_slice(&bell.encode(sb.volume, slot, entry)[..]);
        }
    }
    bytes
}

/// Reads the superblock, from its second copy if the first is damaged or cannot be read.
pub async fn read_superblock(env: &Env) -> Result<Superblock> {
    let mut kind = Kind::Corrupt;
    let mut whys = Vec::new();
    for at in SUPERBLOCK_COPIES {
        match env.disk.read(at.offset(), BLOCK).await {
            Ok(bytes) => match Superblock::decode(&bytes, at) {
                Ok(sb) => return check(env, sb),
                Err(e) => whys.push(format!("block {at}: {e}")),
            },
            Err(e) => {
                // There may be a volume; we could not look.
                kind = Kind::Io;
                whys.push(format!("block {at}: {e}"));
            }
        }
    }
    Err(Error::no_volume(kind, &whys))
}

fn check(env: &Env, sb: Superblock) -> Result<Superblock> {
    let device = env.disk.capabilities();
    if device.size / (BLOCK as u64) < sb.volume_blocks {
        return Err(Error::new(
            Kind::Invalid,
            format!(
                "the volume has {} blocks of 4 KiB, the device only {}; nothing was touched",
                sb.volume_blocks,
                device.size / BLOCK as u64
            ),
        ));
    }
    if device.logical_block != sb.logical_block {
        return Err(Error::new(
            Kind::Invalid,
            format!(
                "the volume was formatted for logical blocks of {} bytes, this device has {}",
                sb.logical_block, device.logical_block
            ),
        ));
    }
    Ok(sb)
}
