//! `stop`: a host that does not run but is not dead either (SIGSTOP, a hung machine).
//!
//! On an image the survivor kills the stopped program through its pid, so that nothing it had
//! in hand can land later. After SIGCONT it must be dead, its mount must say so, and the files it
//! was writing must stay as they were at the takeover.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::Signal;

use super::kill_group::touch_everywhere;
use super::ledger::{self, Content};
use super::world::{Host, World};
use super::{Extent, Figure, wait_until};

/// From the stop until the survivor has written everywhere.
const TAKEOVER_MAX: Duration = Duration::from_secs(15);
const STOPPED_FOR: Duration = Duration::from_secs(20);
const WATCHED_FOR: Duration = Duration::from_secs(25);

/// Stops a host for 20 s while it writes.
pub fn run(extent: &Extent) -> Result<Figure> {
    let mut world = World::new("stop")?;
    world.format_image("1G")?;
    let mut a = world.mount("a")?;
    let b = world.mount("b")?;
    fs::create_dir(a.dir.join("writing"))?;
    let log = world.path("logs/writing.ledger");
    let mut writer = world.writer(&a.dir.join("writing"), &log, extent.seed, "")?;
    wait_until("the first durable files", Duration::from_secs(20), || {
        Ok(log.exists() && ledger::count_done(&log)? >= 20)
    })?;

    println!("stopping a in the middle of writing");
    let stopped = Instant::now();
    a.signal_group(Signal::STOP);
    let takeover = touch_everywhere(&b.dir, 1, stopped)?.took;
    println!("b wrote everywhere after {:.2} s", takeover.as_secs_f64());
    let then = contents(&b.dir.join("writing"))?;

    std::thread::sleep(STOPPED_FOR.saturating_sub(stopped.elapsed()));
    a.signal_group(Signal::CONT);
    println!("a may run again");
    must_be_dead(&mut a)?;
    must_say_so(&a.dir)?;
    std::thread::sleep(WATCHED_FOR.saturating_sub(stopped.elapsed()));
    let _ = writer.kill();
    writer.wait()?;

    let differences = differences(&then, &contents(&b.dir.join("writing"))?);
    ledger::verify(&b.dir.join("writing"), &log).context("seen by b")?;
    world.clear_mount(&a)?;
    let fresh = world.mount("c")?;
    let seen_fresh = contents(&fresh.dir.join("writing"))?;
    let differences = differences + self::differences(&then, &seen_fresh);
    world.unmount(fresh)?;
    world.unmount(b)?;
    world.check()?;
    world.done();
    Ok(Figure {
        measured: format!(
            "takeover after {:.2} s, {} files watched, {differences} changed afterwards",
            takeover.as_secs_f64(),
            then.len()
        ),
        bound: format!("{} s, 0 changed", TAKEOVER_MAX.as_secs()),
        is_kept: takeover <= TAKEOVER_MAX && differences == 0,
    })
}

fn must_be_dead(a: &mut Host) -> Result<()> {
    wait_until("the death of every process of a", Duration::from_secs(5), || {
        a.reap();
        Ok(a.running().is_empty())
    })
    .map(drop)
}

fn must_say_so(dir: &Path) -> Result<()> {
    match fs::read_dir(dir) {
        Ok(_) => bail!("the mount of the dead host still answers"),
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::NOTCONN.raw_os_error()) => {
            println!("a's mount says ENOTCONN");
            Ok(())
        }
        Err(error) => Err(error).context("the mount of the dead host must say ENOTCONN"),
    }
}

fn contents(dir: &Path) -> Result<BTreeMap<PathBuf, Content>> {
    let mut all = BTreeMap::new();
    let mut waiting = vec![dir.to_path_buf()];
    while let Some(place) = waiting.pop() {
        for entry in fs::read_dir(&place)? {
            let path = entry?.path();
            if path.is_dir() {
                waiting.push(path);
            } else {
                let content = Content::of_file(&path, None)?;
                all.insert(path.strip_prefix(dir)?.to_path_buf(), content);
            }
        }
    }
    Ok(all)
}

fn differences(then: &BTreeMap<PathBuf, Content>, now: &BTreeMap<PathBuf, Content>) -> usize {
    let changed: Vec<&PathBuf> = then
        .iter()
        .filter(|(path, content)| now.get(*path) != Some(content))
        .map(|(path, _)| path)
        .chain(now.keys().filter(|path| !then.contains_key(*path)))
        .collect();
    for path in &changed {
        println!("  changed after the takeover: {}", path.display());
    }
    changed.len()
}
