//! Crashes a case at every event and judges every image, and every crash of the recovery.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::case::{Case, Mark, record};
use super::fixture::Fixture;
use super::image::Image;
use super::recorder::Event;
use super::surviving::{Bound, Surviving, Tally};
use super::survivor::{Outcome, Survivor};
use super::verdict::{History, Limits};

/// Findings of one case that are told.
const FINDINGS_MAX: usize = 3;

/// How far both levels go.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Crashes of the operations.
    pub first: Bound,
    /// Crashes of the recovery; `None`: it is not crashed.
    pub second: Option<Bound>,
}

/// What was counted.
#[derive(Clone, Debug, Default)]
pub struct Counts {
    /// Cases.
    pub cases: u64,
    /// Writes of the operations.
    pub writes: u64,
    /// Points at which something else may survive than before.
    pub points: u64,
    /// Images visited at the first level, and how many of them were torn.
    pub images: u64,
    /// Those with a torn write.
    pub torn: u64,
    /// Subsets beyond the bound.
    pub left_out: f64,
    /// Images nobody had recovered before.
    pub distinct: u64,
    /// Recoveries that were crashed.
    pub crashed: u64,
    /// Points in them.
    pub second_points: u64,
    /// Images visited at the second level.
    pub second_images: u64,
    /// Subsets beyond the bound there.
    pub second_left_out: f64,
    /// Images nobody had recovered before, there.
    pub second_distinct: u64,
    /// What broke a rule.
    pub findings: Vec<String>,
    /// How long it took.
    pub took: Duration,
}

impl Counts {
    /// Adds those of another case.
    pub fn add(&mut self, other: &Counts) {
        self.cases += other.cases;
        self.writes += other.writes;
        self.points += other.points;
        self.images += other.images;
        self.torn += other.torn;
        self.left_out += other.left_out;
        self.distinct += other.distinct;
        self.crashed += other.crashed;
        self.second_points += other.second_points;
        self.second_images += other.second_images;
        self.second_left_out += other.second_left_out;
        self.second_distinct += other.second_distinct;
        self.findings.extend(other.findings.iter().cloned());
        self.took += other.took;
    }
}

/// A volume, and all that is known about its images.
pub struct Engine {
    fixture: Fixture,
    survivor: Survivor,
    bounds: Bounds,
}

/// What is known while one case is judged.
struct Judging<'a> {
    case: &'a Case,
    history: History,
    limits: Limits,
    judged: BTreeSet<(Limits, usize)>,
    crashed: BTreeSet<(Limits, usize, usize)>,
    counts: Counts,
}

impl Engine {
    /// An engine for one prepared volume.
    pub fn new(fixture: Fixture, bounds: Bounds) -> Engine {
        let survivor = Survivor::new(fixture.place);
        Engine { fixture, survivor, bounds }
    }

    /// Enumerates one case.
    pub fn run(&mut self, case: &Case) -> Counts {
        let started = Instant::now();
        let history = History::new(self.fixture.tree.clone(), &case.steps);
        let mut judging = Judging {
            case,
            history,
            limits: Limits::default(),
            judged: BTreeSet::new(),
            crashed: BTreeSet::new(),
            counts: Counts { cases: 1, ..Counts::default() },
        };
        match record(&self.fixture, case, &judging.history) {
            Err(why) => judging.finding("without any crash", &why),
            Ok(recording) => {
                let mut surviving = Surviving::at_rest(recording.start);
                for (index, event) in recording.events.iter().enumerate() {
                    self.event(&mut judging, &mut surviving, index, event);
                    if judging.is_told() {
                        break;
                    }
                }
            }
        }
        judging.counts.took = started.elapsed();
        judging.counts
    }

    fn event(
        &mut self,
        judging: &mut Judging<'_>,
        surviving: &mut Surviving,
        index: usize,
        event: &Event<Mark>,
    ) {
        let changes = match event {
            Event::Mark(Mark::Begun(step)) => {
                judging.history.begin(&mut judging.limits, *step);
                false
            }
            Event::Mark(Mark::Done(step)) => {
                judging.history.end(&mut judging.limits, *step);
                true
            }
            event => surviving.step(event),
        };
        judging.counts.writes += u64::from(matches!(event, Event::Write { .. }));
        if !changes {
            return;
        }
        judging.counts.points += 1;
        let known = self.survivor.distinct();
        let mut outcomes: BTreeMap<usize, Image> = BTreeMap::new();
        let tally = surviving.each_image(self.bounds.first, |image| {
            let outcome = self.survivor.recover(image.clone());
            outcomes.entry(outcome).or_insert(image);
        });
        judging.counts.images += tally.subsets + tally.torn;
        judging.counts.torn += tally.torn;
        judging.counts.left_out += tally.left_out;
        judging.counts.distinct += self.survivor.distinct() - known;
        for outcome in outcomes.keys() {
            judging.judge(&self.survivor, *outcome, || format!("a crash at event {index}"));
        }
        if let Some(bound) = self.bounds.second {
            self.crash_recoveries(judging, surviving, index, outcomes, bound);
        }
    }

    /// The power fails and comes back, or only the host dies; then the recovery is crashed.
    fn crash_recoveries(
        &mut self,
        judging: &mut Judging<'_>,
        surviving: &Surviving,
        index: usize,
        outcomes: BTreeMap<usize, Image>,
        bound: Bound,
    ) {
        for (outcome, image) in outcomes {
            if judging.crashed.insert((judging.limits.clone(), outcome, usize::MAX)) {
                let at = format!("a power loss at event {index}");
                let rest = Surviving::at_rest(image.clone());
                self.crash_recovery(judging, (rest, image), &at, bound, Some(outcome));
            }
        }
        for lands in [false, true] {
            let (rest, visible) = surviving.killed(lands);
            let outcome = self.survivor.recover(visible.clone());
            if judging.crashed.insert((judging.limits.clone(), outcome, rest.open())) {
                let at = format!("a kill at event {index}");
                self.crash_recovery(judging, (rest, visible), &at, bound, None);
            }
        }
    }

    fn crash_recovery(
        &mut self,
        judging: &mut Judging<'_>,
        (mut surviving, visible): (Surviving, Image),
        at: &str,
        bound: Bound,
        expect: Option<usize>,
    ) {
        judging.counts.crashed += 1;
        let events = match self.survivor.record(visible) {
            Ok(events) => events,
            Err(why) => return judging.finding(&format!("{at}, recovery by another"), &why),
        };
        let known = self.survivor.distinct();
        for (second, event) in events.iter().enumerate() {
            if !surviving.step(event) || judging.is_told() {
                continue;
            }
            let mut outcomes = BTreeSet::new();
            let tally: Tally = surviving.each_image(bound, |image| {
                outcomes.insert(self.survivor.recover(image));
            });
            judging.counts.second_points += 1;
            judging.counts.second_images += tally.subsets + tally.torn;
            judging.counts.second_left_out += tally.left_out;
            let place = || format!("{at}, and of the recovery at its event {second}");
            for outcome in outcomes {
                judging.judge(&self.survivor, outcome, place);
                if let Some(expect) = expect {
                    judging.is_same(&self.survivor, expect, outcome, place);
                }
            }
        }
        judging.counts.second_distinct += self.survivor.distinct() - known;
    }
}

impl Judging<'_> {
    fn is_told(&self) -> bool {
        self.counts.findings.len() >= FINDINGS_MAX
    }

    fn finding(&mut self, at: &str, why: &str) {
        self.counts.findings.push(format!("{}: {at}: {why}", self.case.name));
    }

    fn judge(&mut self, survivor: &Survivor, outcome: usize, at: impl Fn() -> String) {
        if self.is_told() || !self.judged.insert((self.limits.clone(), outcome)) {
            return;
        }
        let why = match survivor.outcome(outcome) {
            Outcome::Broken(why) => Some(why.clone()),
            Outcome::Sound { seen, .. } => self.history.refuse(&self.limits, survivor.seen(*seen)),
        };
        if let Some(why) = why {
            self.finding(&at(), &why);
        }
    }

    /// After a power loss nothing is open any more: a crash of the recovery changes nothing.
    fn is_same(
        &mut self,
        survivor: &Survivor,
        expect: usize,
        outcome: usize,
        at: impl Fn() -> String,
    ) {
        let (Outcome::Sound { seen: first, .. }, Outcome::Sound { seen, .. }) =
            (survivor.outcome(expect), survivor.outcome(outcome))
        else {
            return;
        };
        if first != seen && !self.is_told() {
            self.finding(&at(), "another state than without the second crash");
        }
    }
}
