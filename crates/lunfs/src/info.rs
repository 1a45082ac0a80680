//! `lunfs info`: what a volume is, and how a mount is doing.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use lunfs_format::BLOCK;
use lunfs_host::Mount;
use lunfs_host::control::Request;
use serde_json::{Value, json};

use crate::out::say;
use crate::place::{self, Place};
use crate::reader::Reader;
use crate::size::Size;

/// Which volume or mount.
#[derive(Args)]
pub struct Options {
    /// Image file, block device, or mount point
    place: PathBuf,
    /// For scripts
    #[arg(long)]
    json: bool,
}

/// Prints what is known.
pub fn run(options: &Options) -> Result<ExitCode> {
    let info = match Place::of(&options.place)? {
        Place::Source(source) => of_source(&source)?,
        Place::Mount(mount) => of_mount(&mount)?,
    };
    if options.json {
        say!("{info}");
    } else {
        print(&info);
    }
    Ok(ExitCode::SUCCESS)
}

fn of_mount(mount: &Mount) -> Result<Value> {
    let mut info = place::ask(mount, &Request::Info)?;
    info["counters"] = place::ask(mount, &Request::Counters)?;
    Ok(info)
}

/// What can be read without taking part.
fn of_source(source: &Path) -> Result<Value> {
    let reader = Reader::open(source)?;
    let superblock = reader.superblock();
    Ok(json!({
        "label": superblock.label,
        "volume": superblock.volume.to_string(),
        "source": source.display().to_string(),
        "logical_block": superblock.logical_block,
        "volume_blocks": superblock.volume_blocks,
        "cluster_blocks": superblock.cluster_blocks,
        "pulse_ms": superblock.timing.pulse_ms,
        "lease_ms": superblock.timing.lease_ms,
        "claim_ms": superblock.timing.claim_ms,
        "slots_in_use": reader.pulses()?.len(),
    }))
}

fn print(info: &Value) {
    for (title, key) in [
        ("label", "label"),
        ("volume", "volume"),
        ("source", "source"),
        ("mounted on", "mountpoint"),
        ("host", "name"),
        ("slot", "slot"),
        ("slots in use", "slots_in_use"),
        ("daemon", "pid"),
        ("fence", "fence"),
        ("stopped", "stopped"),
    ] {
        line(title, &info[key]);
    }
    for (title, key) in
        [("size", "volume_blocks"), ("free", "blocks_free"), ("available", "blocks_available")]
    {
        if let Some(blocks) = info[key].as_u64() {
            say!("{title:14}{}", Size(blocks.saturating_mul(BLOCK as u64)));
        }
    }
    say!(
        "{:14}pulse {} ms, lease {} ms, claim {} ms",
        "timing",
        info["pulse_ms"],
        info["lease_ms"],
        info["claim_ms"]
    );
    let Some(counters) = info["counters"].as_object() else { return };
    say!("since the mount:");
    for (name, count) in counters.iter().filter(|(_, count)| **count != json!(0)) {
        say!("{:>12}  {}", count.to_string(), name.replace('_', " "));
    }
}

fn line(title: &str, value: &Value) {
    match value {
        Value::Null => {}
        Value::String(text) => say!("{title:14}{text}"),
        other => say!("{title:14}{other}"),
    }
}
