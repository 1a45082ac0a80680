//! Rules between crates: who may depend on whom, and that all share the workspace's lints.

use super::{File, Finding};

/// Which crates of the workspace each crate may name: `format <- core <- {host <- lunfs, model,
/// doors <- {sim, fuzz}}`. The tests of the core use the doors; that nothing else of it does is
/// seen by cargo, which refuses circles.
const DIRECTION: &[(&str, &[&str])] = &[
    ("lunfs-format", &[]),
    ("lunfs-core", &["lunfs-format", "lunfs-doors"]),
    ("lunfs-doors", &["lunfs-format", "lunfs-core"]),
    ("lunfs-sim", &["lunfs-format", "lunfs-core", "lunfs-doors"]),
    ("lunfs-model", &["lunfs-format", "lunfs-core"]),
    ("lunfs-host", &["lunfs-format", "lunfs-core"]),
    ("lunfs-fuzz", &["lunfs-format", "lunfs-core", "lunfs-doors"]),
    ("lunfs", &["lunfs-format", "lunfs-core", "lunfs-host"]),
];

/// A workspace of its own: what it builds are a dozen programs of one line each.
const OWN_WORKSPACE: &str = "fuzz/Cargo.toml";

/// Finds manifests that break a rule.
pub fn check(files: &[File]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in files.iter().filter(|file| file.path.ends_with("/Cargo.toml")) {
        let has_lints = file.text.contains("[lints]\nworkspace = true");
        if !has_lints && file.path != OWN_WORKSPACE {
            findings.push(file.finding(1, "does not use the lints of the workspace"));
        }
        let Some(name) = package(file) else { continue };
        let Some((_, allowed)) = DIRECTION.iter().find(|(package, _)| *package == name) else {
            continue;
        };
        for (number, line) in file.lines() {
            let Some(named) = dependency(line) else { continue };
            if !allowed.contains(&named) {
                let what = format!("{name} must not depend on {named}");
                findings.push(file.finding(number, what));
            }
        }
    }
    findings
}

fn package(file: &File) -> Option<&str> {
    let line = file.text.lines().find(|line| line.starts_with("name = "))?;
    line.split('"').nth(1)
}

fn dependency(line: &str) -> Option<&str> {
    let end = line.find(['.', ' ', '='])?;
    let name = &line[..end];
    name.starts_with("lunfs").then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_core_must_not_know_the_host() {
        let text = "[package]\nname = \"lunfs-core\"\n[dependencies]\nlunfs-format.workspace = \
                    true\nlunfs-host.workspace = true\n[lints]\nworkspace = true\n";
        let file = File { path: "crates/lunfs-core/Cargo.toml".into(), text: text.into() };
        let found = check(&[file]);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].line, 5);
    }
}
