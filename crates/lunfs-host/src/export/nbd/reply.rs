//! What came of a request, as bytes. Pure.

use super::options::ALLOCATION_ID;
use super::request::Refusal;
use crate::export::file::Extent;

const SIMPLE: u32 = 0x6744_6698;
const STRUCTURED: u32 = 0x668e_33ef;

/// Longest sentence of a refusal.
const WHY_MAX: usize = 1024;
/// Less than that is not worth a look whether it is zero.
const HOLE_MIN: usize = 4096;

/// What came of a request that was done.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    Done,
    /// The bytes from `at` on; `in_one`: the client takes them in one piece only.
    Read {
        at: u64,
        pieces: Vec<Vec<u8>>,
        in_one: bool,
    },
    Status(Vec<Extent>),
}

/// Kinds of pieces of a structured reply.
mod kind {
    pub const NONE: u16 = 0;
    pub const OFFSET_DATA: u16 = 1;
    pub const OFFSET_HOLE: u16 = 2;
    pub const BLOCK_STATUS: u16 = 5;
    pub const ERROR: u16 = 1 << 15 | 1;
}

/// The buffers to send, one behind the other. What was read is not copied.
pub fn encode(cookie: u64, is_structured: bool, outcome: Result<Outcome, Refusal>) -> Vec<Vec<u8>> {
    if !is_structured {
        return simple(cookie, outcome);
    }
    let mut reply = Reply { cookie, buffers: Vec::new() };
    match outcome {
        Ok(Outcome::Done) => reply.chunk(true, kind::NONE, 0, &[]),
        Ok(Outcome::Read { at, pieces, in_one: true }) => reply.data(true, at, pieces),
        Ok(Outcome::Read { at, pieces, in_one: false }) => reply.data_and_holes(at, pieces),
        Ok(Outcome::Status(extents)) => {
            let list = extents.iter().flat_map(descriptor);
            let data: Vec<u8> = ALLOCATION_ID.to_be_bytes().into_iter().chain(list).collect();
            reply.chunk(true, kind::BLOCK_STATUS, data.len(), &data);
        }
        Err(refusal) => {
            let why = said(&refusal.why);
            let len = u16::try_from(why.len()).expect("it was cut");
            let data = [&(refusal.code as u32).to_be_bytes()[..], &len.to_be_bytes(), why].concat();
            reply.chunk(true, kind::ERROR, data.len(), &data);
        }
    }
    reply.buffers
}

fn simple(cookie: u64, outcome: Result<Outcome, Refusal>) -> Vec<Vec<u8>> {
    let code = outcome.as_ref().err().map_or(0, |refusal| refusal.code as u32);
    let head = [&SIMPLE.to_be_bytes()[..], &code.to_be_bytes(), &cookie.to_be_bytes()].concat();
    let pieces = match outcome {
        Ok(Outcome::Read { pieces, .. }) => pieces,
        _ => Vec::new(),
    };
    std::iter::once(head).chain(pieces).collect()
}

struct Reply {
    cookie: u64,
    buffers: Vec<Vec<u8>>,
}

impl Reply {
    /// A piece of `len` bytes, of which `head` is here and the rest follows.
    fn chunk(&mut self, is_last: bool, kind: u16, len: usize, head: &[u8]) {
        let len = u32::try_from(len).expect("no reply is longer than the longest read");
        let mut bytes = Vec::with_capacity(20 + head.len());
        bytes.extend(STRUCTURED.to_be_bytes());
        bytes.extend(u16::from(is_last).to_be_bytes());
        bytes.extend(kind.to_be_bytes());
        bytes.extend(self.cookie.to_be_bytes());
        bytes.extend(len.to_be_bytes());
        bytes.extend(head);
        self.buffers.push(bytes);
    }

    fn data(&mut self, is_last: bool, at: u64, pieces: Vec<Vec<u8>>) {
        let len: usize = pieces.iter().map(Vec::len).sum();
        self.chunk(is_last, kind::OFFSET_DATA, 8 + len, &at.to_be_bytes());
        self.buffers.extend(pieces);
    }

    /// Zeroes are told by their length: whether they were written says `base:allocation`.
    fn data_and_holes(&mut self, mut at: u64, pieces: Vec<Vec<u8>>) {
        let count = pieces.len();
        for (index, piece) in pieces.into_iter().enumerate() {
            let (len, is_last) = (piece.len(), index + 1 == count);
            if len >= HOLE_MIN && is_zero(&piece) {
                let words = [&at.to_be_bytes()[..], &len_of(&piece).to_be_bytes()].concat();
                self.chunk(is_last, kind::OFFSET_HOLE, words.len(), &words);
            } else {
                self.data(is_last, at, vec![piece]);
            }
            at += len as u64;
        }
    }
}

fn len_of(piece: &[u8]) -> u32 {
    u32::try_from(piece.len()).expect("a piece is short")
}

/// Looks no further than the first part that is not.
fn is_zero(piece: &[u8]) -> bool {
    piece.chunks(4096).all(|part| part.iter().fold(0, |all, byte| all | byte) == 0)
}

fn descriptor(extent: &Extent) -> impl Iterator<Item = u8> + use<> {
    const HOLE: u32 = 1 << 0;
    const ZERO: u32 = 1 << 1;
    let state = if extent.has_data { 0 } else { HOLE | ZERO };
    // No run is longer than what was asked for.
    let len = u32::try_from(extent.len).expect("a request is shorter than 4 GiB");
    len.to_be_bytes().into_iter().chain(state.to_be_bytes())
}

fn said(why: &str) -> &[u8] {
    let end = (0..=why.len().min(WHY_MAX)).rev().find(|end| why.is_char_boundary(*end));
    &why.as_bytes()[..end.unwrap_or(0)]
}

#[cfg(test)]
mod tests {
    use super::super::request::Code;
    use super::*;

    const COOKIE: u64 = 0x0102_0304_0506_0708;

    /// Flags, kind and data of the pieces of a structured reply.
    fn chunks(outcome: Result<Outcome, Refusal>) -> Vec<(u16, u16, Vec<u8>)> {
        let bytes = encode(COOKIE, true, outcome).concat();
        let mut words = super::super::words::Words(&bytes);
        let mut chunks = Vec::new();
        while words.end().is_none() {
            assert_eq!(words.u32(), Some(STRUCTURED));
            let (flags, kind) = (words.u16().unwrap(), words.u16().unwrap());
            assert_eq!(words.u64(), Some(COOKIE));
            chunks.push((flags, kind, words.string().unwrap().to_vec()));
        }
        chunks
    }

    fn refusal(why: &str) -> Result<Outcome, Refusal> {
        Err(Refusal { code: Code::NoSpace, why: why.into() })
    }

    #[test]
    fn simple_replies_are_a_code_and_what_was_read() {
        let pieces = vec![vec![1, 2], vec![3]];
        let read = Ok(Outcome::Read { at: 0, pieces, in_one: false });
        let head = [&[0x67, 0x44, 0x66, 0x98, 0, 0, 0, 0][..], &COOKIE.to_be_bytes()].concat();
        assert_eq!(encode(COOKIE, false, read).concat(), [&head[..], &[1, 2, 3]].concat());
        assert_eq!(encode(COOKIE, false, Ok(Outcome::Done)).concat(), head);
        assert_eq!(encode(COOKIE, false, refusal("full")).concat()[4..8], [0, 0, 0, 28]);
    }

    #[test]
    fn zeroes_are_told_by_their_length_unless_one_piece_is_wanted() {
        let pieces = vec![vec![0; 8192], vec![1; 5000], vec![0; 100]];
        let read = |in_one| Ok(Outcome::Read { at: 4096, pieces: pieces.clone(), in_one });
        let told = chunks(read(false));
        assert_eq!(
            told[0],
            (0, kind::OFFSET_HOLE, [&4096_u64.to_be_bytes()[..], &[0, 0, 0x20, 0]].concat())
        );
        assert_eq!((told[1].0, told[1].1, told[1].2.len()), (0, kind::OFFSET_DATA, 5008));
        assert_eq!((told[2].0, told[2].1), (1, kind::OFFSET_DATA));
        assert_eq!(told[2].2[..8], (4096 + 8192 + 5000_u64).to_be_bytes());
        let told = chunks(read(true));
        assert_eq!(told.len(), 1);
        assert_eq!(told[0].2, [&4096_u64.to_be_bytes()[..], &pieces.concat()].concat());
    }

    #[test]
    fn a_status_is_the_number_of_its_context_and_its_runs() {
        let hole = Extent { len: 0x10000, has_data: false };
        let data = Extent { len: u64::from(u32::MAX), has_data: true };
        let told = chunks(Ok(Outcome::Status(vec![hole, data])));
        let runs = [0, 0, 0, 1, 0, 1, 0, 0, 0, 0, 0, 3, 255, 255, 255, 255, 0, 0, 0, 0];
        assert_eq!(told, [(1, kind::BLOCK_STATUS, runs.to_vec())]);
    }

    #[test]
    fn a_refusal_says_why_in_some_words() {
        let told = chunks(refusal("full"));
        assert_eq!(told, [(1, kind::ERROR, b"\0\0\0\x1c\0\x04full".to_vec())]);
        let long = "\u{e9}".repeat(WHY_MAX);
        assert_eq!(chunks(refusal(&long))[0].2.len(), 6 + WHY_MAX);
        assert_eq!(chunks(refusal(&format!("x{long}")))[0].2.len(), 6 + WHY_MAX - 1);
        assert_eq!(chunks(Ok(Outcome::Done)), [(1, kind::NONE, vec![])]);
    }
}
