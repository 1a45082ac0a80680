//! What a descriptor holds in its area: bytes, or where a tree starts.
//!
//! Bytes: docs/format.md#descriptor.

use zerocopy::FromBytes;
use zerocopy::little_endian::U64;

use crate::error::{DecodeError, require};
use crate::node::{INLINE_HEADER, Node};
use crate::units::BlockNo;

const FORM_NOTHING: u16 = 0;
pub(crate) const FORM_BYTES: u16 = 1;
const FORM_NODE: u16 = 2;
const FORM_ROOT: u16 = 3;

/// Where a tree starts.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub enum Tree {
    /// It has no entries.
    #[default]
    Empty,
    /// Its root node lies in the descriptor.
    Inline(Node),
    /// Its root node lies in a block of its own.
    Root(BlockNo),
}

/// What a descriptor holds besides extended attributes.
///
/// `Empty` and `Tree(Tree::Empty)` are the same bytes and read back as `Empty`.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub enum Content {
    /// Nothing.
    #[default]
    Empty,
    /// The bytes of a small file, or the target of a symlink.
    Bytes(Vec<u8>),
    /// The map of a file, or the entries of a directory.
    Tree(Tree),
}

impl Content {
    pub(crate) fn form(&self) -> u16 {
        match self {
            Content::Empty => FORM_NOTHING,
            Content::Bytes(_) => FORM_BYTES,
            Content::Tree(tree) => tree.form(),
        }
    }

    pub(crate) fn len(&self) -> usize {
        match self {
            Content::Empty => 0,
            Content::Bytes(bytes) => bytes.len(),
            Content::Tree(tree) => tree.len(),
        }
    }

    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Content::Empty => {}
            Content::Bytes(bytes) => out.extend(bytes),
            Content::Tree(tree) => tree.encode(out),
        }
    }

    pub(crate) fn decode(form: u16, bytes: &[u8]) -> Result<Content, DecodeError> {
        if form == FORM_BYTES {
            return Ok(Content::Bytes(bytes.to_vec()));
        }
        Ok(match Tree::decode("content_form", "content_len", form, bytes)? {
            Tree::Empty => Content::Empty,
            tree => Content::Tree(tree),
        })
    }
}

impl Tree {
    pub(crate) fn form(&self) -> u16 {
        match self {
            Tree::Empty => FORM_NOTHING,
            Tree::Inline(_) => FORM_NODE,
            Tree::Root(_) => FORM_ROOT,
        }
    }

    pub(crate) fn len(&self) -> usize {
        match self {
            Tree::Empty => 0,
            Tree::Inline(node) => INLINE_HEADER + node.encoded_len(),
            Tree::Root(_) => size_of::<U64>(),
        }
    }

    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Tree::Empty => {}
            Tree::Inline(node) => node.encode_inline(out),
            Tree::Root(root) => out.extend(root.0.to_le_bytes()),
        }
    }

    pub(crate) fn decode(
        form_field: &'static str,
        len_field: &'static str,
        form: u16,
        bytes: &[u8],
    ) -> Result<Tree, DecodeError> {
        let bad_len = || DecodeError::field(len_field, bytes.len() as u64);
        match form {
            FORM_NOTHING if bytes.is_empty() => Ok(Tree::Empty),
            FORM_NOTHING => Err(bad_len()),
            FORM_NODE => Node::decode_inline(bytes).map(Tree::Inline),
            FORM_ROOT => {
                let root = U64::read_from_bytes(bytes).map_err(|_| bad_len())?;
                Ok(Tree::Root(BlockNo(root.get())))
            }
            other => Err(DecodeError::field(form_field, other)),
        }
    }

    pub(crate) fn check(&self) -> Result<(), DecodeError> {
        match self {
            Tree::Empty => Ok(()),
            Tree::Inline(node) => node.check(),
            Tree::Root(root) => require(root.0 != 0, "root", root.0),
        }
    }
}
