//! `cargo xtask fuzz`: the targets of crates/lunfs-fuzz under libFuzzer.
//!
//! Their programs are built here as cargo-fuzz builds them without a sanitizer, with the stable
//! compiler: coverage is counted inside them, so libFuzzer goes where it has not been. cargo-fuzz
//! itself is not needed, and `cargo fuzz run -s none TARGET` does the same.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::{Ending, root, shell};

/// What is run, and for how long.
#[derive(Args)]
pub struct Options {
    /// Name of the target; all, one after the other, if it is left out
    target: Option<String>,
    /// Seconds for each
    #[arg(long, default_value_t = 60)]
    seconds: u64,
}

/// How a compiler counts coverage for libFuzzer.
const COVERAGE: &str = "-Cpasses=sancov-module \
    -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares --cfg fuzzing";
/// Build scripts and macros must not be built like that: only with a named target they are not.
const MACHINE: &str = "x86_64-unknown-linux-gnu";
/// One allocation, and all of a program, in MiB: the volumes of the targets have 36.
const MALLOC_MAX: u64 = 256;
const MEMORY_MAX: u64 = 1024;
/// Seconds that one input may take; polls and requests are bounded inside.
const INPUT_MAX: u64 = 60;
/// The longest input that says more than a shorter one: a block.
const LENGTH_MAX: u64 = 4200;

/// What became of one target.
pub struct Run {
    /// Its name.
    pub target: String,
    /// Inputs that were run.
    pub executions: u64,
    /// Inputs that broke a rule.
    pub findings: u64,
    /// How long it took.
    pub seconds: f64,
}

/// Runs what was asked for and prints the table that belongs into docs/testing.md.
pub fn run(options: &Options) -> Result<Ending> {
    let runs = fuzz(options.target.as_deref(), |_| options.seconds)?;
    println!("\n| target | executions | seconds | executions/s | findings |");
    println!("|---|---|---|---|---|");
    for Run { target, executions, findings, seconds } in &runs {
        let rate = *executions as f64 / seconds.max(0.001);
        println!("| {target} | {executions} | {seconds:.0} | {rate:.0} | {findings} |");
    }
    let is_good = runs.iter().all(|run| run.findings == 0);
    Ok(if is_good { Ending::Passed } else { Ending::Failed })
}

/// Builds the programs and runs one target, or all, each for as long as `seconds` says.
pub fn fuzz(only: Option<&str>, seconds: impl Fn(&str) -> u64) -> Result<Vec<Run>> {
    let names = names()?;
    let chosen: Vec<String> =
        names.iter().filter(|name| only.is_none_or(|only| only == *name)).cloned().collect();
    if chosen.is_empty() {
        bail!("no such target; there are: {}", names.join(", "));
    }
    build(only)?;
    chosen.iter().map(|name| run_one(name, seconds(name))).collect()
}

/// Targets have a program each.
fn names() -> Result<Vec<String>> {
    let folder = root().join("fuzz/fuzz_targets");
    let mut names = Vec::new();
    for entry in fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        let stem = path.file_stem().context("a file has a name")?;
        names.push(stem.to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

fn folder() -> PathBuf {
    root().join("target/fuzz-programs")
}

fn build(only: Option<&str>) -> Result<()> {
    let mut build = shell::cargo(["build", "--release", "--target", MACHINE]);
    build.arg("--manifest-path").arg(root().join("fuzz/Cargo.toml"));
    build.arg("--target-dir").arg(folder()).env("RUSTFLAGS", COVERAGE);
    match only {
        Some(name) => build.args(["--bin", name]),
        None => build.arg("--bins"),
    };
    shell::run(&mut build)
}

fn run_one(name: &str, seconds: u64) -> Result<Run> {
    let program = folder().join(MACHINE).join("release").join(name);
    let found = folder().join("corpus").join(name);
    let findings = folder().join("findings").join(name);
    fs::create_dir_all(&found)?;
    fs::create_dir_all(&findings)?;
    let mut fuzz = shell::command(&program, [&found]);
    for known in [root().join("crates/lunfs-fuzz/corpus").join(name), seeds(name)?] {
        if known.is_dir() {
            fuzz.arg(known);
        }
    }
    fuzz.arg(format!("-max_total_time={seconds}")).arg(format!("-timeout={INPUT_MAX}"));
    fuzz.arg(format!("-rss_limit_mb={MEMORY_MAX}")).arg(format!("-malloc_limit_mb={MALLOC_MAX}"));
    fuzz.arg(format!("-max_len={LENGTH_MAX}")).arg("-print_final_stats=1");
    fuzz.arg(format!("-artifact_prefix={}/", findings.display()));
    println!("$ {}", shell::line(&fuzz));
    let started = Instant::now();
    let output = fuzz.stdin(Stdio::null()).output().context("cannot start the fuzzer")?;
    let said = String::from_utf8_lossy(&output.stderr);
    let took = started.elapsed().as_secs_f64();
    let broken = u64::from(!output.status.success());
    if broken > 0 {
        report(name, &said, &findings);
    }
    let executions = executions(&said);
    println!("fuzz {name}: {executions} executions in {took:.0} s, {broken} findings");
    Ok(Run { target: name.to_owned(), executions, findings: broken, seconds: took })
}

/// The seeds that the target makes itself.
fn seeds(name: &str) -> Result<PathBuf> {
    let into = folder().join("seeds");
    let mut make = shell::cargo(["run", "--quiet", "--package", "lunfs-fuzz", "--"]);
    shell::run_quietly(make.arg(name).arg("--seeds-into").arg(&into))?;
    Ok(into.join(name))
}

/// The end of what a fuzzer says has the panic, and how to see it again.
fn report(name: &str, said: &str, findings: &Path) {
    let lines: Vec<&str> = said.lines().collect();
    let first = lines.iter().position(|line| line.contains("panicked at"));
    let first = first.unwrap_or(lines.len().saturating_sub(30));
    lines[first..].iter().take(40).for_each(|line| println!("  {line}"));
    let findings = findings.display();
    println!("fuzz {name}: again: cargo run -p lunfs-fuzz -- {name} {findings}/crash-...");
    println!("fuzz {name}: once mended, it goes into crates/lunfs-fuzz/corpus/{name}");
}

/// What libFuzzer counted: at the end, or where it stopped.
fn executions(said: &str) -> u64 {
    let counted = said.lines().rev().find_map(|line| {
        let number = line.strip_prefix("stat::number_of_executed_units:")?;
        number.trim().parse().ok()
    });
    let last = || {
        let line = said.lines().rev().find(|line| line.starts_with('#'))?;
        line[1..].split_whitespace().next()?.parse().ok()
    };
    counted.or_else(last).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn executions_are_counted_also_where_a_fuzzer_stopped() {
        let whole = "#12\tpulse  cov: 3\nstat::number_of_executed_units: 345\n";
        assert_eq!(executions(whole), 345);
        assert_eq!(executions("#12\tpulse  cov: 3\n#17\tNEW cov: 4\nthread panicked\n"), 17);
        assert_eq!(executions(""), 0);
    }
}
