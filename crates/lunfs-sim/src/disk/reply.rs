//! An answer that comes later.

use std::cell::RefCell;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

#[derive(Debug)]
struct Slot<T> {
    value: Option<T>,
    waker: Option<Waker>,
}

/// The giving end.
#[derive(Debug)]
pub struct Reply<T>(Rc<RefCell<Slot<T>>>);

/// The waiting end: it may be dropped, the request goes on.
#[derive(Debug)]
pub struct Wait<T>(Rc<RefCell<Slot<T>>>);

/// Both ends of one answer.
pub fn reply<T>() -> (Reply<T>, Wait<T>) {
    let slot = Rc::new(RefCell::new(Slot { value: None, waker: None }));
    (Reply(Rc::clone(&slot)), Wait(slot))
}

impl<T> Reply<T> {
    /// Gives the answer; the first one counts.
    pub fn give(&self, value: T) {
        let mut slot = self.0.borrow_mut();
        if slot.value.is_none() {
            slot.value = Some(value);
            let waker = slot.waker.take();
            drop(slot);
            if let Some(waker) = waker {
                waker.wake();
            }
        }
    }
}

impl<T> Future for Wait<T> {
    type Output = T;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<T> {
        let mut slot = self.0.borrow_mut();
        if let Some(value) = slot.value.take() {
            return Poll::Ready(value);
        }
        slot.waker = Some(context.waker().clone());
        Poll::Pending
    }
}
