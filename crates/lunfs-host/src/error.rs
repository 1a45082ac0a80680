//! Errors of this crate: a sentence that says what, where and what next; the chain says why.

use std::io;

/// Something of the real world did not work.
#[derive(Debug, thiserror::Error)]
#[error("{what}")]
pub struct HostError {
    what: String,
    source: Option<io::Error>,
    is_silence: bool,
}

/// Result of this crate.
pub type Result<T, E = HostError> = std::result::Result<T, E>;

impl HostError {
    /// An error that no system call caused.
    pub fn new(what: impl Into<String>) -> HostError {
        HostError { what: what.into(), source: None, is_silence: false }
    }

    /// An error that a system call caused.
    pub fn io(what: impl Into<String>, why: impl Into<io::Error>) -> HostError {
        HostError { what: what.into(), source: Some(why.into()), is_silence: false }
    }

    /// Somebody did not answer in time.
    pub fn silence(what: impl Into<String>) -> HostError {
        HostError { what: what.into(), source: None, is_silence: true }
    }

    /// Nobody answered in time: nothing is known.
    pub fn is_silence(&self) -> bool {
        self.is_silence
    }

    /// What the system call said, if one did.
    pub fn kind(&self) -> Option<io::ErrorKind> {
        self.source.as_ref().map(io::Error::kind)
    }

    /// The sentence and its cause in one line.
    pub fn sentence(&self) -> String {
        match &self.source {
            Some(why) => format!("{}: {why}", self.what),
            None => self.what.clone(),
        }
    }
}
