//! Metadata in memory: decoded blocks with their version and the lock that covers them.
//!
//! Invariant: a cached block is believed only while its covering lock is held (locks/release.rs
//! drops the blocks of a lock when it gives the lock away).

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use lunfs_format::{Block, BlockNo, Cluster, Descriptor, Node, NodeBlock, Version, VolumeId};

/// A decoded metadata block.
#[derive(Clone, Debug)]
pub enum Meta {
    /// Header of a cluster.
    Cluster(Rc<Cluster>),
    /// Body of a descriptor.
    Descriptor(Rc<Descriptor>),
    /// Node of a tree.
    Node(Rc<Node>),
}

/// A cached block.
#[derive(Clone, Debug)]
pub struct Cached {
    /// What it holds.
    pub meta: Meta,
    /// The lock that covers it.
    pub lock: BlockNo,
    /// Version of its last image; the next image gets the next one.
    pub version: Version,
}

impl Cached {
    /// The image of this block as it goes to disk.
    pub fn encode(&self, volume: VolumeId, at: BlockNo) -> Box<Block> {
        match &self.meta {
            Meta::Cluster(cluster) => {
                let mut image = Cluster::clone(cluster);
                (image.version, image.owner) = (self.version, self.lock);
                image.encode(volume, at)
            }
            Meta::Descriptor(descriptor) => {
                let mut image = Descriptor::clone(descriptor);
                (image.version, image.owner) = (self.version, self.lock);
                image.encode(volume, at)
            }
            Meta::Node(node) => {
                NodeBlock { version: self.version, owner: self.lock, node: Node::clone(node) }
                    .encode(volume, at)
            }
        }
    }
}

/// The cached blocks of all locks held.
#[derive(Default)]
pub struct Cache {
    blocks: BTreeMap<BlockNo, Cached>,
    by_lock: BTreeMap<BlockNo, BTreeSet<BlockNo>>,
}

impl Cache {
    /// The block at this address.
    pub fn get(&self, at: BlockNo) -> Option<&Cached> {
        self.blocks.get(&at)
    }

    /// Puts a block in place of what was cached there.
    pub fn put(&mut self, at: BlockNo, cached: Cached) {
        self.by_lock.entry(cached.lock).or_default().insert(at);
        let lock = cached.lock;
        if let Some(old) = self.blocks.insert(at, cached)
            && old.lock != lock
            && let Some(set) = self.by_lock.get_mut(&old.lock)
        {
            set.remove(&at);
        }
    }

    /// Raises the version of a block for its next image and returns that image's version.
    pub fn next_version(&mut self, at: BlockNo) -> Option<&Cached> {
        let cached = self.blocks.get_mut(&at)?;
        cached.version = cached.version.next();
        Some(cached)
    }

    /// Forgets one block.
    pub fn forget(&mut self, at: BlockNo) {
        if let Some(old) = self.blocks.remove(&at)
            && let Some(set) = self.by_lock.get_mut(&old.lock)
        {
            set.remove(&at);
        }
    }

    /// Forgets everything that this lock covers.
    pub fn forget_lock(&mut self, lock: BlockNo) {
        for at in self.by_lock.remove(&lock).unwrap_or_default() {
            self.blocks.remove(&at);
        }
    }

    /// The first cached block of a range.
    pub fn first_in(&self, range: std::ops::Range<BlockNo>) -> Option<BlockNo> {
        self.blocks.range(range).next().map(|(at, _)| *at)
    }

    /// Cached blocks.
    pub fn len(&self) -> usize {
        self.blocks.len()
    }
}
