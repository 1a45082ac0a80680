//! The decisions of the driver, without a kernel.

use super::*;

fn request(work: Work, len: usize) -> Request {
    Request { work, buffer: AlignedBuffer::new(len), at: 8192, len, done: 0, attempts: 0 }
}

fn read(len: usize) -> Request {
    request(Work::Read { answer: oneshot::channel().0 }, len)
}

fn write(len: usize, until: Instant) -> Request {
    request(Work::Write { fua: false, until, answer: oneshot::channel().0 }, len)
}

#[test]
fn a_short_transfer_goes_on_at_a_whole_block() {
    let mut request = write(4096, Instant::FAR);
    assert_eq!(request.advance(1000, 512), None);
    assert_eq!(request.done, 512, "the torn block is written again");
    assert_eq!(request.advance(3584, 512), Some(Ok(())));
}

#[test]
fn no_progress_is_an_error() {
    assert!(matches!(read(4096).advance(0, 512), Some(Err(IoError::Failed(_)))));
    assert!(matches!(write(4096, Instant::FAR).advance(511, 512), Some(Err(IoError::InDoubt(_)))));
}

#[test]
fn a_device_error_leaves_writes_in_doubt_reads_failed_and_flushes_unflushed() {
    assert!(matches!(read(512).advance(-libc::EIO, 512), Some(Err(IoError::Failed(_)))));
    let mut doubtful = write(512, Instant::FAR);
    assert!(matches!(doubtful.advance(-libc::EIO, 512), Some(Err(IoError::InDoubt(_)))));
    let mut flush = request(Work::Flush { answer: oneshot::channel().0 }, 0);
    assert!(matches!(flush.advance(-libc::EIO, 512), Some(Err(IoError::Unflushed(_)))));
}

#[test]
fn try_again_is_bounded() {
    let mut request = read(512);
    let again = (0..).take_while(|_| request.advance(-libc::EAGAIN, 512).is_none()).count();
    assert_eq!(again, ATTEMPTS_MAX as usize);
}

#[test]
fn a_late_write_was_never_submitted_but_its_late_rest_is_in_doubt() {
    let late = write(4096, Instant(1));
    assert_eq!(late.refusal(), Some(IoError::TooLate));
    let mut begun = write(4096, Instant(1));
    assert_eq!(begun.advance(512, 512), None);
    assert!(matches!(begun.refusal(), Some(IoError::InDoubt(_))));
    let mut tried = write(4096, Instant(1));
    assert_eq!(tried.advance(-libc::EINTR, 512), None);
    assert!(matches!(tried.refusal(), Some(IoError::InDoubt(_))));
    assert_eq!(read(4096).refusal(), None, "reads need no lease");
}
