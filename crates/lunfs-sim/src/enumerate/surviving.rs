//! What may be on the disk after a crash: what is durable, and each legal part of the rest.
//!
//! ```text
//!   submitted ---> answered ---> covered by a flush, or FUA when answered ---> durable
//!      any part of it may be there, or nothing                                  all of it
//! ```
//!
//! A crash of the host alone leaves what was answered, and any part of what was in flight: that is
//! one of the images of a power loss as well.

use std::rc::Rc;

use super::image::Image;
use super::recorder::{Event, UNIT};

/// Bytes of a block of the format.
const BLOCK: usize = 4096;

/// The number of all writes of a dead host: another recorder counts from one again.
const OF_THE_DEAD: u32 = 0;

/// How far the enumeration goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bound {
    /// Up to so many writes that are not durable, every subset; beyond: all, none, each one lost,
    /// each one kept, each prefix.
    pub writes: u32,
    /// How writes of several logical blocks tear.
    pub tears: Tears,
}

/// How a write of several logical blocks is taken apart; the other writes are all there or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tears {
    /// Each block of 4 KiB lost, each prefix in blocks, each prefix that ends within a block.
    Each,
    /// The last logical block lost, and a half of it.
    Few,
    /// Not at all.
    None,
}

#[derive(Clone)]
struct Pending {
    id: u32,
    at: u64,
    data: Rc<[u8]>,
    durable: bool,
    whole: bool,
    is_answered: bool,
    /// It must be there; it waits for older writes to the same place.
    is_settled: bool,
}

impl Pending {
    fn overlaps(&self, other: &Pending) -> bool {
        let end = |p: &Pending| p.at + p.data.len() as u64;
        self.at < end(other) && other.at < end(self)
    }

    fn units(&self) -> usize {
        self.data.len() / UNIT
    }
}

/// What was taken of each write.
#[derive(Clone, Copy)]
enum Taken {
    All,
    None,
    /// Logical blocks `from..to` are there, or only they are not.
    Units {
        from: usize,
        to: usize,
        are_there: bool,
    },
}

/// The state of the disk between two events.
#[derive(Clone)]
pub struct Surviving {
    durable: Image,
    pending: Vec<Pending>,
    flushes: Vec<(u32, Vec<u32>)>,
}

/// How many images there are at one point.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    /// Subsets of whole writes that were visited.
    pub subsets: u64,
    /// Subsets of whole writes that were not.
    pub left_out: f64,
    /// Images with a torn write that were visited.
    pub torn: u64,
}

impl Surviving {
    /// All that `image` holds is durable.
    pub fn at_rest(image: Image) -> Surviving {
        Surviving { durable: image, pending: Vec::new(), flushes: Vec::new() }
    }

    /// Takes one event; `true`: other images are possible from here on.
    pub fn step<M>(&mut self, event: &Event<M>) -> bool {
        match event {
            Event::Write { id, at, data, durable, whole } => {
                self.pending.push(Pending {
                    id: *id,
                    at: *at,
                    data: Rc::clone(data),
                    durable: *durable,
                    whole: *whole,
                    is_answered: false,
                    is_settled: false,
                });
                true
            }
            Event::Answered(id) => self.answered(*id),
            Event::Flush(id) => {
                let answered = |p: &&Pending| p.is_answered && !p.is_settled;
                let covered = self.pending.iter().filter(answered).map(|p| p.id).collect();
                self.flushes.push((*id, covered));
                false
            }
            Event::Flushed(id) => self.flushed(*id),
            Event::Mark(_) => false,
        }
    }

    fn answered(&mut self, id: u32) -> bool {
        let Some(write) = self.pending.iter_mut().find(|p| p.id == id) else { return false };
        write.is_answered = true;
        write.is_settled |= write.durable;
        let is_settled = write.is_settled;
        self.drain();
        is_settled
    }

    fn flushed(&mut self, id: u32) -> bool {
        let Some(index) = self.flushes.iter().position(|(flush, _)| *flush == id) else {
            return false;
        };
        let (_, covered) = self.flushes.remove(index);
        let mut changes = false;
        for write in &mut self.pending {
            if covered.contains(&write.id) && !write.is_settled {
                write.is_settled = true;
                changes = true;
            }
        }
        self.drain();
        changes
    }

    /// Settled writes become part of the durable image, unless an older one may still be missing
    /// below them.
    fn drain(&mut self) {
        let mut index = 0;
        while index < self.pending.len() {
            let (older, rest) = self.pending.split_at(index);
            let write = &rest[0];
            if write.is_settled && !older.iter().any(|p| p.overlaps(write)) {
                let write = self.pending.remove(index);
                self.durable.write(write.at, &write.data);
            } else {
                index += 1;
            }
        }
    }

    /// The program was killed and the disk kept its power: what was answered can be read, and of
    /// what was in flight all or nothing. What is not flushed may still be lost.
    pub fn killed(&self, lands: bool) -> (Surviving, Image) {
        let mut after = self.clone();
        after.flushes.clear();
        if !lands {
            after.pending.retain(|p| p.is_answered);
        }
        let mut visible = after.durable.clone();
        for write in &mut after.pending {
            write.id = OF_THE_DEAD;
            write.is_answered = true;
            // A compare-and-write that landed is durable before anybody acts upon it.
            write.is_settled |= write.whole;
            visible.write(write.at, &write.data);
        }
        after.drain();
        (after, visible)
    }

    /// Writes that may still be lost.
    pub fn open(&self) -> usize {
        self.pending.iter().filter(|p| !p.is_settled).count()
    }

    /// Visits every image that a crash may leave here, within the bound.
    pub fn each_image(&self, bound: Bound, mut visit: impl FnMut(Image)) -> Tally {
        let open: Vec<usize> =
            (0..self.pending.len()).filter(|i| !self.pending[*i].is_settled).collect();
        let mut tally = Tally::default();
        for kept in subsets(&open, bound.writes) {
            tally.subsets += 1;
            let taken = |index: usize| match kept.contains(&index) {
                true => Taken::All,
                false => Taken::None,
            };
            visit(self.image(taken));
        }
        let all = 2f64.powi(i32::try_from(open.len()).unwrap_or(i32::MAX));
        tally.left_out = (all - tally.subsets as f64).max(0.0);
        for &torn in &open {
            let write = &self.pending[torn];
            if write.whole || write.units() < 2 {
                continue;
            }
            for tear in tears(write.units(), bound.tears) {
                for others in [Taken::None, Taken::All] {
                    tally.torn += 1;
                    visit(self.image(|index| if index == torn { tear } else { others }));
                }
            }
        }
        tally
    }

    fn image(&self, taken: impl Fn(usize) -> Taken) -> Image {
        let mut image = self.durable.clone();
        for (index, write) in self.pending.iter().enumerate() {
            let taken = if write.is_settled { Taken::All } else { taken(index) };
            apply(&mut image, write, taken);
        }
        image
    }
}

fn apply(image: &mut Image, write: &Pending, taken: Taken) {
    let mut put = |from: usize, to: usize| {
        image.write(write.at + (from * UNIT) as u64, &write.data[from * UNIT..to * UNIT]);
    };
    match taken {
        Taken::None => {}
        Taken::All => put(0, write.units()),
        Taken::Units { from, to, are_there: true } => put(from, to),
        Taken::Units { from, to, are_there: false } => {
            put(0, from);
            put(to, write.units());
        }
    }
}

/// Every subset of a few writes; of many, those of which each matters alone. Ends with the last
/// of them that is new.
fn subsets(open: &[usize], whole_up_to: u32) -> Vec<Vec<usize>> {
    if open.len() <= whole_up_to as usize {
        return (0..1_u32 << open.len())
            .map(|bits| {
                let kept = |i: &usize| bits & (1 << i) != 0;
                (0..open.len()).filter(kept).map(|i| open[i]).collect()
            })
            .collect();
    }
    let mut some = vec![Vec::new(), open.to_vec()];
    for (index, &write) in open.iter().enumerate() {
        some.push(open.iter().copied().filter(|&other| other != write).collect());
        some.push(vec![write]);
        some.push(open[..index].to_vec());
    }
    some.sort();
    some.dedup();
    some
}

fn tears(units: usize, how: Tears) -> Vec<Taken> {
    let per_block = BLOCK / UNIT;
    let prefix = |to: usize| Taken::Units { from: 0, to, are_there: true };
    let lost = |from: usize, to: usize| Taken::Units { from, to, are_there: false };
    match how {
        Tears::None => Vec::new(),
        Tears::Few => {
            vec![prefix(units - 1), prefix((units / 2).max(1))]
        }
        Tears::Each => {
            let blocks = (0..units).step_by(per_block);
            let cut_within = |from: usize| prefix((from + per_block / 2 + 1).min(units - 1));
            blocks
                .flat_map(|from| {
                    let to = (from + per_block).min(units);
                    let whole = (from > 0).then(|| prefix(from));
                    [Some(lost(from, to)), Some(cut_within(from)), whole]
                })
                .flatten()
                .collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const ALL: Bound = Bound { writes: 8, tears: Tears::None };

    fn write(id: u32, unit: u64, value: u8, durable: bool) -> Event<()> {
        let data = Rc::from(vec![value; UNIT]);
        Event::Write { id, at: unit * UNIT as u64, data, durable, whole: false }
    }

    fn after(events: &[Event<()>], bound: Bound) -> BTreeSet<Vec<u8>> {
        let mut start = Image::used();
        start.write(0, &[0; 4096]);
        let mut surviving = Surviving::at_rest(start);
        for event in events {
            surviving.step(event);
        }
        let mut seen = BTreeSet::new();
        surviving.each_image(bound, |image| {
            seen.insert(image.read(0, 4096).chunks(UNIT).map(|unit| unit[0]).collect());
        });
        seen
    }

    #[test]
    fn what_is_not_flushed_survives_in_every_combination() {
        let events = [write(1, 0, 1, false), Event::Answered(1), write(2, 1, 2, false)];
        let seen: Vec<_> =
            after(&events, ALL).into_iter().map(|units| (units[0], units[1])).collect();
        assert_eq!(seen, [(0, 0), (0, 2), (1, 0), (1, 2)]);
    }

    #[test]
    fn a_flush_covers_what_was_answered_before_it_was_called() {
        let events = [
            write(1, 0, 1, false),
            Event::Answered(1),
            write(2, 1, 2, false),
            Event::Flush(3),
            Event::Answered(2),
            Event::Flushed(3),
        ];
        let seen: Vec<_> =
            after(&events, ALL).into_iter().map(|units| (units[0], units[1])).collect();
        assert_eq!(seen, [(1, 0), (1, 2)]);
    }

    #[test]
    fn fua_is_durable_when_answered_and_not_before() {
        let before = after(&[write(1, 0, 1, true)], ALL);
        assert_eq!(before.len(), 2);
        let answered = after(&[write(1, 0, 1, true), Event::Answered(1)], ALL);
        assert_eq!(answered.len(), 1);
    }

    #[test]
    fn a_durable_write_stays_above_an_older_one_that_is_not() {
        let events = [write(1, 0, 1, false), write(2, 0, 2, true), Event::Answered(2)];
        let seen: Vec<_> = after(&events, ALL).into_iter().map(|units| units[0]).collect();
        assert_eq!(seen, [2]);
    }

    #[test]
    fn beyond_the_bound_each_write_is_lost_and_kept_alone() {
        let events: Vec<_> = (0..6).map(|i| write(i, i.into(), 1, false)).collect();
        let few = Bound { writes: 2, tears: Tears::None };
        let seen = after(&events, few);
        // None, all, six lost, six kept, four prefixes that are none of these.
        assert_eq!(seen.len(), 1 + 1 + 6 + 6 + 3);
        assert_eq!(after(&events, ALL).len(), 64);
    }

    #[test]
    fn a_killed_program_leaves_what_was_answered_and_it_may_still_be_lost() {
        let mut surviving = Surviving::at_rest(Image::used());
        surviving.step(&write(1, 0, 1, false));
        surviving.step(&Event::<()>::Answered(1));
        surviving.step(&write(2, 1, 2, false));
        let (after, visible) = surviving.killed(false);
        assert_eq!(visible.read(0, UNIT), [1; UNIT]);
        assert_ne!(visible.read(512, UNIT), [2; UNIT]);
        assert_eq!(after.each_image(ALL, drop).subsets, 2);
        let (_, visible) = surviving.killed(true);
        assert_eq!(visible.read(512, UNIT), [2; UNIT]);
        // What the next host writes has numbers of its own.
        let (mut after, _) = surviving.killed(false);
        after.step(&write(1, 2, 3, true));
        after.step(&Event::<()>::Answered(1));
        assert_eq!(after.open(), 1);
        after.step(&Event::<()>::Flush(2));
        after.step(&Event::<()>::Flushed(2));
        assert_eq!(after.open(), 0);
    }
}
