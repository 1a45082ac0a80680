//! The pieces beside the swarm, each a process with a share of the time. What it did and found is
//! read from what it prints; one that this tree does not have, or that cannot run on this machine,
//! is left out and said to be.

use std::fmt;
use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::{root, shell};

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

/// A count, and findings.
type Totals = (u64, u64);

/// A process, and how its totals are read from what it prints.
struct Piece<'a> {
    name: &'static str,
    totals: fn(&str) -> Option<Totals>,
    command: Command,
    place: &'a Path,
    limit: Duration,
}

/// Every crash of every operation; it ends when it is complete, or counts for nothing.
pub fn enumeration(simulator: &Path, place: &Path, share: Duration) -> Result<Outcome> {
    let command = shell::command(simulator, ["enumerate"]);
    Piece { name: "enumeration", totals: of_enumeration, command, place, limit: share }.run()
}

/// Every fuzz target, for a part of the share each.
pub fn fuzzing(place: &Path, share: Duration) -> Result<Outcome> {
    let targets = fs::read_dir(root().join("fuzz/fuzz_targets")).map_or(0, Iterator::count);
    let seconds = share.as_secs() / u64::try_from(targets.max(1))?;
    let command = ourselves(["fuzz", "--seconds", &seconds.max(1).to_string()]);
    Piece { name: "fuzz", totals: of_fuzz, command, place, limit: share + GRACE }.run()
}

/// Real hosts.
pub fn torture(place: &Path, share: Duration) -> Result<Outcome> {
    let minutes = (share.as_secs() / 60).max(1).to_string();
    let command = ourselves(["torture", "--json", "--minutes", &minutes]);
    Piece { name: "torture", totals: of_torture, command, place, limit: share + GRACE }.run()
}

/// `states counted: 12345 of 60 cases, 99 different; 5 recoveries crashed; 0 findings; 7 s`
fn of_enumeration(said: &str) -> Option<Totals> {
    let line = said.lines().rev().find_map(|line| line.strip_prefix("states counted: "))?;
    let (states, _) = line.split_once(' ')?;
    let (before, _) = line.split_once(" findings")?;
    Some((states.parse().ok()?, before.rsplit(' ').next()?.parse().ok()?))
}

/// A table: `| target | executions | seconds | executions/s | findings |`
fn of_fuzz(said: &str) -> Option<Totals> {
    let (_, table) = said.split_once("| target | executions |")?;
    let rows = table.lines().skip(2).take_while(|line| line.starts_with('|'));
    let rows: Option<Vec<Totals>> = rows
        .map(|row| {
            let cells: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
            Some((cells.get(1)?.parse().ok()?, cells.get(4)?.parse().ok()?))
        })
        .collect();
    let rows = rows.filter(|rows| !rows.is_empty())?;
    Some(rows.iter().fold((0, 0), |sum, row| (sum.0 + row.0, sum.1 + row.1)))
}

/// A last line of JSON.
fn of_torture(said: &str) -> Option<Totals> {
    let line = said.lines().rev().find(|line| line.starts_with('{'))?;
    let totals: Value = serde_json::from_str(line).ok()?;
    Some((totals["kills"].as_u64()?, totals["findings"].as_u64()?))
}

fn ourselves<const N: usize>(arguments: [&str; N]) -> Command {
    // Not by its path: a build may have replaced the file since we were started.
    shell::command("/proc/self/exe", arguments)
}

impl Piece<'_> {
    fn run(mut self) -> Result<Outcome> {
        let Piece { name, totals, place, limit, .. } = self;
        println!("soak: {name}, for {} s", limit.as_secs());
        let log = place.join(format!("{name}.log"));
        let Some(status) = self.wait(&log)? else {
            return Ok(ended_early(name, &read(&log)?, limit));
        };
        let said = read(&log)?;
        let outcome = judge(name, status, &said, totals(&said));
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

fn read(log: &Path) -> Result<String> {
    fs::read_to_string(log).with_context(|| log.display().to_string())
}

/// A piece that is not complete counts for nothing, but what it found was found.
fn ended_early(name: &'static str, said: &str, limit: Duration) -> Outcome {
    if said.contains("breaks a rule") {
        println!("{said}");
        return Outcome::Ran { name, count: 0, findings: 1 };
    }
    Outcome::Nothing { name, why: format!("it did not end within {} s", limit.as_secs()) }
}

/// What the output of a piece means.
fn judge(name: &'static str, status: ExitStatus, said: &str, totals: Option<Totals>) -> Outcome {
    let unknown = ["unrecognized subcommand", "unexpected argument", "invalid value"];
    if status.code() == Some(2) && unknown.iter().any(|word| said.contains(word)) {
        return Outcome::Nothing { name, why: "this tree does not have it yet".into() };
    }
    if status.code() == Some(2) && said.contains("SKIPPED") {
        return Outcome::Nothing { name, why: "it cannot run on this machine".into() };
    }
    let Some((count, findings)) = totals else {
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
        judge("torture", ExitStatus::from_raw(code << 8), said, of_torture(said))
    }

    #[test]
    fn a_piece_that_is_not_there_is_no_finding_and_no_proof() {
        let outcome = judged(2, "error: unrecognized subcommand 'torture'");
        assert_eq!((outcome.count(), outcome.findings()), (0, 0));
        assert_eq!(outcome.to_string(), "torture: nothing, this tree does not have it yet");
    }

    #[test]
    fn a_piece_that_breaks_is_a_finding() {
        assert_eq!(judged(101, "thread 'main' panicked").findings(), 1);
        assert_eq!(judged(0, "no last line").findings(), 1);
        assert_eq!(judged(1, "{\"kills\":9,\"findings\":0}").findings(), 1);
    }

    #[test]
    fn what_was_found_before_the_time_was_over_counts() {
        let early = |said| ended_early("enumeration", said, Duration::from_secs(9)).findings();
        assert_eq!(early("a\n  breaks a rule:\n  b\n"), 1);
        assert_eq!(early("a\n"), 0);
    }

    #[test]
    fn what_a_piece_counts_is_kept() {
        let outcome = judged(0, "text\n{\"kills\":900,\"findings\":0}\n");
        assert_eq!((outcome.count(), outcome.findings()), (900, 0));
        let said = "x\nstates counted: 1234 of 60 cases, 99 different; 5 recoveries crashed; \
                    2 findings; 7 s\n";
        assert_eq!(of_enumeration(said), Some((1234, 2)));
        let said = "\n| target | executions | seconds | executions/s | findings |\n\
                    |---|---|---|---|---|\n| lock | 500 | 10 | 50 | 0 |\n\
                    | node | 70 | 10 | 7 | 1 |\n";
        assert_eq!(of_fuzz(said), Some((570, 1)));
        assert_eq!(of_fuzz("| target | executions |\n|---|\n"), None);
    }
}
