//! Time that jumps to the next timer when nothing else can be done.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fmt;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use lunfs_core::env::{Answer, Clock, Instant};
use lunfs_format::Timestamp;

const SECOND: u64 = 1_000_000_000;

/// Virtual time in nanoseconds. Clones are the same time.
#[derive(Clone)]
pub struct Time {
    now: Rc<Cell<u64>>,
    timers: Rc<RefCell<BTreeMap<u64, Vec<Waker>>>>,
}

/// What a story may use up.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Seconds of virtual time.
    pub seconds: u64,
    /// Polls.
    pub polls: u64,
    /// Polls at one moment.
    pub polls_at_once: u64,
}

impl Limits {
    /// Whatever it takes.
    pub const NONE: Limits = Limits { seconds: u64::MAX, polls: u64::MAX, polls_at_once: u64::MAX };

    /// So many seconds of virtual time.
    pub const fn seconds(seconds: u64) -> Limits {
        Limits { seconds, ..Limits::NONE }
    }
}

/// Why a story was given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Endless {
    /// It waits, and no timer is left.
    Stuck,
    /// It waits beyond these seconds.
    Seconds(u64),
    /// It turned in circles, for so many polls.
    Polls(u64),
    /// It turned in circles at one moment, for so many polls.
    PollsAtOnce(u64),
}

impl fmt::Display for Endless {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Endless::Stuck => write!(f, "stuck: nothing can ever happen again"),
            Endless::Seconds(seconds) => write!(f, "it does not end within {seconds} s"),
            Endless::Polls(polls) => write!(f, "endless: {polls} polls, and no end in sight"),
            Endless::PollsAtOnce(polls) => {
                write!(f, "endless: {polls} polls, and time does not pass any more")
            }
        }
    }
}

impl Time {
    /// A world begins.
    pub fn begin() -> Time {
        Time { now: Rc::new(Cell::new(SECOND)), timers: Rc::default() }
    }

    /// Polls a story until it is done; when nothing moves, time does.
    pub fn run<T>(
        &self,
        limits: Limits,
        story: impl Future<Output = T>,
    ) -> std::result::Result<T, Endless> {
        let mut story = Box::pin(story);
        let woken = Arc::new(Flag::default());
        let waker = Waker::from(woken.clone());
        let mut cx = Context::from_waker(&waker);
        let end = self.now.get().saturating_add(limits.seconds.saturating_mul(SECOND));
        let mut polls_at_once = 0;
        for _ in 0..limits.polls {
            woken.0.store(false, Ordering::Relaxed);
            if let Poll::Ready(out) = story.as_mut().poll(&mut cx) {
                // Wakers of what ended keep nothing alive that the next story could meet.
                self.timers.borrow_mut().clear();
                return Ok(out);
            }
            polls_at_once += 1;
            if polls_at_once >= limits.polls_at_once {
                return Err(Endless::PollsAtOnce(polls_at_once));
            }
            if woken.0.load(Ordering::Relaxed) {
                continue;
            }
            let (at, wakers) = self.timers.borrow_mut().pop_first().ok_or(Endless::Stuck)?;
            if at > end {
                return Err(Endless::Seconds(limits.seconds));
            }
            if at > self.now.get() {
                self.now.set(at);
                polls_at_once = 0;
            }
            wakers.into_iter().for_each(Waker::wake);
        }
        Err(Endless::Polls(limits.polls))
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

#[derive(Default)]
struct Flag(AtomicBool);

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, poll_fn};
    use std::time::Duration;

    use super::*;

    /// Asks to be polled again, and never waits for anything.
    async fn circles() {
        poll_fn(|cx| {
            cx.waker().wake_by_ref();
            Poll::<()>::Pending
        })
        .await;
    }

    #[test]
    fn a_year_passes_at_once() {
        let time = Time::begin();
        let year = Duration::from_secs(365 * 24 * 3600);
        let before = time.now();
        assert_eq!(time.run(Limits::NONE, time.sleep(year)), Ok(()));
        assert_eq!(time.now(), before + year);
    }

    #[test]
    fn who_waits_for_nothing_is_stuck() {
        let time = Time::begin();
        assert_eq!(time.run(Limits::NONE, pending::<()>()), Err(Endless::Stuck));
    }

    #[test]
    fn a_story_ends_within_its_seconds_or_not() {
        let time = Time::begin();
        let ten = || time.sleep(Duration::from_secs(10));
        assert_eq!(time.run(Limits::seconds(10), ten()), Ok(()));
        assert_eq!(time.run(Limits::seconds(9), ten()), Err(Endless::Seconds(9)));
    }

    #[test]
    fn a_circle_is_given_up() {
        let time = Time::begin();
        let polls = Limits { polls: 100, ..Limits::NONE };
        assert_eq!(time.run(polls, circles()), Err(Endless::Polls(100)));
        let at_once = Limits { polls_at_once: 10, ..polls };
        assert_eq!(time.run(at_once, circles()), Err(Endless::PollsAtOnce(10)));
        let slow = async {
            for _ in 0..50 {
                time.sleep(Duration::from_millis(1)).await;
            }
        };
        assert_eq!(time.run(at_once, slow), Ok(()));
    }
}
