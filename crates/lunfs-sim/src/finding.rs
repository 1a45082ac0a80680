//! What must not be: reported once, with the moment at which it was seen.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use crate::executor::{Executor, Owner};
use crate::trace::seconds;

/// Something that breaks a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// World time in nanoseconds.
    pub time: u64,
    /// Who met it.
    pub by: Owner,
    /// What it is.
    pub what: String,
}

impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "at {} s, {}: {}", seconds(self.time).trim_start(), self.by, self.what)
    }
}

/// All findings of one world.
pub struct Findings {
    executor: Rc<Executor>,
    list: RefCell<Vec<Finding>>,
    /// How findings begin that still count; `None`: all do.
    only: Cell<Option<&'static [&'static str]>>,
}

impl Findings {
    /// None yet.
    pub fn new(executor: &Rc<Executor>) -> Rc<Findings> {
        Rc::new(Findings {
            executor: Rc::clone(executor),
            list: RefCell::default(),
            only: Cell::default(),
        })
    }

    /// Reports one.
    pub fn add(&self, by: Owner, what: impl Into<String>) {
        let what = what.into();
        let counts = |only: &[&str]| only.iter().any(|start| what.starts_with(start));
        if !self.only.get().is_none_or(counts) {
            return;
        }
        let finding = Finding { time: self.executor.now(), by, what };
        self.list.borrow_mut().push(finding);
    }

    /// From now on only what begins so is a finding: the device broke a promise, and less can be
    /// asked of the volume.
    pub fn only(&self, starts: &'static [&'static str]) {
        self.only.set(Some(starts));
    }

    /// Is there one?
    pub fn any(&self) -> bool {
        !self.list.borrow().is_empty()
    }

    /// All so far.
    pub fn all(&self) -> Vec<Finding> {
        self.list.borrow().clone()
    }
}
