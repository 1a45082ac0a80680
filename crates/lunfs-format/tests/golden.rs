//! The bytes of each structure are those of the golden images: a change of the format cannot
//! happen by accident. `LUNFS_BLESS=1` writes the images anew.

mod samples;

use std::path::PathBuf;

use lunfs_format::*;
use samples::VOLUME;

const AT: BlockNo = BlockNo(2051);

fn is_golden(name: &str, bytes: &[u8]) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("tests/golden/{name}.bin"));
    if std::env::var_os("LUNFS_BLESS").is_some() {
        std::fs::write(&path, bytes).expect("the golden image is writable");
    }
    let golden = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let difference = golden.iter().zip(bytes).position(|(golden, new)| golden != new);
    assert_eq!(difference, None, "{name}: first byte that differs");
    assert_eq!(golden.len(), bytes.len(), "{name}: length");
}

#[test]
fn a_superblock_is_golden() {
    for (name, at) in ["superblock", "superblock_second"].iter().zip(SUPERBLOCK_COPIES) {
        is_golden(name, samples::superblock().encode(at).as_slice());
    }
}

#[test]
fn a_pulse_is_golden() {
    is_golden("pulse", samples::pulse().encode(VOLUME).as_slice());
    let free = Pulse::free(SlotNo(7), Incarnation(3), 42);
    is_golden("pulse_free", free.encode(VOLUME).as_slice());
}

#[test]
fn a_doorbell_is_golden() {
    is_golden("doorbell", samples::doorbell().encode(VOLUME, SlotNo(7), 6).as_slice());
    let space = samples::doorbell_space().encode(VOLUME, SlotNo(7), 6);
    is_golden("doorbell_space", space.as_slice());
    is_golden("doorbell_empty", Doorbell::empty(42).encode(VOLUME, SlotNo(7), 0).as_slice());
}

#[test]
fn a_lock_is_golden() {
    is_golden("lock", samples::lock().encode(VOLUME, AT).as_slice());
}

#[test]
fn a_cluster_is_golden() {
    is_golden("cluster", samples::cluster().encode(VOLUME, AT).as_slice());
}

#[test]
fn a_descriptor_is_golden() {
    is_golden("directory", samples::directory().encode(VOLUME, AT).as_slice());
    is_golden("symlink", samples::symlink().encode(VOLUME, AT).as_slice());
    is_golden("disk", samples::disk().encode(VOLUME, AT).as_slice());
    is_golden("layer", samples::layer().encode(VOLUME, AT).as_slice());
}

#[test]
fn a_snapshot_is_golden() {
    is_golden("snapshot", samples::snapshot().encode().as_slice());
}

#[test]
fn a_node_is_golden() {
    is_golden("leaf", samples::leaf().encode(VOLUME, AT).as_slice());
    is_golden("inner", samples::inner().encode(VOLUME, AT).as_slice());
}

#[test]
fn a_journal_is_golden() {
    is_golden("journal_header", samples::journal_header().encode(VOLUME, AT).as_slice());
    is_golden("journal_record", samples::record_head().encode(VOLUME, AT).as_slice());
}

#[test]
fn the_values_of_trees_are_golden() {
    is_golden("map_entry", &samples::map_entry().encode());
    is_golden("entry_value", &samples::entry_value().encode());
}
