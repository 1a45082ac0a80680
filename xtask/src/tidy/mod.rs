//! The rules of CONTRIBUTING.md that no other tool checks.
//!
//! Each rule is a function from the files of the workspace to findings. A finding names file and
//! line; an exception is written beside the rule, with its reason, and goes when it is not needed.

mod crates;
mod documents;
mod events;
mod sources;

use std::fmt;

use anyhow::{Context, Result};

use crate::{Ending, root, shell, test};

/// A text file of the workspace.
struct File {
    /// Relative to the workspace root, with `/`.
    path: String,
    text: String,
}

impl File {
    fn is_rust(&self) -> bool {
        self.path.ends_with(".rs")
    }

    fn is_document(&self) -> bool {
        self.path.ends_with(".md")
    }

    /// The lines, counted from 1.
    fn lines(&self) -> impl Iterator<Item = (usize, &str)> {
        self.text.lines().enumerate().map(|(index, line)| (index + 1, line))
    }

    fn finding(&self, line: usize, what: impl Into<String>) -> Finding {
        Finding { path: self.path.clone(), line, what: what.into() }
    }
}

/// A place that breaks a rule.
struct Finding {
    path: String,
    line: usize,
    what: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.path, self.line, self.what)
    }
}

/// Checks the whole workspace and prints what it found.
pub fn run() -> Result<Ending> {
    let files = files()?;
    let mut findings = sources::check(&files);
    findings.extend(sources::stale_exceptions(&files));
    findings.extend(documents::check(&files));
    findings.extend(events::check(&files));
    findings.extend(crates::check(&files));
    findings.extend(test::over_budget().map(|what| Finding {
        path: "xtask/src/test.rs".into(),
        line: 1,
        what,
    }));
    for finding in &findings {
        println!("{finding}");
    }
    println!("tidy: {} files, {} findings", files.len(), findings.len());
    Ok(if findings.is_empty() { Ending::Passed } else { Ending::Failed })
}

/// Every text file that git tracks or would track.
fn files() -> Result<Vec<File>> {
    Ok(tracked()?
        .into_iter()
        .filter_map(|path| {
            let text = std::fs::read_to_string(root().join(&path)).ok()?;
            Some(File { path, text })
        })
        .collect())
}

/// Paths of the files that git tracks or would track, sorted, relative to the root.
pub fn tracked() -> Result<Vec<String>> {
    let arguments = ["ls-files", "-z", "--cached", "--others", "--exclude-standard"];
    let list = shell::output(&mut shell::command("git", arguments)).context("tidy needs git")?;
    let mut paths: Vec<String> =
        list.split('\0').filter(|path| !path.is_empty()).map(str::to_owned).collect();
    paths.sort();
    paths.dedup();
    // What git still lists but somebody has just deleted is no file of ours.
    paths.retain(|path| root().join(path).is_file());
    Ok(paths)
}
