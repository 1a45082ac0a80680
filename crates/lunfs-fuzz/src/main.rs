//! Runs fuzz targets without a fuzzer: seeds, chosen inputs, or files.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::panic::catch_unwind;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result};
use clap::Parser;
use lunfs_fuzz::{TARGETS, Target, chosen, target};

thread_local! {
    /// Where the last panic was.
    static PLACE: Cell<String> = const { Cell::new(String::new()) };
}

/// Runs one target, or all.
#[derive(Parser)]
struct Arguments {
    /// Its name; all if it is left out
    target: Option<String>,
    /// Files to run it on, instead of its seeds and chosen inputs
    files: Vec<PathBuf>,
    /// Chosen inputs to run after the seeds
    #[arg(long, default_value_t = 200)]
    inputs: u64,
    /// Seconds after which no further input is begun
    #[arg(long, default_value_t = u64::MAX)]
    seconds: u64,
    /// Number of the first chosen input
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// Write the seeds into this folder, and run nothing
    #[arg(long)]
    seeds_into: Option<PathBuf>,
}

fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        PLACE.set(place);
        if std::env::var("RUST_BACKTRACE").is_ok_and(|wish| wish == "full") {
            eprintln!("{}", std::backtrace::Backtrace::force_capture());
        }
    }));
    let chosen = match &arguments.target {
        Some(name) => vec![target(name).with_context(|| format!("no target {name}"))?],
        None => TARGETS.to_vec(),
    };
    let mut findings = 0;
    for target in &chosen {
        match &arguments.seeds_into {
            Some(folder) => write_seeds(target, folder)?,
            None => findings += run(target, &arguments)?,
        }
    }
    Ok(if findings == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn write_seeds(target: &Target, folder: &std::path::Path) -> Result<()> {
    let folder = folder.join(target.name);
    std::fs::create_dir_all(&folder)?;
    for (number, seed) in (target.seeds)().iter().enumerate() {
        std::fs::write(folder.join(format!("seed-{number}")), seed)?;
    }
    Ok(())
}

/// Inputs with a name by which each can be run again.
fn inputs(target: &Target, arguments: &Arguments) -> Result<Vec<(String, Vec<u8>)>> {
    let named = |file: &PathBuf| {
        let bytes = std::fs::read(file).with_context(|| file.display().to_string())?;
        Ok((file.display().to_string(), bytes))
    };
    if !arguments.files.is_empty() {
        return arguments.files.iter().map(named).collect();
    }
    let seeds = (target.seeds)().into_iter().enumerate();
    let seeds = seeds.map(|(number, seed)| (format!("seed {number}"), seed));
    let numbers = arguments.from..arguments.from + arguments.inputs;
    let others = numbers.map(|number| (format!("--from {number}"), chosen(target, number)));
    Ok(seeds.chain(others).collect())
}

fn run(target: &Target, arguments: &Arguments) -> Result<u64> {
    let inputs = inputs(target, arguments)?;
    let started = Instant::now();
    let mut findings: BTreeMap<String, (u64, String)> = BTreeMap::new();
    let mut count = 0u64;
    for (name, input) in inputs {
        if started.elapsed().as_secs() >= arguments.seconds {
            break;
        }
        count += 1;
        let Err(panic) = catch_unwind(|| (target.run)(&input)) else { continue };
        let what = panic
            .downcast_ref::<String>()
            .cloned()
            .or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
            .unwrap_or_default();
        let what = format!("{}: {what}", PLACE.take());
        let shape: String = what.chars().filter(|c| !c.is_ascii_digit()).take(90).collect();
        findings.entry(shape).or_insert((0, format!("{name}: {what}\n  {input:02x?}"))).0 += 1;
    }
    let took = started.elapsed().as_secs_f64();
    println!(
        "{:16}{count:8} inputs, {took:.1} s, {} kinds of findings",
        target.name,
        findings.len()
    );
    for (times, what) in findings.values() {
        println!("  {times} times, first {what}");
    }
    Ok(findings.len() as u64)
}
