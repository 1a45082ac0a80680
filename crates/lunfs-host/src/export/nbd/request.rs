//! A request: what it asks for, and whether that makes sense. Pure.

use super::options::{Agreed, PAYLOAD_MAX};
use super::words::Words;
use crate::export::file::GRAIN;

/// Bytes of a request without its payload.
pub const REQUEST: usize = 28;
const MAGIC: u32 = 0x2560_9513;

/// Kinds of requests.
mod kind {
    pub const READ: u16 = 0;
    pub const WRITE: u16 = 1;
    pub const DISCONNECT: u16 = 2;
    pub const FLUSH: u16 = 3;
    pub const TRIM: u16 = 4;
    pub const WRITE_ZEROES: u16 = 6;
    pub const BLOCK_STATUS: u16 = 7;
}

/// Flags of requests.
mod flag {
    pub const FUA: u16 = 1 << 0;
    pub const NO_HOLE: u16 = 1 << 1;
    pub const DF: u16 = 1 << 2;
    pub const REQ_ONE: u16 = 1 << 3;
    pub const FAST_ZERO: u16 = 1 << 4;
}

/// A request as it came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    flags: u16,
    kind: u16,
    /// The client's name for it.
    pub cookie: u64,
    pub at: u64,
    len: u32,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// `in_one`: the answer is one piece.
    Read { at: u64, len: u32, in_one: bool },
    /// The payload, from there on.
    Write { at: u64, is_durable: bool },
    /// All that was answered is durable.
    Flush,
    /// The range may lose what it holds; here it reads zero.
    Trim { at: u64, len: u32, is_durable: bool },
    /// The range reads zero; `in_place`: and keeps, or gets, its place.
    Zero { at: u64, len: u32, in_place: bool, is_durable: bool },
    /// Which parts of the range have data; `only_first`: of one run of it.
    Status { at: u64, len: u32, only_first: bool },
}

/// The numbers that clients know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Code {
    NotPermitted = 1,
    Io = 5,
    Invalid = 22,
    NoSpace = 28,
    Unsupported = 95,
    Shutdown = 108,
}

/// Why a request is not done, for programs and for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub code: Code,
    pub why: String,
}

impl Request {
    /// `None`: this is none.
    pub fn decode(bytes: [u8; REQUEST]) -> Option<Request> {
        let mut words = Words(&bytes);
        let is_request = words.u32()? == MAGIC;
        let (flags, kind) = (words.u16()?, words.u16()?);
        let (cookie, at, len) = (words.u64()?, words.u64()?, words.u32()?);
        is_request.then_some(Request { flags, kind, cookie, at, len })
    }

    pub fn is_disconnect(&self) -> bool {
        self.kind == kind::DISCONNECT
    }

    /// Bytes that follow. `None`: more than anybody may send.
    pub fn payload(&self) -> Option<u32> {
        match self.kind {
            kind::WRITE => Some(self.len).filter(|len| *len <= PAYLOAD_MAX),
            _ => Some(0),
        }
    }

    /// Bytes that it keeps in memory until it is answered.
    pub fn room(&self) -> u32 {
        match self.kind {
            kind::READ | kind::WRITE => self.len.min(PAYLOAD_MAX),
            _ => 0,
        }
    }

    /// Decides what is to be done with an export of `size` bytes.
    pub fn judge(&self, agreed: &Agreed, size: u64, read_only: bool) -> Result<Action, Refusal> {
        let &Request { flags, at, len, .. } = self;
        self.must_be_known(agreed)?;
        if self.kind == kind::FLUSH {
            return Ok(Action::Flush);
        }
        let changes = [kind::WRITE, kind::TRIM, kind::WRITE_ZEROES].contains(&self.kind);
        if changes && read_only {
            return refuse(Code::NotPermitted, "it is exported to be read only");
        }
        // Behind the end there is no space that could run out, and a guest that is told so would be
        // stopped to wait for some.
        if len == 0 || at.checked_add(len.into()).is_none_or(|end| end > size) {
            return refuse(Code::Invalid, "not a range of this export");
        }
        let is_durable = flags & flag::FUA != 0;
        Ok(match self.kind {
            kind::READ if len > PAYLOAD_MAX => {
                return refuse(Code::Invalid, "more than may be read at once");
            }
            kind::READ => Action::Read { at, len, in_one: flags & flag::DF != 0 },
            kind::WRITE => Action::Write { at, is_durable },
            kind::TRIM => Action::Trim { at, len, is_durable },
            kind::WRITE_ZEROES if flags & flag::FAST_ZERO != 0 && !has_grain(at, len) => {
                return refuse(Code::Unsupported, "a part of 4 KiB is written as any other");
            }
            kind::WRITE_ZEROES => {
                Action::Zero { at, len, in_place: flags & flag::NO_HOLE != 0, is_durable }
            }
            _ => Action::Status { at, len, only_first: flags & flag::REQ_ONE != 0 },
        })
    }

    fn must_be_known(&self, agreed: &Agreed) -> Result<(), Refusal> {
        let flags = match self.kind {
            kind::READ if agreed.structured => flag::DF,
            kind::READ | kind::WRITE | kind::FLUSH | kind::TRIM => 0,
            kind::WRITE_ZEROES => flag::NO_HOLE | flag::FAST_ZERO,
            kind::BLOCK_STATUS if agreed.allocation => flag::REQ_ONE,
            _ => return refuse(Code::Invalid, "this request was not offered"),
        };
        // Of reads, too, it must be taken.
        if self.flags & !(flags | flag::FUA) != 0 {
            return refuse(Code::Invalid, "a flag that was not offered");
        }
        Ok(())
    }
}

/// Zeroes of a whole grain are a change of the map; those of a part are written.
fn has_grain(at: u64, len: u32) -> bool {
    let end = at + u64::from(len);
    at.next_multiple_of(GRAIN) + GRAIN <= end
}

fn refuse<T>(code: Code, why: &str) -> Result<T, Refusal> {
    Err(Refusal { code, why: why.into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: u64 = 1 << 20;
    const PLAIN: Agreed = Agreed { no_zeroes: true, structured: false, allocation: false };
    const ALL: Agreed = Agreed { no_zeroes: true, structured: true, allocation: true };

    fn request(kind: u16, flags: u16, at: u64, len: u32) -> Request {
        Request { flags, kind, cookie: 7, at, len }
    }

    fn refused(request: Request, agreed: &Agreed) -> Option<Code> {
        request.judge(agreed, SIZE, false).err().map(|refusal| refusal.code)
    }

    #[test]
    fn a_request_is_28_bytes_behind_its_magic() {
        let mut bytes = [0; REQUEST];
        bytes[..8].copy_from_slice(&[0x25, 0x60, 0x95, 0x13, 0, 1, 0, 1]);
        (bytes[15], bytes[22], bytes[26]) = (7, 0x10, 0x20);
        let request = Request::decode(bytes).unwrap();
        assert_eq!(request, self::request(kind::WRITE, flag::FUA, 0x1000, 0x2000));
        let done = request.judge(&PLAIN, SIZE, false);
        assert_eq!(done, Ok(Action::Write { at: 0x1000, is_durable: true }));
        for bit in 0..32 {
            let mut bytes = bytes;
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Request::decode(bytes), None, "bit {bit}");
        }
    }

    #[test]
    fn each_kind_takes_its_flags_and_no_others() {
        let known = [
            (kind::READ, flag::DF),
            (kind::WRITE, 0),
            (kind::FLUSH, 0),
            (kind::TRIM, 0),
            (kind::WRITE_ZEROES, flag::NO_HOLE | flag::FAST_ZERO),
            (kind::BLOCK_STATUS, flag::REQ_ONE),
        ];
        for (kind, flags) in known {
            for bit in 0..16 {
                let is_fine = (flags | flag::FUA) >> bit & 1 == 1;
                let refused = refused(request(kind, 1 << bit, 0, 8192), &ALL);
                assert_eq!(refused, (!is_fine).then_some(Code::Invalid), "{kind} {bit}");
            }
        }
        for kind in [kind::DISCONNECT, 5, 8, 99, u16::MAX] {
            assert_eq!(refused(request(kind, 0, 0, 1), &ALL), Some(Code::Invalid), "{kind}");
        }
        assert_eq!(refused(request(kind::READ, flag::DF, 0, 1), &PLAIN), Some(Code::Invalid));
        assert_eq!(refused(request(kind::BLOCK_STATUS, 0, 0, 1), &PLAIN), Some(Code::Invalid));
    }

    #[test]
    fn a_range_lies_in_the_export() {
        for kind in [kind::READ, kind::WRITE, kind::TRIM, kind::WRITE_ZEROES, kind::BLOCK_STATUS] {
            assert_eq!(refused(request(kind, 0, SIZE - 1, 1), &ALL), None);
            for (at, len) in [(SIZE, 1), (SIZE - 1, 2), (0, 0), (u64::MAX, 1), (u64::MAX, 0)] {
                let refused = refused(request(kind, 0, at, len), &ALL);
                assert_eq!(refused, Some(Code::Invalid), "{kind} {at} {len}");
            }
        }
        let flush = request(kind::FLUSH, 0, u64::MAX, u32::MAX);
        assert_eq!(flush.judge(&ALL, SIZE, true), Ok(Action::Flush));
    }

    #[test]
    fn what_is_read_only_is_not_changed() {
        for kind in [kind::WRITE, kind::TRIM, kind::WRITE_ZEROES] {
            let refusal = request(kind, 0, SIZE, 1).judge(&ALL, SIZE, true).unwrap_err();
            assert_eq!(refusal.code, Code::NotPermitted, "{kind}");
        }
        assert!(request(kind::READ, 0, 0, 1).judge(&ALL, SIZE, true).is_ok());
    }

    #[test]
    fn nobody_keeps_more_than_the_most_of_one_request() {
        let read = |len| request(kind::READ, 0, 0, len);
        let size = 1 << 40;
        assert!(read(PAYLOAD_MAX).judge(&ALL, size, false).is_ok());
        assert!(read(PAYLOAD_MAX + 1).judge(&ALL, size, false).is_err());
        assert_eq!(read(u32::MAX).room(), PAYLOAD_MAX);
        let write = |len| request(kind::WRITE, 0, 0, len);
        assert_eq!(write(PAYLOAD_MAX).payload(), Some(PAYLOAD_MAX));
        assert_eq!(write(PAYLOAD_MAX + 1).payload(), None);
        assert_eq!(request(kind::TRIM, 0, 0, u32::MAX).payload(), Some(0));
    }

    #[test]
    fn zeroes_are_fast_where_a_whole_grain_is_among_them() {
        let cases = [(0, 4096, true), (0, 4095, false), (1, 4096, false), (1, 8191, true)];
        for (at, len, is_fast) in cases {
            let fast = request(kind::WRITE_ZEROES, flag::FAST_ZERO, at, len);
            let expected = (!is_fast).then_some(Code::Unsupported);
            assert_eq!(refused(fast, &ALL), expected, "{at} {len}");
        }
    }
}
