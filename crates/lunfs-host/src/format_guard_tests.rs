//! The guard on made-up and on real sources.

use std::os::unix::fs::FileExt;
use std::process::Command;

use lunfs_format::{BlockNo, Geometry, Sizes, VolumeId};

use super::*;
use crate::scratch::{LoopDevice, Scratch};

const SIZE: u64 = 64 << 20;

fn with_bytes(at: usize, bytes: &[u8]) -> Option<String> {
    let scratch = Scratch::image("guard", SIZE);
    scratch.open().write_all_at(bytes, at as u64).unwrap();
    what_is_there(scratch.path()).unwrap()
}

fn superblock() -> Superblock {
    crate::scratch::superblock(
        VolumeId([7; 16]),
        Geometry::plan(1 << 30, 512, Sizes::default()).unwrap(),
    )
}

#[test]
fn only_zeroes_are_free() {
    assert_eq!(with_bytes(0, &[0]), None);
    let tiny = Scratch::image("tiny", 10);
    assert_eq!(what_is_there(tiny.path()).unwrap(), None);
}

/// It looked at the first and last few MiB, and overwrote what lay between them.
#[test]
fn an_image_is_looked_at_all_over() {
    for at in [0, 1, (4 << 20) - 1, 8 << 20, 40 << 20, SIZE as usize - 1] {
        let found = with_bytes(at, &[1]).expect("it holds data");
        assert_eq!(found, format!("unknown data: byte {at} is not zero"));
    }
    // A rest that is no whole block, too.
    let tiny = Scratch::image("letter", 6);
    tiny.open().write_all_at(b"hello\n", 0).unwrap();
    assert!(what_is_there(tiny.path()).unwrap().unwrap().contains("byte 0"));
}

/// Somebody wrote them: without reading them all nobody knows that they are empty.
#[test]
fn zeroes_that_were_written_are_data_if_there_are_too_many_to_read() {
    let scratch = Scratch::image("zeroes", 2 * WRITTEN_MAX);
    let image = scratch.open();
    let zeroes = vec![0; WRITTEN_MAX as usize];
    image.write_all_at(&zeroes, 4096).unwrap();
    assert_eq!(what_is_there(scratch.path()).unwrap(), None);
    image.write_all_at(&zeroes[..4096], 4096 + WRITTEN_MAX).unwrap();
    let found = what_is_there(scratch.path()).unwrap().unwrap();
    assert!(found.starts_with("more than 64 MiB that were written"), "{found}");
}

#[test]
fn a_device_is_looked_at_in_many_places() {
    let scratch = Scratch::image("device", 4 * SIZE);
    let Some(device) = LoopDevice::attach(scratch.path(), 512) else { return };
    assert_eq!(what_is_there(&device.node).unwrap(), None);
    let size = 4 * SIZE;
    let places: Vec<u64> = places(size).collect();
    assert_eq!(places.len(), 256);
    assert!(places.iter().all(|at| *at >= END && at + PLACE as u64 <= size - END));
    assert!(places.is_sorted() && places[255] > size - END - (2 << 20));
    for at in [END - 1, places[0] + 5, places[128], places[255] + 7, size - END, size - 1] {
        // Through the device: it is read there without a cache.
        let node = OpenOptions::new().write(true).open(&device.node).unwrap();
        node.write_all_at(&[1], at).unwrap();
        node.sync_all().unwrap();
        let found = what_is_there(&device.node).unwrap().expect("it holds data");
        assert_eq!(found, format!("unknown data: byte {at} is not zero"));
        node.write_all_at(&[0], at).unwrap();
        node.sync_all().unwrap();
    }
    assert_eq!(places_of_small_devices(), 0);
}

fn places_of_small_devices() -> usize {
    [0, 1, END, 2 * END, 2 * END + PLACE as u64].into_iter().map(|size| places(size).count()).sum()
}

#[test]
fn every_signature_is_recognised_at_every_place() {
    for signature in SIGNATURES {
        for at in [signature.places[0], *signature.places.last().unwrap()] {
            assert_eq!(with_bytes(at, signature.bytes).as_deref(), Some(signature.name));
        }
    }
}

#[test]
fn backups_at_the_end_are_recognised() {
    assert!(with_bytes(SIZE as usize - 512, b"EFI PART").unwrap().contains("GPT"));
    assert!(with_bytes(SIZE as usize - 8192, b"\xfc\x4e\x2b\xa9").unwrap().contains("RAID"));
    assert!(with_bytes(SIZE as usize - 65536, b"\xfc\x4e\x2b\xa9").unwrap().contains("RAID"));
}

#[test]
fn a_lunfs_volume_is_named_by_its_label_even_from_its_second_copy() {
    for at in SUPERBLOCK_COPIES {
        let bytes = superblock().encode(at);
        let found = with_bytes(at.offset() as usize, bytes.as_slice()).unwrap();
        assert!(found.contains("\"ds1\""), "{found}");
    }
    let mut bytes = superblock().encode(BlockNo(0));
    bytes[100] ^= 1;
    assert_eq!(with_bytes(0, bytes.as_slice()).unwrap(), "a damaged lunfs volume");
}

#[test]
fn a_host_that_has_it_mounted_is_seen() {
    let scratch = Scratch::image("mounted", SIZE);
    let host = scratch.open();
    assert!(ofd::try_lock(&host, ofd::LIFE_BASE + 17).unwrap());
    let found = what_is_there(scratch.path()).unwrap().unwrap();
    assert!(found.contains("slot 17"), "{found}");
    drop(host);
    assert_eq!(what_is_there(scratch.path()).unwrap(), None);
}

#[test]
fn an_image_behind_a_loop_device_is_in_use() {
    let scratch = Scratch::image("looped", SIZE);
    let Some(device) = LoopDevice::attach(scratch.path(), 512) else { return };
    assert!(what_is_there(scratch.path()).unwrap().unwrap().contains("loop device"));
    assert_eq!(what_is_there(&device.node).unwrap(), None, "the device itself is free");
}

#[test]
fn a_mounted_device_is_in_use() {
    let scratch = Scratch::image("ext4", SIZE);
    let made = Command::new("mkfs.ext4").args(["-q", "-F"]).arg(scratch.path()).status();
    if !made.is_ok_and(|status| status.success()) {
        eprintln!("skipped: there is no mkfs.ext4");
        return;
    }
    assert!(what_is_there(scratch.path()).unwrap().unwrap().contains("ext4"));
    let Some(device) = LoopDevice::attach(scratch.path(), 512) else { return };
    let point = scratch.path().with_extension("mnt");
    fs::create_dir(&point).unwrap();
    let mounted = Command::new("mount").arg(&device.node).arg(&point).status().unwrap();
    assert!(mounted.success());
    let found = in_use(&device.node);
    Command::new("umount").arg(&point).status().unwrap();
    fs::remove_dir(&point).unwrap();
    assert!(found.unwrap().unwrap().contains("mounted at"));
}

#[test]
fn hosts_on_an_image_are_seen_from_its_loop_device() {
    let scratch = Scratch::image("beneath", SIZE);
    let Some(device) = LoopDevice::attach(scratch.path(), 512) else { return };
    let host = scratch.open();
    assert!(ofd::try_lock(&host, ofd::LIFE_BASE + 2).unwrap());
    assert!(foreign_user(&device.node).unwrap().unwrap().contains("slot 2"));
    drop(host);
    assert_eq!(foreign_user(&device.node).unwrap(), None);

    // A host on the device itself is no foreigner.
    let source = Source::open(&device.node, Access::ReadWrite).unwrap();
    assert!(ofd::try_lock(&source, ofd::LIFE_BASE).unwrap());
    assert_eq!(foreign_user(&device.node).unwrap(), None);
    assert!(in_use(&device.node).unwrap().unwrap().contains("slot 0"));
    // On a second loop device of the same image it is one.
    let Some(twin) = LoopDevice::attach(scratch.path(), 512) else { return };
    assert!(foreign_user(&twin.node).unwrap().unwrap().contains("slot 0"));
}
