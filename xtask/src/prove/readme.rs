//! `readme-commands`: what README and docs/operating.md tell a newcomer to type works from a clean
//! clone.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};

use super::{Extent, Figure};
use crate::{root, shell};

/// Clones the workspace and runs the `sh` blocks of README there, in order, then the examples of
/// docs/operating.md.
///
/// `cargo xtask test` is left out: it takes what is left of an hour, and is run by itself.
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
    let examples = examples(&fs::read_to_string(clone.join("docs/operating.md"))?);
    run_all(&clone, &on_stage(&examples, &place))?;
    fs::remove_dir_all(&place)?;
    let (count, more) = (commands.lines().count(), examples.lines().count());
    Ok(Figure {
        measured: format!(
            "{count} lines of README and {more} of operating.md run in a clean clone"
        ),
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

/// The examples of docs/operating.md: those of a day, with disks and a look inside before the
/// unmount.
fn examples(operating: &str) -> String {
    let section = |title: &str| {
        let (_, behind) = operating.split_once(title).unwrap_or_default();
        let lines = behind.split("\n## ").next().unwrap_or_default().lines();
        let commands = lines.filter_map(|line| line.strip_prefix("    ").filter(|l| is_lunfs(l)));
        commands.map(|line| format!("{line}\n")).collect::<String>()
    };
    let (day, inside) = (section("\n## Every day\n"), section("\n## Looking inside\n"));
    let disks = section("\n## Disks\n") + &section("\n## Files as disks\n");
    match day.find("lunfs unmount") {
        Some(at) => format!("{}{disks}{inside}{}", &day[..at], &day[at..]),
        None => day + &disks + &inside,
    }
}

fn is_lunfs(line: &str) -> bool {
    line.starts_with("lunfs ")
}

/// The examples with places that may be used, and an end that leaves no mount behind.
fn on_stage(examples: &str, place: &Path) -> String {
    let (image, dir) = (place.join("ds1.img"), place.join("mnt"));
    let (image, dir) = (image.display(), dir.display());
    let commands = examples
        .replace("/srv/ds1.img", "SOURCE")
        .replace("lunfs export ", "truncate --size 64M /mnt/ds1/vm.raw\nlunfs export ")
        .replace("/run/vm.sock", &place.join("vm.sock").to_string_lossy())
        .replace("/mnt/ds1", "DIR")
        .replace("SOURCE", &image.to_string())
        .replace("DIR PATH", "DIR .")
        .replace("DIR", &dir.to_string());
    format!(
        "lunfs() {{ target/release/lunfs \"$@\"; }}\n\
         trap 'umount {dir} 2> /dev/null || true' EXIT\n\
         mkdir -p {dir}\n{commands}"
    )
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_look_inside_comes_before_the_unmount() {
        let operating = "# O\n\n## Every day\n\n    lunfs mount A B   # c\n    lunfs unmount B\n\n\
                         Text.\n\n## Other\n\n    lunfs other\n\n## Looking inside\n\n    \
                         lunfs locks DIR\n\n## Disks\n\n    lunfs disk list\n\n\
                         ## Files as disks\n\n    lunfs exports\n";
        let examples = super::examples(operating);
        let lines: Vec<_> = examples.lines().collect();
        let expected = [
            "lunfs mount A B   # c",
            "lunfs disk list",
            "lunfs exports",
            "lunfs locks DIR",
            "lunfs unmount B",
        ];
        assert_eq!(lines, expected);
    }

    #[test]
    fn only_sh_blocks_are_commands() {
        let readme = "a\n```sh\none\ncargo xtask test   # all\n```\n```text\nno\n```\n";
        assert_eq!(super::commands(readme), "one\n");
    }
}
