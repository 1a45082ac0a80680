//! Open-file-description locks: the marks by which programs of one machine meet on a source.
//!
//! Such a lock belongs to the open file description. The kernel drops it when the last reference to
//! that description is gone, and a request in flight holds one: so a mark on the description that
//! carries all I/O outlives every write in flight, also after SIGKILL (H10).
//!
//! ```text
//! byte  0 .. size             data; never locked
//!       CAW_BASE  + offset    held while the block at `offset` is compared and written
//!       LIFE_BASE + slot      held for the whole life of the program that runs `slot`
//! ```
//!
//! The two ranges are apart: who is stopped inside a compare-and-write, or alive for years, must
//! not keep others from its pulse record.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// First byte of the compare-and-write marks.
pub const CAW_BASE: u64 = 1 << 61;
/// First byte of the life marks.
pub const LIFE_BASE: u64 = 1 << 62;

/// Takes the mark at `byte` for this description; `false`: another description has it.
/// Taking it again is fine.
pub fn try_lock(file: impl AsFd, byte: u64) -> io::Result<bool> {
    match fcntl_lock(file, libc::F_OFD_SETLK, libc::F_WRLCK, byte, 1) {
        Ok(_) => Ok(true),
        Err(e) if matches!(e.raw_os_error(), Some(libc::EAGAIN | libc::EACCES)) => Ok(false),
        Err(e) => Err(e),
    }
}

/// Gives the mark at `byte` back.
pub fn unlock(file: impl AsFd, byte: u64) -> io::Result<()> {
    fcntl_lock(file, libc::F_OFD_SETLK, libc::F_UNLCK, byte, 1).map(drop)
}

/// The first of `count` bytes from `byte` that a mark of *another* description touches.
pub fn held_elsewhere(file: impl AsFd, byte: u64, count: u64) -> io::Result<Option<u64>> {
    let found = fcntl_lock(file, libc::F_OFD_GETLK, libc::F_WRLCK, byte, count)?;
    let held = i32::from(found.l_type) != libc::F_UNLCK;
    Ok(held.then(|| u64::try_from(found.l_start).unwrap_or(byte).max(byte)))
}

fn fcntl_lock(
    file: impl AsFd,
    command: i32,
    kind: i32,
    byte: u64,
    count: u64,
) -> io::Result<libc::flock> {
    let offset = |n: u64| i64::try_from(n).map_err(|_| io::ErrorKind::InvalidInput);
    let short = |n: i32| i16::try_from(n).map_err(|_| io::ErrorKind::InvalidInput);
    let mut lock = libc::flock {
        l_type: short(kind)?,
        l_whence: short(libc::SEEK_SET)?,
        l_start: offset(byte)?,
        l_len: offset(count)?,
        l_pid: 0,
    };
    // SAFETY: `lock` is a valid `flock` for the whole call; the descriptor is borrowed.
    let answer = unsafe { libc::fcntl(file.as_fd().as_raw_fd(), command, &raw mut lock) };
    if answer == -1 { Err(io::Error::last_os_error()) } else { Ok(lock) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scratch::Scratch;

    #[test]
    fn marks_of_two_descriptions_exclude_each_other() {
        let scratch = Scratch::image("marks", 4096);
        let (a, b) = (scratch.open(), scratch.open());
        assert!(try_lock(&a, LIFE_BASE + 3).unwrap());
        assert!(try_lock(&a, LIFE_BASE + 3).unwrap(), "one's own mark is no obstacle");
        assert!(!try_lock(&b, LIFE_BASE + 3).unwrap());
        assert!(try_lock(&b, LIFE_BASE + 4).unwrap());
        assert_eq!(held_elsewhere(&b, LIFE_BASE, 1024).unwrap(), Some(LIFE_BASE + 3));
        assert_eq!(held_elsewhere(&a, LIFE_BASE, 1024).unwrap(), Some(LIFE_BASE + 4));
        assert_eq!(held_elsewhere(&a, LIFE_BASE + 3, 1).unwrap(), None, "own marks are not seen");
        unlock(&a, LIFE_BASE + 3).unwrap();
        assert!(try_lock(&b, LIFE_BASE + 3).unwrap());
        drop(b);
        assert_eq!(held_elsewhere(&a, LIFE_BASE, 1024).unwrap(), None);
    }
}
