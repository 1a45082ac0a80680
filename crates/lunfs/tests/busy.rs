//! What keeps a mount busy is named, and loses nothing. Each test needs root and /dev/fuse, and
//! says so where it has neither.

mod stage;

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};

use stage::{Host, Mounted, Place, told, wait_until};

/// A namespace that one test makes has a copy of every mount that another one is about to end.
fn one_at_a_time() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A program with a file open and a mount namespace of its own, as containers and qemu have.
struct Elsewhere {
    program: Child,
    said: BufReader<std::process::ChildStdout>,
}

impl Elsewhere {
    /// `what` is run before the file is opened, with the mount point as `$1`.
    fn start(host: &Host, what: &str) -> Elsewhere {
        let script = format!(
            "{what}; echo ready
             while read word; do echo $word >&3 && echo wrote || echo lost; done"
        );
        let mut program = Command::new("unshare")
            .args(["-m", "sh", "-c", &script, "writer"])
            .arg(&host.point)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("unshare starts");
        let said = BufReader::new(program.stdout.take().expect("it is piped"));
        let mut elsewhere = Elsewhere { program, said };
        assert_eq!(elsewhere.hear(), "ready");
        elsewhere
    }

    fn hear(&mut self) -> String {
        let mut line = String::new();
        self.said.read_line(&mut line).expect("it says something");
        line.trim().to_owned()
    }

    /// Writes to its open file.
    fn write(&mut self) -> String {
        let stdin = self.program.stdin.as_mut().expect("it is piped");
        stdin.write_all(b"word\n").expect("it listens");
        self.hear()
    }

    fn end(&mut self) {
        drop(self.program.stdin.take());
        let _ = self.program.wait();
    }
}

impl Drop for Elsewhere {
    fn drop(&mut self) {
        let _ = self.program.kill();
        self.end();
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

/// It was told that all is unmounted, and the program in the container lost its file.
#[test]
fn a_program_in_another_namespace_keeps_its_files() {
    let _alone = one_at_a_time();
    let Some(place) = Place::new("namespace") else { return };
    let mut a = place.mount("a");
    let mut writer = Elsewhere::start(&a, "exec 3>>$1/file");
    let said = place.refused(&["unmount", "a"]);
    assert!(said.contains("the mount is busy: sh ("), "{said}");
    assert!(said.contains("fd 3 ") && said.contains("in its own namespace"), "{said}");
    assert!(a.is_mounted());
    assert_eq!(writer.write(), "wrote");
    writer.end();
    wait_until("the end of its namespace", || place.lunfs(&["unmount", "a"]).status.success());
    a.must_end();
    let b = place.mount("b");
    assert_eq!(fs::read_to_string(b.point.join("file")).expect("it stayed"), "word\n");
}

/// Also one that has nothing open now may come back to what it sees.
#[test]
fn a_copy_without_open_files_is_named() {
    let _alone = one_at_a_time();
    let Some(place) = Place::new("copy") else { return };
    let a = place.mount("a");
    let mut idle = Elsewhere::start(&a, "exec 3>/dev/null");
    let said = place.refused(&["unmount", "a"]);
    assert!(said.contains("has a copy of it at ") && said.contains("own namespace"), "{said}");
    idle.end();
    let said = told(&place.lunfs(&["unmount", "--force", "--deadline", "300ms", "a"]));
    assert!(!a.is_mounted(), "{said}");
}

#[test]
fn a_bind_mount_is_named() {
    let _alone = one_at_a_time();
    let Some(place) = Place::new("bind") else { return };
    let a = place.mount("a");
    fs::create_dir(place.0.join("other")).expect("a mount point");
    let other = Mounted::at(place.0.join("other"), &["--bind", text(&a.point)]);
    let said = place.refused(&["unmount", "a"]);
    assert!(said.contains(&format!("it is mounted at {}, too", other.0.display())), "{said}");
    fs::write(other.0.join("alive"), "yes").expect("it works on");
    drop(other);
    assert!(place.lunfs(&["unmount", "a"]).status.success());
}

/// The administrator's umount leaves the copies as they are; the daemon leaves with the last.
#[test]
fn a_plain_umount_leaves_the_copies_their_daemon() {
    let _alone = one_at_a_time();
    let Some(place) = Place::new("plain") else { return };
    let mut a = place.mount("a");
    fs::create_dir(place.0.join("other")).expect("a mount point");
    let other = Mounted::at(place.0.join("other"), &["--bind", text(&a.point)]);
    assert!(Command::new("umount").arg(&a.point).status().expect("it starts").success());
    fs::write(other.0.join("alive"), "yes").expect("it works on");
    // Our mount is gone from its place already, and the copy must live on.
    let said = place.refused(&["unmount", "other"]);
    assert!(said.contains("is busy") || said.contains("in use elsewhere"), "{said}");
    fs::write(other.0.join("alive"), "still").expect("it works on");
    drop(other);
    a.must_end();
    let b = place.mount("b");
    assert_eq!(fs::read_to_string(b.point.join("alive")).expect("it stayed"), "still");
}

#[test]
fn what_is_mounted_below_is_named_and_never_taken_away() {
    let _alone = one_at_a_time();
    let Some(place) = Place::new("below") else { return };
    let mut a = place.mount("a");
    fs::create_dir(a.point.join("tmp")).expect("a mount point");
    let tmp = Mounted::at(a.point.join("tmp"), &["-t", "tmpfs", "tmpfs"]);
    fs::write(tmp.0.join("precious"), "kept").expect("a file");
    for arguments in [&["unmount", "a"][..], &["unmount", "--force", "--deadline", "1s", "a"]] {
        let said = place.refused(arguments);
        assert!(said.contains("tmpfs (tmpfs) is mounted at "), "{said}");
        assert!(said.contains("unmount first"), "{said}");
        assert_eq!(fs::read_to_string(tmp.0.join("precious")).expect("there"), "kept");
    }
    drop(tmp);
    assert!(place.lunfs(&["unmount", "a"]).status.success());
    a.must_end();
}

#[test]
fn loop_devices_are_named_and_what_is_mounted_on_them_is_kept() {
    let _alone = one_at_a_time();
    let Some(place) = Place::new("loops") else { return };
    let mut a = place.mount("a");
    let disk = a.point.join("disk.img");
    File::create(&disk).and_then(|file| file.set_len(32 << 20)).expect("a disk");
    assert!(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&disk).status().is_ok());
    let made = Command::new("losetup").args(["--find", "--show"]).arg(&disk).output();
    let Some(made) = made.ok().filter(|made| made.status.success()) else {
        eprintln!("skipped: losetup gives no loop device");
        return;
    };
    let node = String::from_utf8_lossy(&made.stdout).trim().to_owned();
    fs::create_dir(place.0.join("ext4")).expect("a mount point");
    let ext4 = Mounted::at(place.0.join("ext4"), &[&node]);
    let said = place.refused(&["unmount", "--force", "--deadline", "300ms", "a"]);
    assert!(said.contains(&format!("{node} (ext4) is mounted at {}", ext4.0.display())), "{said}");
    fs::write(ext4.0.join("alive"), "yes").expect("it works on");
    drop(ext4);

    let said = place.refused(&["unmount", "a"]);
    assert!(said.contains(&format!("{node} is a loop device on {}", disk.display())), "{said}");
    let forced = place.lunfs(&["unmount", "--force", "--deadline", "300ms", "a"]);
    assert!(Command::new("losetup").args(["-d", &node]).status().is_ok_and(|s| s.success()));
    let said = told(&forced);
    assert!(forced.status.success() && said.contains(&format!("taken from {node}")), "{said}");
    a.must_end();
}

#[test]
fn a_path_inside_is_not_the_mount() {
    let _alone = one_at_a_time();
    let Some(place) = Place::new("path") else { return };
    let a = place.mount("a");
    fs::create_dir(a.point.join("dir")).expect("a directory");
    let said = place.refused(&["unmount", "a/dir"]);
    assert!(said.contains(&format!("inside the mount at {}", a.point.display())), "{said}");
    assert!(said.contains("nothing was done"), "{said}");
    let said = place.refused(&["unmount", "no"]);
    assert!(said.starts_with("lunfs: cannot find no: No such file"), "{said}");
    assert!(a.is_mounted());

    // By its source, where it is the only one.
    let b = place.mount("b");
    let said = place.refused(&["unmount", "volume.img"]);
    assert!(said.contains("is mounted at ") && said.contains("Name one"), "{said}");
    let said = place.refused(&["locks", "volume.img"]);
    assert!(said.contains("is mounted at ") && said.contains("name such a mount"), "{said}");
    assert!(place.lunfs(&["unmount", "b"]).status.success());
    assert!(place.lunfs(&["unmount", "volume.img"]).status.success());
    assert!(!a.is_mounted() && !b.is_mounted());
}

/// A namespace that is kept by its file has no process, and is seen by nobody.
#[test]
fn the_daemon_stays_for_a_copy_that_nobody_saw() {
    let _alone = one_at_a_time();
    let Some(place) = Place::new("unseen") else { return };
    let mut a = place.mount("a");
    let kept = place.0.join("namespace");
    File::create(&kept).expect("a file for it");
    let made = Command::new("unshare").arg(format!("--mount={}", text(&kept))).arg("true").status();
    if !made.is_ok_and(|status| status.success()) {
        eprintln!("skipped: no namespace can be kept where mounts are shared");
        return;
    }
    let kept = Mounted(kept);
    let said = place.refused(&["unmount", "a"]);
    assert!(said.contains("is gone, but the file system is in use elsewhere"), "{said}");
    assert!(!a.is_mounted());
    let inside = |script: &str| {
        let entered = format!("--mount={}", text(&kept.0));
        let file = a.point.join("file");
        let status = Command::new("nsenter")
            .args([&entered, "sh", "-c", script, "writer"])
            .arg(file)
            .status();
        status.is_ok_and(|status| status.success())
    };
    assert!(inside("echo alive > $1"), "the copy works on");
    drop(kept);
    a.must_end();
    let b = place.mount("b");
    assert_eq!(fs::read_to_string(b.point.join("file")).expect("it stayed"), "alive\n");
}
