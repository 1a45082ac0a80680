//! When what happens to one request.

use super::faults::{Fate, Latency, MILLISECOND, Rates, Request, SECOND, Truth};
use crate::chance::Chance;

/// A request with more blocks is touched in this many portions at most.
const PORTIONS_MAX: u64 = 5;
/// How long after an answer in doubt a request may still be done.
const LATE_MAX: u64 = 8 * SECOND;

/// What the answer says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// What truly happened.
    Truth,
    /// Nobody knows.
    InDoubt,
    /// An error.
    Failed,
}

/// One moment in the life of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// These blocks are read, written or compared.
    Touch(Vec<u32>),
    /// What was written is durable.
    Harden,
    /// The program gets its answer.
    Answer(Verdict),
    /// The last trace of a dead program's request is gone.
    Gone,
}

/// What the plan depends on.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// Now.
    pub now: u64,
    /// When the device begins with it.
    pub start: u64,
    /// How long requests take.
    pub latency: Latency,
    /// How often they stall.
    pub rates: Rates,
}

/// Blocks in portions, each at a moment of its own between `from` and `to`.
fn touches(units: &[u32], from: u64, to: u64, chance: &Chance) -> Vec<(u64, Step)> {
    if units.is_empty() {
        return Vec::new();
    }
    let count = chance.between(1, PORTIONS_MAX.min(units.len() as u64));
    let mut portions = vec![Vec::new(); usize::try_from(count).unwrap_or(1)];
    if chance.percent(50) {
        let each = units.len().div_ceil(portions.len());
        for (portion, part) in portions.iter_mut().zip(units.chunks(each)) {
            portion.extend_from_slice(part);
        }
    } else {
        for &unit in units {
            portions[chance.index(usize::try_from(count).unwrap_or(1))].push(unit);
        }
    }
    portions
        .into_iter()
        .filter(|portion| !portion.is_empty())
        .map(|portion| (chance.between(from, to), Step::Touch(portion)))
        .collect()
}

/// Plans a request.
pub fn plan(
    request: Request,
    units: &[u32],
    fua: bool,
    fate: Fate,
    timing: Timing,
    chance: &Chance,
) -> Vec<(u64, Step)> {
    let Timing { now, start, latency, rates } = timing;
    let stall = if chance.hits(rates.stall) { chance.between(SECOND / 10, 6 * SECOND) } else { 0 };
    // Of a stalled request the stall comes before it is done, or between that and its answer.
    let (before, after) = if chance.percent(50) { (stall, 0) } else { (0, stall) };
    let from = start + before;
    let done = from + chance.between(latency.low, latency.high);
    let answer = match fate {
        Fate::LateAnswer => done.max(now + chance.between(4 * SECOND, 20 * SECOND)),
        Fate::InDoubt(_) => done.max(now + chance.between(SECOND, 8 * SECOND)),
        Fate::Usual | Fate::Doubled | Fate::Failed => done + after,
    };
    let units: &[u32] = if request == Request::Compare { &[0] } else { units };
    let mut steps = match fate {
        Fate::Usual | Fate::LateAnswer | Fate::InDoubt(Truth::Early) => {
            touches(units, from, done, chance)
        }
        Fate::Doubled => {
            let mut steps = touches(units, from, done, chance);
            steps.extend(touches(units, from, answer, chance));
            steps
        }
        Fate::InDoubt(Truth::Late) => {
            let some = some_of(units, chance);
            touches(&some, answer, answer + chance.below(LATE_MAX), chance)
        }
        Fate::Failed | Fate::InDoubt(Truth::Never) => Vec::new(),
    };
    let landed = steps.iter().map(|&(at, _)| at).max().unwrap_or(done);
    if fua && !steps.is_empty() {
        steps.push((chance.between(landed, landed.max(answer)), Step::Harden));
    }
    let verdict = match fate {
        Fate::Usual | Fate::Doubled | Fate::LateAnswer => Verdict::Truth,
        Fate::InDoubt(_) => Verdict::InDoubt,
        Fate::Failed => Verdict::Failed,
    };
    steps.push((answer, Step::Answer(verdict)));
    // Steps of one moment happen in the order in which they are scheduled: touch, harden, answer.
    steps.sort_by_key(|&(at, _)| at);
    steps
}

fn some_of(units: &[u32], chance: &Chance) -> Vec<u32> {
    if chance.percent(50) {
        return units.to_vec();
    }
    units.iter().copied().filter(|_| chance.percent(50)).collect()
}

/// What a request of a dead program still does: all, some or none of what it had not done yet.
pub fn last_steps(units: &[u32], now: u64, drained: u64, chance: &Chance) -> Vec<(u64, Step)> {
    let left = match chance.below(3) {
        0 => Vec::new(),
        1 => units.to_vec(),
        _ => some_of(units, chance),
    };
    let end = drained.max(now + MILLISECOND);
    let mut steps = touches(&left, now, end, chance);
    steps.sort_by_key(|&(at, _)| at);
    steps.push((end, Step::Gone));
    steps
}
