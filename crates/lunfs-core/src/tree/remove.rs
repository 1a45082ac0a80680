//! Removal: what became empty goes, what became small joins a sibling, up to the root.

use std::rc::Rc;

use lunfs_format::{BlockNo, NODE_CAPACITY, Node, Tree};

use super::walk::{self, Step};
use super::{Edits, NodeStoreMut, Planned, find};
use crate::error::Result;

/// A node shorter than this joins a sibling if both fit in one. A quarter, so that a node that
/// was split in the middle does not come back at once.
const MERGE_BELOW: usize = NODE_CAPACITY / 4;

/// Decides what a removal changes.
pub(super) async fn plan(
    edits: &mut Edits<'_, impl NodeStoreMut>,
    tree: &Tree,
    inline_max: usize,
    key: &[u8],
) -> Result<Planned> {
    let root = match tree {
        Tree::Empty => return Ok((None, None)),
        Tree::Inline(root) => return plan_inline(root, key),
        Tree::Root(root) => *root,
    };
    let (mut steps, leaf) = walk::descend(edits.store, root, Some(key)).await?;
    let Ok(index) = find(&leaf.node, key) else { return Ok((None, None)) };
    let mut at = leaf.at;
    let mut node = Rc::unwrap_or_clone(leaf.node);
    let (_, old) = node.entries.remove(index);
    while let Some(step) = steps.pop() {
        at = step.visit.at;
        match settle(edits, node, step).await? {
            Some(parent) => node = parent,
            None => return Ok((None, Some(old))),
        }
    }
    let root = settle_root(edits, at, node, inline_max).await?;
    Ok((Some(root), Some(old)))
}

fn plan_inline(root: &Node, key: &[u8]) -> Result<Planned> {
    walk::check_inline(root)?;
    let Ok(index) = find(root, key) else { return Ok((None, None)) };
    let mut root = root.clone();
    let (_, old) = root.entries.remove(index);
    let tree = if root.entries.is_empty() { Tree::Empty } else { Tree::Inline(root) };
    Ok((Some(tree), Some(old)))
}

/// Settles the child to which `step` leads, after it became `node`: puts it, or does away with it
/// and returns what its parent became.
async fn settle(
    edits: &mut Edits<'_, impl NodeStoreMut>,
    node: Node,
    mut step: Step,
) -> Result<Option<Node>> {
    let index = step.index;
    let at = walk::child_address(&step.visit.node, index);
    if node.entries.is_empty() {
        edits.free(at);
        return Ok(Some(without_child(step, index)));
    }
    if node.encoded_len() >= MERGE_BELOW {
        edits.put(at, node);
        return Ok(None);
    }
    let count = step.visit.node.entries.len();
    let siblings = [index.checked_sub(1), Some(index + 1).filter(|right| *right < count)];
    for sibling in siblings.into_iter().flatten() {
        step.index = sibling;
        let visit = walk::visit_child(edits.store, &step).await?;
        let right = index.max(sibling);
        let separator = &step.visit.node.entries[right].0;
        let joined = if sibling < index {
            join(&visit.node, separator, &node)
        } else {
            join(&node, separator, &visit.node)
        };
        if let Some(joined) = joined {
            let (left_at, right_at) = if sibling < index { (visit.at, at) } else { (at, visit.at) };
            edits.put(left_at, joined);
            edits.free(right_at);
            return Ok(Some(without_child(step, right)));
        }
    }
    edits.put(at, node);
    Ok(None)
}

/// Settles the root after it became `node`: a tree is no higher than it must be.
async fn settle_root(
    edits: &mut Edits<'_, impl NodeStoreMut>,
    mut at: BlockNo,
    mut node: Node,
    inline_max: usize,
) -> Result<Tree> {
    let mut is_changed = true;
    while node.level > 0 && node.entries.len() == 1 {
        let child_at = walk::child_address(&node, 0);
        let joined = edits.take(child_at);
        is_changed = joined.is_some();
        let child = match joined {
            Some(child) => child,
            None => {
                let visit = walk::visit_only_child(edits.store, at, &node).await?;
                Rc::unwrap_or_clone(visit.node)
            }
        };
        edits.free(at);
        (at, node) = (child_at, child);
    }
    let is_small = node.level == 0 && node.encoded_len() <= inline_max / 2;
    if node.entries.is_empty() {
        edits.free(at);
        Ok(Tree::Empty)
    } else if is_small {
        edits.free(at);
        Ok(Tree::Inline(node))
    } else {
        if is_changed {
            edits.put(at, node);
        }
        Ok(Tree::Root(at))
    }
}

/// What the node of a step is without one of its children. If it was the first, its range falls
/// to the next.
fn without_child(step: Step, index: usize) -> Node {
    let mut node = Rc::unwrap_or_clone(step.visit.node);
    node.entries.remove(index);
    if let Some((first, _)) = node.entries.first_mut() {
        first.clear();
    }
    node
}

/// Two neighbours as one node, if they fit. `separator` is the key of the right one.
fn join(left: &Node, separator: &[u8], right: &Node) -> Option<Node> {
    let separator = if left.level == 0 { b"" } else { separator };
    if left.encoded_len() + separator.len() + right.encoded_len() > NODE_CAPACITY {
        return None;
    }
    let mut joined = left.clone();
    joined.entries.extend(right.entries.iter().cloned());
    if left.level > 0 {
        // The right one's first key was empty: its range began where the parent said.
        joined.entries[left.entries.len()].0 = separator.to_vec();
    }
    Some(joined)
}
