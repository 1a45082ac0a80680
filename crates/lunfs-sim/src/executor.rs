//! A single-threaded executor with virtual time.
//!
//! Time is in nanoseconds since the world began and moves only when nothing is ready to run. A task
//! belongs to an owner: the world, or one process of a host. All tasks of a process can be killed
//! at once or paused until a later time.
//!
//! Invariants:
//! - The order in which ready tasks run is drawn from the seed; timers fire by time, then by the
//!   order in which they were set. Nothing else decides.
//! - A killed task is never polled again, and its future is dropped before `kill` returns, unless
//!   it is the one that runs: then right after.
//! - A paused task is not polled; what woke it meanwhile wakes it at the end of the pause.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BinaryHeap};
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

use futures_util::future::LocalBoxFuture;

use crate::chance::Chance;

/// Polls at one moment after which the world is said to turn in circles.
const POLLS_AT_ONCE_MAX: u64 = 2_000_000;

/// Whose task it is: the world's, or that of one process (every start of a host is a new one).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Owner(pub u32);

impl Owner {
    /// The world itself: never killed, never paused.
    pub const WORLD: Owner = Owner(0);
}

impl std::fmt::Display for Owner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match *self {
            Owner::WORLD => f.write_str("world"),
            Owner(number) => write!(f, "p{number}"),
        }
    }
}

/// Why `run` came back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// What was waited for has happened.
    Done,
    /// The time limit came first.
    TimeLimit,
    /// No task is ready and no timer is set: nothing will ever happen.
    Idle,
    /// A task panicked: the message.
    Panicked(Owner, String),
    /// Tasks keep each other awake without time passing.
    Circles,
}

struct Ready {
    queue: Mutex<Vec<u64>>,
}

/// Wakers must be safe to send, although nothing here is ever sent.
struct TaskWaker {
    task: u64,
    queued: AtomicBool,
    ready: Arc<Ready>,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        if !self.queued.swap(true, Ordering::Relaxed) {
            self.ready.queue.lock().unwrap_or_else(PoisonError::into_inner).push(self.task);
        }
    }
}

struct Task {
    owner: Owner,
    future: Option<LocalBoxFuture<'static, ()>>,
    waker: Arc<TaskWaker>,
}

/// Something that has an appointment.
pub trait Due {
    /// The moment has come; `what` is what was said when it was made.
    fn due(self: Rc<Self>, what: (u64, u32));
}

enum Event {
    Wake(Waker),
    Call(Box<dyn FnOnce()>),
    Due(Rc<dyn Due>, (u64, u32)),
}

struct Timer {
    at: u64,
    sequence: u64,
    event: Event,
}

impl PartialEq for Timer {
    fn eq(&self, other: &Timer) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Timer {}

impl PartialOrd for Timer {
    fn partial_cmp(&self, other: &Timer) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Timer {
    /// Reversed: the heap's greatest is the earliest.
    fn cmp(&self, other: &Timer) -> std::cmp::Ordering {
        (other.at, other.sequence).cmp(&(self.at, self.sequence))
    }
}

#[derive(Default)]
struct State {
    /// By number; a number is never used again, so a waker of a dead task wakes nobody.
    tasks: Vec<Option<Task>>,
    runnable: Vec<u64>,
    timers: BinaryHeap<Timer>,
    next_timer: u64,
    paused: BTreeMap<Owner, u64>,
    parked: BTreeMap<Owner, Vec<u64>>,
}

impl State {
    fn task(&mut self, number: u64) -> Option<&mut Task> {
        self.tasks.get_mut(usize::try_from(number).unwrap_or(usize::MAX))?.as_mut()
    }

    fn end(&mut self, number: u64) -> Option<Task> {
        self.tasks.get_mut(usize::try_from(number).unwrap_or(usize::MAX))?.take()
    }
}

/// The executor and its clock.
pub struct Executor {
    now: Cell<u64>,
    polls: Cell<u64>,
    chance: Chance,
    ready: Arc<Ready>,
    state: RefCell<State>,
}

impl Executor {
    /// An executor at time zero; `chance` decides the order of ready tasks.
    pub fn new(chance: Chance) -> Rc<Executor> {
        Rc::new(Executor {
            now: Cell::new(0),
            polls: Cell::new(0),
            chance,
            ready: Arc::new(Ready { queue: Mutex::new(Vec::new()) }),
            state: RefCell::new(State::default()),
        })
    }

    /// World time in nanoseconds.
    pub fn now(&self) -> u64 {
        self.now.get()
    }

    /// Polls so far.
    pub fn polls(&self) -> u64 {
        self.polls.get()
    }

    /// Starts a task.
    pub fn spawn(&self, owner: Owner, future: impl Future<Output = ()> + 'static) {
        let mut state = self.state.borrow_mut();
        let task = state.tasks.len() as u64;
        let waker = Arc::new(TaskWaker {
            task,
            queued: AtomicBool::new(true),
            ready: Arc::clone(&self.ready),
        });
        state.tasks.push(Some(Task { owner, future: Some(Box::pin(future)), waker }));
        state.runnable.push(task);
    }

    /// Calls `event` at world time `at`, whatever is paused or killed by then.
    pub fn at(&self, at: u64, event: impl FnOnce() + 'static) {
        self.push_timer(at, Event::Call(Box::new(event)));
    }

    /// Tells `whom` of `what` at world time `at`, whatever is paused or killed by then.
    pub fn due(&self, at: u64, whom: Rc<dyn Due>, what: (u64, u32)) {
        self.push_timer(at, Event::Due(whom, what));
    }

    fn push_timer(&self, at: u64, event: Event) {
        let mut state = self.state.borrow_mut();
        let sequence = state.next_timer;
        state.next_timer += 1;
        state.timers.push(Timer { at: at.max(self.now.get()), sequence, event });
    }

    /// Ends at world time `at` or later.
    pub fn sleep_until(self: &Rc<Self>, at: u64) -> Sleep {
        Sleep { executor: Rc::clone(self), at, set_for: None }
    }

    /// Ends `nanoseconds` from now.
    pub fn sleep(self: &Rc<Self>, nanoseconds: u64) -> Sleep {
        self.sleep_until(self.now().saturating_add(nanoseconds))
    }

    /// Kills all tasks of `owner`: they are dropped and never polled again.
    pub fn kill(&self, owner: Owner) {
        let killed: Vec<Task> = {
            let mut state = self.state.borrow_mut();
            state.paused.remove(&owner);
            state.parked.remove(&owner);
            let is_theirs =
                |task: &&mut Option<Task>| task.as_ref().is_some_and(|task| task.owner == owner);
            state.tasks.iter_mut().filter(is_theirs).filter_map(Option::take).collect()
        };
        // Dropping futures runs code of the core, which may wake or spawn: outside the borrow.
        drop(killed);
    }

    /// Drops all tasks and timers: they may hold what holds the executor.
    pub fn clear(&self) {
        let tasks = std::mem::take(&mut self.state.borrow_mut().tasks);
        drop(tasks);
        let timers = std::mem::take(&mut self.state.borrow_mut().timers);
        drop(timers);
    }

    /// Does not poll tasks of `owner` before world time `until`.
    pub fn pause(self: &Rc<Self>, owner: Owner, until: u64) {
        let end = {
            let mut state = self.state.borrow_mut();
            let end = state.paused.entry(owner).or_insert(until);
            *end = until.max(*end);
            *end
        };
        let executor = Rc::clone(self);
        self.at(end, move || executor.end_pause(owner));
    }

    fn end_pause(&self, owner: Owner) {
        let mut state = self.state.borrow_mut();
        let over = state.paused.get(&owner).is_some_and(|&until| until <= self.now.get());
        if over {
            state.paused.remove(&owner);
            let parked = state.parked.remove(&owner).unwrap_or_default();
            state.runnable.extend(parked);
        }
    }

    /// Is `owner` paused?
    pub fn is_paused(&self, owner: Owner) -> bool {
        self.state.borrow().paused.contains_key(&owner)
    }

    /// Are there tasks of `owner`?
    pub fn has_tasks(&self, owner: Owner) -> bool {
        self.state.borrow().tasks.iter().flatten().any(|task| task.owner == owner)
    }

    /// Runs until `done` says so, but not beyond world time `limit`.
    pub fn run(&self, limit: u64, mut done: impl FnMut() -> bool) -> Ended {
        let mut polls_here = 0_u64;
        loop {
            if done() {
                return Ended::Done;
            }
            if let Some(task) = self.choose() {
                if let Err(ended) = self.poll(task) {
                    return ended;
                }
                polls_here += 1;
                if polls_here > POLLS_AT_ONCE_MAX {
                    return Ended::Circles;
                }
                continue;
            }
            let Some(at) = self.state.borrow().timers.peek().map(|timer| timer.at) else {
                return Ended::Idle;
            };
            if at > limit {
                self.now.set(limit.max(self.now.get()));
                return Ended::TimeLimit;
            }
            if at > self.now.get() {
                self.now.set(at);
                polls_here = 0;
            }
            self.fire();
        }
    }

    fn fire(&self) {
        let timer = self.state.borrow_mut().timers.pop();
        match timer.map(|timer| timer.event) {
            Some(Event::Wake(waker)) => waker.wake(),
            Some(Event::Call(call)) => call(),
            Some(Event::Due(whom, what)) => whom.due(what),
            None => {}
        }
    }

    /// Draws one of the ready tasks that are not paused.
    fn choose(&self) -> Option<u64> {
        let mut state = self.state.borrow_mut();
        let mut woken = self.ready.queue.lock().unwrap_or_else(PoisonError::into_inner);
        state.runnable.append(&mut woken);
        drop(woken);
        while !state.runnable.is_empty() {
            let index = self.chance.index(state.runnable.len());
            let number = state.runnable.swap_remove(index);
            let Some(owner) = state.task(number).map(|task| task.owner) else { continue };
            if state.paused.contains_key(&owner) {
                state.parked.entry(owner).or_default().push(number);
            } else {
                return Some(number);
            }
        }
        None
    }

    fn poll(&self, number: u64) -> Result<(), Ended> {
        let taken = {
            let mut state = self.state.borrow_mut();
            state.task(number).and_then(|task| {
                let future = task.future.take()?;
                Some((task.owner, future, Arc::clone(&task.waker)))
            })
        };
        let Some((owner, mut future, flag)) = taken else { return Ok(()) };
        flag.queued.store(false, Ordering::Relaxed);
        let waker = Waker::from(flag);
        let mut context = Context::from_waker(&waker);
        self.polls.set(self.polls.get() + 1);
        let polled = catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(&mut context)));
        let ended = match polled {
            Ok(Poll::Pending) => {
                if let Some(task) = self.state.borrow_mut().task(number) {
                    task.future = Some(future);
                    return Ok(());
                }
                Ok(())
            }
            Ok(Poll::Ready(())) => {
                let done = self.state.borrow_mut().end(number);
                drop(done);
                Ok(())
            }
            Err(panic) => Err(Ended::Panicked(owner, panic_message(panic.as_ref()))),
        };
        drop(future);
        ended
    }
}

fn panic_message(panic: &(dyn std::any::Any + Send)) -> String {
    panic
        .downcast_ref::<String>()
        .cloned()
        .or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string))
        .unwrap_or_else(|| "a panic without a message".to_owned())
}

/// A wait for a moment of world time.
pub struct Sleep {
    executor: Rc<Executor>,
    at: u64,
    set_for: Option<Waker>,
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if self.executor.now() >= self.at {
            return Poll::Ready(());
        }
        let known = self.set_for.as_ref().is_some_and(|waker| waker.will_wake(context.waker()));
        if !known {
            self.executor.push_timer(self.at, Event::Wake(context.waker().clone()));
            self.set_for = Some(context.waker().clone());
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests;
