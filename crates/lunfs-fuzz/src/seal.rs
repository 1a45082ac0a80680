//! Right checksums for wrong bytes: lies that reach deeper than noise.

use lunfs_format::{BLOCK, RECORD, kind, kind_of};

const MAGIC: &[u8; 4] = b"LNFS";

/// Bytes of the structure that starts here: of a record, or of a block.
pub fn length(bytes: &[u8]) -> usize {
    match kind_of(bytes) {
        Some(kind::PULSE | kind::DOORBELL | kind::LOCK) => RECORD.min(bytes.len()),
        _ => BLOCK.min(bytes.len()),
    }
}

/// Makes the checksum of a record or block right again.
pub fn seal(bytes: &mut [u8]) {
    let len = length(bytes);
    if len < 8 {
        return;
    }
    bytes[4..8].fill(0);
    let sum = crc32c::crc32c(&bytes[..len]);
    bytes[4..8].copy_from_slice(&sum.to_le_bytes());
}

/// Makes the header say what a decoder looks for, whatever it said: magic, kind, format, volume and
/// address; then seals it.
pub fn dress(bytes: &mut [u8], kind: u16, volume: [u8; 16], address: u64) {
    bytes[..4].copy_from_slice(MAGIC);
    bytes[8..10].copy_from_slice(&kind.to_le_bytes());
    bytes[10..16].fill(0);
    bytes[16..32].copy_from_slice(&volume);
    bytes[32..40].copy_from_slice(&address.to_le_bytes());
    seal(bytes);
}
