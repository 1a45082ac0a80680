//! One thing that changes: what may somebody who looks at it see?
//!
//! Every change has a time span, from its call to its answer. Time is counted in ticks of the
//! model, one per call and answer, so no two are equal. A look from tick `from` on may see any
//! change that began, unless it is *superseded*: another change began after this one was over, was
//! acknowledged before `from`, and cannot have been lost. A change can be lost if its program died
//! before it was durable.
//!
//! This is what "no acknowledged write is lost" and "no stale read after a handover" mean (R11,
//! R13).

use crate::executor::Owner;

/// Names one change of one register.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ChangeNo(u64);

/// What a register must know of the world.
pub trait Deaths {
    /// The tick at which a program died without having made everything durable; `None`: it lives or
    /// left cleanly.
    fn died(&self, program: Owner) -> Option<u64>;
    /// The tick at which the oldest look began that has not ended.
    fn oldest_look(&self) -> u64;
}

#[derive(Clone, Debug)]
struct Change<V> {
    number: u64,
    value: V,
    by: Owner,
    begun: u64,
    /// When it was over, whatever came of it.
    over: Option<u64>,
    acknowledged: bool,
    durable: bool,
    /// Orders it among the operations of its author.
    mark: u64,
    /// Looks that begin at this tick or later cannot see it any more.
    gone: Option<u64>,
}

impl<V> Change<V> {
    fn over(&self, deaths: &dyn Deaths) -> Option<u64> {
        self.over.or_else(|| deaths.died(self.by))
    }

    fn is_sure(&self, deaths: &dyn Deaths) -> bool {
        self.acknowledged && (self.durable || deaths.died(self.by).is_none())
    }
}

/// A register with its changes.
#[derive(Clone, Debug)]
pub struct Register<V> {
    next: u64,
    changes: Vec<Change<V>>,
}

impl<V: Clone + PartialEq> Register<V> {
    /// A register that has held `value` since before the world began, durably.
    pub fn new(value: V) -> Register<V> {
        let first = Change {
            number: 0,
            value,
            by: Owner::WORLD,
            begun: 0,
            over: Some(0),
            acknowledged: true,
            durable: true,
            mark: 0,
            gone: None,
        };
        Register { next: 1, changes: vec![first] }
    }

    /// What the newest change would make of it.
    pub fn newest(&self) -> &V {
        let last = self.changes.iter().rev().find(|change| change.gone.is_none());
        &last.expect("a register has at least one change").value
    }

    /// A change is called. `mark` orders it among the operations of its author.
    pub fn begin(&mut self, value: V, by: Owner, tick: u64, mark: u64) -> ChangeNo {
        let number = self.next;
        self.next += 1;
        self.changes.push(Change {
            number,
            value,
            by,
            begun: tick,
            over: None,
            acknowledged: false,
            durable: false,
            mark,
            gone: None,
        });
        ChangeNo(number)
    }

    fn find(&mut self, change: ChangeNo) -> Option<&mut Change<V>> {
        self.changes.iter_mut().find(|known| known.number == change.0)
    }

    /// A change was acknowledged.
    pub fn acknowledge(&mut self, change: ChangeNo, tick: u64) {
        if let Some(change) = self.find(change) {
            change.acknowledged = true;
            change.over = change.over.or(Some(tick));
        }
    }

    /// A change ended with an error: it may have happened or not, but will not later.
    pub fn doubt(&mut self, change: ChangeNo, tick: u64) {
        if let Some(change) = self.find(change) {
            change.over = change.over.or(Some(tick));
        }
    }

    /// A change surely did not happen.
    pub fn cancel(&mut self, change: ChangeNo) {
        self.changes.retain(|known| known.number != change.0);
    }

    /// What `by` had acknowledged before `tick` is durable.
    pub fn harden(&mut self, by: Owner, tick: u64, deaths: &dyn Deaths) {
        let counts =
            |change: &Change<V>| change.by == by && change.over.is_some_and(|over| over <= tick);
        self.harden_if(counts, deaths);
    }

    /// What living programs other than `by` had acknowledged before `tick` is durable: the lock
    /// went from them to `by`, and a lock is given up only when all under it is durable (R6).
    pub fn hand_over(&mut self, by: Owner, tick: u64, deaths: &dyn Deaths) {
        let counts = |change: &Change<V>| {
            change.by != by
                && change.over.is_some_and(|over| over <= tick)
                && deaths.died(change.by).is_none()
        };
        self.harden_if(counts, deaths);
    }

    /// What `by` did up to `mark` is durable.
    pub fn harden_mark(&mut self, by: Owner, mark: u64, deaths: &dyn Deaths) {
        self.harden_if(|change| change.by == by && change.mark <= mark, deaths);
    }

    /// Is there one durable change and no other?
    pub fn is_still(&self) -> bool {
        matches!(&self.changes[..], [only] if only.durable && only.gone.is_none())
    }

    fn harden_if(&mut self, counts: impl Fn(&Change<V>) -> bool, deaths: &dyn Deaths) {
        if self.is_still() {
            return;
        }
        for change in &mut self.changes {
            if change.acknowledged && counts(change) {
                change.durable = true;
            }
        }
        self.prune(deaths);
    }

    /// Forgets what no look can see any more.
    fn prune(&mut self, deaths: &dyn Deaths) {
        let oldest = deaths.oldest_look();
        self.changes.retain(|change| change.gone.is_none_or(|gone| gone > oldest));
        let newest = self
            .changes
            .iter()
            .filter(|change| change.durable && change.gone.is_none())
            .filter(|change| change.over.is_some_and(|over| over <= oldest))
            .map(|change| change.begun)
            .max();
        let Some(newest) = newest else { return };
        self.changes.retain(|change| {
            change.begun >= newest || change.over.is_none_or(|over| over > newest)
        });
    }

    fn is_superseded(&self, change: &Change<V>, from: u64, deaths: &dyn Deaths) -> bool {
        let Some(over) = change.over(deaths) else { return false };
        self.changes.iter().any(|later| {
            later.begun >= over
                && later.gone.is_none_or(|gone| gone > from)
                && later.number != change.number
                && later.over.is_some_and(|over| over <= from)
                && later.is_sure(deaths)
        })
    }

    /// All that a look which began at tick `from` and ends now may see, newest last.
    pub fn allowed(&self, from: u64, deaths: &dyn Deaths) -> Vec<(ChangeNo, &V)> {
        self.changes
            .iter()
            .filter(|change| change.gone.is_none_or(|gone| gone > from))
            .filter(|change| !self.is_superseded(change, from, deaths))
            .map(|change| (ChangeNo(change.number), &change.value))
            .collect()
    }

    /// Marks of the changes that hold `value` and that a look from tick `from` on may have seen.
    pub fn marks(&self, value: &V, from: u64) -> Vec<(Owner, u64)> {
        let holding = self
            .changes
            .iter()
            .filter(|change| change.value == *value && change.gone.is_none_or(|gone| gone > from));
        holding.map(|change| (change.by, change.mark)).collect()
    }

    /// A look of `observer` from tick `from` to tick `now` saw the changes `seen`. What another
    /// program did is then durable: it came through a handover or a recovery. And if that is so,
    /// what was not seen and was over before the look began will never be seen again.
    pub fn observe(
        &mut self,
        seen: &[ChangeNo],
        observer: Owner,
        (from, now): (u64, u64),
        deaths: &dyn Deaths,
    ) {
        let is_seen = |change: &Change<V>| seen.contains(&ChangeNo(change.number));
        // Of several changes to the same value nobody knows which one was seen.
        if seen.len() == 1 {
            for change in self.changes.iter_mut().filter(|change| is_seen(change)) {
                change.over = change.over.or(Some(now));
                change.acknowledged = true;
                change.durable |= change.by != observer;
            }
        }
        // What ended in doubt and its own program does not see did not happen, and will not.
        let failed = |change: &Change<V>| {
            !change.acknowledged
                && change.by == observer
                && change.over.is_some_and(|over| over <= from)
        };
        for change in self.changes.iter_mut().filter(|change| !is_seen(change) && failed(change)) {
            change.gone = change.gone.or(Some(now));
        }
        // What the observer itself has not made durable can still give way to what was before. Of
        // what others did, and is over, one is there for good, whichever it is.
        let is_past = |change: &Change<V>| {
            change.by != observer && change.over(deaths).is_some_and(|over| over <= from)
        };
        let stays = |change: &Change<V>| change.durable || is_past(change);
        if self.changes.iter().filter(|change| is_seen(change)).all(stays) {
            for change in self.changes.iter_mut().filter(|change| !is_seen(change)) {
                if change.over(deaths).is_some_and(|over| over <= from) {
                    change.gone = change.gone.or(Some(now));
                }
            }
        }
        self.prune(deaths);
    }

    /// `observer` saw `value`, which no single change explains, while nothing changed. It is
    /// durable unless what it is made of is the observer's own and still can be lost.
    pub fn settle(
        &mut self,
        value: V,
        observer: Owner,
        (tick, mark): (u64, u64),
        deaths: &dyn Deaths,
    ) {
        let can_be_lost = |change: &Change<V>| {
            !change.durable && change.by == observer && deaths.died(observer).is_none()
        };
        let durable = !self.changes.iter().any(can_be_lost);
        if durable {
            for change in &mut self.changes {
                change.gone = change.gone.or(Some(tick));
            }
        }
        let number = self.next;
        self.next += 1;
        self.changes.push(Change {
            number,
            value,
            by: observer,
            begun: tick,
            over: Some(tick),
            acknowledged: true,
            durable,
            mark,
            gone: None,
        });
        self.prune(deaths);
    }

    /// Was every change over before tick `from`?
    pub fn is_quiet(&self, from: u64, deaths: &dyn Deaths) -> bool {
        self.changes.iter().all(|change| {
            change.gone.is_some() || change.over(deaths).is_some_and(|over| over <= from)
        })
    }

    /// All changes that are remembered, for people.
    pub fn history(&self) -> String
    where
        V: std::fmt::Debug,
    {
        let line = |change: &Change<V>| {
            let Change { value, by, begun, over, .. } = change;
            let over = over.map_or("?".to_owned(), |over| over.to_string());
            let durable = if change.durable { " durable" } else { "" };
            let doubt = if change.acknowledged { "" } else { " in doubt" };
            let gone = if change.gone.is_some() { " gone" } else { "" };
            format!("{value:?} by {by} {begun}..{over}{durable}{doubt}{gone}")
        };
        let lines: Vec<String> = self.changes.iter().map(line).collect();
        format!("[{}]", lines.join(", "))
    }

    /// Number of changes that are remembered.
    pub fn depth(&self) -> usize {
        self.changes.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Owner = Owner(1);
    const B: Owner = Owner(2);

    struct Dead(Option<(Owner, u64)>);

    impl Deaths for Dead {
        fn died(&self, program: Owner) -> Option<u64> {
            self.0.filter(|(dead, _)| *dead == program).map(|(_, tick)| tick)
        }

        fn oldest_look(&self) -> u64 {
            u64::MAX
        }
    }

    const NOBODY: Dead = Dead(None);

    /// Nobody died, and somebody has looked since this tick.
    struct LookSince(u64);

    impl Deaths for LookSince {
        fn died(&self, _: Owner) -> Option<u64> {
            None
        }

        fn oldest_look(&self) -> u64 {
            self.0
        }
    }

    fn seen(register: &Register<u32>, from: u64, deaths: &dyn Deaths) -> Vec<u32> {
        register.allowed(from, deaths).into_iter().map(|(_, value)| *value).collect()
    }

    /// A look that took long began before a name was made, saw that it was missing, and was taken
    /// for the proof that it had been removed.
    #[test]
    fn a_long_look_may_have_seen_what_is_gone() {
        let mut register = Register::new(0);
        let made = register.begin(1, A, 20, 1);
        register.acknowledge(made, 21);
        register.observe(&[made], B, (30, 31), &LookSince(10));
        register.begin(0, A, 40, 2);
        assert_eq!(register.marks(&0, 50), [(A, 2)]);
        assert_eq!(register.marks(&0, 10), [(Owner::WORLD, 0), (A, 2)]);
    }

    /// A hole, a cut that was lost and a write that was lost: the hole is what there is, and the
    /// next write in part begins with it.
    #[test]
    fn a_value_that_two_changes_explain_ends_what_was_not_seen() {
        let mut register = Register::new(0);
        for value in [0, 7] {
            let change = register.begin(value, A, 10, 0);
            register.acknowledge(change, 11);
        }
        let dead = Dead(Some((A, 20)));
        let seen: Vec<ChangeNo> = register
            .allowed(30, &dead)
            .into_iter()
            .filter(|(_, value)| **value == 0)
            .map(|(change, _)| change)
            .collect();
        assert_eq!(seen.len(), 2);
        register.observe(&seen, B, (30, 31), &dead);
        assert_eq!(*register.newest(), 0);
    }

    #[test]
    fn an_acknowledged_change_hides_what_was_before() {
        let mut register = Register::new(0);
        let change = register.begin(1, A, 10, 0);
        assert_eq!(seen(&register, 11, &NOBODY), [0, 1]);
        register.acknowledge(change, 12);
        assert_eq!(seen(&register, 11, &NOBODY), [0, 1]);
        assert_eq!(seen(&register, 13, &NOBODY), [1]);
    }

    #[test]
    fn a_death_brings_back_what_was_durable_before() {
        let mut register = Register::new(0);
        for value in 1..=3 {
            let tick = u64::from(value) * 10;
            let change = register.begin(value, A, tick, 0);
            register.acknowledge(change, tick + 1);
            if value == 1 {
                register.harden(A, tick + 2, &NOBODY);
            }
        }
        assert_eq!(seen(&register, 50, &NOBODY), [3]);
        assert_eq!(seen(&register, 50, &Dead(Some((A, 40)))), [1, 2, 3]);
    }

    #[test]
    fn what_another_program_saw_is_not_lost_by_a_death() {
        let mut register = Register::new(0);
        let change = register.begin(1, A, 10, 0);
        register.acknowledge(change, 11);
        register.observe(&[change], B, (12, 13), &NOBODY);
        assert_eq!(seen(&register, 50, &Dead(Some((A, 40)))), [1]);
    }

    #[test]
    fn a_value_that_two_changes_make_proves_neither() {
        let mut register = Register::new(0);
        let look = 5;
        let one = register.begin(1, A, 10, 0);
        register.acknowledge(one, 11);
        let zero = register.begin(0, A, 12, 0);
        let seen_now: Vec<ChangeNo> = register
            .allowed(look, &NOBODY)
            .into_iter()
            .filter(|(_, value)| **value == 0)
            .map(|(change, _)| change)
            .collect();
        assert!(seen_now.len() == 2 && seen_now.contains(&zero));
        register.observe(&seen_now, B, (look, 13), &NOBODY);
        assert_eq!(seen(&register, 14, &NOBODY), [1, 0]);
    }

    /// A write found no space. Its program looked, saw what several earlier changes had made, and
    /// cut the file: what remains is not what the failed write would have made.
    #[test]
    fn what_failed_and_is_not_seen_by_its_own_program_did_not_happen() {
        let mut register = Register::new(0);
        let cut = register.begin(0, A, 10, 0);
        register.acknowledge(cut, 11);
        let failed = register.begin(7, A, 12, 0);
        register.doubt(failed, 13);
        assert_eq!(*register.newest(), 7);
        let zeroes = register.allowed(14, &NOBODY).into_iter().filter(|(_, value)| **value == 0);
        let zeroes: Vec<ChangeNo> = zeroes.map(|(change, _)| change).collect();
        register.observe(&zeroes, A, (14, 15), &NOBODY);
        assert_eq!(*register.newest(), 0);
    }

    #[test]
    fn what_a_program_saw_of_its_own_can_still_be_lost() {
        let mut register = Register::new(0);
        let change = register.begin(1, A, 10, 0);
        register.acknowledge(change, 11);
        register.observe(&[change], A, (12, 13), &NOBODY);
        assert_eq!(seen(&register, 14, &NOBODY), [1]);
        assert_eq!(seen(&register, 50, &Dead(Some((A, 40)))), [0, 1]);
    }

    #[test]
    fn what_was_seen_after_a_death_stays() {
        let mut register = Register::new(0);
        let one = register.begin(1, A, 10, 0);
        register.acknowledge(one, 11);
        let two = register.begin(2, A, 12, 0);
        register.acknowledge(two, 13);
        let dead = Dead(Some((A, 20)));
        register.observe(&[one], B, (30, 31), &dead);
        assert_eq!(seen(&register, 32, &dead), [1]);
    }

    #[test]
    fn of_two_changes_at_once_either_may_be_last() {
        let mut register = Register::new(0);
        let one = register.begin(1, A, 10, 0);
        let two = register.begin(2, B, 11, 0);
        register.acknowledge(one, 12);
        register.acknowledge(two, 13);
        assert_eq!(seen(&register, 14, &NOBODY), [1, 2]);
        register.observe(&[one], B, (15, 16), &NOBODY);
        assert_eq!(seen(&register, 17, &NOBODY), [1]);
    }

    #[test]
    fn an_error_leaves_both_possible_until_somebody_looks() {
        let mut register = Register::new(0);
        let change = register.begin(1, A, 10, 0);
        register.doubt(change, 11);
        let allowed = register.allowed(12, &NOBODY);
        let old = allowed[0].0;
        assert_eq!(allowed.len(), 2);
        register.observe(&[old], A, (12, 13), &NOBODY);
        assert_eq!(seen(&register, 14, &NOBODY), [0]);
    }

    #[test]
    fn a_handover_makes_the_older_change_durable() {
        let mut register = Register::new(0);
        let one = register.begin(1, A, 10, 0);
        register.acknowledge(one, 11);
        let two = register.begin(2, B, 12, 0);
        register.acknowledge(two, 13);
        register.hand_over(B, 12, &NOBODY);
        assert_eq!(seen(&register, 50, &Dead(Some((B, 40)))), [1, 2]);
        assert_eq!(seen(&register, 50, &Dead(Some((A, 40)))), [2]);
    }
}
