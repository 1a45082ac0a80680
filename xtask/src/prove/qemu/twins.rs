//! A directory on a mount and a local one, in which the same is done.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::shell;

/// A command that takes longer than this on the mount, and `SLOWER` times as long as on the local
/// side, is told.
const SLOW: Duration = Duration::from_millis(500);
const SLOWER: u32 = 4;

/// Both directories, and what was seen.
pub struct Twins {
    /// On the file system of this machine.
    pub local: PathBuf,
    /// On the mount.
    pub on_mount: PathBuf,
    /// The same directory, through another host.
    pub on_other: PathBuf,
    /// Commands that ran on both sides.
    pub commands: u32,
    /// What was not the same, in words.
    pub differences: Vec<String>,
    /// Time of each command, on the mount and locally.
    pub times: Vec<(String, Duration, Duration)>,
}

/// What a command did.
struct Outcome {
    code: Option<i32>,
    said: String,
    took: Duration,
}

impl Twins {
    /// Nothing has been done yet.
    pub fn new(local: PathBuf, on_mount: PathBuf, on_other: PathBuf) -> Twins {
        let (differences, times) = (Vec::new(), Vec::new());
        Twins { local, on_mount, on_other, commands: 0, differences, times }
    }

    /// Runs a command line in both directories: words, or what stands between quotes.
    pub fn run(&mut self, line: &str) -> Result<()> {
        let (here, there) = (outcome(line, &self.local)?, outcome(line, &self.on_mount)?);
        self.commands += 1;
        if (here.code, &here.said) != (there.code, &there.said) {
            let Outcome { code, said, .. } = &there;
            self.differs(format!("`{line}` ended with {code:?} and said {said:?}"));
            println!("  locally with {:?}: {:?}", here.code, here.said);
        } else if here.code != Some(0) {
            self.differs(format!("`{line}` fails on both sides: {}", here.said));
        }
        if there.took > SLOW && there.took > here.took * SLOWER {
            let (there, here) = (there.took.as_millis(), here.took.as_millis());
            println!("slow: {there} ms on the mount, {here} ms locally: {line}");
        }
        self.times.push((line.to_owned(), there.took, here.took));
        Ok(())
    }

    /// Keeps and prints something that is not as it must be.
    pub fn differs(&mut self, what: String) {
        println!("DIFFERENT: {what}");
        self.differences.push(what);
    }
}

fn outcome(line: &str, dir: &Path) -> Result<Outcome> {
    let words = words(line);
    let (program, arguments) = words.split_first().context("an empty line")?;
    let started = Instant::now();
    let output = shell::command(program, arguments).current_dir(dir).output();
    let output = output.with_context(|| format!("cannot start {program}"))?;
    let took = started.elapsed();
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    let said = said.lines().filter(|line| !is_about_the_run(line));
    Ok(Outcome { code: output.status.code(), said: said.collect::<Vec<_>>().join("\n"), took })
}

/// Times and speeds differ from run to run, blocks on the disk between file systems.
fn is_about_the_run(line: &str) -> bool {
    ["ops/sec", "disk size: ", "completed in"].iter().any(|what| line.contains(what))
}

fn words(line: &str) -> Vec<&str> {
    let parts = line.split('\'').enumerate();
    parts
        .flat_map(
            |(index, part)| {
                if index % 2 == 1 { vec![part] } else { part.split_whitespace().collect() }
            },
        )
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_keep_a_word_together() {
        let line = "qemu-io -c 'write 0 4k' -c 'flush' x.raw";
        assert_eq!(words(line), ["qemu-io", "-c", "write 0 4k", "-c", "flush", "x.raw"]);
    }
}
