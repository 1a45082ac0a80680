//! `simulator`: many seeds, each twice, with the same trace and without a finding.

use anyhow::Result;

use super::{Extent, Figure, world};
use crate::shell;

const SEEDS: u32 = 400;
const SEEDS_OF_A_SLICE: u32 = 60;
/// Seeds at a time.
const JOBS: &str = "2";

/// Runs `lunfs-sim`; it ends with an error at the first finding or differing trace, and where a
/// counter that must not stay zero did.
pub fn run(extent: &Extent) -> Result<Figure> {
    let simulator = world::build("lunfs-sim")?;
    let whole = if extent.is_slice { SEEDS_OF_A_SLICE } else { SEEDS };
    let seeds = extent.rounds.unwrap_or(whole);
    let mut swarm = shell::command(simulator, ["--twice", "--jobs", JOBS, "--seeds"]);
    shell::run(swarm.arg(seeds.to_string()))?;
    Ok(Figure {
        measured: format!("{seeds} seeds, each twice the same, 0 findings"),
        bound: "0 findings, 0 differing traces".into(),
        is_kept: true,
    })
}
