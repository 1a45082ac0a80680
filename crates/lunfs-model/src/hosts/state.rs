//! What one moment of a volume and its hosts is.

use crate::image::{Life, LockImage, SlotImage};

/// Slots of the largest volume that is modelled.
pub const SLOTS: usize = 4;
/// Locks of the largest volume that is modelled.
pub const LOCKS: usize = 2;

/// The block under a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Body {
    /// Its version as everybody reads it.
    pub now: u8,
    /// Its version after a power loss at worst.
    pub durable: u8,
    /// The last version that somebody was promised: committed, or shown to a later holder.
    pub promised: u8,
}

/// A host's journal: of each block the newest image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Journal {
    /// The life that writes it.
    pub life: u8,
    /// By lock: generation of the lock, and version.
    pub images: [Option<(u8, u8)>; LOCKS],
}

/// One compare-and-write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Swap {
    /// Of a slot.
    Slot { expect: SlotImage, new: SlotImage },
    /// Of a lock.
    Lock { lock: u8, expect: LockImage, new: LockImage },
}

/// Who sent a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Author {
    /// A program.
    Program(Life),
    /// The parent of one: its writes are not covered by the program's life mark.
    Parent(Life),
}

/// A write under way: it may land at any time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Flight {
    /// A compare-and-write.
    Swap { by: Author, swap: Swap },
    /// A holder puts the block under its lock in place.
    Place { by: Life, lock: u8, generation: u8, version: u8 },
    /// A claimer replays an image of a dead life.
    Replay { by: Life, dead: Life, lock: u8, generation: u8, version: u8 },
}

impl Flight {
    /// The program whose life mark covers it.
    pub fn program(self) -> Option<Life> {
        match self {
            Flight::Swap { by: Author::Program(by), .. }
            | Flight::Place { by, .. }
            | Flight::Replay { by, .. } => Some(by),
            Flight::Swap { by: Author::Parent(_), .. } => None,
        }
    }
}

/// A compare-and-write that its author waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Op {
    /// What is to be done.
    pub swap: Swap,
    /// Is an attempt in doubt?
    pub doubt: bool,
    /// The attempt has reached the block; `true`: and replaced it.
    pub landed: Option<bool>,
}

/// What a holder has not yet done with its changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Stage {
    /// In place and flushed.
    Clean,
    /// In memory.
    Pending,
    /// In a transaction that is in no record yet.
    Running,
    /// In a durable record.
    Committed,
    /// On its way to its place.
    Placing,
    /// In place, not flushed.
    Placed,
}

/// A lock that a program believes to hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Held {
    /// The lock as it was taken.
    pub generation: u8,
    /// Version of the block in memory.
    pub version: u8,
    /// What has happened to that version.
    pub stage: Stage,
}

/// What a program does with locks; one thing at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum LockTask {
    /// Nothing.
    Idle,
    /// Takes one.
    Taking { lock: u8, op: Op },
    /// Works off `lock::RELEASE`; `op` in its last step.
    Releasing { lock: u8, to: Option<Life>, step: u8, op: Option<Op> },
}

/// What a program does with a dead slot; one at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ClaimTask {
    /// Nothing.
    Idle,
    /// Stops a silent host before it claims the image that it has seen.
    Fencing { seen: SlotImage },
    /// Claims.
    Claiming { claim: SlotImage, inherited: bool, op: Op },
    /// Works off `claim::STEPS`; `left` says by lock which images are not decided upon yet.
    Working { claim: SlotImage, inherited: bool, step: u8, left: [bool; LOCKS] },
    /// Frees the slot, or hands the claim back.
    Ending { claim: SlotImage, op: Op },
}

/// One program in one life of a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Program {
    /// Slot and life.
    pub me: Life,
    /// It runs. Otherwise it only has writes under way, and perhaps a parent.
    pub is_running: bool,
    /// The device takes writes from it: its key is registered.
    pub is_admitted: bool,
    /// Its parent has not spoken yet.
    pub has_parent: bool,
    /// Its last image known to be in its slot.
    pub confirmed: SlotImage,
    /// A pulse in doubt.
    pub doubt: Option<SlotImage>,
    /// The locks that it believes to hold.
    pub holds: [Option<Held>; LOCKS],
    /// What it does with locks.
    pub lock_task: LockTask,
    /// What it does with dead slots.
    pub claim_task: ClaimTask,
    /// The dead life whose claim it keeps.
    pub kept: Option<Life>,
    /// It leaves: the swap that frees its slot.
    pub leaving: Option<Op>,
}

impl Program {
    /// Is nothing to be done before it may leave?
    pub fn is_leavable(&self) -> bool {
        self.holds.iter().flatten().all(|held| held.stage == Stage::Clean)
            && self.lock_task == LockTask::Idle
            && self.claim_task == ClaimTask::Idle
    }
}

/// What went wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Broken {
    /// A write under a lock landed after the lock was another's.
    LateWrite,
    /// An image was replayed under a lock that the dead life does not hold any more.
    LateReplay,
    /// A program's write changed something although its life was over.
    PastLife,
    /// Two programs replay one life.
    DoubleClaim,
    /// A program believes to hold a lock that the disk gives to nobody or to another.
    FalseBelief,
    /// A holder found another version than the last one that was promised.
    LostWork,
    /// A lock changed and its generation did not rise.
    SameGeneration,
    /// A slot became free without a new life, or its life fell.
    SameLife,
}

/// One moment.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct State {
    /// What the slots say.
    pub slots: [SlotImage; SLOTS],
    /// What the locks say.
    pub locks: [LockImage; LOCKS],
    /// The blocks under them.
    pub bodies: [Body; LOCKS],
    /// The journals of the slots.
    pub journals: [Journal; SLOTS],
    /// All programs that can still do something, in order.
    pub programs: Vec<Program>,
    /// All writes that may still land, in order, none twice.
    pub flights: Vec<Flight>,
    /// Faults that may still happen.
    pub faults: u8,
    /// What went wrong.
    pub broken: Option<Broken>,
}

impl State {
    /// A program by its life.
    pub fn program(&self, me: Life) -> Option<&Program> {
        self.programs.iter().find(|p| p.me == me)
    }

    /// The place of a program that runs.
    pub fn at(&self, me: Life) -> Option<usize> {
        self.programs.iter().position(|p| p.me == me && p.is_running)
    }

    /// Sends a write. The same write is under way once only: whichever lands first takes from all
    /// others the image they compare with.
    pub fn send(&mut self, flight: Flight) {
        if !self.flights.contains(&flight) {
            self.flights.push(flight);
        }
    }

    /// Sends a compare-and-write of a program, which will wait for it.
    pub fn swap(&mut self, by: Life, swap: Swap, doubt: bool) -> Op {
        self.send(Flight::Swap { by: Author::Program(by), swap });
        Op { swap, doubt, landed: None }
    }

    /// Is a write of this program under way?
    pub fn flies(&self, by: Life) -> bool {
        self.flights.iter().any(|f| f.program() == Some(by))
    }

    /// Is the life mark of this slot free: does no program that had it run or have writes under
    /// way?
    pub fn mark_is_free(&self, slot: u8) -> bool {
        let runs = self.programs.iter().any(|p| p.me.slot == slot && p.is_running);
        let flies = self.flights.iter().any(|f| f.program().is_some_and(|by| by.slot == slot));
        !runs && !flies
    }

    /// Notes that something went wrong; the first thing stays.
    pub fn note(&mut self, broken: Broken) {
        self.broken.get_or_insert(broken);
    }

    /// A nonce that no image of this slot has.
    pub fn nonce(&mut self, slot: u8) -> u8 {
        let mut nonces = Vec::new();
        self.each_slot_image(|image| {
            if image.slot == slot {
                nonces.push(image.nonce);
            }
        });
        (0..).find(|nonce| !nonces.contains(nonce)).expect("few images are remembered")
    }
}
