//! When what happens to one request.

use std::ops::Range;

use super::faults::{Fate, Latency, MILLISECOND, Rates, Request, SECOND, Truth};
use crate::chance::Chance;

/// A request with more blocks is touched in this many portions at most.
const PORTIONS_MAX: u64 = 5;
/// Portions of a read whose blocks are fetched in any order, each at a moment of its own.
const SCATTERED_MAX: u64 = 16;
/// A request with more blocks is scattered in runs, so that no more pieces than this come of it.
const PIECES_MAX: u32 = 64;
/// Blocks from which on a request is mostly touched in one moment.
const LARGE: u32 = 256;
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
    /// What truly happened is in the cache for good.
    Unflushed,
}

/// Blocks in ascending runs.
pub type Runs = Vec<Range<u32>>;

/// Blocks of a request, counted from its first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Units {
    /// All of them.
    All,
    /// These.
    Some(Runs),
}

/// One moment in the life of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// These blocks are read, written or compared.
    Touch(Units),
    /// What was written is durable.
    Harden,
    /// The program gets its answer.
    Answer(Verdict),
    /// The last trace of a dead program's request is gone.
    Gone,
}

/// The moments of one request.
pub type Steps = Vec<(u64, Step)>;

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

/// When something is done: at moments between two.
#[derive(Clone, Copy, Debug)]
struct Window {
    from: u64,
    to: u64,
    portions: u64,
}

/// Blocks in portions, each at a moment of its own. `only`: not all of the `count` blocks.
fn touches(steps: &mut Steps, count: u32, only: Option<&[u32]>, window: Window, chance: &Chance) {
    let len = only.map_or(count, |only| u32::try_from(only.len()).unwrap_or(u32::MAX));
    if len == 0 {
        return;
    }
    let portions = chance.between(1, window.portions.min(u64::from(len)));
    let when = || chance.between(window.from, window.to);
    if portions == 1 {
        let units = only.map_or(Units::All, |only| Units::Some(runs(only.iter().copied())));
        steps.push((when(), Step::Touch(units)));
        return;
    }
    let place = |index: u32| only.map_or(index, |only| only[index as usize]);
    let mut push = |runs: Runs| {
        if !runs.is_empty() {
            steps.push((when(), Step::Touch(Units::Some(runs))));
        }
    };
    if chance.percent(50) {
        let each = len.div_ceil(u32::try_from(portions).unwrap_or(1));
        for first in (0..len).step_by(each as usize) {
            let indices = first..len.min(first + each);
            push(match only {
                Some(only) => runs(only[first as usize..indices.end as usize].iter().copied()),
                None => Runs::from([indices]),
            });
        }
        return;
    }
    let piece = len.div_ceil(PIECES_MAX);
    let mut scattered = vec![Runs::new(); usize::try_from(portions).unwrap_or(1)];
    for first in (0..len).step_by(piece as usize) {
        let to = chance.index(scattered.len());
        for index in first..len.min(first + piece) {
            extend(&mut scattered[to], place(index));
        }
    }
    scattered.into_iter().for_each(push);
}

/// Ascending numbers as runs.
fn runs(units: impl Iterator<Item = u32>) -> Runs {
    let mut runs = Runs::new();
    units.for_each(|unit| extend(&mut runs, unit));
    runs
}

/// Takes one more number in, greater than all others.
fn extend(runs: &mut Runs, unit: u32) {
    match runs.last_mut() {
        Some(last) if last.end == unit => last.end += 1,
        _ => runs.push(unit..unit + 1),
    }
}

/// Plans a request of `count` blocks.
pub fn plan(
    request: Request,
    count: u32,
    fua: bool,
    fate: Fate,
    timing: Timing,
    chance: &Chance,
) -> Steps {
    let Timing { now, start, latency, rates } = timing;
    let stall = if chance.hits(rates.stall) { chance.between(SECOND / 10, 6 * SECOND) } else { 0 };
    // Of a stalled request the stall comes before it is done, or between that and its answer.
    let (before, after) = if chance.percent(50) { (stall, 0) } else { (0, stall) };
    let from = start + before;
    let done = from + chance.between(latency.low, latency.high);
    let answer = match fate {
        Fate::LateAnswer => done.max(now + chance.between(4 * SECOND, 20 * SECOND)),
        Fate::InDoubt(_) => done.max(now + chance.between(SECOND, 8 * SECOND)),
        Fate::Usual | Fate::Doubled | Fate::Failed | Fate::Unflushed => done + after,
    };
    let is_scattered = request == Request::Read && chance.hits(rates.read_scattered);
    let portions = match count {
        _ if is_scattered => SCATTERED_MAX,
        // Copying megabytes in pieces is what a run would mostly do.
        LARGE.. if !chance.percent(20) => 1,
        _ => PORTIONS_MAX,
    };
    let window = Window { from, to: done, portions };
    let mut steps = Vec::with_capacity(4);
    match fate {
        Fate::Usual | Fate::LateAnswer | Fate::Unflushed | Fate::InDoubt(Truth::Early) => {
            touches(&mut steps, count, None, window, chance);
        }
        Fate::Doubled => {
            touches(&mut steps, count, None, window, chance);
            touches(&mut steps, count, None, Window { to: answer, ..window }, chance);
        }
        Fate::InDoubt(Truth::Late) => {
            let some = some_of(0..count, chance);
            let late = Window { from: answer, to: answer + chance.below(LATE_MAX), portions };
            touches(&mut steps, count, Some(&some), late, chance);
        }
        Fate::Failed | Fate::InDoubt(Truth::Never) => {}
    }
    let landed = steps.iter().map(|&(at, _)| at).max().unwrap_or(done);
    if fua && !steps.is_empty() && fate != Fate::Unflushed {
        steps.push((chance.between(landed, landed.max(answer)), Step::Harden));
    }
    let verdict = match fate {
        Fate::Usual | Fate::Doubled | Fate::LateAnswer => Verdict::Truth,
        Fate::InDoubt(_) => Verdict::InDoubt,
        Fate::Failed => Verdict::Failed,
        Fate::Unflushed => Verdict::Unflushed,
    };
    steps.push((answer, Step::Answer(verdict)));
    // Steps of one moment happen in the order in which they are scheduled: touch, harden, answer.
    steps.sort_by_key(|&(at, _)| at);
    steps
}

fn some_of(units: impl Iterator<Item = u32>, chance: &Chance) -> Vec<u32> {
    if chance.percent(50) {
        return units.collect();
    }
    units.filter(|_| chance.percent(50)).collect()
}

/// What a request of a dead program still does: all, some or none of what it had not done yet.
pub fn last_steps(units: &[u32], now: u64, drained: u64, chance: &Chance) -> Steps {
    let left = match chance.below(3) {
        0 => Vec::new(),
        1 => units.to_vec(),
        _ => some_of(units.iter().copied(), chance),
    };
    let end = drained.max(now + MILLISECOND);
    let mut steps = Vec::new();
    let window = Window { from: now, to: end, portions: PORTIONS_MAX };
    touches(&mut steps, 0, Some(&left), window, chance);
    steps.sort_by_key(|&(at, _)| at);
    steps.push((end, Step::Gone));
    steps
}

#[cfg(test)]
mod tests {
    use std::slice::from_ref;

    use super::*;

    #[test]
    fn a_request_touches_each_of_its_blocks_once() {
        for seed in 0..500 {
            let chance = Chance::new(seed);
            let count = u32::try_from(chance.between(1, 300)).unwrap_or(1);
            let rates = Rates { read_scattered: 500_000, ..Rates::NONE };
            let timing = Timing { now: 5, start: 5, latency: Latency::USUAL, rates };
            let steps = plan(Request::Read, count, false, Fate::Usual, timing, &chance);
            let mut touched = vec![0; count as usize];
            for (at, step) in &steps {
                let Step::Touch(units) = step else { continue };
                assert!(*at >= 5);
                let all = 0..count;
                let runs = if let Units::Some(runs) = units { &runs[..] } else { from_ref(&all) };
                runs.iter().cloned().flatten().for_each(|unit| touched[unit as usize] += 1);
            }
            assert!(touched.iter().all(|&times| times == 1), "{touched:?}");
            assert!(matches!(steps.last(), Some((_, Step::Answer(Verdict::Truth)))));
        }
    }
}
