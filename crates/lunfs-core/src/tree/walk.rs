//! Reading nodes with suspicion: each is checked against the path that led to it.
//!
//! - The root's level is below [`DEPTH_MAX`] and falls by one at each step: every path ends.
//! - Keys rise within a node and stay in the range that the parents left for it. So ranges of
//!   different nodes of one level are disjoint, and a walk along the leaves only goes forward.
//! - No node in a block is empty.

use std::fmt::Display;
use std::rc::Rc;

use lunfs_format::{BlockNo, NODE_CAPACITY, Node};

use super::{ADDRESS_LEN, DEPTH_MAX, ENTRY_MAX, NodeStore, entry_len};
use crate::error::{Error, Result};

/// The keys a node may hold: from `lower`, below `upper`; of a root, all.
#[derive(Default)]
pub(super) struct KeyRange {
    lower: Vec<u8>,
    upper: Option<Vec<u8>>,
}

/// A node that was read and checked.
pub(super) struct Visit {
    pub at: BlockNo,
    pub node: Rc<Node>,
    keys: KeyRange,
}

/// A visited inner node and which of its children the path goes through.
pub(super) struct Step {
    pub visit: Visit,
    pub index: usize,
}

/// Goes from the root to the leaf that holds `key`, if any does, or to the last leaf.
pub(super) async fn descend(
    store: &impl NodeStore,
    root: BlockNo,
    key: Option<&[u8]>,
) -> Result<(Vec<Step>, Visit)> {
    let mut steps = Vec::new();
    let root = visit_root(store, root).await?;
    let leaf = descend_from(store, &mut steps, root, key).await?;
    Ok((steps, leaf))
}

/// The leaf after the one to which `steps` lead; they then lead to that.
pub(super) async fn next_leaf(
    store: &impl NodeStore,
    steps: &mut Vec<Step>,
) -> Result<Option<Visit>> {
    while let Some(mut step) = steps.pop() {
        if step.index + 1 < step.visit.node.entries.len() {
            step.index += 1;
            let visit = visit_child(store, &step).await?;
            steps.push(step);
            return descend_from(store, steps, visit, Some(b"")).await.map(Some);
        }
    }
    Ok(None)
}

/// The leaf before the one to which `steps` lead; they then lead to that.
pub(super) async fn previous_leaf(
    store: &impl NodeStore,
    steps: &mut Vec<Step>,
) -> Result<Option<Visit>> {
    while let Some(mut step) = steps.pop() {
        if step.index > 0 {
            step.index -= 1;
            let visit = visit_child(store, &step).await?;
            steps.push(step);
            return descend_from(store, steps, visit, None).await.map(Some);
        }
    }
    Ok(None)
}

/// Reads the root of a tree.
pub(super) async fn visit_root(store: &impl NodeStore, at: BlockNo) -> Result<Visit> {
    let node = store.node(at).await?;
    if node.level >= DEPTH_MAX {
        return Err(corrupt(at, format!("a root at level {}", node.level)));
    }
    Visit::checked(at, node, KeyRange::default())
}

/// Reads the child to which a step leads.
pub(super) async fn visit_child(store: &impl NodeStore, step: &Step) -> Result<Visit> {
    let parent = &step.visit;
    let at = child_address(&parent.node, step.index);
    let node = store.node(at).await?;
    if node.level.checked_add(1) != Some(parent.node.level) {
        let (found, above) = (node.level, parent.node.level);
        let why = format!("level {found} below level {above} of block {}", parent.at.0);
        return Err(corrupt(at, why));
    }
    Visit::checked(at, node, parent.keys.of_child(&parent.node, step.index))
}

/// Reads the only child of what a root became.
pub(super) async fn visit_only_child(
    store: &impl NodeStore,
    at: BlockNo,
    root: &Node,
) -> Result<Visit> {
    let visit = Visit { at, node: Rc::new(root.clone()), keys: KeyRange::default() };
    visit_child(store, &Step { visit, index: 0 }).await
}

/// The address of a child. `node` is a checked inner node.
pub(super) fn child_address(node: &Node, index: usize) -> BlockNo {
    let value = node.entries[index].1.as_slice();
    BlockNo(u64::from_le_bytes(value.try_into().expect("inner values were checked")))
}

/// Checks the root that lies in a descriptor. It is always a leaf.
pub(super) fn check_inline(root: &Node) -> Result<()> {
    let fault =
        if root.level == 0 { fault(root, &KeyRange::default()) } else { Some("it is not a leaf") };
    match fault {
        None => Ok(()),
        Some(why) => Err(Error::damage(format!("a descriptor's tree is corrupt: {why}"))),
    }
}

/// The node at `at` is not what it must be.
fn corrupt(at: BlockNo, why: impl Display) -> Error {
    Error::damage(format!("tree node in block {at} is corrupt: {why}"))
}

impl Visit {
    fn checked(at: BlockNo, node: Rc<Node>, keys: KeyRange) -> Result<Visit> {
        if node.entries.is_empty() {
            return Err(corrupt(at, "it is empty"));
        }
        match fault(&node, &keys) {
            None => Ok(Visit { at, node, keys }),
            Some(why) => Err(corrupt(at, why)),
        }
    }
}

impl KeyRange {
    /// What a node with these keys leaves to one of its children.
    fn of_child(&self, node: &Node, index: usize) -> KeyRange {
        let key = |index: usize| node.entries.get(index).map(|(key, _)| key.clone());
        KeyRange {
            lower: key(index).filter(|key| !key.is_empty()).unwrap_or_else(|| self.lower.clone()),
            upper: key(index + 1).or_else(|| self.upper.clone()),
        }
    }
}

/// Goes from a visited node to the leaf that holds `key`, if any does, or to its last leaf.
async fn descend_from(
    store: &impl NodeStore,
    steps: &mut Vec<Step>,
    mut visit: Visit,
    key: Option<&[u8]>,
) -> Result<Visit> {
    while visit.node.level > 0 {
        let entries = &visit.node.entries;
        let count = match key {
            Some(key) => entries.partition_point(|(k, _)| k.as_slice() <= key),
            None => entries.len(),
        };
        // The first key is empty and thus not above any.
        let step = Step { index: count - 1, visit };
        visit = visit_child(store, &step).await?;
        steps.push(step);
    }
    Ok(visit)
}

/// What is wrong with a node that may hold `keys`.
fn fault(node: &Node, keys: &KeyRange) -> Option<&'static str> {
    let entries = node.entries.as_slice();
    if node.encoded_len() > NODE_CAPACITY {
        return Some("it is too long");
    }
    if entries.iter().any(|(key, value)| entry_len(key, value) > ENTRY_MAX) {
        return Some("an entry is too long");
    }
    if !entries.is_sorted_by(|(a, _), (b, _)| a < b) {
        return Some("a key is out of order");
    }
    if entries.last().is_some_and(|(key, _)| keys.upper.as_ref().is_some_and(|max| key >= max)) {
        return Some("a key is above its range");
    }
    if node.level == 0 {
        let below = entries.first().is_some_and(|(key, _)| *key < keys.lower);
        return below.then_some("a key is below its range");
    }
    if entries.first().is_none_or(|(key, _)| !key.is_empty()) {
        return Some("its first key is not empty");
    }
    // The second key ends the range of the first child, which must not be empty.
    if entries.get(1).is_some_and(|(key, _)| *key <= keys.lower) {
        return Some("a key is below its range");
    }
    if entries.iter().any(|(_, value)| value.len() != ADDRESS_LEN) {
        return Some("a child has no address");
    }
    None
}
