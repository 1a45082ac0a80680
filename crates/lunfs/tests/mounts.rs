//! Commands on real mounts: what is refused, and what ends although a daemon hangs. Each test
//! needs root and /dev/fuse, and says so where it has neither.

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
const LIMIT: Duration = Duration::from_secs(60);

/// An image with a volume, and mount points beside it.
struct Place(PathBuf);

/// A host: a group of processes, led by what was typed.
struct Host {
    point: PathBuf,
    leader: Child,
}

impl Place {
    /// `None`: nothing can be mounted here.
    fn new(test: &str) -> Option<Place> {
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

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lunfs"));
        command.args(arguments).current_dir(&self.0).stdin(Stdio::null());
        command
    }

    /// Runs a command, which must end.
    fn lunfs(&self, arguments: &[&str]) -> Output {
        let mut command = self.command(arguments);
        let mut child =
            command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("lunfs starts");
        wait_until("the end of the command", || child.try_wait().expect("a child").is_some());
        child.wait_with_output().expect("it has ended")
    }

    /// What a command that must not work says.
    fn refused(&self, arguments: &[&str]) -> String {
        let output = self.lunfs(arguments);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {}", told(&output));
        told(&output)
    }

    fn mount(&self, name: &str) -> Host {
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
    fn spoil_pulse(&self, slot: u64) {
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
    fn signal(&self, signal: Signal) {
        let _ = rustix::process::kill_process_group(Pid::from_child(&self.leader), signal);
    }

    fn kill(&mut self) {
        self.signal(Signal::KILL);
        let _ = self.leader.wait();
    }

    fn is_mounted(&self) -> bool {
        is_mounted(&self.point)
    }

    /// Its parent ends by itself, also after its daemon was killed.
    fn must_end(&mut self) {
        wait_until("the end of the parent", || self.leader.try_wait().expect("ours").is_some());
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.kill();
        let _ = rustix::mount::unmount(&self.point, UnmountFlags::FORCE | UnmountFlags::DETACH);
    }
}

fn is_mounted(point: &Path) -> bool {
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("the mount table");
    let point = format!(" {} ", point.display());
    mounts.lines().any(|line| line.contains(&point))
}

fn told(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).trim().to_owned()
}

fn wait_until(what: &str, mut is_there: impl FnMut() -> bool) {
    let began = Instant::now();
    while !is_there() {
        assert!(began.elapsed() < LIMIT, "{what}: not within {LIMIT:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// It hid /etc once.
#[test]
fn a_directory_that_holds_something_is_a_mount_point_only_on_request() {
    let Some(place) = Place::new("nonempty") else { return };
    let point = place.0.join("full");
    fs::create_dir(&point).expect("a directory");
    fs::write(point.join("letter"), "mine").expect("a file");
    let said = place.refused(&["mount", "volume.img", "full"]);
    assert!(said.contains("it is not empty (letter is there)"), "{said}");
    assert!(said.contains("nothing was done") && said.contains("--nonempty"), "{said}");
    assert!(!is_mounted(&point));

    let log = place.0.join("log");
    let log = log.to_str().expect("UTF-8");
    let made =
        place.lunfs(&["mount", "--nonempty", "--host", "a", "--log", log, "volume.img", "full"]);
    assert!(made.status.success(), "{}", told(&made));
    assert!(is_mounted(&point) && !point.join("letter").exists());
    assert!(place.lunfs(&["unmount", "full"]).status.success());
    assert_eq!(fs::read_to_string(point.join("letter")).expect("seen again"), "mine");
}

#[test]
fn a_volume_is_not_mounted_inside_itself() {
    let Some(place) = Place::new("inside") else { return };
    let a = place.mount("a");
    fs::create_dir(a.point.join("empty")).expect("a directory on the volume");
    for dir in ["a/empty", "a"] {
        let said = place.refused(&["mount", "--host", "b", "volume.img", dir]);
        assert!(said.contains("this same volume") || said.contains("already"), "{said}");
    }
    // The same disk under another name.
    fs::hard_link(place.0.join("volume.img"), place.0.join("other.img")).expect("a link");
    let said = place.refused(&["mount", "--host", "b", "other.img", "a/empty"]);
    assert!(said.contains("this same volume"), "{said}");
    assert!(place.lunfs(&["unmount", "a"]).status.success());
}

#[test]
fn a_log_is_not_put_where_no_directory_is() {
    let Some(place) = Place::new("log") else { return };
    fs::create_dir(place.0.join("a")).expect("a mount point");
    let said = place.refused(&["mount", "--log", "no/such/log", "volume.img", "a"]);
    assert!(said.contains("cannot log to") && said.contains("there is no directory"), "{said}");
    assert!(!place.0.join("no").exists());
}

#[test]
fn a_name_that_is_not_there_is_named() {
    let Some(place) = Place::new("locks") else { return };
    let _a = place.mount("a");
    let said = place.refused(&["locks", "a", "no/such"]);
    assert!(said.starts_with("lunfs: no/such below "), "{said}");
    assert!(said.ends_with("at \"no\": no such file or name"), "{said}");
    assert!(place.lunfs(&["unmount", "a"]).status.success());
}

#[test]
fn who_is_not_root_is_told_so() {
    let Some(place) = Place::new("nobody") else { return };
    let a = place.mount("a");
    // The program may lie where only root may look.
    let program = std::env::temp_dir().join(format!("lunfs-nobody-{}", std::process::id()));
    fs::copy(env!("CARGO_BIN_EXE_lunfs"), &program).expect("a copy");
    let output = Command::new(&program).arg("info").arg(&a.point).uid(65534).output();
    fs::remove_file(&program).expect("ours");
    let output = output.expect("it starts");
    assert_eq!(output.status.code(), Some(1));
    assert!(told(&output).contains("only root may ask"), "{}", told(&output));
    assert!(place.lunfs(&["unmount", "a"]).status.success());
}

/// A stopped daemon answers neither the kernel nor its control socket.
#[test]
fn a_daemon_that_hangs_is_ended_by_force() {
    let Some(place) = Place::new("stopped") else { return };
    let mut a = place.mount("a");
    fs::write(a.point.join("durable"), "kept").expect("a file");
    File::open(a.point.join("durable")).expect("it opens").sync_all().expect("an fsync");
    let daemon = daemon_of(&place, &a);
    rustix::process::kill_process(daemon, Signal::STOP).expect("it is stopped");

    let said = place.refused(&["unmount", "--force", "--deadline", "500ms", "a"]);
    assert!(said.contains("did not leave and was killed"), "{said}");
    assert!(!a.is_mounted());
    a.must_end();

    let b = place.mount("b");
    assert_eq!(fs::read_to_string(b.point.join("durable")).expect("it stayed"), "kept");
    assert!(place.lunfs(&["unmount", "b"]).status.success());
}

/// The lock of a directory is held by a host that died, and its slot cannot be read: nobody may
/// take it over, and who wants the directory waits. Unmounting must end all the same; whether it
/// is clean depends on whether the daemon gives the operation up before its time is over.
#[test]
fn a_mount_whose_operations_wait_is_ended_by_force() {
    let Some(place) = Place::new("unreadable") else { return };
    let mut a = place.mount("a");
    let mut b = place.mount("b");
    fs::create_dir(b.point.join("dir")).expect("b makes a directory and keeps its lock");
    let slot = slot_of(&place, "b");
    // Stopped first: a host that saw its slot spoiled would give itself up.
    b.signal(Signal::STOP);
    place.spoil_pulse(slot);
    b.kill();

    let dir = a.point.join("dir");
    let mut list = Command::new("ls").arg(dir).stderr(Stdio::null()).spawn().expect("ls starts");
    wait_until("a request that waits", || waits_for_a_server(&list));
    let ended = place.lunfs(&["unmount", "--force", "--deadline", "500ms", "a"]);
    let said = told(&ended);
    assert!(ended.status.success() || said.contains("is gone, but"), "{said}");
    assert!(!a.is_mounted());
    wait_until("the end of ls", || list.try_wait().expect("ours").is_some());
    assert!(!list.wait().expect("it ended").success(), "it saw nothing");
    a.must_end();
}

fn daemon_of(place: &Place, host: &Host) -> Pid {
    let point = host.point.to_str().expect("UTF-8");
    let info = place.lunfs(&["info", "--json", point]);
    number_behind(&String::from_utf8_lossy(&info.stdout), "\"pid\":")
        .and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?))
        .expect("info tells the daemon")
}

fn slot_of(place: &Place, name: &str) -> u64 {
    let hosts = place.lunfs(&["hosts", "--json", "volume.img"]);
    let hosts = String::from_utf8_lossy(&hosts.stdout).into_owned();
    let mut of_hosts = hosts.split('}');
    let ours = of_hosts.find(|host| host.contains(&format!("\"name\":\"{name}\"")));
    number_behind(ours.expect("it is listed"), "\"slot\":").expect("with its slot")
}

fn number_behind(text: &str, key: &str) -> Option<u64> {
    let (_, rest) = text.split_once(key)?;
    rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

/// The process has asked a FUSE server, who has not answered.
fn waits_for_a_server(process: &Child) -> bool {
    let stack = fs::read_to_string(format!("/proc/{}/wchan", process.id())).unwrap_or_default();
    stack.contains("request_wait_answer") || stack.contains("fuse")
}
