//! Slots and locks under other names: states that differ in names only are one.
//!
//! Every rule treats all slots alike and all locks alike, and so does every action here: none looks
//! at the number of a slot but to find it again. So for each renaming of the slots and each of the
//! locks, a state and its renamed one have the same future under the new names, and all hosts begin
//! alike. Of all of them one is kept, the smallest. A slot beyond those of the hosts
//! (`Hosts::slots`) is another thing and keeps its name.
//!
//! A state that is not recognised as another under new names costs time only: whatever is kept has
//! the same future as what it stands for. Nonces are numbered in an order that names decide, so
//! there are such states.
//!
//! A goal names a slot and a lock: `Hosts::renamed` says what it is called after a renaming.

use super::state::{Author, ClaimTask, Flight, LOCKS, LockTask, Op, Program, SLOTS, State, Swap};
use crate::image::{Life, LockImage, Says, SlotImage};

/// New numbers of slots and locks, by their old ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Turn {
    /// Of slots.
    pub slots: [u8; SLOTS],
    /// Of locks.
    pub locks: [u8; LOCKS],
}

/// Every renaming of the first `slots` slots, three at most, and of the first `locks` locks; first
/// the one that renames nothing.
pub fn turns(slots: u8, locks: u8) -> Vec<Turn> {
    const ORDERS: [[u8; SLOTS]; 6] =
        [[0, 1, 2, 3], [1, 0, 2, 3], [0, 2, 1, 3], [1, 2, 0, 3], [2, 0, 1, 3], [2, 1, 0, 3]];
    let keeps =
        |order: &[u8], from: u8| (from..).zip(&order[from as usize..]).all(|(n, o)| n == *o);
    let of_slots = ORDERS.into_iter().filter(|order| keeps(order, slots));
    let of_locks = [[0, 1], [1, 0]].into_iter().filter(|order: &[u8; LOCKS]| keeps(order, locks));
    of_locks.flat_map(|locks| of_slots.clone().map(move |slots| Turn { slots, locks })).collect()
}

impl Turn {
    fn slot(&self, slot: u8) -> u8 {
        self.slots[slot as usize]
    }

    fn lock(&self, lock: u8) -> u8 {
        self.locks[lock as usize]
    }

    fn life(&self, of: Life) -> Life {
        Life { slot: self.slot(of.slot), ..of }
    }

    fn by_lock<T: Copy>(&self, old: [T; LOCKS]) -> [T; LOCKS] {
        let mut new = old;
        (0..LOCKS).for_each(|lock| new[self.locks[lock] as usize] = old[lock]);
        new
    }

    fn by_slot<T: Copy>(&self, old: [T; SLOTS]) -> [T; SLOTS] {
        let mut new = old;
        (0..SLOTS).for_each(|slot| new[self.slots[slot] as usize] = old[slot]);
        new
    }

    fn image(&self, image: SlotImage) -> SlotImage {
        let says = match image.says {
            Says::Claimed(by) => Says::Claimed(self.life(by)),
            says @ (Says::Free | Says::Live | Says::Dead) => says,
        };
        SlotImage { slot: self.slot(image.slot), says, ..image }
    }

    fn lock_image(&self, image: LockImage) -> LockImage {
        LockImage { holder: image.holder.map(|holder| self.life(holder)), ..image }
    }

    fn swap(&self, swap: Swap) -> Swap {
        match swap {
            Swap::Slot { expect, new } => {
                Swap::Slot { expect: self.image(expect), new: self.image(new) }
            }
            Swap::Lock { lock, expect, new } => {
                let (expect, new) = (self.lock_image(expect), self.lock_image(new));
                Swap::Lock { lock: self.lock(lock), expect, new }
            }
        }
    }

    fn op(&self, op: Op) -> Op {
        Op { swap: self.swap(op.swap), ..op }
    }

    fn flight(&self, flight: Flight) -> Flight {
        match flight {
            Flight::Swap { by, swap } => {
                let by = match by {
                    Author::Program(by) => Author::Program(self.life(by)),
                    Author::Parent(by) => Author::Parent(self.life(by)),
                };
                Flight::Swap { by, swap: self.swap(swap) }
            }
            Flight::Place { by, lock, generation, version } => {
                Flight::Place { by: self.life(by), lock: self.lock(lock), generation, version }
            }
            Flight::Replay { by, dead, lock, generation, version } => {
                let (by, dead, lock) = (self.life(by), self.life(dead), self.lock(lock));
                Flight::Replay { by, dead, lock, generation, version }
            }
        }
    }

    fn lock_task(&self, task: LockTask) -> LockTask {
        match task {
            LockTask::Idle => LockTask::Idle,
            LockTask::Taking { lock, op } => {
                LockTask::Taking { lock: self.lock(lock), op: self.op(op) }
            }
            LockTask::Releasing { lock, to, step, op } => LockTask::Releasing {
                lock: self.lock(lock),
                to: to.map(|to| self.life(to)),
                step,
                op: op.map(|op| self.op(op)),
            },
        }
    }

    fn claim_task(&self, task: ClaimTask) -> ClaimTask {
        match task {
            ClaimTask::Idle => ClaimTask::Idle,
            ClaimTask::Fencing { seen } => ClaimTask::Fencing { seen: self.image(seen) },
            ClaimTask::Claiming { claim, inherited, op } => {
                ClaimTask::Claiming { claim: self.image(claim), inherited, op: self.op(op) }
            }
            ClaimTask::Working { claim, inherited, step, left } => {
                let (claim, left) = (self.image(claim), self.by_lock(left));
                ClaimTask::Working { claim, inherited, step, left }
            }
            ClaimTask::Ending { claim, op } => {
                ClaimTask::Ending { claim: self.image(claim), op: self.op(op) }
            }
        }
    }

    fn program(&self, program: &Program) -> Program {
        Program {
            me: self.life(program.me),
            is_running: program.is_running,
            is_admitted: program.is_admitted,
            has_parent: program.has_parent,
            confirmed: self.image(program.confirmed),
            doubt: program.doubt.map(|doubt| self.image(doubt)),
            holds: self.by_lock(program.holds),
            lock_task: self.lock_task(program.lock_task),
            claim_task: self.claim_task(program.claim_task),
            kept: program.kept.map(|kept| self.life(kept)),
            leaving: program.leaving.map(|op| self.op(op)),
        }
    }

    /// The same under the new names.
    pub fn state(&self, state: &State) -> State {
        State {
            slots: self.by_slot(state.slots.map(|image| self.image(image))),
            locks: self.by_lock(state.locks.map(|image| self.lock_image(image))),
            bodies: self.by_lock(state.bodies),
            journals: self.by_slot(state.journals.map(|mut journal| {
                journal.images = self.by_lock(journal.images);
                journal
            })),
            programs: state.programs.iter().map(|program| self.program(program)).collect(),
            flights: state.flights.iter().map(|flight| self.flight(*flight)).collect(),
            faults: state.faults,
            broken: state.broken,
        }
    }
}

/// The smallest of all that differ from a state in names only, and the renaming that leads to it.
/// Only those are made in which slots and locks lie in the order of their looks: the same states
/// for all that differ in names.
pub fn smallest(state: State, turns: &[Turn]) -> (State, u8) {
    if turns.len() == 1 {
        return (state, 0);
    }
    let slots: [u64; SLOTS] = std::array::from_fn(|slot| look_of_slot(&state, slot as u8));
    let locks: [u64; LOCKS] = std::array::from_fn(|lock| look_of_lock(&state, lock));
    let looks = |turn: &Turn| (turn.by_slot(slots), turn.by_lock(locks));
    let first = turns.iter().map(looks).min();
    let mut candidates = (0..turns.len()).filter(|turn| Some(looks(&turns[*turn])) == first);
    let renamed = |turn: usize| turns[turn].state(&state).in_order();
    let one = candidates.next().expect("one is the first");
    let Some(two) = candidates.next() else {
        return if one == 0 { (state, 0) } else { (renamed(one), one as u8) };
    };
    let all = [one, two].into_iter().chain(candidates);
    let least = all.map(|turn| (renamed(turn), turn as u8)).min();
    least.expect("there are two")
}

/// Something about a slot that no renaming changes.
fn look_of_slot(state: &State, slot: u8) -> u64 {
    let mut look = 0u64;
    let mut add = |what: u64| look = look.wrapping_mul(31).wrapping_add(what);
    let image = state.slots[slot as usize];
    add(match image.says {
        Says::Free => 0,
        Says::Live => 1,
        Says::Claimed(by) => 2 + u64::from(by.life),
        Says::Dead => 30,
    });
    add(u64::from(image.life));
    let journal = state.journals[slot as usize];
    add(journal.images.iter().flatten().map(|(_, version)| u64::from(*version) + 1).sum());
    for program in state.programs.iter().filter(|program| program.me.slot == slot) {
        add(u64::from(program.me.life) * 2 + u64::from(program.is_running));
        let stages = program.holds.iter().flatten().map(|held| 1 << (4 * held.stage as u64));
        add(stages.sum());
        add(match program.claim_task {
            ClaimTask::Idle => 0,
            ClaimTask::Fencing { .. } => 1,
            ClaimTask::Claiming { .. } => 2,
            ClaimTask::Working { step, .. } => 3 + u64::from(step),
            ClaimTask::Ending { .. } => 20,
        });
    }
    let own = |flight: &&Flight| flight.program().is_some_and(|by| by.slot == slot);
    add(state.flights.iter().filter(own).count() as u64);
    look
}

/// Something about a lock that no renaming changes.
fn look_of_lock(state: &State, lock: usize) -> u64 {
    let (image, body) = (state.locks[lock], state.bodies[lock]);
    let numbers = [image.generation, body.now, body.durable, body.promised];
    let numbers = numbers.iter().fold(0, |look, number| look * 64 + u64::from(*number));
    numbers * 2 + u64::from(image.holder.is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_renaming_is_there_once() {
        assert_eq!(turns(3, 2).len(), 12);
        assert_eq!(
            turns(2, 1),
            [[0, 1, 2, 3], [1, 0, 2, 3]].map(|slots| Turn { slots, locks: [0, 1] })
        );
    }
}
