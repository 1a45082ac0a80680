//! What many seeds came to, for people and for machines.

use std::process::ExitCode;
use std::time::Duration;

use lunfs_core::Counters;
use lunfs_sim::met::Met;
use lunfs_sim::schedule::Outcome;
use lunfs_sim::trace::seconds;

use super::{Arguments, Run};

/// Seeds from which on everything must have been met.
const SEEDS_FOR_ALL: u64 = 200;

/// Sums over all seeds.
#[derive(Default)]
pub struct Totals {
    met: Met,
    counters: Counters,
    seeds: u64,
    events: u64,
    time: u64,
    /// Of all traces, whatever the order in which their seeds ended.
    hash: u64,
    broken: Vec<u64>,
}

impl Totals {
    /// Takes one seed in and tells what it broke; `false`: something.
    pub fn take(&mut self, arguments: &Arguments, run: &Run) -> bool {
        self.seeds += 1;
        self.add(&run.outcome);
        let is_fine = run.outcome.findings.is_empty();
        if !is_fine {
            tell(arguments, run);
        }
        if let Some((hash, events)) = run.differs {
            println!(
                "seed {} is not deterministic: {} events and {:#x}, then {events} and {hash:#x}",
                run.seed, run.outcome.events, run.outcome.hash
            );
            println!("  again: {}", arguments.again(run.seed, &arguments.reduction));
        }
        let is_fine = is_fine && run.differs.is_none();
        if !is_fine {
            self.broken.push(run.seed);
        }
        is_fine
    }

    fn add(&mut self, outcome: &Outcome) {
        self.met.add(&outcome.met);
        self.counters.add(&outcome.counters);
        self.events += outcome.events;
        self.time += outcome.time;
        self.hash = self.hash.wrapping_add(outcome.hash);
    }

    fn lines(&self) -> Vec<(&'static str, u64)> {
        let mut lines = self.met.list();
        lines.extend(self.counters.list());
        lines
    }

    /// What a proof needs and this one did not meet.
    fn missing(&self) -> Vec<&'static str> {
        let (met, counters) = (&self.met, &self.counters);
        let needed = [
            ("takeovers", counters.takeovers),
            ("replays that applied images", counters.replays_with_images),
            ("images applied", counters.images_applied),
            ("images refused by R7", counters.images_refused),
            ("revokes used", counters.revokes_used),
            ("in-doubt compare-and-writes that had landed", counters.in_doubt_landed),
            ("in-doubt compare-and-writes that had not", counters.in_doubt_not_landed),
            ("in-doubt compare-and-writes replaced by others", counters.in_doubt_lost),
            ("resumes after suspension", counters.resumes),
            ("handovers", counters.handovers),
            ("claims of dead claimers", counters.claims_after_claimer),
            ("claims handed back", counters.claims_handed_back),
            ("claims kept", counters.claims_kept),
            ("recoverer deaths", met.recoverer_deaths),
            ("deaths in a chain of takeovers", met.chained_deaths),
            ("crashes", met.crashes),
            ("fence kills", met.fence_kills),
            ("pauses at submission", met.pauses_at_submission),
            ("power losses", met.power_losses),
            ("blocks lost by power losses", met.blocks_lost),
            ("cache losses under living hosts", met.cache_losses),
            ("hosts stopped by a disk that went back in time", met.stops_by_return),
            ("reads that lied", met.reads_that_lied),
            ("compare-and-writes whose flush failed", met.failed_flushes),
            ("last words", met.last_words),
            ("audits with loss", met.audits_with_loss),
            ("snapshots", met.snapshots),
            ("clones", met.clones),
            ("snapshots read", met.snapshots_read),
        ];
        needed.into_iter().filter(|(_, number)| *number == 0).map(|(name, _)| name).collect()
    }

    /// Tells the sums; the code says whether all seeds were fine and met what they must.
    pub fn end(&self, arguments: &Arguments, elapsed: Duration) -> ExitCode {
        let time = seconds(self.time);
        let (seeds, events) = (self.seeds, self.events);
        println!("{seeds} seeds, {} s of virtual time, {events} events", time.trim());
        for (name, number) in self.lines() {
            println!("{number:>12}  {}", name.replace('_', " "));
        }
        let missing = self.missing();
        let is_poor = seeds >= SEEDS_FOR_ALL && !missing.is_empty();
        if !self.broken.is_empty() {
            println!("{} seeds break a rule", self.broken.len());
        } else if is_poor {
            println!("never met: {}", missing.join(", "));
        }
        if arguments.json {
            println!("{}", self.json(elapsed));
        }
        if self.broken.is_empty() && !is_poor { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }

    fn json(&self, elapsed: Duration) -> String {
        format!(
            "{{\"seeds\":{},\"virtual_seconds\":{},\"events\":{},\"crashes\":{},\"takeovers\":{},\
             \"power_losses\":{},\"elapsed_seconds\":{:.1},\"hash\":\"{:016x}\",\
             \"findings\":{},\"broken_seeds\":{:?}}}",
            self.seeds,
            self.time / 1_000_000_000,
            self.events,
            self.met.crashes + self.met.fence_kills,
            self.counters.takeovers,
            self.met.power_losses,
            elapsed.as_secs_f64(),
            self.hash,
            self.broken.len(),
            self.broken,
        )
    }
}

fn tell(arguments: &Arguments, run: &Run) {
    println!("seed {} breaks a rule:", run.seed);
    for finding in &run.outcome.findings {
        println!("  {finding}");
    }
    if !arguments.keep_going {
        println!("  the last events:");
        for event in &run.outcome.recent {
            println!("    {event}");
        }
    }
    println!("  again: {}", arguments.again(run.seed, &arguments.reduction));
}
