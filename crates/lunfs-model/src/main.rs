//! Explores the protocol and prints what it counted.

use clap::Parser;
use lunfs_model::cases::{Case, Expect, cases};

/// Explores the protocol whole: every order of events of small volumes
#[derive(Parser)]
struct Options {
    /// Also what takes minutes
    #[arg(long)]
    whole: bool,
    /// Only those whose names contain this
    #[arg(long)]
    only: Option<String>,
    /// Tell the ways to what is expected to break
    #[arg(long)]
    tell: bool,
}

fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    let mut wrong = 0;
    let (mut states, mut explored) = (0, 0);
    println!("| case | outcome | states | depth | seconds |");
    println!("|---|---|---|---|---|");
    for case in chosen(&options) {
        let (safety, goals) = case.run();
        states += safety.states;
        explored += 1;
        let took = safety.took + goals.as_ref().map_or_else(Default::default, |g| g.took);
        let outcome = match case.expect {
            Expect::Holds => "holds",
            Expect::Breaks(_) => "breaks, as it must",
        };
        let complaint = case.judge(&safety, goals.as_ref());
        let outcome = if complaint.is_some() { "**wrong**" } else { outcome };
        let seconds = took.as_secs_f64();
        println!(
            "| {} | {outcome} | {} | {} | {seconds:.1} |",
            case.name, safety.states, safety.depth
        );
        if let Some(complaint) = complaint {
            wrong += 1;
            println!("  {complaint}");
        } else if let (true, Some(finding)) = (options.tell, &safety.finding) {
            println!("  {}\n    {}", finding.what, finding.way.join("\n    "));
        }
    }
    println!("{explored} cases, {states} states, {wrong} wrong");
    anyhow::ensure!(wrong == 0 && explored > 0, "{wrong} of {explored} cases are wrong");
    Ok(())
}

fn chosen(options: &Options) -> impl Iterator<Item = Case> {
    let is_chosen = |case: &Case| match &options.only {
        Some(only) => case.name.contains(only.as_str()),
        None => case.is_slice || options.whole,
    };
    cases().into_iter().filter(is_chosen).collect::<Vec<_>>().into_iter()
}
