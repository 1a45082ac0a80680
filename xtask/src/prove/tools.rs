//! `tools`: what rsync, tar and git put on a volume is what they find there on another host.

use std::path::Path;

use anyhow::Result;

use super::compare::compare;
use super::copy_tree::{make_source, small_trees};
use super::world::World;
use super::{Extent, Figure};
use crate::{shell, tools};

/// Copies a tree by rsync and by tar through A, makes a repository there, looks through B.
pub fn run(_: &Extent) -> Result<Figure> {
    println!("{}", tools::install()?);
    let mut world = World::new("tools")?;
    let source = world.path("source");
    make_source(&source, &small_trees())?;
    world.format_image("2G")?;
    let a = world.mount("a")?;
    let b = world.mount("b")?;

    let with_slash = format!("{}/", source.display());
    // Without the window rsync takes times of one second for the same.
    let rsync = ["-aHAX", "--sparse", "--numeric-ids", "--modify-window=-1"];
    shell::run(shell::command("rsync", rsync).arg(&with_slash).arg(a.dir.join("rsync")))?;
    let archive = b.dir.join("source.tar");
    let flags = ["--xattrs", "--xattrs-include=*", "--sparse", "--numeric-owner", "-C"];
    shell::run(shell::command("tar", flags).arg(&source).arg("-cf").arg(&archive).arg("."))?;
    std::fs::create_dir(a.dir.join("tar"))?;
    let seen = a.dir.join("source.tar");
    shell::run(shell::command("tar", flags).arg(a.dir.join("tar")).arg("-xpf").arg(&seen))?;
    let mut differences = 0;
    for copy in ["rsync", "tar"] {
        println!("{copy}, seen by b:");
        let comparison = compare(&source, &b.dir.join(copy))?;
        comparison.tell();
        differences += comparison.differences.len();
    }
    git(&a.dir, &b.dir)?;
    world.unmount(a)?;
    world.unmount(b)?;
    world.check()?;
    world.done();
    Ok(Figure {
        measured: format!("{differences} differences after rsync and tar; git fsck is clean"),
        bound: "0 differences".into(),
        is_kept: differences == 0,
    })
}

/// A repository made through one host, checked and committed to through the other.
fn git(here: &Path, there: &Path) -> Result<()> {
    let git = |dir: &Path, arguments: &[&str]| {
        let identity = ["-c", "user.name=prove", "-c", "user.email=prove@localhost"];
        let safe = ["-c", "safe.directory=*"];
        shell::run(shell::command("git", identity).args(safe).arg("-C").arg(dir).args(arguments))
    };
    let here = here.join("rsync");
    git(&here, &["init", "--quiet"])?;
    git(&here, &["add", "--all"])?;
    git(&here, &["commit", "--quiet", "--message", "through one host"])?;
    let there = there.join("rsync");
    git(&there, &["fsck", "--full", "--strict"])?;
    git(&there, &["status", "--short"])?;
    std::fs::write(there.join("more"), "through the other\n")?;
    git(&there, &["add", "more"])?;
    git(&there, &["commit", "--quiet", "--message", "through the other host"])?;
    git(&here, &["fsck", "--full", "--strict"])
}
