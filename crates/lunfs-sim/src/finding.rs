//! What must not be: reported once, with the moment at which it was seen.

use std::cell::RefCell;
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
}

impl Findings {
    /// None yet.
    pub fn new(executor: &Rc<Executor>) -> Rc<Findings> {
        Rc::new(Findings { executor: Rc::clone(executor), list: RefCell::default() })
    }

    /// Reports one.
    pub fn add(&self, by: Owner, what: impl Into<String>) {
        let finding = Finding { time: self.executor.now(), by, what: what.into() };
        self.list.borrow_mut().push(finding);
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
