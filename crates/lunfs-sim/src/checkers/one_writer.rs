//! R5: locks change only as they may, and what they cover is written only by their holder.
//!
//! What a lock covers is known from the blocks themselves: metadata names its lock in its header,
//! and the workers' data names its file.

use std::cell::RefCell;
use std::collections::BTreeMap;

use lunfs_format::{
    BLOCK, BlockNo, Cluster, FRONTIER_LOCK, Holder, Lock, LockMode, LockObject, Pulse, PulseState,
    SlotNo, Version, kind, peek_header,
};

use super::{Place, View};
use crate::disk::faults::Request;
use crate::disk::watch::Landing;
use crate::model::content::{describe, tagged_file};

/// Who wrote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum By {
    /// A host in its slot.
    Host(Holder),
    /// A program without a slot that keeps everybody else out.
    Alone,
    /// A program without a slot.
    Nobody,
}

type LockOf = Box<dyn Fn(u64) -> Option<BlockNo>>;

/// What the checker remembers.
#[derive(Default)]
pub(super) struct OneWriter {
    lock_of: RefCell<Option<LockOf>>,
    /// The last generation seen at each address.
    generations: RefCell<BTreeMap<BlockNo, Generation>>,
    /// Headers of clusters as they lie on the disk.
    headers: RefCell<BTreeMap<BlockNo, Vec<u8>>>,
}

#[derive(Clone, Copy)]
struct Generation {
    version: Version,
    nonce: u64,
    /// It was prepared for a new object by this host, and nobody has taken it since.
    prepared: Option<Holder>,
}

impl OneWriter {
    pub fn know_files(&self, lock_of: impl Fn(u64) -> Option<BlockNo> + 'static) {
        *self.lock_of.borrow_mut() = Some(Box::new(lock_of));
    }

    pub fn forget(&self) {
        self.generations.borrow_mut().clear();
        self.headers.borrow_mut().clear();
    }

    pub fn landed(&self, landing: &Landing<'_>, by: By, view: &View) -> Result<(), String> {
        match view.known.place(landing.at) {
            Place::Pulse(_) => pulse_changes(landing, view),
            Place::Doorbell(_) | Place::Outside => Ok(()),
            Place::Block(block) => self.block_changes(landing, block, by, view),
        }
    }

    fn block_changes(
        &self,
        landing: &Landing<'_>,
        block: BlockNo,
        by: By,
        view: &View,
    ) -> Result<(), String> {
        self.learn_header(landing, block, view);
        let starts_block = landing.at == block.offset();
        let is_lock = lunfs_format::kind_of(landing.after) == Some(kind::LOCK);
        if starts_block
            && is_lock
            && let Ok(lock) = Lock::decode(landing.after, view.known.volume, block)
        {
            let is_again = landing.request != Request::Compare && self.is_free(block, view);
            self.generation_rises(block, &lock, landing.request, view)?;
            let before = landing
                .before
                .and_then(|before| Lock::decode(before, view.known.volume, block).ok());
            return match (before, by) {
                (_, By::Alone) => {
                    Err(format!("lock {block} was changed by a program without slot"))
                }
                (Some(_), By::Host(me)) if is_again => prepared_again(block, me, view),
                (Some(before), By::Host(me)) => lock_changes(block, &before, &lock, me, view),
                _ => Ok(()),
            };
        }
        if landing.request == Request::Compare {
            return Err(format!(
                "a compare-and-write at block {block} wrote something else than a lock"
            ));
        }
        let me = match by {
            By::Host(me) => me,
            By::Alone => return replayed_alone(landing, block, view),
            By::Nobody => {
                return Err(format!("block {block} was written by a program that has no slot"));
            }
        };
        if starts_block && let Ok(header) = peek_header_of(landing.after, view) {
            return covered(block, header, me, view);
        }
        let lock = tagged_file(landing.after)
            .and_then(|file| self.lock_of.borrow().as_ref().and_then(|lock_of| lock_of(file)));
        match lock {
            Some(lock) => covered(block, lock, me, view)
                .map_err(|what| format!("{what}; it holds {}", describe(landing.after))),
            None => Ok(()),
        }
    }

    fn learn_header(&self, landing: &Landing<'_>, block: BlockNo, view: &View) {
        let geometry = &view.known.geometry;
        let cluster = geometry.cluster_of(block).map(|index| geometry.cluster_start(index));
        let Some(cluster) = cluster.filter(|cluster| cluster.plus(1) == block) else { return };
        let mut headers = self.headers.borrow_mut();
        let bytes = headers.entry(cluster).or_insert_with(|| vec![0; BLOCK]);
        // It lands in parts.
        let from = usize::try_from(landing.at - block.offset()).unwrap_or(0);
        bytes[from..from + landing.after.len()].copy_from_slice(landing.after);
    }

    /// Does its cluster say that nothing is here? Then a lock that was prepared here never became
    /// known, and whoever has the cluster now may prepare one at the same place.
    fn is_free(&self, block: BlockNo, view: &View) -> bool {
        let geometry = &view.known.geometry;
        let cluster = geometry.cluster_of(block).map(|index| geometry.cluster_start(index));
        let headers = self.headers.borrow();
        let Some((start, bytes)) = cluster.and_then(|start| Some((start, headers.get(&start)?)))
        else {
            return false;
        };
        let header = Cluster::decode(bytes, view.known.volume, start.plus(1));
        let place = u32::try_from(block.0 - start.0);
        header.is_ok_and(|header| place.is_ok_and(|place| !header.bitmap.get(place)))
    }

    /// A lock that is prepared for a new object may repeat the generation of one that was prepared
    /// there before and never became known: the record that would have named it was lost. It may
    /// even fall, if the one who prepared that one died with two records that nobody ever saw.
    fn generation_rises(
        &self,
        block: BlockNo,
        lock: &Lock,
        by: Request,
        view: &View,
    ) -> Result<(), String> {
        let mut generations = self.generations.borrow_mut();
        let is_prepared = by != Request::Compare;
        let new = Generation {
            version: lock.generation,
            nonce: lock.nonce,
            prepared: lock.holder.filter(|_| is_prepared),
        };
        let falls = |known: &Generation| match known.prepared {
            Some(author) if is_prepared && view.is_stale(author) => false,
            _ if is_prepared => lock.generation < known.version,
            _ => lock.generation <= known.version,
        };
        let same = |known: &Generation| (known.version, known.nonce) == (new.version, new.nonce);
        match generations.get(&block) {
            Some(known) if same(known) => Ok(()),
            Some(known) if falls(known) => Err(format!(
                "R5: the generation of lock {block} went from {} to {}",
                known.version, lock.generation
            )),
            _ => {
                generations.insert(block, new);
                Ok(())
            }
        }
    }
}

/// The lock that a metadata block names in its header; zero lengths of a block are not decoded.
fn peek_header_of(bytes: &[u8], view: &View) -> Result<BlockNo, ()> {
    // A torn unit of 512 bytes starts like its block but cannot be checked as a whole: what counts
    // here is the name of the lock, which lies in the first sector.
    let kind_found = lunfs_format::kind_of(bytes).ok_or(())?;
    if !matches!(kind_found, kind::CLUSTER | kind::DESCRIPTOR | kind::NODE) {
        return Err(());
    }
    if bytes.len() >= 4096 {
        let header = peek_header(bytes).map_err(|_| ())?;
        return if header.volume == view.known.volume { Ok(header.owner) } else { Err(()) };
    }
    let mut owner = [0; 8];
    owner.copy_from_slice(bytes.get(56..64).ok_or(())?);
    let volume = bytes.get(16..32).ok_or(())?;
    if volume == view.known.volume.0 { Ok(BlockNo(u64::from_le_bytes(owner))) } else { Err(()) }
}

/// What a program without a slot writes are images that a dead host left, under its locks.
fn replayed_alone(landing: &Landing<'_>, block: BlockNo, view: &View) -> Result<(), String> {
    let Ok(lock) = peek_header_of(landing.after, view) else {
        let is_head = landing.at == block.offset();
        return if is_head {
            Err(format!("block {block} is no image of metadata"))
        } else {
            Ok(())
        };
    };
    let holder = view.lock(lock).and_then(|lock| lock.holder);
    match holder {
        Some(dead) if !view.is_stale(dead) => Ok(()),
        _ => Err(format!("R7: block {block} is replayed under lock {lock} of {holder:?}")),
    }
}

/// May `me` write what `lock` covers?
fn covered(block: BlockNo, lock: BlockNo, me: Holder, view: &View) -> Result<(), String> {
    let found = view.lock(lock);
    if let Some(holder) = found.and_then(|found| found.holder)
        && (holder == me || view.recovers(me, holder))
    {
        return Ok(());
    }
    if found.is_none_or(|found| found.mode == LockMode::Void) {
        // Nothing is here yet: whoever may allocate the place may prepare it.
        let cluster = view.known.geometry.cluster_of(block);
        let cluster = cluster.map(|index| view.known.geometry.cluster_start(index));
        // A cluster behind the frontier has no lock yet either.
        let is_new = cluster == Some(lock);
        let frontier = view.lock(FRONTIER_LOCK).and_then(|frontier| frontier.holder);
        if is_new && frontier == Some(me) {
            return Ok(());
        }
        if let Some(cluster) = cluster.and_then(|cluster| view.lock(cluster))
            && may_use(&cluster, me, view)
        {
            return Ok(());
        }
    }
    let state = found.map_or("no lock at all".to_owned(), |found| {
        format!("{:?} of {:?}, generation {}", found.mode, found.holder, found.generation)
    });
    Err(format!("R5: {me} writes block {block} under lock {lock}, which is {state}"))
}

/// May `me` prepare a lock where another one was prepared that nobody ever knew of?
fn prepared_again(block: BlockNo, me: Holder, view: &View) -> Result<(), String> {
    let geometry = &view.known.geometry;
    let cluster = geometry.cluster_of(block).map(|index| geometry.cluster_start(index));
    let cluster = cluster.and_then(|cluster| view.lock(cluster));
    if cluster.is_some_and(|cluster| may_use(&cluster, me, view)) {
        return Ok(());
    }
    Err(format!("R5: {me} prepares lock {block} in a cluster that is not its own"))
}

/// May `me` use what it likes of the cluster under this lock? It holds it, or it is its journal.
fn may_use(cluster: &Lock, me: Holder, view: &View) -> bool {
    if let Some(holder) = cluster.holder {
        return holder == me || view.recovers(me, holder);
    }
    let slot = SlotNo(u32::try_from(cluster.payload).unwrap_or(u32::MAX));
    let claimer = || view.life(slot).and_then(|life| life.claimer);
    cluster.object == LockObject::Journal && (slot == me.slot || claimer() == Some(me))
}

/// May `me` change this lock so?
fn lock_changes(
    block: BlockNo,
    before: &Lock,
    after: &Lock,
    me: Holder,
    view: &View,
) -> Result<(), String> {
    let fine = match (before.mode, before.holder) {
        (LockMode::Exclusive, Some(holder)) if holder == me => true,
        (LockMode::Exclusive, Some(holder)) => view.is_stale(holder) || view.recovers(me, holder),
        (LockMode::Free | LockMode::Void, _) => after.holder.is_none_or(|holder| holder == me),
        _ => true,
    };
    if fine {
        return Ok(());
    }
    Err(format!(
        "R5: {me} changes lock {block} from {:?} of {:?} to {:?} of {:?}",
        before.mode, before.holder, after.mode, after.holder
    ))
}

/// May a slot change so?
fn pulse_changes(landing: &Landing<'_>, view: &View) -> Result<(), String> {
    let Place::Pulse(slot) = view.known.place(landing.at) else { return Ok(()) };
    let decode = |bytes| Pulse::decode(bytes, view.known.volume, slot).ok();
    let (Some(before), Some(after)) = (landing.before.and_then(decode), decode(landing.after))
    else {
        return Ok(());
    };
    if after.incarnation < before.incarnation {
        return Err(format!(
            "slot {slot} went from life {} back to {}",
            before.incarnation, after.incarnation
        ));
    }
    let is_life = |pulse: &Pulse| matches!(pulse.state, PulseState::Joining | PulseState::Live);
    if is_life(&after) && is_life(&before) && after.run != before.run {
        return Err(format!("slot {slot} went from one living program to another"));
    }
    if after.state == PulseState::Free
        && before.state != PulseState::Free
        && after.incarnation <= before.incarnation
    {
        return Err(format!("slot {slot} became free without a new life"));
    }
    Ok(())
}
