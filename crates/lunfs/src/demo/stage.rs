//! What the demonstration plays on: a directory, an image, hosts, and a clean end in any case.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use anyhow::{Context, Result, bail};
use rustix::mount::UnmountFlags;
use rustix::process::{Pid, Signal};

use crate::out::say;

/// The directory and the processes of one demonstration.
pub struct Stage {
    dir: PathBuf,
    groups: Vec<Pid>,
    mounts: Vec<PathBuf>,
    is_kept: bool,
}

/// A mounted host: a group of processes.
pub struct Host {
    /// Where it is mounted.
    pub dir: PathBuf,
    /// Its log.
    pub log: PathBuf,
    leader: Child,
}

impl Stage {
    /// Makes a directory of its own. Not in /tmp: that is often memory, which disks are not.
    pub fn new() -> Result<Stage> {
        let base = Path::new("/var/tmp");
        let base = if base.is_dir() { base.to_path_buf() } else { std::env::temp_dir() };
        let dir = base.join(format!("lunfs-demo-{}", std::process::id()));
        fs::create_dir(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        Ok(Stage { dir, groups: Vec::new(), mounts: Vec::new(), is_kept: false })
    }

    /// A path on the stage.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// The image that holds the volume.
    pub fn image(&self) -> PathBuf {
        self.path("volume.img")
    }

    /// Runs this program, telling the command and what it said.
    pub fn lunfs_told(&self, arguments: &[&str], places: &[&Path]) -> Result<()> {
        let places: Vec<String> = places.iter().map(|p| p.display().to_string()).collect();
        say!("   $ lunfs {} {}", arguments.join(" "), places.join(" "));
        let output = lunfs()?.args(arguments).args(&places).output()?;
        for line in String::from_utf8_lossy(&output.stdout).lines() {
            say!("   {line}");
        }
        if !output.status.success() {
            bail!("{}", String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(())
    }

    /// Mounts the volume as `name`; all processes of the host are one group.
    pub fn mount(&mut self, name: &str) -> Result<Host> {
        let (dir, log) = (self.path(name), self.path(&format!("{name}.log")));
        fs::create_dir(&dir)?;
        say!("   $ lunfs mount volume.img {} --host {name} --foreground &", dir.display());
        let mut leader = lunfs()?
            .args(["mount", "--foreground", "--host", name, "--log"])
            .args([&log, &self.image(), &dir])
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(File::create(self.path(&format!("{name}.stderr")))?)
            .spawn()?;
        self.groups.push(Pid::from_child(&leader));
        self.mounts.push(dir.clone());
        let mut line = String::new();
        BufReader::new(leader.stdout.take().context("stdout is piped")?).read_line(&mut line)?;
        if !line.starts_with("mounted") {
            let said = fs::read_to_string(self.path(&format!("{name}.stderr")))?;
            bail!("{name} did not mount: {}", said.trim());
        }
        say!("   {}", line.trim());
        Ok(Host { dir, log, leader })
    }

    /// Kills every process of a host, as a power failure would; returns the group.
    pub fn kill(&mut self, mut host: Host) -> Result<u32> {
        let group = Pid::from_child(&host.leader);
        rustix::process::kill_process_group(group, Signal::KILL)?;
        host.leader.wait()?;
        self.groups.retain(|other| *other != group);
        Ok(host.leader.id())
    }

    /// Unmounts cleanly.
    pub fn unmount(&mut self, mut host: Host) -> Result<()> {
        self.lunfs_told(&["unmount"], &[&host.dir])?;
        host.leader.wait()?;
        self.groups.retain(|other| *other != Pid::from_child(&host.leader));
        Ok(())
    }

    /// Leaves everything as it is, and says how to end it.
    pub fn keep(&mut self, survivor: &Host) {
        self.is_kept = true;
        say!("\n   beta is still mounted: {}", survivor.dir.display());
        say!("   when you have seen enough: lunfs unmount {}", survivor.dir.display());
        say!("   and: umount {}; rm -r {}", self.path("alpha").display(), self.dir.display());
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if self.is_kept {
            return;
        }
        for group in &self.groups {
            let _ = rustix::process::kill_process_group(*group, Signal::KILL);
        }
        for mount in &self.mounts {
            let _ = rustix::mount::unmount(mount, UnmountFlags::DETACH);
        }
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// This program.
fn lunfs() -> Result<Command> {
    Ok(Command::new(std::env::current_exe().context("where is lunfs?")?))
}

/// Bytes that differ from file to file.
pub fn content(seed: u64, len: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()[5]
        })
        .collect()
}

/// Writes the hashes of all files of a directory.
pub fn sha256sum(dir: &Path, sums: &Path) -> Result<()> {
    let mut names: Vec<_> = Vec::new();
    for entry in fs::read_dir(dir)? {
        names.push(entry?.file_name());
    }
    names.sort();
    let status = Command::new("sha256sum")
        .args(names)
        .current_dir(dir)
        .stdout(File::create(sums)?)
        .status()
        .context("cannot start sha256sum")?;
    if !status.success() {
        bail!("sha256sum in {}: {status}", dir.display());
    }
    Ok(())
}

/// How many files of a directory have the hash that is written.
pub fn sha256sum_check(dir: &Path, sums: &Path) -> Result<usize> {
    let output = Command::new("sha256sum")
        .arg("-c")
        .arg(sums)
        .current_dir(dir)
        .output()
        .context("cannot start sha256sum")?;
    let said = String::from_utf8_lossy(&output.stdout);
    for line in said.lines().filter(|line| !line.ends_with(": OK")) {
        say!("   {line}");
    }
    Ok(said.lines().filter(|line| line.ends_with(": OK")).count())
}

/// A thread that makes one small file durable after the other, and keeps a copy of each outside
/// of the volume, made after its fsync was answered.
pub struct Writer {
    thread: JoinHandle<usize>,
    is_over: Arc<AtomicBool>,
}

impl Writer {
    /// Starts writing to `dir`, with copies in `expected`.
    pub fn start(dir: &Path, expected: &Path) -> Result<Writer> {
        fs::create_dir(expected)?;
        let (dir, expected) = (dir.to_path_buf(), expected.to_path_buf());
        let is_over = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&is_over);
        let thread = std::thread::spawn(move || {
            let mut durable = 0;
            while !seen.load(Ordering::Relaxed) {
                if write_one(&dir, &expected, durable).is_err() {
                    // The host is dead: what this file has is anybody's guess.
                    break;
                }
                durable += 1;
            }
            durable
        });
        Ok(Writer { thread, is_over })
    }

    /// Number of files that were durable.
    pub fn stop(self) -> usize {
        self.is_over.store(true, Ordering::Relaxed);
        self.thread.join().unwrap_or_default()
    }
}

fn write_one(dir: &Path, expected: &Path, number: usize) -> std::io::Result<()> {
    let name = format!("file-{number:05}");
    let bytes = content(number as u64 + 1000, 5000 + (number as u64 * 769) % 60_000);
    let mut file = File::create(dir.join(&name))?;
    file.write_all(&bytes)?;
    file.sync_all()?;
    File::open(dir)?.sync_all()?;
    fs::write(expected.join(&name), &bytes)
}
