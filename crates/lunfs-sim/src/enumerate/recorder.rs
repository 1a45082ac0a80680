//! A disk in memory that writes down, in order, what was submitted and what was answered.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use lunfs_core::env::{Answer, Capabilities, Clock, Compared, Disk, Instant, IoError};
use lunfs_doors::Time;

use super::image::Image;

/// Bytes of a logical block: the unit of compare-and-write, and that in which writes tear.
pub const UNIT: usize = 512;

const READ: Duration = Duration::from_micros(200);
const WRITE: Duration = Duration::from_millis(1);
const FLUSH: Duration = Duration::from_millis(5);
const COMPARE: Duration = Duration::from_micros(300);

/// What happened at the disk, or what whoever uses it wants to find again later.
#[derive(Clone)]
pub enum Event<M> {
    /// A write was submitted; `durable`: it is durable when answered.
    Write {
        /// Its number.
        id: u32,
        /// Where.
        at: u64,
        /// What.
        data: Rc<[u8]>,
        /// With FUA, or a compare-and-write.
        durable: bool,
        /// A compare-and-write, which is whole or not at all.
        whole: bool,
    },
    /// It was answered.
    Answered(u32),
    /// A flush was submitted.
    Flush(u32),
    /// It was answered.
    Flushed(u32),
    /// A remark of whoever uses the disk.
    Mark(M),
}

struct State<M> {
    visible: Image,
    events: Vec<Event<M>>,
    next: u32,
    is_recording: bool,
}

impl<M> State<M> {
    fn note(&mut self, event: Event<M>) {
        if self.is_recording {
            self.events.push(event);
        }
    }

    fn number(&mut self) -> u32 {
        self.next += 1;
        self.next
    }
}

/// The disk.
pub struct Recorder<M> {
    size: u64,
    /// `None`: everything is answered at once.
    time: Option<Time>,
    state: Rc<RefCell<State<M>>>,
}

impl<M: 'static> Recorder<M> {
    /// A disk that holds `image`, and takes its time.
    pub fn slow(image: Image, size: u64, time: &Time) -> Recorder<M> {
        Recorder { size, time: Some(time.clone()), state: Recorder::state(image) }
    }

    /// A disk that answers at once.
    pub fn quick(image: Image, size: u64) -> Recorder<M> {
        Recorder { size, time: None, state: Recorder::state(image) }
    }

    fn state(image: Image) -> Rc<RefCell<State<M>>> {
        let state = State { visible: image, events: Vec::new(), next: 0, is_recording: false };
        Rc::new(RefCell::new(state))
    }

    /// Writes down what comes from here on; returns what the disk holds now.
    pub fn record(&self) -> Image {
        let mut state = self.state.borrow_mut();
        state.is_recording = true;
        state.visible.clone()
    }

    /// What was written down.
    pub fn events(&self) -> Vec<Event<M>> {
        std::mem::take(&mut self.state.borrow_mut().events)
    }

    /// What a read would find.
    pub fn visible(&self) -> Image {
        self.state.borrow().visible.clone()
    }

    /// A remark.
    pub fn mark(&self, mark: M) {
        self.state.borrow_mut().note(Event::Mark(mark));
    }

    fn after<T: 'static>(&self, wait: Duration, then: impl FnOnce() -> T + 'static) -> Answer<T> {
        let Some(time) = &self.time else {
            let value = then();
            return Box::pin(async { value });
        };
        let wait = time.sleep(wait);
        Box::pin(async move {
            wait.await;
            then()
        })
    }
}

impl<M: 'static> Disk for Recorder<M> {
    fn capabilities(&self) -> Capabilities {
        Capabilities { logical_block: 512, size: self.size }
    }

    fn read(&self, at: u64, len: usize) -> Answer<Result<Vec<u8>, IoError>> {
        let state = Rc::clone(&self.state);
        self.after(READ, move || Ok(state.borrow().visible.read(at, len)))
    }

    fn write(&self, at: u64, data: Vec<u8>, fua: bool, _: Instant) -> Answer<Result<(), IoError>> {
        let (state, data) = (Rc::clone(&self.state), Rc::<[u8]>::from(data));
        let id = {
            let mut state = state.borrow_mut();
            let id = state.number();
            let write = Event::Write { id, at, data: Rc::clone(&data), durable: fua, whole: false };
            state.note(write);
            id
        };
        self.after(WRITE, move || {
            let mut state = state.borrow_mut();
            state.visible.write(at, &data);
            state.note(Event::Answered(id));
            Ok(())
        })
    }

    fn flush(&self) -> Answer<Result<(), IoError>> {
        let state = Rc::clone(&self.state);
        let id = {
            let mut state = state.borrow_mut();
            let id = state.number();
            state.note(Event::Flush(id));
            id
        };
        self.after(FLUSH, move || {
            state.borrow_mut().note(Event::Flushed(id));
            Ok(())
        })
    }

    fn compare_and_write(
        &self,
        at: u64,
        expect: Vec<u8>,
        new: Vec<u8>,
        _: Instant,
    ) -> Answer<Result<Compared, IoError>> {
        let state = Rc::clone(&self.state);
        let written = {
            let mut state = state.borrow_mut();
            let is_same = state.visible.read(at, expect.len()) == expect;
            is_same.then(|| {
                let id = state.number();
                state.visible.write(at, &new);
                state.note(Event::Write { id, at, data: new.into(), durable: true, whole: true });
                id
            })
        };
        self.after(COMPARE, move || {
            let Some(id) = written else { return Ok(Compared::Miscompare) };
            state.borrow_mut().note(Event::Answered(id));
            Ok(Compared::Written)
        })
    }

    fn unmap(&self, _: u64, _: u64, _: Instant) -> Answer<Result<(), IoError>> {
        Box::pin(async { Ok(()) })
    }
}
