//! Where a volume may be mounted. All of it is asked before the volume is joined: a host that
//! comes and goes is work for the others, and what a mount hides nobody can see any more.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use lunfs_host::{Mount, control, force};

use crate::reader::Reader;

/// What a host itself looks at while it is mounted. Under our own mount it would wait for itself.
const NEEDED: &[&str] = &["/run/lunfs", "/proc", "/dev/fuse"];

/// Refuses a directory at which `source` cannot be mounted without harm.
pub fn must_be_free(dir: &Path, source: &Path, may_hide: bool) -> Result<()> {
    let point = directory(dir)?;
    let shown = dir.display();
    let around = control::lunfs_mounts_around(&point)?;
    if let Some(mount) = around.iter().find(|mount| is_same_volume(source, mount)) {
        bail!(
            "cannot mount at {shown}: it lies in a mount of this same volume, at {}; nothing was \
             done. Give a directory outside of it",
            mount.point.display()
        );
    }
    if source.starts_with(&point) {
        bail!(
            "cannot mount at {shown}: {} lies below it and would be hidden; nothing was done. \
             Give another directory",
            source.display()
        );
    }
    if let Some(needed) = NEEDED.iter().find(|needed| Path::new(needed).starts_with(&point)) {
        bail!(
            "cannot mount at {shown}: lunfs itself needs {needed}, which would be hidden; nothing \
             was done. Give another directory"
        );
    }
    if may_hide { Ok(()) } else { must_be_empty(&point, dir) }
}

/// Refuses a log below the mount point: the daemon would wait for itself, or write where nobody
/// sees it.
pub fn must_not_hide(dir: &Path, log: &Path) -> Result<()> {
    let point = directory(dir)?;
    let beside = log.parent().and_then(|dir| std::fs::canonicalize(dir).ok());
    if beside.is_some_and(|beside| beside.starts_with(&point)) {
        let (log, dir) = (log.display(), dir.display());
        bail!(
            "cannot log to {log}: it lies below the mount point {dir} and would be hidden; nothing \
             was done. Give another place with --log"
        );
    }
    Ok(())
}

/// The directory by its one name.
fn directory(dir: &Path) -> Result<PathBuf> {
    let shown = dir.display();
    // Before any look at it: one that is served by nobody, or by somebody who hangs, says nothing.
    if let Some(mount) = control::mount_at(dir)? {
        if !force::has_listener(&mount) && force::is_dead(&mount) {
            bail!("a dead mount is at {shown}; run `lunfs unmount {shown}`, then mount again");
        }
        bail!("{} is mounted at {shown} already", mount.source);
    }
    let point = std::fs::canonicalize(dir).with_context(|| format!("cannot mount at {shown}"))?;
    let about = std::fs::metadata(&point).with_context(|| format!("cannot mount at {shown}"))?;
    if !about.is_dir() {
        bail!("cannot mount at {shown}: it is not a directory");
    }
    Ok(point)
}

fn must_be_empty(point: &Path, dir: &Path) -> Result<()> {
    let shown = dir.display();
    let mut entries =
        std::fs::read_dir(point).with_context(|| format!("cannot mount at {shown}"))?;
    let Some(first) = entries.next() else { return Ok(()) };
    let first = first.with_context(|| format!("cannot list {shown}"))?.file_name();
    bail!(
        "cannot mount at {shown}: it is not empty ({} is there), and a mount hides what a \
         directory holds; nothing was done. Give an empty directory, or add --nonempty if all of \
         it may be hidden until you unmount",
        first.display()
    )
}

/// By what both hold: one volume may be reached under several names.
fn is_same_volume(source: &Path, mount: &Mount) -> bool {
    let other = Path::new(&mount.source);
    let volume = |path| Reader::open(path).ok().map(|reader| reader.superblock().volume);
    source == other || volume(source).is_some_and(|ours| volume(other) == Some(ours))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Without a mount: a mistake in what is tested here must not hide a directory of this machine.
    fn refused(dir: &Path, source: &Path) -> String {
        must_be_free(dir, source, true).expect_err("it is no mount point").to_string()
    }

    #[test]
    fn a_source_is_not_hidden_by_its_own_mount() {
        let source = std::env::current_exe().expect("a test has a program");
        let dir = source.parent().expect("in a directory");
        assert!(refused(dir, &source).contains("would be hidden; nothing was done"));
    }

    #[test]
    fn what_lunfs_needs_is_not_hidden() {
        for dir in ["/proc", "/dev", "/"] {
            let said = refused(Path::new(dir), Path::new("/somewhere-else.img"));
            assert!(said.contains("would be hidden"), "{dir}: {said}");
        }
    }
}
