//! The only doors out of the core: disk, fence, clock, chance.
//!
//! The core runs on one thread. Everything it does passes through these four traits, so that the
//! simulator runs exactly what ships. Implementations translate; they never decide.

use std::rc::Rc;
use std::time::Duration;

use futures_util::future::LocalBoxFuture;
use lunfs_format::{Pulse, SlotNo, Timestamp};

/// A moment on this host's clock: nanoseconds of `CLOCK_BOOTTIME`, which also runs while the
/// machine is suspended. Moments of different hosts cannot be compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Instant(pub u64);

impl Instant {
    /// Later than every moment: for writes that no lease limits.
    pub const FAR: Instant = Instant(u64::MAX);

    /// Time since `earlier`, or zero if that lies ahead.
    pub fn since(self, earlier: Instant) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl std::ops::Add<Duration> for Instant {
    type Output = Instant;
    fn add(self, d: Duration) -> Instant {
        Instant(self.0.saturating_add(u64::try_from(d.as_nanos()).unwrap_or(u64::MAX)))
    }
}

/// What a device answered when it did not do what it was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IoError {
    /// It may have been done, may still be done, or may never be.
    #[error("in doubt: {0}")]
    InDoubt(String),
    /// It was not and never will be done (a read: no data came).
    #[error("{0}")]
    Failed(String),
    /// The lease was over before it was submitted: it was not and never will be done.
    #[error("not submitted: the lease is over")]
    TooLate,
    /// A flush failed, the one that was asked for or the one that belongs to what was: nothing that
    /// was answered since the last good flush may be believed durable, whatever later ones answer.
    /// What was asked may have been done.
    #[error("what is not flushed may be lost: {0}")]
    Unflushed(String),
}

/// What a compare-and-write found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compared {
    /// The block was as expected and is now the new one, durably.
    Written,
    /// The block was something else and is unchanged.
    Miscompare,
}

/// What a device says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// Unit of compare-and-write in bytes: 512 or 4096.
    pub logical_block: u32,
    /// Size in bytes.
    pub size: u64,
}

/// A future of the core: it lives on the core's thread.
pub type Answer<T> = LocalBoxFuture<'static, T>;

/// The shared disk. Offsets and lengths are in bytes and multiples of the logical block.
///
/// Writes carry the moment after which they must not be handed to the device (`until`): the
/// implementation looks at the clock again at its lowest layer, at each submission (R1).
pub trait Disk {
    /// What the device says of itself.
    fn capabilities(&self) -> Capabilities;
    /// Reads `len` bytes.
    fn read(&self, at: u64, len: usize) -> Answer<Result<Vec<u8>, IoError>>;
    /// Writes; with `fua` it is durable when answered. Tears between logical blocks.
    fn write(
        &self,
        at: u64,
        data: Vec<u8>,
        fua: bool,
        until: Instant,
    ) -> Answer<Result<(), IoError>>;
    /// Makes every write answered before this call durable. `Unflushed`, if it or an earlier flush
    /// has failed, also one beneath a compare-and-write.
    fn flush(&self) -> Answer<Result<(), IoError>>;
    /// Atomically replaces one logical block if it is `expect`; durable when answered. Where that
    /// takes a flush, it may fail (`Unflushed`).
    fn compare_and_write(
        &self,
        at: u64,
        expect: Vec<u8>,
        new: Vec<u8>,
        until: Instant,
    ) -> Answer<Result<Compared, IoError>>;
    /// Tells the device that a range is not in use. What it reads afterwards is undefined.
    fn unmap(&self, at: u64, len: u64, until: Instant) -> Answer<Result<(), IoError>>;
}

/// What can be said at once, without waiting, of the program that runs a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    /// Proven gone, and every write it submitted has landed or never will.
    Gone,
    /// It exists.
    Present,
    /// Cannot be said from here.
    Unknown,
}

/// Why a fence is not confirmed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct FenceError(pub String);

/// Makes sure that a host can no longer write.
pub trait Fence {
    /// Takes the life mark of `slot` for this program; `false`: another program has it.
    fn enter(&self, slot: SlotNo) -> Result<bool, FenceError>;
    /// Gives the life mark back; only before the slot was ever ours.
    fn leave(&self, slot: SlotNo);
    /// Looks at the life mark of `slot`.
    fn life(&self, slot: SlotNo) -> Life;
    /// Stops the program that `victim` describes and waits until all it submitted has landed or
    /// never will. `Ok` is the proof that replay waits for (R4).
    fn fence(&self, victim: &Pulse) -> Answer<Result<(), FenceError>>;
    /// Waits for a while for the end of the program that `victim` describes, whose life mark is
    /// ours. Stops nobody. `Ok` proves the same as a fence.
    fn ended(&self, victim: &Pulse) -> Answer<Result<(), FenceError>>;
    /// Name of the method, for people: `image file`, ...
    fn method(&self) -> &'static str;
}

/// Time as this host sees it.
pub trait Clock {
    /// Now.
    fn now(&self) -> Instant;
    /// Ends at `at` or later.
    fn sleep_until(&self, at: Instant) -> Answer<()>;
    /// The time of day, for file times only; nothing is decided by it.
    fn wall(&self) -> Timestamp;

    /// Ends after `d`.
    fn sleep(&self, d: Duration) -> Answer<()> {
        self.sleep_until(self.now() + d)
    }
}

/// Chance.
pub trait Rng {
    /// 64 random bits.
    fn next(&self) -> u64;
}

/// The four doors of one host.
#[derive(Clone)]
pub struct Env {
    /// The shared disk.
    pub disk: Rc<dyn Disk>,
    /// The fence.
    pub fence: Rc<dyn Fence>,
    /// The clock.
    pub clock: Rc<dyn Clock>,
    /// Chance.
    pub rng: Rc<dyn Rng>,
}
