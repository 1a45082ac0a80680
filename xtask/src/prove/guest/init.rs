//! What runs in the guest: this program, as process 1.
//!
//! The kernel hands over what stands behind `--` on its command line. What init has to say are
//! lines on the serial console that begin with `guest: `. It ends by switching the machine off.

use std::ffi::CString;
use std::fs::{self, File};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use rustix::mount::{MountFlags, UnmountFlags};
use rustix::system::RebootCommand;

use super::records::{Appended, Slots};
use crate::Ending;
use crate::prove::wait_until;

const DISK: &str = "/dev/vda";
const PLACE: &str = "/mnt";
/// After this many records a large file comes and goes, so that blocks are discarded.
const DISCARD_EVERY: u64 = 16;
const DISCARDED_BYTES: usize = 1 << 20;

/// What to do, one after the other.
#[derive(Args)]
pub struct Options {
    /// Deeds, in their order
    #[arg(required = true)]
    deeds: Vec<Deed>,
    /// How records lie on the disk
    #[arg(long)]
    layout: Layout,
    /// What the records are made of
    #[arg(long)]
    seed: u64,
}

/// What a guest does.
#[derive(Clone, Copy, ValueEnum)]
pub enum Deed {
    /// Make the disk ready for records
    Make,
    /// Go on writing records behind the highest one until somebody kills the machine
    Write,
    /// See that every record is whole, and say the highest
    Verify,
    /// Check the file system, without changing anything
    Fsck,
}

/// How records lie on the disk.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, ValueEnum)]
pub enum Layout {
    /// In files of an ext4
    Ext4,
    /// On the disk itself
    Raw,
}

/// Does what was asked, says how it went, and switches the machine off.
pub fn run(options: &Options) -> Result<Ending> {
    if std::process::id() != 1 {
        bail!("this is what the guest of `prove guest` runs, and nothing else");
    }
    match set_up().and_then(|()| options.deeds.iter().try_for_each(|deed| act(*deed, options))) {
        Ok(()) => say("done"),
        Err(error) => say(&format!("failed: {error:#}")),
    }
    // The console is slow, and what it has not printed goes with the machine.
    std::thread::sleep(Duration::from_millis(200));
    rustix::system::reboot(RebootCommand::PowerOff)?;
    Ok(Ending::Passed)
}

fn say(what: &str) {
    println!("guest: {what}");
}

fn set_up() -> Result<()> {
    for (kind, place) in [("devtmpfs", "/dev"), ("proc", "/proc"), ("sysfs", "/sys")] {
        rustix::mount::mount(kind, place, kind, MountFlags::empty(), None)
            .with_context(|| format!("mount {place}"))?;
    }
    load_modules()?;
    wait_until(DISK, Duration::from_secs(20), || Ok(Path::new(DISK).exists()))?;
    let cache = fs::read_to_string("/sys/block/vda/queue/write_cache")?;
    say(&format!("disk of {} bytes, {}", bytes_of_disk()?, cache.trim()));
    Ok(())
}

/// Which module needs which is not asked: one that misses another is tried again after it.
fn load_modules() -> Result<()> {
    let entries = fs::read_dir("/modules")?.map(|entry| Ok(entry?.path()));
    let mut waiting = entries.collect::<Result<Vec<_>>>()?;
    waiting.sort();
    while !waiting.is_empty() {
        let count = waiting.len();
        let mut refused = Vec::new();
        waiting.retain(|module| load(module).map_err(|error| refused.push(error)).is_err());
        if waiting.len() == count {
            return refused.pop().map_or(Ok(()), Err);
        }
    }
    Ok(())
}

fn load(module: &Path) -> Result<()> {
    let file = File::open(module)?;
    rustix::system::finit_module(file, c"", 0).with_context(|| module.display().to_string())
}

fn bytes_of_disk() -> Result<u64> {
    let sectors = fs::read_to_string("/sys/block/vda/size")?;
    Ok(512 * sectors.trim().parse::<u64>()?)
}

fn act(deed: Deed, options: &Options) -> Result<()> {
    match deed {
        Deed::Make => make(options.layout),
        Deed::Write => write(options),
        Deed::Verify => {
            let highest = with_records(options, |records| records.highest())?;
            say(&format!("highest {highest}"));
            Ok(())
        }
        Deed::Fsck => {
            let status = Command::new("/sbin/e2fsck").args(["-fn", DISK]).status()?;
            say(&format!("fsck {}", status.code().unwrap_or(-1)));
            Ok(())
        }
    }
}

fn make(layout: Layout) -> Result<()> {
    if layout == Layout::Ext4 {
        let status =
            Command::new("/sbin/mke2fs").args(["-q", "-F", "-t", "ext4", DISK]).status()?;
        anyhow::ensure!(status.success(), "mke2fs: {status}");
    }
    say("made");
    Ok(())
}

fn write(options: &Options) -> Result<()> {
    with_records(options, |records| {
        let highest = records.highest()?;
        say(&format!("writes after {highest}"));
        for number in highest + 1.. {
            records.write(number).with_context(|| format!("record {number}"))?;
            say(&format!("durable {number}"));
            if number.is_multiple_of(DISCARD_EVERY) {
                records.discard()?;
            }
        }
        Ok(())
    })
}

/// The records of either layout.
enum Records {
    Ext4(Appended),
    Raw(Slots),
}

fn with_records<T>(options: &Options, act: impl FnOnce(&mut Records) -> Result<T>) -> Result<T> {
    match options.layout {
        Layout::Ext4 => {
            let data = CString::new("discard")?;
            rustix::mount::mount(DISK, PLACE, "ext4", MountFlags::NOATIME, Some(&*data))
                .context("mount of the disk")?;
            let result = act(&mut Records::Ext4(Appended::new(Path::new(PLACE), options.seed)));
            rustix::mount::unmount(PLACE, UnmountFlags::empty()).context("unmount")?;
            result
        }
        Layout::Raw => {
            let disk = File::options().read(true).write(true).open(DISK)?;
            act(&mut Records::Raw(Slots::new(disk, bytes_of_disk()?, options.seed)?))
        }
    }
}

impl Records {
    fn highest(&self) -> Result<u64> {
        match self {
            Records::Ext4(records) => records.highest(),
            Records::Raw(records) => records.highest(),
        }
    }

    fn write(&mut self, number: u64) -> Result<()> {
        match self {
            Records::Ext4(records) => records.write(number),
            Records::Raw(records) => records.write(number),
        }
    }

    /// A file comes and goes: the next commit of ext4 discards its blocks.
    fn discard(&self) -> Result<()> {
        if let Records::Ext4(_) = self {
            let path = Path::new(PLACE).join("discarded");
            fs::write(&path, vec![0xd5; DISCARDED_BYTES])?;
            File::open(&path)?.sync_all()?;
            fs::remove_file(&path)?;
        }
        Ok(())
    }
}
