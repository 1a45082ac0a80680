//! Steps that nobody else can tell apart, taken as one.
//!
//! `Grain::Every` takes each step of a task by itself. `Grain::Merged` leaves out states, never
//! orders that matter, so that larger volumes can be explored to the end:
//!
//! 1. **A write is sent when it lands, or when its author ends.** To send a write changes the
//!    memory of its author and what is under way, and nobody looks at either while the author
//!    runs: its mark is held anyway. Of two orders that differ only in when it was sent, the
//!    later one stands for both if it could be sent then as well. What decides about a
//!    compare-and-write is the image that it compares with, which is unchanged if it lands at
//!    all, and evidence that never goes away: a life that is over, a mark that is free while its
//!    slot does not change. A block under a held lock is written by the memory of the holder
//!    alone. A program that ends (`Die`, `FailWrite`) may have sent before whatever it could
//!    send now (`Sent`): those land at any later time, or never. Not merged: pulses, which their
//!    author looks at once more; writes of a replay, since what decides about them may change
//!    until they land; and the handing back of a claim.
//!    One evidence does go away: a lock is given only to who lives. If its giver then takes that
//!    host over and dies as well, its write may still land. That takes two faults; while two are
//!    left, a lock may also be given without waiting (`SendRelease`). `compare` has found it.
//! 2. **An answer comes with the landing.** Between the two its author does nothing in that
//!    task, and all that it then does is to remember. While answers can go wrong
//!    (`Hosts::answers`, and a fault is left) nothing is merged at all, but names are (`turn`).
//! 3. **A change is made when it is committed or given up.** It is in memory only until then.
//!    A release begins with a block in place, or has just changed it and works off all of
//!    `lock::RELEASE` at once: whatever may happen in between may happen after a commit, and
//!    after a write in place.
//! 4. **Suspicion of a host that runs is its death** with a mark: both end it, both are a
//!    fault, and the claim follows once the mark is free. With a reservation it is a step of its
//!    own, and the victim is forgotten at once: the device takes nothing from it any more, so
//!    that nobody can see what it does.
//! 5. **A fence that has nothing to do is passed at once**, and so is a flush before the last
//!    step: without power losses nothing tells what is durable. So nothing is merged with power
//!    losses.
//!
//! That this leaves out nothing else is not only argued: `compare` explores small volumes in
//! both grains. After the single steps, in every state in which no running program waits for
//! anything, the merged ones have been as well, and nowhere else.

use lunfs_core::claim::{STEPS, Step, Verdict};

use super::answer::How;
use super::state::{Author, ClaimTask, Flight, LOCKS, LockTask, Op, Program, Stage, State};
use super::{Action, Fence, Hosts, Task};
use crate::image::Life;

/// A plain answer settles an attempt. One more is made by who leaves and finds a pulse of its own.
const ATTEMPTS_MAX: usize = 4;

/// Which steps are taken by themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Grain {
    /// All.
    Every,
    /// Those that others can tell apart.
    Merged,
}

/// What a program sent before it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Sent {
    /// Blocks to their places.
    pub places: [bool; LOCKS],
    /// A compare-and-write of a lock.
    pub lock: Option<OfLock>,
    /// One of the slot of a dead host.
    pub claim: Option<OfClaim>,
    /// One that frees its own slot.
    pub leaves: bool,
}

/// A compare-and-write of a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OfLock {
    /// It takes it.
    Take(u8),
    /// It gives it up, to another or nobody.
    Give(u8, Option<Life>),
}

/// A compare-and-write of the slot of a dead host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OfClaim {
    /// It claims it.
    Claim(u8),
    /// It frees it.
    End,
}

impl Hosts {
    /// Are steps merged in this state?
    pub fn merges(&self, state: &State) -> bool {
        self.grain == Grain::Merged && !self.power && !(self.answers && state.faults > 0)
    }

    /// All that a program may have sent when it ends.
    pub fn may_have_sent(&self, state: &State, at: usize) -> Vec<Sent> {
        let mut all = vec![Sent::default()];
        let program = &state.programs[at];
        if !self.merges(state) || !program.is_admitted || program.leaving.is_some() {
            return all;
        }
        let mut widen = |choices: Vec<Box<dyn Fn(Sent) -> Sent>>| {
            let wider = all.iter().flat_map(|sent| choices.iter().map(|choice| choice(*sent)));
            let wider: Vec<Sent> = wider.collect();
            all.extend(wider);
        };
        let may_leave = self.leaves || program.me.slot >= self.hosts;
        if may_leave && program.is_leavable() && program.kept.is_none() {
            widen(vec![Box::new(|sent| Sent { leaves: true, ..sent })]);
            // Who leaves sends nothing else: the others are added to those who do not.
        }
        let mut choices: Vec<Box<dyn Fn(Sent) -> Sent>> = Vec::new();
        if program.lock_task == LockTask::Idle {
            for of_lock in self.of_locks(state, program) {
                choices.push(Box::new(move |sent| Sent { lock: Some(of_lock), ..sent }));
            }
        }
        widen(choices);
        for lock in self.locks() {
            if program.holds[lock as usize].is_some_and(|held| held.stage == Stage::Committed) {
                widen(vec![Box::new(move |mut sent| {
                    sent.places[lock as usize] = true;
                    sent
                })]);
            }
        }
        let of_claims = self.of_claims(state, at).into_iter();
        let choices = of_claims.map(|of_claim| {
            let choice = move |sent| Sent { claim: Some(of_claim), ..sent };
            Box::new(choice) as Box<dyn Fn(Sent) -> Sent>
        });
        widen(choices.collect());
        all.retain(|sent| !sent.leaves || *sent == Sent { leaves: true, ..Sent::default() });
        all
    }

    fn of_locks(&self, state: &State, program: &Program) -> Vec<OfLock> {
        let mut all = Vec::new();
        for lock in self.locks() {
            match program.holds[lock as usize] {
                None => all.push(OfLock::Take(lock)),
                Some(held) if held.stage == Stage::Clean => {
                    all.extend(state.takers(program.me).map(|to| OfLock::Give(lock, to)));
                }
                Some(_) => {}
            }
        }
        all
    }

    fn of_claims(&self, state: &State, at: usize) -> Vec<OfClaim> {
        let program = &state.programs[at];
        match program.claim_task {
            ClaimTask::Idle => {
                let others = (0..self.slots).filter(|slot| *slot != program.me.slot);
                let may_claim = |slot: &u8| match state.verdict(at, *slot, self) {
                    Verdict::Leave => false,
                    Verdict::Claim => true,
                    Verdict::FenceThenClaim => self.is_fenced(state, *slot),
                };
                others.filter(may_claim).map(OfClaim::Claim).collect()
            }
            ClaimTask::Working { .. } if state.has_replayed(at) => vec![OfClaim::End],
            ClaimTask::Working { .. }
            | ClaimTask::Fencing { .. }
            | ClaimTask::Claiming { .. }
            | ClaimTask::Ending { .. } => Vec::new(),
        }
    }

    /// Could the fence of what lives in a slot be confirmed now without ending anything?
    pub fn is_fenced(&self, state: &State, slot: u8) -> bool {
        match self.fence {
            Fence::Mark => state.mark_is_free(slot),
            Fence::Reservation => state.at(state.slots[slot as usize].of_life()).is_none(),
        }
    }

    /// A program sends what is named, and ends.
    pub fn send_and_stop(&self, state: &mut State, me: Life, sent: Sent) -> Option<()> {
        self.send_last(state, me, sent)?;
        state.stop(state.at(me)?);
        Some(())
    }

    /// A program sends what is named; it has no time to wait for any of it.
    pub fn send_last(&self, state: &mut State, me: Life, sent: Sent) -> Option<()> {
        let at = state.at(me)?;
        match sent.lock {
            None => {}
            Some(OfLock::Take(lock)) => {
                state.take(at, lock as usize)?;
                if state.programs[at].lock_task == LockTask::Idle {
                    return None;
                }
            }
            Some(OfLock::Give(lock, to)) => state.release(at, lock as usize, to)?,
        }
        for lock in (0..LOCKS).filter(|lock| sent.places[*lock]) {
            state.place(at, lock)?;
        }
        match sent.claim {
            None => {}
            Some(OfClaim::Claim(slot)) => self.send_claim(state, me, slot)?,
            Some(OfClaim::End) => self.work(state, me)?,
        }
        if sent.leaves {
            let at = state.at(me)?;
            state.leave(at)?;
        }
        Some(())
    }

    fn send_claim(&self, state: &mut State, me: Life, slot: u8) -> Option<()> {
        let seen = state.slots[slot as usize];
        if state.verdict(state.at(me)?, slot, self) == Verdict::FenceThenClaim
            && !state.fence(seen.of_life(), self)
        {
            return None;
        }
        state.claim(state.at(me)?, seen);
        Some(())
    }

    /// Works on a claim until its end is sent, or a step has to wait.
    pub fn work(&self, state: &mut State, me: Life) -> Option<()> {
        state.step(state.at(me)?, self)?;
        while let Some(at) = state.at(me)
            && let ClaimTask::Working { step, .. } = state.programs[at].claim_task
            && STEPS[usize::from(step)] == Step::Flush
        {
            state.step(at, self)?;
        }
        Some(())
    }

    /// An action and all that nobody can tell apart from it. `None`: nothing happens.
    pub fn apply_merged(&self, state: &mut State, action: &Action) -> Option<()> {
        match *action {
            Action::Take(me, lock) => {
                state.take(state.at(me)?, lock as usize)?;
                self.end_swap(state, me, Task::Lock);
            }
            Action::Commit(me, lock) => {
                let at = state.at(me)?;
                // It may have changed before it could be merged.
                let _has_changed = state.change(at, lock as usize);
                state.commit(at, lock as usize)?;
            }
            Action::Place(me, lock) => {
                state.place(state.at(me)?, lock as usize)?;
                state.land_place(me, lock as usize);
            }
            Action::Release(me, lock, to) => {
                state.release(state.at(me)?, lock as usize, to)?;
                self.end_release(state, me);
            }
            Action::ChangeAndRelease(me, lock, to) => {
                state.change(state.at(me)?, lock as usize)?;
                state.release(state.at(me)?, lock as usize, to)?;
                self.end_release(state, me);
            }
            Action::Claim(me, slot) => {
                self.send_claim(state, me, slot)?;
                self.end_swap(state, me, Task::Claim);
            }
            Action::Suspect { slot, is_alive: true, .. } => {
                state.fence(state.slots[slot as usize].of_life(), self);
            }
            Action::Suspect { by, slot, is_alive: false } => {
                self.send_claim(state, by, slot)?;
                self.end_swap(state, by, Task::Claim);
            }
            Action::Fenced(me) => {
                state.fenced_before(state.at(me)?, self)?;
                self.end_swap(state, me, Task::Claim);
            }
            Action::Step(me) => {
                self.work(state, me)?;
                self.end_swap(state, me, Task::Claim);
            }
            Action::Leave(me) => {
                state.leave(state.at(me)?)?;
                self.end_swap(state, me, Task::Leave);
            }
            Action::FailWrite(me, sent) => {
                self.send_last(state, me, sent)?;
                state.fail_write(state.at(me)?)?;
                if sent != Sent::default() && state.at(me).is_some() {
                    // It goes on: what it sends lands when it is sent.
                    return None;
                }
            }
            ref other => self.apply(state, other)?,
        }
        Some(())
    }

    /// Lets a compare-and-write land that was just sent, and its author know.
    fn end_swap(&self, state: &mut State, me: Life, task: Task) {
        for _ in 0..ATTEMPTS_MAX {
            let Some(op) = state.at(me).and_then(|at| state.programs[at].op(task)) else { return };
            if op.landed.is_none() {
                state.land(Flight::Swap { by: Author::Program(me), swap: op.swap });
                state.look_for_breaks();
            }
            self.answer(state, me, task, How::Plain, true).expect("it has landed");
        }
        panic!("a compare-and-write of {me:?} is tried again and again");
    }

    /// Works off a release: each write lands as soon as it is sent.
    fn end_release(&self, state: &mut State, me: Life) {
        self.end_swap(state, me, Task::Lock);
        while let Some(at) = state.at(me)
            && let LockTask::Releasing { lock, op: None, .. } = state.programs[at].lock_task
        {
            state.land_place(me, lock as usize);
            let before = state.programs[at];
            let _moved = state.go_on(at);
            self.end_swap(state, me, Task::Lock);
            if state.at(me).is_none_or(|at| state.programs[at] == before) {
                return;
            }
        }
    }

    /// Passes all steps of takeovers that change nothing, and forgets whom the device refuses.
    pub fn pass(&self, state: &mut State) {
        for at in 0..state.programs.len() {
            let program = state.programs[at];
            if program.is_running && !program.is_admitted {
                state.stop(at);
            }
        }
        for at in 0..state.programs.len() {
            while let ClaimTask::Working { claim, step, .. } = state.programs[at].claim_task {
                let victim = claim.of_life();
                let step = usize::from(step);
                let is_passed = match STEPS[step] {
                    Step::Fence => match self.fence {
                        Fence::Mark => state.mark_is_free(victim.slot),
                        Fence::Reservation => state.at(victim).is_none() && !state.flies(victim),
                    },
                    Step::Replay => false,
                    Step::Flush => step + 1 < STEPS.len(),
                };
                if !is_passed || state.step(at, self).is_none() {
                    break;
                }
            }
        }
    }
}

impl Program {
    /// The compare-and-write of a task, if it waits for one.
    fn op(&self, task: Task) -> Option<Op> {
        match (task, self.lock_task, self.claim_task) {
            (Task::Lock, LockTask::Taking { op, .. }, _)
            | (Task::Lock, LockTask::Releasing { op: Some(op), .. }, _)
            | (Task::Claim, _, ClaimTask::Claiming { op, .. } | ClaimTask::Ending { op, .. }) => {
                Some(op)
            }
            (Task::Leave, ..) => self.leaving,
            (Task::Lock | Task::Claim, ..) => None,
        }
    }
}

impl State {
    /// To whom a lock may be given: to nobody, or to another host.
    pub fn takers(&self, me: Life) -> impl Iterator<Item = Option<Life>> {
        let others = self.slots.into_iter().filter(move |slot| slot.slot != me.slot);
        let others = others.filter(|slot| slot.says == crate::image::Says::Live);
        std::iter::once(None).chain(others.map(|slot| Some(slot.of_life())))
    }

    /// Is all of a dead journal in place?
    fn has_replayed(&self, at: usize) -> bool {
        let program = &self.programs[at];
        matches!(program.claim_task, ClaimTask::Working { step, left, .. }
            if STEPS[usize::from(step)] == Step::Replay && left == [false; LOCKS])
            && !self.replays(program.me)
    }

    fn land_place(&mut self, me: Life, lock: usize) {
        let is_it = |flight: &Flight| match flight {
            Flight::Place { by, lock: of, .. } => *by == me && *of as usize == lock,
            Flight::Swap { .. } | Flight::Replay { .. } => false,
        };
        if let Some(flight) = self.flights.iter().copied().find(is_it) {
            self.land(flight);
            self.look_for_breaks();
            self.settle_placed();
        }
    }
}
