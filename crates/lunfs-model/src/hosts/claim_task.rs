//! What a program does with the slots of others: look, fence, claim, replay, free (R4).

use std::time::Duration;

use lunfs_core::claim::{
    End, Evidence, LAST_WORD_GRACE, STEPS, Step, Verdict, Worked, claimed, end, freed, handed_back,
    is_claimer_over, is_due, is_inherited, judge,
};
use lunfs_core::env::Instant;
use lunfs_core::journal::replay::{Decision, Image, decide};
use lunfs_format::ClaimFailure;

use super::answer::Told;
use super::state::{ClaimTask, Flight, LOCKS, State, Swap};
use super::{Fence, Hosts};
use crate::image::{Life, Says, SlotImage, lock_block, version};

impl State {
    /// What the table says of a slot.
    pub fn verdict(&self, at: usize, slot: u8, model: &Hosts) -> Verdict {
        let program = &self.programs[at];
        let there = self.slots[slot as usize];
        let kept = (program.kept == Some(there.of_life())).then_some(Instant::FAR);
        if !is_due(kept, Instant(0)) {
            return Verdict::Leave;
        }
        // A mark of life is there with this fence only.
        let gone = model.fence == Fence::Mark && self.mark_is_free(slot);
        // Silence may seem to be over at any time: no clock is trusted here.
        let evidence = Evidence {
            gone: gone.then_some(if model.impatient { Duration::ZERO } else { LAST_WORD_GRACE }),
            silent: true,
            claimer_over: match there.says {
                Says::Claimed(by) => {
                    let reached = self.slots[by.slot as usize].life;
                    is_claimer_over(by.holder(), program.me.holder(), Some(u64::from(reached)))
                }
                Says::Free | Says::Live | Says::Dead => false,
            },
        };
        judge(&there.pulse(), evidence)
    }

    /// Begins to claim a slot as it is now.
    pub fn claim(&mut self, at: usize, seen: SlotImage) {
        let me = self.programs[at].me;
        let nonce = self.nonce(seen.slot);
        let inherited = is_inherited(&seen.pulse(), me.holder());
        let claim = SlotImage::of(&claimed(&seen.pulse(), me.holder(), u64::from(nonce)));
        let op = self.swap(me, Swap::Slot { expect: seen, new: claim }, false);
        self.programs[at].claim_task = ClaimTask::Claiming { claim, inherited, op };
    }

    /// Does to the program of a life what the fence does. Returns whether it is proven that nothing
    /// of it lands any more.
    pub fn fence(&mut self, victim: Life, model: &Hosts) -> bool {
        match model.fence {
            Fence::Mark => {
                if let Some(at) = self.at(victim) {
                    self.stop(at);
                }
                self.mark_is_free(victim.slot)
            }
            Fence::Reservation => {
                for program in self.programs.iter_mut().filter(|p| p.me == victim) {
                    program.is_admitted = false;
                }
                self.flights.retain(|f| f.program() != Some(victim));
                true
            }
        }
    }

    /// The fence before a claim is confirmed.
    pub fn fenced_before(&mut self, at: usize, model: &Hosts) -> Option<()> {
        let ClaimTask::Fencing { seen } = self.programs[at].claim_task else { return None };
        if !self.fence(seen.of_life(), model) {
            return None;
        }
        self.claim(at, seen);
        Some(())
    }

    /// The fence before a claim is not confirmed: the slot is left alone for now.
    pub fn unfenced(&mut self, at: usize) -> Option<()> {
        let ClaimTask::Fencing { .. } = self.programs[at].claim_task else { return None };
        self.programs[at].claim_task = ClaimTask::Idle;
        Some(())
    }

    /// Does the next step of a takeover, if it can be done now.
    pub fn step(&mut self, at: usize, model: &Hosts) -> Option<()> {
        let ClaimTask::Working { claim, inherited, step, left } = self.programs[at].claim_task
        else {
            return None;
        };
        let me = self.programs[at].me;
        match STEPS[usize::from(step)] {
            Step::Fence if !self.fence(claim.of_life(), model) => return None,
            Step::Fence => {}
            Step::Replay if left != [false; LOCKS] || self.replays(me) => return None,
            Step::Replay => {}
            Step::Flush => self.flush(),
        }
        // Killing others may have changed our place.
        let at = self.at(me)?;
        if usize::from(step) + 1 < STEPS.len() {
            self.programs[at].claim_task =
                ClaimTask::Working { claim, inherited, step: step + 1, left };
        } else {
            self.end(at, claim, inherited, Worked::Done);
        }
        Some(())
    }

    /// Is a write of its replay under way?
    pub fn replays(&self, me: Life) -> bool {
        self.flights.iter().any(|f| matches!(f, Flight::Replay { by, .. } if *by == me))
    }

    /// Decides upon one image of the dead journal.
    pub fn apply(&mut self, at: usize, lock: usize) -> Option<()> {
        let by = self.programs[at].me;
        let ClaimTask::Working { claim, step, left, .. } = &mut self.programs[at].claim_task else {
            return None;
        };
        if STEPS[usize::from(*step)] != Step::Replay {
            return None;
        }
        if !std::mem::replace(&mut left[lock], false) {
            return None;
        }
        let dead = claim.of_life();
        let (generation, count) = self.journals[dead.slot as usize].images[lock]?;
        let image = Image {
            lock: lock_block(lock),
            lock_generation: version(generation),
            version: version(count),
            bytes: Vec::new(),
        };
        let there = Some(version(self.bodies[lock].now));
        let decision = decide(dead.holder(), &image, Some(&self.locks[lock].lock()), there);
        if decision == Decision::Apply {
            let lock = lock as u8;
            self.send(Flight::Replay { by, dead, lock, generation, version: count });
        }
        Some(())
    }

    /// Something but a write of the replay went wrong. Writes under way are answered first.
    pub fn give_up(&mut self, at: usize) -> Option<()> {
        let ClaimTask::Working { claim, inherited, .. } = self.programs[at].claim_task else {
            return None;
        };
        if self.replays(self.programs[at].me) {
            return None;
        }
        self.end(at, claim, inherited, Worked::Answered);
        Some(())
    }

    /// A write of the replay is answered with an error; it stays under way.
    pub fn fail_write(&mut self, at: usize) -> Option<()> {
        let ClaimTask::Working { claim, inherited, .. } = self.programs[at].claim_task else {
            return None;
        };
        if !self.replays(self.programs[at].me) {
            return None;
        }
        self.end(at, claim, inherited, Worked::Unanswered);
        Some(())
    }

    fn end(&mut self, at: usize, claim: SlotImage, inherited: bool, worked: Worked) {
        let me = self.programs[at].me;
        let nonce = u64::from(self.nonce(claim.slot));
        let new = match end(worked, inherited) {
            End::Free => freed(&claim.pulse(), nonce),
            End::HandBack => handed_back(&claim.pulse(), ClaimFailure::Io, nonce),
            End::Keep => {
                self.programs[at].kept = Some(claim.of_life());
                self.programs[at].claim_task = ClaimTask::Idle;
                return;
            }
            End::Stop => return self.stop(at),
        };
        let swap = Swap::Slot { expect: claim, new: SlotImage::of(&new) };
        let op = self.swap(me, swap, false);
        self.programs[at].claim_task = ClaimTask::Ending { claim, op };
    }

    /// A compare-and-write of another's slot has ended, or has not.
    pub fn claim_told(&mut self, at: usize, told: Told) {
        match (self.programs[at].claim_task, told) {
            (_, Told::Stop) => self.stop(at),
            (ClaimTask::Claiming { claim, inherited, .. }, Told::Again(op)) => {
                self.programs[at].claim_task = ClaimTask::Claiming { claim, inherited, op };
            }
            (ClaimTask::Ending { claim, .. }, Told::Again(op)) => {
                self.programs[at].claim_task = ClaimTask::Ending { claim, op };
            }
            (ClaimTask::Claiming { claim, inherited, .. }, Told::Won) => {
                let journal = self.journals[claim.slot as usize];
                let is_its = journal.life == claim.life;
                let left = journal.images.map(|image| is_its && image.is_some());
                self.programs[at].claim_task =
                    ClaimTask::Working { claim, inherited, step: 0, left };
            }
            // `is_later`: it landed, and somebody joined since. Otherwise the slot changed under
            // its claimer.
            (ClaimTask::Ending { claim, .. }, Told::Lost)
                if self.slots[claim.slot as usize].life <= claim.life =>
            {
                self.stop(at);
            }
            (
                ClaimTask::Claiming { .. } | ClaimTask::Ending { .. },
                Told::Won | Told::Lost | Told::Error,
            ) => self.programs[at].claim_task = ClaimTask::Idle,
            (ClaimTask::Idle | ClaimTask::Fencing { .. } | ClaimTask::Working { .. }, _) => {
                unreachable!("it waits for nothing")
            }
        }
    }
}
