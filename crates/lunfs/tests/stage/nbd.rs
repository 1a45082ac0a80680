//! A small NBD client, which may also say what no client should.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;

use super::LIMIT;

pub const READ: u16 = 0;
pub const WRITE: u16 = 1;
pub const DISCONNECT: u16 = 2;
pub const FLUSH: u16 = 3;
pub const TRIM: u16 = 4;
pub const WRITE_ZEROES: u16 = 6;
pub const BLOCK_STATUS: u16 = 7;
pub const FUA: u16 = 1;

const GO: u32 = 7;
const STRUCTURED: u32 = 8;
const SET_CONTEXT: u32 = 10;

/// A connection behind the handshake.
pub struct Client {
    pub stream: UnixStream,
    /// Bytes of the export.
    pub size: u64,
    cookie: u64,
}

/// One piece of a structured reply.
pub struct Chunk {
    pub kind: u16,
    pub data: Vec<u8>,
}

impl Client {
    /// Connects, asks for structured replies and `base:allocation`, and begins.
    pub fn connect(socket: &Path) -> Client {
        let stream = UnixStream::connect(socket).expect("somebody listens");
        stream.set_read_timeout(Some(LIMIT)).expect("a limit");
        stream.set_write_timeout(Some(LIMIT)).expect("a limit");
        let mut client = Client { stream, size: 0, cookie: 0 };
        assert_eq!(client.take(18), b"NBDMAGICIHAVEOPT\0\x03");
        client.say(&[0, 0, 0, 3]);
        client.option(STRUCTURED, b"");
        let context = b"\0\0\0\0\0\0\0\x01\0\0\0\x0fbase:allocation";
        assert_eq!(client.option(SET_CONTEXT, context)[0].0, 4, "the context is set");
        let told = client.option(GO, &[0; 6]);
        let export = told.iter().find(|(kind, data)| *kind == 3 && data[..2] == [0, 0]);
        client.size = number(&export.expect("the export is told").1[2..10]);
        client
    }

    /// Sends an option; returns kinds and data of the answers up to the last.
    fn option(&mut self, option: u32, data: &[u8]) -> Vec<(u32, Vec<u8>)> {
        let len = u32::try_from(data.len()).expect("short").to_be_bytes();
        self.say(&[b"IHAVEOPT", &option.to_be_bytes()[..], &len, data].concat());
        let mut answers = Vec::new();
        loop {
            let head = self.take(20);
            let (kind, len) = (number(&head[12..16]), number(&head[16..20]));
            let data = self.take(usize::try_from(len).expect("short"));
            let kind = u32::try_from(kind).expect("four bytes");
            answers.push((kind, data));
            if kind == 1 || kind >> 31 == 1 {
                return answers;
            }
        }
    }

    pub fn say(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).expect("it listens");
    }

    fn take(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.stream.read_exact(&mut bytes).expect("it answers");
        bytes
    }

    /// Sends a request; returns its cookie.
    pub fn request(&mut self, kind: u16, flags: u16, at: u64, len: u32, payload: &[u8]) -> u64 {
        self.cookie += 1;
        let head = [
            &0x2560_9513_u32.to_be_bytes()[..],
            &flags.to_be_bytes(),
            &kind.to_be_bytes(),
            &self.cookie.to_be_bytes(),
            &at.to_be_bytes(),
            &len.to_be_bytes(),
        ];
        self.say(&[&head.concat(), payload].concat());
        self.cookie
    }

    /// Takes one reply, whichever comes first: its cookie and its pieces.
    pub fn reply(&mut self) -> (u64, Vec<Chunk>) {
        let mut chunks = Vec::new();
        loop {
            let head = self.take(20);
            assert_eq!(head[..4], 0x668e_33ef_u32.to_be_bytes());
            let len = usize::try_from(number(&head[16..20])).expect("short");
            let kind = u16::from_be_bytes([head[6], head[7]]);
            chunks.push(Chunk { kind, data: self.take(len) });
            if head[5] & 1 == 1 {
                return (number(&head[8..16]), chunks);
            }
        }
    }

    /// Asks one thing and waits: the pieces, or the code of the error.
    pub fn ask(
        &mut self,
        kind: u16,
        flags: u16,
        at: u64,
        len: u32,
        payload: &[u8],
    ) -> Result<Vec<Chunk>, u64> {
        let cookie = self.request(kind, flags, at, len, payload);
        let (answered, chunks) = self.reply();
        assert_eq!(answered, cookie);
        match &chunks[..] {
            [Chunk { kind: 0x8001, data }] => Err(number(&data[..4])),
            _ => Ok(chunks),
        }
    }

    pub fn write(&mut self, flags: u16, at: u64, data: &[u8]) -> Result<(), u64> {
        let len = u32::try_from(data.len()).expect("short");
        self.ask(WRITE, flags, at, len, data).map(drop)
    }

    /// What is read, put together from data and holes.
    pub fn read(&mut self, at: u64, len: u32) -> Result<Vec<u8>, u64> {
        let mut bytes = Vec::new();
        for Chunk { kind, data } in self.ask(READ, 0, at, len, b"")? {
            assert_eq!(number(&data[..8]), at + bytes.len() as u64, "pieces come in order");
            match kind {
                1 => bytes.extend(&data[8..]),
                2 => bytes.resize(bytes.len() + len_of(&data[8..12]), 0),
                kind => panic!("a piece of kind {kind}"),
            }
        }
        assert_eq!(bytes.len(), len as usize);
        Ok(bytes)
    }

    /// Runs of `base:allocation`: length and flags.
    pub fn status(&mut self, at: u64, len: u32) -> Result<Vec<(usize, u64)>, u64> {
        let chunks = self.ask(BLOCK_STATUS, 0, at, len, b"")?;
        let runs = chunks[0].data[4..].chunks(8);
        Ok(runs.map(|run| (len_of(&run[..4]), number(&run[4..]))).collect())
    }

    /// Nothing comes any more.
    pub fn must_be_left(&mut self) {
        let mut rest = Vec::new();
        match self.stream.read_to_end(&mut rest) {
            Ok(_) => {}
            Err(e) => assert_eq!(e.kind(), std::io::ErrorKind::ConnectionReset),
        }
    }
}

fn number(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

fn len_of(bytes: &[u8]) -> usize {
    usize::try_from(number(bytes)).expect("it fits")
}
