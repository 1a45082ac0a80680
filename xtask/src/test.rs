//! `cargo xtask test`: everything a change must pass, with the time each part may take.

use std::io::{BufRead as _, BufReader};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::prove::{self, Extent};
use crate::{Ending, deny, in_ci, shell, tidy, tools};

/// Which parts to run.
#[derive(Args)]
pub struct Options {
    /// Run only the parts whose names contain this
    only: Option<String>,
}

/// How a part ended.
enum Outcome {
    Passed(String),
    Skipped(String),
    Failed(String),
}

/// A part and the time it may take, in seconds, when everything has to be built first.
struct Part {
    name: &'static str,
    budget: u64,
    run: fn(&mut Count) -> Result<Outcome>,
}

/// Tests counted over all parts.
#[derive(Default)]
struct Count {
    passed: u64,
    failed: u64,
    ignored: u64,
    scenarios: u64,
}

/// The most that all parts may take together, in seconds: 40 minutes on two cores.
const BUDGET_MAX: u64 = 40 * 60;

/// Together at most `BUDGET_MAX`: a part that is added takes its time from others.
const PARTS: &[Part] = &[
    Part { name: "install", budget: 90, run: |_| tools::install().map(Outcome::Passed) },
    Part { name: "fmt", budget: 15, run: |_| fmt() },
    Part { name: "tidy", budget: 15, run: |_| tidy() },
    Part { name: "typos", budget: 30, run: |_| typos() },
    Part { name: "deny", budget: 30, run: |_| passed(deny::check()) },
    Part { name: "clippy", budget: 230, run: |_| clippy() },
    Part { name: "cargo test", budget: 720, run: cargo_test },
    Part { name: "doc", budget: 60, run: |_| doc() },
    Part { name: "prove model", budget: 130, run: |c| prove(c, "model", None) },
    Part { name: "prove simulator", budget: 240, run: |c| prove(c, "simulator", None) },
    Part { name: "prove enumerate", budget: 80, run: |c| prove(c, "enumerate", None) },
    Part { name: "prove fuzz", budget: 150, run: |c| prove(c, "fuzz", None) },
    Part { name: "prove demo", budget: 180, run: |c| prove(c, "demo", None) },
    Part { name: "prove copy-tree", budget: 60, run: |c| prove(c, "copy-tree", None) },
    Part { name: "prove tools", budget: 80, run: |c| prove(c, "tools", None) },
    Part { name: "prove kill-group", budget: 60, run: |c| prove(c, "kill-group", Some(3)) },
    Part { name: "prove kill-daemon", budget: 30, run: |c| prove(c, "kill-daemon", Some(2)) },
    Part { name: "prove stop", budget: 50, run: |c| prove(c, "stop", None) },
    Part { name: "prove torture", budget: 140, run: |c| prove(c, "torture", None) },
];

/// Runs the parts in order and prints what each took. The first failure does not end the run:
/// a change is told all that is wrong with it at once.
pub fn run(options: &Options) -> Result<Ending> {
    let mut count = Count::default();
    let mut rows = Vec::new();
    let began = Instant::now();
    let mut is_good = true;
    for part in parts(options.only.as_deref())? {
        println!("\n== {}", part.name);
        let started = Instant::now();
        let outcome = (part.run)(&mut count).unwrap_or_else(|e| Outcome::Failed(format!("{e:#}")));
        let (verdict, passed) = judge(outcome, started.elapsed(), part.budget);
        println!("== {}: {verdict}", part.name);
        let took = started.elapsed().as_secs_f64();
        rows.push(format!("{:24}{took:8.1}{:8}  {verdict}", part.name, part.budget));
        is_good &= passed;
    }
    println!("\n{:24}{:>8}{:>8}", "part", "seconds", "budget");
    rows.iter().for_each(|row| println!("{row}"));
    let (took, budget) = (began.elapsed().as_secs_f64(), budget());
    println!("{:24}{took:8.1}{budget:8}  of {BUDGET_MAX}, for all parts", "sum");
    let Count { passed, failed, ignored, scenarios } = count;
    println!(
        "xtask test: {}; {passed} tests passed, {failed} failed, {ignored} ignored; \
         {scenarios} scenarios passed",
        if is_good { "PASS" } else { "FAIL" }
    );
    Ok(if is_good { Ending::Passed } else { Ending::Failed })
}

/// The parts whose names contain a word; a word that is in none would pass without a test.
fn parts(only: Option<&str>) -> Result<Vec<&'static Part>> {
    let only = only.unwrap_or_default();
    let parts: Vec<_> = PARTS.iter().filter(|part| part.name.contains(only)).collect();
    if parts.is_empty() {
        let names: Vec<_> = PARTS.iter().map(|part| part.name).collect();
        bail!("no part is called {only:?}; the parts are {}", names.join(", "));
    }
    Ok(parts)
}

/// What all parts may take together, by their own budgets.
fn budget() -> u64 {
    PARTS.iter().map(|part| part.budget).sum()
}

/// Says so where the parts may take longer together than all of them may.
pub fn over_budget() -> Option<String> {
    let budget = budget();
    (budget > BUDGET_MAX)
        .then(|| format!("the parts may take {budget} s, {BUDGET_MAX} are allowed"))
}

fn judge(outcome: Outcome, took: Duration, budget: u64) -> (String, bool) {
    match outcome {
        Outcome::Failed(why) => (format!("FAIL: {why}"), false),
        Outcome::Skipped(why) if in_ci() => (format!("FAIL: skipped, but CI=true: {why}"), false),
        Outcome::Skipped(why) => (format!("skipped: {why}"), true),
        Outcome::Passed(_) if took > Duration::from_secs(budget) => {
            (format!("FAIL: took longer than its budget of {budget} s"), false)
        }
        Outcome::Passed(what) => (format!("ok {what}"), true),
    }
}

fn passed(result: Result<()>) -> Result<Outcome> {
    result.map(|()| Outcome::Passed(String::new()))
}

fn fmt() -> Result<Outcome> {
    passed(shell::run(&mut shell::cargo(["fmt", "--all", "--check"])))
}

fn clippy() -> Result<Outcome> {
    let mut clippy = shell::cargo(["clippy", "--workspace", "--all-targets", "--quiet"]);
    passed(shell::run(clippy.args(["--", "-D", "warnings"])))
}

fn tidy() -> Result<Outcome> {
    match tidy::run()? {
        Ending::Passed => passed(Ok(())),
        Ending::Failed | Ending::CouldNotRun => bail!("see the findings above"),
    }
}

fn typos() -> Result<Outcome> {
    let typos = tools::wheel("typos")?;
    passed(shell::run(&mut shell::command(typos, ["--format", "brief", "--color", "never"])))
}

fn doc() -> Result<Outcome> {
    let mut doc = shell::cargo(["doc", "--workspace", "--no-deps", "--quiet"]);
    passed(shell::run(doc.args(["--document-private-items"]).env("RUSTDOCFLAGS", "-D warnings")))
}

/// Runs the tests, passes their output through and counts them.
fn cargo_test(count: &mut Count) -> Result<Outcome> {
    let mut test = shell::cargo(["test", "--workspace", "--no-fail-fast"]);
    println!("$ {}", shell::line(&test));
    let mut child = test.stdout(Stdio::piped()).spawn().context("cannot start cargo")?;
    let stdout = child.stdout.take().context("stdout is piped")?;
    for line in BufReader::new(stdout).lines() {
        let line = line?;
        println!("{line}");
        count.add(&line);
    }
    let status = child.wait()?;
    if !status.success() {
        bail!("{} tests failed", count.failed);
    }
    Ok(Outcome::Passed(format!("{} tests", count.passed)))
}

fn prove(count: &mut Count, name: &str, rounds: Option<u32>) -> Result<Outcome> {
    let extent = Extent { rounds, is_slice: true, seed: prove::writer::seed_of_now(), only: None };
    match prove::scenario(name, &extent)? {
        Ending::Passed => {
            count.scenarios += 1;
            passed(Ok(()))
        }
        Ending::CouldNotRun => Ok(Outcome::Skipped("see above".into())),
        Ending::Failed => bail!("see above; again: cargo xtask prove {name}"),
    }
}

impl Count {
    /// Adds what a line like `test result: ok. 3 passed; 0 failed; 1 ignored; ...` says.
    fn add(&mut self, line: &str) {
        let Some(result) = line.strip_prefix("test result: ") else { return };
        let number_before = |what: &str| {
            let words: Vec<&str> = result.split([' ', ';']).filter(|w| !w.is_empty()).collect();
            let at = words.iter().position(|word| *word == what)?;
            words.get(at.checked_sub(1)?)?.parse::<u64>().ok()
        };
        self.passed += number_before("passed").unwrap_or_default();
        self.failed += number_before("failed").unwrap_or_default();
        self.ignored += number_before("ignored").unwrap_or_default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_results_of_several_programs_add_up() {
        let mut count = Count::default();
        count.add("test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out");
        count.add("running 3 tests");
        count.add("test result: FAILED. 2 passed; 4 failed; 0 ignored; 0 measured");
        assert_eq!((count.passed, count.failed, count.ignored), (5, 4, 1));
    }

    /// It ran nothing, and passed.
    #[test]
    fn a_word_that_is_in_no_part_is_refused() {
        let Err(refused) = parts(Some("tdiy")) else { panic!("nothing would have run") };
        assert!(refused.to_string().contains("fmt, tidy, typos"), "{refused}");
        assert_eq!(parts(Some("prove s")).map(|parts| parts.len()).ok(), Some(2));
        assert_eq!(parts(None).map(|parts| parts.len()).ok(), Some(PARTS.len()));
    }

    #[test]
    fn a_part_over_its_budget_fails() {
        let late = judge(Outcome::Passed(String::new()), Duration::from_secs(11), 10);
        assert!(!late.1);
        let good = judge(Outcome::Passed(String::new()), Duration::from_secs(9), 10);
        assert!(good.1);
    }
}
