//! A request on its way through the disk.

use std::ops::Range;
use std::rc::Rc;

use lunfs_core::env::{Compared, Instant, IoError};

use super::faults::Request;
use super::medium::{Answered, Bytes};
use super::plan::{Steps, Units};
use super::reply::Reply;
use crate::executor::Owner;

/// What a request ended with.
#[derive(Clone, Debug)]
pub(crate) enum Outcome {
    Data(Vec<u8>),
    Done,
    Compared(Compared),
}

pub(crate) type Answer = std::result::Result<Outcome, IoError>;

/// What is wanted of the disk.
pub(crate) struct Wanted {
    pub request: Request,
    pub at: u64,
    pub len: u64,
    pub data: Bytes,
    pub expect: Option<Vec<u8>>,
    pub fua: bool,
    pub until: Instant,
}

pub(super) struct Op {
    pub owner: Owner,
    pub wanted: Wanted,
    /// First block.
    pub unit: u64,
    /// Its blocks.
    pub count: u32,
    pub reply: Option<Reply<Answer>>,
    pub answered: Answered,
    /// Its place in the order of calls and answers: what a flush covers.
    pub called: u64,
    /// Which blocks were written.
    pub touched: Vec<Units>,
    /// What a read has fetched, if the medium does not show it any more.
    pub buffer: Option<Vec<u8>>,
    pub compared: Option<Compared>,
    /// Its flush failed: no later flush covers it.
    pub is_unflushed: bool,
    /// Steps planned under another epoch are void.
    pub epoch: u32,
    /// What is still to happen, last first.
    pub steps: Steps,
    pub held: bool,
}

impl Op {
    /// Where it lies on the disk, in blocks.
    pub fn blocks(&self) -> Range<u64> {
        self.unit..self.unit + u64::from(self.count)
    }

    /// Blocks that were not touched.
    pub fn untouched(&self) -> Vec<u32> {
        let mut is_touched = vec![false; self.count as usize];
        for units in &self.touched {
            match units {
                Units::All => return Vec::new(),
                Units::Some(runs) => {
                    for run in runs {
                        is_touched[run.start as usize..run.end as usize].fill(true);
                    }
                }
            }
        }
        (0..self.count).filter(|&unit| !is_touched[unit as usize]).collect()
    }

    /// Will it change the disk yet, or may it?
    pub fn may_change(&self) -> bool {
        self.wanted.request.changes()
    }

    /// The write's bytes, shared.
    pub fn data(&self) -> Bytes {
        Rc::clone(&self.wanted.data)
    }
}
