//! Rules for documents: links lead somewhere, README's map names every document, and what the
//! protocol and the threats name in the code is there.

use std::collections::BTreeSet;
use std::path::{Component, Path, PathBuf};

use super::{File, Finding, events};
use crate::root;
use crate::soak::record;

/// Documents whose names of tests and functions are checked.
const NAMING: &[&str] = &["docs/protocol.md", "docs/threats.md"];

/// Finds broken links, documents that nobody is led to, and names of code that is gone.
pub fn check(files: &[File]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in files.iter().filter(|file| file.is_document()) {
        for (number, target) in links(file) {
            if let Some(what) = broken(file, &target, files) {
                findings.push(file.finding(number, what));
            }
        }
    }
    findings.extend(unlisted(files));
    findings.extend(soaks(files));
    findings.extend(unknown_names(files));
    findings
}

/// The relative links of a document with their lines; code blocks have none.
fn links(file: &File) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let mut in_code = false;
    for (number, line) in file.lines() {
        if line.trim_start().starts_with("```") {
            in_code = !in_code;
        }
        if in_code {
            continue;
        }
        let text = without_code(line);
        for part in text.split("](").skip(1) {
            let target = part.split(')').next().unwrap_or(part);
            if !target.contains("://") && !target.starts_with("mailto:") {
                found.push((number, target.to_owned()));
            }
        }
    }
    found
}

fn without_code(line: &str) -> String {
    line.split('`').step_by(2).collect()
}

fn broken(file: &File, target: &str, files: &[File]) -> Option<String> {
    let (path, anchor) = target.split_once('#').unwrap_or((target, ""));
    let place = resolved(&file.path, path);
    if !path.is_empty() && !root().join(&place).exists() {
        return Some(format!("link to {target}: no such file"));
    }
    let place = place.to_string_lossy();
    let document = files.iter().find(|other| other.path == place)?;
    if anchor.is_empty() || !document.is_document() || has_heading(document, anchor) {
        return None;
    }
    Some(format!("link to {target}: no such heading"))
}

/// Where a link in `from` leads, relative to the root.
fn resolved(from: &str, link: &str) -> PathBuf {
    if link.is_empty() {
        return from.into();
    }
    let start = Path::new(from).parent().unwrap_or(Path::new(""));
    let mut place = PathBuf::new();
    for part in start.join(link).components() {
        match part {
            Component::ParentDir => {
                place.pop();
            }
            Component::CurDir => {}
            other => place.push(other),
        }
    }
    place
}

fn has_heading(document: &File, anchor: &str) -> bool {
    document.lines().filter(|(_, line)| line.starts_with('#')).any(|(_, line)| {
        let heading = line.trim_start_matches('#').trim();
        slug(heading) == anchor
    })
}

/// The anchor that forges give a heading.
fn slug(heading: &str) -> String {
    heading
        .to_lowercase()
        .chars()
        .filter(|c| c.is_alphanumeric() || *c == ' ' || *c == '-' || *c == '_')
        .map(|c| if c == ' ' { '-' } else { c })
        .collect()
}

/// Documents in docs/ that README's map does not name. Decisions are named as a folder.
fn unlisted(files: &[File]) -> Vec<Finding> {
    let Some(readme) = files.iter().find(|file| file.path == "README.md") else {
        return vec![Finding { path: "README.md".into(), line: 1, what: "is missing".into() }];
    };
    let map: Vec<PathBuf> =
        links(readme).iter().map(|(_, target)| resolved(&readme.path, target)).collect();
    let is_listed = |path: &str| map.iter().any(|place| Path::new(path).starts_with(place));
    files
        .iter()
        .filter(|file| file.is_document() && file.path.starts_with("docs/"))
        .filter(|file| !is_listed(&file.path))
        .map(|file| file.finding(1, "is not in README's map of documents"))
        .collect()
}

/// Rows and sums of the soaks.
fn soaks(files: &[File]) -> Vec<Finding> {
    let soak = files.iter().filter(|file| file.path == "docs/soak.md");
    soak.filter_map(|file| Some(file.finding(1, record::wrong(&file.text)?))).collect()
}

/// Names in code style that no source in `crates` defines: a test that was renamed would leave a
/// threat that only seems to be shown by something.
fn unknown_names(files: &[File]) -> Vec<Finding> {
    let mut defined: BTreeSet<&str> = files
        .iter()
        .filter(|file| file.is_rust() && file.path.starts_with("crates/"))
        .flat_map(|file| file.lines().filter_map(|(_, line)| defined_in(line)))
        .collect();
    defined.extend(events::told(files).keys());
    let mut findings = Vec::new();
    for file in files.iter().filter(|file| NAMING.contains(&file.path.as_str())) {
        for (number, name) in names(file) {
            if !defined.contains(name) {
                let what =
                    format!("`{name}` is no test, function, module, field or event in crates/");
                findings.push(file.finding(number, what));
            }
        }
    }
    findings
}

/// Words with an underscore in code style, with their lines.
fn names(file: &File) -> Vec<(usize, &str)> {
    let spans = |line| str::split(line, '`').skip(1).step_by(2);
    file.lines()
        .flat_map(|(number, line)| spans(line).map(move |span| (number, span)))
        .filter(|(_, span)| span.contains('_') && span.chars().all(is_of_name))
        .collect()
}

/// The name that a line of source defines: of a function, a module, or a field on its own line.
fn defined_in(line: &str) -> Option<&str> {
    let line = line.trim_start();
    if let Some((_, rest)) = line.split_once("fn ") {
        return rest.split(|c| !is_of_name(c)).next();
    }
    let line = line.strip_prefix("pub ").unwrap_or(line);
    let line = line.strip_prefix("mod ").unwrap_or(line);
    let name = line.split(|c| !is_of_name(c)).next()?;
    line[name.len()..].starts_with([':', ',', ';']).then_some(name)
}

fn is_of_name(c: char) -> bool {
    c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_'
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document(path: &str, text: &str) -> File {
        File { path: path.into(), text: text.into() }
    }

    #[test]
    fn links_in_code_are_not_links() {
        let text = "a [b](c.md) and `[d](e.md)`\n```\n[f](g.md)\n```\n[h](https://i/)\n";
        let found = links(&document("README.md", text));
        assert_eq!(found, [(1, "c.md".to_owned())]);
    }

    #[test]
    fn a_link_is_resolved_from_its_own_document() {
        assert_eq!(resolved("docs/a.md", "decisions/b.md"), Path::new("docs/decisions/b.md"));
        assert_eq!(resolved("docs/a.md", "../README.md"), Path::new("README.md"));
        assert_eq!(resolved("docs/a.md", ""), Path::new("docs/a.md"));
    }

    #[test]
    fn a_heading_is_found_by_its_anchor() {
        let text = "# Format 0\n\n## Journal record\n\n## What, then?\n";
        let file = document("docs/format.md", text);
        assert!(has_heading(&file, "journal-record"));
        assert!(has_heading(&file, "what-then"));
        assert!(!has_heading(&file, "journal"));
    }

    #[test]
    fn a_document_that_the_readme_does_not_name_is_found() {
        let readme = document("README.md", "[format](docs/format.md) [why](docs/decisions)\n");
        let format = document("docs/format.md", "");
        let decision = document("docs/decisions/0001-a.md", "");
        let lost = document("docs/lost.md", "");
        let found = unlisted(&[readme, format, decision, lost]);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].path, "docs/lost.md");
    }

    #[test]
    fn a_test_that_is_gone_is_found_in_the_threats() {
        let threats =
            "| H1 | old | `it_is_refused`, `it_was_renamed` | `hits_met`, `one_writer` |\n";
        let source = "    pub async fn it_is_refused() {}\n    hits_met,\nmod one_writer;\n";
        let source = document("crates/a/src/lib.rs", source);
        let elsewhere = document("docs/design.md", "`it_was_renamed`\n");
        let found = unknown_names(&[document("docs/threats.md", threats), source, elsewhere]);
        assert_eq!(found.len(), 1);
        assert!(found[0].what.starts_with("`it_was_renamed`"), "{}", found[0].what);
    }
}
