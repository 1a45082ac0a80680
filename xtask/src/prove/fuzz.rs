//! `fuzz`: every target under libFuzzer, and nothing found. A slice of it is seeds and chance, by a
//! program that the tests have built already.

use anyhow::Result;

use super::{Extent, Figure};
use crate::fuzz::{Run, fuzz};
use crate::shell;

/// Seconds for each target: the whole claim.
const SECONDS: u64 = 600;
/// Of a slice: inputs by chance for each target, and seconds after which no other one is begun.
const SLICE: (u64, u64) = (5000, 15);
/// A target that ran less has shown nothing.
const EXECUTIONS_MIN: u64 = 1000;

/// Runs all targets, or one.
pub fn run(extent: &Extent) -> Result<Figure> {
    if extent.is_slice {
        return by_chance(extent.seed);
    }
    let runs = fuzz(extent.only.as_deref(), |_| SECONDS)?;
    let executions: u64 = runs.iter().map(|run| run.executions).sum();
    let findings: u64 = runs.iter().map(|run| run.findings).sum();
    let is_idle = |run: &&Run| run.executions < EXECUTIONS_MIN;
    let idle = runs.iter().filter(is_idle).count();
    let targets = runs.len();
    Ok(Figure {
        measured: format!(
            "{executions} executions of {targets} targets, {findings} findings, {idle} hardly run"
        ),
        bound: format!("0 findings, {EXECUTIONS_MIN} executions of each"),
        is_kept: findings == 0 && idle == 0,
    })
}

/// Ends with an error at a finding, which it prints with a way to see it again.
fn by_chance(seed: u64) -> Result<Figure> {
    let (inputs, seconds) = SLICE;
    let mut fuzz = shell::cargo(["run", "--quiet", "--package", "lunfs-fuzz", "--"]);
    fuzz.arg(format!("--inputs={inputs}")).arg(format!("--seconds={seconds}"));
    // Inputs have numbers, and the program counts up from the first.
    shell::run(fuzz.arg(format!("--from={}", seed >> 1)))?;
    Ok(Figure {
        measured: format!("seeds and up to {inputs} inputs by chance of each target, 0 findings"),
        bound: "0 findings".into(),
        is_kept: true,
    })
}
