//! `readme-commands`: what README tells a newcomer to type works from a clean clone.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};

use super::{Extent, Figure};
use crate::{root, shell};

/// Clones the workspace and runs the `sh` blocks of README there, in order.
///
/// `cargo xtask test` is left out: it is what runs us.
pub fn run(_: &Extent) -> Result<Figure> {
    let place = root().join("target/prove/readme-commands");
    if place.exists() {
        fs::remove_dir_all(&place)?;
    }
    let clone = place.join("lunfs");
    fs::create_dir_all(&place)?;
    let arguments = ["clone", "--quiet", "--no-local", "."];
    shell::run(shell::command("git", arguments).arg(&clone)).context("is anything committed?")?;
    let readme = fs::read_to_string(clone.join("README.md"))?;
    let commands = commands(&readme);
    if !commands.contains("cargo run --release -- demo") {
        bail!("README has no demo command");
    }
    run_all(&clone, &commands)?;
    fs::remove_dir_all(&place)?;
    let count = commands.lines().count();
    Ok(Figure {
        measured: format!("{count} lines of README run in a clean clone"),
        bound: "every one ends with 0".into(),
        is_kept: true,
    })
}

fn run_all(clone: &Path, commands: &str) -> Result<()> {
    shell::run(
        shell::command("bash", ["-euxc", commands])
            .current_dir(clone)
            .env_remove("CARGO_TARGET_DIR")
            .env_remove("CARGO_MANIFEST_DIR"),
    )
}

/// The lines of all `sh` blocks.
fn commands(readme: &str) -> String {
    let mut commands = String::new();
    let mut in_block = false;
    for line in readme.lines() {
        match line {
            "```sh" => in_block = true,
            "```" => in_block = false,
            _ if in_block && !line.starts_with("cargo xtask test") => {
                commands.push_str(line);
                commands.push('\n');
            }
            _ => {}
        }
    }
    commands
}

#[cfg(test)]
mod tests {
    #[test]
    fn only_sh_blocks_are_commands() {
        let readme = "a\n```sh\none\ncargo xtask test   # all\n```\n```text\nno\n```\n";
        assert_eq!(super::commands(readme), "one\n");
    }
}
