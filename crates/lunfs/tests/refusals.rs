//! What `lunfs mount` refuses, and what it says of storage that it cannot use. Each test needs root
//! and /dev/fuse, and says so where it has neither.

mod stage;

use std::fs::{self, File};
use std::io::Write as _;
use std::process::Command;

use stage::{Mounted, Place, told};

#[test]
fn a_dead_mount_is_called_by_its_name() {
    let Some(place) = Place::new("dead") else { return };
    let mut a = place.mount("a");
    a.kill();
    let said = place.refused(&["mount", "volume.img", "a"]);
    assert!(said.contains("a dead mount is at a; run `lunfs unmount a`"), "{said}");
    assert!(place.lunfs(&["unmount", "a"]).status.success());
    let said = place.refused(&["mount", "volume.img", "volume.img"]);
    assert!(said.contains("not a directory"), "{said}");
}

#[test]
fn a_log_below_the_mount_point_is_refused() {
    let Some(place) = Place::new("log-below") else { return };
    fs::create_dir_all(place.0.join("a/logs")).expect("a mount point");
    for log in ["a/log", "a/logs/log"] {
        let said = place.refused(&["mount", "--nonempty", "--log", log, "volume.img", "a"]);
        assert!(said.contains("lies below the mount point a"), "{said}");
        assert!(!place.0.join(log).exists());
    }
}

#[test]
fn storage_that_cannot_be_written_is_said_to_be_needed_writable() {
    let Some(place) = Place::new("unwritable") else { return };
    for dir in ["a", "shown"] {
        fs::create_dir(place.0.join(dir)).expect("a directory");
    }
    let here = place.0.to_str().expect("UTF-8");
    let shown = Mounted::at(place.0.join("shown"), &["--bind", here]);
    let made = Command::new("mount").args(["-o", "remount,bind,ro"]).arg(&shown.0).status();
    assert!(made.expect("mount starts").success());
    let said = place.refused(&["mount", "--read-only", "shown/volume.img", "a"]);
    assert!(said.contains("must be writable, with --read-only too"), "{said}");
}

/// The image is sparse, and what it lies on is full before it is.
#[test]
fn full_storage_below_is_told_and_loses_nothing() {
    let Some(place) = Place::new("full") else { return };
    let ext4 = place.0.join("ext4.img");
    File::create(&ext4).and_then(|file| file.set_len(48 << 20)).expect("a disk");
    if !Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&ext4).status().is_ok_and(|s| s.success())
    {
        eprintln!("skipped: mkfs.ext4 is needed");
        return;
    }
    fs::create_dir(place.0.join("low")).expect("a mount point");
    let low = Mounted::at(place.0.join("low"), &["-o", "loop", ext4.to_str().expect("UTF-8")]);
    fs::create_dir(place.0.join("a")).expect("a mount point");
    let made = place.lunfs(&["format", "--size", "1G", "low/v.img"]);
    assert!(made.status.success());
    let said = told(&made);
    assert!(said.contains("sparse") && said.contains("1 GiB"), "a warning: {said}");

    let mut fill = File::create(low.0.join("fill")).expect("a file");
    for piece in [&[1; 1 << 16][..], &[1; 4096]] {
        while fill.write_all(piece).and_then(|()| fill.sync_data()).is_ok() {}
    }
    let log = place.0.join("log");
    let log = log.to_str().expect("UTF-8");
    let mount = ["mount", "--host", "a", "--log", log, "low/v.img", "a"];
    let said = place.refused(&mount);
    assert!(said.contains("the storage below the volume is full"), "{said}");
    assert!(said.contains("mount again"), "{said}");

    drop(fill);
    fs::remove_file(low.0.join("fill")).expect("room");
    let mounted = place.lunfs(&mount);
    assert!(mounted.status.success(), "{}", told(&mounted));
    assert!(place.lunfs(&["unmount", "a"]).status.success());
}
