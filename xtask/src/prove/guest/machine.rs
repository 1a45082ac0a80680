//! A machine of QEMU with one disk, and what its guest says on the serial console.
//!
//! Never with KVM: it is not everywhere, and a machine that is killed in the middle of a write is
//! the same under emulation. Its processes belong to the group of a host and die with it.

use std::fs::File;
use std::io::{BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::prove::wait_until;
use crate::prove::world::Host;
use crate::shell;

/// Under emulation on a loaded machine a boot takes a while.
pub const BOOT_LIMIT: Duration = Duration::from_secs(180);
const MEMORY: &str = "256M";
/// How the lines begin that init prints.
const OURS: &str = "guest: ";

/// What boots.
pub struct Boot {
    /// The kernel.
    pub kernel: PathBuf,
    /// The guest's root.
    pub initramfs: PathBuf,
}

/// How a file on a mount becomes the disk of a machine.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Attachment {
    /// QEMU opens it with O_DIRECT (`cache=none`); the word is its `aio`.
    File(&'static str),
    /// Another program serves it by NBD on a unix socket.
    Nbd,
    /// Another program works on the queues in the guest's memory.
    VhostUserBlk,
}

impl std::fmt::Display for Attachment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Attachment::File(aio) => write!(f, "file-{aio}"),
            Attachment::Nbd => f.write_str("nbd"),
            Attachment::VhostUserBlk => f.write_str("vhost-user-blk"),
        }
    }
}

/// A machine that runs, or has run.
pub struct Machine {
    qemu: Child,
    server: Option<Child>,
    console: Receiver<String>,
    durable: u64,
    last: Vec<String>,
}

/// A disk and where what belongs to it may lie.
pub struct Disk<'a> {
    /// The file with its contents.
    pub file: &'a Path,
    /// How it gets into the machine.
    pub attachment: Attachment,
    /// Sockets and logs are named after this.
    pub log: &'a Path,
}

impl Machine {
    /// Starts a machine in the group of `host`; `init` is for the program in it.
    pub fn start(boot: &Boot, disk: &Disk<'_>, host: &Host, init: &str) -> Result<Machine> {
        let server = serve(disk, host)?;
        let append = format!("console=ttyS0 quiet panic=-1 -- prove-guest {init}");
        let mut command = shell::command("qemu-system-x86_64", ["-accel", "tcg", "-cpu", "max"]);
        command
            .args(["-m", MEMORY, "-nodefaults", "-display", "none", "-no-reboot"])
            .args(["-serial", "stdio", "-append", &append, "-kernel"])
            .arg(&boot.kernel)
            .arg("-initrd")
            .arg(&boot.initramfs)
            .args(arguments(disk))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(File::create(disk.log.with_extension("stderr"))?);
        host.takes_in(&mut command);
        let mut qemu = command.spawn().context("cannot start qemu-system-x86_64")?;
        let output = qemu.stdout.take().context("stdout is piped")?;
        let (sender, console) = channel();
        let copy = File::create(disk.log).with_context(|| disk.log.display().to_string())?;
        std::thread::spawn(move || pass_on(BufReader::new(output), copy, &sender));
        Ok(Machine { qemu, server, console, durable: 0, last: Vec::new() })
    }

    /// What follows `word` in the next line of the guest that begins with it.
    pub fn says(&mut self, word: &str, limit: Duration) -> Result<String> {
        let started = Instant::now();
        loop {
            let line = match self.console.recv_timeout(limit.saturating_sub(started.elapsed())) {
                Ok(line) => line,
                Err(RecvTimeoutError::Timeout) => {
                    bail!("no {word:?} within {} s; {}", limit.as_secs(), self.last_lines())
                }
                Err(RecvTimeoutError::Disconnected) => {
                    bail!("the guest ended before {word:?}; {}", self.last_lines())
                }
            };
            self.note(&line);
            let Some(said) = line.strip_prefix(OURS) else { continue };
            if said.starts_with("failed") {
                bail!("the guest {said}; {}", self.last_lines());
            }
            if let Some(rest) = said.strip_prefix(word) {
                return Ok(rest.trim().to_owned());
            }
        }
    }

    /// The number that follows `word`.
    pub fn says_number(&mut self, word: &str, limit: Duration) -> Result<u64> {
        let said = self.says(word, limit)?;
        said.parse().with_context(|| format!("{word} {said}"))
    }

    /// The highest record that the console said is durable, to its last line: the machine is dead.
    pub fn last_durable(&mut self) -> Result<u64> {
        self.qemu.wait()?;
        while let Ok(line) = self.console.recv() {
            self.note(&line);
        }
        Ok(self.durable)
    }

    /// Waits until the guest has switched its machine off.
    pub fn ends(mut self) -> Result<()> {
        self.says("done", BOOT_LIMIT)?;
        let qemu = &mut self.qemu;
        wait_until("the end of QEMU", BOOT_LIMIT, || Ok(qemu.try_wait()?.is_some()))?;
        Ok(())
    }

    fn note(&mut self, line: &str) {
        if let Some(number) = line.strip_prefix("guest: durable ") {
            self.durable = number.parse().unwrap_or(self.durable);
        } else if self.last.len() < 100 {
            self.last.push(line.to_owned());
        }
    }

    fn last_lines(&self) -> String {
        let from = self.last.len().saturating_sub(5);
        format!("the console ends with {:?}", &self.last[from..])
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        for child in [Some(&mut self.qemu), self.server.as_mut()].into_iter().flatten() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Passes on whole lines. What a killed machine leaves of a line may be half a number.
fn pass_on(mut output: impl std::io::BufRead, mut copy: File, lines: &Sender<String>) {
    let mut line = Vec::new();
    while output.read_until(b'\n', &mut line).is_ok_and(|read| read > 0) {
        let _ = copy.write_all(&line);
        if line.ends_with(b"\n") {
            let text = String::from_utf8_lossy(&line).trim().to_owned();
            if lines.send(text).is_err() {
                return;
            }
        }
        line.clear();
    }
}

fn arguments(disk: &Disk<'_>) -> Vec<String> {
    let socket = disk.log.with_extension("sock").display().to_string();
    let device = "virtio-blk-pci,drive=disk".to_owned();
    match disk.attachment {
        Attachment::File(aio) => {
            let blockdev = format!("driver=raw,node-name=disk,discard=unmap,{}", file(disk, aio));
            vec!["-blockdev".into(), blockdev, "-device".into(), device]
        }
        Attachment::Nbd => {
            let at = format!("server.type=unix,server.path={socket},export=disk,discard=unmap");
            let blockdev = format!("driver=nbd,node-name=disk,{at}");
            vec!["-blockdev".into(), blockdev, "-device".into(), device]
        }
        Attachment::VhostUserBlk => vec![
            "-object".into(),
            format!("memory-backend-memfd,id=memory,size={MEMORY},share=on"),
            "-machine".into(),
            "memory-backend=memory".into(),
            "-chardev".into(),
            format!("socket,id=disk,path={socket}"),
            "-device".into(),
            // qemu-storage-daemon 10.0.2 offers to change its cache and says that it has none.
            "vhost-user-blk-pci,chardev=disk,config-wce=off".into(),
        ],
    }
}

/// The node of a file without the page cache, below another node.
fn file(disk: &Disk<'_>, aio: &str) -> String {
    let path = disk.file.display();
    format!(
        "file.driver=file,file.filename={path},file.aio={aio},file.cache.direct=on,\
         file.discard=unmap,cache.direct=on"
    )
}

/// Starts the program that serves the disk, where QEMU does not open it itself.
fn serve(disk: &Disk<'_>, host: &Host) -> Result<Option<Child>> {
    let socket = disk.log.with_extension("sock");
    let at = socket.display();
    let export = match disk.attachment {
        Attachment::File(_) => return Ok(None),
        Attachment::Nbd => "type=nbd,id=disk,node-name=disk,name=disk,writable=on".to_owned(),
        Attachment::VhostUserBlk => format!(
            "type=vhost-user-blk,id=disk,node-name=disk,addr.type=unix,addr.path={at},writable=on"
        ),
    };
    let blockdev = format!("driver=raw,node-name=disk,discard=unmap,{}", file(disk, "io_uring"));
    let mut command = shell::command("qemu-storage-daemon", ["--blockdev", &blockdev]);
    if disk.attachment == Attachment::Nbd {
        command.arg("--nbd-server").arg(format!("addr.type=unix,addr.path={at}"));
    }
    command.args(["--export", &export]).stdin(Stdio::null());
    command.stderr(File::create(disk.log.with_extension("server"))?);
    host.takes_in(&mut command);
    let server = command.spawn().context("cannot start qemu-storage-daemon")?;
    wait_until("the socket of the disk", Duration::from_secs(20), || Ok(socket.exists()))?;
    Ok(Some(server))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// "durable 12" was what a kill had left of "durable 123", or of a number not said at all.
    #[test]
    fn half_a_line_is_not_passed_on() {
        let path = std::env::temp_dir().join(format!("lunfs-console-{}", std::process::id()));
        let (sender, lines) = channel();
        let copy = File::create(&path).expect("a file");
        pass_on(&b"guest: durable 7\r\nguest: dura"[..], copy, &sender);
        drop(sender);
        assert_eq!(lines.iter().collect::<Vec<_>>(), ["guest: durable 7"]);
        assert_eq!(std::fs::read(&path).expect("all of it").len(), 29);
        std::fs::remove_file(path).expect("gone");
    }
}
