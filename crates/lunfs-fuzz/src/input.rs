//! Bytes of an input as the choices that it makes, and inputs made by chance.

/// Choices that an input makes, one after the other; zeroes when it has no more.
pub struct Choices<'a>(&'a [u8]);

impl<'a> Choices<'a> {
    pub fn new(input: &'a [u8]) -> Choices<'a> {
        Choices(input)
    }

    pub fn is_over(&self) -> bool {
        self.0.is_empty()
    }

    pub fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    pub fn word(&mut self) -> u16 {
        u16::from_le_bytes([self.byte(), self.byte()])
    }

    pub fn long(&mut self) -> u64 {
        u64::from_le_bytes(std::array::from_fn(|_| self.byte()))
    }
}

/// Longest noise.
const NOISE_MAX: u64 = 96;
/// Most changes of a seed.
const CHANGES_MAX: u64 = 6;

/// Numbers that look random.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        // Any odd constant: neighbouring seeds must not begin alike, and zero would stay zero.
        Random(seed.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15))
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 16
    }

    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end.max(1)
    }

    fn index(&mut self, len: usize) -> usize {
        usize::try_from(self.below(len as u64)).expect("below a length")
    }

    /// A seed with some bytes changed, or noise.
    pub fn varied(&mut self, seeds: &[Vec<u8>]) -> Vec<u8> {
        if seeds.is_empty() || self.below(2) == 0 {
            return (0..self.below(NOISE_MAX)).map(|_| self.next() as u8).collect();
        }
        let mut input = seeds[self.index(seeds.len())].clone();
        for _ in 0..=self.below(CHANGES_MAX) {
            if input.is_empty() {
                break;
            }
            let at = self.index(input.len());
            match self.below(4) {
                0 => input[at] ^= 1 << self.below(8),
                1 => input[at] = self.below(9) as u8,
                2 => input[at..].iter_mut().take(8).for_each(|byte| *byte = 0xFF),
                _ => input[at] = self.next() as u8,
            }
        }
        input
    }
}
