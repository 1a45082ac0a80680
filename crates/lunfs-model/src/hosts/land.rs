//! What happens when a write reaches its block, and what must never happen then.

use lunfs_core::claim::{STEPS, Step};

use super::state::{
    Author, Broken, ClaimTask, Flight, Journal, LOCKS, LockTask, Stage, State, Swap,
};
use crate::image::{Life, LockImage, Says, SlotImage};

impl State {
    /// A write under way reaches its block.
    pub fn land(&mut self, flight: Flight) {
        self.flights.retain(|f| *f != flight);
        match flight {
            Flight::Swap { by, swap } => {
                let was_written = self.compare_and_write(by, swap);
                if let Author::Program(by) = by {
                    self.landed(by, swap, was_written);
                }
            }
            Flight::Place { by, lock, generation, version } => {
                self.must_live(by);
                if self.locks[lock as usize] != (LockImage { holder: Some(by), generation }) {
                    self.note(Broken::LateWrite);
                }
                self.bodies[lock as usize].now = version;
                self.placed(by, lock as usize);
            }
            Flight::Replay { by, dead, lock, generation, version } => {
                self.must_live(by);
                if self.locks[lock as usize] != (LockImage { holder: Some(dead), generation }) {
                    self.note(Broken::LateReplay);
                }
                self.bodies[lock as usize].now = version;
            }
        }
    }

    /// A life is over when its slot has a later one.
    fn must_live(&mut self, by: Life) {
        if self.slots[by.slot as usize].life > by.life {
            self.note(Broken::PastLife);
        }
    }

    fn compare_and_write(&mut self, by: Author, swap: Swap) -> bool {
        let is_there = match swap {
            Swap::Slot { expect, .. } => self.slots[expect.slot as usize] == expect,
            Swap::Lock { lock, expect, .. } => self.locks[lock as usize] == expect,
        };
        if !is_there {
            return false;
        }
        if let Author::Program(by) = by {
            self.must_live(by);
        }
        match swap {
            Swap::Slot { expect, new } => self.change_slot(expect, new),
            Swap::Lock { lock, expect, new } => {
                if new.generation <= expect.generation {
                    self.note(Broken::SameGeneration);
                }
                self.locks[lock as usize] = new;
            }
        }
        true
    }

    fn change_slot(&mut self, expect: SlotImage, new: SlotImage) {
        let is_freed = new.says == Says::Free && expect.says != Says::Free;
        if new.life < expect.life || (is_freed && new.life == expect.life) {
            self.note(Broken::SameLife);
        }
        self.slots[new.slot as usize] = new;
        if is_freed {
            // The next life begins an empty journal, and nobody replays that of a free slot.
            self.journals[new.slot as usize] = Journal { life: new.life, images: [None; LOCKS] };
        }
    }

    /// Tells a program that waits for it that its compare-and-write has reached the block.
    fn landed(&mut self, by: Life, swap: Swap, was_written: bool) {
        let Some(at) = self.at(by) else { return };
        let program = &mut self.programs[at];
        let of_lock = match &mut program.lock_task {
            LockTask::Taking { op, .. } | LockTask::Releasing { op: Some(op), .. } => Some(op),
            LockTask::Idle | LockTask::Releasing { op: None, .. } => None,
        };
        let of_claim = match &mut program.claim_task {
            ClaimTask::Claiming { op, .. } | ClaimTask::Ending { op, .. } => Some(op),
            ClaimTask::Idle | ClaimTask::Fencing { .. } | ClaimTask::Working { .. } => None,
        };
        for op in of_lock.into_iter().chain(of_claim).chain(program.leaving.as_mut()) {
            if op.swap == swap && op.landed.is_none() {
                op.landed = Some(was_written);
            }
        }
    }

    fn placed(&mut self, by: Life, lock: usize) {
        let Some(at) = self.at(by) else { return };
        if let Some(held) = &mut self.programs[at].holds[lock]
            && held.stage == Stage::Placing
        {
            held.stage = Stage::Placed;
        }
    }

    /// What is in place is durable at once.
    pub fn settle_placed(&mut self) {
        let holds = self.programs.iter_mut().flat_map(|program| program.holds.iter_mut().flatten());
        holds.filter(|held| held.stage == Stage::Placed).for_each(|held| held.stage = Stage::Clean);
    }

    /// Everything that is in place is durable.
    pub fn flush(&mut self) {
        self.bodies.iter_mut().for_each(|body| body.durable = body.now);
    }

    /// Looks at what must hold in every state.
    pub fn look_for_breaks(&mut self) {
        self.look_at_beliefs();
        self.look_at_claims();
    }

    /// Whoever may write and believes to hold a lock holds it.
    fn look_at_beliefs(&mut self) {
        for at in 0..self.programs.len() {
            let program = self.programs[at];
            if !program.is_running || !program.is_admitted || program.leaving.is_some() {
                continue;
            }
            for (lock, held) in program.holds.iter().enumerate() {
                let gives_it = matches!(
                    program.lock_task,
                    LockTask::Releasing { lock: given, op: Some(_), .. } if given as usize == lock
                );
                let Some(held) = held.filter(|_| !gives_it) else { continue };
                let ours = LockImage { holder: Some(program.me), generation: held.generation };
                if self.locks[lock] != ours {
                    self.note(Broken::FalseBelief);
                }
            }
        }
    }

    /// No two replay one life: neither do both work on it, nor does a write of one fly while
    /// another works.
    fn look_at_claims(&mut self) {
        let mut replaying: Vec<(Life, Life)> = Vec::new();
        for program in self.programs.iter().filter(|p| p.is_running && p.is_admitted) {
            if let ClaimTask::Working { claim, step, .. } = program.claim_task
                && STEPS[usize::from(step)] != Step::Fence
            {
                replaying.push((claim.of_life(), program.me));
            }
        }
        let working = replaying.clone();
        for flight in &self.flights {
            if let Flight::Replay { by, dead, .. } = flight {
                replaying.push((*dead, *by));
            }
        }
        let is_double = working
            .iter()
            .any(|(dead, by)| replaying.iter().any(|(other, who)| other == dead && who != by));
        if is_double {
            self.note(Broken::DoubleClaim);
        }
    }
}
