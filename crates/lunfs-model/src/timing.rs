//! One host that pulses and writes, one that watches it: what the lease and the wait promise.
//!
//! Guards: `Liveness::attempt`, `written`, `found`; `lease_is_open`, `extended`; `Observation`;
//! `claim::judge`. Time passes in ticks of one pulse interval; everything else happens between two
//! ticks in any order, as often as it likes. Clocks that run at different speeds are left out: they
//! stretch the wait by a factor (docs/protocol.md), and do not change what follows what.
//!
//! Pulses land and are answered at any time, also long after they were sent, or never. The writer
//! looks at the gate, then pauses, then submits; then the write is under way. What a fence needs is
//! a bound on one or the other:
//!
//! | fence | a pause after the gate | a write under way |
//! |---|---|---|
//! | mark, reservation | any | any |
//! | watchdog | ends when it fires | `late` |
//! | time alone | `pause` | `late` |
//!
//! Ages are kept up to the point from which on they change nothing.

use std::time::Duration;

use lunfs_core::claim::{Evidence, Verdict, judge};
use lunfs_core::env::Instant;
use lunfs_core::liveness::{Found, Liveness, Observation, extended, lease_is_open};
use lunfs_format::{Pulse, Timing as Declared};
use stateright::{Model, Property};

use crate::explore::{Goal, Goals};
use crate::image::{Says, SlotImage};

/// Milliseconds of a tick.
const TICK: u32 = 1000;
/// The moment at which every state is looked at: ages count back from here.
const NOW: u64 = 1000;
/// Ticks without a gap that end an observation.
const TAIL: u8 = 3;

/// What keeps the watched host from writing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fence {
    /// A kill, and a mark that is free once everything has landed.
    Mark,
    /// The device refuses.
    Reservation,
    /// The machine is reset that many ticks after its last good pulse was answered.
    Watchdog(u8),
    /// Nothing.
    Time,
}

/// A volume's timing, and what is assumed of the world.
#[derive(Clone, Debug)]
pub struct Timing {
    /// Ticks of a lease.
    pub lease: u8,
    /// Ticks of silence before a claim.
    pub wait: u8,
    /// The fence.
    pub fence: Fence,
    /// Longest time between the gate and the submission; none: any.
    pub pause: Option<u8>,
    /// Longest time that a write is under way; none: any.
    pub late: Option<u8>,
    /// Pulses under way at once.
    pub pulses: u8,
    /// The device may once show an older image of the slot.
    pub goes_back: bool,
    /// Time may pass while the other host reads the slot.
    pub slow_looks: bool,
}

/// A pulse under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Flight {
    /// What it replaces.
    expect: u8,
    /// What it writes.
    nonce: u8,
    /// It has landed and is not answered.
    has_landed: bool,
}

/// The one write of the watched host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Write {
    /// None.
    None,
    /// It has passed the gate that long ago.
    Passed(u8),
    /// It was submitted that long ago.
    Submitted(u8),
}

/// What the other host knows and does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Other {
    /// It watches.
    Watches,
    /// It kills before it claims.
    Kills,
    /// It has claimed, and its fence is not confirmed.
    Claimed,
    /// It has begun to replay: nothing of the victim may land any more.
    TookOver,
}

/// What an observer has seen of silence, in ticks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Watch {
    seen: u8,
    good: u8,
    tail: u8,
    age: u8,
}

/// What went wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Broken {
    /// A write landed after the takeover.
    LateWrite,
    /// The lease is open while the other host may claim, or has claimed.
    Outlived,
    /// The device went back in time, the host looked, and goes on.
    Unnoticed,
}

/// One moment.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct State {
    /// The image in the slot; none: claimed.
    slot: Option<u8>,
    confirmed: u8,
    /// A confirmed image before that one.
    before: Option<u8>,
    went_back: bool,
    /// Attempts in doubt: which, and how long ago they began.
    doubts: Vec<(u8, u8)>,
    flights: Vec<Flight>,
    /// Ticks until the lease ends.
    lease: u8,
    /// Ticks until the watchdog fires.
    fed: u8,
    is_over: bool,
    write: Write,
    watch: Option<Watch>,
    /// A look under way: what it sees, and how long ago it began.
    look: Option<(Option<u8>, u8)>,
    other: Other,
    broken: Option<Broken>,
}

/// What may happen.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Time passes.
    Tick,
    /// A pulse is sent.
    Pulse,
    /// One lands.
    Land(Flight),
    /// One is answered "written".
    Written(Flight),
    /// One is lost, before or after it has landed.
    Lose(Flight),
    /// The host looks at its own slot.
    LookAtOwn,
    /// A write passes the gate.
    Pass,
    /// It is submitted.
    Submit,
    /// It lands.
    LandWrite,
    /// It never does.
    LoseWrite,
    /// The other host begins to read the slot.
    Look,
    /// The read is answered; `well`: its own pulses went well.
    Seen {
        /// Did they?
        well: bool,
    },
    /// It acts upon silence.
    Claim,
    /// Its fence is confirmed.
    Confirm,
    /// The device shows an older image.
    GoBack,
}

fn ticks(age: u8) -> Duration {
    Duration::from_millis(u64::from(age) * u64::from(TICK))
}

fn ago(age: u8) -> Instant {
    Instant((NOW - u64::from(age)) * u64::from(TICK) * 1_000_000)
}

fn in_ticks(time: Duration) -> u8 {
    (time.as_millis() / u128::from(TICK)) as u8
}

impl Timing {
    fn pulse(&self, nonce: u8) -> Pulse {
        let mut pulse =
            SlotImage { slot: 0, life: 1, says: Says::Live, has_parent: false, nonce }.pulse();
        let (lease, wait) = (u32::from(self.lease), u32::from(self.wait));
        pulse.timing = Declared { pulse_ms: TICK, lease_ms: lease * TICK, claim_ms: wait * TICK };
        pulse
    }

    /// What the host knows of its pulses, as the core keeps it, and the images in doubt.
    fn liveness(&self, state: &State) -> (Liveness, Vec<Pulse>) {
        let mut liveness = Liveness::new(self.pulse(state.confirmed));
        let images = state
            .doubts
            .iter()
            .map(|(nonce, age)| liveness.attempt(ago(*age), u64::from(*nonce), |_| ()).1);
        let images = images.collect();
        (liveness, images)
    }

    /// What the observer has seen, as the core keeps it: the looks that lead there, made again.
    fn observation(&self, watch: Watch) -> Observation {
        let seen = self.pulse(watch.seen);
        let at = |good: u8| ago(watch.age + (watch.good - good));
        let mut made = Observation::first(seen.clone(), at(0));
        let gap = watch.good - watch.tail;
        for good in 1..=watch.good {
            made.look(&seen, at(good), at(good), true);
            if good == gap {
                made.look(&seen, at(good), at(good), false);
            }
        }
        made
    }

    fn is_ripe(&self, state: &State) -> bool {
        state.watch.is_some_and(|w| self.observation(w).is_ripe() && state.slot == Some(w.seen))
    }

    /// The image `nonce` was confirmed: the lease may be longer.
    fn good_pulse(&self, state: &mut State, nonce: u8, until: Instant) {
        if nonce != state.confirmed {
            state.before = Some(state.confirmed);
        }
        state.confirmed = nonce;
        state.doubts.clear();
        let now = ago(0);
        let lease = extended(now + ticks(state.lease), until);
        if lease_is_open(now, until)
            && let Fence::Watchdog(fires) = self.fence
        {
            state.fed = fires;
        }
        state.lease = in_ticks(lease.since(now));
    }

    fn tick(&self, state: &mut State) -> Option<()> {
        if state.look.is_some() && !self.slow_looks {
            return None;
        }
        let is_timed = matches!(self.fence, Fence::Watchdog(_) | Fence::Time);
        match &mut state.write {
            Write::None => {}
            Write::Passed(age) if self.pause == Some(*age) => return None,
            Write::Submitted(age) if self.late == Some(*age) => return None,
            Write::Passed(age) if self.pause.is_some() => *age += 1,
            Write::Submitted(age) if self.late.is_some() => *age += 1,
            Write::Passed(_) | Write::Submitted(_) => {}
        }
        if is_timed && let Fence::Watchdog(_) = self.fence {
            if state.fed == 0 {
                // It fires now, at the latest.
                self.end(state);
            }
            state.fed = state.fed.saturating_sub(1);
        }
        state.lease = state.lease.saturating_sub(1);
        state.doubts.iter_mut().for_each(|(_, age)| *age = (*age + 1).min(self.lease));
        let slow = self.lease;
        if let Some(watch) = &mut state.watch {
            watch.age = (watch.age + 1).min(slow);
        }
        if let Some((_, age)) = &mut state.look {
            *age = (*age + 1).min(slow);
        }
        Some(())
    }

    /// The watched program ends. What it has submitted may still land.
    fn end(&self, state: &mut State) {
        state.is_over = true;
        state.lease = 0;
        if let Write::Passed(_) = state.write {
            state.write = Write::None;
        }
    }

    fn look_at_own(&self, state: &mut State) -> Option<()> {
        let seen = state.slot;
        if seen == Some(state.confirmed) {
            return None;
        }
        let (mut liveness, images) = self.liveness(state);
        let image = match seen {
            Some(nonce) => {
                let doubt = state.doubts.iter().position(|(n, _)| *n == nonce);
                doubt.map_or_else(|| self.pulse(nonce), |at| images[at].clone())
            }
            None => claimed(self.pulse(0)),
        };
        match liveness.found(&image) {
            Found::Ours(until) => self.good_pulse(state, seen.expect("ours"), until),
            Found::Unchanged if state.went_back => state.broken = Some(Broken::Unnoticed),
            Found::Unchanged => {}
            Found::Foreign(_) | Found::BackInTime => self.end(state),
        }
        Some(())
    }

    fn seen(&self, state: &mut State, well: bool) -> Option<()> {
        let (seen, age) = state.look.take()?;
        let Some(nonce) = seen else { return Some(()) };
        let Some(watch) = state.watch else {
            state.watch = Some(Watch { seen: nonce, good: 0, tail: 0, age: 0 });
            return Some(());
        };
        let mut observation = self.observation(watch);
        observation.look(&self.pulse(nonce), ago(age), ago(0), well);
        let is_new = nonce != watch.seen;
        state.watch = Some(Watch {
            seen: nonce,
            good: in_ticks(observation.silence()).min(self.wait),
            tail: in_ticks(observation.tail()).min(TAIL),
            age: if is_new { 0 } else { age },
        });
        Some(())
    }

    fn claim(&self, state: &mut State) -> Option<()> {
        let there = self.pulse(state.slot?);
        let silent = self.is_ripe(state);
        let evidence = Evidence { gone: None, silent, claimer_over: false };
        if judge(&there, evidence) == Verdict::Leave {
            return None;
        }
        if self.fence == Fence::Mark {
            self.end(state);
            state.other = Other::Kills;
        } else {
            self.win(state);
        }
        Some(())
    }

    fn win(&self, state: &mut State) {
        state.slot = None;
        state.watch = None;
        state.look = None;
        state.other = match self.fence {
            Fence::Mark | Fence::Reservation => Other::Claimed,
            // There is nothing to confirm.
            Fence::Watchdog(_) | Fence::Time => Other::TookOver,
        };
    }

    fn confirm(&self, state: &mut State) -> Option<()> {
        let is_drained = state.write == Write::None && state.flights.iter().all(|f| f.has_landed);
        match (self.fence, state.other) {
            (Fence::Mark, Other::Kills) if is_drained => self.win(state),
            (Fence::Mark, Other::Claimed) if is_drained => state.other = Other::TookOver,
            (Fence::Reservation, Other::Claimed) => {
                state.write = Write::None;
                state.flights.clear();
                state.other = Other::TookOver;
            }
            _ => return None,
        }
        Some(())
    }

    fn apply(&self, state: &mut State, action: &Action) -> Option<()> {
        match action {
            Action::Tick => self.tick(state)?,
            Action::Pulse => {
                let nonce = state.fresh();
                state.doubts.push((nonce, 0));
                let expect = state.confirmed;
                state.flights.push(Flight { expect, nonce, has_landed: false });
            }
            Action::Land(flight) => {
                let there = state.slot;
                let flown = state.flights.iter_mut().find(|f| *f == flight)?;
                if there != Some(flight.expect) {
                    return None;
                }
                flown.has_landed = true;
                state.slot = Some(flight.nonce);
            }
            Action::Written(flight) => {
                state.flights.retain(|f| f != flight);
                let (mut liveness, images) = self.liveness(state);
                let at = state.doubts.iter().position(|(nonce, _)| *nonce == flight.nonce)?;
                let until = liveness.written(&images[at])?;
                self.good_pulse(state, flight.nonce, until);
            }
            Action::Lose(flight) => state.flights.retain(|f| f != flight),
            Action::LookAtOwn => self.look_at_own(state)?,
            Action::Pass => {
                if !lease_is_open(ago(0), ago(0) + ticks(state.lease)) {
                    return None;
                }
                state.write = Write::Passed(0);
            }
            Action::Submit => state.write = Write::Submitted(0),
            Action::LandWrite => {
                state.write = Write::None;
                if state.other == Other::TookOver {
                    state.broken = Some(Broken::LateWrite);
                }
            }
            Action::LoseWrite => state.write = Write::None,
            Action::Look => state.look = Some((state.slot, 0)),
            Action::Seen { well } => self.seen(state, *well)?,
            Action::Claim => self.claim(state)?,
            Action::Confirm => self.confirm(state)?,
            Action::GoBack => {
                state.slot = state.before;
                state.went_back = true;
            }
        }
        Some(())
    }
}

fn claimed(mut pulse: Pulse) -> Pulse {
    let by = crate::image::Life { slot: 1, life: 1 };
    pulse.state = lunfs_format::PulseState::Claimed;
    pulse.claimer = Some(by.holder());
    pulse
}

impl State {
    fn nonces(&mut self) -> Vec<&mut u8> {
        let mut all: Vec<&mut u8> = self.slot.iter_mut().collect();
        all.push(&mut self.confirmed);
        all.extend(self.before.iter_mut());
        all.extend(self.doubts.iter_mut().map(|(nonce, _)| nonce));
        for flight in &mut self.flights {
            all.extend([&mut flight.expect, &mut flight.nonce]);
        }
        all.extend(self.watch.iter_mut().map(|watch| &mut watch.seen));
        all.extend(self.look.iter_mut().filter_map(|(seen, _)| seen.as_mut()));
        all
    }

    fn fresh(&mut self) -> u8 {
        self.nonces().into_iter().map(|nonce| *nonce).max().unwrap_or_default() + 1
    }

    /// Numbers nonces as they are met, and drops pulses that can only miscompare, and answers to
    /// what is not in doubt any more.
    fn normal(mut self) -> State {
        let (there, doubts) = (self.slot, self.doubts.clone());
        self.flights.retain(|f| {
            let is_awaited = doubts.iter().any(|(nonce, _)| *nonce == f.nonce);
            if f.has_landed { is_awaited } else { there == Some(f.expect) }
        });
        self.flights.sort_unstable();
        let mut met = Vec::new();
        for nonce in self.nonces() {
            let place = met.iter().position(|n| n == nonce).unwrap_or_else(|| {
                met.push(*nonce);
                met.len() - 1
            });
            *nonce = place as u8;
        }
        self
    }
}

impl Model for Timing {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![State {
            slot: Some(0),
            confirmed: 0,
            before: None,
            went_back: false,
            doubts: Vec::new(),
            flights: Vec::new(),
            lease: self.lease,
            fed: if let Fence::Watchdog(fires) = self.fence { fires } else { 0 },
            is_over: false,
            write: Write::None,
            watch: None,
            look: None,
            other: Other::Watches,
            broken: None,
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        if state.broken.is_some() {
            return;
        }
        actions.push(Action::Tick);
        for flight in &state.flights {
            actions.push(Action::Lose(*flight));
            actions.push(if flight.has_landed {
                Action::Written(*flight)
            } else {
                Action::Land(*flight)
            });
        }
        if !state.is_over {
            if state.doubts.len() < self.pulses as usize {
                actions.push(Action::Pulse);
            }
            actions.push(Action::LookAtOwn);
            if self.goes_back && !state.went_back && state.before.is_some() {
                actions.push(Action::GoBack);
            }
        }
        match state.write {
            Write::None if !state.is_over => actions.push(Action::Pass),
            Write::None => {}
            Write::Passed(_) => actions.extend([Action::Submit, Action::LoseWrite]),
            Write::Submitted(_) => actions.extend([Action::LandWrite, Action::LoseWrite]),
        }
        match state.other {
            Other::Watches if state.look.is_some() => {
                actions.extend([true, false].map(|well| Action::Seen { well }));
                actions.push(Action::Claim);
            }
            Other::Watches => actions.extend([Action::Look, Action::Claim]),
            Other::Kills | Other::Claimed => actions.push(Action::Confirm),
            Other::TookOver => {}
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        self.apply(&mut state, &action)?;
        let is_open = !state.is_over && lease_is_open(ago(0), ago(0) + ticks(state.lease));
        let may_claim = state.slot.is_none() || self.is_ripe(&state);
        if is_open && may_claim && !state.went_back {
            state.broken.get_or_insert(Broken::Outlived);
        }
        let state = state.normal();
        (state != *last).then_some(state)
    }

    fn properties(&self) -> Vec<Property<Timing>> {
        vec![
            Property::always("no write lands after the takeover", |_, state: &State| {
                state.broken != Some(Broken::LateWrite)
            }),
            Property::always("no lease outlives what others believe", |_, state: &State| {
                state.broken != Some(Broken::Outlived)
            }),
            Property::always("who sees the past stops", |_, state: &State| {
                state.broken != Some(Broken::Unnoticed)
            }),
            Property::sometimes("a silent host is taken over", |_, state: &State| {
                state.other == Other::TookOver
            }),
        ]
    }
}

impl Goals for Timing {
    fn is_fault(&self, action: &Action) -> bool {
        matches!(action, Action::GoBack | Action::Lose(_) | Action::Seen { well: false })
    }

    fn goals(&self) -> Vec<Goal<State>> {
        // A host that lives gets its lease back, or somebody takes over.
        let goes_on = |state: &State| {
            state.other == Other::TookOver || state.went_back || (!state.is_over && state.lease > 0)
        };
        vec![("the host has its lease, or is taken over".into(), Box::new(goes_on))]
    }
}
