//! Hosts that share locks, die, and are taken over: the shipped rules without any clock.
//!
//! What the guards are, the core decides: `lock::judge`, `acquired`, `released`, `RELEASE`;
//! `claim::judge`, `claimed`, `freed`, `handed_back`, `STEPS`, `end`, `leaving`, `is_due`;
//! `settle::answered`, `looked`; `replay::decide`; `Liveness::attempt`, `found`; `last_word`.
//!
//! What is abstracted, and why nothing is lost by it:
//!
//! - **No clock.** A host may be suspected at any time, a write may be under way for any time, and
//!   a host may do its next step at any time: a pause of any length, also between gate and
//!   submission, is a step that comes late. The gate of the lease never closes here, so every order
//!   of events that a lease allows is among those explored, and many that it forbids. What this
//!   model shows holds whatever the clocks do. (What the lease itself promises is `timing`'s to
//!   check.)
//! - **Writes under way** land in any order at any time, before or after the death of their author,
//!   or never, until a fence is confirmed. Answers may be lost, may say "failed" or may come from a
//!   second try of what was done (doubled).
//! - **Every step of a task is a step of the model** where another host could see or do something
//!   in between. A commit is one step: a record that lands late is one whose author was slow. A
//!   read is one step, and so is what is decided from it.
//! - **Doorbells** are left out: a holder may give up a lock at any time, to anybody.
//! - **Records of a journal**: of each block the newest image is kept, also after its lock has
//!   moved on. Torn records and revokes are the simulator's.
//! - **Numbers** that only grow are renumbered (`numbers.rs`), so runs have no bound. Faults
//!   (deaths, suspicions of the living, answers that are not plain, failed writes) have one, by
//!   parameter.
//!
//! What is left out and would matter: bodies of many blocks, torn blocks, damaged slots.

mod answer;
mod claim_task;
mod compare;
mod land;
mod lock_task;
mod merged;
mod numbers;
mod slot_task;
mod state;
mod turn;

use lunfs_core::claim::Verdict;
use stateright::{Model, Property};

pub use answer::How;
pub use compare::{Compared, compare};
pub use merged::{Grain, OfClaim, OfLock, Sent};
use state::{Author, Body, ClaimTask, Flight, Journal, LOCKS, LockTask, Op, Program, SLOTS, Stage};
pub use state::{Broken, State};
use turn::{Turn, smallest, turns};

use crate::explore::{Goal, Goals};
use crate::image::{Life, LockImage, Says, SlotImage};

/// How a host is kept from writing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fence {
    /// A mark that the kernel keeps until the last write has landed; a kill.
    Mark,
    /// The device refuses the victim from the fence on, and aborts what it has.
    Reservation,
}

/// A volume to explore.
#[derive(Clone, Debug)]
pub struct Hosts {
    /// Hosts, each with its slot.
    pub hosts: u8,
    /// Slots. In those beyond the hosts somebody mounts only when no host is left.
    pub slots: u8,
    /// Locks.
    pub locks: u8,
    /// How many faults may happen; 255: any number.
    pub faults: u8,
    /// How a host is kept from writing.
    pub fence: Fence,
    /// Programs have parents that speak for them.
    pub parents: bool,
    /// A mark that is free has not been so for the time that a parent has.
    pub impatient: bool,
    /// Answers are lost, doubled and wrong; otherwise they only come late.
    pub answers: bool,
    /// Blocks that cannot be read or written while a compare-and-write or a claim ends.
    pub blocks_fail: bool,
    /// All power may fail.
    pub power: bool,
    /// Hosts leave of their own will.
    pub leaves: bool,
    /// Hosts pulse; otherwise only slots change that somebody takes over.
    pub pulses: bool,
    /// Which steps are taken by themselves.
    pub grain: Grain,
    /// In merged steps: a lock given to a host may reach it after its giver took that host over.
    pub late_gifts: bool,
}

/// Of which task a compare-and-write is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Task {
    /// The one with locks.
    Lock,
    /// The one with a dead slot.
    Claim,
    /// The one that leaves.
    Leave,
}

/// What may happen.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// A write reaches its block.
    Land(Flight),
    /// A write of a dead program never does.
    Vanish(Flight),
    /// A lock is read, and taken if it may be.
    Take(Life, u8),
    /// What is under a held lock changes in memory.
    Change(Life, u8),
    /// It is committed.
    Commit(Life, u8),
    /// It is written in place.
    Place(Life, u8),
    /// What is in place is flushed.
    Flush(Life, u8),
    /// A lock is to be given up.
    Release(Life, u8, Option<Life>),
    /// What is under a lock changes, and it is to be given up at once.
    ChangeAndRelease(Life, u8, Option<Life>),
    /// It is given to another, and the author does not wait.
    SendRelease(Life, u8, Option<Life>),
    /// The release goes on.
    GoOn(Life),
    /// A pulse is sent.
    Pulse(Life),
    /// The own slot is looked at.
    LookAtOwn(Life),
    /// Another's slot is looked at, and claimed.
    Claim(Life, u8),
    /// It is suspected; `is_alive`: wrongly.
    Suspect {
        /// Who suspects.
        by: Life,
        /// Which slot.
        slot: u8,
        /// Does its program run?
        is_alive: bool,
    },
    /// The fence before the claim is confirmed.
    Fenced(Life),
    /// Or it is not.
    Unfenced(Life),
    /// One image of a dead journal is decided upon.
    Apply(Life, u8),
    /// A takeover goes on.
    Step(Life),
    /// A takeover fails, but for its writes.
    GiveUp(Life),
    /// A write of a replay fails, and may land. Its author may end.
    FailWrite(Life, Sent),
    /// A compare-and-write is answered.
    Answer {
        /// Who is answered.
        to: Life,
        /// For which task.
        task: Task,
        /// What the device says.
        how: How,
        /// Can the block be read afterwards?
        sees: bool,
    },
    /// A program dies.
    Die(Life, Sent),
    /// A parent speaks.
    Speak(Life),
    /// A host leaves.
    Leave(Life),
    /// A host comes.
    Join(u8),
    /// All power fails; of the blocks named, what was not flushed is lost.
    PowerLoss([bool; LOCKS]),
}

impl Hosts {
    /// All faults, one lock; parents off.
    pub fn new(hosts: u8, locks: u8, faults: u8, fence: Fence) -> Hosts {
        Hosts {
            hosts,
            slots: hosts,
            locks,
            faults,
            fence,
            parents: false,
            impatient: false,
            answers: true,
            blocks_fail: true,
            power: false,
            leaves: true,
            pulses: true,
            grain: Grain::Every,
            late_gifts: true,
        }
    }

    fn start(&self) -> State {
        let slots: [SlotImage; SLOTS] = std::array::from_fn(|slot| SlotImage {
            slot: slot as u8,
            life: 0,
            says: if slot < self.hosts as usize { Says::Live } else { Says::Free },
            has_parent: self.parents && slot < self.hosts as usize,
            nonce: 0,
        });
        let programs = slots[..self.hosts as usize].iter().map(|s| Program::joined(*s)).collect();
        State {
            slots,
            locks: [LockImage::default(); LOCKS],
            bodies: [Body::default(); LOCKS],
            journals: [Journal::default(); SLOTS],
            programs,
            flights: Vec::new(),
            faults: self.faults,
            broken: None,
        }
    }

    /// The renamings after which a state stands for the same.
    fn turns(&self) -> Vec<Turn> {
        match self.grain {
            Grain::Every => turns(0, 0),
            Grain::Merged => turns(self.hosts, self.locks),
        }
    }

    fn locks(&self) -> std::ops::Range<u8> {
        0..self.locks
    }

    fn actions_of(&self, state: &State, at: usize, actions: &mut Vec<Action>) {
        let program = &state.programs[at];
        let me = program.me;
        if !program.is_running {
            if program.has_parent && !state.flies(me) {
                actions.push(Action::Speak(me));
            }
            return;
        }
        if self.pulses || state.slots[me.slot as usize] != program.confirmed {
            actions.push(Action::LookAtOwn(me));
        }
        if state.faults > 0 {
            let all = self.may_have_sent(state, at);
            actions.extend(all.into_iter().map(|sent| Action::Die(me, sent)));
        }
        if !program.is_admitted {
            return;
        }
        if let Some(op) = &program.leaving {
            self.answers(state, me, Task::Leave, op, actions);
            return;
        }
        if self.pulses && program.doubt.is_none() {
            actions.push(Action::Pulse(me));
        }
        // Whoever keeps a claim is unmounted once the storage is well.
        if self.leaves || program.kept.is_some() || me.slot >= self.hosts {
            actions.push(Action::Leave(me));
        }
        self.lock_actions(state, program, actions);
        self.claim_actions(state, at, actions);
    }

    fn lock_actions(&self, state: &State, program: &Program, actions: &mut Vec<Action>) {
        let me = program.me;
        let merges = self.merges(state);
        match &program.lock_task {
            LockTask::Taking { op, .. } | LockTask::Releasing { op: Some(op), .. } => {
                self.answers(state, me, Task::Lock, op, actions);
            }
            LockTask::Releasing { op: None, .. } => actions.push(Action::GoOn(me)),
            LockTask::Idle => {
                for lock in self.locks() {
                    let Some(held) = program.holds[lock as usize] else {
                        actions.push(Action::Take(me, lock));
                        continue;
                    };
                    let begin = match held.stage {
                        Stage::Clean if merges => Action::Commit(me, lock),
                        Stage::Clean => Action::Change(me, lock),
                        Stage::Pending | Stage::Running => Action::Commit(me, lock),
                        Stage::Committed => Action::Place(me, lock),
                        Stage::Placing => continue,
                        Stage::Placed => Action::Flush(me, lock),
                    };
                    actions.push(begin);
                    for to in state.takers(me) {
                        if !merges || held.stage != Stage::Committed {
                            actions.push(Action::Release(me, lock, to));
                        }
                        if merges && held.stage == Stage::Clean {
                            actions.push(Action::ChangeAndRelease(me, lock, to));
                            if to.is_some() && self.late_gifts && state.faults >= 2 {
                                actions.push(Action::SendRelease(me, lock, to));
                            }
                        }
                    }
                }
            }
        }
    }

    fn claim_actions(&self, state: &State, at: usize, actions: &mut Vec<Action>) {
        let program = &state.programs[at];
        let me = program.me;
        match &program.claim_task {
            ClaimTask::Claiming { op, .. } | ClaimTask::Ending { op, .. } => {
                self.answers(state, me, Task::Claim, op, actions);
            }
            ClaimTask::Fencing { .. } => {
                actions.push(Action::Fenced(me));
                actions.push(Action::Unfenced(me));
            }
            ClaimTask::Working { left, .. } => {
                let images = self.locks().filter(|lock| left[*lock as usize]);
                actions.extend(images.map(|lock| Action::Apply(me, lock)));
                actions.push(Action::Step(me));
                if self.blocks_fail && state.faults > 0 {
                    actions.push(Action::GiveUp(me));
                    let all = self.may_have_sent(state, at);
                    actions.extend(all.into_iter().map(|sent| Action::FailWrite(me, sent)));
                }
            }
            ClaimTask::Idle => {
                for slot in (0..self.slots).filter(|slot| *slot != me.slot) {
                    match state.verdict(at, slot, self) {
                        Verdict::Leave => {}
                        Verdict::Claim => actions.push(Action::Claim(me, slot)),
                        Verdict::FenceThenClaim => {
                            let victim = state.slots[slot as usize].of_life();
                            let is_alive = state.at(victim).is_some();
                            // With a mark that would be a death, and a claim once it is free.
                            let is_merged = self.fence == Fence::Mark && self.merges(state);
                            if !is_merged && (!is_alive || state.faults > 0) {
                                actions.push(Action::Suspect { by: me, slot, is_alive });
                            }
                        }
                    }
                }
            }
        }
    }

    fn answers(&self, state: &State, to: Life, task: Task, op: &Op, actions: &mut Vec<Action>) {
        let mut push = |how, sees| actions.push(Action::Answer { to, task, how, sees });
        if op.landed.is_some() {
            push(How::Plain, true);
        }
        if state.faults == 0 {
            return;
        }
        if self.blocks_fail && op.landed == Some(false) {
            push(How::Plain, false);
        }
        if self.answers {
            for how in [How::Doubled, How::Lost, How::Failed] {
                push(how, true);
                if self.blocks_fail {
                    push(how, false);
                }
            }
        }
    }

    fn apply(&self, state: &mut State, action: &Action) -> Option<()> {
        match *action {
            Action::Land(flight) => state.land(flight),
            Action::Vanish(flight) => state.flights.retain(|f| *f != flight),
            Action::Take(me, lock) => state.take(state.at(me)?, lock as usize)?,
            Action::Change(me, lock) => state.change(state.at(me)?, lock as usize)?,
            Action::Commit(me, lock) => state.commit(state.at(me)?, lock as usize)?,
            Action::Place(me, lock) => state.place(state.at(me)?, lock as usize)?,
            Action::Flush(me, lock) => state.flush_placed(state.at(me)?, lock as usize)?,
            Action::Release(me, lock, to) => state.release(state.at(me)?, lock as usize, to)?,
            Action::SendRelease(me, lock, to) => state.release(state.at(me)?, lock as usize, to)?,
            Action::ChangeAndRelease(..) => unreachable!("that is two steps"),
            Action::GoOn(me) => state.go_on(state.at(me)?)?,
            Action::Pulse(me) => state.pulse(state.at(me)?)?,
            Action::LookAtOwn(me) => state.look_at_own(state.at(me)?)?,
            Action::Claim(me, slot) => state.claim(state.at(me)?, state.slots[slot as usize]),
            Action::Suspect { by, slot, .. } => {
                let seen = state.slots[slot as usize];
                state.fence(seen.of_life(), self);
                let at = state.at(by)?;
                state.programs[at].claim_task = ClaimTask::Fencing { seen };
            }
            Action::Fenced(me) => state.fenced_before(state.at(me)?, self)?,
            Action::Unfenced(me) => state.unfenced(state.at(me)?)?,
            Action::Apply(me, lock) => state.apply(state.at(me)?, lock as usize)?,
            Action::Step(me) => state.step(state.at(me)?, self)?,
            Action::GiveUp(me) => state.give_up(state.at(me)?)?,
            Action::FailWrite(me, _) => state.fail_write(state.at(me)?)?,
            Action::Answer { to, task, how, sees } => self.answer(state, to, task, how, sees)?,
            Action::Die(me, sent) => self.send_and_stop(state, me, sent)?,
            Action::Speak(me) => state.speak(me)?,
            Action::Leave(me) => state.leave(state.at(me)?)?,
            Action::Join(slot) => state.join(slot, self)?,
            Action::PowerLoss(lost) => {
                state.flights.clear();
                state.programs.clear();
                for (body, lost) in state.bodies.iter_mut().zip(lost) {
                    if lost {
                        body.now = body.durable;
                    }
                }
                state.flush();
            }
        }
        Some(())
    }

    fn answer(&self, state: &mut State, to: Life, task: Task, how: How, sees: bool) -> Option<()> {
        let at = state.at(to)?;
        let program = state.programs[at];
        let op = match (task, program.lock_task, program.claim_task) {
            (Task::Lock, LockTask::Taking { op, .. }, _)
            | (Task::Lock, LockTask::Releasing { op: Some(op), .. }, _)
            | (Task::Claim, _, ClaimTask::Claiming { op, .. } | ClaimTask::Ending { op, .. }) => op,
            (Task::Leave, ..) => program.leaving?,
            (Task::Lock | Task::Claim, ..) => return None,
        };
        let told = state.told(to, op, how, sees)?;
        match task {
            Task::Lock => state.lock_told(at, told),
            Task::Claim => state.claim_told(at, told),
            Task::Leave => state.leave_told(at, told),
        }
        Some(())
    }
}

impl Model for Hosts {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![self.start()]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        if state.broken.is_some() {
            return;
        }
        for flight in &state.flights {
            actions.push(Action::Land(*flight));
            let author = flight.program().and_then(|by| state.at(by));
            if author.is_none() {
                actions.push(Action::Vanish(*flight));
            }
        }
        for at in 0..state.programs.len() {
            self.actions_of(state, at, actions);
        }
        let running = state.programs.iter().filter(|p| p.is_running && p.is_admitted).count();
        let is_deserted = running == 0;
        for slot in 0..self.slots {
            let may_come = is_deserted || (slot < self.hosts && running < self.hosts as usize);
            if may_come && state.slots[slot as usize].says == Says::Free {
                actions.push(Action::Join(slot));
            }
        }
        if self.power && state.faults > 0 {
            actions.push(Action::PowerLoss([false; LOCKS]));
            actions.push(Action::PowerLoss([true; LOCKS]));
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        self.step(last, action).map(|(state, _)| state)
    }

    fn properties(&self) -> Vec<Property<Hosts>> {
        vec![
            Property::always(
                "no write under a lock lands after a later holder took it",
                |_, state: &State| state.broken != Some(Broken::LateWrite),
            ),
            Property::always(
                "no image is replayed over a later holder's work",
                |_, state: &State| state.broken != Some(Broken::LateReplay),
            ),
            Property::always("nothing of a life lands once it is over", |_, state: &State| {
                state.broken != Some(Broken::PastLife)
            }),
            Property::always("no two hosts replay one life", |_, state: &State| {
                state.broken != Some(Broken::DoubleClaim)
            }),
            Property::always("who believes to hold a lock holds it", |_, state: &State| {
                state.broken != Some(Broken::FalseBelief)
            }),
            Property::always("a holder finds what was last promised", |_, state: &State| {
                state.broken != Some(Broken::LostWork)
            }),
            Property::always("every change of a lock raises its generation", |_, state: &State| {
                state.broken != Some(Broken::SameGeneration)
            }),
            Property::always("a slot becomes free with a new life", |_, state: &State| {
                state.broken != Some(Broken::SameLife)
            }),
        ]
    }
}

impl Goals for Hosts {
    fn is_fault(&self, action: &Action) -> bool {
        match action {
            Action::Suspect { is_alive, .. } => *is_alive,
            Action::GiveUp(_) | Action::FailWrite(..) | Action::Die(..) | Action::PowerLoss(_) => {
                true
            }
            Action::Answer { how, sees, .. } => *how != How::Plain || !sees,
            _ => false,
        }
    }

    fn step(&self, last: &State, action: Action) -> Option<(State, u8)> {
        let mut state = last.clone();
        if self.merges(last) {
            self.apply_merged(&mut state, &action)?;
        } else {
            self.apply(&mut state, &action)?;
        }
        if self.is_fault(&action) && self.faults < u8::MAX {
            state.faults -= 1;
        }
        if !self.power {
            // Nobody can tell what is durable from what is there.
            state.flush();
            state.settle_placed();
        }
        if self.merges(&state) {
            self.pass(&mut state);
        }
        state.look_for_breaks();
        let state = state.normal();
        let (state, renaming) = smallest(state, &self.turns());
        (state != *last).then_some((state, renaming))
    }

    fn renamings(&self) -> u8 {
        self.turns().len() as u8
    }

    fn renamed(&self, goal: usize, renaming: u8) -> usize {
        let turn = self.turns()[renaming as usize];
        let of_slot = self.locks as usize + 1;
        let (slot, what) = (goal / of_slot, goal % of_slot);
        let what = if what < self.locks as usize { turn.locks[what] as usize } else { what };
        turn.slots[slot] as usize * of_slot + what
    }

    fn goals(&self) -> Vec<Goal<State>> {
        let mut goals: Vec<Goal<State>> = Vec::new();
        for slot in 0..self.hosts {
            for lock in self.locks() {
                let holds = move |state: &State| {
                    let mut programs = state.programs.iter().filter(|p| p.me.slot == slot);
                    programs
                        .any(|p| p.is_running && p.is_admitted && p.holds[lock as usize].is_some())
                };
                goals.push((format!("a host in slot {slot} has lock {lock}"), Box::new(holds)));
            }
            let is_well = move |state: &State| {
                let there = state.slots[slot as usize];
                let lives = there.says == Says::Live && state.at(there.of_life()).is_some();
                there.says == Says::Free || lives
            };
            goals.push((format!("slot {slot} is free, or a host lives in it"), Box::new(is_well)));
        }
        goals
    }
}
