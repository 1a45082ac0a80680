//! `nbd`: what the clients of others put into an exported file is what they, the mount and another
//! host find there, and holes stay holes.

use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::world::{Host, World};
use super::{Extent, Figure};
use crate::shell;

/// The one for which Debian has the module of libnbd.
const PYTHON: &str = "/usr/bin/python3";

/// Blocks of 512 bytes that a copy may have more than its source, for each of its islands: both
/// ends of an island share blocks with holes.
const MORE_BLOCKS: u64 = 2 * (256 << 10) / 512;
const ISLANDS: u64 = 16;

/// Writes, trims and zeroes at random over four connections, beside a model of what must be there;
/// ends by writing the model down.
const MODEL: &str = r#"
import nbd, os, random
uri, out = os.environ["MODEL_URI"], os.environ["MODEL_OUT"]
seed, rounds = int(os.environ["MODEL_SEED"]), int(os.environ["MODEL_ROUNDS"])
chance = random.Random(seed)
hosts = [nbd.NBD() for _ in range(4)]
for h in hosts:
    h.add_meta_context("base:allocation")
    h.connect_uri(uri)
    assert h.can_multi_conn() and h.can_fast_zero() and h.can_df()
size = hosts[0].get_size()
model = bytearray(hosts[0].pread(1 << 20, 0) + bytes(size - (1 << 20)))
hosts[0].zero(size - (1 << 20), 1 << 20)
counts = {}
for _ in range(rounds):
    h = chance.choice(hosts)
    count = chance.choice([1, 511, 4096, 65536, 300000, 3 << 20])
    at = chance.randrange(size - count)
    if chance.random() < 0.5:
        at -= at % 4096
    fua = nbd.CMD_FLAG_FUA if chance.random() < 0.2 else 0
    what = chance.choice(["write", "write", "read", "trim", "zero", "place", "fast", "many"])
    counts[what] = counts.get(what, 0) + 1
    if what == "write":
        data = chance.randbytes(count)
        h.pwrite(data, at, fua)
        model[at:at + count] = data
    elif what == "read":
        assert h.pread(count, at) == model[at:at + count], (at, count)
        pieces = []
        take = lambda data, place, status, error: pieces.append(place)
        whole = h.pread_structured(count, at, take, nbd.CMD_FLAG_DF)
        assert whole == model[at:at + count] and pieces == [at], (at, count, pieces)
    elif what == "many":
        # All under way at once, on all connections; none touches another.
        waiting = []
        for index in range(48):
            data = chance.randbytes(20000)
            place = (at + index * 20000) % (size - 20000)
            if any(abs(place - other) < 20000 for _, _, other in waiting):
                continue
            other = hosts[index % 4]
            buffer = nbd.Buffer.from_bytearray(bytearray(data))
            waiting.append((other, other.aio_pwrite(buffer, place, flags=fua), place))
            model[place:place + 20000] = data
        for other, cookie, _ in waiting:
            while not other.aio_command_completed(cookie):
                other.poll(-1)
    else:
        if what == "trim":
            h.trim(count, at, fua)
        elif what == "fast" and at % 4096 == 0 and count >= 4096:
            h.zero(count, at, fua | nbd.CMD_FLAG_FAST_ZERO)
        else:
            h.zero(count, at, fua | (nbd.CMD_FLAG_NO_HOLE if what == "place" else 0))
        model[at:at + count] = bytes(count)
hosts[1].flush()
runs, at = [], 0
def take(context, offset, entries, error):
    runs.extend(zip(entries[::2], entries[1::2]))
while at < size:
    before = len(runs)
    hosts[2].block_status(size - at, at, take)
    for count, flags in runs[before:]:
        assert count > 0 and at + count <= size
        if flags & nbd.STATE_ZERO:
            assert model[at:at + count].count(0) == count, ("not a hole", at, count)
        at += count
for h in hosts:
    h.set_strict_mode(0)
    try:
        h.pread(2, size - 1)
        assert False, "behind the end"
    except nbd.Error as error:
        assert error.errno == "EINVAL", error
    h.shutdown()
open(out, "wb").write(model)
print(f"  {rounds} operations {counts}, {len(runs)} runs of data and holes")
"#;

/// Copies a disk with holes in and out by the tools of others, and changes one at random.
pub fn run(extent: &Extent) -> Result<Figure> {
    let size: u64 = if extent.is_slice { 256 << 20 } else { 2 << 30 };
    let mut world = World::new("nbd")?;
    let source = world.path("source.raw");
    make_source(&source, size)?;
    world.format_image("6G")?;
    let a = world.mount("a")?;
    let b = world.mount("b")?;
    let mut compared = 0;
    let mut sparse = true;

    let disk = Disk::export(&world, &a, "nbdcopy", size)?;
    must_offer(&disk, size)?;
    timed("nbdcopy in", shell::command("nbdcopy", ["--flush"]).arg(&source).arg(&disk.uri))?;
    let back = world.path("back.raw");
    timed("nbdcopy out", shell::command("nbdcopy", ["--"]).arg(&disk.uri).arg(&back))?;
    for copy in [&back, &disk.file, &b.dir.join("nbdcopy")] {
        same(&source, copy)?;
        compared += 1;
        sparse &= is_sparse(&source, copy)?;
    }
    disk.end(&world)?;

    let disk = Disk::export(&world, &a, "qemu", size)?;
    let raw = ["convert", "-n", "-W", "-f", "raw", "-O", "raw"];
    timed("qemu-img in", shell::command("qemu-img", raw).arg(&source).arg(&disk.uri))?;
    let raw = ["compare", "-s", "-f", "raw", "-F", "raw"];
    timed("qemu-img compare", shell::command("qemu-img", raw).arg(&source).arg(&disk.uri))?;
    let qcow2 = world.path("back.qcow2");
    let out = ["convert", "-f", "raw", "-O", "qcow2"];
    timed("qemu-img out", shell::command("qemu-img", out).arg(&disk.uri).arg(&qcow2))?;
    shell::run(shell::command("qemu-img", ["compare"]).args([&source, &qcow2]))?;
    same(&source, &b.dir.join("qemu"))?;
    compared += 3;
    sparse &= is_sparse(&source, &disk.file)?;
    disk.end(&world)?;

    let disk = Disk::export(&world, &a, "model", 64 << 20)?;
    let rounds = extent.rounds.unwrap_or(if extent.is_slice { 200 } else { 2000 });
    let model = world.path("model.raw");
    let script = world.path("model.py");
    fs::write(&script, MODEL)?;
    let mut python = shell::command(PYTHON, [&script]);
    python.env("MODEL_URI", &disk.uri).env("MODEL_OUT", &model);
    python.env("MODEL_SEED", extent.seed.to_string()).env("MODEL_ROUNDS", rounds.to_string());
    timed("libnbd", &mut python)?;
    for copy in [&disk.file, &b.dir.join("model")] {
        same(&model, copy)?;
        compared += 1;
    }
    disk.end(&world)?;
    world.unmount(a)?;
    world.unmount(b)?;
    world.check()?;
    world.done();
    Ok(Figure {
        measured: format!("{compared} copies are the same, holes are {}", kept(sparse)),
        bound: "every copy, and holes are kept".into(),
        is_kept: sparse,
    })
}

fn kept(are: bool) -> &'static str {
    if are { "kept" } else { "filled" }
}

/// An exported file.
struct Disk {
    file: PathBuf,
    socket: PathBuf,
    uri: String,
}

impl Disk {
    fn export(world: &World, host: &Host, name: &str, size: u64) -> Result<Disk> {
        let file = host.dir.join(name);
        File::create(&file)?.set_len(size)?;
        let socket = world.path(&format!("{name}.sock"));
        let exporting = &mut world.lunfs(["export", "nbd"]);
        shell::run(exporting.arg(&file).arg("--socket").arg(&socket))?;
        let uri = format!("nbd+unix:///?socket={}", socket.display());
        Ok(Disk { file, socket, uri })
    }

    fn end(self, world: &World) -> Result<()> {
        shell::run(world.lunfs(["unexport"]).arg(&self.socket))
    }
}

fn must_offer(disk: &Disk, size: u64) -> Result<()> {
    let told = shell::output(&mut shell::command("nbdinfo", ["--json", &disk.uri]))?;
    let told: Value = serde_json::from_str(&told).context("nbdinfo")?;
    let export = &told["exports"][0];
    let can = ["can_multi_conn", "can_df", "can_fua", "can_flush", "can_trim", "can_zero"];
    let is_whole = can.iter().all(|what| export[what] == true)
        && export["export-size"] == size
        && export["contexts"][0] == "base:allocation";
    if !is_whole {
        bail!("nbdinfo misses something: {export}");
    }
    println!("nbdinfo: {size} bytes, {}", can.join(", "));
    Ok(())
}

fn timed(what: &str, command: &mut Command) -> Result<()> {
    let started = Instant::now();
    shell::run(command)?;
    println!("  {what}: {:.1} s", started.elapsed().as_secs_f64());
    Ok(())
}

/// A disk of holes with islands of random bytes: an eighth of it.
fn make_source(path: &Path, size: u64) -> Result<()> {
    let file = File::create(path)?;
    file.set_len(size)?;
    let mut island = vec![0; usize::try_from(size / ISLANDS / 8)?];
    File::open("/dev/urandom")?.read_exact(&mut island)?;
    for index in 0..ISLANDS {
        // Not at the same place in a block each time.
        file.write_all_at(&island, index * (size / ISLANDS) + index * 4096)?;
    }
    Ok(())
}

/// By large reads: `cmp` asks for as little as the file system says, a million times.
fn same(one: &Path, other: &Path) -> Result<()> {
    let shown = format!("{} and {}", one.display(), other.display());
    let (one, other) = (File::open(one)?, File::open(other)?);
    let len = one.metadata()?.len();
    if other.metadata()?.len() != len {
        bail!("{shown} have different lengths");
    }
    let mut parts = [vec![0; 1 << 20], vec![0; 1 << 20]];
    for at in (0..len).step_by(1 << 20) {
        let count = usize::try_from((len - at).min(1 << 20))?;
        let [left, right] = &mut parts;
        one.read_exact_at(&mut left[..count], at)?;
        other.read_exact_at(&mut right[..count], at)?;
        if left[..count] != right[..count] {
            bail!("{shown} differ in the MiB from {at}");
        }
    }
    println!("  the same: {shown}");
    Ok(())
}

fn is_sparse(source: &Path, copy: &Path) -> Result<bool> {
    let (of_source, of_copy) = (fs::metadata(source)?.blocks(), fs::metadata(copy)?.blocks());
    let is_kept = of_copy <= of_source + ISLANDS * MORE_BLOCKS;
    println!("  blocks: {of_source} of the source, {of_copy} of {}", copy.display());
    Ok(is_kept)
}
