//! The pieces beside the swarm, each a process with a share of the time. Its last line is JSON
//! with a count and the findings; one that this tree does not have, or that cannot run on this
//! machine, is left out and said to be.

use std::fmt;
use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::shell;

/// How long a piece that counts its own minutes may take to end what is in progress.
const GRACE: Duration = Duration::from_secs(600);
/// Pause between two looks whether a piece has ended.
const LOOK: Duration = Duration::from_millis(200);

/// What came of a piece.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It ran to its end.
    Ran {
        /// Which.
        name: &'static str,
        /// What it counts.
        count: u64,
        /// What it found.
        findings: u64,
    },
    /// It did not count for anything, and why.
    Nothing {
        /// Which.
        name: &'static str,
        /// Why.
        why: String,
    },
}

impl Outcome {
    /// What it counted.
    pub fn count(&self) -> u64 {
        match self {
            Outcome::Ran { count, .. } => *count,
            Outcome::Nothing { .. } => 0,
        }
    }

    /// What it found.
    pub fn findings(&self) -> u64 {
        match self {
            Outcome::Ran { findings, .. } => *findings,
            Outcome::Nothing { .. } => 0,
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Outcome::Ran { name, count, findings } => {
                write!(f, "{name}: {count}, {findings} findings")
            }
            Outcome::Nothing { name, why } => write!(f, "{name}: nothing, {why}"),
        }
    }
}

/// A process and what it counts.
struct Piece<'a> {
    name: &'static str,
    counts: &'static str,
    command: Command,
    place: &'a Path,
    limit: Duration,
}

/// Every crash of every operation; it ends when it is complete, or counts for nothing.
pub fn enumeration(simulator: &Path, place: &Path, share: Duration) -> Result<Outcome> {
    let command = shell::command(simulator, ["enumerate", "--json"]);
    Piece { name: "enumeration", counts: "states", command, place, limit: share }.run()
}

/// Every fuzz target, for a part of the share each.
pub fn fuzzing(place: &Path, share: Duration) -> Result<Outcome> {
    let command = ourselves(["fuzz", "--json", "--minutes", &minutes(share)]);
    Piece { name: "fuzz", counts: "inputs", command, place, limit: share + GRACE }.run()
}

/// Real hosts.
pub fn torture(place: &Path, share: Duration) -> Result<Outcome> {
    let command = ourselves(["torture", "--json", "--minutes", &minutes(share)]);
    Piece { name: "torture", counts: "kills", command, place, limit: share + GRACE }.run()
}

fn ourselves<const N: usize>(arguments: [&str; N]) -> Command {
    // Not by its path: a build may have replaced the file since we were started.
    shell::command("/proc/self/exe", arguments)
}

fn minutes(share: Duration) -> String {
    (share.as_secs() / 60).max(1).to_string()
}

impl Piece<'_> {
    fn run(mut self) -> Result<Outcome> {
        let Piece { name, counts, place, limit, .. } = self;
        println!("soak: {name}, for {} s", limit.as_secs());
        let log = place.join(format!("{name}.log"));
        let Some(status) = self.wait(&log)? else {
            let why = format!("it did not end within {} s: {}", limit.as_secs(), log.display());
            return Ok(Outcome::Nothing { name, why });
        };
        let said = fs::read_to_string(&log).with_context(|| log.display().to_string())?;
        let outcome = judge(name, counts, status, &said);
        if outcome.findings() > 0 {
            println!("{said}");
        }
        Ok(outcome)
    }

    /// Waits until it has ended, or ends it.
    fn wait(&mut self, log: &Path) -> Result<Option<ExitStatus>> {
        let out = File::create(log).with_context(|| log.display().to_string())?;
        let command = self.command.stdin(Stdio::null()).stdout(out.try_clone()?).stderr(out);
        let mut child = command.spawn().with_context(|| format!("cannot start {}", self.name))?;
        let began = Instant::now();
        loop {
            if let Some(status) = child.try_wait()? {
                return Ok(Some(status));
            }
            if began.elapsed() > self.limit {
                child.kill()?;
                child.wait()?;
                return Ok(None);
            }
            std::thread::sleep(LOOK);
        }
    }
}

/// What the output of a piece means.
fn judge(name: &'static str, counts: &str, status: ExitStatus, said: &str) -> Outcome {
    let unknown = ["unrecognized subcommand", "unexpected argument", "invalid value"];
    if status.code() == Some(2) && unknown.iter().any(|word| said.contains(word)) {
        return Outcome::Nothing { name, why: "this tree does not have it yet".into() };
    }
    if status.code() == Some(2) && said.contains("SKIPPED") {
        return Outcome::Nothing { name, why: "it cannot run on this machine".into() };
    }
    let last = said.lines().rev().find(|line| line.starts_with('{')).unwrap_or_default();
    let totals: Value = serde_json::from_str(last).unwrap_or_default();
    let number = |key: &str| totals[key].as_u64();
    let (Some(count), Some(findings)) = (number(counts), number("findings")) else {
        // A piece that broke is a finding, whatever it is.
        return Outcome::Ran { name, count: 0, findings: 1 };
    };
    // A failure without a finding would be lost otherwise.
    let findings = if status.success() { findings } else { findings.max(1) };
    Outcome::Ran { name, count, findings }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt as _;

    use super::*;

    fn judged(code: i32, said: &str) -> Outcome {
        judge("fuzz", "inputs", ExitStatus::from_raw(code << 8), said)
    }

    #[test]
    fn a_piece_that_is_not_there_is_no_finding_and_no_proof() {
        let outcome = judged(2, "error: unrecognized subcommand 'fuzz'");
        assert_eq!((outcome.count(), outcome.findings()), (0, 0));
        assert_eq!(outcome.to_string(), "fuzz: nothing, this tree does not have it yet");
    }

    #[test]
    fn a_piece_that_breaks_is_a_finding() {
        assert_eq!(judged(101, "thread 'main' panicked").findings(), 1);
        assert_eq!(judged(0, "no last line").findings(), 1);
        assert_eq!(judged(1, "{\"inputs\":9,\"findings\":0}").findings(), 1);
    }

    #[test]
    fn what_a_piece_counts_is_kept() {
        let outcome = judged(0, "text\n{\"inputs\":900,\"findings\":0}\n");
        assert_eq!((outcome.count(), outcome.findings()), (900, 0));
    }
}
