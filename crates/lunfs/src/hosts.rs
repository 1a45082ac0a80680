//! `lunfs hosts`: who has the volume mounted, as the heartbeat region says.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use lunfs_format::{DecodeError, Pulse, SlotNo};
use lunfs_host::control::Request;
use serde_json::{Value, json};

use crate::out::say;
use crate::place::{self, Place};
use crate::reader::Reader;

/// Which volume or mount.
#[derive(Args)]
pub struct Options {
    /// Image file, block device, or mount point
    place: PathBuf,
    /// For scripts
    #[arg(long)]
    json: bool,
}

/// Prints a line for each slot that is in use.
pub fn run(options: &Options) -> Result<ExitCode> {
    let hosts = match Place::of(&options.place)? {
        Place::Source(source) => of_source(&source)?,
        Place::Mount(mount) => place::ask(&mount, &Request::Hosts)?,
    };
    if options.json {
        say!("{}", json!({ "hosts": hosts }));
        return Ok(ExitCode::SUCCESS);
    }
    say!("{:>5}  {:20} {:9} {:>5}  {:>8}  silent", "slot", "host", "state", "life", "process");
    for host in hosts.as_array().into_iter().flatten() {
        print(host);
    }
    Ok(ExitCode::SUCCESS)
}

fn of_source(source: &Path) -> Result<Value> {
    let pulses = Reader::open(source)?.pulses()?;
    Ok(pulses.iter().map(|(slot, pulse)| row(*slot, pulse)).collect())
}

/// As the control socket says it; what only a mounted host can know is left out.
fn row(slot: SlotNo, pulse: &Result<Pulse, DecodeError>) -> Value {
    match pulse {
        Err(why) => json!({ "slot": slot.0, "state": "corrupt", "why": why.to_string() }),
        Ok(pulse) => json!({
            "slot": slot.0,
            "state": format!("{:?}", pulse.state).to_lowercase(),
            "name": pulse.name,
            "incarnation": pulse.incarnation.0,
            "counter": pulse.counter,
            "progress": pulse.progress,
            "pid": pulse.pid,
            "has_parent": pulse.has_parent,
            "claimer": pulse.claimer.map(|holder| holder.to_string()),
            "claim_attempts": pulse.claim_attempts,
        }),
    }
}

fn print(host: &Value) {
    let text = |key: &str| match &host[key] {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let silent = match (&host["is_self"], &host["silence_ms"]) {
        (Value::Bool(true), _) => "this mount".into(),
        (_, Value::Null) => "-".into(),
        (_, silence) => format!("{silence} ms"),
    };
    say!(
        "{:>5}  {:20} {:9} {:>5}  {:>8}  {silent}",
        text("slot"),
        text("name"),
        text("state"),
        text("incarnation"),
        text("pid")
    );
}
