//! `demo`: the demonstration that README offers ends well.

use anyhow::{Result, bail};

use super::{Extent, Figure, world};
use crate::shell;

/// Runs `lunfs demo` and looks at what it said.
pub fn run(_: &Extent) -> Result<Figure> {
    let binary = world::build("lunfs")?;
    let said = shell::output(&mut shell::command(binary, ["demo"]))?;
    println!("{said}");
    for needed in ["sha256", "kill", "replay", "check", "next"] {
        if !said.contains(needed) {
            bail!("the demo does not speak of {needed:?}");
        }
    }
    Ok(Figure {
        measured: "the demo ended well".into(),
        bound: "exit code 0".into(),
        is_kept: true,
    })
}
