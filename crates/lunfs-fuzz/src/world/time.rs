//! Time that jumps to the next timer when nothing else can be done.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use lunfs_core::env::{Answer, Clock, Instant};
use lunfs_format::Timestamp;

/// Polls of one story after which it is said to turn in circles.
const POLLS_MAX: u64 = 400_000;
/// Polls at one moment after which it is.
const POLLS_AT_ONCE_MAX: u64 = 20_000;

/// Virtual time in nanoseconds.
#[derive(Clone, Default)]
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

impl Time {
    /// Ends after some milliseconds.
    pub fn pass(&self, ms: u64) -> Answer<()> {
        self.pass_micros(ms * 1000)
    }

    /// Ends after some microseconds.
    pub fn pass_micros(&self, micros: u64) -> Answer<()> {
        self.sleep_until(Instant(self.now.get() + micros * 1000))
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
        Timestamp { seconds: 1_700_000_000, nanos: (self.now.get() % 1_000_000_000) as u32 }
    }
}

#[derive(Default)]
struct Flag(AtomicBool);

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Polls until done; when nothing moves, time does.
///
/// # Panics
/// If that takes more polls than any story of ours needs, or nothing can ever happen again.
pub fn block_on<T>(time: &Time, future: impl Future<Output = T>) -> T {
    let mut future = Box::pin(future);
    let woken = Arc::new(Flag::default());
    let waker = Waker::from(woken.clone());
    let mut cx = Context::from_waker(&waker);
    let mut polls_at_once = 0;
    for _ in 0..POLLS_MAX {
        woken.0.store(false, Ordering::Relaxed);
        if let Poll::Ready(out) = future.as_mut().poll(&mut cx) {
            // Wakers of what ended keep nothing alive that the next story could meet.
            time.timers.borrow_mut().clear();
            return out;
        }
        polls_at_once += 1;
        assert!(polls_at_once < POLLS_AT_ONCE_MAX, "endless: time does not pass any more");
        if woken.0.load(Ordering::Relaxed) {
            continue;
        }
        let next = time.timers.borrow_mut().pop_first();
        let (at, wakers) = next.expect("stuck: nothing can ever happen again");
        if at > time.now.get() {
            time.now.set(at);
            polls_at_once = 0;
        }
        wakers.into_iter().for_each(Waker::wake);
    }
    panic!("endless: {POLLS_MAX} polls, and no end in sight");
}
