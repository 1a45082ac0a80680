//! Insertion: the leaf takes the entry; what overflows splits, up to a new root.

use std::mem;
use std::rc::Rc;

use lunfs_format::{BlockNo, NODE_CAPACITY, Node, Tree};

use super::walk::{self, Step};
use super::{DEPTH_MAX, Edits, Entry, NodeStoreMut, Planned, find};
use crate::error::{Error, Kind, Result};

/// Decides what an insertion changes.
pub(super) async fn plan(
    edits: &mut Edits<'_, impl NodeStoreMut>,
    tree: &Tree,
    inline_max: usize,
    key: &[u8],
    value: &[u8],
) -> Result<Planned> {
    let mut leaf = match tree {
        Tree::Empty => Node::default(),
        Tree::Inline(root) => {
            walk::check_inline(root)?;
            root.clone()
        }
        Tree::Root(root) => {
            let (steps, leaf) = walk::descend(edits.store, *root, Some(key)).await?;
            let mut node = Rc::unwrap_or_clone(leaf.node);
            let (index, old) = set(&mut node, key, value);
            return Ok((place(edits, steps, leaf.at, node, index).await?, old));
        }
    };
    let (index, old) = set(&mut leaf, key, value);
    if leaf.encoded_len() <= inline_max.min(NODE_CAPACITY) {
        return Ok((Some(Tree::Inline(leaf)), old));
    }
    let at = edits.allocate().await?;
    let grown = place(edits, Vec::new(), at, leaf, index).await?;
    Ok((grown.or(Some(Tree::Root(at))), old))
}

/// Puts a node that got a new entry at `index`. As long as one is too long, it splits and its
/// parent gets a new entry. Returns the new root if the root split.
async fn place(
    edits: &mut Edits<'_, impl NodeStoreMut>,
    mut steps: Vec<Step>,
    mut at: BlockNo,
    mut node: Node,
    mut index: usize,
) -> Result<Option<Tree>> {
    while let Some((separator, right)) = split(&mut node, index) {
        let level = node.level;
        let right_at = edits.allocate().await?;
        edits.put(at, node);
        edits.put(right_at, right);
        let Some(step) = steps.pop() else {
            let children = vec![child(Vec::new(), at), child(separator, right_at)];
            return grow(edits, Node { level: level + 1, entries: children }).await.map(Some);
        };
        at = step.visit.at;
        node = Rc::unwrap_or_clone(step.visit.node);
        index = step.index + 1;
        node.entries.insert(index, child(separator, right_at));
    }
    edits.put(at, node);
    Ok(None)
}

/// Puts a new root above the one that split.
async fn grow(edits: &mut Edits<'_, impl NodeStoreMut>, root: Node) -> Result<Tree> {
    if root.level >= DEPTH_MAX {
        return Err(Error::new(Kind::NoSpace, "a tree has as many levels as it may have"));
    }
    let at = edits.allocate().await?;
    edits.put(at, root);
    Ok(Tree::Root(at))
}

/// Inserts or replaces an entry of a leaf; returns where it is and the old value.
fn set(leaf: &mut Node, key: &[u8], value: &[u8]) -> (usize, Option<Vec<u8>>) {
    match find(leaf, key) {
        Ok(index) => {
            let old = mem::replace(&mut leaf.entries[index].1, value.to_vec());
            (index, Some(old))
        }
        Err(index) => {
            leaf.entries.insert(index, (key.to_vec(), value.to_vec()));
            (index, None)
        }
    }
}

/// An entry of an inner node.
fn child(key: Vec<u8>, at: BlockNo) -> Entry {
    (key, at.0.to_le_bytes().to_vec())
}

/// Splits a node that got a new entry at `index`, if it is too long: returns the key that
/// separates, and the right part.
fn split(node: &mut Node, index: usize) -> Option<(Vec<u8>, Node)> {
    if node.encoded_len() <= NODE_CAPACITY {
        return None;
    }
    // What is inserted in order fills its nodes: only the new entry leaves.
    let at_end = index + 1 == node.entries.len();
    let cut = if at_end { index } else { balanced_cut(node) };
    let mut right = Node { level: node.level, entries: node.entries.split_off(cut) };
    let first = &mut right.entries[0].0;
    let separator =
        if node.level == 0 { separator(&node.entries[cut - 1].0, first) } else { mem::take(first) };
    Some((separator, right))
}

/// How many entries go left so that the longer part is as short as can be.
fn balanced_cut(node: &Node) -> usize {
    let total = node.encoded_len();
    let mut left = 0;
    for (index, (key, value)) in node.entries.iter().enumerate() {
        let with = left + 4 + key.len() + value.len();
        if with * 2 >= total {
            // One of both sides of this entry is nearest to the middle.
            let shorter_without = total - left <= with;
            return if shorter_without && index > 0 { index } else { index + 1 };
        }
        left = with;
    }
    unreachable!("the middle of a node lies in one of its entries");
}

/// The shortest key above `left` and not above `right`.
fn separator(left: &[u8], right: &[u8]) -> Vec<u8> {
    let common = left.iter().zip(right).take_while(|(a, b)| a == b).count();
    right[..=common].to_vec()
}
