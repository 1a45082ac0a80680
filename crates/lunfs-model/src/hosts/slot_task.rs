//! What a program does with its own slot: come, pulse, look, leave, die; and its parent's last
//! word.

use lunfs_core::claim::{Leaving, freed, leaving};
use lunfs_core::env::Instant;
use lunfs_core::last_word::last_word;
use lunfs_core::liveness::{Found, Liveness};
use lunfs_format::SlotNo;

use super::answer::Told;
use super::state::{Author, ClaimTask, Flight, Journal, LOCKS, LockTask, Op, Program, State, Swap};
use super::{Fence, Hosts};
use crate::image::{Life, Says, SlotImage};

impl Program {
    /// A program that has just taken its slot.
    pub fn joined(confirmed: SlotImage) -> Program {
        Program {
            me: confirmed.of_life(),
            is_running: true,
            is_admitted: true,
            has_parent: confirmed.has_parent,
            confirmed,
            doubt: None,
            holds: [None; LOCKS],
            lock_task: LockTask::Idle,
            claim_task: ClaimTask::Idle,
            kept: None,
            leaving: None,
        }
    }

    /// What it knows of its pulses, as the core keeps it.
    fn liveness(&self) -> (Liveness, Option<lunfs_format::Pulse>) {
        let mut liveness = Liveness::new(self.confirmed.pulse());
        let doubt =
            self.doubt.map(|doubt| liveness.attempt(Instant(0), u64::from(doubt.nonce), |_| ()).1);
        (liveness, doubt)
    }
}

impl State {
    /// A program takes a free slot.
    pub fn join(&mut self, slot: u8, model: &Hosts) -> Option<()> {
        let there = self.slots[slot as usize];
        let is_marked = model.fence == Fence::Mark && !self.mark_is_free(slot);
        // Of programs that run on although their life is over, one in a slot is enough.
        let runs = self.programs.iter().filter(|p| p.me.slot == slot && p.is_running).count();
        if there.says != Says::Free || is_marked || runs > 1 {
            return None;
        }
        let nonce = self.nonce(slot);
        let joined = SlotImage { says: Says::Live, has_parent: model.parents, nonce, ..there };
        self.slots[slot as usize] = joined;
        self.journals[slot as usize] = Journal { life: joined.life, images: [None; LOCKS] };
        self.programs.push(Program::joined(joined));
        Some(())
    }

    /// Sends a pulse.
    pub fn pulse(&mut self, at: usize) -> Option<()> {
        if self.programs[at].doubt.is_some() || self.programs[at].leaving.is_some() {
            return None;
        }
        let expect = self.programs[at].confirmed;
        let nonce = self.nonce(expect.slot);
        let program = &mut self.programs[at];
        program.doubt = Some(SlotImage { nonce, ..expect });
        let (_, image) = program.liveness();
        let new = SlotImage::of(&image.expect("a pulse is in doubt"));
        let by = Author::Program(program.me);
        self.send(Flight::Swap { by, swap: Swap::Slot { expect, new } });
        Some(())
    }

    /// Looks at the own slot, after an answer or the lack of one.
    pub fn look_at_own(&mut self, at: usize) -> Option<()> {
        let program = self.programs[at];
        let seen = self.slots[program.me.slot as usize];
        if seen == program.confirmed {
            return None;
        }
        let (mut liveness, doubt) = program.liveness();
        let image = doubt.filter(|_| Some(seen) == program.doubt).unwrap_or_else(|| seen.pulse());
        match liveness.found(&image) {
            Found::Ours(_) => {
                self.programs[at].confirmed = seen;
                self.programs[at].doubt = None;
            }
            Found::Unchanged => {}
            Found::Foreign(_) | Found::BackInTime => self.stop(at),
        }
        Some(())
    }

    /// A program ends: it sends nothing any more. What it has sent may still land.
    pub fn stop(&mut self, at: usize) {
        let program = &mut self.programs[at];
        *program = Program {
            is_running: false,
            is_admitted: program.is_admitted,
            has_parent: program.has_parent,
            ..Program::joined(program.confirmed)
        };
    }

    /// Its parent finds it dead and its mark free, and speaks for it.
    pub fn speak(&mut self, me: Life) -> Option<()> {
        let is_drained = !self.flies(me);
        let nonce = u64::from(self.nonce(me.slot));
        let program = self.programs.iter_mut().find(|p| p.me == me && !p.is_running)?;
        if !program.has_parent || !is_drained {
            return None;
        }
        program.has_parent = false;
        let expect = self.slots[me.slot as usize];
        let life = me.holder().incarnation;
        let word = last_word(&expect.pulse(), me.run(), life, nonce).ok()?;
        let swap = Swap::Slot { expect, new: SlotImage::of(&word) };
        self.send(Flight::Swap { by: Author::Parent(me), swap });
        Some(())
    }

    /// Leaves, if everything is in place: frees the own slot, or stops if a claim is kept.
    pub fn leave(&mut self, at: usize) -> Option<()> {
        let program = self.programs[at];
        if !program.is_leavable() || program.leaving.is_some() {
            return None;
        }
        self.flush();
        match leaving(program.kept.map(|kept| SlotNo(u32::from(kept.slot)))) {
            Leaving::Stop(_) => self.stop(at),
            Leaving::Free => self.free_own(at),
        }
        Some(())
    }

    fn free_own(&mut self, at: usize) {
        let Program { me, confirmed: expect, .. } = self.programs[at];
        let nonce = u64::from(self.nonce(me.slot));
        let new = SlotImage::of(&freed(&expect.pulse(), nonce));
        let op: Op = self.swap(me, Swap::Slot { expect, new }, false);
        self.programs[at].leaving = Some(op);
    }

    /// The compare-and-write that frees the own slot has ended, or has not.
    pub fn leave_told(&mut self, at: usize, told: Told) {
        let program = self.programs[at];
        match told {
            Told::Again(op) => self.programs[at].leaving = Some(op),
            Told::Won => self.exit(at),
            // `is_later`: it landed, and somebody joined since.
            Told::Lost if self.slots[program.me.slot as usize].life > program.me.life => {
                self.exit(at);
            }
            // A pulse that was under way came first: it is settled, and the same is done again.
            Told::Lost if self.slots[program.me.slot as usize].says == Says::Live => {
                self.look_at_own(at);
                if self.programs[at].is_running {
                    self.free_own(at);
                }
            }
            Told::Lost | Told::Error | Told::Stop => self.stop(at),
        }
    }

    /// Ends well: its parent says nothing.
    fn exit(&mut self, at: usize) {
        self.programs[at].has_parent = false;
        self.stop(at);
    }
}
