//! The handshake: what is offered, what a client asks, what it is told. Pure.

use super::words::Words;

/// What the server says first: two magic words and its flags.
const HELLO: [u64; 2] = [0x4e42_444d_4147_4943, OPTION];
const OPTION: u64 = 0x4948_4156_454f_5054;
const OPTION_REPLY: u64 = 0x0003_e889_0455_65a9;

/// Flags of both sides.
const FIXED_NEWSTYLE: u16 = 1 << 0;
const NO_ZEROES: u16 = 1 << 1;

/// Longest data of an option: a name of 4 KiB with queries.
pub const OPTION_DATA_MAX: u32 = 16 << 10;
/// Bytes before them.
pub const OPTION_HEADER: usize = 16;

/// The smallest request: the volume reads and writes any byte range.
const BLOCK_MIN: u32 = 1;
/// The smallest that is written without reading first: a grain.
const BLOCK_PREFERRED: u32 = 4096;
/// The largest read or write; what clients assume where nobody tells them.
pub const PAYLOAD_MAX: u32 = 32 << 20;

/// The only metadata context, and its number.
const ALLOCATION: &[u8] = b"base:allocation";
const BASE: &[u8] = b"base:";
pub const ALLOCATION_ID: u32 = 1;

/// What the export is and can, while a connection lasts.
#[derive(Clone, Copy, Debug)]
pub struct Offer<'a> {
    pub name: &'a str,
    pub size: u64,
    pub read_only: bool,
}

/// What both sides agreed on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Agreed {
    /// The client wants no padding behind the old way to begin.
    pub no_zeroes: bool,
    pub structured: bool,
    /// It may ask for `base:allocation`.
    pub allocation: bool,
}

/// The bytes to send, and what comes then.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// The next option.
    Say(Vec<u8>),
    /// Requests.
    Begin(Vec<u8>),
    /// Nothing.
    End(Vec<u8>),
}

/// What a server says to who connects.
pub fn hello() -> Vec<u8> {
    let mut bytes: Vec<u8> = HELLO.iter().flat_map(|word| word.to_be_bytes()).collect();
    bytes.extend((FIXED_NEWSTYLE | NO_ZEROES).to_be_bytes());
    bytes
}

/// What the client answers. `None`: it speaks another protocol.
pub fn client_flags(bytes: [u8; 4]) -> Option<Agreed> {
    let flags = u32::from_be_bytes(bytes);
    let no_zeroes = flags & u32::from(NO_ZEROES) != 0;
    let known = u32::from(FIXED_NEWSTYLE | NO_ZEROES);
    let is_known = flags & u32::from(FIXED_NEWSTYLE) != 0 && flags & !known == 0;
    is_known.then_some(Agreed { no_zeroes, ..Agreed::default() })
}

/// Number of an option, and the length of its data. `None`: this is none, or a senseless one.
pub fn option_header(bytes: [u8; OPTION_HEADER]) -> Option<(u32, u32)> {
    let mut words = Words(&bytes);
    let is_option = words.u64()? == OPTION;
    let (option, len) = (words.u32()?, words.u32()?);
    (is_option && len <= OPTION_DATA_MAX).then_some((option, len))
}

/// What an option asks for.
#[derive(Debug, PartialEq, Eq)]
enum Ask<'a> {
    ExportName(&'a [u8]),
    Abort,
    List,
    Structured,
    Tell { name: &'a [u8], wants_name: bool, begins: bool },
    Contexts { name: &'a [u8], queries: Vec<&'a [u8]>, sets: bool },
    Unknown,
}

/// `None`: its data make no sense.
fn ask(option: u32, data: &[u8]) -> Option<Ask<'_>> {
    const INFO_NAME: u16 = 1;
    let mut words = Words(data);
    let ask = match option {
        1 => return Some(Ask::ExportName(data)),
        // Also with data: the client is leaving.
        2 => return Some(Ask::Abort),
        3 => Ask::List,
        6 | 7 => {
            let name = words.string()?;
            let count = words.u16()?;
            let mut wants_name = false;
            for _ in 0..count {
                wants_name |= words.u16()? == INFO_NAME;
            }
            Ask::Tell { name, wants_name, begins: option == 7 }
        }
        8 => Ask::Structured,
        9 | 10 => {
            let name = words.string()?;
            let count = words.u32()?;
            // The bytes are the bound: a query has four at least.
            let mut queries = Vec::new();
            for _ in 0..count {
                queries.push(words.string()?);
            }
            Ask::Contexts { name, queries, sets: option == 10 }
        }
        // TLS, extended headers, and what is to come.
        _ => return Some(Ask::Unknown),
    };
    words.end()?;
    Some(ask)
}

/// Answers to options.
mod say {
    pub const ACK: u32 = 1;
    pub const SERVER: u32 = 2;
    pub const INFO: u32 = 3;
    pub const META_CONTEXT: u32 = 4;
    pub const UNSUPPORTED: u32 = 1 << 31 | 1;
    pub const INVALID: u32 = 1 << 31 | 3;
    pub const UNKNOWN: u32 = 1 << 31 | 6;
}

/// Answers an option.
pub fn answer(option: u32, data: &[u8], offer: &Offer<'_>, agreed: &mut Agreed) -> Step {
    let mut told = Told { option, bytes: Vec::new() };
    let Some(ask) = ask(option, data) else {
        return told.last(say::INVALID, b"this option is not understood");
    };
    match ask {
        Ask::ExportName(name) if offer.has(name) => Step::Begin(offer.old_answer(agreed)),
        // It can only be told by the end.
        Ask::ExportName(_) => Step::End(Vec::new()),
        Ask::Abort => match told.last(say::ACK, b"") {
            Step::Say(bytes) | Step::Begin(bytes) | Step::End(bytes) => Step::End(bytes),
        },
        Ask::List => {
            let name = offer.name.as_bytes();
            told.add(say::SERVER, &[&len_of(name).to_be_bytes(), name]);
            told.last(say::ACK, b"")
        }
        Ask::Structured => {
            agreed.structured = true;
            told.last(say::ACK, b"")
        }
        Ask::Tell { name, .. } | Ask::Contexts { name, .. } if !offer.has(name) => {
            told.last(say::UNKNOWN, b"another file is exported here")
        }
        Ask::Tell { name, wants_name, begins } => {
            told.export(offer, agreed, wants_name.then_some(name));
            match told.last(say::ACK, b"") {
                Step::Say(bytes) if begins => Step::Begin(bytes),
                step => step,
            }
        }
        Ask::Contexts { .. } if !agreed.structured => {
            told.last(say::INVALID, b"structured replies come first")
        }
        Ask::Contexts { queries, sets, .. } => {
            let is_wanted = |query: &&[u8]| *query == ALLOCATION || (!sets && *query == BASE);
            let has_it = queries.iter().any(is_wanted) || (!sets && queries.is_empty());
            if sets {
                agreed.allocation = has_it;
            }
            if has_it {
                told.add(say::META_CONTEXT, &[&ALLOCATION_ID.to_be_bytes(), ALLOCATION]);
            }
            told.last(say::ACK, b"")
        }
        Ask::Unknown => told.last(say::UNSUPPORTED, b"this option is not known here"),
    }
}

/// The answers to one option.
struct Told {
    option: u32,
    bytes: Vec<u8>,
}

impl Told {
    fn add(&mut self, kind: u32, data: &[&[u8]]) {
        let data = data.concat();
        self.bytes.extend(OPTION_REPLY.to_be_bytes());
        for word in [self.option, kind, len_of(&data)] {
            self.bytes.extend(word.to_be_bytes());
        }
        self.bytes.extend(data);
    }

    fn last(mut self, kind: u32, data: &[u8]) -> Step {
        self.add(kind, &[data]);
        Step::Say(self.bytes)
    }

    fn export(&mut self, offer: &Offer<'_>, agreed: &Agreed, name: Option<&[u8]>) {
        const EXPORT: u16 = 0;
        const NAME: u16 = 1;
        const BLOCK_SIZE: u16 = 3;
        let (size, flags) = (offer.size.to_be_bytes(), offer.flags(agreed).to_be_bytes());
        self.add(say::INFO, &[&EXPORT.to_be_bytes(), &size, &flags]);
        let sizes = [BLOCK_MIN, BLOCK_PREFERRED, PAYLOAD_MAX].map(u32::to_be_bytes).concat();
        self.add(say::INFO, &[&BLOCK_SIZE.to_be_bytes(), &sizes]);
        if let Some(name) = name {
            self.add(say::INFO, &[&NAME.to_be_bytes(), name]);
        }
    }
}

fn len_of(data: &[u8]) -> u32 {
    u32::try_from(data.len()).expect("an answer is short")
}

impl Offer<'_> {
    /// No name is the only export; its own is known, too.
    fn has(&self, name: &[u8]) -> bool {
        name.is_empty() || name == self.name.as_bytes()
    }

    fn flags(&self, agreed: &Agreed) -> u16 {
        const HAS_FLAGS: u16 = 1 << 0;
        const READ_ONLY: u16 = 1 << 1;
        const FLUSH: u16 = 1 << 2;
        const FUA: u16 = 1 << 3;
        const TRIM: u16 = 1 << 5;
        const WRITE_ZEROES: u16 = 1 << 6;
        const DF: u16 = 1 << 7;
        const CAN_MULTI_CONN: u16 = 1 << 8;
        const FAST_ZERO: u16 = 1 << 11;
        let writes = FUA | TRIM | WRITE_ZEROES | FAST_ZERO;
        let kind = if self.read_only { READ_ONLY } else { writes };
        let whole = if agreed.structured { DF } else { 0 };
        HAS_FLAGS | FLUSH | CAN_MULTI_CONN | kind | whole
    }

    /// The answer to the option that begins without any other.
    fn old_answer(&self, agreed: &Agreed) -> Vec<u8> {
        let mut bytes = self.size.to_be_bytes().to_vec();
        bytes.extend(self.flags(agreed).to_be_bytes());
        if !agreed.no_zeroes {
            bytes.extend([0; 124]);
        }
        bytes
    }
}

#[cfg(test)]
#[path = "options_tests.rs"]
mod tests;
