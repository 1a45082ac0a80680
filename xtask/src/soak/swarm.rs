//! The swarm: seeds in order, some at a time, on several cores until the time is over.

use std::path::Path;
use std::sync::Mutex;
use std::time::Instant;

use anyhow::{Context, Result, anyhow, bail};
use serde_json::Value;

use crate::shell;

/// Seeds of one process: few enough to end soon, many enough that starting it costs nothing.
const SEEDS_AT_ONCE: u64 = 10;

/// A run that finds so much is not worth going on with.
const FINDINGS_MAX: u64 = 10;

/// A process that ended otherwise than it should: that is a finding, whatever it is.
const BROKEN: Swarm = Swarm { next: 0, virtual_seconds: 0.0, crashes: 0, findings: 1 };

/// What ran.
#[derive(Debug, Default, PartialEq)]
pub struct Swarm {
    /// The seed behind the last one.
    pub next: u64,
    /// Time in the simulated worlds.
    pub virtual_seconds: f64,
    /// Hosts that died in them.
    pub crashes: u64,
    /// Seeds that broke a rule.
    pub findings: u64,
}

/// Runs seeds from `first` on until `until`; every seed that was begun is ended.
pub fn run(simulator: &Path, first: u64, jobs: u32, until: Instant) -> Result<Swarm> {
    let swarm = Mutex::new(Swarm { next: first, ..Swarm::default() });
    let work = || -> Result<()> {
        while let Some(from) = take(&swarm, until)? {
            let part = part(simulator, from)?.unwrap_or(BROKEN);
            let mut swarm = swarm.lock().map_err(|_| anyhow!("another job has failed"))?;
            swarm.virtual_seconds += part.virtual_seconds;
            swarm.crashes += part.crashes;
            swarm.findings += part.findings;
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let jobs: Vec<_> = (0..jobs).map(|_| scope.spawn(work)).collect();
        jobs.into_iter().try_for_each(|job| job.join().unwrap_or_else(|_| bail!("a job panicked")))
    })?;
    swarm.into_inner().map_err(|_| anyhow!("a job has failed"))
}

/// The next seeds to run, unless the time is over.
fn take(swarm: &Mutex<Swarm>, until: Instant) -> Result<Option<u64>> {
    let mut swarm = swarm.lock().map_err(|_| anyhow!("another job has failed"))?;
    if Instant::now() >= until || swarm.findings >= FINDINGS_MAX {
        return Ok(None);
    }
    let from = swarm.next;
    swarm.next += SEEDS_AT_ONCE;
    Ok(Some(from))
}

/// Whether the simulator says what it did in a form that can be counted.
pub fn can_be_counted(simulator: &Path) -> Result<bool> {
    Ok(shell::output(&mut shell::command(simulator, ["--help"]))?.contains("--json"))
}

/// One process; all that it said is printed if it found something. `None`: it broke.
fn part(simulator: &Path, from: u64) -> Result<Option<Swarm>> {
    let (from, count) = (from.to_string(), SEEDS_AT_ONCE.to_string());
    let arguments = ["--keep-going", "--json", "--from", &from, "--seeds", &count];
    let output = shell::command(simulator, arguments)
        .output()
        .with_context(|| format!("cannot start {}", simulator.display()))?;
    let said = String::from_utf8_lossy(&output.stdout);
    let part = read(&said).ok().filter(|part| output.status.success() || part.findings > 0);
    if part.as_ref().is_none_or(|part| part.findings > 0) {
        let why = String::from_utf8_lossy(&output.stderr);
        println!("seeds from {from}: {}\n{said}{why}", output.status);
    }
    Ok(part)
}

/// The last line of what the simulator says.
fn read(said: &str) -> Result<Swarm> {
    let line = said.lines().last().unwrap_or_default();
    let totals: Value = serde_json::from_str(line).context("its last line is no JSON")?;
    let number = |key: &str| totals[key].as_f64().with_context(|| format!("no number {key}"));
    let count = |key: &str| totals[key].as_u64().with_context(|| format!("no number {key}"));
    if count("seeds")? != SEEDS_AT_ONCE {
        bail!("it ran {} seeds instead of {SEEDS_AT_ONCE}", totals["seeds"]);
    }
    Ok(Swarm {
        next: 0,
        virtual_seconds: number("virtual_seconds")?,
        crashes: count("crashes")?,
        findings: count("findings")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_simulator_that_breaks_is_a_finding_and_ends_the_run() {
        let until = Instant::now() + std::time::Duration::from_secs(3600);
        let swarm = run(Path::new("false"), 70, 1, until).expect("it runs");
        assert_eq!((swarm.findings, swarm.next), (FINDINGS_MAX, 70 + FINDINGS_MAX * SEEDS_AT_ONCE));
    }

    #[test]
    fn the_last_line_of_the_simulator_is_counted() {
        let said = "10 seeds, 5 s\n\
                    {\"seeds\":10,\"virtual_seconds\":812.5,\"crashes\":40,\"findings\":1}\n";
        let expected = Swarm { next: 0, virtual_seconds: 812.5, crashes: 40, findings: 1 };
        assert_eq!(read(said).expect("it is understood"), expected);
        assert!(read("10 seeds\n").is_err());
        assert!(read("{\"seeds\":9,\"virtual_seconds\":1,\"crashes\":0,\"findings\":0}").is_err());
    }
}
