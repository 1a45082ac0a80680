//! `disks`: snapshots of a disk while it is written are moments of it; their clones on another host
//! are what they were, also when the first host is killed.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use anyhow::{Context, Result, bail};

use super::world::{Host, World};
use super::{Extent, Figure};
use crate::shell;

const WRITERS: usize = 8;
const ROUNDS: u32 = 40;
/// Bytes of one count, which is repeated to fill them.
const BLOCK: usize = 4096;
/// Between the blocks of two writers, and from a writer's first block to its second.
const STRIDE: u64 = 1 << 20;
const SECOND: u64 = 32 << 20;

/// What the writers were answered so far.
#[derive(Default)]
struct Answered {
    counts: [AtomicU64; WRITERS],
    is_over: AtomicBool,
}

/// Takes snapshots on one host while its writers write, clones each on the other, and kills the
/// first.
pub fn run(extent: &Extent) -> Result<Figure> {
    let rounds = extent.rounds.unwrap_or(ROUNDS);
    let mut world = World::new("disks")?;
    world.format_image("2G")?;
    let mut a = world.mount("a")?;
    let b = world.mount("b")?;
    let create = &mut world.lunfs(["disk", "create", "--size", "64M"]);
    shell::run(create.arg(a.dir.join("disk")))?;
    let answered = Answered::default();
    let disk = File::options().write(true).open(a.dir.join("disk"))?;
    let last = thread::scope(|scope| {
        for (index, count) in answered.counts.iter().enumerate() {
            let (disk, is_over) = (&disk, &answered.is_over);
            scope.spawn(move || write(disk, index as u64 * STRIDE, count, is_over));
        }
        let last = (1..=rounds).try_fold(Vec::new(), |_, round| {
            round_of(&world, (&a, &b), round, &answered).with_context(|| format!("round {round}"))
        });
        a.kill_group();
        answered.is_over.store(true, Ordering::Relaxed);
        last
    })?;
    drop(disk);
    world.clear_mount(&a)?;
    let again = clone(&world, &b, &format!("disk@{rounds}"))?;
    if again != last {
        bail!("a clone made after the death of the first host is another one");
    }
    println!("the first host is dead: its snapshots are what they were");
    shell::run(world.lunfs(["snapshot", "create"]).arg(b.dir.join("disk@after")))?;
    shell::run(world.lunfs(["disk", "delete"]).arg(b.dir.join("disk")))?;
    world.unmount(b)?;
    world.check()?;
    world.done();
    let writes: u64 = answered.counts.iter().map(|count| count.load(Ordering::Relaxed)).sum();
    Ok(Figure {
        measured: format!("{rounds} snapshots during {writes} pairs of writes, each a moment"),
        bound: "each has all that was answered before it, and no second write without its first"
            .into(),
        // Without any the disk was never written.
        is_kept: writes > 0,
    })
}

/// Counts in a first block and then in a second one, until it fails or is over.
fn write(disk: &File, at: u64, count: &AtomicU64, is_over: &AtomicBool) {
    for next in 1.. {
        let block = u64::to_le_bytes(next).repeat(BLOCK / 8);
        let done =
            disk.write_all_at(&block, at).and_then(|()| disk.write_all_at(&block, at + SECOND));
        if done.is_err() || is_over.load(Ordering::Relaxed) {
            return;
        }
        count.store(next, Ordering::Release);
    }
}

/// A snapshot, its clone on the other host, and what that holds; returns it.
fn round_of(
    world: &World,
    (a, b): (&Host, &Host),
    round: u32,
    answered: &Answered,
) -> Result<Vec<u8>> {
    let now = || answered.counts.each_ref().map(|count| count.load(Ordering::Acquire));
    let before = now();
    let snapshot = format!("disk@{round}");
    shell::output(world.lunfs(["snapshot", "create"]).arg(a.dir.join(&snapshot)))?;
    let after = now();
    let bytes = clone(world, b, &snapshot)?;
    for (index, (before, after)) in before.into_iter().zip(after).enumerate() {
        let at = index * usize::try_from(STRIDE)?;
        let first = counted(&bytes, at)?;
        let second = counted(&bytes, at + usize::try_from(SECOND)?)?;
        let is_moment = before <= second && second <= first && first <= second + 1;
        // A pair was under way, and another one may have been answered and not told yet.
        if !is_moment || first > after + 2 {
            bail!("writer {index}: {before} were answered, {first} and {second} are there");
        }
    }
    println!("round {round:2}: {} pairs answered", before.iter().sum::<u64>());
    Ok(bytes)
}

/// What a clone of a snapshot holds; it is deleted again.
fn clone(world: &World, host: &Host, snapshot: &str) -> Result<Vec<u8>> {
    let path = host.dir.join("clone");
    shell::output(world.lunfs(["clone"]).args([&host.dir.join(snapshot), &path]))?;
    let bytes = read(&path)?;
    shell::output(world.lunfs(["disk", "delete"]).arg(&path))?;
    Ok(bytes)
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

/// The count that fills a block.
fn counted(bytes: &[u8], at: usize) -> Result<u64> {
    let block = bytes.get(at..at + BLOCK).context("the clone is too short")?;
    let (first, rest) = block.split_first_chunk().context("an empty block")?;
    if rest.chunks(first.len()).any(|other| other != first) {
        bail!("the block at {at} is torn");
    }
    Ok(u64::from_le_bytes(*first))
}
