//! `model` and `model-whole`: every order of events of small volumes, with the shipped decisions.

use anyhow::{Context, Result};

use super::{Extent, Figure};
use crate::{root, shell};

/// What fits into every test run.
pub fn run(_: &Extent) -> Result<Figure> {
    explore(&[])
}

/// Also what takes minutes.
pub fn whole(_: &Extent) -> Result<Figure> {
    explore(&["--whole"])
}

/// Runs `lunfs-model`; it ends with an error if something breaks that must hold, or holds that must
/// break. A search of millions of states needs an optimised program.
fn explore(arguments: &[&str]) -> Result<Figure> {
    shell::run(&mut shell::cargo(["build", "--release", "--quiet", "-p", "lunfs-model"]))?;
    let model = root().join("target/release/lunfs-model");
    let told =
        shell::output(shell::command(model, arguments.iter().copied()).env("RUST_BACKTRACE", "0"))?;
    println!("{told}");
    let last = told.lines().last().context("lunfs-model counts what it explored")?;
    Ok(Figure {
        measured: last.to_owned(),
        bound: "0 wrong; what lacks a rule breaks".into(),
        is_kept: last.ends_with(", 0 wrong"),
    })
}
