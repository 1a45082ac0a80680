//! The B+tree that holds directory entries, file maps, extended attributes and orphans.
//!
//! Bytes: docs/format.md, "Node". A tree is empty, one leaf inside its descriptor, or nodes in
//! blocks of their own:
//!
//! ```text
//!   Empty <--> Inline(leaf) <--> Root --> leaf
//!                                 ^
//!                                 v
//!                                Root --> inner --> ... --> leaves, all equally deep
//! ```
//!
//! - A node covers a range of keys; the keys of an inner node divide its range among its children.
//!   An inner key need not exist in any leaf: it is the shortest that separates.
//! - No node but an inline one is empty; a root above level 0 has two children or more.
//! - A change decides everything first (`insert`, `remove`) and then puts and frees. One that fails
//!   changed nothing, neither in the tree nor in the store.
//! - Nodes that come from the store are not believed (`walk`): readers read while another host
//!   writes, and validate only afterwards. Any garbage ends in an error, soon.

mod insert;
mod remove;
#[cfg(test)]
mod tests;
mod walk;

use std::ops::Bound;
use std::rc::Rc;

use lunfs_format::{BlockNo, NODE_CAPACITY, Node, Tree};

use crate::error::Result;
use walk::Step;

/// Levels a tree may have. Even keys so long that only six fit in an inner node make millions of
/// leaves before they need as many.
const DEPTH_MAX: u16 = 12;

/// Bytes of a child's address, the value of an entry of an inner node.
const ADDRESS_LEN: usize = 8;

/// Bytes an entry may have. Two of them fit in a node, so a node that overflows by one entry
/// always splits into two that fit.
const ENTRY_MAX: usize = NODE_CAPACITY / 2;

/// Up to how many blocks one [`insert()`] or [`remove()`] may put, for journal reservations: an
/// insertion that splits a node on every level and grows a new root. (It is 3 in a tree of two
/// levels; usually it is 1.)
pub const NODES_TOUCHED_MAX: usize = 2 * DEPTH_MAX as usize - 1;

/// One key and its value.
pub type Entry = (Vec<u8>, Vec<u8>);

/// Where nodes live. Nodes are immutable once put; `put` replaces the node at an address.
#[allow(async_fn_in_trait, reason = "the core runs on one thread: no future needs to be Send")]
pub trait NodeStore {
    /// The node at an address.
    async fn node(&self, at: BlockNo) -> Result<Rc<Node>>;
}

/// Where nodes are changed: the overlay of a transaction.
#[allow(async_fn_in_trait, reason = "the core runs on one thread: no future needs to be Send")]
pub trait NodeStoreMut: NodeStore {
    /// Makes `node` what is at `at`.
    fn put(&mut self, at: BlockNo, node: Node);
    /// A new block for a node.
    async fn allocate(&mut self) -> Result<BlockNo>;
    /// The tree no longer refers to this block.
    fn free(&mut self, at: BlockNo);
}

/// Looks up the value of a key.
pub async fn get(store: &impl NodeStore, tree: &Tree, key: &[u8]) -> Result<Option<Vec<u8>>> {
    let value = |leaf: &Node| find(leaf, key).ok().map(|index| leaf.entries[index].1.clone());
    match tree {
        Tree::Empty => Ok(None),
        Tree::Inline(leaf) => {
            walk::check_inline(leaf)?;
            Ok(value(leaf))
        }
        Tree::Root(root) => {
            let (_, leaf) = walk::descend(store, *root, Some(key)).await?;
            Ok(value(&leaf.node))
        }
    }
}

/// Lists entries from a key on, in order, at most `max`.
pub async fn scan(
    store: &impl NodeStore,
    tree: &Tree,
    from: Bound<&[u8]>,
    max: usize,
) -> Result<Vec<Entry>> {
    let mut found = Vec::new();
    match tree {
        Tree::Empty => {}
        Tree::Inline(leaf) => {
            walk::check_inline(leaf)?;
            take_from(leaf, from, max, &mut found);
        }
        Tree::Root(root) => {
            let key = match from {
                Bound::Included(key) | Bound::Excluded(key) => key,
                Bound::Unbounded => b"",
            };
            let (mut steps, leaf) = walk::descend(store, *root, Some(key)).await?;
            take_from(&leaf.node, from, max, &mut found);
            // Every further leaf gives at least one entry, so this is bounded by `max`.
            while found.len() < max {
                let Some(leaf) = walk::next_leaf(store, &mut steps).await? else { break };
                take_from(&leaf.node, Bound::Unbounded, max, &mut found);
            }
        }
    }
    Ok(found)
}

/// Finds the last entry of all, or the last whose key is not above `at_most`.
pub async fn last(
    store: &impl NodeStore,
    tree: &Tree,
    at_most: Option<&[u8]>,
) -> Result<Option<Entry>> {
    let last = |leaf: &Node| {
        let count = match at_most {
            None => leaf.entries.len(),
            Some(key) => leaf.entries.partition_point(|(k, _)| k.as_slice() <= key),
        };
        count.checked_sub(1).map(|index| leaf.entries[index].clone())
    };
    match tree {
        Tree::Empty => Ok(None),
        Tree::Inline(leaf) => {
            walk::check_inline(leaf)?;
            Ok(last(leaf))
        }
        Tree::Root(root) => {
            let (mut steps, leaf) = walk::descend(store, *root, at_most).await?;
            if let Some(entry) = last(&leaf.node) {
                return Ok(Some(entry));
            }
            // The leaf's range begins at or below the key, but its first entry lies above.
            let before = walk::previous_leaf(store, &mut steps).await?;
            Ok(before.and_then(|leaf| last(&leaf.node)))
        }
    }
}

/// Inserts or replaces an entry and returns the old value. An inline root may have `inline_max`
/// bytes.
///
/// On an error nothing was changed. If the future is dropped midway, blocks may stay allocated.
pub async fn insert(
    store: &mut impl NodeStoreMut,
    tree: &mut Tree,
    inline_max: usize,
    key: &[u8],
    value: &[u8],
) -> Result<Option<Vec<u8>>> {
    assert!(entry_len(key, value) <= ENTRY_MAX, "an entry must fit twice in a node");
    let mut edits = Edits::new(store);
    let planned = insert::plan(&mut edits, tree, inline_max, key, value).await;
    edits.conclude(tree, planned)
}

/// Removes an entry and returns its value. A root leaf goes back inline when it takes no more
/// than half of `inline_max`.
///
/// On an error nothing was changed. Never allocates.
pub async fn remove(
    store: &mut impl NodeStoreMut,
    tree: &mut Tree,
    inline_max: usize,
    key: &[u8],
) -> Result<Option<Vec<u8>>> {
    let mut edits = Edits::new(store);
    let planned = remove::plan(&mut edits, tree, inline_max, key).await;
    edits.conclude(tree, planned)
}

/// Lists every block of the tree, for freeing all of it. No block comes twice.
///
/// Below every node lies a leaf with a key in the ranges of all nodes above. If two paths led to
/// one block, its keys would be outside one of the two ranges: an error. That bounds the walk, too.
pub async fn blocks(store: &impl NodeStore, tree: &Tree) -> Result<Vec<BlockNo>> {
    let Tree::Root(root) = tree else { return Ok(Vec::new()) };
    let visit = walk::visit_root(store, *root).await?;
    let mut found = vec![*root];
    let mut steps = vec![Step { visit, index: 0 }];
    while let Some(step) = steps.last_mut() {
        if step.visit.node.level == 0 || step.index == step.visit.node.entries.len() {
            steps.pop();
            continue;
        }
        let visit = walk::visit_child(store, step).await?;
        step.index += 1;
        found.push(visit.at);
        steps.push(Step { visit, index: 0 });
    }
    Ok(found)
}

/// What a change will do to the store, once nothing can fail any more.
struct Edits<'a, S> {
    store: &'a mut S,
    allocated: Vec<BlockNo>,
    puts: Vec<(BlockNo, Node)>,
    freed: Vec<BlockNo>,
}

/// What a change makes of the tree: its new root unless it stays, and the old value of the key.
type Planned = (Option<Tree>, Option<Vec<u8>>);

impl<'a, S: NodeStoreMut> Edits<'a, S> {
    fn new(store: &'a mut S) -> Edits<'a, S> {
        Edits { store, allocated: Vec::new(), puts: Vec::new(), freed: Vec::new() }
    }

    async fn allocate(&mut self) -> Result<BlockNo> {
        let at = self.store.allocate().await?;
        self.allocated.push(at);
        Ok(at)
    }

    fn put(&mut self, at: BlockNo, node: Node) {
        self.puts.push((at, node));
    }

    fn free(&mut self, at: BlockNo) {
        self.freed.push(at);
    }

    /// The node that was to be put at `at`, which is now not put.
    fn take(&mut self, at: BlockNo) -> Option<Node> {
        let index = self.puts.iter().position(|(put, _)| *put == at)?;
        Some(self.puts.swap_remove(index).1)
    }

    /// Does what was planned, or gives back what a failed plan had allocated.
    fn conclude(self, tree: &mut Tree, planned: Result<Planned>) -> Result<Option<Vec<u8>>> {
        match planned {
            Ok((root, old)) => {
                for (at, node) in self.puts {
                    self.store.put(at, node);
                }
                for at in self.freed {
                    self.store.free(at);
                }
                if let Some(root) = root {
                    *tree = root;
                }
                Ok(old)
            }
            Err(e) => {
                for at in self.allocated {
                    self.store.free(at);
                }
                Err(e)
            }
        }
    }
}

/// Bytes an entry may come to take, in its leaf or as a key of an inner node.
fn entry_len(key: &[u8], value: &[u8]) -> usize {
    4 + key.len() + value.len().max(ADDRESS_LEN)
}

/// Where a key is in a leaf, or would be.
fn find(leaf: &Node, key: &[u8]) -> std::result::Result<usize, usize> {
    leaf.entries.binary_search_by(|(k, _)| k.as_slice().cmp(key))
}

/// Appends the entries of a leaf from a key on, until there are `max`.
fn take_from(leaf: &Node, from: Bound<&[u8]>, max: usize, found: &mut Vec<Entry>) {
    let first = match from {
        Bound::Included(key) => leaf.entries.partition_point(|(k, _)| k.as_slice() < key),
        Bound::Excluded(key) => leaf.entries.partition_point(|(k, _)| k.as_slice() <= key),
        Bound::Unbounded => 0,
    };
    let room = max.saturating_sub(found.len());
    found.extend(leaf.entries[first..].iter().take(room).cloned());
}
