//! `guest`: a virtual machine on a mount dies with its host, and starts on another one.
//!
//! Host A runs a guest whose disk is a file on the mount, without any cache of A's kernel. The
//! guest writes records, makes each durable and then says so on its serial console. All processes
//! of A are killed, QEMU among them. Host B, mounted all the time, starts the guest from the same
//! file: each record that the console said is durable must be there, and after the replay of its
//! journal the guest's ext4 must be clean. The next round goes on with the same disks.

mod init;
mod initramfs;
mod kernel;
mod machine;
mod records;

use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::ValueEnum as _;

use init::Layout;
pub use init::{Options, run as run_init};
pub use kernel::get as kernel;
use machine::{Attachment, BOOT_LIMIT, Boot, Disk, Machine};

use super::world::{Host, World};
use super::writer::Chance;
use super::{Extent, Figure};

const ROUNDS: u32 = 20;
const ROUNDS_SLICE: u32 = 3;
/// Before the kill, so that there is something to lose.
const DURABLE_MIN: u64 = 40;
/// From the kill until another host has read the disk and made a write to it durable.
const TAKEOVER_MAX: Duration = Duration::from_secs(2);
/// A power of two, as the records want it.
const DISK_BYTES: u64 = 256 << 20;

/// One after the other, each with both layouts in turn.
const ATTACHMENTS: &[Attachment] = &[
    Attachment::File("native"),
    Attachment::File("io_uring"),
    Attachment::File("threads"),
    Attachment::Nbd,
    Attachment::VhostUserBlk,
];
const LAYOUTS: &[Layout] = &[Layout::Ext4, Layout::Raw];

struct Scene {
    world: World,
    boot: Boot,
    survivor: Host,
    chance: Chance,
    seed: u64,
    made: BTreeSet<String>,
}

/// What a round was.
struct Round {
    number: u32,
    attachment: Attachment,
    layout: Layout,
}

/// What one kill cost.
struct Kill {
    durable: u64,
    found: u64,
    takeover: Duration,
}

/// Kills hosts with a guest on them.
pub fn run(extent: &Extent) -> Result<Figure> {
    let mut world = World::new("guest")?;
    let kernel = kernel::get()?;
    println!("guest kernel {}", kernel.image.display());
    let initramfs = world.path("initramfs");
    initramfs::make(&initramfs, &kernel.modules)?;
    world.format_image("4G")?;
    let survivor = world.mount("b")?;
    let chance = Chance(extent.seed | 1);
    let boot = Boot { kernel: kernel.image, initramfs };
    let mut scene =
        Scene { world, boot, survivor, chance, seed: extent.seed, made: BTreeSet::new() };
    let kills = scene.rounds(extent)?;
    scene.world.unmount(scene.survivor)?;
    scene.world.check()?;
    scene.world.done();
    Ok(figure(&kills))
}

fn figure(kills: &[Kill]) -> Figure {
    let durable: u64 = kills.iter().map(|kill| kill.durable).sum();
    let slowest = kills.iter().map(|kill| kill.takeover).max().unwrap_or_default();
    let kills = kills.len();
    Figure {
        measured: format!(
            "{kills} kills, {durable} durable records, all there; every ext4 clean; slowest \
             takeover {:.2} s",
            slowest.as_secs_f64()
        ),
        bound: format!("all, clean, {} s", TAKEOVER_MAX.as_secs()),
        is_kept: kills > 0 && slowest <= TAKEOVER_MAX,
    }
}

impl Scene {
    fn rounds(&mut self, extent: &Extent) -> Result<Vec<Kill>> {
        let only = extent.only.as_deref().unwrap_or_default();
        let ways: Vec<_> =
            ATTACHMENTS.iter().filter(|way| way.to_string().contains(only)).collect();
        ensure!(!ways.is_empty(), "no attachment is called {only}");
        let count = if extent.is_slice { ROUNDS_SLICE } else { ROUNDS };
        let mut kills = Vec::new();
        for number in 0..extent.rounds.unwrap_or(count) {
            let (turn, way) = (number as usize / ways.len(), number as usize % ways.len());
            let (attachment, layout) = (*ways[way], LAYOUTS[(turn + way) % LAYOUTS.len()]);
            let kill = self
                .round(&Round { number, attachment, layout })
                .with_context(|| format!("round {} ({attachment}, {layout:?})", number + 1))?;
            println!(
                "round {:2}: {attachment}, {layout:?}: {} durable, {} found, takeover {} ms",
                number + 1,
                kill.durable,
                kill.found,
                kill.takeover.as_millis()
            );
            kills.push(kill);
        }
        Ok(kills)
    }

    fn round(&mut self, round: &Round) -> Result<Kill> {
        let mut victim = self.world.mount("a")?;
        let name = format!("{}-{:?}.raw", round.attachment, round.layout);
        let file = victim.dir.join(&name);
        let mut deeds = "write";
        if self.made.insert(name.clone()) {
            File::create(&file)?.set_len(DISK_BYTES)?;
            deeds = "make write";
        }
        let mut machine = self.start(round, &victim, &file, deeds)?;
        let cache = machine.says("disk of", BOOT_LIMIT)?;
        // Without a cache to flush the guest sends no flush, and what it calls durable may not be.
        ensure!(cache.ends_with("write back"), "the guest takes its disk for {cache}");
        let before = machine.says_number("writes after", BOOT_LIMIT)?;
        while machine.says_number("durable", BOOT_LIMIT)? < before + DURABLE_MIN {}
        std::thread::sleep(Duration::from_millis(self.chance.below(2_000)));
        let killed = victim.kill_group();
        let file = self.survivor.dir.join(&name);
        let takeover = take_over(&file, killed).context("seen by b")?;
        let durable = machine.last_durable()?;
        let found = self.look(round, &file)?;
        ensure!(found >= durable, "{durable} records were durable, {found} were found");
        self.world.clear_mount(&victim)?;
        Ok(Kill { durable: durable - before, found, takeover })
    }

    /// The highest record that a guest of the surviving host finds, all before it being whole.
    fn look(&self, round: &Round, file: &Path) -> Result<u64> {
        let is_ext4 = round.layout == Layout::Ext4;
        let deeds = if is_ext4 { "verify fsck" } else { "verify" };
        let mut machine = self.start(round, &self.survivor, file, deeds)?;
        let found = machine.says_number("highest", BOOT_LIMIT)?;
        if is_ext4 {
            let code = machine.says_number("fsck", BOOT_LIMIT)?;
            ensure!(code == 0, "e2fsck -fn ended with {code}");
        }
        machine.ends()?;
        Ok(found)
    }

    fn start(&self, round: &Round, host: &Host, file: &Path, deeds: &str) -> Result<Machine> {
        let log = self.world.path(&format!("logs/{}-{}.console", round.number + 1, host.name));
        let disk = Disk { file, attachment: round.attachment, log: &log };
        let layout = round.layout.to_possible_value().context("a layout without a name")?;
        let init = format!("--layout {} --seed {} {deeds}", layout.get_name(), self.seed);
        Machine::start(&self.boot, &disk, host, &init)
    }
}

/// Reads the start of the disk and writes the same back; the time counts from `since`.
fn take_over(file: &Path, since: Instant) -> Result<Duration> {
    let file = File::options().read(true).write(true).open(file)?;
    let mut start = vec![0; 4096];
    file.read_exact_at(&mut start, 0)?;
    file.write_all_at(&start, 0)?;
    file.sync_all()?;
    Ok(since.elapsed())
}
