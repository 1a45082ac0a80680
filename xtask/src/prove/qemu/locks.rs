//! The locks by which QEMU keeps others away from an image that it works on.
//!
//! They are OFD locks of `fcntl` on single bytes of the image. FUSE leaves them to the kernel of
//! one host, so they hold among the programs of that host. Between hosts they do not hold yet;
//! what happens there is told and not judged.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::channel;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::prove::world::{Host, World};
use crate::shell;

/// How long a machine may take to open its disk.
const START_LIMIT: Duration = Duration::from_secs(60);
/// What must be refused while a machine has the image.
const REFUSED: &[&str] = &[
    "qemu-img resize -q -f FORMAT IMAGE +1M",
    "qemu-io -f FORMAT -c quit IMAGE",
    "qemu-img convert -f FORMAT -O raw IMAGE /dev/null",
];
/// What may be done nevertheless.
const ALLOWED: &str = "qemu-img info -U -f FORMAT IMAGE";
/// What changes the image, for the other host to try.
const CHANGES: &str = "qemu-img resize -q -f FORMAT IMAGE +1M";

/// Runs a machine on one host and tries its image on both; says what holds between hosts.
pub fn look(world: &World, a: &Host, b: &Host) -> Result<&'static str> {
    let mut is_let_in = false;
    for format in ["raw", "qcow2"] {
        let name = format!("locked.{format}");
        let (image, from_b) = (a.dir.join(&name), b.dir.join(&name));
        shell::output(
            shell::command("qemu-img", ["create", "-q", "-f", format]).arg(&image).arg("64M"),
        )?;
        let mut machine = start(world, a, &image, format)?;
        let looked = same_host(&image, format).and_then(|()| other_host(&from_b, format));
        machine.kill().and_then(|()| machine.wait())?;
        is_let_in |= looked?;
        let after = run(CHANGES, &image, format)?;
        ensure!(after.is_ok(), "{format}: locked by a dead machine: {after:?}");
    }
    Ok(if is_let_in { "not yet" } else { "hold, too" })
}

fn same_host(image: &Path, format: &str) -> Result<()> {
    for line in REFUSED {
        match run(line, image, format)? {
            Ok(()) => bail!("{format}: not refused while a machine runs: {line}"),
            Err(said) => ensure!(said.contains("lock"), "{format}: {line}: {said}"),
        }
    }
    let allowed = run(ALLOWED, image, format)?;
    ensure!(allowed.is_ok(), "{format}: {ALLOWED}: {allowed:?}");
    println!("{format}: {} commands refused on the host of the machine", REFUSED.len());
    Ok(())
}

/// Whether another host may change the image of a machine that runs.
fn other_host(image: &Path, format: &str) -> Result<bool> {
    let is_let_in = match run(CHANGES, image, format)? {
        Ok(()) => true,
        Err(said) if said.contains("lock") => false,
        Err(said) => bail!("{format}, on another host: {said}"),
    };
    let verdict = if is_let_in { "not yet: it was let in" } else { "refused, too" };
    println!("{format}: a command that changes the image, on another host: {verdict}");
    Ok(is_let_in)
}

/// The machine has the image and does nothing with it.
fn start(world: &World, host: &Host, image: &Path, format: &str) -> Result<Child> {
    let path = image.display();
    let cache = "cache.direct=on,file.cache.direct=on";
    let disk =
        format!("driver={format},node-name=disk,file.driver=file,file.filename={path},{cache}");
    let mut command = shell::command("qemu-system-x86_64", ["-accel", "tcg", "-m", "64M", "-S"]);
    command
        .args(["-nodefaults", "-display", "none", "-monitor", "stdio", "-blockdev", &disk])
        .args(["-device", "virtio-blk-pci,drive=disk"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(fs::File::create(world.path(&format!("logs/locks-{format}.stderr")))?);
    host.takes_in(&mut command);
    let mut machine = command.spawn().context("cannot start qemu-system-x86_64")?;
    let is_up = answers(&mut machine);
    if is_up.is_err() {
        machine.kill().and_then(|()| machine.wait())?;
    }
    is_up.map(|()| machine)
}

/// Waits for an answer of the monitor: it gives none before all disks are open. To try the image
/// instead would take the lock from the machine that starts.
fn answers(machine: &mut Child) -> Result<()> {
    let question = machine.stdin.as_mut().context("stdin is piped")?;
    question.write_all(b"info status\n")?;
    let answers = machine.stdout.take().context("stdout is piped")?;
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        let lines = BufReader::new(answers).lines().map_while(Result::ok);
        for _ in lines.filter(|line| line.contains("VM status")) {
            let _ = sender.send(());
        }
    });
    receiver.recv_timeout(START_LIMIT).context("the machine did not start")
}

/// What a command said when it was refused.
fn run(line: &str, image: &Path, format: &str) -> Result<Result<(), String>> {
    let words = line.split(' ').map(|word| match word {
        "FORMAT" => format.into(),
        "IMAGE" => image.as_os_str().to_owned(),
        _ => word.into(),
    });
    let mut words = words.collect::<Vec<_>>().into_iter();
    let output = Command::new(words.next().context("an empty line")?)
        .args(words)
        .stdin(Stdio::null())
        .output()
        .with_context(|| line.to_owned())?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    Ok(if output.status.success() { Ok(()) } else { Err(said) })
}
