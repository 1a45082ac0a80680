//! CRC-32C of records and blocks.

/// Bytes before the checksum field: the magic.
const BEFORE: usize = 4;
/// Bytes of the checksum field.
const FIELD: usize = 4;

/// The checksum field of an encoded record or block.
///
/// # Panics
/// If `block` has less than 8 bytes.
pub fn stored_checksum(block: &[u8]) -> u32 {
    let field = block.get(BEFORE..).and_then(|rest| rest.first_chunk());
    u32::from_le_bytes(*field.expect("an encoded record or block has a checksum"))
}

/// Whether all bytes are zero: nothing was ever written here, or it was discarded.
pub fn is_blank(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| *byte == 0)
}

/// What the checksum field of `bytes` should be: the CRC of all bytes with that field zero.
pub(crate) fn checksum(bytes: &[u8]) -> u32 {
    let (magic, rest) = bytes.split_at(BEFORE.min(bytes.len()));
    let mut head = [0; BEFORE + FIELD];
    head.iter_mut().zip(magic).for_each(|(to, from)| *to = *from);
    crc32c::crc32c_append(crc32c::crc32c(&head), rest.get(FIELD..).unwrap_or_default())
}

/// Fills the checksum field of `bytes`.
pub(crate) fn seal(bytes: &mut [u8]) {
    let sum = checksum(bytes);
    let field = bytes.get_mut(BEFORE..).and_then(|rest| rest.first_chunk_mut());
    *field.expect("a record or block has a checksum") = sum.to_le_bytes();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_that_of_the_bytes_with_its_field_zero() {
        let mut bytes = [7; 64];
        bytes[4..8].fill(0);
        let expected = crc32c::crc32c(&bytes);
        bytes[4..8].fill(9);
        seal(&mut bytes);
        assert_eq!(stored_checksum(&bytes), expected);
        assert_eq!(checksum(&bytes), expected);
    }

    #[test]
    fn only_zeroes_are_blank() {
        assert!(is_blank(&[0; 512]));
        let mut bytes = [0; 512];
        bytes[511] = 1;
        assert!(!is_blank(&bytes));
    }
}
