//! What shows from the layers below a top: found from above to below, once for each file block.
//!
//! Invariants:
//! - A frozen layer below a disk that this host holds does not change (decision 0018): it is read
//!   without its lock, and what was read stays right as long as the top's lock is held.
//! - Memory is bounded: what is known of a stack is forgotten when it is too much.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::{Bound, Range};
use std::rc::Rc;
use std::time::Duration;

use lunfs_format::{BlockNo, Content, Descriptor, FileKind, LayerRef, Lock, Node, Tree};

use super::LAYERS_MAX;
use crate::data::{FILE_BLOCK, GRAIN, Part, entry_in, entry_of, mask_of};
use crate::env::Instant;
use crate::error::{Error, Result};
use crate::locks::stamp_matches;
use crate::meta::{Cached, Meta};
use crate::tree::{self, NodeStore};
use crate::types::FileId;
use crate::volume::Volume;

/// Nodes of frozen layers that are kept for one top: about 5 MiB.
const NODES_MAX: usize = 512;
/// Patches that are kept for one top: about 2 MiB.
const PATCHES_MAX: usize = 1 << 16;
/// Readings of a body that another host may be writing, before its holder is looked at.
const READINGS: u32 = 3;
/// How long a body may stay half-written under one image of its lock, and between two looks.
const TORN_MAX: Duration = Duration::from_secs(30);
const TORN_PAUSE: Duration = Duration::from_millis(5);
/// Tops and snapshots of which the stacks are kept.
const STACKS_MAX: usize = 128;

/// Some grains of a file block that show from below.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Patch {
    /// The first of them,
    pub from: u64,
    /// and the one behind the last.
    pub to: u64,
    /// Where the first one lies.
    pub block: BlockNo,
    /// Byte of the disk at and above which zeroes are read instead.
    pub limit: u64,
}

impl Patch {
    /// The runs of set bits of a mask, in blocks that begin with grain 0 at `start`.
    pub fn runs(mask: u64, start: BlockNo, limit: u64) -> impl Iterator<Item = Patch> {
        runs(mask).map(move |(from, to)| Patch { from, to, block: start.plus(from), limit })
    }

    /// How many grains.
    pub fn grains(&self) -> u64 {
        self.to - self.from
    }

    /// Which grains.
    pub fn mask(&self) -> u64 {
        (u64::MAX >> (64 - self.grains())) << self.from
    }

    /// What is left of it among the grains wanted, without those that are hidden.
    pub fn without(&self, hidden: u64, wanted: &Range<u64>) -> impl Iterator<Item = Patch> {
        let wanted = mask_of(wanted.clone());
        let first = BlockNo(self.block.0 - self.from);
        Patch::runs(self.mask() & !hidden & wanted, first, self.limit)
    }

    /// Bytes of the file block that it has of a part of it, below its limit.
    pub fn bytes_in(&self, part: &Part) -> (u64, u64) {
        let end = self.limit.saturating_sub(part.index * FILE_BLOCK);
        let to = part.to.min(self.to * GRAIN).min(end);
        (part.from.max(self.from * GRAIN), to)
    }
}

/// A layer below the top.
struct Lower {
    id: FileId,
    map: Tree,
    limit: u64,
}

/// The layers below one top, from above.
#[derive(Default)]
pub(crate) struct Stack {
    layers: Vec<Lower>,
    nodes: RefCell<BTreeMap<BlockNo, Rc<Node>>>,
    patches: RefCell<BTreeMap<u64, Rc<[Patch]>>>,
    patches_kept: std::cell::Cell<usize>,
}

impl Stack {
    /// Does nothing show from below?
    pub fn is_empty(&self) -> bool {
        self.layers.is_empty()
    }

    fn keep(&self, index: u64, found: &Rc<[Patch]>) {
        let mut patches = self.patches.borrow_mut();
        if self.patches_kept.get() > PATCHES_MAX {
            patches.clear();
            self.patches_kept.set(0);
        }
        self.patches_kept.set(self.patches_kept.get() + found.len() + 1);
        patches.insert(index, found.clone());
    }
}

/// The nodes of a frozen layer.
struct Frozen<'s> {
    volume: &'s Volume,
    stack: &'s Stack,
    id: FileId,
}

impl NodeStore for Frozen<'_> {
    async fn node(&self, at: BlockNo) -> Result<Rc<Node>> {
        // Of a layer whose lock is ours a node may be newer than the disk.
        if let Some(Cached { meta: Meta::Node(node), lock, .. }) =
            self.volume.cache.borrow().get(at)
            && *lock == self.id.addr
        {
            return Ok(node.clone());
        }
        if let Some(node) = self.stack.nodes.borrow().get(&at) {
            return Ok(node.clone());
        }
        let node = Rc::new(self.volume.read_node(self.id.addr, at).await?.node);
        let mut nodes = self.stack.nodes.borrow_mut();
        if nodes.len() >= NODES_MAX {
            nodes.clear();
        }
        nodes.insert(at, node.clone());
        Ok(node)
    }
}

impl Volume {
    /// What is below an object whose guard the caller has. Of a plain file that is nothing.
    pub(crate) async fn stack(&self, id: FileId) -> Result<Rc<Stack>> {
        if let Some((_, stack)) = self.stacks.borrow().get(&id) {
            return Ok(stack.clone());
        }
        let top = self.current(id);
        let stack = Rc::new(self.stack_from(id, top.layer.below, top.layer.visible).await?);
        if top.kind == FileKind::Layer {
            self.keep_stack(id, id.addr, &stack);
        }
        Ok(stack)
    }

    /// The layers from one on, which shows up to `visible`. `of`: who refers to it.
    pub(super) async fn stack_from(
        &self,
        of: FileId,
        from: Option<LayerRef>,
        visible: u64,
    ) -> Result<Stack> {
        let mut layers = Vec::new();
        let (mut below, mut limit) = (from, visible);
        while let Some(layer) = below {
            if layers.len() > LAYERS_MAX as usize {
                return Err(Error::damaged(of.addr.plus(1), "its layers have no end"));
            }
            let body = self.read_layer(layer).await?;
            if !body.layer.frozen {
                return Err(Error::damaged(layer.addr.plus(1), "a layer below is not frozen"));
            }
            limit = limit.min(body.size);
            let map = match body.content {
                Content::Tree(map) => map,
                Content::Empty | Content::Bytes(_) => Tree::Empty,
            };
            layers.push(Lower { id: layer.into(), map, limit });
            (below, limit) = (body.layer.below, limit.min(body.layer.visible));
        }
        Ok(Stack { layers, ..Stack::default() })
    }

    /// Keeps a stack as long as the lock at `by` is held.
    pub(super) fn keep_stack(&self, id: FileId, by: BlockNo, stack: &Rc<Stack>) {
        let mut stacks = self.stacks.borrow_mut();
        if stacks.len() >= STACKS_MAX {
            stacks.clear();
        }
        stacks.insert(id, (by, stack.clone()));
    }

    /// Forgets what is below an object: its reference changes, or the lock goes that keeps it.
    pub(crate) fn forget_stack(&self, addr: BlockNo) {
        self.stacks.borrow_mut().retain(|id, (by, _)| *by != addr && id.addr != addr);
    }

    /// What shows of a file block where its own entry has nothing.
    pub(crate) async fn below(&self, stack: &Stack, index: u64) -> Result<Rc<[Patch]>> {
        if stack.is_empty() {
            return Ok(Rc::default());
        }
        if let Some(known) = stack.patches.borrow().get(&index) {
            return Ok(known.clone());
        }
        let mut patches = Vec::new();
        let mut missing = u64::MAX;
        for lower in &stack.layers {
            missing &= shown_below(index, lower.limit);
            if missing == 0 {
                break;
            }
            let store = Frozen { volume: self, stack, id: lower.id };
            let entry = self.checked(entry_in(&store, lower.id, &lower.map, index).await?)?;
            if let Some(start) = entry.block {
                patches.extend(Patch::runs(entry.mask & missing, start, lower.limit));
            }
            missing &= !entry.mask;
            if entry.zero {
                break;
            }
        }
        patches.sort_by_key(|patch| patch.from);
        let found: Rc<[Patch]> = patches.into();
        stack.keep(index, &found);
        Ok(found)
    }

    /// File blocks at or above `from` of which a layer below says anything, at most `max`, in
    /// order.
    pub(crate) async fn indices_below(
        &self,
        stack: &Stack,
        from: u64,
        max: usize,
    ) -> Result<Vec<u64>> {
        let mut found = BTreeSet::new();
        let mut end = u64::MAX;
        for lower in &stack.layers {
            let store = Frozen { volume: self, stack, id: lower.id };
            let key = from.to_be_bytes();
            let entries = tree::scan(&store, &lower.map, Bound::Included(&key[..]), max).await?;
            let mut is_full = entries.len() == max;
            let mut last = from;
            for (key, value) in entries {
                (last, _) = entry_of(lower.id, &key, &value)?;
                if shown_below(last, lower.limit) == 0 {
                    // And so is all behind it.
                    is_full = false;
                    break;
                }
                found.insert(last);
            }
            if is_full {
                end = end.min(last);
            }
        }
        Ok(found.into_iter().filter(|index| *index <= end).take(max).collect())
    }

    /// The body of a layer that is referred to by what this host holds. Another host may hold its
    /// lock to count who refers to it, which changes nothing else.
    pub(super) async fn read_layer(&self, layer: LayerRef) -> Result<Descriptor> {
        let id = FileId::from(layer);
        if self.locks.exactly(id.into()).is_some_and(|entry| entry.held().is_some()) {
            return Ok(self.current(id));
        }
        let mut readings = 0;
        let mut seen: Option<(Lock, Instant)> = None;
        loop {
            let (lock, bytes) = self.read_object(layer.addr).await?;
            let lock = lock.filter(|lock| lock.generation.birth == layer.birth);
            let gone = || Error::damaged(layer.addr, "a layer that is referred to is gone");
            let lock = lock.ok_or_else(gone)?;
            if let Some(body) = self.layer_in(layer, &lock, &bytes)? {
                return Ok(body);
            }
            readings += 1;
            self.io.count(|c| c.reads_retried += 1);
            if readings > READINGS {
                // Under one image of the lock somebody can write the body once.
                let since = match seen {
                    Some((before, since)) if before == lock => since,
                    _ => self.now(),
                };
                seen = Some((lock, since));
                let at = layer.addr.plus(1);
                if self.now().since(since) > TORN_MAX {
                    return Err(Error::damaged(at, "the body of a layer stays half-written"));
                }
                if let Some(holder) = lock.holder.filter(|holder| *holder != self.me()) {
                    self.watch(holder).await?;
                }
                self.sleep_about(TORN_PAUSE).await;
            }
        }
    }

    /// `None`: somebody is just writing it.
    fn layer_in(&self, layer: LayerRef, lock: &Lock, bytes: &[u8]) -> Result<Option<Descriptor>> {
        let at = layer.addr.plus(1);
        let body = match Descriptor::decode(bytes, self.sb.volume, at) {
            Ok(_) if lock.holder.is_none() && !stamp_matches(&lock.stamp, bytes) => {
                return Ok(None);
            }
            Ok(body) if body.version < lock.stamp.version => return Ok(None),
            Ok(body) => body,
            Err(_) => return Ok(None),
        };
        let is_it = body.kind == FileKind::Layer && body.version.birth == layer.birth;
        if !is_it || body.owner != layer.addr {
            return Err(Error::damaged(at, "it is not the layer that is referred to"));
        }
        Ok(Some(body))
    }
}

/// Grains of a file block that begin below `limit`.
fn shown_below(index: u64, limit: u64) -> u64 {
    let bytes = limit.saturating_sub(index.saturating_mul(FILE_BLOCK)).min(FILE_BLOCK);
    match bytes.div_ceil(GRAIN) {
        64 => u64::MAX,
        grains => (1 << grains) - 1,
    }
}

/// Runs of set bits: first, and the one behind the last.
fn runs(mut mask: u64) -> impl Iterator<Item = (u64, u64)> {
    std::iter::from_fn(move || {
        let from = mask.trailing_zeros();
        if from == u64::BITS {
            return None;
        }
        let len = (!(mask >> from)).trailing_zeros();
        let to = from + len;
        mask = if to == u64::BITS { 0 } else { mask >> to << to };
        Some((u64::from(from), u64::from(to)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_shows_the_grains_that_begin_below_it() {
        assert_eq!(shown_below(0, 0), 0);
        assert_eq!(shown_below(0, 1), 1);
        assert_eq!(shown_below(0, GRAIN), 1);
        assert_eq!(shown_below(0, GRAIN + 1), 3);
        assert_eq!(shown_below(0, FILE_BLOCK), u64::MAX);
        assert_eq!(shown_below(1, FILE_BLOCK), 0);
        assert_eq!(shown_below(1, 2 * FILE_BLOCK - 1), u64::MAX);
        assert_eq!(shown_below(u64::MAX, u64::MAX), 0);
    }

    #[test]
    fn runs_are_the_set_bits_in_order() {
        let all = |mask| runs(mask).collect::<Vec<_>>();
        assert_eq!(all(0), []);
        assert_eq!(all(u64::MAX), [(0, 64)]);
        assert_eq!(all(1 | 1 << 63), [(0, 1), (63, 64)]);
        assert_eq!(all(0b0110_1110), [(1, 4), (5, 7)]);
    }
}
