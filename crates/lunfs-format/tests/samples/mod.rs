//! One value of each structure, used by the unit tests and by the golden images.

use super::*;

pub const VOLUME: VolumeId = VolumeId(*b"sample volume 01");

pub fn superblock() -> Superblock {
    let geometry = Geometry::plan(1 << 30, 512, Sizes::default()).expect("a gibibyte suffices");
    Superblock {
        volume: VOLUME,
        label: "W\u{e4}lder".to_owned(),
        compat: 1,
        ro_compat: 2,
        incompat: 0,
        logical_block: geometry.logical_block,
        cluster_blocks: geometry.cluster_blocks,
        slot_count: geometry.slot_count,
        volume_blocks: geometry.volume_blocks,
        cluster_count: geometry.cluster_count,
        clusters_start: geometry.clusters_start,
        root: geometry.cluster_start(0).plus(2),
        root_birth: 1,
        created_seconds: 1_700_000_000,
        hash_key: [0xa5; 16],
        timing: Timing::FAST,
        geometry_epoch: 1,
    }
}

pub fn pulse() -> Pulse {
    Pulse {
        slot: SlotNo(7),
        incarnation: Incarnation(3),
        state: PulseState::Claimed,
        has_parent: true,
        program_only: false,
        io_clean: true,
        counter: 1234,
        progress: 99,
        nonce: 0x0123_4567_89ab_cdef,
        run: [1; 16],
        boot: [2; 16],
        machine: [3; 16],
        name: "host-a.example".to_owned(),
        journal: Some(BlockNo(4096)),
        timing: Timing::CALM,
        pid: 4711,
        pid_start: 123_456,
        pid_namespace: 4_026_531_836,
        claimer: Some(Holder { slot: SlotNo(8), incarnation: Incarnation(2) }),
        claim_attempts: 2,
        claim_failure: ClaimFailure::Fence,
        fence_progress: 1,
        geometry_epoch: 1,
    }
}

pub fn doorbell() -> Doorbell {
    Doorbell {
        state: BellState::Rung,
        request: Request::HandOver,
        ringer: Holder { slot: SlotNo(5), incarnation: Incarnation(4) },
        target_incarnation: Incarnation(3),
        nonce: 0x1122_3344_5566_7788,
        locks: vec![BlockNo(2050), BlockNo(2052), BlockNo(9000)],
    }
}

pub fn doorbell_space() -> Doorbell {
    Doorbell { request: Request::ShowSpace, locks: Vec::new(), ..doorbell() }
}

pub fn lock() -> Lock {
    Lock {
        mode: LockMode::Exclusive,
        object: LockObject::Descriptor,
        holder: Some(Holder { slot: SlotNo(0), incarnation: Incarnation(6) }),
        generation: Version { birth: 2, count: 17 },
        nonce: 0x8877_6655_4433_2211,
        stamp: Stamp { version: Version { birth: 2, count: 40 }, checksum: 0xdead_beef },
        giver: Some(SlotNo(0)),
        payload: 12,
    }
}

pub fn cluster() -> Cluster {
    let mut cluster = Cluster::new(3, 2048);
    cluster.version = Version { birth: 1, count: 5 };
    cluster.owner = BlockNo(8192);
    cluster.bitmap.set_run(2, 100, true);
    cluster.bitmap.set_run(2047, 1, true);
    cluster
}

pub fn directory() -> Descriptor {
    let value = EntryValue { addr: BlockNo(2060), birth: 9, kind: FileKind::File };
    let entries = Node {
        level: 0,
        entries: vec![
            (b"\x01\0\0\0\0\0\0\0a".to_vec(), value.encode().to_vec()),
            (b"\x01\0\0\0\0\0\0\0b".to_vec(), value.encode().to_vec()),
        ],
    };
    Descriptor {
        version: Version { birth: 4, count: 2 },
        owner: BlockNo(2050),
        kind: FileKind::Directory,
        mode: 0o1755,
        uid: 1000,
        gid: 1001,
        nlink: 2,
        rdev: 0,
        size: 2,
        blocks: 0,
        atime: Timestamp { seconds: 1_700_000_000, nanos: 999_999_999 },
        mtime: Timestamp { seconds: -1, nanos: 1 },
        ctime: Timestamp { seconds: 1_700_000_001, nanos: 2 },
        btime: Timestamp { seconds: 1_600_000_000, nanos: 0 },
        parent: BlockNo(2050),
        parent_birth: 4,
        top: None,
        user: None,
        layer: Layer::default(),
        content: Content::Tree(Tree::Inline(entries)),
        xattrs: Tree::Root(BlockNo(3000)),
    }
}

pub fn symlink() -> Descriptor {
    let xattrs = Node { level: 0, entries: vec![(b"user.a\0\0".to_vec(), b"value".to_vec())] };
    Descriptor {
        kind: FileKind::Symlink,
        mode: 0o777,
        nlink: 1,
        size: 9,
        content: Content::Bytes(b"../target".to_vec()),
        xattrs: Tree::Inline(xattrs),
        ..directory()
    }
}

pub fn snapshot() -> Snapshot {
    Snapshot {
        layer: LayerRef { addr: BlockNo(2070), birth: 11 },
        size: 1 << 41,
        created: Timestamp { seconds: 1_700_000_002, nanos: 3 },
    }
}

pub fn disk() -> Descriptor {
    let entries = vec![(b"before".to_vec(), snapshot().encode().to_vec())];
    Descriptor {
        kind: FileKind::File,
        mode: 0o600,
        nlink: 1,
        size: 0,
        parent: BlockNo(0),
        parent_birth: 0,
        top: Some(LayerRef { addr: BlockNo(2072), birth: 12 }),
        user: Some(Holder { slot: SlotNo(5), incarnation: Incarnation(6) }),
        content: Content::Tree(Tree::Inline(Node { level: 0, entries })),
        xattrs: Tree::Empty,
        ..directory()
    }
}

pub fn layer() -> Descriptor {
    Descriptor {
        kind: FileKind::Layer,
        mode: 0,
        nlink: 0,
        size: 1 << 41,
        blocks: 65,
        parent: BlockNo(0),
        parent_birth: 0,
        layer: Layer {
            frozen: true,
            below: Some(LayerRef { addr: BlockNo(2064), birth: 8 }),
            visible: 1 << 40,
            children: 1,
            names: 1,
            children_addresses: 2072,
            children_births: 12,
            depth: 3,
        },
        content: Content::Tree(Tree::Root(BlockNo(7000))),
        xattrs: Tree::Empty,
        ..directory()
    }
}

pub fn leaf() -> NodeBlock {
    let entry = MapEntry { block: Some(BlockNo(70_000)), zero: true, grains: 64, mask: u64::MAX };
    let entry = |key: u64| (key.to_be_bytes().to_vec(), entry.encode().to_vec());
    NodeBlock {
        version: Version { birth: 6, count: 1 },
        owner: BlockNo(2050),
        node: Node { level: 0, entries: [0, 1, 5, 1 << 40].map(entry).to_vec() },
    }
}

pub fn inner() -> NodeBlock {
    let child = |block: u64| block.to_le_bytes().to_vec();
    let entries = vec![(Vec::new(), child(2100)), (7u64.to_be_bytes().to_vec(), child(2101))];
    NodeBlock { node: Node { level: 1, entries }, ..leaf() }
}

pub fn journal_header() -> JournalHeader {
    JournalHeader {
        slot: SlotNo(7),
        incarnation: Incarnation(3),
        version: Version { birth: 3, count: 8 },
        tail_sequence: 500,
        tail_position: 77,
        previous: 0x00c0_ffee_00c0_ffee,
    }
}

pub fn record_head() -> RecordHead {
    RecordHead {
        slot: SlotNo(7),
        incarnation: Incarnation(3),
        sequence: 501,
        head_index: 0,
        head_count: 1,
        image_count: 1,
        previous: 0x00c0_ffee_00c0_ffee,
        durable: 499,
        entries: vec![
            RecordEntry::Image {
                block: BlockNo(2051),
                lock: BlockNo(2050),
                lock_generation: Version { birth: 4, count: 9 },
                version: Version { birth: 4, count: 3 },
                checksum: 0x1234_5678,
            },
            RecordEntry::Revoke { block: BlockNo(2100) },
        ],
    }
}

pub fn map_entry() -> MapEntry {
    MapEntry { block: Some(BlockNo((1 << 40) - 1)), zero: true, grains: 48, mask: 0xffff_0000 }
}

pub fn entry_value() -> EntryValue {
    EntryValue { addr: BlockNo(2060), birth: 9, kind: FileKind::BlockDevice }
}
