//! A node of a tree: sorted entries in a block, or inside a descriptor.
//!
//! Invariants: keys rise strictly; above level 0 there is an entry, the first key is empty and
//! each value is the address of a child.
//!
//! Bytes: docs/format.md#node.

use zerocopy::FromBytes;
use zerocopy::little_endian::{U16, U32};

use crate::error::{DecodeError, must_be_valid, require};
use crate::header::{Heading, RawHeader, Structure, kind, make, open, require_zero};
use crate::layout::{Layout, raw};
use crate::units::{BLOCK, Block, BlockNo, Version, VolumeId};

/// Bytes that the entries of a node may take in a block.
pub const NODE_CAPACITY: usize = 4024;
/// Bytes before the entries of a node inside a descriptor.
pub const INLINE_HEADER: usize = 8;

/// Bytes of an entry besides its key and value.
const ENTRY_OVERHEAD: usize = 4;
/// Bytes of a value above level 0.
const CHILD: usize = 8;

raw! {
    RawNode, LAYOUT, "Node" {
        header: RawHeader,
        level: U16,
        count: U16,
        used: U32,
        entries: [u8; NODE_CAPACITY],
    }
}

const _: () = assert!(size_of::<RawNode>() == BLOCK);

impl Structure for RawNode {
    const KIND: u16 = kind::NODE;
    const FIELDS: Layout = LAYOUT;
}

/// A node of a tree.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Node {
    /// 0: a leaf.
    pub level: u16,
    /// Keys and values, sorted by key.
    pub entries: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Node {
    /// Bytes of all entries.
    pub fn encoded_len(&self) -> usize {
        self.entries.iter().map(|(key, value)| ENTRY_OVERHEAD + key.len() + value.len()).sum()
    }

    /// Reads a node inside a descriptor.
    pub(crate) fn decode_inline(bytes: &[u8]) -> Result<Node, DecodeError> {
        let (level, rest) = U16::read_from_prefix(bytes).map_err(|_| DecodeError::BadLength)?;
        let (count, rest) = U16::read_from_prefix(rest).map_err(|_| DecodeError::BadLength)?;
        let (used, entries) = U32::read_from_prefix(rest).map_err(|_| DecodeError::BadLength)?;
        require(used.get() as usize == entries.len(), "used", used)?;
        Node::read(level.get(), count.get(), entries)
    }

    /// Appends the node as it lies inside a descriptor.
    pub(crate) fn encode_inline(&self, out: &mut Vec<u8>) {
        out.extend(self.level.to_le_bytes());
        out.extend((self.entries.len() as u16).to_le_bytes());
        out.extend((self.encoded_len() as u32).to_le_bytes());
        self.write(out);
    }

    /// Refuses a node that breaks an invariant of all nodes.
    pub(crate) fn check(&self) -> Result<(), DecodeError> {
        let len = self.encoded_len();
        require(len <= NODE_CAPACITY, "used", len as u64)?;
        let mut previous: Option<&[u8]> = None;
        for (index, (key, value)) in self.entries.iter().enumerate() {
            if previous.is_some_and(|previous| previous >= key.as_slice()) {
                return Err(DecodeError::KeyOrder { index });
            }
            if self.level > 0 {
                check_inner(index, key, value)?;
            }
            previous = Some(key);
        }
        require(self.level == 0 || !self.entries.is_empty(), "count", 0u64)
    }

    /// Reads `count` entries that fill `bytes`.
    fn read(level: u16, count: u16, bytes: &[u8]) -> Result<Node, DecodeError> {
        let mut entries = Vec::new();
        let mut rest = bytes;
        for index in 0..usize::from(count) {
            let (entry, behind) = split_entry(rest).ok_or(DecodeError::BadEntry { index })?;
            entries.push(entry);
            rest = behind;
        }
        require(rest.is_empty(), "used", bytes.len() as u64)?;
        let node = Node { level, entries };
        node.check()?;
        Ok(node)
    }

    fn write(&self, out: &mut Vec<u8>) {
        for (key, value) in &self.entries {
            out.extend((key.len() as u16).to_le_bytes());
            out.extend((value.len() as u16).to_le_bytes());
            out.extend(key);
            out.extend(value);
        }
    }
}

fn check_inner(index: usize, key: &[u8], value: &[u8]) -> Result<(), DecodeError> {
    if value.len() != CHILD {
        return Err(DecodeError::BadEntry { index });
    }
    if index == 0 && !key.is_empty() {
        return Err(DecodeError::KeyOrder { index });
    }
    Ok(())
}

type Entry = (Vec<u8>, Vec<u8>);

fn split_entry(bytes: &[u8]) -> Option<(Entry, &[u8])> {
    let (key_len, rest) = U16::read_from_prefix(bytes).ok()?;
    let (value_len, rest) = U16::read_from_prefix(rest).ok()?;
    let (key, rest) = rest.split_at_checked(usize::from(key_len.get()))?;
    let (value, rest) = rest.split_at_checked(usize::from(value_len.get()))?;
    Some(((key.to_vec(), value.to_vec()), rest))
}

/// A node in a block of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeBlock {
    /// Version of the block.
    pub version: Version,
    /// Address of the lock that covers it.
    pub owner: BlockNo,
    /// The node.
    pub node: Node,
}

impl NodeBlock {
    /// Reads the node at `at`.
    pub fn decode(bytes: &[u8], volume: VolumeId, at: BlockNo) -> Result<NodeBlock, DecodeError> {
        let raw = open::<RawNode>(bytes, Some(volume), at.0)?;
        let used = raw.used.get() as usize;
        let Some((entries, unused)) = raw.entries.split_at_checked(used) else {
            return Err(DecodeError::field("used", raw.used));
        };
        require_zero(unused, BLOCK - unused.len())?;
        Ok(NodeBlock {
            version: raw.header.version(),
            owner: raw.header.owner(),
            node: Node::read(raw.level.get(), raw.count.get(), entries)?,
        })
    }

    /// Makes the block that lies at `at`.
    ///
    /// # Panics
    /// If `decode` would refuse it, as it does when the entries do not fit.
    pub fn encode(&self, volume: VolumeId, at: BlockNo) -> Box<Block> {
        must_be_valid("node", self.node.check());
        let heading = Heading { volume, address: at.0, version: self.version, owner: self.owner };
        let mut entries = Vec::with_capacity(NODE_CAPACITY);
        self.node.write(&mut entries);
        make(heading, |raw: &mut RawNode| {
            raw.level = self.node.level.into();
            raw.count = (self.node.entries.len() as u16).into();
            raw.used = (entries.len() as u32).into();
            for (place, byte) in raw.entries.iter_mut().zip(entries) {
                *place = byte;
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::samples::{self, VOLUME};
    use crate::testing::{disk_tests, with, with_bytes};

    const AT_BLOCK: BlockNo = BlockNo(2100);

    fn empty() -> NodeBlock {
        NodeBlock { node: Node::default(), ..samples::leaf() }
    }

    fn full() -> NodeBlock {
        let entries = vec![(vec![1; 20], vec![2; NODE_CAPACITY - 24])];
        NodeBlock { node: Node { level: 0, entries }, ..samples::leaf() }
    }

    disk_tests! {
        LAYOUT, samples::leaf(), samples::inner(), empty(), full();
        encode: |node: &NodeBlock, volume, at| node.encode(volume, BlockNo(at)),
        decode: |bytes: &[u8], volume, at| NodeBlock::decode(bytes, volume, BlockNo(at)),
    }

    fn decode(bytes: &[u8]) -> DecodeError {
        NodeBlock::decode(bytes, VOLUME, AT_BLOCK).unwrap_err()
    }

    #[test]
    fn the_length_counts_the_overhead_of_each_entry() {
        assert_eq!(samples::leaf().node.encoded_len(), 4 * (4 + 8 + 16));
        assert_eq!(full().node.encoded_len(), NODE_CAPACITY);
        assert_eq!(Node::default().encoded_len(), 0);
    }

    #[test]
    fn lengths_that_do_not_add_up_are_refused() {
        let bytes = samples::leaf().encode(VOLUME, AT_BLOCK);
        let with = |field, value| with(bytes.as_slice(), &LAYOUT, field, value);
        assert_eq!(decode(&with("count", 3)), DecodeError::field("used", 112u64));
        assert_eq!(decode(&with("count", 5)), DecodeError::BadEntry { index: 4 });
        assert_eq!(decode(&with("count", 65535)), DecodeError::BadEntry { index: 4 });
        assert_eq!(decode(&with("used", 113)), DecodeError::field("used", 113u64));
        assert_eq!(decode(&with("used", 4025)), DecodeError::field("used", 4025u64));
        assert_eq!(decode(&with("used", 111)), DecodeError::Reserved { offset: 72 + 111 });
        let huge_key = with_bytes(bytes.as_slice(), 72, &[0xff, 0xff]);
        assert_eq!(decode(&huge_key), DecodeError::BadEntry { index: 0 });
    }

    #[test]
    fn keys_that_do_not_rise_are_refused() {
        let bytes = samples::leaf().encode(VOLUME, AT_BLOCK);
        let second_key = 72 + 28 + 4;
        let equal = with_bytes(bytes.as_slice(), second_key, &[0; 8]);
        assert_eq!(decode(&equal), DecodeError::KeyOrder { index: 1 });
        let falling = with_bytes(bytes.as_slice(), second_key, &[9]);
        assert_eq!(decode(&falling), DecodeError::KeyOrder { index: 2 });
    }

    #[test]
    fn a_node_above_the_leaves_is_strict() {
        let leaf_as_inner = samples::leaf().encode(VOLUME, AT_BLOCK);
        let leaf_as_inner = with(leaf_as_inner.as_slice(), &LAYOUT, "level", 1);
        assert_eq!(decode(&leaf_as_inner), DecodeError::BadEntry { index: 0 });
        let childless = with(empty().encode(VOLUME, AT_BLOCK).as_slice(), &LAYOUT, "level", 1);
        assert_eq!(decode(&childless), DecodeError::field("count", 0u64));
        let keyed = Node { level: 0, entries: vec![(vec![1], vec![0; 8])] };
        let keyed = NodeBlock { node: keyed, ..empty() }.encode(VOLUME, AT_BLOCK);
        let keyed = with(keyed.as_slice(), &LAYOUT, "level", 1);
        assert_eq!(decode(&keyed), DecodeError::KeyOrder { index: 0 });
    }

    #[test]
    #[should_panic(expected = "refusing to write an invalid node: used must not be 4025")]
    fn a_node_that_does_not_fit_is_not_written() {
        let mut node = full();
        node.node.entries[0].1.push(0);
        node.encode(VOLUME, AT_BLOCK);
    }
}
