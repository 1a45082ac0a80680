//! A place for one scenario: built binaries, an image or loop device, hosts, and a clean end.
//!
//! Everything lies under `target/prove/<scenario>`. A scenario that failed leaves its logs and
//! image there; the next run of the same scenario clears them, with processes and mounts that an
//! interrupted run left behind.

use std::fs;
use std::io::{BufRead, BufReader, Write as _};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::mount::UnmountFlags;
use rustix::process::{Pid, Signal};
use serde_json::Value;

use crate::{root, shell};

/// How long a mount may take before the scenario has failed.
const MOUNT_LIMIT: Duration = Duration::from_secs(30);

/// The place and everything started in it.
pub struct World {
    dir: PathBuf,
    binary: PathBuf,
    source: PathBuf,
    loop_device: Option<PathBuf>,
    is_done: bool,
}

/// One host: a mount whose processes are one group.
pub struct Host {
    /// Its name on the volume.
    pub name: String,
    /// Where it is mounted.
    pub dir: PathBuf,
    /// Its log, one JSON object a line.
    pub log: PathBuf,
    leader: Child,
}

impl World {
    /// Builds what ships and makes an empty place for `scenario`.
    pub fn new(scenario: &str) -> Result<World> {
        let binary = build("lunfs")?;
        let dir = root().join("target/prove").join(scenario);
        clear(&dir)?;
        fs::create_dir_all(dir.join("logs"))?;
        let source = dir.join("volume.img");
        Ok(World { dir, binary, source, loop_device: None, is_done: false })
    }

    /// A path in this place.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Makes an image file with an empty volume.
    pub fn format_image(&mut self, size: &str) -> Result<()> {
        let source = self.source.clone();
        shell::run(self.lunfs(["format", "--label", "prove", "--size", size]).arg(source))
    }

    /// Makes a loop device over a new file, with an empty volume.
    pub fn format_loop(&mut self, bytes: u64) -> Result<()> {
        let backing = self.path("loop.img");
        fs::File::create(&backing)?.set_len(bytes)?;
        let arguments = ["--find", "--show", "--direct-io=on"];
        let device = shell::output(shell::command("losetup", arguments).arg(&backing))?;
        self.source = device.trim().into();
        self.loop_device = Some(self.source.clone());
        println!("loop device {} over {}", self.source.display(), backing.display());
        let source = self.source.clone();
        shell::run(self.lunfs(["format", "--label", "prove"]).arg(source))
    }

    /// The binary with some arguments.
    pub fn lunfs<const N: usize>(&self, arguments: [&str; N]) -> Command {
        shell::command(&self.binary, arguments)
    }

    /// What `lunfs` prints as JSON.
    pub fn json<const N: usize>(&self, arguments: [&str; N], of: &Path) -> Result<Value> {
        let text = shell::output(self.lunfs(arguments).arg(of).arg("--json"))?;
        serde_json::from_str(&text).with_context(|| format!("not JSON: {text}"))
    }

    /// Mounts the volume as `name`; returns when the mount works.
    pub fn mount(&self, name: &str) -> Result<Host> {
        let started = Instant::now();
        let mut host = self.begin_mount(name)?;
        let line = first_line(&mut host.leader)?;
        if !line.starts_with("mounted") || started.elapsed() > MOUNT_LIMIT {
            let said = fs::read_to_string(host.log.with_extension("stderr")).unwrap_or_default();
            host.kill_group();
            bail!("{name} did not mount: {line} {said}");
        }
        Ok(host)
    }

    /// Starts to mount the volume as `name`, and does not wait for it.
    pub fn begin_mount(&self, name: &str) -> Result<Host> {
        let dir = self.path(&format!("mnt-{name}"));
        fs::create_dir_all(&dir)?;
        let log = self.path(&format!("logs/{name}-{}.jsonl", unique()));
        let said = fs::File::create(log.with_extension("stderr"))?;
        let leader = self
            .lunfs(["mount", "--foreground", "--host", name, "--log"])
            .arg(&log)
            .args([&self.source, &dir])
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(said)
            .spawn()
            .context("cannot start lunfs mount")?;
        self.note_group(leader.id())?;
        Ok(Host { name: name.into(), dir, log, leader })
    }

    /// Removes the mount point that a dead host left behind.
    pub fn clear_mount(&self, host: &Host) -> Result<()> {
        shell::output(self.lunfs(["unmount", "--force"]).arg(&host.dir)).map(drop)
    }

    /// Unmounts cleanly and waits for the host's processes.
    pub fn unmount(&self, mut host: Host) -> Result<()> {
        shell::output(self.lunfs(["unmount"]).arg(&host.dir))?;
        let status = host.leader.wait()?;
        if !status.success() {
            bail!("{}: unmounted, but its parent ended with {status}", host.name);
        }
        Ok(())
    }

    /// Checks the volume; it must be clean.
    pub fn check(&self) -> Result<()> {
        let said =
            shell::output(self.lunfs(["check", "--offline"]).arg(&self.source)).context("check")?;
        println!("check: {}", said.trim().lines().last().unwrap_or("clean"));
        Ok(())
    }

    /// Starts the writer on a directory; it logs to a file outside of the volume. The names of
    /// its files begin with `prefix`, by which several can share the directory.
    pub fn writer(&self, dir: &Path, log: &Path, seed: u64, prefix: &str) -> Result<Child> {
        // Not by its path: a build may have replaced the file since we were started.
        let writer = shell::command("/proc/self/exe", ["prove-writer", "--seed"])
            .arg(seed.to_string())
            .args(["--prefix", prefix])
            .args([dir, log])
            .stderr(fs::File::create(log.with_extension("stderr"))?)
            .spawn()
            .context("cannot start the writer")?;
        Ok(writer)
    }

    /// Ends the scenario well: nothing is kept.
    pub fn done(mut self) {
        self.is_done = true;
    }

    fn note_group(&self, pid: u32) -> Result<()> {
        let mut list = fs::File::options().create(true).append(true).open(self.path("groups"))?;
        writeln!(list, "{pid}")?;
        Ok(())
    }
}

impl Drop for World {
    fn drop(&mut self) {
        end_groups(&self.dir);
        unmount_below(&self.dir);
        if let Some(device) = &self.loop_device {
            let _ = shell::output(shell::command("losetup", ["--detach"]).arg(device));
        }
        if self.is_done {
            let _ = fs::remove_dir_all(&self.dir);
        } else {
            println!("kept for reading: {}", self.dir.display());
        }
    }
}

impl Host {
    /// Kills the machine: every process of this host at once. Returns the moment before.
    pub fn kill_group(&mut self) -> Instant {
        let at = Instant::now();
        self.signal_group(Signal::KILL);
        let _ = self.leader.wait();
        at
    }

    /// Makes a program that is about to start one of this host's: it dies with it.
    pub fn takes_in(&self, command: &mut Command) {
        command.process_group(self.group().as_raw_nonzero().get());
    }

    /// Sends a signal to every process of this host.
    pub fn signal_group(&self, signal: Signal) {
        let _ = rustix::process::kill_process_group(self.group(), signal);
    }

    /// The processes of this host that are still running, zombies not counted.
    pub fn running(&self) -> Vec<u32> {
        members(self.leader.id())
    }

    /// The daemon: the process of this host that is not its leader.
    pub fn daemon(&self) -> Option<Pid> {
        let pid = self.running().into_iter().find(|pid| *pid != self.leader.id())?;
        Pid::from_raw(i32::try_from(pid).ok()?)
    }

    /// Its parent: what was typed.
    pub fn parent(&self) -> Pid {
        Pid::from_child(&self.leader)
    }

    /// Whether its mount point has a mount, of a live host or a dead one.
    pub fn is_mounted(&self) -> bool {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        mounts.lines().any(|line| line.split(' ').nth(4).is_some_and(|at| *self.dir == *at))
    }

    /// Reaps the leader if it has ended.
    pub fn reap(&mut self) {
        let _ = self.leader.try_wait();
    }

    /// The objects of this host's log so far.
    pub fn log_lines(&self) -> Result<Vec<Value>> {
        let text = fs::read_to_string(&self.log)?;
        Ok(text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect())
    }

    fn group(&self) -> Pid {
        Pid::from_child(&self.leader)
    }
}

/// Builds a package's binary in release and returns its path.
pub fn build(package: &str) -> Result<PathBuf> {
    shell::run(&mut shell::cargo(["build", "--release", "--quiet", "--package", package]))?;
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or(root().join("target"), Into::into);
    Ok(root().join(target).join("release").join(package))
}

/// The processes of a group that are still running, zombies not counted.
fn members(group: u32) -> Vec<u32> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|pid| stat_of(*pid).is_some_and(|(state, of)| of == group && state != 'Z'))
        .collect()
}

/// State and process group of a process.
fn stat_of(pid: u32) -> Option<(char, u32)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_whitespace();
    let state = fields.next()?.chars().next()?;
    let group = fields.nth(1)?.parse().ok()?;
    Some((state, group))
}

fn first_line(child: &mut Child) -> Result<String> {
    let stdout = child.stdout.take().context("stdout is piped")?;
    let mut reader = BufReader::new(stdout);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    // The rest is read and dropped, or a full pipe would stop the host.
    std::thread::spawn(move || std::io::copy(&mut reader, &mut std::io::sink()));
    Ok(line.trim().to_owned())
}

/// A number that no other log of this run has.
fn unique() -> u128 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| since.as_millis())
}

fn clear(dir: &Path) -> Result<()> {
    if dir.exists() {
        end_groups(dir);
        unmount_below(dir);
        detach_loops(dir);
        fs::remove_dir_all(dir).with_context(|| format!("cannot clear {}", dir.display()))?;
    }
    Ok(())
}

/// Kills the groups noted in `dir`, but only where a process of the group still names `dir`:
/// numbers are used again.
fn end_groups(dir: &Path) {
    let place = dir.to_string_lossy();
    let names_us = |pid: &u32| {
        let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&command).contains(&*place)
    };
    let noted = fs::read_to_string(dir.join("groups")).unwrap_or_default();
    for group in noted.lines().filter_map(|line| line.parse::<u32>().ok()) {
        let pid = i32::try_from(group).ok().and_then(Pid::from_raw);
        if let (true, Some(pid)) = (members(group).iter().any(names_us), pid) {
            let _ = rustix::process::kill_process_group(pid, Signal::KILL);
        }
    }
}

fn unmount_below(dir: &Path) {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let points = mounts.lines().filter_map(|line| line.split(' ').nth(4));
    for point in points.filter(|point| Path::new(point).starts_with(dir)) {
        let _ = rustix::mount::unmount(point, UnmountFlags::DETACH);
    }
}

fn detach_loops(dir: &Path) {
    let backing = dir.join("loop.img");
    let listed = shell::output(shell::command("losetup", ["-nO", "NAME", "-j"]).arg(&backing));
    for device in listed.unwrap_or_default().lines() {
        let _ = shell::output(&mut shell::command("losetup", ["--detach", device.trim()]));
    }
}
