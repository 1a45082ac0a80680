//! Why bytes were refused.

use crate::units::VolumeId;

/// Why bytes were refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The bytes are more or fewer than the structure has.
    #[error("the length is not that of the structure")]
    BadLength,
    /// The bytes do not start with `LNFS`.
    #[error("no lunfs structure is here")]
    BadMagic,
    /// The bytes are not those that were written.
    #[error("the checksum does not match")]
    BadChecksum,
    /// Another structure is here.
    #[error("a structure of kind {found} is here")]
    WrongKind {
        /// Its kind.
        found: u16,
    },
    /// A version of lunfs wrote this that this one does not know.
    #[error("format {found} is not known")]
    WrongFormat {
        /// Its format.
        found: u16,
    },
    /// The structure belongs to another volume.
    #[error("it belongs to volume {found}")]
    ForeignVolume {
        /// The other volume.
        found: VolumeId,
    },
    /// The structure was written for another address.
    #[error("it was written for address {found}")]
    Misdirected {
        /// The other address.
        found: u64,
    },
    /// A reserved byte is not zero: a newer version wrote it.
    #[error("the reserved byte {offset} is not zero")]
    Reserved {
        /// Where the byte lies in the structure.
        offset: usize,
    },
    /// The volume uses features that this version does not know.
    #[error("the features {incompat:#x} are not known")]
    UnknownFeatures {
        /// The bits of `incompat` that are not known.
        incompat: u64,
    },
    /// A text is not UTF-8 padded with zeroes, or too long.
    #[error("{field} is not a text")]
    BadText {
        /// Which one.
        field: &'static str,
    },
    /// A field has a value that it must not have.
    #[error("{field} must not be {value}")]
    BadField {
        /// Which one, as docs/format.md calls it.
        field: &'static str,
        /// What it has.
        value: u64,
    },
    /// An entry of a node does not fit or has a value of a wrong length.
    #[error("entry {index} of the node is malformed")]
    BadEntry {
        /// Which one.
        index: usize,
    },
    /// The keys of a node do not rise.
    #[error("the key of entry {index} of the node is out of order")]
    KeyOrder {
        /// Which one.
        index: usize,
    },
}

impl DecodeError {
    /// A field has a value that it must not have.
    pub(crate) fn field(field: &'static str, value: impl Into<u64>) -> DecodeError {
        DecodeError::BadField { field, value: value.into() }
    }
}

/// Refuses `value` of `field` unless `good`.
pub(crate) fn require(
    good: bool,
    field: &'static str,
    value: impl Into<u64>,
) -> Result<(), DecodeError> {
    if good { Ok(()) } else { Err(DecodeError::field(field, value)) }
}

/// Panics if what is about to be written would be refused when read: nothing may damage a volume
/// because of a mistake in this program.
pub(crate) fn must_be_valid(what: &str, checked: Result<(), DecodeError>) {
    if let Err(error) = checked {
        panic!("refusing to write an invalid {what}: {error}");
    }
}
