//! A sketch that is not built: how a dead slot is claimed on a device without compare-and-write.
//!
//! Every host has a block of its own for ballots about the slot, and only reads those of others:
//! Disk Paxos on one disk. A ballot says `promised`, the highest number that its host took part in,
//! and what it accepted. Who has read all other blocks after each of its two writes and found no
//! higher promise has decided.
//!
//! ```text
//!  Idle -> write promise -> read all -> write accepted -> read all -> decided: me -> fence, replay
//!                              |                             |           another -> leave
//!                              +---- a higher promise: again +
//! ```
//!
//! A ballot decides once. If the claimer that it decided for dies, the slot would be its for ever
//! (`rounds` 1 shows it). So a claim has a *round*: round n + 1 begins when the claimer of round n
//! is dead, and its claimer fences that one too before it replays (`fences_claimers`).
//!
//! Abstracted as in `hosts`: no clock, writes land at any time, deaths at any time. Numbers of
//! ballots are bounded, and so are rounds. What the model does not have: locks under a mutex of
//! plain reads and writes, and pulses.

use stateright::{Model, Property};

use crate::explore::{Goal, Goals};

/// Hosts that may claim.
const HOSTS: usize = 2;

const FOR_EVER: &str = "the claim is decided for a dead host, and there is no other";

/// What is explored.
#[derive(Clone, Debug)]
pub struct Ballot {
    /// Highest number of a ballot.
    pub numbers: u8,
    /// Rounds of a claim.
    pub rounds: u8,
    /// Deaths of claimers.
    pub deaths: u8,
    /// The second look at all blocks is made.
    pub looks_twice: bool,
    /// A claimer fences the claimers before it.
    pub fences_claimers: bool,
}

/// The block of one host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Block {
    round: u8,
    promised: u8,
    /// Number and claimer.
    accepted: Option<(u8, u8)>,
}

/// What a host does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Task {
    /// Nothing.
    Idle,
    /// Its write of the block is under way.
    Writes(Block),
    /// It reads the others: whom it has read, and the highest it found accepted.
    Reads {
        /// What it has written.
        block: Block,
        /// Whom it has read.
        read: [bool; HOSTS],
        /// The highest that others accepted.
        best: Option<(u8, u8)>,
    },
    /// It is decided that it claims.
    Fences,
    /// It replays; `true`: its write is under way.
    Replays(bool),
}

/// One moment.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct State {
    blocks: [Block; HOSTS],
    tasks: [Task; HOSTS],
    /// The round that each believes to be the current one.
    rounds: [u8; HOSTS],
    runs: [bool; HOSTS],
    /// Of a dead host: blocks and replays under way.
    late_blocks: [Option<Block>; HOSTS],
    late_replays: [bool; HOSTS],
    is_free: bool,
    deaths: u8,
    broken: Option<&'static str>,
}

/// What may happen.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// A host begins a ballot of this number.
    Begin(usize, u8),
    /// Its block lands and is answered.
    Land(usize),
    /// It reads another's block.
    Read(usize, usize),
    /// It has read all.
    Conclude(usize),
    /// Its fences are confirmed.
    Fence(usize),
    /// It sends a write of the replay.
    Replay(usize),
    /// That lands.
    LandReplay(usize),
    /// It frees the slot.
    Free(usize),
    /// It dies.
    Die(usize),
    /// A write of a dead host lands.
    LandLate(usize),
    /// Or never does.
    LoseLate(usize),
}

impl Ballot {
    fn conclude(&self, state: &mut State, host: usize) -> Option<()> {
        let Task::Reads { mut block, read, best } = state.tasks[host] else { return None };
        if (0..HOSTS).any(|other| other != host && !read[other]) {
            return None;
        }
        let accepted = block.accepted.filter(|(number, _)| *number == block.promised);
        let Some((_, claimer)) = accepted else {
            let earlier = best.max(block.accepted);
            block.accepted = Some((block.promised, earlier.map_or(host as u8, |(_, who)| who)));
            state.tasks[host] = Task::Writes(block);
            return Some(());
        };
        self.decided(state, host, claimer as usize);
        Some(())
    }

    fn decided(&self, state: &mut State, host: usize, claimer: usize) {
        state.tasks[host] = if claimer == host { Task::Fences } else { Task::Idle };
        let is_over = claimer != host && !state.runs[claimer];
        if !is_over {
            return;
        }
        if state.rounds[host] + 1 < self.rounds {
            state.rounds[host] += 1;
        } else {
            state.broken.get_or_insert(FOR_EVER);
        }
    }

    fn fence(&self, state: &mut State, host: usize) -> Option<()> {
        if state.tasks[host] != Task::Fences {
            return None;
        }
        let drained =
            |other: usize| !state.late_replays[other] && state.late_blocks[other].is_none();
        let before = (0..HOSTS).filter(|other| *other != host && !state.runs[*other]);
        if self.fences_claimers && !before.into_iter().all(drained) {
            return None;
        }
        state.tasks[host] = Task::Replays(false);
        Some(())
    }

    fn apply(&self, state: &mut State, action: &Action) -> Option<()> {
        match *action {
            Action::Begin(host, number) => {
                let own = state.blocks[host];
                let round = state.rounds[host];
                let accepted = own.accepted.filter(|_| own.round == round);
                state.tasks[host] = Task::Writes(Block { round, promised: number, accepted });
            }
            Action::Land(host) => {
                let Task::Writes(block) = state.tasks[host] else { return None };
                state.blocks[host] = block;
                let is_second = block.accepted.is_some_and(|(n, _)| n == block.promised);
                let read = [is_second && !self.looks_twice; HOSTS];
                state.tasks[host] = Task::Reads { block, read, best: None };
            }
            Action::Read(host, other) => {
                let there = state.blocks[other];
                let Task::Reads { block, read, best } = &mut state.tasks[host] else {
                    return None;
                };
                read[other] = true;
                if there.round == block.round {
                    *best = (*best).max(there.accepted);
                }
                if (there.round, there.promised) > (block.round, block.promised) {
                    state.rounds[host] = state.rounds[host].max(there.round);
                    state.tasks[host] = Task::Idle;
                }
            }
            Action::Conclude(host) => self.conclude(state, host)?,
            Action::Fence(host) => self.fence(state, host)?,
            Action::Replay(host) => state.tasks[host] = Task::Replays(true),
            Action::LandReplay(host) => {
                state.tasks[host] = Task::Replays(false);
                state.replayed(host);
            }
            Action::Free(host) => {
                state.is_free = true;
                state.tasks[host] = Task::Idle;
            }
            Action::Die(host) => state.die(host),
            Action::LandLate(host) => {
                if let Some(block) = state.late_blocks[host].take() {
                    state.blocks[host] = block;
                } else if std::mem::take(&mut state.late_replays[host]) {
                    state.replayed(host);
                }
            }
            Action::LoseLate(host) => {
                (state.late_blocks[host], state.late_replays[host]) = (None, false);
            }
        }
        Some(())
    }
}

impl State {
    fn die(&mut self, host: usize) {
        match self.tasks[host] {
            Task::Writes(block) => self.late_blocks[host] = Some(block),
            Task::Replays(true) => self.late_replays[host] = true,
            Task::Idle | Task::Reads { .. } | Task::Fences | Task::Replays(false) => {}
        }
        (self.tasks[host], self.runs[host]) = (Task::Idle, false);
    }

    fn replayed(&mut self, by: usize) {
        let mut others = (0..HOSTS).filter(|other| *other != by);
        if self.is_free || others.any(|other| matches!(self.tasks[other], Task::Replays(_))) {
            self.broken.get_or_insert("a replay lands beside another, or over a free slot");
        }
    }
}

impl Model for Ballot {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![State {
            blocks: [Block::default(); HOSTS],
            tasks: [Task::Idle; HOSTS],
            rounds: [0; HOSTS],
            runs: [true; HOSTS],
            late_blocks: [None; HOSTS],
            late_replays: [false; HOSTS],
            is_free: false,
            deaths: self.deaths,
            broken: None,
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        if state.broken.is_some() {
            return;
        }
        for host in 0..HOSTS {
            if !state.runs[host] {
                if state.late_blocks[host].is_some() || state.late_replays[host] {
                    actions.extend([Action::LandLate(host), Action::LoseLate(host)]);
                }
                continue;
            }
            if state.deaths > 0 {
                actions.push(Action::Die(host));
            }
            let own = state.blocks[host];
            let promised = if own.round == state.rounds[host] { own.promised } else { 0 };
            match state.tasks[host] {
                Task::Idle if state.is_free => {}
                Task::Idle => {
                    // The numbers of two hosts are never the same.
                    let numbers = (promised + 1..=self.numbers)
                        .filter(|number| *number as usize % HOSTS == host);
                    actions.extend(numbers.map(|number| Action::Begin(host, number)));
                }
                Task::Writes(_) => actions.push(Action::Land(host)),
                Task::Reads { read, .. } => {
                    let others = (0..HOSTS).filter(|other| *other != host && !read[*other]);
                    actions.extend(others.map(|other| Action::Read(host, other)));
                    actions.push(Action::Conclude(host));
                }
                Task::Fences => actions.push(Action::Fence(host)),
                Task::Replays(true) => actions.push(Action::LandReplay(host)),
                Task::Replays(false) => {
                    actions.extend([Action::Replay(host), Action::Free(host)]);
                }
            }
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        self.apply(&mut state, &action)?;
        if let Action::Die(_) = action {
            state.deaths -= 1;
        }
        let replaying = state.tasks.iter().filter(|task| matches!(task, Task::Replays(_)));
        if replaying.count() > 1 {
            state.broken.get_or_insert("two hosts replay");
        }
        (state != *last).then_some(state)
    }

    fn properties(&self) -> Vec<Property<Ballot>> {
        vec![
            Property::always("one host at a time replays", |_, state: &State| {
                state.broken.is_none_or(|broken| broken == FOR_EVER)
            }),
            Property::always("no dead host keeps a slot", |_, state: &State| {
                state.broken != Some(FOR_EVER)
            }),
            Property::sometimes("a second round decides", |_, state: &State| {
                let replays = |host: usize| matches!(state.tasks[host], Task::Replays(_));
                (0..HOSTS).any(|host| replays(host) && !state.runs[1 - host])
            }),
        ]
    }
}

impl Goals for Ballot {
    fn is_fault(&self, action: &Action) -> bool {
        matches!(action, Action::Die(_))
    }

    fn goals(&self) -> Vec<Goal<State>> {
        let numbers = self.numbers;
        // A host that has used up the numbers of this small model would go on with larger ones.
        let is_done = move |state: &State| {
            let is_spent = |b: &Block| b.promised + HOSTS as u8 > numbers;
            state.is_free || state.runs == [false; HOSTS] || state.blocks.iter().any(is_spent)
        };
        vec![("the slot becomes free".into(), Box::new(is_done))]
    }
}
