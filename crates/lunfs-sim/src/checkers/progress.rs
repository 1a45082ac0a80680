//! R14: once faults have stopped, every operation ends within a bound.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

use crate::disk::faults::SECOND;
use crate::executor::{Executor, Owner};

/// Virtual time within which everything must end when nothing goes wrong.
pub const BOUND: u64 = 120 * SECOND;

#[derive(Clone, Debug)]
struct Running {
    by: Owner,
    what: &'static str,
    since: u64,
}

/// All operations that are under way.
pub struct Progress {
    executor: Rc<Executor>,
    running: RefCell<BTreeMap<u64, Running>>,
    next: Cell<u64>,
    quiet_since: Cell<Option<u64>>,
}

/// One operation under way: over when dropped.
pub struct Step {
    progress: Rc<Progress>,
    number: u64,
}

impl Drop for Step {
    fn drop(&mut self) {
        self.progress.running.borrow_mut().remove(&self.number);
    }
}

impl Progress {
    /// Nothing under way.
    pub fn new(executor: &Rc<Executor>) -> Rc<Progress> {
        Rc::new(Progress {
            executor: Rc::clone(executor),
            running: RefCell::default(),
            next: Cell::new(0),
            quiet_since: Cell::new(None),
        })
    }

    /// An operation begins.
    pub fn begin(self: &Rc<Self>, by: Owner, what: &'static str) -> Step {
        let number = self.next.get();
        self.next.set(number + 1);
        let since = self.executor.now();
        self.running.borrow_mut().insert(number, Running { by, what, since });
        Step { progress: Rc::clone(self), number }
    }

    /// Faults stop, or begin again.
    pub fn set_quiet(&self, is_quiet: bool) {
        self.quiet_since.set(is_quiet.then(|| self.executor.now()));
    }

    /// Have faults stopped?
    pub fn is_quiet(&self) -> bool {
        self.quiet_since.get().is_some()
    }

    /// An operation that has been under way for too long.
    pub fn overdue(&self) -> Option<(Owner, String)> {
        let quiet = self.quiet_since.get()?;
        let now = self.executor.now();
        let running = self.running.borrow();
        let late = running.values().find(|step| now > step.since.max(quiet) + BOUND)?;
        let seconds = (now - late.since) / SECOND;
        Some((late.by, format!("R14: {} has not ended for {seconds} s", late.what)))
    }

    /// What is under way, for people.
    pub fn list(&self) -> Vec<String> {
        let line = |step: &Running| {
            let since = crate::trace::seconds(step.since);
            format!("{} {} since{since}", step.by, step.what)
        };
        self.running.borrow().values().map(line).collect()
    }
}
