//! Small images of slots and locks, and what they stand for.
//!
//! The decisions of the core take and give `Pulse` and `Lock`. A state of a model keeps of them
//! only what a decision looks at; `pulse` and `lock` make the whole again.

use lunfs_format::{
    BlockNo, Holder, Incarnation, Lock, LockMode, LockObject, Pulse, PulseState, SlotNo, Stamp,
    Timing, Version,
};

/// One life of one slot; a program and the life that it lives are one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Life {
    /// Its slot.
    pub slot: u8,
    /// Its incarnation.
    pub life: u8,
}

impl Life {
    /// As the core names it.
    pub fn holder(self) -> Holder {
        Holder {
            slot: SlotNo(u32::from(self.slot)),
            incarnation: Incarnation(u64::from(self.life)),
        }
    }

    /// From what the core names.
    pub fn of(holder: Holder) -> Life {
        Life { slot: holder.slot.0 as u8, life: holder.incarnation.0 as u8 }
    }

    /// The run of its program. Two programs never share a life, so a life gives the run away.
    pub fn run(self) -> [u8; 16] {
        [self.life + 1; 16]
    }
}

/// What a slot says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Says {
    /// Nobody uses it.
    Free,
    /// A host uses it. Joining is not told apart: recovery treats both the same.
    Live,
    /// Another host takes over.
    Claimed(Life),
    /// Its host is gone.
    Dead,
}

/// The image of a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SlotImage {
    /// Which slot.
    pub slot: u8,
    /// Number of its current life.
    pub life: u8,
    /// What it says.
    pub says: Says,
    /// Does a parent watch its program?
    pub has_parent: bool,
    /// Tells images apart that say the same: counter and nonce of the pulse.
    pub nonce: u8,
}

impl SlotImage {
    /// The life that it is about.
    pub fn of_life(self) -> Life {
        Life { slot: self.slot, life: self.life }
    }

    /// The pulse that this stands for.
    pub fn pulse(self) -> Pulse {
        let incarnation = Incarnation(u64::from(self.life));
        let nonce = u64::from(self.nonce);
        let mut pulse = Pulse::free(SlotNo(u32::from(self.slot)), incarnation, nonce);
        pulse.timing = Timing::FAST;
        pulse.run = self.of_life().run();
        pulse.has_parent = self.has_parent;
        pulse.state = match self.says {
            Says::Free => PulseState::Free,
            Says::Live => PulseState::Live,
            Says::Claimed(by) => {
                pulse.claimer = Some(by.holder());
                PulseState::Claimed
            }
            Says::Dead => PulseState::Dead,
        };
        pulse
    }

    /// What remains of a pulse; `nonce` of the pulse must be small.
    pub fn of(pulse: &Pulse) -> SlotImage {
        let says = match (pulse.state, pulse.claimer) {
            (PulseState::Free, _) => Says::Free,
            (PulseState::Joining | PulseState::Live, _) => Says::Live,
            (PulseState::Claimed, Some(by)) => Says::Claimed(Life::of(by)),
            (PulseState::Claimed, None) => unreachable!("no claim without claimer"),
            (PulseState::Dead, _) => Says::Dead,
        };
        SlotImage {
            slot: pulse.slot.0 as u8,
            life: pulse.incarnation.0 as u8,
            says,
            has_parent: pulse.has_parent,
            nonce: pulse.nonce as u8,
        }
    }
}

/// The image of a lock. Its nonce is not kept: two images of one generation differ in who made
/// them, or one of them was never written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct LockImage {
    /// Who has it exclusively.
    pub holder: Option<Life>,
    /// Rises at each change.
    pub generation: u8,
}

/// A version of the one birth that the models know.
pub fn version(count: u8) -> Version {
    Version { birth: 1, count: u64::from(count) }
}

impl LockImage {
    /// The lock that this stands for.
    pub fn lock(self) -> Lock {
        Lock {
            mode: if self.holder.is_some() { LockMode::Exclusive } else { LockMode::Free },
            object: LockObject::Descriptor,
            holder: self.holder.map(Life::holder),
            generation: version(self.generation),
            nonce: 0,
            stamp: Stamp::default(),
            giver: None,
            payload: 0,
        }
    }

    /// What remains of a lock.
    pub fn of(lock: &Lock) -> LockImage {
        let generation = lock.generation.count as u8;
        LockImage { holder: lock.holder.map(Life::of), generation }
    }
}

/// The block of a lock, for images in journals.
pub fn lock_block(lock: usize) -> BlockNo {
    BlockNo(100 + 2 * lock as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_of_an_image_makes_it_again() {
        let by = Life { slot: 2, life: 3 };
        for says in [Says::Free, Says::Live, Says::Claimed(by), Says::Dead] {
            let image = SlotImage { slot: 1, life: 4, says, has_parent: true, nonce: 9 };
            assert_eq!(SlotImage::of(&image.pulse()), image);
        }
        for holder in [None, Some(by)] {
            let image = LockImage { holder, generation: 7 };
            assert_eq!(LockImage::of(&image.lock()), image);
        }
    }
}
