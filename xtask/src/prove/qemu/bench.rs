//! How fast: `qemu-img bench` on both sides. Told, and not judged: the disk below is the same, what
//! else runs on the machine is not.

use std::path::Path;

use anyhow::{Context, Result};

use super::twins::Twins;
use crate::shell;

/// What is measured: its name, number of requests, and how they are made.
const RUNS: &[(&str, u32, &str)] = &[
    ("read 4 KiB, 1 in flight", 2_048, "-d 1 -s 4k"),
    ("read 4 KiB, 16 in flight", 8_192, "-d 16 -s 4k"),
    ("write 4 KiB, 1 in flight", 2_048, "-w -d 1 -s 4k"),
    ("write 4 KiB, 16 in flight", 8_192, "-w -d 16 -s 4k"),
    ("write 4 KiB, a flush after each", 256, "-w -d 1 -s 4k --flush-interval=1"),
    ("read 1 MiB, 8 in flight", 256, "-d 8 -s 1M"),
    ("write 1 MiB, 8 in flight", 256, "-w -d 8 -s 1M"),
];
const AIO: &[&str] = &["threads", "native", "io_uring"];

/// Measures a raw image that has all its blocks, without the page cache.
pub fn tell(twins: &Twins) -> Result<()> {
    println!("requests a second, on the mount / locally, for each aio:");
    for dir in [&twins.on_mount, &twins.local] {
        let full = ["create", "-q", "-f", "raw", "-o", "preallocation=full", "bench.raw", "256M"];
        shell::output(shell::command("qemu-img", full).current_dir(dir))?;
    }
    for (name, count, options) in RUNS {
        let mut row = format!("  {name:32}");
        for aio in AIO {
            let run = |dir: &Path| rate(dir, *count, options, aio);
            let (there, here) = (run(&twins.on_mount)?, run(&twins.local)?);
            row += &format!(" {aio} {there:.0} / {here:.0}");
        }
        println!("{row}");
    }
    Ok(())
}

/// Requests a second.
fn rate(dir: &Path, count: u32, options: &str, aio: &str) -> Result<f64> {
    let mut command = shell::command("qemu-img", ["bench", "-t", "none", "-f", "raw", "-i", aio]);
    command.args(["-c", &count.to_string()]).args(options.split(' ')).arg("bench.raw");
    let said = shell::output(command.current_dir(dir))?;
    let seconds = said.split("completed in ").nth(1).and_then(|rest| rest.split(' ').next());
    let seconds: f64 = seconds.and_then(|seconds| seconds.parse().ok()).context(said.clone())?;
    Ok(f64::from(count) / seconds)
}
