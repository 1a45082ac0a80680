//! `lunfs check`: reads a whole volume and says what is wrong. It writes only with `--repair`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::Args;
use lunfs_core::check::{self, Repair, Report};
use lunfs_format::BLOCK;
use lunfs_host::disk::{Access, UringDisk};
use lunfs_host::{format_guard, identity};
use serde_json::json;

use crate::CouldNotRun;
use crate::out::say;
use crate::place::Place;
use crate::runtime::{self, env};
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
    /// Mend what can be mended without guessing, then check again; it must be mounted nowhere
    #[arg(long)]
    repair: bool,
    /// For scripts
    #[arg(long)]
    json: bool,
}

/// Exit code 0: clean. 1: something is wrong. 2: could not run.
pub fn run(options: &Options) -> Result<ExitCode> {
    let (mended, report) = match mended_and_checked(options) {
        Ok(done) => done,
        Err(error) => return could_not_run(options, &error),
    };
    if options.json {
        say!("{}", as_json(&mended, &report));
    } else {
        print(&mended, &report);
        tell_hopeless(options, &mended, &report);
    }
    Ok(if report.is_clean() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// A script that reads JSON gets JSON.
fn could_not_run(options: &Options, error: &anyhow::Error) -> Result<ExitCode> {
    let why = format!("{error:#}; nothing is known about the volume");
    if options.json {
        say!("{}", json!({ "error": why }));
    }
    Err(CouldNotRun(why).into())
}

/// What `--repair` leaves is not mended by doing it again.
fn tell_hopeless(options: &Options, mended: &[Repair], report: &Report) {
    if !options.repair || report.is_clean() || !report.repairs.is_empty() {
        return;
    }
    let what = if mended.is_empty() { "nothing of this" } else { "no more of this" };
    say!(
        "`--repair` can mend {what}: it would have to guess. Keep an image of the volume, mount \
         it, copy what can be read to another one, and restore the rest from a backup"
    );
}

fn mended_and_checked(options: &Options) -> Result<(Vec<Repair>, Report)> {
    let source = match Place::of(&options.place)? {
        Place::Source(source) => source,
        Place::Mount(mount) if options.repair => bail!(
            "{} is a mount; unmount it everywhere, then repair {}; nothing was changed",
            mount.point.display(),
            mount.source
        ),
        Place::Mount(mount) => mount.source.into(),
    };
    let mended = if options.repair { repair(&source)? } else { Vec::new() };
    Ok((mended, read(&source, options.offline)?))
}

fn repair(source: &Path) -> Result<Vec<Repair>> {
    if let Some(user) = format_guard::in_use(source)? {
        bail!("{} is in use: {user}; nothing was changed", source.display());
    }
    let identity = identity(false)?;
    let env = env(UringDisk::open(source, Access::ReadWrite)?, &identity);
    runtime::block_on(async { Ok(check::repair(&env, &identity).await?) })
}

fn read(source: &Path, offline: bool) -> Result<Report> {
    let disk = UringDisk::open(source, Access::ReadOnly)?;
    let options = check::Options { offline, progress: None };
    runtime::block_on(async { Ok(check::check(&disk, &options).await?) })
}

fn print(mended: &[Repair], report: &Report) {
    for repair in mended {
        say!("mended: {repair}");
    }
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
    let changed = if mended.is_empty() { "nothing was changed" } else { "the rest is as it was" };
    match report.errors().count() {
        0 => say!("clean"),
        1 => say!("1 error; {changed}"),
        errors => say!("{errors} errors; {changed}"),
    }
    for repair in report.repairs.iter().take(TOLD_MAX) {
        say!("`--repair` can mend {repair}");
    }
}

fn as_json(mended: &[Repair], report: &Report) -> serde_json::Value {
    let texts = |repairs: &[Repair]| repairs.iter().map(Repair::to_string).collect::<Vec<_>>();
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
        "mended": texts(mended),
        "can_mend": texts(&report.repairs),
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
