//! `lunfs demo`: the main job in half a minute, on an image file, for anyone with root.
//!
//! Two hosts (two groups of processes, two FUSE mounts) share one volume. One is killed while
//! it writes; the other goes on. `sha256sum` compares contents, times come from the logs.

mod stage;
mod timeline;

use std::io::ErrorKind;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::CouldNotRun;
use crate::out::say;
use stage::{Host, Stage};

const SIZE: &str = "1G";
const FILES: u32 = 200;
/// How long the first host writes before it is killed.
const WRITING: Duration = Duration::from_millis(1500);

/// How to run the demonstration.
#[derive(Args)]
pub struct Options {
    /// Leave the surviving mount and the image for a look around
    #[arg(long)]
    keep: bool,
}

/// Runs the demonstration; names what is missing where it cannot.
pub fn run(options: &Options) -> Result<ExitCode> {
    needs()?;
    let started = Instant::now();
    let mut stage = Stage::new()?;
    say!("lunfs demo: two hosts share one volume; one of them dies while it writes.\n");

    say!("1. A volume: a sparse image of {SIZE}iB");
    stage.lunfs_told(&["format", "--label", "demo", "--size", SIZE], &[&stage.image()])?;

    say!("\n2. Two hosts mount it: two groups of processes, two FUSE mounts");
    let alpha = stage.mount("alpha")?;
    let beta = stage.mount("beta")?;
    stage.lunfs_told(&["hosts"], &[&beta.dir])?;

    say!("\n3. alpha writes {FILES} files, beta reads them");
    compare_through_both(&stage, &alpha, &beta)?;

    say!("\n4. alpha writes on, one fsync after the other, and is killed with -9");
    let survivor = kill_and_go_on(&mut stage, alpha, beta)?;

    say!("\n5. Is everything sound?");
    let image = stage.image();
    if options.keep {
        stage.lunfs_told(&["check"], &[&survivor.dir])?;
        stage.keep(&survivor);
    } else {
        stage.unmount(survivor)?;
        stage.lunfs_told(&["check"], &[&image])?;
    }
    say!("\nDone in {:.0} s.{}", started.elapsed().as_secs_f64(), NEXT);
    Ok(ExitCode::SUCCESS)
}

const NEXT: &str = " What to type next (as root):

    lunfs=target/release/lunfs
    $lunfs format --label mine --size 10G /var/tmp/mine.img
    mkdir -p /mnt/a /mnt/b
    $lunfs mount /var/tmp/mine.img /mnt/a --host a
    $lunfs mount /var/tmp/mine.img /mnt/b --host b
    cp -a /usr/share/doc /mnt/a && ls /mnt/b/doc
    $lunfs hosts /mnt/b
    $lunfs unmount /mnt/a && $lunfs unmount /mnt/b && $lunfs check /var/tmp/mine.img

  `cargo xtask prove --list` names what else can be shown; README.md leads on.";

/// All that the demonstration needs and this machine lacks, in one sentence.
fn needs() -> Result<()> {
    let lacks: Vec<String> =
        [lacks_root(), lacks_fuse(), lacks_sha256sum()].into_iter().flatten().collect();
    if lacks.is_empty() {
        return Ok(());
    }
    let lacks = lacks.join("; ");
    Err(CouldNotRun(format!("the demo cannot run here: {lacks}; nothing was done")).into())
}

fn lacks_root() -> Option<String> {
    let is_root = rustix::process::geteuid().is_root();
    (!is_root).then(|| "it mounts, so it needs root (sudo)".into())
}

fn lacks_fuse() -> Option<String> {
    let fuse = std::fs::File::options().read(true).write(true).open("/dev/fuse");
    let error = fuse.err()?;
    if error.kind() == ErrorKind::PermissionDenied && lacks_root().is_some() {
        // That is the same lack.
        return None;
    }
    Some(format!("/dev/fuse: {error}; load the module with `modprobe fuse`"))
}

fn lacks_sha256sum() -> Option<String> {
    let started = Command::new("sha256sum").stdin(Stdio::null()).stdout(Stdio::null()).status();
    Some(format!("sha256sum, which compares the files, cannot be started: {}", started.err()?))
}

fn compare_through_both(stage: &Stage, alpha: &Host, beta: &Host) -> Result<()> {
    let dir = alpha.dir.join("files");
    std::fs::create_dir(&dir)?;
    let mut bytes = 0;
    for number in 0..FILES {
        let content = stage::content(u64::from(number), u64::from(number) * 997);
        bytes += content.len();
        std::fs::write(dir.join(format!("file-{number:03}")), content)?;
    }
    let sums = stage.path("files.sha256");
    stage::sha256sum(&dir, &sums)?;
    say!("   $ cd {} && sha256sum * > files.sha256", dir.display());
    let seen = beta.dir.join("files");
    say!("   $ cd {} && sha256sum -c files.sha256", seen.display());
    let good = stage::sha256sum_check(&seen, &sums)?;
    say!("   {good} of {FILES} files are the same ({} KiB)", bytes >> 10);
    if good != FILES as usize {
        bail!("beta does not see what alpha wrote");
    }
    Ok(())
}

/// Kills alpha while it writes; returns beta, which has gone on.
fn kill_and_go_on(stage: &mut Stage, alpha: Host, beta: Host) -> Result<Host> {
    let writing = alpha.dir.join("durable");
    std::fs::create_dir(&writing)?;
    let expected = stage.path("expected");
    let writer = stage::Writer::start(&writing, &expected)?;
    std::thread::sleep(WRITING);

    let killed_at = SystemTime::now();
    let killed = Instant::now();
    let dead = stage.kill(alpha)?;
    let listed = std::fs::read_dir(beta.dir.join("durable"))?.count();
    std::fs::write(beta.dir.join("durable/written-by-beta"), "beta goes on\n")
        .context("beta cannot write where alpha wrote")?;
    let waited = killed.elapsed();
    let durable = writer.stop();

    say!("   timeline, from the hosts' logs:");
    let mut events = timeline::read(&beta.log, killed_at)?;
    events.push(timeline::Event::new(0.0, "demo", format!("kill -9 of process group {dead}")));
    events.push(timeline::Event::new(
        waited.as_secs_f64(),
        "demo",
        format!("beta has listed {listed} files and written beside them"),
    ));
    timeline::print(events);

    let good = check_durable(&expected, &beta.dir.join("durable"))?;
    say!("   alpha's fsync had answered for {durable} files; {good} of them are whole on beta");
    if good < durable {
        bail!("{} durable files were lost", durable - good);
    }
    Ok(beta)
}

/// How many of the files that were durable are the same on the survivor.
fn check_durable(expected: &Path, seen: &Path) -> Result<usize> {
    let sums = expected.with_extension("sha256");
    stage::sha256sum(expected, &sums)?;
    stage::sha256sum_check(seen, &sums)
}
