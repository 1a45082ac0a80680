//! Real mounts for the tests of commands: an image, hosts on it, and what they said.

#![allow(dead_code, reason = "each file of tests uses a part of it")]

pub mod nbd;

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::FileExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::mount::UnmountFlags;
use rustix::process::{Pid, Signal};

/// How long anything here may take before the test has failed.
pub const LIMIT: Duration = Duration::from_secs(60);

/// An image with a volume, and mount points beside it.
pub struct Place(pub PathBuf);

/// A host: a group of processes, led by what was typed.
pub struct Host {
    pub point: PathBuf,
    pub leader: Child,
}

impl Place {
    /// `None`: nothing can be mounted here.
    pub fn new(test: &str) -> Option<Place> {
        let fuse = File::options().read(true).write(true).open("/dev/fuse");
        if !rustix::process::geteuid().is_root() || fuse.is_err() {
            eprintln!("skipped: root and /dev/fuse are needed");
            return None;
        }
        // Not in the temporary directory: that may be memory, without direct I/O.
        let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("mounts-{test}"));
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(&dir).expect("a directory for the test");
        let place = Place(dir);
        let made = place.lunfs(&["format", "--size", "256M", "volume.img"]);
        assert!(made.status.success(), "{}", told(&made));
        Some(place)
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        // Who runs the tests under nohup has them ignore SIGHUP, and all that they start.
        let mut command = Command::new("env");
        command.args(["--default-signal=HUP", env!("CARGO_BIN_EXE_lunfs")]);
        command.args(arguments).current_dir(&self.0).stdin(Stdio::null());
        command
    }

    /// Runs a command, which must end.
    pub fn lunfs(&self, arguments: &[&str]) -> Output {
        let mut command = self.command(arguments);
        let mut child =
            command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("lunfs starts");
        wait_until("the end of the command", || child.try_wait().expect("a child").is_some());
        child.wait_with_output().expect("it has ended")
    }

    /// What a command that must not work says.
    pub fn refused(&self, arguments: &[&str]) -> String {
        let output = self.lunfs(arguments);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {}", told(&output));
        told(&output)
    }

    pub fn mount(&self, name: &str) -> Host {
        let point = self.0.join(name);
        fs::create_dir_all(&point).expect("a mount point");
        let log = self.0.join(format!("{name}.log"));
        let mut leader = self
            .command(&["mount", "--foreground", "--host", name, "volume.img", name, "--log"])
            .arg(log)
            .process_group(0)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("lunfs starts");
        let mut line = String::new();
        let said = leader.stdout.take().expect("it is piped");
        BufReader::new(said).read_line(&mut line).expect("it says something");
        assert!(line.starts_with("mounted"), "{line}");
        Host { point, leader }
    }

    /// Overwrites the pulse of a slot (docs/format.md: 8 logical blocks a slot, from block 1024).
    pub fn spoil_pulse(&self, slot: u64) {
        let image = File::options().write(true).open(self.0.join("volume.img"));
        let at = 1024 * 4096 + slot * 8 * 512;
        image.expect("the image").write_all_at(&[0x5a; 512], at).expect("a write");
        let seen = self.lunfs(&["inspect", "volume.img", "slot", &slot.to_string()]);
        let seen = String::from_utf8_lossy(&seen.stdout).into_owned();
        assert!(seen.contains("pulse: refused"), "{seen}");
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

impl Host {
    pub fn signal(&self, signal: Signal) {
        let _ = rustix::process::kill_process_group(Pid::from_child(&self.leader), signal);
    }

    pub fn kill(&mut self) {
        self.signal(Signal::KILL);
        let _ = self.leader.wait();
    }

    pub fn is_mounted(&self) -> bool {
        is_mounted(&self.point)
    }

    /// Its parent ends by itself, also after its daemon was killed.
    pub fn must_end(&mut self) {
        wait_until("the end of the parent", || self.leader.try_wait().expect("ours").is_some());
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.kill();
        let _ = rustix::mount::unmount(&self.point, UnmountFlags::FORCE | UnmountFlags::DETACH);
    }
}

/// Something that was mounted by a test; gone with it.
pub struct Mounted(pub PathBuf);

impl Mounted {
    pub fn at(point: PathBuf, arguments: &[&str]) -> Mounted {
        let made = Command::new("mount").args(arguments).arg(&point).status();
        assert!(made.expect("mount starts").success(), "{arguments:?}");
        Mounted(point)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

pub fn is_mounted(point: &Path) -> bool {
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("the mount table");
    let point = format!(" {} ", point.display());
    mounts.lines().any(|line| line.contains(&point))
}

pub fn told(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).trim().to_owned()
}

pub fn wait_until(what: &str, mut is_there: impl FnMut() -> bool) {
    let began = Instant::now();
    while !is_there() {
        assert!(began.elapsed() < LIMIT, "{what}: not within {LIMIT:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
pub fn daemon_of(place: &Place, host: &Host) -> Pid {
    let point = host.point.to_str().expect("UTF-8");
    let info = place.lunfs(&["info", "--json", point]);
    number_behind(&String::from_utf8_lossy(&info.stdout), "\"pid\":")
        .and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?))
        .expect("info tells the daemon")
}

pub fn slot_of(place: &Place, name: &str) -> u64 {
    let hosts = place.lunfs(&["hosts", "--json", "volume.img"]);
    let hosts = String::from_utf8_lossy(&hosts.stdout).into_owned();
    let mut of_hosts = hosts.split('}');
    let ours = of_hosts.find(|host| host.contains(&format!("\"name\":\"{name}\"")));
    number_behind(ours.expect("it is listed"), "\"slot\":").expect("with its slot")
}

pub fn number_behind(text: &str, key: &str) -> Option<u64> {
    let (_, rest) = text.split_once(key)?;
    rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

/// The process has asked a FUSE server, who has not answered.
pub fn waits_for_a_server(process: &Child) -> bool {
    let stack = fs::read_to_string(format!("/proc/{}/wchan", process.id())).unwrap_or_default();
    stack.contains("request_wait_answer") || stack.contains("fuse")
}
