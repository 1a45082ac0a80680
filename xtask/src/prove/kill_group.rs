//! `kill-group` and `kill-group-loop`: a machine dies in the middle of writing, again and again.
//!
//! Three hosts of one volume work, each with a writer. A round kills all processes of one with
//! SIGKILL. Another lists the whole tree and writes into every directory; the time from the kill
//! until it has is the figure. Then everything the dead host's writer was told is durable must be
//! there, and the victim mounts again. All writers and all mounts end every few rounds, and
//! at the end: the volume must be clean, and whole.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::ledger::Verified;
use super::life::Life;
use super::world::{Host, World};
use super::writer::Chance;
use super::{Extent, Figure, wait_until};

const HOSTS: usize = 3;
const ROUNDS: u32 = 50;
/// From the kill until the survivor has listed and written everywhere.
const TAKEOVER_MAX: Duration = Duration::from_secs(2);
/// Part of the kills, in percent, that must leave something to replay.
const REPLAYING_MIN: usize = 80;
const CHECK_EVERY: u32 = 10;
const LOOP_BYTES: u64 = 2 << 30;

/// On an image file.
pub fn on_image(extent: &Extent) -> Result<Figure> {
    let mut world = World::new("kill-group")?;
    world.format_image("2G")?;
    rounds(world, extent)
}

/// On a loop device.
pub fn on_loop(extent: &Extent) -> Result<Figure> {
    let mut world = World::new("kill-group-loop")?;
    world.format_loop(LOOP_BYTES)?;
    rounds(world, extent)
}

/// A host with the writer that works on it.
struct Worker {
    host: Host,
    life: Life,
}

struct Scene {
    world: World,
    workers: Vec<Worker>,
    chance: Chance,
    lives: u32,
    verified: Verified,
}

/// What one kill cost.
struct Kill {
    takeover: Touched,
    images: u64,
}

fn rounds(world: World, extent: &Extent) -> Result<Figure> {
    let count = extent.rounds.unwrap_or(ROUNDS);
    let mut scene = Scene {
        world,
        workers: Vec::new(),
        chance: Chance(extent.seed | 1),
        lives: 0,
        verified: Verified::default(),
    };
    scene.start()?;
    let mut kills = Vec::new();
    for round in 1..=count {
        let kill = scene.kill_one(round).with_context(|| format!("round {round}"))?;
        println!("round {round:2}: {} images replayed, takeover {}", kill.images, kill.takeover);
        kills.push(kill);
        if round % CHECK_EVERY == 0 || round == count {
            scene.end().with_context(|| format!("after round {round}"))?;
            scene.world.check()?;
            if round < count {
                scene.start()?;
            }
        }
    }
    let Verified { files, bytes } = scene.verified;
    println!("{files} durable files with {} MiB were there and whole", bytes >> 20);
    scene.world.done();
    Ok(figure(&kills))
}

impl Scene {
    /// Mounts all hosts and starts their writers.
    fn start(&mut self) -> Result<()> {
        for index in 0..HOSTS {
            let worker = self.worker(index)?;
            self.workers.push(worker);
        }
        Ok(())
    }

    fn worker(&mut self, index: usize) -> Result<Worker> {
        self.lives += 1;
        let host = self.world.mount(&format!("host{index}"))?;
        let seed = self.chance.below(u64::MAX);
        let life = Life::alone(&self.world, &host, self.lives, seed)?;
        Ok(Worker { host, life })
    }

    fn kill_one(&mut self, round: u32) -> Result<Kill> {
        let index = round as usize % HOSTS;
        self.let_work(index)?;
        let mut victim = self.workers.remove(index);
        let before = self.images_replayed()?;
        let killed = victim.host.kill_group();
        let survivor = &self.workers[index % (HOSTS - 1)].host;
        let takeover = touch_everywhere(&survivor.dir, round, killed)?;
        let images = self.images_replayed()? - before;
        self.bury(victim)?;
        let worker = self.worker(index)?;
        self.workers.insert(index, worker);
        self.look_after_writers()?;
        Ok(Kill { takeover, images })
    }

    /// Waits until the victim's writer has done something, then a random moment more.
    fn let_work(&mut self, index: usize) -> Result<()> {
        let life = &self.workers[index].life;
        wait_until("the first durable files", Duration::from_secs(20), || {
            Ok(life.count_done()? >= 10)
        })?;
        std::thread::sleep(Duration::from_millis(self.chance.below(700)));
        Ok(())
    }

    /// Verifies what a dead host's writer was told, then removes its files through a survivor.
    fn bury(&mut self, mut victim: Worker) -> Result<()> {
        victim.life.end()?;
        for survivor in &self.workers {
            self.verified.add(victim.life.verify(&survivor.host)?);
        }
        self.world.clear_mount(&victim.host)?;
        victim.life.remove(&self.workers[0].host)
    }

    /// A writer on a surviving host must not have noticed anything.
    fn look_after_writers(&mut self) -> Result<()> {
        for worker in &mut self.workers {
            if let Some(said) = worker.life.last_words()? {
                bail!("the writer of {} ended: {said}", worker.host.name);
            }
        }
        Ok(())
    }

    /// Ends all writers and unmounts all hosts; every ledger is verified through another host.
    fn end(&mut self) -> Result<()> {
        for worker in &mut self.workers {
            worker.life.end()?;
        }
        for (index, worker) in self.workers.iter().enumerate() {
            let other = &self.workers[(index + 1) % self.workers.len()].host;
            self.verified.add(worker.life.verify(other)?);
        }
        for worker in &self.workers {
            worker.life.remove(&self.workers[0].host)?;
        }
        for worker in self.workers.drain(..) {
            self.world.unmount(worker.host)?;
        }
        Ok(())
    }

    /// Images that the living hosts have replayed since they mounted.
    fn images_replayed(&self) -> Result<u64> {
        let mut images = 0;
        for worker in &self.workers {
            let info = self.world.json(["info"], &worker.host.dir)?;
            let applied = info["counters"]["images_applied"].as_u64();
            images += applied.context("info without counters.images_applied")?;
        }
        Ok(images)
    }
}

/// What it took to list a tree and write everywhere in it.
#[derive(Default)]
pub struct Touched {
    /// All of it.
    pub took: Duration,
    entries: u32,
    steps: Vec<Step>,
}

/// One directory of it.
struct Step {
    place: PathBuf,
    listed: Duration,
    wrote: Duration,
}

impl std::fmt::Display for Touched {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let longest = self.steps.iter().max_by_key(|step| step.listed + step.wrote);
        let longest = longest.map_or(String::new(), Step::to_string);
        let (took, directories) = (self.took.as_millis(), self.steps.len());
        let entries = self.entries;
        write!(f, "{took:4} ms ({directories} directories, {entries} entries, longest {longest})")
    }
}

impl std::fmt::Display for Step {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Step { place, listed, wrote } = self;
        let (place, listed, wrote) = (place.display(), listed.as_millis(), wrote.as_millis());
        write!(f, "/{place} listed in {listed} ms, written in {wrote} ms")
    }
}

/// Lists the whole tree and makes a file durable in each of its directories; the time counts
/// from `since`.
pub fn touch_everywhere(top: &Path, round: u32, since: Instant) -> Result<Touched> {
    let mut touched = Touched::default();
    let mut last = since;
    let mut waiting = vec![top.to_path_buf()];
    while let Some(dir) = waiting.pop() {
        touched.entries += list(&dir, &mut waiting)?;
        let listed = last.elapsed();
        write_into(&dir, round)?;
        let wrote = last.elapsed() - listed;
        touched.steps.push(Step { place: dir.strip_prefix(top)?.to_path_buf(), listed, wrote });
        last = Instant::now();
    }
    touched.took = since.elapsed();
    Ok(touched)
}

/// Looks at every entry of a directory; its directories are to be listed, too.
fn list(dir: &Path, waiting: &mut Vec<PathBuf>) -> Result<u32> {
    let mut entries = 0;
    for entry in fs::read_dir(dir).with_context(|| format!("list {}", dir.display()))? {
        let entry = entry?;
        entries += 1;
        match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => waiting.push(entry.path()),
            // The writers go on: what was listed may be gone.
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(error).context(entry.path().display().to_string()),
        }
    }
    Ok(entries)
}

fn write_into(dir: &Path, round: u32) -> Result<()> {
    let path = dir.join(format!("touched-{round}"));
    let mut file = fs::File::create(&path).with_context(|| path.display().to_string())?;
    file.write_all(b"here\n").with_context(|| path.display().to_string())?;
    file.sync_all().with_context(|| path.display().to_string())
}

fn figure(kills: &[Kill]) -> Figure {
    histogram(kills);
    let slowest = kills.iter().map(|kill| &kill.takeover).max_by_key(|takeover| takeover.took);
    println!("the slowest takeover, step by step:");
    for step in slowest.iter().flat_map(|takeover| &takeover.steps) {
        println!("  {step}");
    }
    let slowest = slowest.map_or(Duration::ZERO, |takeover| takeover.took);
    let replaying = kills.iter().filter(|kill| kill.images > 0).count();
    let percent = replaying * 100 / kills.len().max(1);
    Figure {
        measured: format!(
            "{} kills, slowest takeover {:.2} s, {percent} % replayed images",
            kills.len(),
            slowest.as_secs_f64()
        ),
        bound: format!("{} s, {REPLAYING_MIN} %", TAKEOVER_MAX.as_secs()),
        is_kept: slowest <= TAKEOVER_MAX && percent >= REPLAYING_MIN,
    }
}

/// Images replayed per kill, in powers of two.
fn histogram(kills: &[Kill]) {
    println!("images replayed per kill:");
    let class = |images: u64| u64::BITS - images.leading_zeros();
    let last = kills.iter().map(|kill| class(kill.images)).max().unwrap_or_default();
    for row in 0..=last {
        let count = kills.iter().filter(|kill| class(kill.images) == row).count();
        let (from, to) = if row == 0 { (0, 0) } else { (1 << (row - 1), (1_u64 << row) - 1) };
        println!("  {from:5} to {to:5}: {count:3} {}", "#".repeat(count));
    }
}
