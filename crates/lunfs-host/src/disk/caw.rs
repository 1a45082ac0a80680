//! Compare-and-write where the device has none: locked, read, compared, written, flushed.
//!
//! One thread serves all requests of this program, because marks of one description do not
//! exclude its own threads. Requests that wait together share one flush:
//!
//! ```text
//! pending --try mark--> batch: read all, compare all, write all -> one fdatasync
//!     ^                    |                                       -> unmark all -> answers
//!     +-- mark is held ----+   again in a millisecond, for at most MARK_WAIT_MAX
//! ```
//!
//! Nobody waits for a mark while holding another one, so hosts cannot wait for each other.
//!
//! A crash between write and flush leaves the new image on disk, perhaps not durable: the caller
//! was told nothing, and whoever acts upon that image does so by a compare-and-write of its own,
//! whose flush makes both durable.
//!
//! A flush that fails says so of everything that this program was answered, not only of this
//! block: it is answered as such (`Unflushed`), and nothing is exchanged any more.

use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use lunfs_core::env::{Compared, Instant, IoError};
use rustix::io::Errno;
use tokio::sync::oneshot;

use super::buffer::{ALIGNMENT, AlignedBuffer};
use super::source::Source;
use crate::clock::boottime;
use crate::ofd;

/// How long a request waits for a mark that another program holds.
const MARK_WAIT_MAX: Duration = Duration::from_secs(2);
/// Pause before a held mark is tried again.
const MARK_RETRY: Duration = Duration::from_millis(1);
/// Requests that share a flush.
const BATCH_MAX: usize = 64;

type Outcome = Result<Compared, IoError>;

/// One compare-and-write.
pub struct Exchange {
    /// Where the block starts.
    pub at: u64,
    /// What the block must be.
    pub expect: Vec<u8>,
    /// What it shall become.
    pub new: Vec<u8>,
    /// When it is too late.
    pub until: Instant,
}

/// One compare-and-write and who waits for it.
pub struct Request {
    pub exchange: Exchange,
    pub answer: oneshot::Sender<Outcome>,
}

struct Pending {
    request: Request,
    since: Instant,
}

/// Serves requests until their senders are gone.
pub fn serve(source: &Source, requests: &Receiver<Request>) {
    let mut pending: Vec<Pending> = Vec::new();
    let mut pause = Duration::ZERO;
    while gather(requests, &mut pending, pause) {
        let batch = take_marked(source, &mut pending);
        // What is left over waits for other programs, or for this batch.
        pause = if batch.is_empty() { MARK_RETRY } else { Duration::ZERO };
        exchange_and_answer(source, batch);
        give_up_old(&mut pending);
    }
}

/// Does one compare-and-write and waits, for programs without a core.
pub fn compare_and_write_now(source: &Source, exchange: &Exchange) -> Outcome {
    let since = boottime();
    loop {
        if let Some(_mark) = Mark::take(source, exchange.at)? {
            return exchange_all(source, &[exchange]).pop().expect("one exchange, one outcome");
        }
        if boottime().since(since) > MARK_WAIT_MAX {
            return Err(mark_held(exchange.at));
        }
        std::thread::sleep(MARK_RETRY);
    }
}

/// Takes what has come, and waits `pause` for more, or for ever if there is nothing to do.
/// `false`: nothing to do, and nobody left to ask.
fn gather(requests: &Receiver<Request>, pending: &mut Vec<Pending>, pause: Duration) -> bool {
    let first = match pending.is_empty() {
        true => requests.recv().map_err(|_| RecvTimeoutError::Disconnected),
        false => requests.recv_timeout(pause),
    };
    match first {
        Ok(request) => pending.push(Pending { request, since: boottime() }),
        Err(RecvTimeoutError::Timeout) => {}
        Err(RecvTimeoutError::Disconnected) if pending.is_empty() => return false,
        Err(RecvTimeoutError::Disconnected) => std::thread::sleep(pause),
    }
    while let Ok(request) = requests.try_recv() {
        pending.push(Pending { request, since: boottime() });
    }
    true
}

/// Moves requests whose block could be marked from `pending` into a batch, one per block.
fn take_marked<'s>(source: &'s Source, pending: &mut Vec<Pending>) -> Vec<(Request, Mark<'s>)> {
    let mut batch: Vec<(Request, Mark)> = Vec::new();
    let mut left: Vec<Pending> = Vec::new();
    for waiting in pending.drain(..) {
        let at = waiting.request.exchange.at;
        let busy = batch.len() == BATCH_MAX
            || batch.iter().any(|(request, _)| request.exchange.at == at)
            || left.iter().any(|other| other.request.exchange.at == at);
        let mark = if busy { Ok(None) } else { Mark::take(source, at) };
        match mark {
            Ok(Some(mark)) => batch.push((waiting.request, mark)),
            Ok(None) => left.push(waiting),
            Err(e) => answer(waiting.request, Err(e)),
        }
    }
    *pending = left;
    batch
}

fn exchange_and_answer(source: &Source, batch: Vec<(Request, Mark)>) {
    let exchanges: Vec<&Exchange> = batch.iter().map(|(request, _)| &request.exchange).collect();
    let outcomes = exchange_all(source, &exchanges);
    // The marks go before the answers: who is answered may at once ring another host for this
    // block.
    let requests: Vec<Request> = batch.into_iter().map(|(request, _mark)| request).collect();
    for (request, outcome) in requests.into_iter().zip(outcomes) {
        answer(request, outcome);
    }
}

fn give_up_old(pending: &mut Vec<Pending>) {
    let now = boottime();
    for old in pending.extract_if(.., |waiting| now.since(waiting.since) > MARK_WAIT_MAX) {
        let at = old.request.exchange.at;
        answer(old.request, Err(mark_held(at)));
    }
}

fn answer(request: Request, outcome: Outcome) {
    // Nobody may be waiting any more; the block is what it is.
    drop(request.answer.send(outcome));
}

fn mark_held(at: u64) -> IoError {
    let wait = MARK_WAIT_MAX.as_secs();
    IoError::Failed(format!(
        "another program has held the mark (lock byte) of the block at {at} for {wait} s; \
         is it stopped in the middle of a compare-and-write?"
    ))
}

/// Compares and writes blocks whose marks the caller holds; one flush for all.
fn exchange_all(source: &Source, exchanges: &[&Exchange]) -> Vec<Outcome> {
    if let Err(unflushed) = source.is_flushable() {
        return exchanges.iter().map(|_| Err(unflushed.clone())).collect();
    }
    let mut buffer = AlignedBuffer::new(ALIGNMENT);
    let mut outcomes: Vec<Outcome> =
        exchanges.iter().map(|exchange| exchange_one(source, exchange, &mut buffer)).collect();
    if !outcomes.contains(&Ok(Compared::Written)) {
        return outcomes;
    }
    if let Err(unflushed) = source.flush_now() {
        for outcome in outcomes.iter_mut().filter(|outcome| **outcome == Ok(Compared::Written)) {
            *outcome = Err(unflushed.clone());
        }
    }
    outcomes
}

fn exchange_one(source: &Source, exchange: &Exchange, buffer: &mut AlignedBuffer) -> Outcome {
    let Exchange { at, expect, new, until } = exchange;
    let block = &mut buffer.bytes_mut()[..expect.len()];
    if let Err(e) = source.fill(*at, block) {
        return Err(IoError::Failed(format!("cannot read the block at {at} to compare it: {e}")));
    }
    if block != expect.as_slice() {
        return Ok(Compared::Miscompare);
    }
    block.copy_from_slice(new);
    loop {
        // R1: the last look at the clock, and again at each further submission.
        if boottime() >= *until {
            return Err(IoError::TooLate);
        }
        return match rustix::io::pwrite(source, block, *at) {
            Ok(count) if count == block.len() => Ok(Compared::Written),
            Ok(count) => Err(in_doubt(*at, &format!("only {count} bytes were taken"))),
            Err(Errno::INTR) => continue,
            Err(e) => Err(in_doubt(*at, &e.to_string())),
        };
    }
}

fn in_doubt(at: u64, why: &str) -> IoError {
    IoError::InDoubt(format!("compare-and-write of the block at {at}: {why}"))
}

/// The mark of one block, held until dropped.
struct Mark<'s> {
    source: &'s Source,
    byte: u64,
}

impl Mark<'_> {
    /// `None`: another program holds it.
    fn take(source: &Source, at: u64) -> Result<Option<Mark<'_>>, IoError> {
        let byte = ofd::CAW_BASE + at;
        match ofd::try_lock(source, byte) {
            Ok(true) => Ok(Some(Mark { source, byte })),
            Ok(false) => Ok(None),
            Err(e) => Err(IoError::Failed(format!("cannot mark the block at {at}: {e}"))),
        }
    }
}

impl Drop for Mark<'_> {
    fn drop(&mut self) {
        if let Err(e) = ofd::unlock(self.source, self.byte) {
            // Others will time out on it and say so; the kernel drops it when we end.
            tracing::error!(event = "mark_stuck", byte = self.byte, "cannot give a mark back: {e}");
        }
    }
}
