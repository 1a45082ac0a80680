//! Holds the merged steps against the single ones: what they leave out must be in no other state.
//!
//! A state is *quiet* if no program that runs waits for a write of its own, has changed what it has
//! not committed, or stands before a step that is passed at once. Merged steps begin and end in
//! quiet states, and each is a row of single steps. So if every quiet state of the single steps is
//! one of the merged ones, and every one of the merged is one of the single, then nothing that
//! single steps can reach is lost but states on the way between two quiet ones, and the writes that
//! fly there are those that `Sent` names.

use std::collections::HashSet;

use lunfs_core::claim::{STEPS, Step};
use stateright::Model;

use super::merged::Grain;
use super::state::{ClaimTask, Flight, LockTask, Stage, State, Swap};
use super::turn::smallest;
use super::{Author, Hosts};
use crate::explore::Bytes;

/// What came of a comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Compared {
    /// States of single steps.
    pub every: usize,
    /// Quiet ones among them that differ in more than names.
    pub quiet: usize,
    /// States of merged steps.
    pub merged: usize,
    /// Quiet states that merged steps miss.
    pub missed: usize,
    /// States of merged steps that single steps do not know.
    pub invented: usize,
}

/// Explores a volume in single and in merged steps.
pub fn compare(volume: &Hosts) -> Compared {
    let every = Hosts { grain: Grain::Every, ..volume.clone() };
    let merged = Hosts { grain: Grain::Merged, ..volume.clone() };
    let (mut known, mut quiet) = (HashSet::new(), HashSet::new());
    let mut bytes = Bytes::default();
    let every = all(&every, |state| {
        let is_quiet = !merged.merges(&state) || state.is_quiet();
        let fingerprint = bytes.fingerprint(&merged.as_merged(state));
        known.insert(fingerprint);
        if is_quiet {
            quiet.insert(fingerprint);
        }
    });
    let met = all(&merged, |_| ());
    Compared {
        every: every.len(),
        quiet: quiet.len(),
        merged: met.len(),
        missed: quiet.difference(&met).count(),
        invented: met.difference(&known).count(),
    }
}

/// All states, by their fingerprints. `f` is given each of them once.
fn all(model: &Hosts, mut f: impl FnMut(State)) -> HashSet<u128> {
    let mut bytes = Bytes::default();
    let mut ahead = model.init_states();
    let mut met: HashSet<u128> = ahead.iter().map(|state| bytes.fingerprint(state)).collect();
    let mut actions = Vec::new();
    while let Some(state) = ahead.pop() {
        actions.clear();
        model.actions(&state, &mut actions);
        for action in actions.drain(..) {
            if let Some(next) = model.next_state(&state, action)
                && met.insert(bytes.fingerprint(&next))
            {
                ahead.push(next);
            }
        }
        f(state);
    }
    met
}

impl Hosts {
    /// The state of the merged exploration that stands for one of single steps.
    fn as_merged(&self, mut state: State) -> State {
        if self.merges(&state) {
            self.pass(&mut state);
        }
        smallest(state.normal(), &self.turns()).0
    }
}

impl State {
    fn is_quiet(&self) -> bool {
        let is_quiet = |program: &super::Program| {
            let is_between = match program.claim_task {
                ClaimTask::Idle => false,
                ClaimTask::Working { step, .. } => STEPS[usize::from(step)] == Step::Flush,
                ClaimTask::Fencing { .. }
                | ClaimTask::Claiming { .. }
                | ClaimTask::Ending { .. } => true,
            };
            let is_settled = |stage| matches!(stage, Stage::Clean | Stage::Committed);
            !is_between
                && program.lock_task == LockTask::Idle
                && program.leaving.is_none()
                && program.holds.iter().flatten().all(|held| is_settled(held.stage))
        };
        let awaited = |flight: &Flight| match flight {
            Flight::Swap { by: Author::Program(by), swap } => {
                let is_pulse = matches!(swap, Swap::Slot { expect, .. } if expect.slot == by.slot);
                !is_pulse && self.at(*by).is_some()
            }
            Flight::Place { by, .. } => self.at(*by).is_some(),
            Flight::Swap { by: Author::Parent(_), .. } | Flight::Replay { .. } => false,
        };
        let mut running = self.programs.iter().filter(|p| p.is_running && p.is_admitted);
        running.all(is_quiet) && !self.flights.iter().any(awaited)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hosts::Fence;

    #[test]
    fn what_is_left_out_is_in_no_other_state() {
        let volume = Hosts {
            answers: false,
            blocks_fail: false,
            leaves: false,
            pulses: false,
            ..Hosts::new(2, 1, 1, Fence::Mark)
        };
        let found = compare(&volume);
        assert_eq!((found.missed, found.invented), (0, 0), "{found:?}");
        assert!(found.merged * 10 < found.every, "{found:?}");
    }
}
