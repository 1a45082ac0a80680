//! A volume with something of everything, made with the encoders alone, and ways to change it.

use std::cell::Cell;
use std::hash::Hasher;

use lunfs_format::{
    BLOCK, BlockNo, Cluster, Content, Descriptor, EntryValue, FRONTIER_LOCK, FileKind, Holder,
    Incarnation, JOURNAL_HEADERS, JOURNAL_ORPHANS, JOURNAL_RING, JournalHeader, Lock, LockMode,
    LockObject, MapEntry, Node, NodeBlock, Pulse, PulseState, RECORD, RENAME_LOCK, RecordEntry,
    RecordHead, SlotNo, Stamp, Superblock, Timestamp, Tree, Version, stored_checksum,
};

use super::disk::{Memory, formatted};

/// Birth of everything but the root.
pub const BIRTH: u64 = 2;
/// The slot that has a journal, and the life that it is free at.
pub const SLOT: SlotNo = SlotNo(3);
pub const LIFE: Incarnation = Incarnation(4);
/// A holder whose life is over.
pub const STALE: Holder = Holder { slot: SLOT, incarnation: Incarnation(3) };

pub type Entry = (Vec<u8>, Vec<u8>);

pub struct Sample {
    pub disk: Memory,
    pub superblock: Superblock,
    pub root: BlockNo,
    pub file: BlockNo,
    pub big: BlockNo,
    pub huge: BlockNo,
    pub attrs: BlockNo,
    pub attrs_tree: BlockNo,
    pub held: BlockNo,
    pub many: BlockNo,
    pub dir: BlockNo,
    pub sub: BlockNo,
    pub link: BlockNo,
    pub pipe: BlockNo,
    pub deleted: BlockNo,
    pub voided: BlockNo,
    pub half_voided: BlockNo,
    pub deleted_dir: BlockNo,
    pub freed: BlockNo,
    pub orphans: BlockNo,
    /// First block of the journal's cluster.
    pub journal: BlockNo,
    next: Cell<u64>,
}

impl Sample {
    pub fn new() -> Sample {
        let (disk, superblock) = formatted(512);
        let geometry = superblock.geometry();
        let journal = geometry.cluster_start(1);
        let nowhere = BlockNo(0);
        let mut s = Sample {
            root: superblock.root,
            journal,
            orphans: journal.plus(JOURNAL_ORPHANS),
            next: Cell::new(superblock.root.0 + 2),
            disk,
            superblock,
            file: nowhere,
            big: nowhere,
            huge: nowhere,
            attrs: nowhere,
            attrs_tree: nowhere,
            held: nowhere,
            many: nowhere,
            dir: nowhere,
            sub: nowhere,
            link: nowhere,
            pipe: nowhere,
            deleted: nowhere,
            voided: nowhere,
            half_voided: nowhere,
            deleted_dir: nowhere,
            freed: nowhere,
        };
        s.make_files();
        s.make_directories();
        s.make_orphans();
        s.make_journal();
        s
    }

    fn make_files(&mut self) {
        self.file = self.make(FileKind::File, |_, d| {
            (d.size, d.nlink) = (5, 2);
            d.content = Content::Bytes(b"hello".to_vec());
        });
        self.big = self.make(FileKind::File, |s, d| {
            let hole = MapEntry { block: None, zero: true, grains: 1, mask: 0 };
            let map =
                [s.run(0, 4), (key_of(1), hole.encode().to_vec()), s.run(2, 64), s.ahead(9, 8)];
            (d.size, d.blocks) = (3 << 18, 4 + 64 + 8);
            d.content = inline(map.to_vec());
        });
        self.huge = self.make(FileKind::File, |s, d| {
            let map = (0..6).map(|index| s.run(index, 1)).collect();
            (d.size, d.blocks) = (6 << 18, 3 + 6);
            d.content = Content::Tree(s.tree(d.owner, map, 3));
        });
        self.attrs = self.make(FileKind::File, |_, d| {
            let piece = |name: &str, piece: u8, len: usize| (piece_key(name, piece), vec![1; len]);
            let entries =
                vec![piece("user.a", 0, 1024), piece("user.a", 1, 9), piece("user.b", 0, 0)];
            (d.size, d.xattrs) = (100, Tree::Inline(Node { level: 0, entries }));
        });
        self.attrs_tree = self.make(FileKind::File, |s, d| {
            let piece = |(piece, len)| (piece_key("user.c", piece), vec![1; len]);
            let pieces = [(0, 1024), (1, 1024), (2, 1024), (3, 5)].map(piece);
            (d.blocks, d.xattrs) = (3, s.tree(d.owner, pieces.to_vec(), 2));
        });
        self.held = self.make(FileKind::File, |_, _| {});
        self.edit_lock(self.held, |lock| {
            (lock.mode, lock.holder) = (LockMode::Exclusive, Some(STALE));
            lock.stamp = Stamp { version: Version { birth: BIRTH, count: 1 }, checksum: 7 };
        });
        self.many = self.make(FileKind::File, |_, d| d.nlink = 6);
        self.link = self.make(FileKind::Symlink, |_, d| {
            (d.size, d.content) = (4, Content::Bytes(b"file".to_vec()));
        });
        self.pipe = self.make(FileKind::Fifo, |_, _| {});
    }

    fn make_directories(&mut self) {
        let empty = self.make(FileKind::File, |_, _| {});
        self.dir = self.make(FileKind::Directory, |_, d| {
            (d.parent, d.parent_birth) = (self.root, self.superblock.root_birth);
        });
        self.sub = self.make(FileKind::Directory, |_, d| {
            (d.parent, d.parent_birth) = (self.dir, BIRTH);
        });
        let mut names: Vec<Entry> =
            (0..6).map(|n| self.entry(&format!("many-{n}"), self.many, FileKind::File)).collect();
        names.push(self.entry("sub", self.sub, FileKind::Directory));
        names.push(self.entry("twin", self.file, FileKind::File));
        let tree = self.tree(self.dir, names, 3);
        self.edit(self.dir, |d| {
            (d.nlink, d.size, d.blocks) = (3, 8, 4);
            d.content = Content::Tree(tree);
        });
        let names = [
            self.entry("file", self.file, FileKind::File),
            self.entry("big", self.big, FileKind::File),
            self.entry("huge", self.huge, FileKind::File),
            self.entry("attrs", self.attrs, FileKind::File),
            self.entry("attrs-tree", self.attrs_tree, FileKind::File),
            self.entry("held", self.held, FileKind::File),
            self.entry("empty", empty, FileKind::File),
            self.entry("dir", self.dir, FileKind::Directory),
            self.entry("link", self.link, FileKind::Symlink),
            self.entry("pipe", self.pipe, FileKind::Fifo),
        ];
        self.edit(self.root, |d| {
            (d.nlink, d.size) = (3, 10);
            d.content = inline(names.to_vec());
        });
    }

    fn make_orphans(&mut self) {
        self.deleted = self.make(FileKind::File, |s, d| {
            (d.nlink, d.size) = (0, 0);
            let map = (3..7).map(|index| s.run(index, 2)).collect();
            d.content = Content::Tree(s.tree(d.owner, map, 2));
        });
        self.voided = self.make(FileKind::Void, |_, d| d.nlink = 0);
        self.edit_lock(self.voided, |lock| {
            (lock.mode, lock.stamp) = (LockMode::Void, Stamp::default());
        });
        self.half_voided = self.make(FileKind::Void, |_, d| d.nlink = 0);
        self.edit_lock(self.half_voided, |lock| {
            (lock.mode, lock.holder) = (LockMode::Exclusive, Some(STALE));
        });
        self.deleted_dir = self.make(FileKind::Directory, |_, d| d.nlink = 0);
        self.freed = self.allocate(5);
    }

    fn make_journal(&mut self) {
        self.edit_lock(self.journal, |lock| {
            (lock.object, lock.payload) = (LockObject::Journal, SLOT.0.into());
            lock.stamp = Stamp::default();
        });
        let files = [self.deleted, self.voided, self.half_voided, self.deleted_dir];
        let mut entries: Vec<Entry> =
            files.iter().map(|at| (orphan_key(0, at.0, BIRTH), Vec::new())).collect();
        entries.push((orphan_key(1, self.freed.0, 5), Vec::new()));
        self.make_at(self.orphans, FileKind::Directory, 1, |_, d| {
            (d.parent, d.parent_birth, d.nlink, d.size) = (self.orphans, 1, 2, 5);
            d.content = inline(entries);
        });
        for (count, offset) in (6..).zip(JOURNAL_HEADERS) {
            let header = JournalHeader {
                slot: SLOT,
                incarnation: STALE.incarnation,
                version: Version { birth: 0, count },
                tail_sequence: 1,
                tail_position: 0,
                previous: 0,
            };
            let at = self.journal.plus(offset);
            self.disk.put(at, &header.encode(self.superblock.volume, at)[..]);
        }
        let record = RecordHead {
            slot: SLOT,
            incarnation: STALE.incarnation,
            sequence: 1,
            head_index: 0,
            head_count: 1,
            image_count: 0,
            previous: 0,
            durable: 0,
            entries: vec![RecordEntry::Revoke { block: self.freed }],
        };
        let at = self.journal.plus(JOURNAL_RING + 300);
        self.disk.put(at, &record.encode(self.superblock.volume, at)[..]);
        self.edit_pulse(SLOT, |pulse| {
            (pulse.incarnation, pulse.journal) = (LIFE, Some(self.journal));
        });
    }

    /// Blocks allocated in the first cluster.
    pub fn allocated(&self) -> u64 {
        self.next.get() - self.root.0
    }

    /// Allocates blocks in the first cluster.
    pub fn allocate(&self, len: u32) -> BlockNo {
        let at = BlockNo(self.next.get());
        self.next.set(at.0 + u64::from(len));
        self.edit_cluster(0, |cluster| {
            let offset = at.0 - self.superblock.clusters_start.0;
            cluster.bitmap.set_run(u32::try_from(offset).unwrap(), len, true);
        });
        at
    }

    /// A map entry with its own run, of which one grain holds data.
    pub fn run(&self, index: u64, grains: u8) -> Entry {
        self.run_with(index, grains, 1)
    }

    /// A map entry with a run that was allocated ahead.
    fn ahead(&self, index: u64, grains: u8) -> Entry {
        self.run_with(index, grains, 0)
    }

    fn run_with(&self, index: u64, grains: u8, mask: u64) -> Entry {
        let block = Some(self.allocate(grains.into()));
        (key_of(index), MapEntry { block, zero: false, grains, mask }.encode().to_vec())
    }

    /// An entry of a directory.
    pub fn entry(&self, name: &str, addr: BlockNo, kind: FileKind) -> Entry {
        let value = EntryValue { addr, birth: BIRTH, kind }.encode();
        (self.name_key(name.as_bytes()), value.to_vec())
    }

    pub fn name_key(&self, name: &[u8]) -> Vec<u8> {
        let mut hasher = siphasher::sip::SipHasher24::new_with_key(&self.superblock.hash_key);
        hasher.write(name);
        [&(hasher.finish() >> 1 | 16).to_be_bytes()[..], name].concat()
    }

    /// A tree of leaves with `per_leaf` entries under one root.
    pub fn tree(&self, owner: BlockNo, mut entries: Vec<Entry>, per_leaf: usize) -> Tree {
        entries.sort();
        let mut children = Vec::new();
        for leaf in entries.chunks(per_leaf) {
            let key = if children.is_empty() { Vec::new() } else { leaf[0].0.clone() };
            let at = self.node(owner, Node { level: 0, entries: leaf.to_vec() });
            children.push((key, at.0.to_le_bytes().to_vec()));
        }
        Tree::Root(self.node(owner, Node { level: 1, entries: children }))
    }

    fn node(&self, owner: BlockNo, node: Node) -> BlockNo {
        let at = self.allocate(1);
        let version = Version { birth: BIRTH, count: 1 };
        let block = NodeBlock { version, owner, node };
        self.disk.put(at, &block.encode(self.superblock.volume, at)[..]);
        at
    }

    /// An object with a free lock.
    pub fn make(&self, kind: FileKind, fill: impl FnOnce(&Sample, &mut Descriptor)) -> BlockNo {
        let at = self.allocate(2);
        self.make_at(at, kind, BIRTH, fill);
        at
    }

    fn make_at(
        &self,
        at: BlockNo,
        kind: FileKind,
        birth: u64,
        fill: impl FnOnce(&Sample, &mut Descriptor),
    ) {
        let lock = Lock {
            mode: LockMode::Free,
            object: LockObject::Descriptor,
            holder: None,
            generation: Version { birth, count: 5 },
            nonce: 1,
            stamp: Stamp::default(),
            giver: None,
            payload: 0,
        };
        self.put_lock(at, &lock);
        let now = Timestamp { seconds: 1, nanos: 0 };
        let mut body = Descriptor {
            version: Version { birth, count: 3 },
            owner: at,
            kind,
            mode: 0o755,
            uid: 0,
            gid: 0,
            nlink: if kind == FileKind::Directory { 2 } else { 1 },
            rdev: 0,
            size: 0,
            blocks: 0,
            atime: now,
            mtime: now,
            ctime: now,
            btime: now,
            parent: BlockNo(0),
            parent_birth: 0,
            top: None,
            user: None,
            layer: lunfs_format::Layer::default(),
            content: Content::Empty,
            xattrs: Tree::Empty,
        };
        fill(self, &mut body);
        self.put_body(at, &body);
    }

    pub fn lock(&self, at: BlockNo) -> Lock {
        Lock::decode(&self.disk.block(at)[..RECORD], self.superblock.volume, at).unwrap()
    }

    pub fn put_lock(&self, at: BlockNo, lock: &Lock) {
        self.disk.put(at, &lock.encode(self.superblock.volume, at)[..]);
    }

    /// The image of a lock after a change.
    pub fn changed_lock(&self, at: BlockNo, change: impl FnOnce(&mut Lock)) -> Vec<u8> {
        let mut lock = self.lock(at);
        change(&mut lock);
        lock.encode(self.superblock.volume, at).to_vec()
    }

    pub fn edit_lock(&self, at: BlockNo, change: impl FnOnce(&mut Lock)) {
        let bytes = self.changed_lock(at, change);
        self.disk.put(at, &bytes);
    }

    pub fn body(&self, at: BlockNo) -> Descriptor {
        let at = at.plus(1);
        Descriptor::decode(&self.disk.block(at), self.superblock.volume, at).unwrap()
    }

    /// Puts a body and its stamp.
    fn put_body(&self, at: BlockNo, body: &Descriptor) {
        let bytes = body.encode(self.superblock.volume, at.plus(1));
        self.disk.put(at.plus(1), &bytes[..]);
        let stamp = Stamp { version: body.version, checksum: stored_checksum(&bytes[..]) };
        self.edit_lock(at, |lock| lock.stamp = stamp);
    }

    /// Changes a descriptor under its lock.
    pub fn edit(&self, at: BlockNo, change: impl FnOnce(&mut Descriptor)) {
        let mut body = self.body(at);
        change(&mut body);
        self.put_body(at, &body);
    }

    /// Changes the entries of a tree that lies in a descriptor.
    pub fn edit_entries(&self, at: BlockNo, change: impl FnOnce(&mut Vec<Entry>)) {
        self.edit(at, |body| match (&mut body.content, &mut body.xattrs) {
            (Content::Tree(Tree::Inline(node)), _) | (_, Tree::Inline(node)) => {
                change(&mut node.entries);
                node.entries.sort();
            }
            _ => panic!("{at} has no tree in its descriptor"),
        });
    }

    /// Changes what a name in the root directory refers to.
    pub fn edit_value(&self, name: &str, change: impl FnOnce(&mut EntryValue)) {
        let key = self.name_key(name.as_bytes());
        self.edit_entries(self.root, |entries| {
            let (_, value) = entries.iter_mut().find(|(k, _)| *k == key).unwrap();
            let mut entry = EntryValue::decode(value).unwrap();
            change(&mut entry);
            *value = entry.encode().to_vec();
        });
    }

    pub fn edit_node(&self, at: BlockNo, change: impl FnOnce(&mut NodeBlock)) {
        let mut block =
            NodeBlock::decode(&self.disk.block(at), self.superblock.volume, at).unwrap();
        change(&mut block);
        self.disk.put(at, &block.encode(self.superblock.volume, at)[..]);
    }

    pub fn edit_cluster(&self, index: u64, change: impl FnOnce(&mut Cluster)) {
        let start = self.superblock.geometry().cluster_start(index);
        let at = start.plus(1);
        let mut cluster =
            Cluster::decode(&self.disk.block(at), self.superblock.volume, at).unwrap();
        change(&mut cluster);
        let bytes = cluster.encode(self.superblock.volume, at);
        self.disk.put(at, &bytes[..]);
        let stamp = Stamp { version: cluster.version, checksum: stored_checksum(&bytes[..]) };
        self.edit_lock(start, |lock| lock.stamp = stamp);
    }

    /// Changes one copy of the journal's header.
    pub fn edit_header(&self, copy: usize, change: impl FnOnce(&mut JournalHeader)) {
        let at = self.journal.plus(JOURNAL_HEADERS[copy]);
        let volume = self.superblock.volume;
        let mut header = JournalHeader::decode(&self.disk.block(at), volume, at).unwrap();
        change(&mut header);
        self.disk.put(at, &header.encode(volume, at)[..]);
    }

    pub fn slot_block(&self, slot: SlotNo) -> BlockNo {
        BlockNo(self.superblock.geometry().slot_offset(slot) / BLOCK as u64)
    }

    pub fn edit_pulse(&self, slot: SlotNo, change: impl FnOnce(&mut Pulse)) {
        let at = self.slot_block(slot);
        let bytes = self.disk.block(at);
        let mut pulse = Pulse::decode(&bytes[..RECORD], self.superblock.volume, slot).unwrap();
        change(&mut pulse);
        self.disk.put(at, &pulse.encode(self.superblock.volume)[..]);
    }

    /// A host takes a slot.
    pub fn live(&self, slot: SlotNo, incarnation: u64) {
        self.edit_pulse(slot, |pulse| {
            (pulse.state, pulse.incarnation) = (PulseState::Live, Incarnation(incarnation));
            pulse.name = "a".into();
        });
    }

    pub fn flip(&self, at: BlockNo, offset: usize) {
        let mut bytes = self.disk.block(at);
        bytes[offset] ^= 4;
        self.disk.put(at, &bytes);
    }

    /// The root of a tree that does not lie in its descriptor.
    pub fn root_of(&self, at: BlockNo) -> BlockNo {
        match self.body(at) {
            Descriptor { content: Content::Tree(Tree::Root(root)), .. }
            | Descriptor { xattrs: Tree::Root(root), .. } => root,
            _ => panic!("{at} has no tree of its own"),
        }
    }

    /// The leaf with this number.
    pub fn leaf_of(&self, at: BlockNo, index: usize) -> BlockNo {
        let root = self.root_of(at);
        let block =
            NodeBlock::decode(&self.disk.block(root), self.superblock.volume, root).unwrap();
        BlockNo(u64::from_le_bytes(block.node.entries[index].1[..].try_into().unwrap()))
    }

    /// The run of a file block in a map that lies in its descriptor.
    pub fn run_of(&self, at: BlockNo, index: u64) -> BlockNo {
        let Content::Tree(Tree::Inline(node)) = self.body(at).content else { panic!("no map") };
        let (_, value) = node.entries.iter().find(|(key, _)| *key == key_of(index)).unwrap();
        MapEntry::decode(value).unwrap().block.unwrap()
    }

    /// Every block of metadata but journal headers, of which one suffices.
    pub fn metadata(&self) -> Vec<BlockNo> {
        let objects = [
            self.root,
            self.file,
            self.big,
            self.huge,
            self.attrs,
            self.attrs_tree,
            self.held,
            self.many,
            self.dir,
            self.sub,
            self.link,
            self.pipe,
            self.deleted,
            self.voided,
            self.half_voided,
            self.deleted_dir,
            self.orphans,
        ];
        let mut all: Vec<BlockNo> = objects.iter().flat_map(|at| [*at, at.plus(1)]).collect();
        for tree in [self.huge, self.attrs_tree, self.dir, self.deleted] {
            all.extend([self.root_of(tree), self.leaf_of(tree, 0), self.leaf_of(tree, 1)]);
        }
        for index in [0, 2] {
            let start = self.superblock.geometry().cluster_start(index);
            all.extend([start, start.plus(1)]);
        }
        all.extend([FRONTIER_LOCK, RENAME_LOCK, self.journal, self.slot_block(SlotNo(9))]);
        all
    }
}

pub fn key_of(index: u64) -> Vec<u8> {
    index.to_be_bytes().to_vec()
}

pub fn piece_key(name: &str, piece: u8) -> Vec<u8> {
    [name.as_bytes(), &[0, piece]].concat()
}

pub fn orphan_key(what: u8, first: u64, second: u64) -> Vec<u8> {
    [&[what][..], &first.to_be_bytes(), &second.to_be_bytes()].concat()
}

pub fn inline(mut entries: Vec<Entry>) -> Content {
    entries.sort();
    Content::Tree(Tree::Inline(Node { level: 0, entries }))
}
