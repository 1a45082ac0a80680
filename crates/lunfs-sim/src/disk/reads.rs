//! What reads in flight have fetched, copied as late as possible.
//!
//! A read sees each of its blocks as it was when it was touched, and is answered later. Few reads
//! meet a write in between: until one does, the medium still shows what was fetched, and nothing
//! is copied before the answer takes it away.
//!
//! Invariant: a read without a copy of its own is listed here, and none of its blocks has changed
//! since it touched the first of them.

use std::collections::BTreeMap;
use std::ops::Range;

use super::index;
use super::medium::Medium;
use super::op::Op;
use super::plan::Units;

/// The reads that have begun to fetch and have no copy yet: their numbers and blocks.
#[derive(Default)]
pub struct Reads(Vec<(u64, Range<u64>)>);

impl Reads {
    /// A read touches blocks.
    pub fn fetch(&mut self, medium: &Medium, number: u64, op: &mut Op, units: &Units) {
        let size = index(op.wanted.len) / op.count.max(1) as usize;
        match (&mut op.buffer, units) {
            // Changed since the first touch: these blocks are seen as they are now.
            (Some(buffer), Units::Some(runs)) => {
                for run in runs {
                    let to = &mut buffer[run.start as usize * size..run.end as usize * size];
                    medium.read(op.unit + u64::from(run.start), to);
                }
            }
            (Some(buffer), Units::All) => medium.read(op.unit, buffer),
            (None, _) if self.0.iter().any(|(known, _)| *known == number) => {}
            (None, _) => self.0.push((number, op.blocks())),
        }
    }

    /// Blocks are about to change: reads that have fetched any of them get a copy.
    pub fn keep(&mut self, medium: &Medium, ops: &mut BTreeMap<u64, Op>, blocks: &Range<u64>) {
        self.0.retain(|(number, read)| {
            let meets = read.start < blocks.end && blocks.start < read.end;
            if meets && let Some(op) = ops.get_mut(number) {
                op.buffer = Some(medium.bytes(op.unit, index(op.wanted.len)));
            }
            !meets
        });
    }

    /// A read is answered with what it fetched.
    pub fn end(&mut self, medium: &Medium, number: u64, op: &mut Op) -> Vec<u8> {
        op.buffer.take().unwrap_or_else(|| {
            self.0.retain(|(known, _)| *known != number);
            medium.bytes(op.unit, index(op.wanted.len))
        })
    }

    /// These reads will not be answered.
    pub fn forget(&mut self, is_gone: impl Fn(u64) -> bool) {
        self.0.retain(|(number, _)| !is_gone(*number));
    }
}
