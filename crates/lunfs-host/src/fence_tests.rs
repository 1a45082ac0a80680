//! The fence against real processes: the right one dies, and only that one.

use std::path::Path;
use std::process::Child;

use lunfs_format::{Incarnation, PulseState};

use super::*;
use crate::disk::Access;
use crate::identity::identity;
use crate::scratch::{LoopDevice, Scratch, block_on, child_argument, hear, say, spawn_child};

const SLOT: SlotNo = SlotNo(5);

fn fence_on(path: &Path) -> ImageFence {
    let source = Arc::new(Source::open(path, Access::ReadWrite).unwrap());
    ImageFence::new(source, identity(false).unwrap())
}

/// What the slot of a program of this machine says.
fn pulse_of(pid: u32) -> Pulse {
    let us = identity(false).unwrap();
    Pulse {
        state: PulseState::Live,
        name: "victim".into(),
        run: us.run,
        boot: us.boot,
        machine: us.machine,
        pid,
        pid_start: process_start(pid).ok().flatten().unwrap_or(1),
        pid_namespace: us.pid_namespace,
        ..Pulse::free(SLOT, Incarnation(1), 1)
    }
}

/// A host in another process that holds the life mark of `SLOT` and does nothing.
fn silent_host(scratch: &Scratch) -> Child {
    let name = "fence::tests::a_silent_program_holds_its_mark_until_killed";
    let mut child = spawn_child(name, scratch.path().to_str().unwrap());
    hear(&mut child, "marked");
    child
}

#[test]
fn a_silent_program_holds_its_mark_until_killed() {
    if let Some(path) = child_argument() {
        let fence = fence_on(Path::new(&path));
        assert!(fence.enter(SLOT).unwrap());
        say("marked");
        loop {
            std::thread::park();
        }
    }
    let scratch = Scratch::image("kill", 1 << 20);
    let mut host = silent_host(&scratch);
    let fence = fence_on(scratch.path());
    assert_eq!(fence.life(SLOT), Life::Present);
    assert!(!fence.enter(SLOT).unwrap(), "the slot has a program");

    // Stopped, as after SIGSTOP or in a debugger: it cannot react, and must die nevertheless.
    let pid = Pid::from_child(&host);
    rustix::process::kill_process(pid, Signal::STOP).unwrap();
    block_on(fence.fence(&pulse_of(host.id()))).unwrap();
    assert_eq!(fence.life(SLOT), Life::Gone);
    let status = host.wait().unwrap();
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(libc::SIGKILL));
    assert!(fence.enter(SLOT).unwrap());
}

#[test]
fn only_a_verified_process_is_killed() {
    let scratch = Scratch::image("verify", 1 << 20);
    let mut host = silent_host(&scratch);
    let fence = fence_on(scratch.path());
    let right = pulse_of(host.id());
    let wrong = [
        ("start", Pulse { pid_start: right.pid_start + 1, ..right.clone() }, "another process"),
        ("no start", Pulse { pid_start: 0, ..right.clone() }, "does not say"),
        ("no pid", Pulse { pid: 0, ..right.clone() }, "does not say"),
        ("boot", Pulse { boot: [1; 16], ..right.clone() }, "boot id"),
        ("machine", Pulse { machine: [1; 16], ..right.clone() }, "machine id"),
        ("namespace", Pulse { pid_namespace: 1, ..right.clone() }, "pid namespace"),
        ("ourselves", pulse_of(std::process::id()), "this program"),
    ];
    for (case, victim, reason) in wrong {
        let refused = block_on(fence.fence(&victim)).unwrap_err().to_string();
        assert!(refused.contains(reason), "{case}: {refused}");
        assert!(host.try_wait().unwrap().is_none(), "{case}: the process must live");
    }
    host.kill().unwrap();
    host.wait().unwrap();
}

#[test]
fn a_free_mark_needs_no_process() {
    let scratch = Scratch::image("free", 1 << 20);
    let fence = fence_on(scratch.path());
    assert_eq!(fence.life(SLOT), Life::Gone);
    let rebooted = Pulse { boot: [9; 16], pid: 0, ..pulse_of(1) };
    block_on(fence.fence(&rebooted)).unwrap();

    assert!(fence.enter(SLOT).unwrap());
    assert_eq!(fence.life(SLOT), Life::Present, "one's own mark counts");
    assert!(block_on(fence.fence(&rebooted)).is_err(), "nobody fences himself");
    fence.leave(SLOT);
    assert_eq!(fence.life(SLOT), Life::Gone);
}

#[test]
fn io_that_does_not_land_is_not_fenced() {
    let scratch = Scratch::image("stuck", 1 << 20);
    let held = scratch.open();
    assert!(ofd::try_lock(&held, life_byte(SLOT)).unwrap());
    let mut gone = std::process::Command::new("true").spawn().unwrap();
    gone.wait().unwrap();
    let source = Arc::new(Source::open(scratch.path(), Access::ReadWrite).unwrap());
    let short = Duration::from_millis(50);
    let fence = ImageFence::with_drain_max(source, identity(false).unwrap(), short);
    let refused = block_on(fence.fence(&pulse_of(gone.id()))).unwrap_err().to_string();
    assert!(refused.contains("not landed"), "{refused}");
}

#[test]
fn a_free_mark_on_a_device_proves_nothing_of_another_machine() {
    let scratch = Scratch::image("device", 1 << 20);
    let Some(device) = LoopDevice::attach(scratch.path(), 512) else { return };
    let fence = fence_on(&device.node);
    let mut gone = std::process::Command::new("true").spawn().unwrap();
    let dead = pulse_of(gone.id());
    gone.wait().unwrap();
    block_on(fence.fence(&dead)).unwrap();
    let elsewhere = Pulse { machine: [7; 16], ..pulse_of(1) };
    let refused = block_on(fence.fence(&elsewhere)).unwrap_err().to_string();
    assert!(refused.contains("another machine"), "{refused}");
}

/// Marks on a loop device and on its image do not meet: a host on one takes those on the other for
/// dead.
#[test]
fn a_free_mark_of_a_living_process_is_no_fence() {
    let scratch = Scratch::image("two-names", 1 << 20);
    let mut host = std::process::Command::new("sleep").arg("60").spawn().unwrap();
    let victim = pulse_of(host.id());
    let source = Arc::new(Source::open(scratch.path(), Access::ReadWrite).unwrap());
    let short = Duration::from_millis(50);
    let fence = ImageFence::with_drain_max(source, identity(false).unwrap(), short);
    let refused = block_on(fence.fence(&victim)).unwrap_err().to_string();
    assert!(refused.contains("another name"), "{refused}");
    host.kill().unwrap();
    // Ended, though nobody has waited for it yet.
    block_on(fence.fence(&victim)).unwrap();
    host.wait().unwrap();
}
