//! The signals that ask a mount to end: SIGTERM, SIGINT of a terminal, and SIGHUP of one that is
//! gone. All of them mean the same. Who started us with SIGHUP ignored (nohup) wants us to stay.

use std::fs;

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::error::{HostError, Result};

/// Listens to the signals that ask for an end.
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
    /// `None`: it is ignored.
    hang_up: Option<Signal>,
}

impl Signals {
    /// Starts to listen: from now on none of them ends the program by itself.
    pub fn listen() -> Result<Signals> {
        let listen = |kind| signal(kind).map_err(|e| HostError::io("cannot listen to signals", e));
        Ok(Signals {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
            hang_up: (!is_ignored(SignalKind::hangup()))
                .then(|| listen(SignalKind::hangup()))
                .transpose()?,
        })
    }

    /// Waits for the next one.
    pub async fn recv(&mut self) {
        let hang_up = async {
            match &mut self.hang_up {
                Some(signal) => signal.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
            _ = hang_up => {}
        }
    }
}

/// Whether this program was started with the signal ignored.
fn is_ignored(kind: SignalKind) -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_some_and(|mask| mask >> (kind.as_raw_value() - 1) & 1 == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_that_nohup_ignores_stays_ignored() {
        // Rust ignores the one, and nobody the other.
        assert!(is_ignored(SignalKind::pipe()));
        assert!(!is_ignored(SignalKind::user_defined2()));
    }
}
