//! How far something is, for people who watch.

use std::io::{IsTerminal as _, Write as _};

/// A line on stderr that is written again as things go on; nothing if that is no terminal.
pub struct Progress {
    what: &'static str,
    total: u64,
    told: Option<u64>,
}

impl Progress {
    /// Of `total` bytes.
    pub fn new(what: &'static str, total: u64) -> Progress {
        Progress { what, total, told: None }
    }

    /// So many are done.
    pub fn reach(&mut self, done: u64) {
        let percent = percent(done, self.total);
        if self.told != Some(percent) && std::io::stderr().is_terminal() {
            self.told = Some(percent);
            // Nobody is told worse than before if it cannot be shown.
            drop(write!(std::io::stderr(), "\r{} {percent}%", self.what));
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.told.is_some() {
            eprintln!();
        }
    }
}

fn percent(done: u64, total: u64) -> u64 {
    let hundred = u128::from(done) * 100;
    let whole = hundred.checked_div(u128::from(total)).unwrap_or(100);
    u64::try_from(whole.min(100)).unwrap_or(100)
}

#[cfg(test)]
mod tests {
    #[test]
    fn nothing_is_done_at_once() {
        assert_eq!(super::percent(0, 0), 100);
        assert_eq!(super::percent(1, 3), 33);
        assert_eq!(super::percent(u64::MAX, u64::MAX), 100);
    }
}
