//! docs/soak.md: a row for each run, and what the runs on the same code add up to.
//!
//! The text before the first table is written by people and kept. Both tables are written here,
//! and `cargo xtask tidy` compares the second with the first.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use anyhow::{Context, Result, bail};

const RUNS: &str = "\n## Runs\n";
const SUMS: &str = "\n## Sums\n";
/// Behind the first column.
const COLUMNS: &str = "\
hours | simulated hours | crashes | seeds | states | inputs | kills | findings |
|---|---|---|---|---|---|---|---|---|";

/// A number with two decimals, which adds up exactly.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hundredths(u64);

impl Hundredths {
    /// The nearest one; what is below zero or no number is zero.
    pub fn of(number: f64) -> Hundredths {
        let hundredths = (number * 100.0).round();
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "saturates")]
        Hundredths(hundredths as u64)
    }
}

impl fmt::Display for Hundredths {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:02}", self.0 / 100, self.0 % 100)
    }
}

impl FromStr for Hundredths {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Hundredths> {
        let (whole, part) = text.split_once('.').context("a number with two decimals")?;
        if part.len() != 2 {
            bail!("{text}: two decimals");
        }
        Ok(Hundredths(whole.parse::<u64>()? * 100 + part.parse::<u64>()?))
    }
}

/// One run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Row {
    /// Which code it ran on.
    pub code: String,
    /// By the clock on the wall.
    pub hours: Hundredths,
    /// In the worlds of the simulator.
    pub simulated_hours: Hundredths,
    /// Hosts that died in them.
    pub crashes: u64,
    /// The first seed that ran, and the one behind the last.
    pub seeds: (u64, u64),
    /// States that were enumerated.
    pub states: u64,
    /// Inputs of the fuzzer.
    pub inputs: u64,
    /// Real hosts that were killed.
    pub kills: u64,
    /// What was found.
    pub findings: u64,
}

impl FromStr for Row {
    type Err = anyhow::Error;

    fn from_str(line: &str) -> Result<Row> {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let [code, hours, simulated_hours, crashes, seeds, states, inputs, kills, findings] =
            cells[..]
        else {
            bail!("{} cells instead of 9", cells.len());
        };
        let (from, to) = seeds.split_once("..").context("seeds are FROM..TO")?;
        let seeds = (from.parse()?, to.parse()?);
        if seeds.0 > seeds.1 {
            bail!("{} to {} is no range of seeds", seeds.0, seeds.1);
        }
        Ok(Row {
            code: code.into(),
            hours: hours.parse()?,
            simulated_hours: simulated_hours.parse()?,
            crashes: crashes.parse()?,
            seeds,
            states: states.parse()?,
            inputs: inputs.parse()?,
            kills: kills.parse()?,
            findings: findings.parse()?,
        })
    }
}

impl Row {
    fn line(&self, first: &str, seeds: &str) -> String {
        let Row { hours, simulated_hours, crashes, states, inputs, kills, findings, .. } = self;
        format!(
            "| {first} | {hours} | {simulated_hours} | {crashes} | {seeds} | {states} | {inputs} \
             | {kills} | {findings} |"
        )
    }
}

/// All runs on one code.
pub struct Sum {
    /// Everything added up; its seeds are a count.
    pub row: Row,
    runs: u64,
    seeds: u64,
}

impl Sum {
    fn add(&mut self, row: &Row) {
        let sum = &mut self.row;
        sum.hours.0 += row.hours.0;
        sum.simulated_hours.0 += row.simulated_hours.0;
        sum.crashes += row.crashes;
        sum.states = sum.states.max(row.states);
        sum.inputs += row.inputs;
        sum.kills += row.kills;
        sum.findings += row.findings;
        self.runs += 1;
        self.seeds += row.seeds.1 - row.seeds.0;
    }
}

impl fmt::Display for Sum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let first = format!("{} ({} runs)", self.row.code, self.runs);
        f.write_str(&self.row.line(&first, &self.seeds.to_string()))
    }
}

/// The document.
pub struct Record {
    text: String,
    /// Oldest first.
    pub rows: Vec<Row>,
}

impl Record {
    /// Reads the document.
    pub fn read(path: &Path) -> Result<Record> {
        let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
        Record::parse(&text).with_context(|| path.display().to_string())
    }

    fn parse(document: &str) -> Result<Record> {
        let (text, tables) = document.split_once(RUNS).context("no heading `## Runs`")?;
        let (runs, _) = tables.split_once(SUMS).context("no heading `## Sums`")?;
        let lines = runs.lines().filter(|line| line.starts_with('|')).skip(2);
        let rows = lines.map(|line| line.parse().with_context(|| line.to_owned()));
        Ok(Record { text: text.into(), rows: rows.collect::<Result<_>>()? })
    }

    /// Writes it with all rows and their sums.
    pub fn write(&self, path: &Path) -> Result<()> {
        std::fs::write(path, self.to_string()).with_context(|| path.display().to_string())
    }

    /// The first seed that has not run on this code.
    pub fn next_seed(&self, code: &str) -> u64 {
        let of_code = self.rows.iter().filter(|row| row.code == code);
        of_code.map(|row| row.seeds.1).max().unwrap_or_default()
    }

    /// What the runs on each code add up to, in the order of their first runs. What was
    /// enumerated is the same again at each run: the most counts.
    pub fn sums(&self) -> Vec<Sum> {
        let mut sums: Vec<Sum> = Vec::new();
        for row in &self.rows {
            let at = sums.iter().position(|sum| sum.row.code == row.code);
            let at = at.unwrap_or_else(|| {
                let row = Row { code: row.code.clone(), ..Row::default() };
                sums.push(Sum { row, runs: 0, seeds: 0 });
                sums.len() - 1
            });
            sums[at].add(row);
        }
        sums
    }
}

impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}{RUNS}\n| code | {COLUMNS}", self.text)?;
        for row in &self.rows {
            let (from, to) = row.seeds;
            writeln!(f, "{}", row.line(&row.code, &format!("{from}..{to}")))?;
        }
        writeln!(f, "{SUMS}\n| code | {COLUMNS}")?;
        self.sums().iter().try_for_each(|sum| writeln!(f, "{sum}"))
    }
}

/// What is wrong with the document; its sums must be those of its rows.
pub fn wrong(document: &str) -> Option<String> {
    match Record::parse(document) {
        Err(error) => Some(format!("{error:#}")),
        Ok(record) if record.to_string() != document => Some(
            "its tables are not what its rows add up to; `cargo xtask soak` writes them".into(),
        ),
        Ok(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(code: &str, seeds: (u64, u64), findings: u64) -> Row {
        Row {
            code: code.into(),
            hours: Hundredths(150),
            simulated_hours: Hundredths(200_025),
            crashes: 1000,
            seeds,
            states: 7,
            inputs: 100,
            kills: 20,
            findings,
        }
    }

    fn record() -> Record {
        let rows = vec![row("aa", (0, 10), 0), row("bb", (0, 5), 2), row("aa", (10, 30), 1)];
        Record { text: "# Soak\n\nWords.\n".into(), rows }
    }

    #[test]
    fn what_is_written_is_read() {
        let document = record().to_string();
        assert_eq!(Record::parse(&document).expect("it parses").rows, record().rows);
        assert_eq!(wrong(&document), None);
    }

    #[test]
    fn runs_on_the_same_code_add_up() {
        let document = record().to_string();
        assert!(
            document.contains("| aa (2 runs) | 3.00 | 4000.50 | 2000 | 30 | 7 | 200 | 40 | 1 |"),
            "{document}"
        );
        assert!(document.contains("| bb (1 runs) | 1.50 |"), "{document}");
    }

    #[test]
    fn seeds_go_on_where_the_same_code_ended() {
        assert_eq!(record().next_seed("aa"), 30);
        assert_eq!(record().next_seed("bb"), 5);
        assert_eq!(record().next_seed("cc"), 0);
    }

    #[test]
    fn a_sum_or_row_that_somebody_changed_is_noticed() {
        let document = record().to_string();
        for (good, bad) in [("4000.50", "4001.50"), ("| 0..5 |", "| 5..0 |"), ("| 2 |", "| ? |")] {
            let changed = document.replacen(good, bad, 1);
            assert_ne!(changed, document);
            assert!(wrong(&changed).is_some(), "{good} became {bad}");
        }
    }
}
