//! Disks, snapshots and clones, on two hosts. Each test needs root and /dev/fuse, and says so where
//! it has neither.

mod stage;

use std::fs::{self, File};
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::process::{Command, Stdio};

use rustix::fs::{FallocateFlags, SeekFrom, fallocate, seek};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use stage::{Place, told, wait_until};

const MIB: u64 = 1 << 20;

/// What a command that must work prints.
fn good(place: &Place, arguments: &[&str]) -> String {
    let output = place.lunfs(arguments);
    assert!(output.status.success(), "{arguments:?}: {}", told(&output));
    String::from_utf8(output.stdout).expect("UTF-8")
}

fn json(place: &Place, arguments: &[&str]) -> Value {
    let said = good(place, &[arguments, &["--json"]].concat());
    serde_json::from_str(&said).expect("JSON")
}

/// Bytes that are nowhere zero, and differ from those of another `seed`.
fn bytes(len: u64, seed: u8) -> Vec<u8> {
    (0..len).map(|at| u8::try_from(at % 241).expect("small") + seed).collect()
}

fn open(place: &Place, path: &str) -> File {
    File::options().read(true).write(true).open(place.0.join(path)).expect("it can be opened")
}

fn read(place: &Place, path: &str) -> Vec<u8> {
    fs::read(place.0.join(path)).expect("it can be read")
}

/// Nobody may use it any more: that is told to others a moment after the last close.
fn wait_until_left(place: &Place, path: &str) {
    wait_until("the end of its use", || fs::read(place.0.join(path)).is_ok());
}

#[test]
fn a_clone_on_another_host_begins_with_the_snapshot() {
    let Some(place) = Place::new("disk-clone") else { return };
    let (_a, _b) = (place.mount("a"), place.mount("b"));
    good(&place, &["disk", "create", "a/vm.raw", "--size", "8M"]);
    let (first, second) = (bytes(3 * MIB, 1), bytes(2 * MIB, 9));
    let disk = open(&place, "a/vm.raw");
    disk.write_all_at(&first, MIB).expect("a write");
    // The machine runs on, and nothing of it was synced.
    let said = good(&place, &["snapshot", "create", "a/vm.raw@monday"]);
    assert_eq!(said, "a/vm.raw@monday keeps a/vm.raw as it is now\n");
    disk.write_all_at(&second, MIB / 2).expect("a write");

    let said = good(&place, &["clone", "b/vm.raw@monday", "b/clone.raw"]);
    assert_eq!(said, "b/clone.raw begins as b/vm.raw@monday\n");
    let mut old = vec![0; 8 << 20];
    old[1 << 20..4 << 20].copy_from_slice(&first);
    let mut new = old.clone();
    new[1 << 19..5 << 19].copy_from_slice(&second);
    assert!(read(&place, "b/clone.raw") == old, "the other host has what was frozen");
    assert!(read(&place, "a/vm.raw") == new);
    open(&place, "b/clone.raw").write_all_at(b"mine", 0).expect("a write");
    assert!(read(&place, "a/vm.raw") == new, "and each goes its own way");

    let snapshots = json(&place, &["snapshot", "list", "b/vm.raw"]);
    let monday = &snapshots["snapshots"][0];
    assert_eq!((&monday["name"], &monday["size"]), (&"monday".into(), &(8 * MIB).into()));
    let created = monday["created"].as_str().expect("a time");
    assert!(
        created.len() == 24 && created.starts_with("20") && created.ends_with('Z'),
        "{created}"
    );
    let about = json(&place, &["disk", "info", "a/vm.raw"]);
    assert_eq!(about["snapshots"], snapshots["snapshots"]);
    assert_eq!(about["size"], 8 * MIB);
    assert_eq!(about["path"], place.0.join("a/vm.raw").to_str().expect("UTF-8"));
    let said = good(&place, &["disk", "info", "a/vm.raw"]);
    assert!(said.contains("size          8 MiB\n") && said.contains("  monday\n"), "{said}");

    drop(disk);
    wait_until_left(&place, "b/vm.raw");
    good(&place, &["snapshot", "delete", "b/vm.raw@monday"]);
    assert!(json(&place, &["snapshot", "list", "a/vm.raw"])["snapshots"] == Value::Array(vec![]));
    old[..4].copy_from_slice(b"mine");
    assert!(read(&place, "a/clone.raw") == old, "a clone does not need the name");
    let cloned = json(&place, &["clone", "a/clone.raw", "a/now.raw"]);
    assert_eq!(cloned["size"], 8 * MIB);
    assert!(read(&place, "b/now.raw") == old, "without a name it begins as it is now");
    good(&place, &["snapshot", "create", "a/vm.raw@one"]);
    good(&place, &["snapshot", "create", "a/vm.raw@two"]);
    let said = good(&place, &["disk", "delete", "b/vm.raw"]);
    assert_eq!(said, "b/vm.raw is deleted, with its 2 snapshots\n");
    for disk in ["a/clone.raw", "b/now.raw"] {
        assert_eq!(good(&place, &["disk", "delete", disk]), format!("{disk} is deleted\n"));
    }
    assert_eq!(json(&place, &["disk", "list", "a"])["disks"], Value::Array(vec![]));
    for host in ["a", "b"] {
        good(&place, &["unmount", host]);
    }
    assert!(good(&place, &["check", "volume.img"]).ends_with("clean\n"));
}

#[test]
fn a_disk_is_a_file_on_the_mount() {
    let Some(place) = Place::new("disk-file") else { return };
    let (_a, _b) = (place.mount("a"), place.mount("b"));
    good(&place, &["disk", "create", "a/d", "--size", "4M"]);
    let about = fs::metadata(place.0.join("b/d")).expect("it is there");
    assert!(about.is_file());
    assert_eq!((about.len(), about.blocks(), about.mode() & 0o7777), (4 * MIB, 0, 0o600));
    let disk = open(&place, "a/d");
    disk.write_all_at(&bytes(MIB, 1), MIB).expect("a write");
    let blocks = || disk.metadata().expect("it is open").blocks();
    assert!(blocks() >= MIB / 512);
    assert_eq!(seek(&disk, SeekFrom::Data(0)), Ok(MIB));
    assert_eq!(seek(&disk, SeekFrom::Hole(MIB)), Ok(2 * MIB));
    good(&place, &["snapshot", "create", "a/d@s"]);
    assert_eq!(blocks(), 0, "nothing is its own yet");
    assert_eq!(seek(&disk, SeekFrom::Data(0)), Ok(MIB), "what shows from below is data");

    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    fallocate(&disk, punch, MIB, MIB / 2).expect("a hole");
    let mut expected = vec![0; 4 << 20];
    expected[3 << 19..2 << 20].copy_from_slice(&bytes(MIB, 1)[1 << 19..]);
    assert!(read(&place, "a/d") == expected, "the hole hides what is below");
    fallocate(&disk, FallocateFlags::KEEP_SIZE, 0, 4 * MIB).expect("space");
    assert!(read(&place, "a/d") == expected, "and space changes nothing");
    disk.set_len(3 * MIB / 2).and_then(|()| disk.set_len(4 * MIB)).expect("cut and grown");
    assert!(read(&place, "a/d").iter().all(|byte| *byte == 0), "the cut is for good");
    disk.sync_all().expect("durable");

    fs::rename(place.0.join("a/d"), place.0.join("a/e")).expect("another name");
    fs::hard_link(place.0.join("a/e"), place.0.join("a/f")).expect("one more");
    let said = good(&place, &["disk", "delete", "a/e"]);
    assert_eq!(said, "a/e is deleted; the disk has another name and stays\n");
    fs::remove_file(place.0.join("a/f")).expect("the last name");
    disk.write_all_at(b"open", 0).expect("an open file stays usable");
    let mut seen = [0; 4];
    disk.read_exact_at(&mut seen, 0).expect("a read");
    assert_eq!(&seen, b"open");
}

#[test]
fn a_disk_belongs_to_the_host_that_uses_it() {
    let Some(place) = Place::new("disk-busy") else { return };
    let (mut a, _b) = (place.mount("a"), place.mount("b"));
    good(&place, &["disk", "create", "a/d", "--size", "4M"]);
    good(&place, &["disk", "create", "a/other", "--size", "4M"]);
    good(&place, &["snapshot", "create", "b/d@before"]);
    let disk = open(&place, "a/d");
    disk.write_all_at(b"mine", 0).expect("the first I/O");

    let busy = |result: std::io::Result<()>| {
        assert_eq!(result.expect_err("it is in use").kind(), ErrorKind::ResourceBusy);
    };
    let other = open(&place, "b/d");
    busy(other.read_exact_at(&mut [0; 4], 0));
    busy(other.write_all_at(b"no", 0));
    busy(other.set_len(MIB));
    busy(fallocate(&other, FallocateFlags::KEEP_SIZE, 0, MIB).map_err(Into::into));
    busy(fs::remove_file(place.0.join("b/d")));
    busy(fs::rename(place.0.join("b/other"), place.0.join("b/d")));
    for refused in [
        &["snapshot", "create", "b/d@now"][..],
        &["clone", "b/d", "b/c"],
        &["disk", "resize", "b/d", "8M"],
        &["disk", "delete", "b/d"],
    ] {
        let said = place.refused(refused);
        let slot = stage::slot_of(&place, "a");
        assert!(
            said.contains(&format!("b/d: the disk is in use on the host in slot {slot}")),
            "{said}"
        );
        assert!(said.contains("nothing was done") && said.contains("`lunfs hosts "), "{said}");
    }
    good(&place, &["clone", "b/d@before", "b/c"]);
    assert_eq!(json(&place, &["disk", "info", "b/d"])["size"], 4 * MIB, "it can be looked at");
    disk.write_all_at(b"still", 0).expect("it goes on");
    good(&place, &["snapshot", "create", "a/d@while-it-runs"]);

    drop(disk);
    wait_until_left(&place, "b/d");
    other.write_all_at(b"now", 0).expect("the other's turn");
    drop(other);
    // A host that died uses nothing.
    wait_until_left(&place, "a/d");
    let disk = open(&place, "a/d");
    disk.write_all_at(b"again", 0).and_then(|()| disk.sync_all()).expect("durable");
    a.kill();
    assert!(read(&place, "b/d").starts_with(b"again"));
    good(&place, &["disk", "delete", "b/d"]);
}

#[test]
fn a_disk_changes_its_size() {
    let Some(place) = Place::new("disk-resize") else { return };
    let _a = place.mount("a");
    good(&place, &["disk", "create", "a/d", "--size", "4M"]);
    open(&place, "a/d").write_all_at(&bytes(4 * MIB, 1), 0).expect("a write");
    good(&place, &["snapshot", "create", "a/d@s"]);
    let len = || fs::metadata(place.0.join("a/d")).expect("it is there").len();
    let said = good(&place, &["disk", "resize", "a/d", "+4M"]);
    assert_eq!((said.as_str(), len()), ("a/d has 8 MiB now, it had 4 MiB\n", 8 * MIB));
    let said = place.refused(&["disk", "resize", "a/d", "-6M"]);
    assert!(said.contains("all that lies behind 2 MiB would be lost; nothing was done"), "{said}");
    assert_eq!(len(), 8 * MIB);
    good(&place, &["disk", "resize", "a/d", "-6M", "--shrink"]);
    good(&place, &["disk", "resize", "--shrink", "a/d", "1M"]);
    good(&place, &["disk", "resize", "a/d", "4M"]);
    let mut expected = vec![0; 4 << 20];
    expected[..1 << 20].copy_from_slice(&bytes(MIB, 1));
    assert!(read(&place, "a/d") == expected, "what was cut off does not come back");
    good(&place, &["clone", "a/d@s", "a/c"]);
    assert!(read(&place, "a/c") == bytes(4 * MIB, 1), "and the snapshot has it still");
    for (size, why) in [("-1G", "is no size"), ("+9999P", ""), ("1000", "whole sectors")] {
        let said = place.refused(&["disk", "resize", "a/d", size, "--shrink"]);
        assert!(said.contains(why) && said.contains("nothing was done"), "{said}");
    }
    assert_eq!(len(), 4 * MIB);
}

#[test]
fn a_disk_gets_its_space_when_it_was_asked_for() {
    let Some(place) = Place::new("disk-formats") else { return };
    let _a = place.mount("a");
    let allocated = |format| {
        let path = format!("a/{format}");
        let made = json(&place, &["disk", "create", &path, "--size", "16M", "--format", format]);
        assert_eq!(made, json(&place, &["disk", "info", &path]));
        let file = open(&place, &path);
        let data = seek(&file, SeekFrom::Data(0)).is_ok();
        (made["allocated"].as_u64().expect("a number") / MIB, data)
    };
    assert_eq!(allocated("thin"), (0, false));
    assert_eq!(allocated("lazy"), (16, false));
    assert_eq!(allocated("eager"), (16, true));
    let said = place.refused(&["disk", "create", "a/d", "--size", "1G", "--format", "lazy"]);
    assert!(said.contains("No space left") && said.contains("it was deleted again"), "{said}");
    assert!(!place.0.join("a/d").exists());
}

/// Ctrl-C, too: half a disk would look like a whole one.
#[test]
fn a_signal_leaves_no_half_disk() {
    let Some(place) = Place::new("disk-signal") else { return };
    let _a = place.mount("a");
    let mut command =
        place.command(&["disk", "create", "a/d", "--size", "200M", "--format", "eager"]);
    let mut child = command.stderr(Stdio::piped()).stdout(Stdio::null()).spawn().expect("starts");
    wait_until("the new disk", || place.0.join("a/d").exists());
    kill_process(Pid::from_child(&child), Signal::TERM).expect("it runs");
    wait_until("the end of the command", || child.try_wait().expect("a child").is_some());
    let output = child.wait_with_output().expect("it has ended");
    // Unless it was faster.
    assert_eq!(output.status.success(), place.0.join("a/d").exists(), "{}", told(&output));
    assert!(output.status.code() == Some(0) || told(&output).contains("a signal ended it"));
}

#[test]
fn an_image_becomes_a_disk() {
    let Some(place) = Place::new("disk-import") else { return };
    if Command::new("qemu-img").arg("--version").output().is_err() {
        eprintln!("skipped: qemu-img is needed");
        return;
    }
    let (_a, _b) = (place.mount("a"), place.mount("b"));
    let mut raw = vec![0; 8 << 20];
    raw[1 << 20..2 << 20].copy_from_slice(&bytes(MIB, 1));
    fs::write(place.0.join("image.raw"), &raw).expect("an image");
    for format in ["qcow2", "vmdk"] {
        let image = format!("image.{format}");
        let mut convert = Command::new("qemu-img");
        convert.args(["convert", "-f", "raw", "-O", format, "image.raw", &image]);
        assert!(convert.current_dir(&place.0).status().expect("qemu-img starts").success());
        let disk = format!("a/{format}");
        let made = json(&place, &["disk", "create", &disk, "--from", &image]);
        assert_eq!((&made["size"], &made["allocated"]), (&(8 * MIB).into(), &MIB.into()));
        assert!(read(&place, &format!("b/{format}")) == raw);
    }
    let longer = ["--size", "16M", "--format", "lazy", "--from-format", "raw"];
    let arguments = [&["disk", "create", "a/raw", "--from", "image.raw"][..], &longer].concat();
    let made = json(&place, &arguments);
    assert_eq!(made["size"], 16 * MIB);
    assert!(made["allocated"].as_u64() >= Some(16 * MIB), "{made}");
    assert!(read(&place, "b/raw")[..8 << 20] == raw);

    let said = place.refused(&["disk", "create", "a/d", "--from", "image.raw", "--size", "1M"]);
    assert!(said.contains("the image has 8 MiB, more than 1 MiB; nothing was done"), "{said}");
    let said = place.refused(&["disk", "create", "a/d", "--from", "no.img"]);
    assert!(said.contains("cannot find no.img"), "{said}");
    let other = ["disk", "create", "a/d", "--from", "image.qcow2", "--from-format", "vmdk"];
    let said = place.refused(&other);
    assert!(said.contains("cannot read ") && said.contains("nothing was done"), "{said}");
    let output = Command::new(env!("CARGO_BIN_EXE_lunfs"))
        .args(["disk", "create", "a/d", "--from", "image.raw"])
        .current_dir(&place.0)
        .env("PATH", &place.0)
        .output()
        .expect("lunfs starts");
    assert!(told(&output).contains("qemu-img, which reads "), "{}", told(&output));
    assert!(told(&output).contains("is not installed"), "{}", told(&output));
    assert!(!place.0.join("a/d").exists());
}

#[test]
fn disks_are_listed_wherever_they_lie() {
    let Some(place) = Place::new("disk-list") else { return };
    let (_a, _b) = (place.mount("a"), place.mount("b"));
    fs::create_dir_all(place.0.join("a/deep/er")).expect("directories");
    // More names than fit one answer.
    for at in 0..250 {
        let mut file = File::create(place.0.join(format!("a/deep/{at}"))).expect("a file");
        file.write_all(b"no disk").expect("a write");
    }
    for disk in ["a/top", "a/deep/middle@2", "a/deep/er/low"] {
        good(&place, &["disk", "create", disk, "--size", "1M"]);
    }
    good(&place, &["snapshot", "create", "a/deep/middle@2@s"]);
    good(&place, &["clone", "a/deep/middle@2@s", "a/deep/c"]);
    good(&place, &["clone", "a/deep/middle@2@", "a/deep/d"]);
    let paths = |list: &Value| {
        let disks = list["disks"].as_array().expect("a list").iter();
        let root = format!("{}/", place.0.display());
        let path = |disk: &Value| disk["path"].as_str().expect("a path").replace(&root, "");
        disks.map(path).collect::<Vec<_>>().join(" ")
    };
    let list = json(&place, &["disk", "list", "b"]);
    assert_eq!(paths(&list), "b/deep/c b/deep/d b/deep/er/low b/deep/middle@2 b/top");
    assert_eq!(list["disks"][3]["snapshots"], 1);
    assert_eq!(paths(&json(&place, &["disk", "list", "a/deep/er"])), "a/deep/er/low");
    // Mounts of other tests come and go meanwhile.
    let all = String::from_utf8(place.lunfs(&["disk", "list"]).stdout).expect("UTF-8");
    let has = |path: &str| all.contains(&format!("{}\n", place.0.join(path).display()));
    assert!(has("a/top") && has("b/deep/er/low"), "{all}");
    let said = place.refused(&["disk", "list", "."]);
    assert!(said.contains("not on a mounted lunfs volume"), "{said}");
}

#[test]
fn what_makes_no_sense_is_refused_and_nothing_is_done() {
    let Some(place) = Place::new("disk-refused") else { return };
    let (_a, _b) = (place.mount("a"), place.mount("b"));
    good(&place, &["disk", "create", "a/d", "--size", "1M"]);
    good(&place, &["snapshot", "create", "a/d@s"]);
    fs::write(place.0.join("a/plain"), "mine").expect("a file");
    std::os::unix::fs::symlink("d", place.0.join("a/link")).expect("a link");
    let cases: &[(&[&str], &str)] = &[
        (&["disk", "create", "a/d", "--size", "1M"], "a/d exists; nothing was done"),
        (&["disk", "create", "a/no/d", "--size", "1M"], "cannot find "),
        (&["disk", "create", "d", "--size", "1M"], "is not on a mounted lunfs volume"),
        (&["disk", "create", "a/x", "--size", "0"], "whole sectors of 512 bytes"),
        (&["disk", "create", "a/x", "--size", "1000"], "whole sectors of 512 bytes"),
        (&["disk", "info", "a/plain"], "a/plain is a plain file, not a disk"),
        (&["disk", "list", "a/plain"], "a/plain: it is not a directory"),
        (&["disk", "info", "a"], "a is a directory, not a disk"),
        (&["disk", "delete", "a/plain"], "a/plain is a plain file, not a disk"),
        (&["disk", "delete", "a/link"], "a/link is no file, not a disk"),
        (&["disk", "resize", "a/plain", "1M"], "a/plain is a plain file, not a disk"),
        (&["snapshot", "create", "a/plain@s"], "a/plain is a plain file, not a disk"),
        (&["snapshot", "create", "a/d@s"], "a/d has a snapshot \"s\" already; nothing was done"),
        (&["snapshot", "delete", "a/d@t"], "a/d: the disk has no snapshot \"t\"; nothing was done"),
        (&["snapshot", "list", "a/plain"], "a/plain is a plain file, not a disk"),
        (&["clone", "a/d@t", "a/c"], "a/d: the disk has no snapshot \"t\"; nothing was done"),
        (&["clone", "a/d@s", "a/plain"], "a/plain exists; nothing was done"),
        (&["clone", "a/plain", "a/c"], "a/plain is a plain file, not a disk"),
        (&["clone", "a/d@s", "b/c"], "are on different mounts; nothing was done"),
        (&["clone", "a/d@s", "c"], "is not on a mounted lunfs volume"),
    ];
    for (command, why) in cases {
        let said = place.refused(command);
        assert!(said.contains(why), "{command:?}: {said}");
    }
    for (command, why) in [
        (&["disk", "create", "a/x"][..], "--size"),
        (&["disk", "create", "a/x", "--size", "1M", "--from-format", "raw"], "--from"),
        (&["snapshot", "create", "a/d"], "a snapshot is named as DISK@NAME"),
        (&["snapshot", "delete", "a/d@"], "a snapshot is named as DISK@NAME"),
        (&["snapshot", "create", "a/d@a\nb"], "control character"),
        (&["clone", "a/@s", "a/c"], "no disk is named before the @"),
        (&["disk", "resize", "a/d", "lots"], "a size is a number"),
    ] {
        let output = place.lunfs(command);
        assert_eq!(output.status.code(), Some(2), "{command:?}: {}", told(&output));
        assert!(told(&output).contains(why), "{command:?}: {}", told(&output));
    }
    assert_eq!(read(&place, "a/plain"), b"mine");
    let list = json(&place, &["disk", "list", "a"]);
    assert_eq!(list["disks"].as_array().map(Vec::len), Some(1), "{list}");
}
