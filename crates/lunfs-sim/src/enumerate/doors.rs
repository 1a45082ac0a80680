//! The doors of the core in a world where nothing goes wrong by itself: time that jumps, marks of
//! life in a table, chance from a seed. Only the disk is worth a file of its own.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use lunfs_core::env::{Answer, Clock, Disk, Env, Fence, FenceError, Instant, Life, Rng};
use lunfs_core::{Identity, MountOptions, Result, Volume};
use lunfs_format::{Pulse, SlotNo, Timestamp};

use crate::chance::Chance;

const SECOND: u64 = 1_000_000_000;

/// Time that jumps to the next timer when nothing else can be done.
#[derive(Clone)]
pub struct Time {
    now: Rc<Cell<u64>>,
    timers: Rc<RefCell<BTreeMap<u64, Vec<Waker>>>>,
}

struct Sleep {
    time: Time,
    until: u64,
}

impl Future for Sleep {
    type Output = ();
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if self.time.now.get() >= self.until {
            return Poll::Ready(());
        }
        self.time.timers.borrow_mut().entry(self.until).or_default().push(cx.waker().clone());
        Poll::Pending
    }
}

impl Clock for Time {
    fn now(&self) -> Instant {
        Instant(self.now.get())
    }
    fn sleep_until(&self, at: Instant) -> Answer<()> {
        Box::pin(Sleep { time: self.clone(), until: at.0 })
    }
    fn wall(&self) -> Timestamp {
        let now = self.now.get();
        let nanos = u32::try_from(now % SECOND).unwrap_or(0);
        Timestamp { seconds: 1_700_000_000 + (now / SECOND).cast_signed(), nanos }
    }
}

struct Flag(AtomicBool);

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Time {
    /// A world begins.
    pub fn begin() -> Time {
        Time { now: Rc::new(Cell::new(SECOND)), timers: Rc::default() }
    }

    /// Polls until done; when nothing moves, time does. `None`: it did not end within `seconds`.
    pub fn run<T>(&self, seconds: u64, future: impl Future<Output = T>) -> Option<T> {
        let mut future = Box::pin(future);
        let woken = Arc::new(Flag(AtomicBool::new(false)));
        let waker = Waker::from(Arc::clone(&woken));
        let mut cx = Context::from_waker(&waker);
        let end = self.now.get() + seconds * SECOND;
        loop {
            woken.0.store(false, Ordering::Relaxed);
            if let Poll::Ready(out) = future.as_mut().poll(&mut cx) {
                return Some(out);
            }
            if woken.0.load(Ordering::Relaxed) {
                continue;
            }
            let (at, wakers) = self.timers.borrow_mut().pop_first()?;
            if at > end {
                return None;
            }
            self.now.set(self.now.get().max(at));
            wakers.into_iter().for_each(Waker::wake);
        }
    }
}

/// Who lives.
#[derive(Default)]
struct Marks(RefCell<BTreeSet<SlotNo>>);

impl Fence for Marks {
    fn enter(&self, slot: SlotNo) -> std::result::Result<bool, FenceError> {
        Ok(self.0.borrow_mut().insert(slot))
    }
    fn leave(&self, slot: SlotNo) {
        self.0.borrow_mut().remove(&slot);
    }
    fn life(&self, slot: SlotNo) -> Life {
        if self.0.borrow().contains(&slot) { Life::Present } else { Life::Gone }
    }
    fn fence(&self, victim: &Pulse) -> Answer<std::result::Result<(), FenceError>> {
        let is_gone = self.life(victim.slot) == Life::Gone;
        let answer = is_gone.then_some(()).ok_or(FenceError("it lives".to_owned()));
        Box::pin(async { answer })
    }
    fn method(&self) -> &'static str {
        "enumerated"
    }
}

struct Dice(Chance);

impl Rng for Dice {
    fn next(&self) -> u64 {
        self.0.next()
    }
}

/// The doors of all hosts of one world.
pub fn doors(disk: Rc<dyn Disk>, time: &Time, seed: u64) -> Env {
    Env {
        disk,
        fence: Rc::new(Marks::default()),
        clock: Rc::new(time.clone()),
        rng: Rc::new(Dice(Chance::new(seed))),
    }
}

/// Mounts as a host of this name. Its machine and boot are the same for all.
pub async fn mount(env: &Env, name: &str) -> Result<Rc<Volume>> {
    let mut run = [0; 16];
    run[..8].copy_from_slice(&env.rng.next().to_le_bytes());
    let identity = Identity { run, boot: [1; 16], machine: [2; 16], ..Identity::default() };
    let options = MountOptions { name: name.into(), read_only: false, identity };
    Volume::mount(env.clone(), options).await
}

/// Lets some milliseconds pass.
pub async fn sleep(env: &Env, ms: u64) {
    env.clock.sleep(std::time::Duration::from_millis(ms)).await;
}
