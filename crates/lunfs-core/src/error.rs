//! What can go wrong, for callers: a kind to act upon, a sentence to read.

use lunfs_format::{BlockNo, DecodeError};

use crate::env::IoError;

/// What a caller can act upon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// No such file or name.
    NotFound,
    /// The name exists.
    Exists,
    /// It is a directory.
    IsDirectory,
    /// It is not a directory.
    NotDirectory,
    /// The directory has entries.
    NotEmpty,
    /// A name or value is too long.
    TooLong,
    /// No space, after all hosts were asked.
    NoSpace,
    /// Somebody uses it.
    Busy,
    /// The file is gone; the handle is stale.
    Stale,
    /// An argument makes no sense.
    Invalid,
    /// The mount is read-only.
    ReadOnly,
    /// The volume does not support this.
    Unsupported,
    /// Too many links.
    TooManyLinks,
    /// The extended attribute does not exist.
    NoAttribute,
    /// Bytes on the volume are not what they must be.
    Corrupt,
    /// The device failed.
    Io,
    /// This host was fenced or stopped itself: nothing is written any more.
    Stopped,
}

/// An error of the core.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what}")]
pub struct Error {
    /// What a caller can act upon.
    pub kind: Kind,
    /// What happened, and where.
    pub what: String,
}

/// Result of the core.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// An error of `kind` with its sentence.
    pub fn new(kind: Kind, what: impl Into<String>) -> Error {
        Error { kind, what: what.into() }
    }

    /// Neither copy of the superblock is of use.
    pub fn no_volume(kind: Kind, whys: &[impl AsRef<str>]) -> Error {
        let whys: Vec<&str> = whys.iter().map(AsRef::as_ref).collect();
        let cure = "check the path; if a volume should be here, write nothing to the device";
        Error::new(kind, format!("no lunfs volume here: {}; {cure}", whys.join("; ")))
    }

    /// A structure at `at` that cannot be decoded.
    pub fn corrupt(at: BlockNo, why: &DecodeError) -> Error {
        Error::damaged(at, why)
    }

    /// What lies at `at` is not what it must be.
    pub fn damaged(at: BlockNo, why: impl std::fmt::Display) -> Error {
        Error::damage(format!("block {at} is corrupt: {why}"))
    }

    /// Bytes on the volume are not what they must be. `what` says where, and what was not done for
    /// it; what to do follows.
    pub fn damage(what: impl std::fmt::Display) -> Error {
        Error::new(Kind::Corrupt, format!("{what}; unmount everywhere and run `lunfs check`"))
    }
}

impl Kind {
    /// What happened, where the caller knows where.
    fn sentence(self) -> &'static str {
        match self {
            Kind::NotFound => "no such file or name",
            Kind::Exists => "the name exists",
            Kind::IsDirectory => "it is a directory",
            Kind::NotDirectory => "it is not a directory",
            Kind::NotEmpty => "the directory has entries",
            Kind::TooLong => "the name or value is too long",
            Kind::NoSpace => "no space is left, all hosts were asked",
            Kind::Busy => "somebody uses it",
            Kind::Stale => "the file is gone",
            Kind::Invalid => "an argument makes no sense",
            Kind::ReadOnly => "the mount is read-only",
            Kind::Unsupported => "the volume does not support this",
            Kind::TooManyLinks => "too many links",
            Kind::NoAttribute => "there is no such extended attribute",
            Kind::Corrupt => "bytes on the volume are not what they must be",
            Kind::Io => "the device failed",
            Kind::Stopped => "this host has stopped: it writes nothing any more",
        }
    }
}

impl From<Kind> for Error {
    fn from(kind: Kind) -> Error {
        Error::new(kind, kind.sentence())
    }
}

impl From<IoError> for Error {
    fn from(e: IoError) -> Error {
        match e {
            IoError::TooLate => Error::new(Kind::Stopped, e.to_string()),
            IoError::InDoubt(_) | IoError::Failed(_) | IoError::Unflushed(_) => {
                Error::new(Kind::Io, e.to_string())
            }
        }
    }
}
