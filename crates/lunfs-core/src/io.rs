//! The lease gate: every read, write and compare-and-write of the core passes here.
//!
//! Invariants:
//! - R1: a write is submitted only while the lease is open, and the disk looks at the clock again
//!   when it submits. What was read is delivered only once the lease is open after the read.
//! - A write that failed or is in doubt stops this host for good: nothing is retried into the
//!   unknown. A write for a dead host that is being recovered is its recoverer's to care for.
//! - R11: a flush that failed stops this host for good, also one beneath a compare-and-write.
//! - A compare-and-write in doubt is settled before its caller learns anything (R2, H4).
//!
//! Pulses do not pass here; they are what opens the gate (liveness.rs).

use std::cell::{Cell, RefCell};
use std::time::Duration;

use lunfs_format::{BLOCK, BlockNo, RECORD, Record};
use tokio::sync::Notify;

use crate::counters::Counters;
use crate::env::{Env, Instant, IoError};
use crate::error::{Error, Kind, Result};
use crate::liveness::{extended, lease_is_open};
use crate::settle::{Answered, Looked, answered, looked, unseen_stops};

/// How often a failed read is tried again before it is an error.
const READ_ATTEMPTS: u32 = 5;
/// Pause before a read or an unsettled compare-and-write is tried again.
const RETRY_PAUSE: Duration = Duration::from_millis(20);

/// How a settled compare-and-write ended.
#[derive(Debug)]
pub enum Settled {
    /// The block held the expected image and now holds, or once held, the new one.
    Won,
    /// Another image was there; these are its bytes.
    Lost(Vec<u8>),
}

/// The disk behind the lease gate.
pub struct Io {
    /// The four doors.
    pub env: Env,
    logical_block: usize,
    lease_until: Cell<Instant>,
    stopped: RefCell<Option<String>>,
    changed: Notify,
    flushes_begun: Cell<u64>,
    flushes_ended: Cell<u64>,
    /// What happened so far.
    pub counters: Cell<Counters>,
}

impl Io {
    /// A gate that is closed until the first `open_until`.
    pub fn new(env: Env, logical_block: u32) -> Io {
        Io {
            env,
            logical_block: logical_block as usize,
            lease_until: Cell::new(Instant(0)),
            stopped: RefCell::new(None),
            changed: Notify::new(),
            flushes_begun: Cell::new(0),
            flushes_ended: Cell::new(0),
            counters: Cell::new(Counters::default()),
        }
    }

    /// Changes the counters.
    pub fn count(&self, change: impl FnOnce(&mut Counters)) {
        let mut counters = self.counters.get();
        change(&mut counters);
        self.counters.set(counters);
    }

    /// A good pulse extends the lease; it never shortens it.
    pub fn open_until(&self, until: Instant) {
        self.lease_until.set(extended(self.lease_until.get(), until));
        self.changed.notify_waiters();
    }

    /// Sets the end of the lease, for joining only.
    pub fn set_lease(&self, until: Instant) {
        self.lease_until.set(until);
        self.changed.notify_waiters();
    }

    /// Moment at which the lease ends.
    pub fn lease_until(&self) -> Instant {
        self.lease_until.get()
    }

    /// Is the lease open now?
    pub fn is_open(&self) -> bool {
        self.stopped.borrow().is_none()
            && lease_is_open(self.env.clock.now(), self.lease_until.get())
    }

    /// Stops this host for good. The first reason stays.
    pub fn stop(&self, why: impl Into<String>) {
        let mut stopped = self.stopped.borrow_mut();
        if stopped.is_none() {
            let why = why.into();
            tracing::error!(event = "stop", why, "this host stops writing for good");
            *stopped = Some(why);
        }
        drop(stopped);
        self.lease_until.set(Instant(0));
        self.changed.notify_waiters();
    }

    /// Closes the gate for good after a clean unmount.
    pub fn close(&self) {
        self.stopped.borrow_mut().get_or_insert_with(|| "unmounted".into());
        self.lease_until.set(Instant(0));
        self.changed.notify_waiters();
    }

    /// Why this host stopped, if it did.
    pub fn stopped(&self) -> Option<String> {
        self.stopped.borrow().clone()
    }

    /// Waits until this host stops; returns why.
    pub async fn until_stopped(&self) -> String {
        loop {
            let changed = self.changed.notified();
            if let Some(why) = self.stopped() {
                return why;
            }
            changed.await;
        }
    }

    /// Waits until the lease is open; returns the moment it ends.
    pub async fn pass(&self) -> Result<Instant> {
        loop {
            let changed = self.changed.notified();
            if let Some(why) = self.stopped() {
                return Err(Error::new(Kind::Stopped, why));
            }
            if lease_is_open(self.env.clock.now(), self.lease_until.get()) {
                return Ok(self.lease_until.get());
            }
            changed.await;
        }
    }

    /// Reads bytes at a byte offset.
    pub async fn read_at(&self, at: u64, len: usize) -> Result<Vec<u8>> {
        let mut attempt = 0;
        let data = loop {
            match self.env.disk.read(at, len).await {
                Ok(data) => break data,
                Err(e) if attempt + 1 >= READ_ATTEMPTS => return Err(e.into()),
                Err(_) => attempt += 1,
            }
            self.env.clock.sleep(RETRY_PAUSE).await;
        };
        // R1: a host that was stopped while it read must not deliver what it found (H15).
        self.pass().await?;
        Ok(data)
    }

    /// Reads whole blocks.
    pub async fn read(&self, at: BlockNo, blocks: usize) -> Result<Vec<u8>> {
        self.read_at(at.offset(), blocks * BLOCK).await
    }

    /// Reads one record, which lies at the start of a logical block.
    pub async fn read_record(&self, at: u64) -> Result<Vec<u8>> {
        self.read_at(at, self.logical_block).await
    }

    /// Writes at a block. A failure stops this host.
    pub async fn write(&self, at: BlockNo, data: Vec<u8>, fua: bool) -> Result<()> {
        match self.write_for_another(at, data, fua).await {
            Err(e) if e.kind == Kind::Io => {
                // It may land at any time: whoever takes over must fence us first, and we must not
                // act as if it had or had not happened.
                self.stop(e.what.clone());
                Err(Error::new(Kind::Stopped, e.what))
            }
            done => done,
        }
    }

    /// Writes at a block that is a dead host's, whom we are recovering. A failure is the caller's
    /// to care for: that write may land at any time while this host lives.
    pub async fn write_for_another(&self, at: BlockNo, data: Vec<u8>, fua: bool) -> Result<()> {
        loop {
            let until = self.pass().await?;
            match self.env.disk.write(at.offset(), data.clone(), fua, until).await {
                Ok(()) => return Ok(()),
                Err(IoError::TooLate) => {}
                Err(e) => {
                    let why = format!("a write of block {at} failed: {e}");
                    return Err(Error::new(Kind::Io, why));
                }
            }
        }
    }

    /// Makes everything answered so far durable.
    pub async fn flush(&self) -> Result<()> {
        self.pass().await?;
        let number = self.flushes_begun.get() + 1;
        self.flushes_begun.set(number);
        match self.env.disk.flush().await {
            Ok(()) => {
                self.flushes_ended.set(self.flushes_ended.get().max(number));
                Ok(())
            }
            Err(e) => Err(self.flush_failed(&e)),
        }
    }

    /// Stops this host after a flush that failed, also one beneath a compare-and-write: what was
    /// answered before may be lost, and a later flush that succeeds would not say so (R11).
    pub fn flush_failed(&self, e: &IoError) -> Error {
        self.stop(format!("a flush failed: {e}"));
        Error::new(Kind::Stopped, e.to_string())
    }

    /// Flushes begun so far. What was answered by now is durable once a later one ended.
    pub fn flushes_begun(&self) -> u64 {
        self.flushes_begun.get()
    }

    /// Makes what was answered when `begun` flushes had begun durable, if no flush has since.
    pub async fn flush_after(&self, begun: u64) -> Result<()> {
        if self.is_flushed_after(begun) { Ok(()) } else { self.flush().await }
    }

    /// Is what was answered when `begun` flushes had begun durable?
    pub fn is_flushed_after(&self, begun: u64) -> bool {
        self.flushes_ended.get() > begun
    }

    fn padded(&self, record: &Record) -> Vec<u8> {
        let mut bytes = vec![0; self.logical_block];
        bytes[..RECORD].copy_from_slice(record);
        bytes
    }

    /// Replaces `expect` by `new` at byte offset `at` and settles every doubt before it answers.
    pub async fn compare_and_write(
        &self,
        at: u64,
        expect: &Record,
        new: &Record,
    ) -> Result<Settled> {
        let mut doubt = false;
        loop {
            let until = self.pass().await?;
            let (old, image) = (self.padded(expect), self.padded(new));
            let answer = self.env.disk.compare_and_write(at, old, image, until).await;
            let last = answered(&answer);
            match last {
                Answered::Done => {
                    if doubt {
                        self.count(|c| c.in_doubt_not_landed += 1);
                    }
                    return Ok(Settled::Won);
                }
                Answered::Never => continue,
                Answered::Doubt => doubt = true,
                Answered::Unlike => {}
                Answered::Undone => self.env.clock.sleep(RETRY_PAUSE).await,
                Answered::Unflushed => {
                    let e = answer.expect_err("only an error says so");
                    return Err(self.flush_failed(&e));
                }
            }
            let found = match self.read_record(at).await {
                Ok(found) => found,
                Err(e) if unseen_stops(doubt, last) && e.kind != Kind::Stopped => {
                    self.stop(format!("a compare-and-write at byte {at} stays in doubt: {e}"));
                    return Err(Error::new(Kind::Stopped, e.to_string()));
                }
                Err(e) => return Err(e),
            };
            match looked(&found[..RECORD], &expect[..], &new[..]) {
                Looked::Won => {
                    self.count(|c| c.in_doubt_landed += 1);
                    return Ok(Settled::Won);
                }
                Looked::Lost => {
                    self.count(|c| c.in_doubt_lost += u64::from(doubt));
                    return Ok(Settled::Lost(found));
                }
                Looked::Again => {}
            }
        }
    }
}
