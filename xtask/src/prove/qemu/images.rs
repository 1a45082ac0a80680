//! Making, changing and comparing images.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use anyhow::{Context, Result};

use super::twins::Twins;
use crate::prove::ledger::Content;
use crate::shell;

/// One after the other, in a directory that is empty at first.
const COMMANDS: &[&str] = &[
    "qemu-img create -q -f raw source.raw 512M",
    "qemu-io -f raw -t none source.raw -c 'write -P 1 0 1M' -c 'write -P 2 100M 4k' \
     -c 'write -P 3 256M 300k' -c 'write -P 4 511M 1M' -c 'write -P 5 700k 3584' -c flush",
    "qemu-img info source.raw",
    "qemu-img map --output=json -f raw source.raw",
    "qemu-img convert -f raw -O qcow2 source.raw buffered.qcow2",
    "qemu-img convert -t none -T none -f raw -O raw source.raw direct.raw",
    "qemu-img convert -t none -T none -f raw -O qcow2 source.raw direct.qcow2",
    "qemu-img convert -t none -T none -f qcow2 -O raw direct.qcow2 back.raw",
    "qemu-img convert -t none -T none -O qcow2 -o cluster_size=2M direct.qcow2 large.qcow2",
    "qemu-img convert -c -f raw -O qcow2 source.raw packed.qcow2",
    "qemu-img convert -t none -W -m 16 -f qcow2 -O raw packed.qcow2 unpacked.raw",
    "qemu-img convert -n -f raw -O raw source.raw back.raw",
    "qemu-img convert -S 0 -f raw -O raw source.raw full.raw",
    "qemu-img compare source.raw direct.raw",
    "qemu-img compare source.raw large.qcow2",
    "qemu-img compare -s source.raw back.raw",
    "qemu-img compare packed.qcow2 unpacked.raw",
    "qemu-img compare source.raw full.raw",
    "qemu-img map --output=json direct.qcow2",
    "qemu-img check direct.qcow2",
    "qemu-img resize -q -f raw back.raw +512M",
    "qemu-img resize -q -f raw --shrink back.raw 200M",
    "qemu-img resize -q -f raw --preallocation=falloc back.raw 300M",
    "qemu-img resize -q -f raw --preallocation=full back.raw 350M",
    "qemu-io -f raw -r back.raw -c 'read -P 2 100M 4k' -c 'read -P 0 200M 150M'",
    "qemu-img resize -q direct.qcow2 +512M",
    "qemu-img resize -q --shrink direct.qcow2 600M",
    "qemu-img resize -q --preallocation=metadata direct.qcow2 700M",
    "qemu-img snapshot -c first direct.qcow2",
    "qemu-io -f qcow2 -t none direct.qcow2 -c 'write -P 9 0 2M' -c flush",
    "qemu-img snapshot -c second direct.qcow2",
    "qemu-img snapshot -a first direct.qcow2",
    "qemu-io -f qcow2 -r direct.qcow2 -c 'read -P 1 0 700k' -c 'read -P 0 1M 1M'",
    "qemu-img snapshot -a second direct.qcow2",
    "qemu-io -f qcow2 -r direct.qcow2 -c 'read -P 9 0 2M'",
    "qemu-img snapshot -d first direct.qcow2",
    "qemu-img check direct.qcow2",
    "qemu-img create -q -f qcow2 -b direct.qcow2 -F qcow2 top.qcow2",
    "qemu-io -f qcow2 -t none top.qcow2 -c 'write -P 7 3M 1M' -c 'discard 4M 1M'",
    "qemu-img commit -q -d top.qcow2",
    "qemu-io -f qcow2 -r direct.qcow2 -c 'read -P 7 3M 1M'",
    "qemu-img rebase -q -b buffered.qcow2 -F qcow2 top.qcow2",
    "qemu-img compare top.qcow2 direct.qcow2",
    "qemu-img check top.qcow2",
    "qemu-img amend -f qcow2 -o lazy_refcounts=on top.qcow2",
    "qemu-img bitmap --add top.qcow2 changed",
    "qemu-img measure -O qcow2 source.raw",
    "qemu-img dd -f raw -O raw bs=1M count=300 if=source.raw of=dd.raw",
];

/// For each way of asking the kernel: no page cache, sectors and odd pieces, holes and zeroes.
const AIO: &[&str] = &["threads", "native", "io_uring"];
const DIRECT: &str = "-c 'write -P 0x11 64k 64k' -c 'write -P 0x12 512 512' \
     -c 'write -P 0x13 4k 1536' -c 'aio_write -q -P 0x14 1M 1M' -c 'aio_write -q -P 0x15 3M 300k' \
     -c aio_flush -c flush -c 'read -P 0x11 64k 64k' -c 'read -P 0x12 512 512' \
     -c 'read -P 0x13 4k 1536' -c 'read -P 0x14 1M 1M' -c 'read -P 0x15 3M 300k' \
     -c 'write -z 1M 64k' -c 'write -z -u 1280k 64k' -c 'discard 1536k 256k' -c flush \
     -c 'read -P 0 1M 64k' -c 'read -P 0x14 1088k 192k' -c 'read -P 0 1280k 64k' \
     -c 'read -P 0x14 1344k 192k' -c 'read -P 0 1536k 256k' -c 'read -P 0x14 1792k 256k'";

/// Format, mode of preallocation, and whether the image must have all its blocks then.
const PREALLOCATION: &[(&str, &str, bool)] = &[
    ("raw", "off", false),
    ("raw", "falloc", true),
    ("raw", "full", true),
    ("qcow2", "off", false),
    ("qcow2", "metadata", false),
    ("qcow2", "falloc", true),
    ("qcow2", "full", true),
];
const PREALLOCATED_BYTES: u64 = 128 << 20;

/// Runs the list of commands, then direct I/O of every kind.
pub fn commands(twins: &mut Twins) -> Result<()> {
    for line in COMMANDS {
        twins.run(line)?;
    }
    for (format, aio) in ["raw", "qcow2"].iter().flat_map(|f| AIO.iter().map(move |aio| (f, aio))) {
        let image = format!("{aio}.{format}");
        twins.run(&format!("qemu-img create -q -f {format} {image} 16M"))?;
        twins.run(&format!("qemu-io -t none -i {aio} -d unmap -f {format} {image} {DIRECT}"))?;
        twins.run(&format!("qemu-img map --output=json -f {format} {image}"))?;
    }
    Ok(())
}

/// Makes images with their blocks, and looks whether they have them.
pub fn preallocation(twins: &mut Twins) -> Result<()> {
    for (format, mode, has_blocks) in PREALLOCATION {
        let image = format!("preallocated-{mode}.{format}");
        let option = format!("-o preallocation={mode}");
        twins.run(&format!("qemu-img create -q -f {format} {option} {image} 128M"))?;
        for path in [twins.local.join(&image), twins.on_mount.join(&image)] {
            let blocks = 512 * fs::metadata(&path)?.blocks();
            if (blocks >= PREALLOCATED_BYTES) != *has_blocks {
                twins.differs(format!("{} has {blocks} bytes of blocks", path.display()));
            }
        }
        let io = format!("qemu-io -t none -f {format} {image} -c 'write -P 6 9M 1M' -c flush");
        twins.run(&format!(
            "{io} -c 'read -P 6 9M 1M' -c 'read -P 0 0 9M' -c 'read -P 0 10M 118M'"
        ))?;
    }
    Ok(())
}

/// Told and not judged: zeroing a range of a file that has all its blocks gives them up on a mount,
/// where it keeps them elsewhere.
pub fn zeroing(twins: &Twins) -> Result<()> {
    for dir in [&twins.local, &twins.on_mount] {
        let image = dir.join("preallocated-falloc.raw");
        let before = fs::metadata(&image)?.blocks();
        let zero = ["-f", "raw", "-t", "none", "-c", "write -q -z 64M 64M"];
        shell::output(shell::command("qemu-io", zero).arg(&image))?;
        let lost = before.saturating_sub(fs::metadata(&image)?.blocks()) / 2048;
        let verdict = if lost > 0 { "not yet" } else { "kept" };
        println!(
            "blocks of a range that is zeroed: {verdict}, {lost} MiB lost in {}",
            dir.display()
        );
    }
    Ok(())
}

/// From a local file system to the mount and back, in every format.
pub fn across(twins: &mut Twins) -> Result<()> {
    let (local, on_mount) = (twins.local.clone(), twins.on_mount.clone());
    for (from, to) in [(&local, &on_mount), (&on_mount, &local), (&on_mount, &on_mount)] {
        for (source, target) in
            [("raw", "raw"), ("raw", "qcow2"), ("qcow2", "raw"), ("qcow2", "qcow2")]
        {
            let source_path = from.join("large").with_extension(source);
            let path = to.join(format!("across.{target}"));
            if source == "raw" {
                fs::copy(from.join("source.raw"), &source_path)?;
            }
            let direct = ["convert", "-t", "none", "-T", "none", "-f", source, "-O", target];
            shell::output(shell::command("qemu-img", direct).args([&source_path, &path]))?;
            let compare = ["compare", "-q", "-f", source, "-F", target];
            shell::output(shell::command("qemu-img", compare).args([&source_path, &path]))?;
            twins.commands += 2;
            fs::remove_file(path)?;
        }
    }
    Ok(())
}

/// Every image must be the same on both sides and through the other host.
pub fn same_contents(twins: &mut Twins) -> Result<()> {
    let mut names = Vec::new();
    for entry in fs::read_dir(&twins.local)? {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    for name in &names {
        let (here, there) = (twins.local.join(name), twins.on_mount.join(name));
        let compare = shell::command("qemu-img", ["compare", "-q"]).args([&here, &there]).status();
        if !compare.context("qemu-img compare")?.success() {
            twins.differs(format!("{name}: not the same contents on the mount"));
        }
        if content(&there)? != content(&twins.on_other.join(name))? {
            twins.differs(format!("{name}: other bytes through the other host"));
        }
    }
    println!("{} images compared, also through the other host", names.len());
    Ok(())
}

fn content(path: &Path) -> Result<Content> {
    Content::of_file(path, None).with_context(|| path.display().to_string())
}
