//! Rules for `.rs` files: length, width, words, characters, and that each file is built.

use super::{File, Finding};

const LINES_MAX: usize = 600;
const COLUMNS_MAX: usize = 100;

/// Files that may be longer than `LINES_MAX`: path, lines, reason.
const LONG_FILES: &[(&str, usize, &str)] =
    &[("crates/lunfs-core/src/tree/tests.rs", 950, "tests with their own walker")];

/// Words that say nothing in the name of a type or module.
const EMPTY_NAMES: &[&str] = &["Manager", "Helper", "Util", "Utils", "Handler", "Info", "Data"];

/// Modules that collect what has no place.
const EMPTY_MODULES: &[&str] = &["util", "utils", "common", "helper", "helpers", "misc"];

/// Finds what breaks a rule in any source file.
pub fn check(files: &[File]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in files.iter().filter(|file| file.is_rust()) {
        long_file(file, &mut findings);
        unbuilt_file(file, files, &mut findings);
        let mut drawing = false;
        for (number, line) in file.lines() {
            if is_fence(line) {
                drawing = !drawing && line.trim_end().ends_with("text");
            }
            let ascii_only = !drawing || !is_comment(line);
            let complaints = [
                wide(line),
                characters(line, ascii_only),
                open_work(line),
                empty_name(line),
                empty_verb(line),
            ];
            let complaints = complaints.into_iter().flatten();
            findings.extend(complaints.map(|what| file.finding(number, what)));
        }
    }
    findings
}

fn long_file(file: &File, findings: &mut Vec<Finding>) {
    let lines = file.text.lines().count();
    let exception = LONG_FILES.iter().find(|(path, ..)| *path == file.path);
    let limit = exception.map_or(LINES_MAX, |(_, limit, _)| *limit);
    if lines > limit {
        findings.push(file.finding(lines, format!("{lines} lines, {limit} are allowed")));
    }
}

/// Finds exceptions that no file needs; `files` are all there are.
pub fn stale_exceptions(files: &[File]) -> Vec<Finding> {
    stale(LONG_FILES, files)
}

fn stale(exceptions: &[(&str, usize, &str)], files: &[File]) -> Vec<Finding> {
    exceptions
        .iter()
        .filter_map(|(path, ..)| {
            let what = match files.iter().find(|file| file.path == *path) {
                None => "has an exception in LONG_FILES and does not exist",
                Some(file) if file.text.lines().count() <= LINES_MAX => {
                    "needs its exception in LONG_FILES no more"
                }
                Some(_) => return None,
            };
            Some(Finding { path: (*path).into(), line: 1, what: what.into() })
        })
        .collect()
}

/// A file that no `mod` names is never compiled, and nothing says so.
fn unbuilt_file(file: &File, files: &[File], findings: &mut Vec<Finding>) {
    let Some((package, inside)) = file.path.split_once("/src/") else { return };
    let stem = inside.trim_end_matches(".rs");
    let name = stem.trim_end_matches("/mod").rsplit('/').next().unwrap_or(stem);
    if stem == "main" || stem == "lib" || inside.starts_with("bin/") {
        return;
    }
    let declaration = format!("mod {name};");
    let prefix = format!("{package}/src/");
    let by_path = format!("#[path = \"{name}.rs\"]");
    let named = files
        .iter()
        .filter(|other| other.path.starts_with(&prefix))
        .any(|other| other.text.contains(&declaration) || other.text.contains(&by_path));
    if !named {
        findings.push(file.finding(1, format!("is not built: no `{declaration}`")));
    }
}

fn wide(line: &str) -> Option<String> {
    let columns = line.chars().count();
    (columns > COLUMNS_MAX).then(|| format!("{columns} columns, {COLUMNS_MAX} are allowed"))
}

fn characters(line: &str, ascii_only: bool) -> Option<String> {
    let odd = line.chars().find(|c| !c.is_ascii())?;
    ascii_only.then(|| format!("{odd:?} is not ASCII and not in a drawing"))
}

fn open_work(line: &str) -> Option<String> {
    for word in
        ["TO", "FIX"].map(|start| start.to_owned() + if start == "TO" { "DO" } else { "ME" })
    {
        let Some(at) = line.find(&word) else { continue };
        let rest = &line[at + word.len()..];
        let numbered = rest.strip_prefix("(#").is_some_and(|rest| rest.starts_with(is_digit));
        if !numbered {
            return Some(format!("{word} without an issue: write {word}(#N)"));
        }
    }
    None
}

fn empty_name(line: &str) -> Option<String> {
    let (kind, name) = declared(line)?;
    match kind {
        "mod" => EMPTY_MODULES
            .contains(&name)
            .then(|| format!("module {name}: say what belongs into it")),
        _ => EMPTY_NAMES
            .iter()
            .find(|word| name.ends_with(*word))
            .map(|word| format!("{name}: {word} says nothing about it")),
    }
}

fn empty_verb(line: &str) -> Option<String> {
    let code = without_comment(line);
    let name = code.split("fn ").nth(1)?.split(['(', '<']).next()?;
    (name == "process" || name.starts_with("do_")).then(|| format!("fn {name}: say what it does"))
}

/// Kind and name of the type or module that a line declares.
fn declared(line: &str) -> Option<(&str, &str)> {
    let mut words = without_comment(line)
        .split_whitespace()
        .skip_while(|word| word.starts_with("pub") || word.starts_with("in") || *word == "unsafe");
    let kind = words.next().filter(|w| ["struct", "enum", "trait", "type", "mod"].contains(w))?;
    let name = words.next()?;
    let end = name.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(name.len());
    Some((kind, &name[..end]))
}

fn without_comment(line: &str) -> &str {
    if is_comment(line) { "" } else { line }
}

fn is_comment(line: &str) -> bool {
    line.trim_start().starts_with("//")
}

fn is_fence(line: &str) -> bool {
    is_comment(line) && line.contains("```")
}

fn is_digit(c: char) -> bool {
    c.is_ascii_digit()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings(path: &str, text: &str) -> Vec<String> {
        let file = File { path: path.into(), text: text.into() };
        check(&[file]).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_plain_file_is_fine() {
        assert!(findings("crates/a/tests/b.rs", "//! Says so.\nfn grow() {}\n").is_empty());
    }

    #[test]
    fn open_work_needs_an_issue() {
        let word = "TO".to_owned() + "DO";
        assert_eq!(findings("a.rs", &format!("// {word}: later\n")).len(), 1);
        assert!(findings("a.rs", &format!("// {word}(#12): later\n")).is_empty());
    }

    #[test]
    fn empty_names_are_refused_in_declarations_only() {
        assert_eq!(findings("a.rs", "pub struct LockManager;\n").len(), 1);
        assert_eq!(findings("a.rs", "pub(crate) mod utils;\n").len(), 1);
        assert_eq!(findings("a.rs", &format!("fn {}(x: u8) {{}}\n", "process")).len(), 1);
        assert!(findings("a.rs", "// a LockManager elsewhere\n").is_empty());
        assert!(findings("a.rs", "use other::LockManager;\n").is_empty());
    }

    #[test]
    fn drawings_may_use_lines_and_arrows_and_code_may_not() {
        let drawing = "//! ```text\n//! a \u{2500}\u{2192} b\n//! ```\nfn a() {}\n";
        assert!(findings("a.rs", drawing).is_empty());
        assert_eq!(findings("a.rs", "// na\u{ef}ve\n").len(), 1);
    }

    #[test]
    fn a_file_that_no_one_names_is_found() {
        let file = |path: &str, text: &str| File { path: path.into(), text: text.into() };
        let lib = file("crates/a/src/lib.rs", "mod used;\n");
        let used = file("crates/a/src/used.rs", "");
        let lost = file("crates/a/src/lost.rs", "");
        let found = check(&[lib, used, lost]);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].path, "crates/a/src/lost.rs");
    }

    #[test]
    fn an_exception_goes_with_its_reason() {
        let file = |path: &str, lines: usize| File { path: path.into(), text: "\n".repeat(lines) };
        let files = [file("long.rs", LINES_MAX + 1), file("short.rs", LINES_MAX)];
        let exceptions = [("long.rs", 700, ""), ("short.rs", 700, ""), ("lost.rs", 700, "")];
        let found: Vec<_> = stale(&exceptions, &files).iter().map(ToString::to_string).collect();
        assert_eq!(found.len(), 2);
        assert_eq!(found[0], "short.rs:1: needs its exception in LONG_FILES no more");
        assert_eq!(found[1], "lost.rs:1: has an exception in LONG_FILES and does not exist");
    }
}
