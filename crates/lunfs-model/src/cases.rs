//! What is explored, by name, and what must come of it.

use std::time::Instant;

use crate::ballot::Ballot;
use crate::explore::{Finding, Goals, Report, goals, safety};
use crate::hosts::Fence::{Mark, Reservation};
use crate::hosts::{self, Grain, Hosts};
use crate::timing::{self, Timing};

/// What an exploration must find.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// Nothing.
    Holds,
    /// A way to break what is named: a parameter lacks what the rules ask for.
    Breaks(&'static str),
}

/// What is explored.
#[derive(Clone, Debug)]
pub enum Protocol {
    /// Locks and takeovers, without clocks.
    Hosts(Hosts),
    /// Leases and silence.
    Timing(Timing),
    /// Claims without compare-and-write.
    Ballot(Ballot),
    /// Locks and takeovers in single steps, and merged: do they know the same states?
    Merging(Hosts),
}

/// One exploration.
#[derive(Clone, Debug)]
pub struct Case {
    /// Its name.
    pub name: &'static str,
    /// What is explored.
    pub protocol: Protocol,
    /// What must come of it.
    pub expect: Expect,
    /// Part of every test run; otherwise it takes minutes.
    pub is_slice: bool,
}

impl Case {
    /// Explores it: safety first, then goals if nothing was found.
    pub fn run(&self) -> (Report, Option<Report>) {
        match &self.protocol {
            Protocol::Hosts(model) => both(model),
            Protocol::Timing(model) => both(model),
            Protocol::Ballot(model) => both(model),
            Protocol::Merging(model) => (merging(model), None),
        }
    }

    /// What is wrong with the outcome, if anything is.
    pub fn judge(&self, safety: &Report, goals: Option<&Report>) -> Option<String> {
        let found = safety.finding.as_ref().or(goals.and_then(|goals| goals.finding.as_ref()));
        match (self.expect, found) {
            (Expect::Holds, None) => match goals {
                Some(goals) if goals.states != safety.states => {
                    Some(format!("two explorations count {} and {}", safety.states, goals.states))
                }
                Some(_) | None => None,
            },
            (Expect::Breaks(what), Some(found)) if found.what == what => None,
            (Expect::Breaks(what), None) => Some(format!("nothing breaks: {what}")),
            (_, Some(found)) => Some(format!("{}\n    {}", found.what, found.way.join("\n    "))),
        }
    }
}

fn merging(model: &Hosts) -> Report {
    let began = Instant::now();
    let found = hosts::compare(model);
    let is_same = found.missed == 0 && found.invented == 0;
    let finding = (!is_same).then(|| Finding {
        what: "single and merged steps know other states".into(),
        way: vec![format!("{found:?}")],
    });
    Report { states: found.every, depth: 0, took: began.elapsed(), finding }
}

fn both<M>(model: &M) -> (Report, Option<Report>)
where
    M: Goals + Clone + Send + Sync + 'static,
    M::State: Clone + std::fmt::Debug + std::hash::Hash + PartialEq + Send + Sync,
    M::Action: Clone + std::fmt::Debug + PartialEq + Send + Sync,
{
    let first = safety(model.clone());
    let second = first.finding.is_none().then(|| goals(model));
    (first, second)
}

/// Ticks that stand for the shipped timing: a lease of two pulses, the wait that follows from it.
fn timing(fence: timing::Fence, wait: u8, pause: Option<u8>, late: Option<u8>) -> Protocol {
    Protocol::Timing(Timing {
        lease: 2,
        wait,
        fence,
        pause,
        late,
        pulses: 2,
        goes_back: false,
        slow_looks: true,
    })
}

fn hosts(count: u8, locks: u8, faults: u8, fence: hosts::Fence) -> Hosts {
    Hosts {
        answers: false,
        blocks_fail: false,
        leaves: false,
        pulses: false,
        ..Hosts::new(count, locks, faults, fence)
    }
}

const LATE: &str = "no write lands after the takeover";

/// All explorations.
pub fn cases() -> Vec<Case> {
    let mut cases = of_hosts();
    cases.extend(of_timing());
    cases.extend(of_ballots());
    cases
}

fn of_hosts() -> Vec<Case> {
    let mut cases = of_single_steps();
    cases.extend(of_merged_steps());
    cases.extend(of_merging());
    cases
}

fn of_single_steps() -> Vec<Case> {
    let case = |name, is_slice, model| Case {
        name,
        protocol: Protocol::Hosts(model),
        expect: Expect::Holds,
        is_slice,
    };
    let two = |faults| hosts(2, 1, faults, Mark);
    vec![
        case("locks", true, two(0)),
        case("deaths", true, two(1)),
        case("answers", true, Hosts { answers: true, blocks_fail: true, ..two(1) }),
        case("parents", true, Hosts { parents: true, ..two(1) }),
        case("power", true, Hosts { power: true, leaves: true, slots: 3, ..hosts(1, 1, 2, Mark) }),
        case("leaves", true, Hosts { leaves: true, ..two(1) }),
        case("pulses", false, Hosts { pulses: true, ..two(1) }),
        case("answers of who leaves", false, Hosts { answers: true, leaves: true, ..two(1) }),
    ]
}

/// What is too large in single steps. Where all hosts may die a slot is left for who comes then.
fn of_merged_steps() -> Vec<Case> {
    let case = |name, is_slice, model| Case {
        name,
        protocol: Protocol::Hosts(Hosts { grain: Grain::Merged, ..model }),
        expect: Expect::Holds,
        is_slice,
    };
    let three = |faults| Hosts { slots: 4, late_gifts: false, ..hosts(3, 1, faults, Mark) };
    vec![
        case("two locks", true, hosts(2, 2, 1, Mark)),
        case("three hosts", true, hosts(3, 1, 1, Mark)),
        case("three hosts with a reservation", true, hosts(3, 1, 1, Reservation)),
        case("two of three hosts die", false, hosts(3, 1, 2, Mark)),
        case("all hosts die", false, three(3)),
        case(
            "all hosts die, with a reservation",
            false,
            Hosts { slots: 4, late_gifts: false, ..hosts(3, 1, 3, Reservation) },
        ),
        case("kept claims", false, Hosts { blocks_fail: true, ..three(3) }),
        case("three hosts with parents", false, Hosts { parents: true, ..hosts(3, 1, 1, Mark) }),
        case("three hosts that leave", false, Hosts { leaves: true, ..hosts(3, 1, 1, Mark) }),
        case("three hosts that pulse", false, Hosts { pulses: true, ..hosts(3, 1, 1, Mark) }),
        case(
            "answers of two hosts",
            false,
            Hosts { answers: true, slots: 3, late_gifts: false, ..hosts(2, 1, 2, Mark) },
        ),
        case(
            "two locks, both hosts die",
            false,
            Hosts { slots: 3, late_gifts: false, ..hosts(2, 2, 2, Mark) },
        ),
    ]
}

/// Small volumes in both grains.
fn of_merging() -> Vec<Case> {
    let case = |name, model| Case {
        name,
        protocol: Protocol::Merging(model),
        expect: Expect::Holds,
        is_slice: false,
    };
    let two = |faults| hosts(2, 1, faults, Mark);
    vec![
        case("merging: deaths", two(1)),
        case("merging: parents", Hosts { parents: true, ..two(1) }),
        case("merging: leaves", Hosts { leaves: true, ..two(1) }),
        case("merging: pulses", Hosts { pulses: true, ..two(1) }),
        case("merging: answers", Hosts { answers: true, blocks_fail: true, ..two(1) }),
        case("merging: reservation", hosts(2, 1, 1, Reservation)),
        case("merging: blocks that fail", Hosts { blocks_fail: true, ..two(2) }),
        case("merging: two locks", hosts(2, 2, 1, Mark)),
    ]
}

fn of_timing() -> Vec<Case> {
    use timing::Fence::{self, Time, Watchdog};
    let case = |name, protocol, expect| Case { name, protocol, expect, is_slice: true };
    let holds = |name, protocol| case(name, protocol, Expect::Holds);
    let late = |name, protocol| case(name, protocol, Expect::Breaks(LATE));
    let past = Timing {
        goes_back: true,
        slow_looks: false,
        ..match timing(Fence::Mark, 3, None, None) {
            Protocol::Timing(timing) => timing,
            Protocol::Hosts(_) | Protocol::Ballot(_) | Protocol::Merging(_) => {
                unreachable!("it is timing")
            }
        }
    };
    vec![
        holds("mark", timing(Fence::Mark, 3, None, None)),
        holds("mark, the device goes back in time", Protocol::Timing(past)),
        holds("reservation by time", timing(Fence::Reservation, 3, None, None)),
        holds("watchdog with late", timing(Watchdog(1), 4, None, Some(1))),
        late("watchdog without late", timing(Watchdog(1), 3, None, Some(1))),
        holds("time alone", timing(Time, 4, Some(1), Some(1))),
        late("time alone, one tick too soon", timing(Time, 3, Some(1), Some(1))),
        late("time alone, any pause", timing(Time, 6, None, Some(1))),
    ]
}

fn of_ballots() -> Vec<Case> {
    let sketch =
        Ballot { numbers: 5, rounds: 2, deaths: 1, looks_twice: true, fences_claimers: true };
    let case = |name, expect, ballot| Case {
        name,
        protocol: Protocol::Ballot(ballot),
        expect,
        is_slice: true,
    };
    let two = Expect::Breaks("one host at a time replays");
    vec![
        case("ballot", Expect::Holds, sketch.clone()),
        case("ballot, one look", two, Ballot { looks_twice: false, ..sketch.clone() }),
        case(
            "ballot, claimers not fenced",
            two,
            Ballot { fences_claimers: false, ..sketch.clone() },
        ),
        case(
            "ballot, one round",
            Expect::Breaks("no dead host keeps a slot"),
            Ballot { rounds: 1, ..sketch },
        ),
    ]
}
