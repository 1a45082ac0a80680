//! Numbers that only grow, kept small: what makes the model finite without a bound on its runs.
//!
//! Lives, generations, versions and nonces rise for ever. No decision looks at more of them than
//! which is larger, whether two are equal, and what comes right after the largest. So a state is
//! renumbered after each step: the numbers of each kind that something still refers to keep their
//! order, and a gap between two of them is kept as long as it is one, and becomes two if it is
//! larger. Nonces are only ever compared for being equal; they are numbered as they are met.
//!
//! Writes that cannot land any more are settled here too: a compare-and-write whose compared image
//! is gone can only miscompare, since images never repeat.

use super::state::{Author, ClaimTask, Flight, LOCKS, LockTask, Op, Program, SLOTS, State, Swap};
use crate::image::{Life, LockImage, Says, SlotImage};

/// One of the numbers that grow.
enum Number<'a> {
    Life { slot: u8, life: &'a mut u8 },
    Generation { lock: usize, generation: &'a mut u8 },
    Version { lock: usize, version: &'a mut u8 },
    Nonce { slot: u8, nonce: &'a mut u8 },
}

impl State {
    /// The one state that stands for all that differ in nothing that a decision can see.
    pub fn normal(mut self) -> State {
        self.settle_doomed();
        self.forget_the_dead();
        self.in_order()
    }

    /// Everything in order, and renumbered.
    pub fn in_order(mut self) -> State {
        self.flights.sort_unstable();
        self.programs.sort_unstable();
        self.renumber();
        self
    }

    fn settle_doomed(&mut self) {
        let (slots, locks) = (self.slots, self.locks);
        let is_doomed = |swap: &Swap| match swap {
            Swap::Slot { expect, .. } => slots[expect.slot as usize] != *expect,
            Swap::Lock { lock, expect, .. } => locks[*lock as usize] != *expect,
        };
        self.flights.retain(|f| !matches!(f, Flight::Swap { swap, .. } if is_doomed(swap)));
        for op in self.programs.iter_mut().flat_map(ops) {
            if op.landed.is_none() && is_doomed(&op.swap) {
                op.landed = Some(false);
            }
        }
    }

    /// Of a slot's dead programs the parent of the last one only is remembered: others may as well
    /// have died with their programs.
    fn forget_the_dead(&mut self) {
        for slot in 0..SLOTS as u8 {
            let dead = |p: &Program| p.me.slot == slot && !p.is_running && p.has_parent;
            let last = self.programs.iter().filter(|p| dead(p)).map(|p| p.me).max();
            for program in self.programs.iter_mut().filter(|p| dead(p)) {
                program.has_parent = Some(program.me) == last;
            }
        }
        let flying: Vec<Life> = self.flights.iter().filter_map(|f| f.program()).collect();
        self.programs.retain(|p| p.is_running || p.has_parent || flying.contains(&p.me));
    }

    fn renumber(&mut self) {
        let mut lives = [0u64; SLOTS];
        let mut generations = [0u64; LOCKS];
        let mut versions = [0u64; LOCKS];
        self.each_number(&mut |number| match number {
            Number::Life { slot, life } => lives[slot as usize] |= 1 << *life,
            Number::Generation { lock, generation } => generations[lock] |= 1 << *generation,
            Number::Version { lock, version } => versions[lock] |= 1 << *version,
            Number::Nonce { .. } => {}
        });
        let lives = lives.map(ranks);
        let generations = generations.map(ranks);
        let versions = versions.map(ranks);
        let mut nonces: [Vec<u8>; SLOTS] = Default::default();
        self.each_number(&mut |number| match number {
            Number::Life { slot, life } => *life = lives[slot as usize][*life as usize],
            Number::Generation { lock, generation } => {
                *generation = generations[lock][*generation as usize];
            }
            Number::Version { lock, version } => *version = versions[lock][*version as usize],
            Number::Nonce { slot, nonce } => {
                let met = &mut nonces[slot as usize];
                let place = met.iter().position(|n| n == nonce).unwrap_or_else(|| {
                    met.push(*nonce);
                    met.len() - 1
                });
                *nonce = place as u8;
            }
        });
    }

    /// Calls `f` with every image of a slot that something remembers.
    pub fn each_slot_image(&mut self, mut f: impl FnMut(&mut SlotImage)) {
        let f = &mut f;
        self.slots.iter_mut().for_each(&mut *f);
        for flight in &mut self.flights {
            if let Flight::Swap { swap, .. } = flight {
                slot_images(swap, f);
            }
        }
        for program in &mut self.programs {
            f(&mut program.confirmed);
            program.doubt.iter_mut().for_each(&mut *f);
            match &mut program.claim_task {
                ClaimTask::Idle => {}
                ClaimTask::Fencing { seen } => f(seen),
                ClaimTask::Claiming { claim, .. }
                | ClaimTask::Working { claim, .. }
                | ClaimTask::Ending { claim, .. } => f(claim),
            }
            ops(program).for_each(|op| slot_images(&mut op.swap, f));
        }
    }

    fn each_number(&mut self, f: &mut impl FnMut(Number)) {
        self.each_slot_image(|image| {
            f(Number::Life { slot: image.slot, life: &mut image.life });
            f(Number::Nonce { slot: image.slot, nonce: &mut image.nonce });
            if let Says::Claimed(by) = &mut image.says {
                life(by, f);
            }
        });
        for (lock, image) in self.locks.iter_mut().enumerate() {
            lock_image(lock, image, f);
        }
        for (lock, body) in self.bodies.iter_mut().enumerate() {
            for version in [&mut body.now, &mut body.durable, &mut body.promised] {
                f(Number::Version { lock, version });
            }
        }
        for (slot, journal) in self.journals.iter_mut().enumerate() {
            f(Number::Life { slot: slot as u8, life: &mut journal.life });
            for (lock, image) in journal.images.iter_mut().enumerate() {
                if let Some((generation, version)) = image {
                    f(Number::Generation { lock, generation });
                    f(Number::Version { lock, version });
                }
            }
        }
        self.flights.iter_mut().for_each(|flight| flight_numbers(flight, f));
        self.programs.iter_mut().for_each(|program| program_numbers(program, f));
    }
}

fn flight_numbers(flight: &mut Flight, f: &mut impl FnMut(Number)) {
    match flight {
        Flight::Swap { by: Author::Program(by) | Author::Parent(by), swap } => {
            life(by, f);
            lock_images(swap, f);
        }
        Flight::Place { by, lock, generation, version } => {
            life(by, f);
            f(Number::Generation { lock: *lock as usize, generation });
            f(Number::Version { lock: *lock as usize, version });
        }
        Flight::Replay { by, dead, lock, generation, version } => {
            life(by, f);
            life(dead, f);
            f(Number::Generation { lock: *lock as usize, generation });
            f(Number::Version { lock: *lock as usize, version });
        }
    }
}

fn program_numbers(program: &mut Program, f: &mut impl FnMut(Number)) {
    life(&mut program.me, f);
    if let Some(kept) = &mut program.kept {
        life(kept, f);
    }
    for (lock, held) in program.holds.iter_mut().enumerate() {
        if let Some(held) = held {
            f(Number::Generation { lock, generation: &mut held.generation });
            f(Number::Version { lock, version: &mut held.version });
        }
    }
    if let LockTask::Releasing { to: Some(to), .. } = &mut program.lock_task {
        life(to, f);
    }
    ops(program).for_each(|op| lock_images(&mut op.swap, f));
}

fn ops(program: &mut Program) -> impl Iterator<Item = &mut Op> {
    let of_lock = match &mut program.lock_task {
        LockTask::Idle => None,
        LockTask::Taking { op, .. } => Some(op),
        LockTask::Releasing { op, .. } => op.as_mut(),
    };
    let of_claim = match &mut program.claim_task {
        ClaimTask::Claiming { op, .. } | ClaimTask::Ending { op, .. } => Some(op),
        ClaimTask::Idle | ClaimTask::Fencing { .. } | ClaimTask::Working { .. } => None,
    };
    of_lock.into_iter().chain(of_claim).chain(program.leaving.as_mut())
}

fn life(of: &mut Life, f: &mut impl FnMut(Number)) {
    f(Number::Life { slot: of.slot, life: &mut of.life });
}

fn lock_image(lock: usize, image: &mut LockImage, f: &mut impl FnMut(Number)) {
    f(Number::Generation { lock, generation: &mut image.generation });
    image.holder.iter_mut().for_each(|holder| life(holder, f));
}

fn lock_images(swap: &mut Swap, f: &mut impl FnMut(Number)) {
    if let Swap::Lock { lock, expect, new } = swap {
        lock_image(*lock as usize, expect, f);
        lock_image(*lock as usize, new, f);
    }
}

fn slot_images(swap: &mut Swap, f: &mut impl FnMut(&mut SlotImage)) {
    if let Swap::Slot { expect, new } = swap {
        f(expect);
        f(new);
    }
}

/// New numbers for those in `used`: the same order, gaps of one kept, larger ones cut to two.
fn ranks(used: u64) -> [u8; 64] {
    let mut ranks = [0; 64];
    let (mut rank, mut last) = (0, None::<u8>);
    for number in (0..64u8).filter(|n| used & (1 << n) != 0) {
        rank += last.map_or(0, |last| (number - last).min(2));
        ranks[number as usize] = rank;
        last = Some(number);
    }
    ranks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_keep_their_order_and_their_neighbours() {
        let used = [3, 4, 9, 10, 12].iter().fold(0, |used, n| used | 1 << n);
        let ranks = ranks(used);
        assert_eq!([3, 4, 9, 10, 12].map(|n: usize| ranks[n]), [0, 1, 3, 4, 6]);
    }
}
