//! How a program learns what became of its compare-and-writes.

use lunfs_core::env::{Compared, IoError};
use lunfs_core::settle::{Answered, Looked, answered, looked, unseen_stops};

use super::state::{Author, Flight, Op, State, Swap};
use crate::image::Life;

/// What the device says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum How {
    /// The truth.
    Plain,
    /// It was done twice, and the second try miscompared.
    Doubled,
    /// Nothing: whether it was done, may still be done or never will be is not known.
    Lost,
    /// It was not done and never will be.
    Failed,
}

/// What the caller of a compare-and-write is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    /// It was done.
    Won,
    /// It was not and never will be.
    Lost,
    /// Nothing yet: the same is tried once more.
    Again(Op),
    /// An error, and nobody knows anything.
    Error,
    /// This host has to stop.
    Stop,
}

impl State {
    /// What the program `by` is told, which waits for `op`, after an answer and a look; `sees`:
    /// the block could be read. `None`: the device cannot say that now.
    pub fn told(&mut self, by: Life, op: Op, how: How, sees: bool) -> Option<Told> {
        let answer = match (how, op.landed) {
            (How::Plain, Some(true)) => Ok(Compared::Written),
            (How::Plain, Some(false)) | (How::Doubled, Some(true)) => Ok(Compared::Miscompare),
            (How::Lost, _) => Err(IoError::InDoubt(String::new())),
            (How::Failed, None) => Err(IoError::Failed(String::new())),
            (How::Plain, None) | (How::Doubled, Some(false) | None) | (How::Failed, Some(_)) => {
                return None;
            }
        };
        let last = answered(&answer);
        let doubt = match last {
            Answered::Done => return sees.then_some(Told::Won),
            Answered::Never | Answered::Unflushed => unreachable!("nothing here answers so"),
            Answered::Doubt => true,
            Answered::Unlike | Answered::Undone => op.doubt,
        };
        // An attempt before this one may be under way still.
        if how == How::Failed && !op.doubt {
            let swap = op.swap;
            let flight = Flight::Swap { by: Author::Program(by), swap };
            self.flights.retain(|f| *f != flight);
        }
        if !sees {
            return Some(if unseen_stops(doubt, last) { Told::Stop } else { Told::Error });
        }
        let found = match op.swap {
            Swap::Slot { expect, new } => looked(&self.slots[expect.slot as usize], &expect, &new),
            Swap::Lock { lock, expect, new } => looked(&self.locks[lock as usize], &expect, &new),
        };
        Some(match found {
            Looked::Won => Told::Won,
            Looked::Lost => Told::Lost,
            Looked::Again => Told::Again(self.swap(by, op.swap, doubt)),
        })
    }
}
