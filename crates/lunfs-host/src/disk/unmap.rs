//! Telling the device that a range is not in use. Slow, and never needed for correctness: done on
//! a thread of its own, in chunks, each only while the lease is open.

use std::os::fd::{AsFd, AsRawFd};
use std::sync::mpsc::Receiver;

use lunfs_core::env::{Instant, IoError};
use rustix::fs::FallocateFlags;
use rustix::io::Errno;
use tokio::sync::oneshot;

use super::source::{Source, SourceKind};
use crate::clock::boottime;

/// Bytes handed to the kernel at once: what may still be on its way when the lease ends.
const CHUNK: u64 = 64 << 20;
/// `_IO(0x12, 119)` of linux/fs.h.
const BLKDISCARD: libc::Ioctl = 0x1277;

/// One range to unmap and who waits for it.
pub struct Request {
    pub at: u64,
    pub len: u64,
    pub until: Instant,
    pub answer: oneshot::Sender<Result<(), IoError>>,
}

/// Serves requests until their senders are gone.
pub fn serve(source: &Source, requests: &Receiver<Request>) {
    let mut supported = true;
    while let Ok(request) = requests.recv() {
        let outcome = if supported { unmap(source, &request) } else { Ok(()) };
        if outcome == Err(Refused::Unsupported) {
            supported = false;
        }
        let outcome = match outcome {
            Ok(()) | Err(Refused::Unsupported) => Ok(()),
            Err(Refused::TooLate) => Err(IoError::TooLate),
            Err(Refused::Device(why)) => Err(IoError::InDoubt(why)),
        };
        // Nobody may be waiting any more.
        drop(request.answer.send(outcome));
    }
}

#[derive(PartialEq)]
enum Refused {
    Unsupported,
    TooLate,
    Device(String),
}

fn unmap(source: &Source, request: &Request) -> Result<(), Refused> {
    let end = request.at + request.len;
    let mut at = request.at;
    while at < end {
        let len = CHUNK.min(end - at);
        if boottime() >= request.until {
            let part =
                || Refused::Device(format!("the lease ended after {} bytes", at - request.at));
            return Err(if at == request.at { Refused::TooLate } else { part() });
        }
        match discard(source, at, len) {
            Ok(()) => at += len,
            Err(Errno::INTR) => {}
            Err(Errno::OPNOTSUPP | Errno::NOTTY | Errno::INVAL) => {
                return Err(Refused::Unsupported);
            }
            Err(e) => return Err(Refused::Device(format!("unmap of {len} bytes at {at}: {e}"))),
        }
    }
    Ok(())
}

fn discard(source: &Source, at: u64, len: u64) -> Result<(), Errno> {
    match source.kind() {
        SourceKind::Image => {
            let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            rustix::fs::fallocate(source, hole, at, len)
        }
        SourceKind::BlockDevice => discard_device(source, at, len),
    }
}

fn discard_device(source: &Source, at: u64, len: u64) -> Result<(), Errno> {
    let range = [at, len];
    // SAFETY: BLKDISCARD reads two u64 from the pointer, which is valid for the whole call.
    let answer = unsafe { libc::ioctl(source.as_fd().as_raw_fd(), BLKDISCARD, range.as_ptr()) };
    if answer == 0 {
        return Ok(());
    }
    let why = std::io::Error::last_os_error();
    Err(Errno::from_io_error(&why).unwrap_or(Errno::IO))
}
