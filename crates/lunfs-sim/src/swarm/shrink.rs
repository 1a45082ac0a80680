//! A failing seed with as little as possible in it that still fails in the same way.

use clap::ValueEnum;
use lunfs_sim::disk::faults::SECOND;
use lunfs_sim::finding::Finding;
use lunfs_sim::schedule::parameters::{Fault, Reduction};
use lunfs_sim::schedule::{Parameters, run};

/// Runs after which the smallest one so far must do.
const RUNS_MAX: u32 = 80;

/// What was found.
pub struct Smaller {
    pub reduction: Reduction,
    pub finding: String,
    pub runs: u32,
}

struct Shrinking {
    seed: u64,
    best: Smaller,
    kind: String,
    /// Virtual time of the best run's finding, and its setup before the faults.
    time: u64,
}

/// What kind of finding a text is: the words before the first number or quotation.
fn kind(finding: &str) -> String {
    let end = finding.find(|c: char| c.is_ascii_digit() && !finding.starts_with('R') || c == '"');
    let end = if finding.starts_with('R') { finding.find(':') } else { end };
    finding[..end.unwrap_or(finding.len())].to_owned()
}

/// Looks for a smaller run of `seed` that ends like `finding`.
pub fn shrink(seed: u64, from: &Reduction, finding: &Finding) -> Smaller {
    let best = Smaller { reduction: from.clone(), finding: finding.to_string(), runs: 0 };
    let mut shrinking = Shrinking { seed, best, kind: kind(&finding.what), time: finding.time };
    shrinking.leave_faults_out();
    shrinking.fewer_hosts();
    shrinking.fewer_workers();
    shrinking.shorter();
    shrinking.fewer_events();
    shrinking.leave_faults_out();
    shrinking.best
}

impl Shrinking {
    /// Is the same found in a run with this? Then it is the best so far.
    fn try_with(&mut self, change: impl FnOnce(&mut Reduction)) -> bool {
        if self.best.runs >= RUNS_MAX {
            return false;
        }
        let mut reduction = self.best.reduction.clone();
        change(&mut reduction);
        if reduction == self.best.reduction {
            return false;
        }
        let mut parameters = Parameters::draw(self.seed);
        reduction.apply(&mut parameters);
        self.best.runs += 1;
        let found = run(&parameters).findings.into_iter().find(|f| kind(&f.what) == self.kind);
        let Some(found) = found else { return false };
        self.time = found.time;
        self.best.reduction = reduction;
        self.best.finding = found.to_string();
        true
    }

    fn leave_faults_out(&mut self) {
        for &fault in Fault::value_variants() {
            if !self.best.reduction.without.contains(&fault) {
                self.try_with(|reduction| reduction.without.push(fault));
            }
        }
    }

    fn drawn(&self) -> Parameters {
        let mut parameters = Parameters::draw(self.seed);
        self.best.reduction.apply(&mut parameters);
        parameters
    }

    fn fewer_hosts(&mut self) {
        for hosts in 1..self.drawn().world.hosts as u64 {
            if self.try_with(|reduction| reduction.hosts = Some(hosts)) {
                return;
            }
        }
    }

    fn fewer_workers(&mut self) {
        for workers in 1..self.drawn().world.workers as u64 {
            if self.try_with(|reduction| reduction.workers = Some(workers)) {
                return;
            }
        }
    }

    /// Faults end soon after the finding, or long before it.
    fn shorter(&mut self) {
        let whole = self.drawn().duration / SECOND;
        for seconds in [whole / 8, whole / 4, whole / 2, self.time / SECOND + 1] {
            let is_shorter = seconds > 0 && seconds < whole;
            if is_shorter
                && self.try_with(|reduction| {
                    reduction.virtual_minutes = None;
                    reduction.virtual_seconds = Some(seconds);
                })
            {
                return;
            }
        }
    }

    fn fewer_events(&mut self) {
        for events in [0, 1, 2, 4, 8, 16, 32, 64] {
            let fewer = self.best.reduction.events.is_none_or(|known| events < known);
            if fewer && self.try_with(|reduction| reduction.events = Some(events)) {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn findings_of_one_rule_are_of_one_kind() {
        let (a, b) = ("R5: 0/2 writes block 32410", "R5: 1/7 writes block 9 under lock 2");
        assert_eq!(kind(a), kind(b));
        assert_ne!(kind(a), kind("R1: a write at 0x801000"));
        assert_eq!(kind("file 62 block 0 bytes"), "file ");
        assert_eq!(kind("the shared name \"w0\""), "the shared name ");
    }
}
