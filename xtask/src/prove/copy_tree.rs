//! `copy-tree`: a real tree, copied by `cp -a` through one host, is the same through another.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use rustix::fs::{CWD, FileType, Mode, XattrFlags};

use super::compare::compare;
use super::world::{Host, World};
use super::{Extent, Figure};
use crate::shell;

/// Fewer entries than this would not be the tree that the claim speaks of.
const ENTRIES_MIN: u64 = 20_000;

/// Copies A to B and B to A, comparing each time.
pub fn run(extent: &Extent) -> Result<Figure> {
    let mut world = World::new("copy-tree")?;
    let source = world.path("source");
    make_source(&source, &if extent.is_slice { small_trees() } else { real_trees()? })?;
    world.format_image(if extent.is_slice { "2G" } else { "8G" })?;
    let a = world.mount("a")?;
    copy(&source, &a.dir.join("from-a"))?;
    // B mounts now, while A is alive and keeps the locks of all it wrote.
    let b = world.mount("b")?;
    tell_locks(&world, &a)?;
    let forth = same(&source, &b.dir.join("from-a"), "b reads what a wrote")?;
    copy(&source, &b.dir.join("from-b"))?;
    let back = same(&source, &a.dir.join("from-b"), "a reads what b wrote")?;
    world.unmount(a)?;
    world.unmount(b)?;
    world.check()?;
    world.done();
    let minimum = if extent.is_slice { 1 } else { ENTRIES_MIN };
    let differences = forth.1 + back.1;
    Ok(Figure {
        measured: format!("{} entries each way, {differences} differences", forth.0),
        bound: format!("at least {minimum} entries, 0 differences"),
        is_kept: differences == 0 && forth.0 >= minimum,
    })
}

fn same(source: &Path, copy: &Path, what: &str) -> Result<(u64, usize)> {
    println!("{what}:");
    let started = Instant::now();
    let comparison = compare(source, copy)?;
    comparison.tell();
    println!("  compared in {:.1} s", started.elapsed().as_secs_f64());
    Ok((comparison.entries, comparison.differences.len()))
}

/// `cp -a`, with its time.
pub fn copy(from: &Path, to: &Path) -> Result<()> {
    let started = Instant::now();
    shell::run(shell::command("cp", ["-a"]).args([from, to]))?;
    println!("  copied in {:.1} s", started.elapsed().as_secs_f64());
    Ok(())
}

fn tell_locks(world: &World, host: &Host) -> Result<()> {
    let locks = world.json(["locks"], &host.dir)?;
    let count = locks["locks"].as_array().map_or(0, Vec::len);
    if count == 0 {
        bail!("{} keeps no locks: the claim is about cached ones", host.name);
    }
    println!("{} is alive and keeps {count} locks", host.name);
    Ok(())
}

/// A copy of what every Debian has, with what it lacks: attributes, hard links, holes, a fifo.
pub fn make_source(source: &Path, trees: &[PathBuf]) -> Result<()> {
    fs::create_dir_all(source)?;
    for from in trees {
        let name = from.strip_prefix("/")?.to_string_lossy().replace('/', "-");
        copy(from, &source.join(name))?;
    }
    let extras = source.join("extras");
    fs::create_dir(&extras)?;
    for index in 0..100 {
        let file = extras.join(format!("file-{index}"));
        fs::write(&file, vec![b'x'; index * 97])?;
        let value = vec![b'v'; 1 + index * 13];
        rustix::fs::setxattr(&file, "user.lunfs.value", &value, XattrFlags::CREATE)
            .context("user attributes on the source; is it on tmpfs?")?;
        rustix::fs::setxattr(&file, "user.short", b"", XattrFlags::CREATE)?;
        fs::hard_link(&file, extras.join(format!("link-{index}")))?;
        std::os::unix::fs::symlink(format!("file-{index}"), extras.join(format!("soft-{index}")))?;
    }
    rustix::fs::setxattr(&extras, "user.of.a.directory", b"yes", XattrFlags::CREATE)?;
    let mode = Mode::from_raw_mode(0o640);
    rustix::fs::mknodat(CWD, extras.join("fifo"), FileType::Fifo, mode, 0)?;
    let holes = fs::File::create(extras.join("holes"))?;
    holes.set_len(300 << 20)?;
    std::os::unix::fs::FileExt::write_all_at(&holes, b"island", 123 << 20)?;
    std::os::unix::fs::chown(extras.join("file-1"), Some(1234), Some(5678))?;
    fs::set_permissions(
        extras.join("file-2"),
        std::os::unix::fs::PermissionsExt::from_mode(0o4755),
    )?;
    Ok(())
}

/// The trees that the claim speaks of.
fn real_trees() -> Result<Vec<PathBuf>> {
    let mut trees = vec![PathBuf::from("/usr/share")];
    for entry in fs::read_dir("/usr/lib")? {
        let path = entry?.path();
        if path.to_string_lossy().starts_with("/usr/lib/python3") {
            trees.push(path);
        }
    }
    Ok(trees)
}

/// About a thousand files with links among them, where a run must be short.
pub fn small_trees() -> Vec<PathBuf> {
    ["/usr/share/zoneinfo", "/usr/share/perl5"]
        .map(PathBuf::from)
        .into_iter()
        .filter(|path| path.is_dir())
        .collect()
}
