//! Commands on real mounts: what is refused, and what ends although a daemon hangs. Each test
//! needs root and /dev/fuse, and says so where it has neither.

mod stage;

use std::fs::{self, File};
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};

use rustix::process::{Pid, Signal};
use stage::{Place, daemon_of, is_mounted, slot_of, told, wait_until, waits_for_a_server};

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

/// They waited for ever, or for two minutes.
#[test]
fn questions_to_a_daemon_that_hangs_have_an_end() {
    let Some(place) = Place::new("silent") else { return };
    let a = place.mount("a");
    fs::create_dir(a.point.join("dir")).expect("a directory");
    let daemon = daemon_of(&place, &a);
    rustix::process::kill_process(daemon, Signal::STOP).expect("it is stopped");
    std::thread::scope(|scope| {
        for asked in [["info", "a"], ["hosts", "a"], ["locks", "a"], ["info", "a/dir"]] {
            let place = &place;
            scope.spawn(move || {
                let output = place.lunfs(&asked);
                let said = told(&output);
                assert_eq!(output.status.code(), Some(2), "{asked:?}: {said}");
                assert!(said.contains("has not answered for 10 s"), "{said}");
                assert!(said.contains("unmount --force"), "{said}");
            });
        }
        let again = scope.spawn(|| place.refused(&["mount", "volume.img", "a"]));
        assert!(again.join().expect("it ends").contains("is mounted at a already"));
        let looked = scope.spawn(|| place.lunfs(&["check", "a"]).status.code());
        assert!(looked.join().expect("check ends").is_some());
    });
    rustix::process::kill_process(daemon, Signal::CONT).expect("it goes on");
    assert!(place.lunfs(&["unmount", "a"]).status.success());
}

/// The end of an ssh session killed the parent, and left a daemon that nobody watched.
#[test]
fn a_terminal_that_closes_unmounts_cleanly() {
    let Some(place) = Place::new("hangup") else { return };
    for who in ["parent", "daemon", "both"] {
        let mut a = place.mount("a");
        fs::write(a.point.join(who), "kept").expect("a file");
        let daemon = daemon_of(&place, &a);
        match who {
            "parent" => rustix::process::kill_process(Pid::from_child(&a.leader), Signal::HUP),
            "daemon" => rustix::process::kill_process(daemon, Signal::HUP),
            _ => rustix::process::kill_process_group(Pid::from_child(&a.leader), Signal::HUP),
        }
        .expect("it is sent");
        a.must_end();
        let status = a.leader.wait().expect("it ended");
        assert!(status.success() && !a.is_mounted(), "{who}: {status}");
    }
    assert!(place.lunfs(&["check", "--offline", "volume.img"]).status.success());
}

#[test]
fn a_daemon_without_its_parent_says_so_and_serves_on() {
    let Some(place) = Place::new("orphan") else { return };
    let mut a = place.mount("a");
    let log = || fs::read_to_string(place.0.join("a.log")).expect("the log");
    assert!(!log().contains("parent_gone"));
    a.leader.kill().expect("it is killed");
    a.leader.wait().expect("it is dead");
    wait_until("the daemon sees it", || log().contains("parent_gone"));
    fs::write(a.point.join("alive"), "yes").expect("it serves on");
    assert!(place.lunfs(&["unmount", "a"]).status.success());
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
