//! Damage: what every structure must notice.

use crate::checksum::seal;
use crate::layout::Layout;

/// Bytes of a header, which the random tests leave alone.
pub(crate) const HEADER: usize = 64;

/// Numbers that look random and are the same in each run.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new() -> Random {
        Random(0x9e37_79b9_7f4a_7c15)
    }

    pub(crate) fn number(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub(crate) fn below(&mut self, end: usize) -> usize {
        (self.number() >> 11) as usize % end
    }

    /// A byte; small ones are frequent, because counts and kinds are small.
    pub(crate) fn byte(&mut self) -> u8 {
        match self.below(3) {
            0 => 0,
            1 => self.below(9) as u8,
            _ => self.number() as u8,
        }
    }
}

/// `bytes` with another value in a field, and the checksum that belongs to it.
pub(crate) fn with(bytes: &[u8], layout: &Layout, field: &str, value: u64) -> Vec<u8> {
    let is_it = |f: &&crate::layout::Field| f.name.trim_start_matches("r#") == field;
    let field = layout.fields.iter().find(is_it).expect("the structure has the field");
    let len = field.size.min(8);
    with_bytes(bytes, field.offset, &value.to_le_bytes()[..len])
}

/// `bytes` with other bytes at `offset`, and the checksum that belongs to them.
pub(crate) fn with_bytes(bytes: &[u8], offset: usize, other: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes[offset..offset + other.len()].copy_from_slice(other);
    seal(&mut bytes);
    bytes
}

/// Bytes with the header of `sample` and something random behind it, or `sample` with a few
/// random bytes. The checksum is right, so that the deeper checks are reached.
pub(crate) fn damaged(sample: &[u8], layout: &Layout, random: &mut Random) -> Vec<u8> {
    let mut bytes = sample.to_vec();
    if random.below(4) == 0 {
        for byte in &mut bytes[HEADER..] {
            *byte = random.byte();
        }
        for field in layout.fields.iter().filter(|field| field.reserved) {
            bytes[field.offset..field.offset + field.size].fill(0);
        }
    } else {
        // Most that matters lies in front.
        let end = [HEADER + 64, HEADER + 256, bytes.len()][random.below(3)];
        for _ in 0..=random.below(4) {
            let at = HEADER + random.below(end - HEADER);
            bytes[at] = random.byte();
        }
    }
    seal(&mut bytes);
    bytes
}

/// The tests that each structure with a header must pass. `at` is a number that stands for the
/// address; it is 7 where the sample is meant to lie.
macro_rules! disk_tests {
    (
        $layout:ident,
        $($sample:expr),+;
        encode: $encode:expr,
        decode: $decode:expr $(,)?
    ) => {
        const AT: u64 = 7;

        fn encoded() -> Vec<Vec<u8>> {
            vec![$($encode(&$sample, crate::samples::VOLUME, AT).to_vec()),+]
        }

        #[test]
        fn survives_the_disk() {
            $(
                let bytes = $encode(&$sample, crate::samples::VOLUME, AT);
                assert_eq!($decode(bytes.as_slice(), crate::samples::VOLUME, AT), Ok($sample));
            )+
        }

        #[test]
        fn every_flipped_bit_is_noticed() {
            for mut bytes in encoded() {
                for bit in 0..bytes.len() * 8 {
                    bytes[bit / 8] ^= 1 << (bit % 8);
                    assert!($decode(&bytes, crate::samples::VOLUME, AT).is_err(), "bit {bit}");
                    bytes[bit / 8] ^= 1 << (bit % 8);
                }
            }
        }

        #[test]
        fn one_for_another_address_is_refused() {
            for bytes in encoded() {
                let error = $decode(&bytes, crate::samples::VOLUME, AT + 1).unwrap_err();
                assert!(matches!(error, crate::DecodeError::Misdirected { .. }), "{error}");
            }
        }

        #[test]
        fn a_wrong_header_is_refused() {
            use crate::DecodeError::*;
            for bytes in encoded() {
                let decode = |bytes: &[u8]| {
                    $decode(bytes, crate::samples::VOLUME, AT).map(|_| ()).unwrap_err()
                };
                let with = |field, value| {
                    crate::testing::with(&bytes, &crate::header::LAYOUT, field, value)
                };
                assert_eq!(decode(&with("magic", 0)), BadMagic);
                assert_eq!(decode(&with("kind", 77)), WrongKind { found: 77 });
                assert_eq!(decode(&with("format", 1)), WrongFormat { found: 1 });
                assert_eq!(decode(&with("reserved0", 1 << 24)), Reserved { offset: 15 });
                assert_eq!(decode(&vec![0; bytes.len()]), BadMagic);
                for len in [0, 1, 63, 64, 511, 513, 4095, 4097] {
                    assert_eq!(decode(&vec![0; len]), BadLength, "{len} bytes");
                }
            }
        }

        #[test]
        fn a_reserved_byte_is_refused() {
            for bytes in encoded() {
                for field in $layout.fields.iter().filter(|field| field.reserved) {
                    for offset in field.offset..field.offset + field.size {
                        let bytes = crate::testing::with_bytes(&bytes, offset, &[1]);
                        let error = $decode(&bytes, crate::samples::VOLUME, AT).unwrap_err();
                        assert_eq!(error, crate::DecodeError::Reserved { offset });
                    }
                }
            }
        }

        #[test]
        fn what_decode_accepts_of_any_bytes_encode_writes_again() {
            let mut random = crate::testing::Random::new();
            let mut accepted = 0;
            for _ in 0..4000 {
                for bytes in encoded() {
                    let bytes = crate::testing::damaged(&bytes, &$layout, &mut random);
                    if let Ok(value) = $decode(&bytes, crate::samples::VOLUME, AT) {
                        let again = $encode(&value, crate::samples::VOLUME, AT);
                        assert!(again.as_slice() == bytes, "{value:?}");
                        accepted += 1;
                    }
                }
            }
            assert!(accepted > 0, "the test reaches no accepted bytes");
        }
    };
}

pub(crate) use disk_tests;
