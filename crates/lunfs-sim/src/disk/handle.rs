//! The disk as one program sees it.

use std::rc::Rc;

use futures_util::future::LocalBoxFuture;
use lunfs_core::env::{Capabilities, Clock, Compared, Disk, Instant, IoError};

use super::SharedDisk;
use super::faults::Request;
use super::medium::Bytes;
use super::op::{Outcome, Wanted};
use crate::clock::HostClock;
use crate::executor::Owner;

type Answer<T> = LocalBoxFuture<'static, Result<T, IoError>>;

/// One program's way to the disk. A request is submitted when the method is called, not when its
/// answer is first asked for.
pub struct HostDisk {
    disk: Rc<SharedDisk>,
    owner: Owner,
    clock: HostClock,
    /// What requests without data carry.
    nothing: Bytes,
}

impl HostDisk {
    /// The way of `owner`, whose lease is measured with `clock`.
    pub fn new(disk: &Rc<SharedDisk>, owner: Owner, clock: &HostClock) -> HostDisk {
        let nothing = Rc::new(Vec::new());
        HostDisk { disk: Rc::clone(disk), owner, clock: clock.clone(), nothing }
    }

    fn wanted(&self, request: Request, at: u64, len: u64, until: Instant) -> Wanted {
        let data = Rc::clone(&self.nothing);
        Wanted { request, at, len, data, expect: None, fua: false, until }
    }

    fn submit<T: 'static>(
        &self,
        wanted: Wanted,
        open: impl FnOnce(Outcome) -> Option<T> + 'static,
    ) -> Answer<T> {
        let now = self.clock.now();
        if wanted.request.changes() && now >= wanted.until {
            return Box::pin(std::future::ready(Err(IoError::TooLate)));
        }
        let wait = self.disk.submit(self.owner, wanted, now);
        Box::pin(async move {
            let outcome = wait.await?;
            Ok(open(outcome).expect("every request is answered in its own way"))
        })
    }
}

fn done(outcome: Outcome) -> Option<()> {
    matches!(outcome, Outcome::Done).then_some(())
}

impl Disk for HostDisk {
    fn capabilities(&self) -> Capabilities {
        let logical_block = u32::try_from(self.disk.unit()).unwrap_or(u32::MAX);
        Capabilities { logical_block, size: self.disk.size() }
    }

    fn read(&self, at: u64, len: usize) -> Answer<Vec<u8>> {
        let wanted = self.wanted(Request::Read, at, len as u64, Instant::FAR);
        self.submit(wanted, |outcome| match outcome {
            Outcome::Data(data) => Some(data),
            Outcome::Done | Outcome::Compared(_) => None,
        })
    }

    fn write(&self, at: u64, data: Vec<u8>, fua: bool, until: Instant) -> Answer<()> {
        let wanted = self.wanted(Request::Write, at, data.len() as u64, until);
        self.submit(Wanted { data: Rc::new(data), fua, ..wanted }, done)
    }

    fn flush(&self) -> Answer<()> {
        self.submit(self.wanted(Request::Flush, 0, 0, Instant::FAR), done)
    }

    fn compare_and_write(
        &self,
        at: u64,
        expect: Vec<u8>,
        new: Vec<u8>,
        until: Instant,
    ) -> Answer<Compared> {
        assert_eq!(expect.len(), new.len(), "compare-and-write at {at:#x}");
        let wanted = self.wanted(Request::Compare, at, new.len() as u64, until);
        let wanted = Wanted { data: Rc::new(new), expect: Some(expect), fua: true, ..wanted };
        self.submit(wanted, |outcome| match outcome {
            Outcome::Compared(compared) => Some(compared),
            Outcome::Done | Outcome::Data(_) => None,
        })
    }

    fn unmap(&self, at: u64, len: u64, until: Instant) -> Answer<()> {
        let wanted = self.wanted(Request::Unmap, at, len, until);
        self.submit(Wanted { data: Rc::new(self.disk.after_unmap(at, len)), ..wanted }, done)
    }
}
