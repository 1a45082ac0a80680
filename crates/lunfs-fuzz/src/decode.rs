//! One target per decoder.
//!
//! The first byte of an input says whether the rest is taken as it is, or dressed: given the header
//! and the checksum that the decoder looks for, so that it reaches the fields.
//!
//! What must hold: no bytes make a decoder panic, and what it accepts is what the encoder writes,
//! byte for byte: one value has one image.

use lunfs_format::{
    BLOCK, BlockNo, Cluster, Descriptor, Doorbell, EntryValue, JournalHeader, Lock, MapEntry,
    NodeBlock, Pulse, RECORD, RecordHead, SlotNo, Superblock, VolumeId, kind, kind_of, peek_header,
};

use crate::seal::dress;

const VOLUME: VolumeId = VolumeId(*b"sample volume 01");
/// Where the golden images lie, as tests/golden.rs of lunfs-format has it.
const AT: BlockNo = BlockNo(2051);
const SLOT: SlotNo = SlotNo(7);
const ENTRY: u32 = 6;
/// Addresses in the heartbeat region: eight records a slot, the pulse first.
const PULSE_ADDRESS: u64 = 7 * 8;
const BELL_ADDRESS: u64 = PULSE_ADDRESS + 1 + ENTRY as u64;

macro_rules! golden {
    ($($name:literal),*) => {
        vec![$(with_mode(include_bytes!(concat!(
            "../../lunfs-format/tests/golden/", $name, ".bin"
        )))),*]
    };
}

fn with_mode(image: &[u8]) -> Vec<u8> {
    [&[1], image].concat()
}

/// The bytes to decode: exactly `len` if they are dressed.
fn dressed(input: &[u8], len: usize, kind: u16, address: u64) -> Vec<u8> {
    let Some((mode, rest)) = input.split_first() else { return Vec::new() };
    let mut bytes = rest.to_vec();
    if mode & 1 == 1 {
        bytes.resize(len, 0);
        dress(&mut bytes, kind, VOLUME.0, address);
    }
    bytes
}

/// A record may come with the rest of its logical block.
fn is_same(found: &[u8], written: &[u8]) {
    assert!(found.starts_with(written), "what was accepted is not what is written");
    assert!(found[written.len()..].iter().all(|byte| *byte == 0));
}

pub fn header(input: &[u8]) {
    for (kind, len) in [(kind::NODE, BLOCK), (kind::LOCK, RECORD)] {
        let bytes = dressed(input, len, kind, AT.0);
        if let Ok(header) = peek_header(&bytes) {
            assert_eq!(kind_of(&bytes), Some(header.kind));
        }
    }
}

pub fn header_seeds() -> Vec<Vec<u8>> {
    golden!("leaf", "lock")
}

pub fn superblock(input: &[u8]) {
    let bytes = dressed(input, BLOCK, kind::SUPERBLOCK, 0);
    if let Ok(value) = Superblock::decode(&bytes, BlockNo(0)) {
        let geometry = value.geometry();
        assert!(geometry.cluster_of(value.root).is_some());
        let end = geometry.cluster_start(geometry.cluster_count);
        assert!(end.0 <= geometry.volume_blocks, "a cluster ends behind the volume");
        is_same(&bytes, &value.encode(BlockNo(0))[..]);
    }
}

pub fn superblock_seeds() -> Vec<Vec<u8>> {
    golden!("superblock")
}

pub fn pulse(input: &[u8]) {
    let bytes = dressed(input, RECORD, kind::PULSE, PULSE_ADDRESS);
    if let Ok(value) = Pulse::decode(&bytes, VOLUME, SLOT) {
        is_same(&bytes, &value.encode(VOLUME)[..]);
    }
}

pub fn pulse_seeds() -> Vec<Vec<u8>> {
    golden!("pulse", "pulse_free")
}

pub fn doorbell(input: &[u8]) {
    let bytes = dressed(input, RECORD, kind::DOORBELL, BELL_ADDRESS);
    if let Ok(value) = Doorbell::decode(&bytes, VOLUME, SLOT, ENTRY) {
        is_same(&bytes, &value.encode(VOLUME, SLOT, ENTRY)[..]);
    }
}

pub fn doorbell_seeds() -> Vec<Vec<u8>> {
    golden!("doorbell", "doorbell_space", "doorbell_empty")
}

pub fn lock(input: &[u8]) {
    let bytes = dressed(input, RECORD, kind::LOCK, AT.0);
    if let Ok(value) = Lock::decode(&bytes, VOLUME, AT) {
        is_same(&bytes, &value.encode(VOLUME, AT)[..]);
    }
}

pub fn lock_seeds() -> Vec<Vec<u8>> {
    golden!("lock")
}

pub fn cluster(input: &[u8]) {
    let bytes = dressed(input, BLOCK, kind::CLUSTER, AT.0);
    if let Ok(value) = Cluster::decode(&bytes, VOLUME, AT) {
        is_same(&bytes, &value.encode(VOLUME, AT)[..]);
    }
}

pub fn cluster_seeds() -> Vec<Vec<u8>> {
    golden!("cluster")
}

pub fn descriptor(input: &[u8]) {
    let bytes = dressed(input, BLOCK, kind::DESCRIPTOR, AT.0);
    if let Ok(value) = Descriptor::decode(&bytes, VOLUME, AT) {
        is_same(&bytes, &value.encode(VOLUME, AT)[..]);
    }
}

pub fn descriptor_seeds() -> Vec<Vec<u8>> {
    golden!("directory", "symlink")
}

pub fn node(input: &[u8]) {
    let bytes = dressed(input, BLOCK, kind::NODE, AT.0);
    if let Ok(value) = NodeBlock::decode(&bytes, VOLUME, AT) {
        is_same(&bytes, &value.encode(VOLUME, AT)[..]);
    }
}

pub fn node_seeds() -> Vec<Vec<u8>> {
    golden!("leaf", "inner")
}

pub fn journal_header(input: &[u8]) {
    let bytes = dressed(input, BLOCK, kind::JOURNAL_HEADER, AT.0);
    if let Ok(value) = JournalHeader::decode(&bytes, VOLUME, AT) {
        is_same(&bytes, &value.encode(VOLUME, AT)[..]);
    }
}

pub fn tail_seeds() -> Vec<Vec<u8>> {
    golden!("journal_header")
}

pub fn journal_record(input: &[u8]) {
    let bytes = dressed(input, BLOCK, kind::JOURNAL_RECORD, AT.0);
    if let Ok(value) = RecordHead::decode(&bytes, VOLUME, AT) {
        is_same(&bytes, &value.encode(VOLUME, AT)[..]);
    }
}

pub fn record_seeds() -> Vec<Vec<u8>> {
    golden!("journal_record")
}

pub fn map_entry(input: &[u8]) {
    if let Ok(value) = MapEntry::decode(input) {
        assert_eq!(value.encode(), input);
    }
}

pub fn map_entry_seeds() -> Vec<Vec<u8>> {
    vec![include_bytes!("../../lunfs-format/tests/golden/map_entry.bin").to_vec()]
}

pub fn entry_value(input: &[u8]) {
    if let Ok(value) = EntryValue::decode(input) {
        assert_eq!(value.encode(), input);
    }
}

pub fn entry_value_seeds() -> Vec<Vec<u8>> {
    vec![include_bytes!("../../lunfs-format/tests/golden/entry_value.bin").to_vec()]
}
