//! The parent against daemons that die in every way.

use std::os::unix::fs::FileExt;
use std::process::Command;

use lunfs_format::{Geometry, Holder, PulseState, Sizes, Timing};

use super::*;
use crate::scratch::{Scratch, child_argument, hear, say, spawn_child};

const VOLUME: VolumeId = VolumeId([7; 16]);
const SLOT: SlotNo = SlotNo(3);
const RUN: [u8; 16] = [9; 16];

fn announcement() -> Announcement {
    Announcement { volume: VOLUME.0, slot: SLOT.0, incarnation: 4, run: RUN }
}

fn live() -> Pulse {
    Pulse {
        state: PulseState::Live,
        run: RUN,
        name: "host1".into(),
        counter: 100,
        progress: 50,
        has_parent: true,
        timing: Timing::FAST,
        ..Pulse::free(SLOT, Incarnation(4), 1)
    }
}

fn geometry() -> Geometry {
    Geometry::plan(1 << 30, 512, Sizes::default()).unwrap()
}

/// A volume whose slot holds `pulse`.
fn volume_with(pulse: &Pulse) -> Scratch {
    let scratch = Scratch::image("parent", 1 << 30);
    let at = SUPERBLOCK_COPIES[0];
    let superblock = crate::scratch::superblock(VOLUME, geometry());
    scratch.open().write_all_at(superblock.encode(at).as_slice(), at.offset()).unwrap();
    write_pulse(&scratch, pulse);
    scratch
}

fn write_pulse(scratch: &Scratch, pulse: &Pulse) {
    let at = geometry().slot_offset(SLOT);
    scratch.open().write_all_at(&pulse.encode(VOLUME)[..], at).unwrap();
}

fn pulse_in(scratch: &Scratch) -> Pulse {
    let mut bytes = [0; RECORD];
    scratch.open().read_exact_at(&mut bytes, geometry().slot_offset(SLOT)).unwrap();
    Pulse::decode(&bytes, VOLUME, SLOT).unwrap()
}

fn said_by_daemon() -> Vec<u8> {
    let mut pipe = Vec::new();
    announce(&mut pipe, &announcement()).unwrap();
    pipe
}

#[test]
fn nobody_speaks_for_a_slot_that_is_not_his_any_more() {
    let by = Some(Holder { slot: SlotNo(1), incarnation: Incarnation(1) });
    let claimed = Pulse { state: PulseState::Claimed, claimer: by, ..live() };
    let cases = [
        (Pulse { run: [1; 16], ..live() }, Why::OtherProgram),
        (Pulse { incarnation: Incarnation(5), ..live() }, Why::NewLife),
        (Pulse { state: PulseState::Free, ..live() }, Why::Over(PulseState::Free)),
        (Pulse { state: PulseState::Dead, ..live() }, Why::Over(PulseState::Dead)),
        (claimed, Why::Over(PulseState::Claimed)),
    ];
    for (found, why) in cases {
        let scratch = volume_with(&found);
        let ended = speak_for(scratch.path(), &announcement()).unwrap();
        assert_eq!(ended, Ended::NothingToSay(why));
        assert_eq!(pulse_in(&scratch), found, "nothing was written");
    }
}

#[test]
fn a_killed_daemon_gets_its_last_word_after_its_mark_is_free() {
    let name = "parent::tests::a_killed_daemon_gets_its_last_word_after_its_mark_is_free";
    if let Some(path) = child_argument() {
        let source = Source::open(Path::new(&path), Access::ReadWrite).unwrap();
        assert!(ofd::try_lock(&source, life_byte(SLOT)).unwrap());
        say("marked");
        loop {
            std::thread::park();
        }
    }
    let scratch = volume_with(&live());
    let mut daemon = spawn_child(name, scratch.path().to_str().unwrap());
    hear(&mut daemon, "marked");
    daemon.kill().unwrap();
    let ended = watch(&mut daemon, scratch.path(), said_by_daemon().as_slice()).unwrap();
    assert_eq!(ended, Ended::LastWord);
    let found = pulse_in(&scratch);
    assert!(found.state == PulseState::Dead && found.program_only && found.io_clean);
    assert_eq!((found.counter, found.name.as_str()), (101, "host1"));
}

#[test]
fn a_clean_end_needs_no_word_and_a_daemon_that_never_joined_has_none() {
    let scratch = volume_with(&live());
    let mut clean = Command::new("true").spawn().unwrap();
    let ended = watch(&mut clean, scratch.path(), said_by_daemon().as_slice()).unwrap();
    assert_eq!(ended, Ended::Clean);
    for heard in ["", "{\"volume\":", "nonsense\n"] {
        let mut failed = Command::new("false").spawn().unwrap();
        let ended = watch(&mut failed, scratch.path(), heard.as_bytes()).unwrap();
        assert!(matches!(ended, Ended::NeverJoined(_)), "{heard:?}: {ended:?}");
    }
    assert_eq!(pulse_in(&scratch), live());
}

#[test]
fn another_volume_on_the_same_source_is_left_alone() {
    let scratch = volume_with(&live());
    let other = Announcement { volume: [8; 16], ..announcement() };
    assert!(speak_for(scratch.path(), &other).unwrap_err().to_string().contains("is now volume"));
}
