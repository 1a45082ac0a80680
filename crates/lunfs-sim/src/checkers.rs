//! Rules that are checked while the world runs, from what reaches the disk.
//!
//! | checker | rule |
//! |---|---|
//! | `lease` | R1: nothing is submitted after the lease, R4: nothing lands after recovery |
//! | `one_writer` | R5: locks change as they may, and only their holder writes what they cover |
//! | `progress` | R14: every operation ends |
//! | `walker` | R6, R8, R12: the volume is sound when it is at rest |
//!
//! They decode what lies on the disk by themselves and ask no host what it believes.

mod lease;
mod one_writer;
pub mod progress;
pub mod walker;

use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};

use lunfs_format::{
    BLOCK, BlockNo, Geometry, Holder, Incarnation, Lock, Pulse, PulseState, RECORD, SlotNo,
    Superblock, VolumeId,
};

use crate::disk::SharedDisk;
use crate::disk::faults::Request;
use crate::disk::watch::{Landing, Submission, Watch};
use crate::executor::Owner;
use crate::finding::Findings;
use crate::story::pulse;
use crate::trace::Trace;
use lease::Leases;
use one_writer::By;

/// What is known of the volume.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Known {
    pub volume: VolumeId,
    pub geometry: Geometry,
}

/// What lies at an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// A superblock or nothing.
    Outside,
    /// The pulse of a slot.
    Pulse(SlotNo),
    /// A doorbell entry of a slot.
    Doorbell(SlotNo),
    /// A block of the system area or of a cluster.
    Block(BlockNo),
}

/// What is told of each claim.
type OnClaim = Box<dyn Fn(Owner)>;

/// Does a program keep everybody else out?
type IsAlone = Box<dyn Fn(Owner) -> bool>;

/// All that watch the disk.
pub struct Checkers {
    findings: Rc<Findings>,
    trace: Rc<Trace>,
    disk: RefCell<Weak<SharedDisk>>,
    known: Cell<Option<Known>>,
    leases: Leases,
    writer: one_writer::OneWriter,
    on_claim: RefCell<Option<OnClaim>>,
    is_alone: RefCell<Option<IsAlone>>,
}

impl Checkers {
    /// Checkers of a disk without a volume: they rest until [`Checkers::begin`].
    pub fn new(findings: &Rc<Findings>, trace: &Rc<Trace>) -> Rc<Checkers> {
        Rc::new(Checkers {
            findings: Rc::clone(findings),
            trace: Rc::clone(trace),
            disk: RefCell::default(),
            known: Cell::default(),
            leases: Leases::default(),
            writer: one_writer::OneWriter::default(),
            on_claim: RefCell::default(),
            is_alone: RefCell::default(),
        })
    }

    /// Which file a number in a tag belongs to: the address of its lock.
    pub fn know_files(&self, lock_of: impl Fn(u64) -> Option<BlockNo> + 'static) {
        self.writer.know_files(lock_of);
    }

    /// A volume was made: from now on the rules hold.
    ///
    /// # Panics
    /// If there is no superblock.
    pub fn begin(&self, disk: &Rc<SharedDisk>) {
        let block = disk.peek(0, BLOCK);
        let superblock = Superblock::decode(&block, BlockNo(0)).expect("format wrote a superblock");
        *self.disk.borrow_mut() = Rc::downgrade(disk);
        self.known.set(Some(Known { volume: superblock.volume, geometry: superblock.geometry() }));
    }

    /// Identity and layout of the volume.
    pub fn volume(&self) -> Option<(VolumeId, Geometry)> {
        self.known.get().map(|known| (known.volume, known.geometry))
    }

    /// What to do when a program has claimed another's slot.
    pub fn on_claim(&self, act: impl Fn(Owner) + 'static) {
        *self.on_claim.borrow_mut() = Some(Box::new(act));
    }

    /// Who holds so many life marks that nobody else can have the volume.
    pub fn know_marks(&self, is_alone: impl Fn(Owner) -> bool + 'static) {
        *self.is_alone.borrow_mut() = Some(Box::new(is_alone));
    }

    fn is_alone(&self, owner: Owner) -> bool {
        self.is_alone.borrow().as_ref().is_some_and(|is_alone| is_alone(owner))
    }

    /// Has it come to a slot?
    pub fn has_slot(&self, owner: Owner) -> bool {
        self.leases.holder(owner).is_some()
    }

    /// A program started.
    pub fn born(&self, owner: Owner, run: [u8; 16]) {
        self.leases.born(owner, run);
    }

    /// The disk lost power: what it shows may be older than what was seen.
    pub fn power_lost(&self) {
        self.writer.forget();
    }

    fn add(&self, by: Owner, what: String) {
        self.findings.add(by, what);
    }
}

impl Known {
    fn place(&self, at: u64) -> Place {
        let start = self.geometry.slot_offset(SlotNo(0));
        let end = self.geometry.clusters_start.offset();
        if (start..end).contains(&at) {
            let len = self.geometry.slot_len() as u64;
            let slot = SlotNo(u32::try_from((at - start) / len).unwrap_or(u32::MAX));
            let is_pulse = (at - start).is_multiple_of(len);
            return if is_pulse { Place::Pulse(slot) } else { Place::Doorbell(slot) };
        }
        let block = BlockNo(at / BLOCK as u64);
        if block.0 == 0 || block.0 == 256 { Place::Outside } else { Place::Block(block) }
    }
}

/// What a slot says of its life.
#[derive(Clone, Copy)]
pub(crate) struct Life {
    incarnation: Incarnation,
    pub claimer: Option<Holder>,
}

/// The disk in one moment as the checkers see it; what was decoded once is remembered.
pub(crate) struct View {
    pub known: Known,
    disk: Rc<SharedDisk>,
    lives: RefCell<Vec<(SlotNo, Option<Life>)>>,
    locks: RefCell<Vec<(BlockNo, Option<Lock>)>>,
}

/// What is found in `memory`, or made and kept there.
fn remembered<K: Copy + PartialEq, V: Clone>(
    memory: &RefCell<Vec<(K, V)>>,
    key: K,
    make: impl FnOnce() -> V,
) -> V {
    let found = memory.borrow().iter().find(|(known, _)| *known == key).map(|(_, v)| v.clone());
    found.unwrap_or_else(|| {
        let made = make();
        memory.borrow_mut().push((key, made.clone()));
        made
    })
}

impl View {
    fn new(known: Known, disk: Rc<SharedDisk>) -> View {
        View { known, disk, lives: RefCell::default(), locks: RefCell::default() }
    }

    /// What a slot says now.
    pub fn life(&self, slot: SlotNo) -> Option<Life> {
        if slot.0 >= self.known.geometry.slot_count {
            return None;
        }
        remembered(&self.lives, slot, || {
            let at = self.known.geometry.slot_offset(slot);
            let decode = |bytes: &[u8]| Pulse::decode(&bytes[..RECORD], self.known.volume, slot);
            let pulse = self.disk.look(at, decode).ok()?;
            Some(Life { incarnation: pulse.incarnation, claimer: pulse.claimer })
        })
    }

    pub fn lock(&self, at: BlockNo) -> Option<Lock> {
        if at.offset() >= self.disk.size() {
            return None;
        }
        remembered(&self.locks, at, || {
            let decode = |bytes: &[u8]| Lock::decode(&bytes[..RECORD], self.known.volume, at);
            self.disk.look(at.offset(), decode).ok()
        })
    }

    /// Is this life of a slot over and recovered?
    pub fn is_stale(&self, holder: Holder) -> bool {
        self.life(holder.slot).is_some_and(|life| life.incarnation > holder.incarnation)
    }

    /// Does `by` take over what the dead `victim` left?
    pub fn recovers(&self, by: Holder, victim: Holder) -> bool {
        self.life(victim.slot)
            .is_some_and(|life| life.incarnation == victim.incarnation && life.claimer == Some(by))
    }
}

impl Watch for Checkers {
    fn submitted(&self, submission: &Submission<'_>) {
        let Some(known) = self.known.get() else { return };
        let is_alone = || self.is_alone(submission.owner);
        if let Err(what) = self.leases.submitted(submission, &known, is_alone) {
            self.add(submission.owner, what);
        }
    }

    fn landed(&self, landings: &[Landing<'_>]) {
        let Some(known) = self.known.get() else { return };
        let Some(disk) = self.disk.borrow().upgrade() else { return };
        let view = View::new(known, disk);
        for landing in landings {
            self.landed_one(landing, &view);
        }
    }
}

impl Checkers {
    fn tell(&self, landing: &Landing<'_>, known: &Known) {
        let (time, owner) = (landing.time, landing.owner);
        match known.place(landing.at) {
            Place::Pulse(slot) => {
                let decode = |bytes| pulse(bytes, known.volume, slot);
                if let Some(after) = decode(landing.after) {
                    let before = landing.before.and_then(decode);
                    self.trace.story.slot(time, owner, (before.as_ref(), &after));
                }
            }
            Place::Block(_) => {
                self.trace.story.block((time, owner), landing.at, landing.after, known.volume);
            }
            Place::Doorbell(_) | Place::Outside => {}
        }
    }

    fn landed_one(&self, landing: &Landing<'_>, view: &View) {
        let known = &view.known;
        if self.trace.story.is_wanted() {
            self.tell(landing, known);
        }
        if landing.request == Request::Compare
            && let Place::Pulse(slot) = known.place(landing.at)
        {
            self.leases.pulse_landed(landing, slot, known);
            let pulse = Pulse::decode(&landing.after[..RECORD], known.volume, slot);
            if pulse.is_ok_and(|pulse| pulse.state == PulseState::Claimed)
                && let Some(act) = self.on_claim.borrow().as_ref()
            {
                act(landing.owner);
            }
        }
        let me = self.leases.holder(landing.owner);
        if let Err(what) = lease::landed(landing, me, self.leases.has_left(landing.owner), view) {
            self.add(landing.owner, what);
        }
        let by = match me {
            Some(me) => By::Host(me),
            None if self.is_alone(landing.owner) => By::Alone,
            None => By::Nobody,
        };
        if let Err(what) = self.writer.landed(landing, by, view) {
            self.add(landing.owner, what);
        }
    }
}
