//! Numbers out of bytes, as the protocol writes them: big end first.

/// What is left of some bytes.
#[derive(Clone, Copy)]
pub struct Words<'a>(pub &'a [u8]);

impl<'a> Words<'a> {
    pub fn bytes(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(taken)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.bytes(N)?.try_into().ok()
    }

    pub fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    pub fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    pub fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }

    /// Bytes behind their count.
    pub fn string(&mut self) -> Option<&'a [u8]> {
        let len = self.u32()?;
        self.bytes(usize::try_from(len).ok()?)
    }

    /// `None`: more follows, and nothing should.
    pub fn end(&self) -> Option<()> {
        self.0.is_empty().then_some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_taken_that_is_not_there() {
        let mut words = Words(&[0, 1, 0, 0, 0, 2, 7, 8, 9]);
        assert_eq!(words.u16(), Some(1));
        assert_eq!(words.string(), Some(&[7, 8][..]));
        assert_eq!((words.end(), words.u64(), words.u32()), (None, None, None));
        assert_eq!((words.bytes(1), words.end()), (Some(&[9][..]), Some(())));
        assert_eq!(Words(&[0xff, 0xff, 0xff, 0xff, 1]).string(), None);
    }
}
