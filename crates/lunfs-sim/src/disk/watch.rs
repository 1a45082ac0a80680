//! Being told what goes on at the disk.

use lunfs_core::env::Instant;

use super::faults::Request;
use crate::executor::Owner;

/// A request that passed its look at the clock.
#[derive(Debug)]
pub struct Submission<'a> {
    /// World time.
    pub time: u64,
    /// Whose.
    pub owner: Owner,
    /// What kind.
    pub request: Request,
    /// Where, in bytes.
    pub at: u64,
    /// How much, in bytes.
    pub len: u64,
    /// What is to be written.
    pub data: &'a [u8],
    /// What a compare-and-write expects.
    pub expect: Option<&'a [u8]>,
    /// The moment after which it must not be submitted.
    pub until: Instant,
    /// The submitting host's clock.
    pub host_now: Instant,
}

/// A logical block that changes on the disk.
#[derive(Debug)]
pub struct Landing<'a> {
    /// World time.
    pub time: u64,
    /// Whose request it was.
    pub owner: Owner,
    /// What kind.
    pub request: Request,
    /// Where, in bytes.
    pub at: u64,
    /// What was there, if it was compared; its first record, if it is metadata.
    pub before: Option<&'a [u8]>,
    /// What is there now.
    pub after: &'a [u8],
}

/// Somebody who is told.
pub trait Watch {
    /// A request was submitted.
    fn submitted(&self, submission: &Submission<'_>);
    /// Blocks of one request changed, all in this moment.
    fn landed(&self, landings: &[Landing<'_>]);
}
