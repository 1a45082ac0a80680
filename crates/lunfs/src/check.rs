//! `lunfs check`: reads a whole volume and says what is wrong. It never writes.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use lunfs_core::check::{self, Report};
use lunfs_format::BLOCK;
use lunfs_host::disk::{Access, UringDisk};
use serde_json::json;

use crate::out::say;
use crate::place::Place;
use crate::runtime;
use crate::size::Size;

/// Findings printed one by one.
const TOLD_MAX: usize = 100;

/// Which volume.
#[derive(Args)]
pub struct Options {
    /// Image file, block device, or mount point
    place: PathBuf,
    /// Nobody may have it mounted: a host that is not gone is a finding, too
    #[arg(long)]
    offline: bool,
    /// For scripts
    #[arg(long)]
    json: bool,
}

/// Exit code 0: clean. 1: something is wrong. 2: could not run.
pub fn run(options: &Options) -> Result<ExitCode> {
    let report = match checked(options) {
        Ok(report) => report,
        Err(error) => {
            eprintln!("lunfs: {error:#}; nothing is known about the volume");
            return Ok(ExitCode::from(2));
        }
    };
    if options.json {
        say!("{}", as_json(&report));
    } else {
        print(&report);
    }
    Ok(if report.is_clean() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn checked(options: &Options) -> Result<Report> {
    let source = match Place::of(&options.place)? {
        Place::Source(source) => source,
        Place::Mount(mount) => mount.source.into(),
    };
    read(&source, options.offline)
}

fn read(source: &Path, offline: bool) -> Result<Report> {
    let disk = UringDisk::open(source, Access::ReadOnly)?;
    let options = check::Options { offline, progress: None };
    runtime::block_on(async { Ok(check::check(&disk, &options).await?) })
}

fn print(report: &Report) {
    for finding in report.findings.iter().take(TOLD_MAX) {
        say!("{finding}");
    }
    let left_out = report.findings.len().saturating_sub(TOLD_MAX);
    if left_out > 0 {
        say!("and {left_out} more; `--json` has them all");
    }
    let Report { files, directories, symlinks, others, .. } = report;
    say!("{files} files, {directories} directories, {symlinks} symlinks, {others} others");
    let size = |blocks: u64| Size(blocks.saturating_mul(BLOCK as u64));
    say!("{} used, {} free", size(report.blocks_used), size(report.blocks_free));
    match report.errors().count() {
        0 => say!("clean"),
        1 => say!("1 error; nothing was changed"),
        errors => say!("{errors} errors; nothing was changed"),
    }
}

fn as_json(report: &Report) -> serde_json::Value {
    let findings: Vec<_> = report
        .findings
        .iter()
        .map(|finding| {
            json!({
                "severity": format!("{:?}", finding.severity).to_lowercase(),
                "block": finding.at.map(|at| at.0),
                "what": finding.what,
            })
        })
        .collect();
    json!({
        "clean": report.is_clean(),
        "findings": findings,
        "files": report.files,
        "directories": report.directories,
        "symlinks": report.symlinks,
        "others": report.others,
        "blocks_used": report.blocks_used,
        "blocks_free": report.blocks_free,
        "clusters": report.clusters,
        "orphans": report.orphans,
        "live_slots": report.live_slots.iter().map(|slot| slot.0).collect::<Vec<_>>(),
        "pending_journals": report.pending_journals.iter().map(|slot| slot.0).collect::<Vec<_>>(),
    })
}
