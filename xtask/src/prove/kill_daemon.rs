//! `kill-daemon`: only the daemon dies. Its parent says so on the volume, and nobody waits long.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal};
use serde_json::Value;

use super::kill_group::touch_everywhere;
use super::world::{Host, World};
use super::writer::Chance;
use super::{Extent, Figure, ledger, wait_until};

const ROUNDS: u32 = 20;
const WAIT_MAX: Duration = Duration::from_secs(2);

/// Kills the daemon of one host again and again, with its parent left alive.
pub fn run(extent: &Extent) -> Result<Figure> {
    let mut world = World::new("kill-daemon")?;
    world.format_image("1G")?;
    let b = world.mount("b")?;
    let mut chance = Chance(extent.seed | 1);
    let mut slowest = Duration::ZERO;
    let count = extent.rounds.unwrap_or(ROUNDS);
    for round in 1..=count {
        let waited =
            round_of(&world, &b, round, &mut chance).with_context(|| format!("round {round}"))?;
        println!("round {round:2}: last word written, b waited {} ms", waited.as_millis());
        slowest = slowest.max(waited);
    }
    world.unmount(b)?;
    world.check()?;
    world.done();
    Ok(Figure {
        measured: format!(
            "{count} daemons killed, {count} last words, longest wait {:.2} s",
            slowest.as_secs_f64()
        ),
        bound: format!("{} s", WAIT_MAX.as_secs()),
        is_kept: slowest < WAIT_MAX,
    })
}

fn round_of(world: &World, b: &Host, round: u32, chance: &mut Chance) -> Result<Duration> {
    let a = world.mount("a")?;
    let place = format!("round{round}");
    fs::create_dir(a.dir.join(&place))?;
    let log = world.path(&format!("logs/{place}.ledger"));
    let mut writer = world.writer(&a.dir.join(&place), &log, chance.below(u64::MAX), "")?;
    wait_until("the first durable files", Duration::from_secs(20), || {
        Ok(log.exists() && ledger::count_done(&log)? >= 5)
    })?;
    std::thread::sleep(Duration::from_millis(chance.below(400)));

    let daemon = daemon_of(world, &a)?;
    let killed = Instant::now();
    rustix::process::kill_process(daemon, Signal::KILL)?;
    let waited = touch_everywhere(&b.dir, round, killed)?.took;

    let _ = writer.kill();
    writer.wait()?;
    ledger::verify(&b.dir.join(&place), &log).context("seen by b")?;
    wait_until("the parent's last word", WAIT_MAX, || Ok(has_last_word(&a.log_lines()?)))?;
    world.clear_mount(&a)?;
    end_parent(a)?;
    fs::remove_dir_all(b.dir.join(&place))?;
    Ok(waited)
}

fn daemon_of(world: &World, host: &Host) -> Result<Pid> {
    let info = world.json(["info"], &host.dir)?;
    let pid = info["pid"].as_i64().and_then(|pid| i32::try_from(pid).ok());
    pid.and_then(Pid::from_raw).context("info without pid")
}

fn has_last_word(lines: &[Value]) -> bool {
    lines.iter().any(|line| line["fields"]["event"] == "last_word")
}

/// The parent has nothing left to do and must end by itself.
fn end_parent(mut host: Host) -> Result<()> {
    let ended = wait_until("the parent's end", Duration::from_secs(10), || {
        host.reap();
        Ok(host.running().is_empty())
    });
    if ended.is_err() {
        host.kill_group();
        bail!("the parent did not end after its daemon was killed");
    }
    Ok(())
}
