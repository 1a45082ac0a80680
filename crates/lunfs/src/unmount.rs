//! `lunfs unmount`: a clean end, or the removal of what a dead host left mounted.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use lunfs_host::Mount;
use lunfs_host::control::{self, Request};
use lunfs_host::force::{self, Daemon, Forced};
use rustix::mount::UnmountFlags;

use crate::out::say;

/// Which mount, and how patiently.
#[derive(Args)]
pub struct Options {
    /// Mount point, or the source of the only mount of it here
    dir: PathBuf,
    /// Unmount even if programs use it or the daemon hangs; ends within the deadline and 20 s
    #[arg(long)]
    force: bool,
    /// With --force: how long its users may take, as in 10s or 500ms
    #[arg(long, default_value = "10s", value_parser = duration, requires = "force")]
    deadline: Duration,
}

/// Unmounts; a mount whose daemon is dead is removed from the kernel.
pub fn run(options: &Options) -> Result<ExitCode> {
    let mount = wanted(&options.dir)?;
    if force::is_dead(&mount) {
        return remove(&mount);
    }
    if options.force {
        return by_force(&mount, options.deadline);
    }
    control::call(&mount.point, &Request::Unmount { force: false, deadline_ms: 0 })?;
    say!("unmounted {}", mount.point.display());
    Ok(ExitCode::SUCCESS)
}

/// Not the mount around a path: who names a file does not mean the whole volume.
fn wanted(path: &Path) -> Result<Mount> {
    if let Some(mount) = control::mount_at(path)? {
        return Ok(mount);
    }
    let shown = path.display();
    let mut mounts = match control::lies_in(path)? {
        // Nobody can be asked there if its server hangs.
        Some(_) => Vec::new(),
        None => control::mounts_from(path)?,
    };
    if mounts.len() > 1 {
        let points: Vec<_> = mounts.iter().map(|one| one.point.display().to_string()).collect();
        bail!("{shown} is mounted at {}; nothing was done. Name one of them", points.join(", "));
    }
    if let Some(mount) = mounts.pop() {
        return Ok(mount);
    }
    let point = control::find_mount(path)?.point;
    bail!(
        "{shown} lies inside the mount at {point}; nothing was done. `lunfs unmount {point}` \
         unmounts the volume",
        point = point.display()
    )
}

fn remove(mount: &Mount) -> Result<ExitCode> {
    let point = mount.point.display();
    let below = lunfs_host::mounted_below(mount);
    rustix::mount::unmount(&mount.point, UnmountFlags::DETACH)
        .with_context(|| format!("cannot remove the dead mount at {point}"))?;
    tell_removed(mount, &below)
}

fn tell_removed(mount: &Mount, below: &[String]) -> Result<ExitCode> {
    let point = mount.point.display();
    say!("removed the dead mount at {point}; all that was made durable is on the volume");
    tell_gone_with_it(below);
    Ok(ExitCode::SUCCESS)
}

/// Below a mount whose server does not answer nothing can be unmounted by itself.
fn tell_gone_with_it(below: &[String]) {
    for name in below {
        eprintln!("lunfs: gone with it: {name}");
    }
}

fn by_force(mount: &Mount, deadline: Duration) -> Result<ExitCode> {
    let point = mount.point.display();
    let below = lunfs_host::mounted_below(mount);
    let daemon = match force::unmount(mount, deadline)? {
        Forced::Clean(taken_from) => {
            say!("unmounted {point}");
            for name in taken_from {
                eprintln!("lunfs: taken from {name}");
            }
            return Ok(ExitCode::SUCCESS);
        }
        Forced::WasDead => return tell_removed(mount, &below),
        Forced::Unclean(why) => bail!(why),
        Forced::TakenAway(daemon) => daemon,
    };
    tell_gone_with_it(&below);
    let daemon = match daemon {
        Daemon::Ended(pid) => format!("its daemon (process {pid}) did not answer, and has ended"),
        Daemon::Killed(pid) => format!("its daemon (process {pid}) did not leave and was killed"),
        Daemon::Hangs(pid) => {
            format!("its daemon (process {pid}) was killed, and ends when the storage answers it")
        }
        Daemon::Unknown => "its daemon could not be reached; if it runs, it will notice".into(),
    };
    bail!(
        "the mount at {point} is gone, but not cleanly: {daemon}. All that was synced is safe; \
         other hosts, or the next mount, take over what it had locked. Its log says what it \
         waited for"
    )
}

fn duration(text: &str) -> Result<Duration> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let number: u64 = digits.parse().context("a time is a number and ms, s or m")?;
    match &text[digits.len()..] {
        "ms" => Ok(Duration::from_millis(number)),
        "" | "s" => Ok(Duration::from_secs(number)),
        "m" => Ok(Duration::from_secs(number.saturating_mul(60))),
        unit => anyhow::bail!("{unit} is no unit; a time is a number and ms, s or m"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_people_write_them() {
        assert_eq!(duration("10s").ok(), Some(Duration::from_secs(10)));
        assert_eq!(duration("500ms").ok(), Some(Duration::from_millis(500)));
        assert_eq!(duration("2m").ok(), Some(Duration::from_secs(120)));
        assert_eq!(duration("7").ok(), Some(Duration::from_secs(7)));
        assert!(duration("7h").is_err());
        assert!(duration("soon").is_err());
    }
}
