//! Walking a tree of nodes, row by row from the root to the leaves.
//!
//! Invariant: each block is read once for one tree, so that a tree of any shape ends.

use std::collections::BTreeSet;

use futures_util::future::join_all;
use lunfs_format::{BlockNo, NODE_CAPACITY, Node, NodeBlock, Tree};

use super::media::{Media, PARALLEL};
use crate::error::Result;

/// Levels that a tree may have; no host goes deeper.
const LEVELS_MAX: u16 = 12;
/// Bytes that an entry may take, so that two fit in each node.
const ENTRY_MAX: usize = NODE_CAPACITY / 2;

/// A key and its value.
pub(super) type Entry = (Vec<u8>, Vec<u8>);

/// What a tree was found to hold.
#[derive(Default)]
pub(super) struct Found {
    /// Blocks of its nodes.
    pub nodes: Vec<BlockNo>,
    /// Entries of its leaves, in order.
    pub entries: Vec<Entry>,
    /// What is wrong, and in which block.
    pub faults: Vec<(BlockNo, String)>,
    /// Nodes were left out: entries are missing.
    pub is_partial: bool,
}

/// Where a node is expected, and what may be in it.
struct Seat {
    at: BlockNo,
    /// `None`: the root, which has any level.
    level: Option<u16>,
    /// Keys are not below this,
    lower: Vec<u8>,
    /// and below this.
    upper: Option<Vec<u8>>,
}

/// Reads all of a tree whose object has its lock at `owner`.
pub(super) async fn read(media: &Media<'_>, owner: BlockNo, tree: &Tree) -> Result<Found> {
    let mut found = Found::default();
    let body = owner.plus(1);
    match tree {
        Tree::Empty => {}
        Tree::Inline(root) if root.level > 0 => {
            found.leave_out(body, "the tree's root lies in the descriptor and is no leaf");
        }
        Tree::Inline(root) => {
            found.judge(root, &Seat::of_root(body));
            found.entries.clone_from(&root.entries);
        }
        Tree::Root(root) => found.rows(media, owner, *root).await?,
    }
    Ok(found)
}

impl Seat {
    fn of_root(at: BlockNo) -> Seat {
        Seat { at, level: None, lower: Vec::new(), upper: None }
    }

    /// Where the children of a node are expected.
    fn children<'a>(&'a self, node: &'a Node) -> impl Iterator<Item = Seat> + 'a {
        node.entries.iter().enumerate().map(|(index, (key, value))| Seat {
            // Decoding proved the length.
            at: BlockNo(value.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes))),
            level: node.level.checked_sub(1),
            lower: if index == 0 { self.lower.clone() } else { key.clone() },
            upper: node
                .entries
                .get(index + 1)
                .map_or_else(|| self.upper.clone(), |e| Some(e.0.clone())),
        })
    }
}

impl Found {
    fn leave_out(&mut self, at: BlockNo, why: &str) {
        self.faults.push((at, format!("{why}; what is below it is lost")));
        self.is_partial = true;
    }

    async fn rows(&mut self, media: &Media<'_>, owner: BlockNo, root: BlockNo) -> Result<()> {
        let mut seen = BTreeSet::new();
        let mut row = vec![Seat::of_root(root)];
        while !row.is_empty() {
            let row_now = std::mem::take(&mut row);
            let seats: Vec<Seat> =
                row_now.into_iter().filter(|seat| self.accept(media, seat, &mut seen)).collect();
            for seats in seats.chunks(PARALLEL) {
                let reads = seats.iter().map(|seat| media.blocks(seat.at, 1));
                for (seat, bytes) in seats.iter().zip(join_all(reads).await) {
                    let block = NodeBlock::decode(&bytes?, media.volume(), seat.at);
                    let block =
                        block.map_err(|why| format!("a node of its tree is damaged: {why}"));
                    match block.and_then(|block| seat.fill(block, owner)) {
                        Err(why) => self.leave_out(seat.at, &why),
                        Ok(node) => {
                            self.judge(&node, seat);
                            if node.level > 0 {
                                row.extend(seat.children(&node));
                            } else {
                                self.entries.extend(node.entries);
                            }
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// Can there be a node, and is it not one that was met before?
    fn accept(&mut self, media: &Media<'_>, seat: &Seat, seen: &mut BTreeSet<BlockNo>) -> bool {
        if media.geometry.cluster_of(seat.at).is_none() {
            self.leave_out(seat.at, "a node of its tree lies outside of all clusters");
            return false;
        }
        if !seen.insert(seat.at) {
            self.leave_out(seat.at, "its tree leads to one node twice");
            return false;
        }
        self.nodes.push(seat.at);
        true
    }

    /// Reports what is wrong in a node without leaving it out.
    fn judge(&mut self, node: &Node, seat: &Seat) {
        let mut fault =
            |why: &str| self.faults.push((seat.at, format!("a node of its tree {why}")));
        let too_long = |(key, value): &Entry| 4 + key.len() + value.len().max(8) > ENTRY_MAX;
        if node.entries.iter().any(too_long) {
            fault("has an entry that is too long");
        }
        // The first key of an inner node is empty and stands for the lower bound.
        let keys = node.entries.iter().skip(usize::from(node.level > 0)).map(|(key, _)| key);
        let is_below = |key: &Vec<u8>| match node.level {
            0 => *key < seat.lower,
            _ => *key <= seat.lower,
        };
        if keys.clone().any(is_below) {
            fault("has a key below its range: it cannot be found");
        }
        if keys.clone().any(|key| seat.upper.as_ref().is_some_and(|upper| key >= upper)) {
            fault("has a key above its range: it cannot be found");
        }
    }
}

impl Seat {
    /// Is it the node that belongs here?
    fn fill(&self, block: NodeBlock, owner: BlockNo) -> std::result::Result<Node, String> {
        if block.owner != owner {
            return Err(format!("a node of its tree belongs to the lock in block {}", block.owner));
        }
        let level = block.node.level;
        if block.node.entries.is_empty() {
            return Err("a node of its tree has no entries".into());
        }
        match self.level {
            None if level >= LEVELS_MAX => Err(format!("the root of its tree is at level {level}")),
            Some(wanted) if level != wanted => {
                Err(format!("a node of its tree is at level {level}, not {wanted}"))
            }
            None | Some(_) => Ok(block.node),
        }
    }
}
