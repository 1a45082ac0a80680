//! Replaying a dead host's journal.
//!
//! Invariants:
//! - R7: an image goes in place only where its covering lock is, on disk now, held by the dead
//!   incarnation at exactly that generation, and the block there is invalid, of another kind or of
//!   a lower version.
//! - A revoke cancels every earlier image of its block (H1).
//! - R8: idempotent; a torn last record ends the journal; a broken record that a later one calls
//!   durable is corruption.
//!
//! Reading is one pass, deciding is pure (`decide`), writing comes last: another host may start
//! over at any moment with the same result.

use std::collections::BTreeMap;

use futures_util::future::join_all;
use lunfs_format::{
    BLOCK, BlockNo, Header, Holder, JOURNAL_HEADERS, JOURNAL_RING, JournalHeader, Lock, LockMode,
    RecordEntry, RecordHead, Version, VolumeId, chain, kind, kind_of, peek_header, stored_checksum,
};

use crate::error::{Error, Result};
use crate::io::Io;

/// Reads and writes under way at once.
const PARALLEL: usize = 32;
/// How often a lock, or a record that is not whole, is read before it is believed: a reading can
/// be wrong where the disk is not, and what is not replayed now is lost.
const READINGS: usize = 3;
/// Blocks of the ring read at once.
const READ_BLOCKS: u64 = 256;

/// Where a journal lies.
#[derive(Clone, Debug)]
pub struct Place {
    /// The volume.
    pub volume: VolumeId,
    /// First block of the journal's cluster.
    pub cluster: BlockNo,
    /// Blocks of that cluster.
    pub cluster_blocks: u64,
    /// All blocks of clusters.
    pub clusters: std::ops::Range<BlockNo>,
}

/// What a replay did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Replayed {
    /// Records found.
    pub records: u64,
    /// Images written in place.
    pub applied: u64,
    /// Images refused because their lock had moved on.
    pub refused: u64,
    /// Images that were in place already.
    pub in_place: u64,
    /// Images cancelled by a revoke.
    pub revoked: u64,
}

/// One image as the journal has it.
#[derive(Clone, Debug)]
pub struct Image {
    /// The lock that covers it.
    pub lock: BlockNo,
    /// The lock's generation when the image was taken.
    pub lock_generation: Version,
    /// Its version.
    pub version: Version,
    /// The block.
    pub bytes: Vec<u8>,
}

/// What replay does with one image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Write it.
    Apply,
    /// Its lock is somebody else's, or of another time: what is there now is newer.
    Refuse,
    /// The block has this version or a later one.
    InPlace,
}

/// R7, for one image: `lock` as it is on disk now, `there` the version of the valid block in its
/// place (`None`: not a valid block of that address and of the image's kind). Of another kind is
/// what lay in the free space before: the lock of a file that was never recorded has the birth
/// that this image has.
pub fn decide(
    dead: Holder,
    image: &Image,
    lock: Option<&Lock>,
    there: Option<Version>,
) -> Decision {
    let covered = lock.is_some_and(|lock| {
        lock.mode == LockMode::Exclusive
            && lock.holder == Some(dead)
            && lock.generation == image.lock_generation
    });
    if !covered {
        return Decision::Refuse;
    }
    match there {
        Some(version) if version >= image.version => Decision::InPlace,
        Some(_) | None => Decision::Apply,
    }
}

/// The header with which replay starts; `None`: the journal of this life is empty. When `live` is
/// false the host was still joining and may have written no header yet.
pub async fn header(
    io: &Io,
    place: &Place,
    dead: Holder,
    live: bool,
) -> Result<Option<JournalHeader>> {
    let newest = newest_header(io, place).await?;
    match newest {
        None if live => Err(Error::damage(format!(
            "both journal headers of slot {} (blocks {} and {}) are corrupt; nothing was replayed",
            dead.slot,
            place.cluster.plus(JOURNAL_HEADERS[0]),
            place.cluster.plus(JOURNAL_HEADERS[1]),
        ))),
        None => Ok(None),
        Some(h) if h.incarnation < dead.incarnation && live => Err(Error::damage(format!(
            "the journal header of slot {}'s last life is unreadable; what that host had made \
             durable is in its journal (cluster {}), nothing was replayed",
            dead.slot, place.cluster
        ))),
        Some(h) if h.incarnation < dead.incarnation => Ok(None),
        Some(h) if h.incarnation > dead.incarnation => Err(Error::damage(format!(
            "the journal of slot {} belongs to incarnation {}, its slot is at {}; nothing was \
             replayed",
            dead.slot, h.incarnation, dead.incarnation
        ))),
        Some(h) => Ok(Some(h)),
    }
}

/// The valid header with the highest version.
pub async fn newest_header(io: &Io, place: &Place) -> Result<Option<JournalHeader>> {
    let mut newest: Option<JournalHeader> = None;
    for offset in JOURNAL_HEADERS {
        let at = place.cluster.plus(offset);
        let bytes = io.read(at, 1).await?;
        if let Ok(header) = JournalHeader::decode(&bytes, place.volume, at)
            && newest.as_ref().is_none_or(|n| header.version > n.version)
        {
            newest = Some(header);
        }
    }
    Ok(newest)
}

/// The ring, read ahead in large pieces.
struct Reader<'a> {
    io: &'a Io,
    place: Place,
    ring_blocks: u64,
    piece: Option<(u64, Vec<u8>)>,
}

impl Reader<'_> {
    fn address(&self, position: u64) -> BlockNo {
        self.place.cluster.plus(JOURNAL_RING + position % self.ring_blocks)
    }

    async fn block(&mut self, position: u64) -> Result<Vec<u8>> {
        let position = position % self.ring_blocks;
        let first = position - position % READ_BLOCKS;
        if self.piece.as_ref().is_none_or(|(f, _)| *f != first) {
            let len = READ_BLOCKS.min(self.ring_blocks - first);
            let count = usize::try_from(len).expect("fits");
            self.piece = Some((first, self.io.read(self.address(first), count).await?));
        }
        let (_, bytes) = self.piece.as_ref().expect("just read");
        let start = usize::try_from(position - first).expect("fits") * BLOCK;
        Ok(bytes[start..start + BLOCK].to_vec())
    }

    /// Refuses an image that is not of the block that its entry names, or of none in a cluster: it
    /// would be written there, over whatever that is.
    fn require_own(&self, entry: &RecordEntry, found: &Header, position: u64) -> Result<()> {
        let RecordEntry::Image { block, lock, version, .. } = *entry else { return Ok(()) };
        let is_own = found.volume == self.place.volume
            && (found.address, found.owner, found.version) == (block.0, lock, version)
            && self.place.clusters.contains(&block);
        if is_own {
            return Ok(());
        }
        let why = format!("an image of block {block} in a journal is of another one");
        Err(Error::damaged(self.address(position), why))
    }

    /// The head at `position` if it is one of this journal's life.
    async fn head(&mut self, dead: Holder, position: u64) -> Result<Option<(RecordHead, u32)>> {
        let bytes = self.block(position).await?;
        let head = RecordHead::decode(&bytes, self.place.volume, self.address(position)).ok();
        Ok(head
            .filter(|h| h.slot == dead.slot && h.incarnation == dead.incarnation)
            .map(|h| (h, stored_checksum(&bytes))))
    }
}

/// A whole record.
struct Record {
    entries: Vec<RecordEntry>,
    images: Vec<Vec<u8>>,
    chain: u64,
    blocks: u64,
}

/// Reads the record with this sequence at this position, if all of it is there.
async fn record(
    reader: &mut Reader<'_>,
    dead: Holder,
    sequence: u64,
    position: u64,
    previous: u64,
) -> Result<Option<Record>> {
    let Some((first, _)) = reader.head(dead, position).await? else { return Ok(None) };
    if first.sequence != sequence || first.head_index != 0 || first.previous != previous {
        return Ok(None);
    }
    let mut entries = Vec::new();
    let mut checksums = Vec::new();
    for i in 0..first.head_count {
        let Some((head, checksum)) = reader.head(dead, position + u64::from(i)).await? else {
            return Ok(None);
        };
        let belongs = head.sequence == sequence
            && head.head_index == i
            && head.head_count == first.head_count
            && head.image_count == first.image_count;
        if !belongs {
            return Ok(None);
        }
        checksums.push(checksum);
        entries.extend(head.entries);
    }
    let mut images = Vec::new();
    let mut at = position + u64::from(first.head_count);
    for entry in &entries {
        if let RecordEntry::Image { checksum, .. } = entry {
            let bytes = reader.block(at).await?;
            match peek_header(&bytes) {
                Ok(found) if stored_checksum(&bytes) == *checksum => {
                    reader.require_own(entry, &found, at)?;
                }
                _ => return Ok(None),
            }
            images.push(bytes);
            at += 1;
        }
    }
    if images.len() != first.image_count as usize {
        return Ok(None);
    }
    Ok(Some(Record { entries, images, chain: chain(sequence, &checksums), blocks: at - position }))
}

/// Everything the journal wants in place: the newest image of each block that no revoke cancels.
pub struct Wanted {
    /// By block.
    pub images: BTreeMap<BlockNo, Image>,
    /// Records found.
    pub records: u64,
    /// Images that revokes cancelled.
    pub revoked: u64,
}

/// Reads the whole journal from its tail.
pub async fn read(io: &Io, place: &Place, dead: Holder, header: &JournalHeader) -> Result<Wanted> {
    let ring_blocks = place.cluster_blocks - JOURNAL_RING;
    let mut reader = Reader { io, place: place.clone(), ring_blocks, piece: None };
    let mut wanted = Wanted { images: BTreeMap::new(), records: 0, revoked: 0 };
    let (mut sequence, mut position) = (header.tail_sequence, header.tail_position);
    if position >= ring_blocks {
        let why = format!("the journal of slot {} begins behind its ring", dead.slot);
        return Err(Error::damaged(place.cluster.plus(JOURNAL_HEADERS[0]), why));
    }
    let mut previous = header.previous;
    let mut walked = 0;
    while walked < ring_blocks {
        let mut found = None;
        for _ in 0..READINGS {
            found = record(&mut reader, dead, sequence, position, previous).await?;
            if found.is_some() {
                break;
            }
            reader.piece = None;
        }
        let Some(record) = found else { break };
        collect(&mut wanted, &record);
        walked += record.blocks;
        position = (position + record.blocks) % ring_blocks;
        previous = record.chain;
        sequence += 1;
        wanted.records += 1;
    }
    refuse_broken(&mut reader, dead, sequence).await?;
    Ok(wanted)
}

fn collect(wanted: &mut Wanted, record: &Record) {
    let mut images = record.images.iter();
    for entry in &record.entries {
        match *entry {
            RecordEntry::Image { block, lock, lock_generation, version, .. } => {
                let bytes = images.next().expect("counted").clone();
                wanted.images.insert(block, Image { lock, lock_generation, version, bytes });
            }
            RecordEntry::Revoke { .. } => {}
        }
    }
    // Revokes last: they cancel the images of their own record too.
    for entry in &record.entries {
        if let RecordEntry::Revoke { block } = entry
            && wanted.images.remove(block).is_some()
        {
            wanted.revoked += 1;
        }
    }
}

/// Q3, N38: `missing` is the first record that is not whole. If a later one says that it was
/// durable, the journal is damaged in its middle, and what it acknowledged is lost: stop.
async fn refuse_broken(reader: &mut Reader<'_>, dead: Holder, missing: u64) -> Result<()> {
    for position in 0..reader.ring_blocks {
        let Some((head, _)) = reader.head(dead, position).await? else { continue };
        if head.sequence > missing && head.durable >= missing {
            return Err(Error::damage(format!(
                "record {missing} in the journal of slot {} is broken, though record {} (block {}) \
                 says it was durable; nothing was replayed",
                dead.slot,
                head.sequence,
                reader.address(position)
            )));
        }
    }
    Ok(())
}

/// Why not all of a journal is in place.
pub enum Unapplied {
    /// Something could not be read: every write was answered and went well.
    Unread(Error),
    /// A write failed, and may land while this host lives.
    Unwritten(Error),
}

/// Puts in place what R7 allows. Does not flush.
pub async fn apply(
    io: &Io,
    volume: VolumeId,
    dead: Holder,
    wanted: &Wanted,
) -> std::result::Result<Replayed, Unapplied> {
    let mut done =
        Replayed { records: wanted.records, revoked: wanted.revoked, ..Replayed::default() };
    let images: Vec<(&BlockNo, &Image)> = wanted.images.iter().collect();
    for chunk in images.chunks(PARALLEL) {
        let jobs = chunk.iter().map(|(at, image)| apply_one(io, volume, dead, **at, image));
        let mut unread = None;
        for answer in join_all(jobs).await {
            match answer {
                Ok(Decision::Apply) => done.applied += 1,
                Ok(Decision::Refuse) => done.refused += 1,
                Ok(Decision::InPlace) => done.in_place += 1,
                // The worse of two errors: what was not read lets the claim go.
                Err(Unapplied::Unwritten(e)) => return Err(Unapplied::Unwritten(e)),
                Err(Unapplied::Unread(e)) => unread = Some(e),
            }
        }
        if let Some(e) = unread {
            return Err(Unapplied::Unread(e));
        }
    }
    Ok(done)
}

async fn apply_one(
    io: &Io,
    volume: VolumeId,
    dead: Holder,
    at: BlockNo,
    image: &Image,
) -> std::result::Result<Decision, Unapplied> {
    let lock = lock_of(io, volume, image).await.map_err(Unapplied::Unread)?;
    let there = io.read(at, 1).await.map_err(Unapplied::Unread)?;
    let kind = kind_of(&image.bytes);
    let there = peek_header(&there)
        .ok()
        .filter(|h| h.volume == volume && h.address == at.0 && Some(h.kind) == kind)
        .map(|h| h.version);
    let decision = decide(dead, image, lock.as_ref(), there);
    if decision == Decision::Apply {
        let done = io.write_for_another(at, image.bytes.clone(), false).await;
        done.map_err(Unapplied::Unwritten)?;
    }
    Ok(decision)
}

/// The lock of an image as it is now; `None`: there is none. One that stays damaged covers nothing,
/// and all else that its host had locked must not wait for it.
async fn lock_of(io: &Io, volume: VolumeId, image: &Image) -> Result<Option<Lock>> {
    for _ in 0..READINGS {
        let bytes = io.read_record(image.lock.offset()).await?;
        match Lock::decode(&bytes, volume, image.lock) {
            Ok(lock) => return Ok(Some(lock)),
            // It may be gone, but a reading of another place would look the same.
            Err(_) if kind_of(&bytes) != Some(kind::LOCK) => {}
            Err(e) => {
                let at = image.lock.0;
                tracing::error!(event = "lock_damaged", at, error = %e, "read again");
            }
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use lunfs_format::{Incarnation, LockObject, SlotNo, Stamp};

    use super::*;

    fn dead() -> Holder {
        Holder { slot: SlotNo(2), incarnation: Incarnation(5) }
    }

    fn version(birth: u64, count: u64) -> Version {
        Version { birth, count }
    }

    fn lock() -> Lock {
        Lock {
            mode: LockMode::Exclusive,
            object: LockObject::Descriptor,
            holder: Some(dead()),
            generation: version(1, 5),
            nonce: 1,
            stamp: Stamp::default(),
            giver: None,
            payload: 0,
        }
    }

    fn image() -> Image {
        Image {
            lock: BlockNo(100),
            lock_generation: version(1, 5),
            version: version(3, 7),
            bytes: Vec::new(),
        }
    }

    #[test]
    fn an_image_goes_in_place_only_under_its_own_lock_of_its_own_time() {
        let there = Some(version(3, 6));
        assert_eq!(decide(dead(), &image(), Some(&lock()), there), Decision::Apply);
        assert_eq!(decide(dead(), &image(), None, there), Decision::Refuse);
        let later = Lock { generation: version(1, 6), ..lock() };
        assert_eq!(decide(dead(), &image(), Some(&later), there), Decision::Refuse);
        let other = Holder { slot: SlotNo(2), incarnation: Incarnation(6) };
        let taken = Lock { holder: Some(other), ..lock() };
        assert_eq!(decide(dead(), &image(), Some(&taken), there), Decision::Refuse);
        let free = Lock { mode: LockMode::Free, holder: None, ..lock() };
        assert_eq!(decide(dead(), &image(), Some(&free), there), Decision::Refuse);
    }

    #[test]
    fn an_image_never_replaces_its_like_or_a_later_one() {
        let judged = |there| decide(dead(), &image(), Some(&lock()), there);
        assert_eq!(judged(Some(version(3, 7))), Decision::InPlace);
        assert_eq!(judged(Some(version(3, 8))), Decision::InPlace);
        assert_eq!(judged(Some(version(4, 1))), Decision::InPlace);
        assert_eq!(judged(Some(version(2, 99))), Decision::Apply);
        assert_eq!(judged(None), Decision::Apply);
    }

    /// H1 within one host: the image of a freed block must not come back over what is there now.
    #[test]
    fn a_revoke_cancels_the_images_of_its_own_and_of_earlier_records() {
        let entry = |block| RecordEntry::Image {
            block: BlockNo(block),
            lock: BlockNo(100),
            lock_generation: version(1, 5),
            version: version(3, 7),
            checksum: 0,
        };
        let revoke = |block| RecordEntry::Revoke { block: BlockNo(block) };
        let record = |entries: Vec<RecordEntry>| {
            let count = entries.iter().filter(|e| matches!(e, RecordEntry::Image { .. })).count();
            Record { images: vec![Vec::new(); count], entries, chain: 0, blocks: 1 }
        };
        let mut wanted = Wanted { images: BTreeMap::new(), records: 0, revoked: 0 };
        collect(&mut wanted, &record(vec![entry(1), entry(2)]));
        collect(&mut wanted, &record(vec![revoke(1), entry(3), revoke(3)]));
        collect(&mut wanted, &record(vec![entry(4)]));
        let left: Vec<u64> = wanted.images.keys().map(|at| at.0).collect();
        assert_eq!((left, wanted.revoked), (vec![2, 4], 2));
    }
}
