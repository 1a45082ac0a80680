//! The small parent that outlives the daemon and writes its last word.
//!
//! ```text
//!  daemon joins -> announces itself over a pipe -> dies -> its life mark is free -> last word
//!                         |                         |             |
//!                      (closed)                  (exit 0)       (15 s)
//!                    never joined                unmounted      not drained: nothing is said
//! ```
//!
//! The last word replaces the wait for silence, never the fence (N27). It is written after the
//! lease, against R1: sound only because it replaces exactly the image that was just read. A pulse
//! still in flight then miscompares, and a claim makes it miscompare.
//!
//! Plain blocking code with an open file description of its own: nothing here may hang with the
//! daemon's.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, ExitStatus};
use std::time::Duration;

use lunfs_core::env::{Compared, Instant};
use lunfs_core::last_word::{LastWord, Say, Why};
use lunfs_format::{Incarnation, Pulse, RECORD, SUPERBLOCK_COPIES, SlotNo, Superblock, VolumeId};
use serde::{Deserialize, Serialize};

use crate::clock::boottime;
use crate::disk::{Access, Exchange, Source, compare_and_write_now};
use crate::error::{HostError, Result};
use crate::fence::life_byte;
use crate::ofd;
use crate::rng::random_bytes;

/// How long the I/O of a dead daemon may take to land.
const DRAIN_MAX: Duration = Duration::from_secs(15);
/// Pause between two looks at the life mark.
const POLL: Duration = Duration::from_millis(5);
/// Attempts to write the last word; each ends by another's image or by an error.
const ATTEMPTS_MAX: u32 = 20;
/// Pause after an attempt that an error ended.
const RETRY_PAUSE: Duration = Duration::from_millis(250);

/// What a daemon tells its parent once it has joined.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Announcement {
    /// The volume.
    pub volume: [u8; 16],
    /// Its slot there.
    pub slot: u32,
    /// The life of that slot.
    pub incarnation: u64,
    /// The run of the program.
    pub run: [u8; 16],
}

/// How a watched daemon ended.
#[derive(Debug, PartialEq, Eq)]
pub enum Ended {
    /// It unmounted.
    Clean,
    /// It ended before it had a slot.
    NeverJoined(ExitStatus),
    /// It died; its slot now says so, and others need not wait.
    LastWord,
    /// It died; its slot is no longer its own to speak for.
    NothingToSay(Why),
}

/// In the daemon: tells the parent, once.
pub fn announce(mut parent: impl Write, announcement: &Announcement) -> Result<()> {
    let mut line = serde_json::to_vec(announcement).expect("plain numbers become JSON");
    line.push(b'\n');
    parent.write_all(&line).map_err(|e| HostError::io("cannot tell the parent our slot", e))
}

/// In the parent: waits for the daemon's end and writes its last word, if it has one.
pub fn watch(daemon: &mut Child, source: &Path, announced: impl Read) -> Result<Ended> {
    let mut line = String::new();
    // An error here is a daemon that never said anything useful; how it ends is what counts.
    let heard = BufReader::new(announced).read_line(&mut line).map(|_| serde_json::from_str(&line));
    let status = daemon.wait().map_err(|e| HostError::io("cannot wait for the daemon", e))?;
    let Ok(Ok(announcement)) = heard else { return Ok(Ended::NeverJoined(status)) };
    if status.success() {
        return Ok(Ended::Clean);
    }
    tracing::error!(event = "daemon_died", %status, ?announcement, "the daemon died");
    let ended = speak_for(source, &announcement)?;
    match &ended {
        Ended::NothingToSay(why) => tracing::warn!(event = "no_last_word", %why, "nothing to say"),
        _ => tracing::info!(event = "last_word", slot = announcement.slot, "the slot is given up"),
    }
    Ok(ended)
}

/// Writes the last word of a dead daemon once its I/O has drained.
pub fn speak_for(source: &Path, of: &Announcement) -> Result<Ended> {
    let source = Source::open(source, Access::ReadWrite)?;
    let slot = SlotNo(of.slot);
    wait_until_drained(&source, slot)?;
    let superblock = read_superblock(&source, VolumeId(of.volume))?;
    let geometry = superblock.geometry();
    if of.slot >= geometry.slot_count {
        return Err(HostError::new(format!(
            "the daemon announced slot {slot}, which does not exist"
        )));
    }
    let place = Place { at: geometry.slot_offset(slot), volume: superblock.volume, slot };
    let mut parent = LastWord::new(of.run, Incarnation(of.incarnation));
    for _ in 0..ATTEMPTS_MAX {
        let (image, found) = place.read(&source, superblock.logical_block)?;
        let word = match parent.look(&found, u64::from_le_bytes(random_bytes())) {
            Say::Word(word) => word,
            Say::Said => return Ok(Ended::LastWord),
            Say::Nothing(why) => return Ok(Ended::NothingToSay(why)),
        };
        match compare_and_write_now(&source, &place.exchange(image, &word)) {
            Ok(Compared::Written) => return Ok(Ended::LastWord),
            Ok(Compared::Miscompare) => {}
            Err(e) => {
                tracing::warn!(event = "last_word_retry", %slot, "{e}");
                std::thread::sleep(RETRY_PAUSE);
            }
        }
    }
    Err(HostError::new(format!(
        "the last word of slot {slot} could not be written in {ATTEMPTS_MAX} attempts; other hosts \
         will take it over after their usual wait"
    )))
}

/// A free life mark is the proof: the last reference to the daemon's description is gone.
fn wait_until_drained(source: &Source, slot: SlotNo) -> Result<()> {
    let began = boottime();
    loop {
        let held = ofd::held_elsewhere(source, life_byte(slot), 1)
            .map_err(|e| HostError::io(format!("cannot see the life mark of slot {slot}"), e))?;
        if held.is_none() {
            return Ok(());
        }
        if boottime().since(began) > DRAIN_MAX {
            return Err(HostError::new(format!(
                "the daemon is dead, but its I/O has not landed for {} s, so nothing is said for \
                 slot {slot}; other hosts will fence it when the device answers again",
                DRAIN_MAX.as_secs()
            )));
        }
        std::thread::sleep(POLL);
    }
}

fn read_superblock(source: &Source, volume: VolumeId) -> Result<Superblock> {
    let shown = source.path().display();
    let mut unread = None;
    for at in SUPERBLOCK_COPIES {
        let bytes = match source.read_now(at.offset(), lunfs_format::BLOCK) {
            Ok(bytes) => bytes,
            Err(e) => {
                unread = Some(e);
                continue;
            }
        };
        match Superblock::decode(&bytes, at) {
            Ok(superblock) if superblock.volume == volume => return Ok(superblock),
            Ok(other) => {
                let found = other.volume;
                return Err(HostError::new(format!("{shown} is now volume {found}, not {volume}")));
            }
            Err(_) => {}
        }
    }
    Err(match unread {
        Some(e) => HostError::io(format!("cannot read the superblock of {shown}"), e),
        None => HostError::new(format!("{shown} has no superblock any more")),
    })
}

/// The pulse of one slot on the disk.
struct Place {
    at: u64,
    volume: VolumeId,
    slot: SlotNo,
}

impl Place {
    fn read(&self, source: &Source, logical_block: u32) -> Result<(Vec<u8>, Pulse)> {
        let slot = self.slot;
        let image = source
            .read_now(self.at, logical_block as usize)
            .map_err(|e| HostError::io(format!("cannot read the pulse of slot {slot}"), e))?;
        let pulse = Pulse::decode(&image[..RECORD], self.volume, slot)
            .map_err(|e| HostError::new(format!("the pulse of slot {slot} is corrupt: {e}")))?;
        Ok((image, pulse))
    }

    fn exchange(&self, expect: Vec<u8>, word: &Pulse) -> Exchange {
        let mut new = vec![0; expect.len()];
        new[..RECORD].copy_from_slice(&word.encode(self.volume)[..]);
        Exchange { at: self.at, expect, new, until: Instant::FAR }
    }
}

#[cfg(test)]
#[path = "parent_tests.rs"]
mod tests;
