//! Rules for the events of the log: names in one spelling, and docs/operating.md lists them all.
//!
//! An operator greps for these names. One that was renamed, or that no document names, is lost.

use std::collections::BTreeMap;

use super::{File, Finding};

/// The document that lists the events, and the heading above its table.
const LIST: &str = "docs/operating.md";
const HEADING: &str = "## Events of the log";
/// How an event begins in the source.
const MARK: &str = "event = \"";

/// Finds events in another spelling, and differences between the sources and the list.
pub fn check(files: &[File]) -> Vec<Finding> {
    let Some(list) = files.iter().find(|file| file.path == LIST) else {
        return vec![Finding { path: LIST.into(), line: 1, what: "is missing".into() }];
    };
    let (told, listed) = (told(files), listed(list));
    let mut findings = Vec::new();
    for (name, (file, line)) in &told {
        if !name.chars().all(is_of_name) {
            findings.push(file.finding(*line, format!("event `{name}` is not in snake_case")));
        } else if !listed.contains_key(name) {
            let what = format!("event `{name}` is not listed under {HEADING:?} in {LIST}");
            findings.push(file.finding(*line, what));
        }
    }
    let gone = listed.iter().filter(|(name, _)| !told.contains_key(*name));
    findings.extend(gone.map(|(name, line)| {
        list.finding(*line, format!("event `{name}` is told by no source in crates/"))
    }));
    findings
}

/// The events that the sources tell, each with the place where it is told first.
pub fn told(files: &[File]) -> BTreeMap<&str, (&File, usize)> {
    let mut told = BTreeMap::new();
    for file in files.iter().filter(|file| file.is_rust() && file.path.starts_with("crates/")) {
        for (number, line) in file.lines() {
            for part in line.split(MARK).skip(1) {
                let name = part.split('"').next().unwrap_or(part);
                told.entry(name).or_insert((file, number));
            }
        }
    }
    told
}

/// The names in code style in the first cells of the list, with their lines.
fn listed(list: &File) -> BTreeMap<&str, usize> {
    list.lines()
        .skip_while(|(_, line)| *line != HEADING)
        .skip(1)
        .take_while(|(_, line)| !line.starts_with('#'))
        .filter_map(|(number, line)| Some((number, line.strip_prefix("| ")?.split(" | ").next()?)))
        .flat_map(|(number, cell)| cell.split('`').skip(1).step_by(2).map(move |n| (n, number)))
        .collect()
}

fn is_of_name(c: char) -> bool {
    c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_'
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings(list: &str, source: &str) -> Vec<String> {
        let file = |path: &str, text: &str| File { path: path.into(), text: text.into() };
        let list =
            format!("# Operating\n\n| `other` | a table |\n\n{HEADING}\n\n{list}\n## Next\n");
        let files = [file(LIST, &list), file("crates/a/src/lib.rs", source)];
        check(&files).iter().map(Finding::to_string).collect()
    }

    #[test]
    fn a_list_that_is_complete_is_well() {
        let source = "warn!(event = \"claim\", 1);\ninfo!(\n    event = \"last_word\",\n)\n";
        let list = "| event | means |\n|---|---|\n| `claim`, `last_word` | `not_here` |\n";
        assert_eq!(findings(list, source), [""; 0]);
    }

    #[test]
    fn an_event_that_is_not_listed_is_found() {
        let found = findings("", "warn!(event = \"claim\")\n");
        assert_eq!(found.len(), 1);
        assert!(found[0].starts_with("crates/a/src/lib.rs:1: event `claim` is not listed"));
    }

    #[test]
    fn an_event_that_is_gone_is_found() {
        let found = findings("| `claim` | means |\n", "");
        assert_eq!(found, ["docs/operating.md:7: event `claim` is told by no source in crates/"]);
    }

    #[test]
    fn another_spelling_is_found() {
        let found = findings("| `claim-kept` | means |\n", "warn!(event = \"claim-kept\")\n");
        assert_eq!(found, ["crates/a/src/lib.rs:1: event `claim-kept` is not in snake_case"]);
    }
}
