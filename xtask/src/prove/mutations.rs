//! `mutations`: the tests notice when a rule is taken out of the code.
//!
//! Each file in xtask/mutations changes one condition or line of what ships. Above the diff it
//! says what it takes away and what must notice:
//!
//! ```text
//! rule: R7
//! takes: replay no longer looks at the generation of the lock
//! caught-by: seeds 1..60
//! caught-by: test lunfs-core replay
//! caught-by: enumerate create,unlink
//! --- a/crates/...
//! ```
//!
//! `seeds` runs the simulator on each of these seeds until one has a finding; `test` runs the
//! tests of a package whose names contain a word; `enumerate` crashes the operations whose names
//! contain one of some words, and their recovery. The diffs are applied to a copy of the tree,
//! after the copy without any of them has passed everything that is going to be asked.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read as _, Seek as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::{Extent, Figure};
use crate::{root, shell, tidy};

/// How long a simulated seed or a test may run before it counts as hanging.
const PATIENCE: Duration = Duration::from_secs(300);

/// One way to notice.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Catcher {
    Seeds { first: u64, end: u64 },
    Test { package: String, word: String },
    Enumerate { operations: String },
}

struct Mutation {
    name: String,
    patch: PathBuf,
    rule: String,
    takes: String,
    catchers: Vec<Catcher>,
}

/// What noticed a mutation: a seed or a test, and what it said.
struct Catch {
    by: String,
    said: String,
}

/// Applies every mutation in turn to a copy; each must be noticed.
pub fn run(extent: &Extent) -> Result<Figure> {
    let mut mutations = all()?;
    if let Some(only) = &extent.only {
        mutations.retain(|mutation| mutation.name.contains(only));
    }
    let copy = Copy::new()?;
    copy.control(&mutations)?;
    println!("| mutation | rule | takes away | caught by | finding | seconds |");
    println!("|---|---|---|---|---|---|");
    let mut missed = 0;
    for mutation in &mutations {
        let started = Instant::now();
        let caught = copy.try_mutation(mutation).with_context(|| mutation.name.clone())?;
        let (by, said) = match caught {
            Some(Catch { by, said }) => (by, said),
            None => {
                missed += 1;
                ("**nothing**".into(), String::new())
            }
        };
        let Mutation { name, rule, takes, .. } = mutation;
        let seconds = started.elapsed().as_secs();
        println!("| {name} | {rule} | {takes} | {by} | {said} | {seconds} |");
    }
    Ok(Figure {
        measured: format!("{} of {} caught", mutations.len() - missed, mutations.len()),
        bound: "all; the copy without any passes".into(),
        is_kept: missed == 0 && !mutations.is_empty(),
    })
}

fn all() -> Result<Vec<Mutation>> {
    let mut patches: Vec<PathBuf> = fs::read_dir(root().join("xtask/mutations"))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "patch"))
        .collect();
    patches.sort();
    patches.into_iter().map(|patch| read(&patch)).collect()
}

fn read(patch: &Path) -> Result<Mutation> {
    let text = fs::read_to_string(patch)?;
    let name = patch.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    parse(&text, name, patch.into()).with_context(|| patch.display().to_string())
}

fn parse(text: &str, name: String, patch: PathBuf) -> Result<Mutation> {
    let head: Vec<&str> = text.lines().take_while(|line| !line.starts_with("--- ")).collect();
    let field = |name: &str| {
        head.iter()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
            .with_context(|| format!("no line `{name}:` above the diff"))
            .map(str::to_owned)
    };
    let catchers = head
        .iter()
        .filter_map(|line| line.strip_prefix("caught-by: "))
        .map(catcher)
        .collect::<Result<Vec<_>>>()?;
    if catchers.is_empty() {
        bail!("no line `caught-by:` above the diff");
    }
    Ok(Mutation { name, patch, rule: field("rule")?, takes: field("takes")?, catchers })
}

fn catcher(text: &str) -> Result<Catcher> {
    let words: Vec<&str> = text.split_whitespace().collect();
    match words[..] {
        ["seeds", range] => {
            let (first, end) = range.split_once("..").context("seeds FIRST..END")?;
            Ok(Catcher::Seeds { first: first.parse()?, end: end.parse()? })
        }
        ["test", package, word] => Ok(Catcher::Test { package: package.into(), word: word.into() }),
        ["enumerate", operations] => Ok(Catcher::Enumerate { operations: operations.into() }),
        _ => bail!("none of `seeds FIRST..END`, `test PACKAGE WORD`, `enumerate WORDS`: {text}"),
    }
}

/// The copy of the tree that is mutated.
struct Copy {
    dir: PathBuf,
    target: PathBuf,
}

impl Copy {
    /// Makes the copy, or brings it up to date: files that are the same keep their times, so
    /// that cargo builds again only what changed.
    fn new() -> Result<Copy> {
        let place = root().join("target/mutations");
        let copy = Copy { dir: place.join("copy"), target: place.join("target") };
        copy.restore()?;
        Ok(copy)
    }

    fn restore(&self) -> Result<()> {
        for path in tidy::tracked()? {
            let bytes = fs::read(root().join(&path))?;
            let to = self.dir.join(&path);
            if fs::read(&to).is_ok_and(|there| there == bytes) {
                continue;
            }
            fs::create_dir_all(to.parent().context("a file is in a directory")?)?;
            fs::write(&to, bytes)?;
        }
        Ok(())
    }

    /// Without any mutation nothing may be noticed.
    fn control(&self, mutations: &[Mutation]) -> Result<()> {
        let started = Instant::now();
        let asked: BTreeSet<&Catcher> = mutations.iter().flat_map(|m| &m.catchers).collect();
        let seeds = asked.iter().filter_map(|catcher| match catcher {
            Catcher::Seeds { end, .. } => Some(*end),
            Catcher::Test { .. } | Catcher::Enumerate { .. } => None,
        });
        let seeds = Catcher::Seeds { first: 0, end: seeds.max().unwrap_or_default() };
        let others = asked.into_iter().filter(|c| !matches!(c, Catcher::Seeds { .. }));
        for catcher in others.chain([&seeds]) {
            if let Some(Catch { by, said }) = self.ask(catcher)? {
                bail!("{by} fails without any mutation: {said}");
            }
        }
        println!("without a mutation everything passes ({} s)", started.elapsed().as_secs());
        Ok(())
    }

    fn try_mutation(&self, mutation: &Mutation) -> Result<Option<Catch>> {
        self.restore()?;
        self.apply(&mutation.patch)?;
        let mut caught = None;
        for catcher in &mutation.catchers {
            caught = self.ask(catcher)?;
            if caught.is_some() {
                break;
            }
        }
        self.restore()?;
        Ok(caught)
    }

    fn apply(&self, patch: &Path) -> Result<()> {
        // The copy lies inside the repository, which git must not see: it would skip the files.
        let ceiling = self.dir.parent().context("the copy has a parent")?;
        shell::output(
            shell::command("git", ["apply", "--whitespace=nowarn"])
                .arg(patch)
                .current_dir(&self.dir)
                .env("GIT_CEILING_DIRECTORIES", ceiling),
        )
        .context("the patch does not fit the code any more")
        .map(drop)
    }

    fn ask(&self, catcher: &Catcher) -> Result<Option<Catch>> {
        match catcher {
            Catcher::Seeds { first, end } => self.ask_seeds(*first, *end),
            Catcher::Test { package, word } => self.ask_tests(package, word),
            Catcher::Enumerate { operations } => self.ask_enumeration(operations),
        }
    }

    fn ask_seeds(&self, first: u64, end: u64) -> Result<Option<Catch>> {
        shell::output(&mut self.cargo(["build", "--quiet", "-p", "lunfs-sim"]))
            .context("a mutation must compile")?;
        for seed in first..end {
            let mut simulator = Command::new(self.target.join("debug/lunfs-sim"));
            simulator.args(["--no-shrink", "--seed", &seed.to_string()]);
            if let Some(said) = failure(&mut simulator)? {
                return Ok(Some(Catch { by: format!("seed {seed}"), said }));
            }
        }
        Ok(None)
    }

    fn ask_enumeration(&self, operations: &str) -> Result<Option<Catch>> {
        shell::output(&mut self.cargo(["build", "--quiet", "-p", "lunfs-sim"]))
            .context("a mutation must compile")?;
        let mut simulator = Command::new(self.target.join("debug/lunfs-sim"));
        simulator.args(["enumerate", "--second-bound", "2", "--only", operations]);
        let said = failure(&mut simulator)?;
        Ok(said.map(|said| Catch { by: format!("enumerate {operations}"), said }))
    }

    fn ask_tests(&self, package: &str, word: &str) -> Result<Option<Catch>> {
        let build = ["test", "--quiet", "--no-run", "-p", package];
        shell::output(&mut self.cargo(build)).context("a mutation must compile")?;
        let known = shell::output(&mut self.cargo(["test", "-p", package, word, "--", "--list"]))?;
        if !known.lines().any(|line| line.ends_with(": test")) {
            bail!("no test of {package} is named {word}");
        }
        let said = failure(&mut self.cargo(["test", "-p", package, word]))?;
        Ok(said.map(|said| Catch { by: format!("test {package} {word}"), said }))
    }

    fn cargo<const N: usize>(&self, arguments: [&str; N]) -> Command {
        let mut cargo = shell::cargo(arguments);
        cargo.current_dir(&self.dir).env("CARGO_TARGET_DIR", &self.target);
        cargo.env("RUST_BACKTRACE", "0").env("CARGO_INCREMENTAL", "1");
        cargo
    }
}

/// Runs a command; what it said if it failed. One that does not end has failed, too: a rule that
/// was taken away may leave hosts that wait for each other.
fn failure(command: &mut Command) -> Result<Option<String>> {
    let mut said = tempfile()?;
    let mut child = command
        .stdin(Stdio::null())
        .stdout(said.try_clone()?)
        .stderr(said.try_clone()?)
        .process_group(0)
        .spawn()?;
    let started = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if started.elapsed() > PATIENCE {
            let group = rustix::process::Pid::from_child(&child);
            rustix::process::kill_process_group(group, rustix::process::Signal::KILL)?;
            child.wait()?;
            return Ok(Some(format!("did not end within {} s", PATIENCE.as_secs())));
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    if status.success() {
        return Ok(None);
    }
    let mut text = String::new();
    said.rewind()?;
    said.read_to_string(&mut text)?;
    Ok(Some(finding(&text)))
}

/// A file without a name, so that output of any length is no reason to wait.
fn tempfile() -> Result<fs::File> {
    let path = root().join("target/mutations/output");
    let file =
        fs::File::options().create(true).truncate(true).read(true).write(true).open(&path)?;
    fs::remove_file(&path)?;
    Ok(file)
}

/// The line of an output that says what was found.
fn finding(text: &str) -> String {
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let place =
        |words: &[&str]| lines.iter().position(|line| words.iter().any(|word| line.contains(word)));
    let line = match (place(&["breaks a rule:"]), place(&["panicked at"])) {
        // The first finding stands below its seed, the reason of a panic below its place.
        (Some(seed), _) => lines.get(seed + 1),
        (None, Some(panic)) => lines.get(panic + 1),
        (None, None) => lines.last(),
    };
    line.copied().unwrap_or("no word").replace('|', "/").chars().take(120).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lines_above_the_diff_say_what_must_notice() {
        let text = "rule: R7\ntakes: the look at the generation\ncaught-by: seeds 1..60\n\
                    caught-by: test lunfs-core replay\ncaught-by: enumerate link,grow\n\
                    --- a/x\n+++ b/x\n";
        let mutation = parse(text, "one".into(), PathBuf::new()).expect("a whole head");
        assert_eq!(mutation.rule, "R7");
        assert_eq!(mutation.catchers.len(), 3);
        let enumerate = Catcher::Enumerate { operations: "link,grow".into() };
        assert_eq!(mutation.catchers[2], enumerate);
        assert_eq!(mutation.catchers[0], Catcher::Seeds { first: 1, end: 60 });
        assert!(parse("rule: R7\n--- a/x\n", "two".into(), PathBuf::new()).is_err());
    }

    #[test]
    fn the_finding_is_told_in_one_line() {
        let simulator = "seed 7 breaks a rule:\n  R5: two hosts hold block 12\n  again: x\n";
        assert_eq!(finding(simulator), "R5: two hosts hold block 12");
        let test = "thread 't' panicked at a.rs:1:\n  left != right\nnote: b\n";
        assert_eq!(finding(test), "left != right");
    }
}
