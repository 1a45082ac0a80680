//! `enumerate`: every operation, crashed at every write, and its recovery crashed as well.

use std::io::{BufRead as _, BufReader};
use std::process::Stdio;

use anyhow::{Context, Result, bail};

use super::{Extent, Figure, world};
use crate::shell;

/// What a slice runs, one after the other: single operations and their recoveries, then pairs.
const SLICE: &[&[&str]] = &[
    &["enumerate", "--every", "7", "--second-bound", "2"],
    &["enumerate", "--pairs", "--every", "97"],
];
/// Everything.
const WHOLE: &[&[&str]] = &[&["enumerate"], &["enumerate", "--pairs"]];

/// Runs `lunfs-sim enumerate`; it ends with an error at the first rule that was broken.
pub fn run(extent: &Extent) -> Result<Figure> {
    let simulator = world::build("lunfs-sim")?;
    let mut counted = Vec::new();
    for arguments in if extent.is_slice { SLICE } else { WHOLE } {
        let mut command = shell::command(&simulator, arguments.iter().copied());
        if let Some(only) = &extent.only {
            command.args(["--only", only]);
        }
        println!("$ {}", shell::line(&command));
        let mut child = command.stdout(Stdio::piped()).spawn().context("cannot start it")?;
        let stdout = child.stdout.take().context("stdout is piped")?;
        for line in BufReader::new(stdout).lines() {
            let line = line?;
            println!("{line}");
            counted.extend(line.strip_prefix("states counted: ").map(str::to_owned));
        }
        if !child.wait()?.success() {
            bail!("a state that must not be: see above");
        }
    }
    Ok(Figure {
        measured: counted.join("; "),
        bound: "0 findings in all states".into(),
        is_kept: counted.iter().all(|line| line.contains(" 0 findings")),
    })
}
