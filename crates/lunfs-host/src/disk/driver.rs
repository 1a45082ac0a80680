//! The thread that owns the io_uring: reads, writes and flushes, many in flight.
//!
//! ```text
//!  channel -> waiting -> ready -------> in flight ------> answered
//!                          ^  clock looked  |
//!                          +--- remainder --+   after a short read or write, or a "try again"
//! ```
//!
//! Invariants:
//! - A buffer belongs to its request until the kernel has answered it: if this thread cannot go on,
//!   the process ends rather than free memory that a device may still use.
//! - Between the look at the clock and the submission lies no copying and no waiting (R1).

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, TryRecvError};

use io_uring::squeue::Entry;
use io_uring::{IoUring, opcode, types};
use lunfs_core::env::{Instant, IoError};
use rustix::event::EventfdFlags;
use tokio::sync::oneshot;

use super::buffer::{AlignedBuffer, BufferPool};
use super::source::Source;
use crate::clock::boottime;

/// Requests in flight; more wait.
const DEPTH: usize = 256;
/// How often one request is submitted again after "try again".
const ATTEMPTS_MAX: u32 = 100;
/// Marks the completion of the bell's poll.
const BELL: u64 = u64::MAX;

/// What the driver is asked to do.
pub enum Command {
    Read { at: u64, len: usize, answer: oneshot::Sender<Result<Vec<u8>, IoError>> },
    Write { at: u64, data: Vec<u8>, fua: bool, until: Instant, answer: Acknowledge },
    Flush { answer: Acknowledge },
}

/// Who waits for a write or flush.
pub type Acknowledge = oneshot::Sender<Result<(), IoError>>;

/// Wakes the driver; costs a system call only while it sleeps.
pub struct Bell {
    asleep: AtomicBool,
    event: OwnedFd,
}

impl Bell {
    pub fn new() -> io::Result<Bell> {
        let event = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Bell { asleep: AtomicBool::new(false), event })
    }

    /// Makes the driver look at its channel, after something was put there.
    pub fn ring(&self) {
        // SeqCst orders this after the channel's push as the driver sees it: either the driver
        // finds the push before it sleeps, or we find it asleep.
        if self.asleep.swap(false, Ordering::SeqCst) {
            rustix::io::write(&self.event, &1u64.to_le_bytes()).expect("an eventfd takes a one");
        }
    }

    fn silence(&self) {
        // Nobody rang if this would block.
        let _ = rustix::io::read(&self.event, &mut [0u8; 8]);
    }
}

enum Work {
    Read { answer: oneshot::Sender<Result<Vec<u8>, IoError>> },
    Write { fua: bool, until: Instant, answer: Acknowledge },
    Flush { answer: Acknowledge },
}

struct Request {
    work: Work,
    buffer: AlignedBuffer,
    at: u64,
    len: usize,
    done: usize,
    attempts: u32,
}

/// The state of the thread.
pub struct Driver {
    ring: IoUring,
    source: Arc<Source>,
    bell: Arc<Bell>,
    commands: Receiver<Command>,
    waiting: VecDeque<Command>,
    ready: Vec<Request>,
    flights: Vec<Option<Request>>,
    vacant: Vec<usize>,
    pool: BufferPool,
    is_closed: bool,
}

impl Driver {
    /// A driver for `source`; must be made on the thread that runs it.
    pub fn new(
        source: Arc<Source>,
        bell: Arc<Bell>,
        commands: Receiver<Command>,
    ) -> io::Result<Driver> {
        Ok(Driver {
            ring: new_ring()?,
            source,
            bell,
            commands,
            waiting: VecDeque::new(),
            ready: Vec::new(),
            flights: (0..DEPTH).map(|_| None).collect(),
            vacant: (0..DEPTH).rev().collect(),
            pool: BufferPool::default(),
            is_closed: false,
        })
    }

    /// Serves until the senders are gone and everything in flight is answered.
    pub fn run(mut self) {
        let _guard = AbortOnPanic;
        self.listen();
        loop {
            self.take_commands();
            self.prepare();
            self.submit_ready();
            if self.is_closed && self.is_idle() {
                return;
            }
            self.wait();
            self.reap();
        }
    }

    fn is_idle(&self) -> bool {
        self.vacant.len() == DEPTH && self.waiting.is_empty() && self.ready.is_empty()
    }

    /// Is there something new in the channel?
    fn take_commands(&mut self) -> bool {
        let before = self.waiting.len();
        loop {
            match self.commands.try_recv() {
                Ok(command) => self.waiting.push_back(command),
                Err(TryRecvError::Empty) => return self.waiting.len() > before,
                Err(TryRecvError::Disconnected) => {
                    let news = !self.is_closed || self.waiting.len() > before;
                    self.is_closed = true;
                    return news;
                }
            }
        }
    }

    /// Makes requests of commands, with the copying that this needs, while there is room in flight.
    fn prepare(&mut self) {
        while self.ready.len() < self.vacant.len() {
            let Some(command) = self.waiting.pop_front() else { return };
            let request = self.request(command);
            self.ready.push(request);
        }
    }

    fn request(&mut self, command: Command) -> Request {
        let (work, at, len, data) = match command {
            Command::Read { at, len, answer } => (Work::Read { answer }, at, len, None),
            Command::Write { at, data, fua, until, answer } => {
                (Work::Write { fua, until, answer }, at, data.len(), Some(data))
            }
            Command::Flush { answer } => (Work::Flush { answer }, 0, 0, None),
        };
        let mut buffer = self.pool.take(len);
        if let Some(data) = data {
            buffer.bytes_mut()[..len].copy_from_slice(&data);
        }
        Request { work, buffer, at, len, done: 0, attempts: 0 }
    }

    fn submit_ready(&mut self) {
        for request in std::mem::take(&mut self.ready) {
            match request.refusal() {
                Some(late) => self.finish(request, Err(late)),
                None => self.push(request),
            }
        }
    }

    fn push(&mut self, mut request: Request) {
        let place = self.vacant.pop().expect("no more is ready than there is room in flight");
        let entry = request.entry(&self.source).user_data(place as u64);
        self.flights[place] = Some(request);
        self.push_entry(&entry);
    }

    fn push_entry(&mut self, entry: &Entry) {
        // SAFETY: the entry points into the buffer of a request that stays in `flights` until its
        // completion was reaped (or at nothing, for the bell); run() aborts rather than drop it.
        let pushed = unsafe { self.ring.submission().push(entry) };
        pushed.expect("the ring is larger than all that is in flight");
    }

    /// Submits what was pushed and sleeps until a completion or the bell.
    fn wait(&mut self) {
        self.bell.asleep.store(true, Ordering::SeqCst);
        // Who pushed before we said that we sleep did not ring.
        if self.take_commands() {
            self.bell.asleep.store(false, Ordering::SeqCst);
        }
        let sleeps = self.bell.asleep.load(Ordering::SeqCst);
        let entered = match sleeps {
            true => self.ring.submit_and_wait(1),
            false => self.ring.submit(),
        };
        self.bell.asleep.store(false, Ordering::SeqCst);
        match entered.map_err(|e| e.raw_os_error()) {
            Ok(_) | Err(Some(libc::EINTR | libc::EAGAIN | libc::EBUSY)) => {}
            Err(e) => panic!("io_uring does not go on: {e:?}"),
        }
    }

    /// Asks to be woken by the bell.
    fn listen(&mut self) {
        let event = types::Fd(self.bell.event.as_raw_fd());
        let readable = u32::from(libc::POLLIN.unsigned_abs());
        self.push_entry(&opcode::PollAdd::new(event, readable).build().user_data(BELL));
    }

    fn reap(&mut self) {
        let done: Vec<(u64, i32)> =
            self.ring.completion().map(|c| (c.user_data(), c.result())).collect();
        for (place, result) in done {
            if place == BELL {
                self.bell.silence();
                self.listen();
                continue;
            }
            let place = usize::try_from(place).expect("a place in flight");
            let request = self.flights[place].take().expect("every flight lands once");
            self.vacant.push(place);
            self.land(request, result);
        }
    }

    fn land(&mut self, mut request: Request, result: i32) {
        match request.advance(result, self.source.capabilities().logical_block as usize) {
            Some(outcome) => self.finish(request, outcome),
            None => self.ready.push(request),
        }
    }

    fn finish(&mut self, request: Request, outcome: Result<(), IoError>) {
        // Whoever asked may have stopped waiting.
        match request.work {
            Work::Read { answer } => {
                let data = outcome.map(|()| request.buffer.bytes()[..request.len].to_vec());
                drop(answer.send(data));
            }
            Work::Write { answer, .. } => drop(answer.send(outcome)),
            Work::Flush { answer } => drop(answer.send(self.source.flushed(outcome))),
        }
        self.pool.give(request.buffer);
    }
}

impl Request {
    /// Why this may not be submitted (any more).
    fn refusal(&self) -> Option<IoError> {
        let Work::Write { until, .. } = self.work else { return None };
        if boottime() < until {
            return None;
        }
        Some(match self.done + self.attempts as usize {
            0 => IoError::TooLate,
            _ => self.error("the lease ended before the rest was submitted"),
        })
    }

    fn entry(&mut self, source: &Source) -> Entry {
        let file = types::Fd(source.as_fd().as_raw_fd());
        let at = self.at + self.done as u64;
        let rest = &mut self.buffer.bytes_mut()[self.done..self.len];
        let len = u32::try_from(rest.len()).expect("no request is as large as 4 GiB");
        match self.work {
            Work::Read { .. } => opcode::Read::new(file, rest.as_mut_ptr(), len).offset(at).build(),
            Work::Write { fua, .. } => {
                let flags = if fua { libc::RWF_DSYNC } else { 0 };
                opcode::Write::new(file, rest.as_ptr(), len).offset(at).rw_flags(flags).build()
            }
            Work::Flush { .. } => {
                opcode::Fsync::new(file).flags(types::FsyncFlags::DATASYNC).build()
            }
        }
    }

    /// Takes the kernel's result; `None`: submit (the rest) again.
    fn advance(&mut self, result: i32, logical_block: usize) -> Option<Result<(), IoError>> {
        if result < 0 {
            let again = matches!(-result, libc::EAGAIN | libc::EINTR);
            if again && self.attempts < ATTEMPTS_MAX {
                self.attempts += 1;
                return None;
            }
            return Some(Err(self.error(&io::Error::from_raw_os_error(-result).to_string())));
        }
        // Direct I/O goes on at a whole block only; what a torn block holds is written once more.
        let count = usize::try_from(result).expect("not negative");
        let done = self.done + count;
        if done == self.len {
            return Some(Ok(()));
        }
        let whole = done / logical_block * logical_block;
        if whole <= self.done {
            return Some(Err(self.error(&format!("only {done} of {} bytes", self.len))));
        }
        self.done = whole;
        None
    }

    /// A failed read gave nothing. A failed write may have happened, or may yet.
    fn error(&self, why: &str) -> IoError {
        let Request { at, len, .. } = self;
        match self.work {
            Work::Read { .. } => IoError::Failed(format!("read of {len} bytes at {at}: {why}")),
            Work::Write { .. } => IoError::InDoubt(format!("write of {len} bytes at {at}: {why}")),
            Work::Flush { .. } => IoError::Unflushed(why.to_owned()),
        }
    }
}

/// A ring for one thread; the plain kind on kernels before 6.0. Without "defer taskrun": then
/// completions would come only while we sleep, and under steady load we do not.
fn new_ring() -> io::Result<IoUring> {
    let entries = u32::try_from(2 * DEPTH).expect("a small number");
    let mut builder = IoUring::builder();
    builder.setup_single_issuer().setup_coop_taskrun();
    builder.build(entries).or_else(|_| IoUring::new(entries))
}

/// Ends the process if the driver panics: its buffers may be in use by the device.
struct AbortOnPanic;

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            std::process::abort();
        }
    }
}

#[cfg(test)]
#[path = "driver_tests.rs"]
mod tests;
