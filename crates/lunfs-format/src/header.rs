//! The header that starts every record and every metadata block.
//!
//! Invariants: nothing behind the header is looked at before magic, checksum, format, kind,
//! volume and address were found right; nothing is written without all of them.
//!
//! Bytes: docs/format.md#header.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::checksum::{checksum, seal};
use crate::error::{DecodeError, require};
use crate::layout::{Layout, raw};
use crate::units::{BLOCK, BlockNo, RECORD, Version, VolumeId};

const MAGIC: [u8; 4] = *b"LNFS";
const FORMAT: u16 = 0;

/// Births, versions and generations lie below. No volume lives long enough to count up to here, and
/// whoever raises one that was read may rely on it.
const VERSION_END: u64 = 1 << 63;

/// The kinds of structures.
pub mod kind {
    /// A superblock.
    pub const SUPERBLOCK: u16 = 1;
    /// A pulse.
    pub const PULSE: u16 = 2;
    /// A doorbell entry.
    pub const DOORBELL: u16 = 3;
    /// A lock.
    pub const LOCK: u16 = 4;
    /// A cluster header.
    pub const CLUSTER: u16 = 5;
    /// A descriptor.
    pub const DESCRIPTOR: u16 = 6;
    /// A node of a tree.
    pub const NODE: u16 = 7;
    /// A journal header.
    pub const JOURNAL_HEADER: u16 = 8;
    /// A head block of a journal record.
    pub const JOURNAL_RECORD: u16 = 9;
}

raw! {
    RawHeader, LAYOUT, "Header" {
        magic: [u8; 4],
        checksum: U32,
        kind: U16,
        format: U16,
        reserved0: U32 = zero,
        volume: [u8; 16],
        address: U64,
        birth: U64,
        version: U64,
        owner: U64,
    }
}

const _: () = assert!(size_of::<RawHeader>() == 64);

impl RawHeader {
    pub(crate) fn version(&self) -> Version {
        Version { birth: self.birth.get(), count: self.version.get() }
    }

    pub(crate) fn owner(&self) -> BlockNo {
        BlockNo(self.owner.get())
    }

    /// Refuses a header that names a lock, in structures that no lock covers.
    pub(crate) fn require_no_owner(&self) -> Result<(), DecodeError> {
        require(self.owner == 0, "owner", self.owner.get())
    }
}

/// What a header says of the structure that it starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// What the structure is: see [`kind`].
    pub kind: u16,
    /// The volume that it belongs to.
    pub volume: VolumeId,
    /// The block that it was written for; for pulses and doorbells the address in the heartbeat
    /// region.
    pub address: u64,
    /// Its version, or the generation of a lock.
    pub version: Version,
    /// The lock that covers it, or zero.
    pub owner: BlockNo,
}

/// The kind that a header claims, if there is one. Nothing is checked but the magic.
pub fn kind_of(bytes: &[u8]) -> Option<u16> {
    let (header, _) = RawHeader::ref_from_prefix(bytes).ok()?;
    (header.magic == MAGIC).then(|| header.kind.get())
}

/// What the header of any structure says; only the checksum and the format are checked.
pub fn peek_header(bytes: &[u8]) -> Result<Header, DecodeError> {
    let size = match kind_of(bytes) {
        Some(kind::PULSE | kind::DOORBELL | kind::LOCK) => RECORD,
        _ => BLOCK,
    };
    let header = checked_header(bytes.get(..size).ok_or(DecodeError::BadLength)?)?;
    Ok(Header {
        kind: header.kind.get(),
        volume: VolumeId(header.volume),
        address: header.address.get(),
        version: header.version(),
        owner: header.owner(),
    })
}

/// A structure with a header, as it lies on disk.
pub(crate) trait Structure:
    FromBytes + IntoBytes + KnownLayout + Immutable + Unaligned
{
    const KIND: u16;
    const FIELDS: Layout;
}

/// Finds a structure in `bytes`, with a right header and no reserved byte set. A record may come
/// with the rest of its logical block, which must be zero. Only superblocks are opened without
/// knowing the volume.
pub(crate) fn open<R: Structure>(
    bytes: &[u8],
    volume: Option<VolumeId>,
    address: u64,
) -> Result<&R, DecodeError> {
    let (structure, rest) = split(bytes, size_of::<R>())?;
    let header = checked_header(structure)?;
    if header.kind != R::KIND {
        return Err(DecodeError::WrongKind { found: header.kind.get() });
    }
    let found = VolumeId(header.volume);
    if volume.is_some_and(|volume| volume != found) {
        return Err(DecodeError::ForeignVolume { found });
    }
    if header.address != address {
        return Err(DecodeError::Misdirected { found: header.address.get() });
    }
    require_reserved_zero(structure, &LAYOUT, 0)?;
    require_reserved_zero(structure, &R::FIELDS, 0)?;
    require_zero(rest, structure.len())?;
    R::ref_from_bytes(structure).map_err(|_| DecodeError::BadLength)
}

/// What goes into the header of a new structure.
#[derive(Clone, Copy)]
pub(crate) struct Heading {
    pub volume: VolumeId,
    pub address: u64,
    pub version: Version,
    pub owner: BlockNo,
}

/// Makes the bytes of a structure: zeroes, then what `fill` sets, then header and checksum.
pub(crate) fn make<R: Structure, const SIZE: usize>(
    heading: Heading,
    fill: impl FnOnce(&mut R),
) -> Box<[u8; SIZE]> {
    let mut bytes = Box::new([0; SIZE]);
    let Ok(raw) = R::mut_from_bytes(bytes.as_mut_slice()) else {
        unreachable!("any {SIZE} bytes are such a structure");
    };
    fill(raw);
    let Ok((header, _)) = RawHeader::mut_from_prefix(bytes.as_mut_slice()) else {
        unreachable!("every structure is longer than its header");
    };
    *header = RawHeader {
        magic: MAGIC,
        checksum: 0.into(),
        kind: R::KIND.into(),
        format: FORMAT.into(),
        reserved0: 0.into(),
        volume: heading.volume.0,
        address: heading.address.into(),
        birth: heading.version.birth.into(),
        version: heading.version.count.into(),
        owner: heading.owner.0.into(),
    };
    seal(bytes.as_mut_slice());
    bytes
}

/// Refuses bytes that are not zero; `offset` is where `bytes` start in the structure.
pub(crate) fn require_zero(bytes: &[u8], offset: usize) -> Result<(), DecodeError> {
    // Without an early end this is a few instructions for 64 bytes; most bytes are zero.
    if bytes.iter().fold(0, |all, byte| all | byte) == 0 {
        return Ok(());
    }
    match bytes.iter().position(|byte| *byte != 0) {
        Some(index) => Err(DecodeError::Reserved { offset: offset + index }),
        None => Ok(()),
    }
}

/// Refuses a structure with a reserved byte set; `offset` is where it starts in a larger one.
pub(crate) fn require_reserved_zero(
    structure: &[u8],
    layout: &Layout,
    offset: usize,
) -> Result<(), DecodeError> {
    for field in layout.fields.iter().filter(|field| field.reserved) {
        let bytes = structure.get(field.offset..field.offset + field.size);
        require_zero(bytes.ok_or(DecodeError::BadLength)?, offset + field.offset)?;
    }
    Ok(())
}

fn split(bytes: &[u8], size: usize) -> Result<(&[u8], &[u8]), DecodeError> {
    let whole_logical_block = size == RECORD && bytes.len() == BLOCK;
    if bytes.len() != size && !whole_logical_block {
        return Err(DecodeError::BadLength);
    }
    Ok(bytes.split_at(size))
}

fn checked_header(structure: &[u8]) -> Result<&RawHeader, DecodeError> {
    let (header, _) = RawHeader::ref_from_prefix(structure).map_err(|_| DecodeError::BadLength)?;
    if header.magic != MAGIC {
        return Err(DecodeError::BadMagic);
    }
    if header.checksum != checksum(structure) {
        return Err(DecodeError::BadChecksum);
    }
    if header.format != FORMAT {
        return Err(DecodeError::WrongFormat { found: header.format.get() });
    }
    require(header.birth < VERSION_END, "birth", header.birth)?;
    require(header.version < VERSION_END, "version", header.version)?;
    Ok(header)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::samples::{self, VOLUME};
    use crate::testing::{Random, with};

    #[test]
    fn a_header_is_read_without_knowing_what_follows() {
        let bytes = samples::leaf().encode(VOLUME, BlockNo(9));
        let expected = Header {
            kind: kind::NODE,
            volume: VOLUME,
            address: 9,
            version: Version { birth: 6, count: 1 },
            owner: BlockNo(2050),
        };
        assert_eq!(peek_header(bytes.as_slice()), Ok(expected));
        assert_eq!(kind_of(bytes.as_slice()), Some(kind::NODE));
        assert_eq!(peek_header(&bytes[..512]), Err(DecodeError::BadLength));
    }

    #[test]
    fn what_is_no_structure_has_no_kind() {
        assert_eq!(kind_of(&[0; 4096]), None);
        assert_eq!(kind_of(b"LNFS"), None);
        assert_eq!(peek_header(&[0; 4096]), Err(DecodeError::BadMagic));
        assert_eq!(peek_header(&[]), Err(DecodeError::BadLength));
    }

    /// Found by damaged volumes: who takes a lock raises its generation, and the last one there is
    /// ended the program of each host in turn.
    #[test]
    fn a_version_that_cannot_be_raised_for_ever_is_refused() {
        for (field, count) in [("version", 1 << 63), ("version", u64::MAX), ("birth", u64::MAX)] {
            let bytes = samples::leaf().encode(VOLUME, BlockNo(9));
            let bytes = with(bytes.as_slice(), &LAYOUT, field, count);
            let refused = DecodeError::BadField { field, value: count };
            assert_eq!(peek_header(&bytes), Err(refused));
        }
    }

    #[test]
    fn no_bytes_make_a_look_at_the_header_panic() {
        let mut random = Random::new();
        for _ in 0..10_000 {
            let mut bytes: Vec<u8> = (0..random.below(700)).map(|_| random.byte()).collect();
            for (byte, letter) in bytes.iter_mut().zip(MAGIC) {
                *byte = letter;
            }
            let _ = kind_of(&bytes);
            assert!(peek_header(&bytes).is_err());
        }
    }
}
