//! What the simulated disk holds: what a read sees, what survives a power loss, and what lies
//! between.
//!
//! The unit is the logical block. A write that landed is *visible*. It becomes *durable* by FUA
//! or by a flush; until then it sits among the *unflushed* versions of its unit, and a power loss
//! leaves any one of them or the durable one, for each unit on its own.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::rc::Rc;

use crate::chance::{Chance, mix};

const PAGE: u64 = 4096;

/// What lies where nobody has written yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Before {
    /// A new disk: zeroes.
    Zeroes,
    /// A used one: what somebody else once stored there; nobody may ever read it through a file.
    Ghosts(u64),
}

impl Before {
    fn fill(self, page: u64, bytes: &mut [u8]) {
        match self {
            Before::Zeroes => bytes.fill(0),
            Before::Ghosts(seed) => {
                let start = mix(seed ^ mix(page));
                for (index, word) in bytes.chunks_exact_mut(8).enumerate() {
                    word.copy_from_slice(&mix(start.wrapping_add(index as u64)).to_le_bytes());
                }
            }
        }
    }
}

#[derive(Debug)]
struct Pages {
    pages: BTreeMap<u64, Box<[u8; 4096]>>,
    before: Before,
}

impl Pages {
    fn read(&self, at: u64, out: &mut [u8]) {
        let (page, offset) = (at / PAGE, split(at));
        if let Some(bytes) = self.pages.get(&page) {
            out.copy_from_slice(&bytes[offset..offset + out.len()]);
        } else {
            let mut bytes = [0; 4096];
            self.before.fill(page, &mut bytes);
            out.copy_from_slice(&bytes[offset..offset + out.len()]);
        }
    }

    fn write(&mut self, at: u64, data: &[u8]) {
        let (page, offset) = (at / PAGE, split(at));
        let before = self.before;
        let bytes = self.pages.entry(page).or_insert_with(|| {
            let mut bytes = Box::new([0; 4096]);
            before.fill(page, &mut bytes[..]);
            bytes
        });
        bytes[offset..offset + data.len()].copy_from_slice(data);
    }
}

fn split(at: u64) -> usize {
    usize::try_from(at % PAGE).unwrap_or(0)
}

/// When the write that a version belongs to was answered; shared by all units of the write.
/// `u64::MAX`: not yet.
pub type Answered = Rc<Cell<u64>>;

#[derive(Debug)]
struct Version {
    data: Rc<[u8]>,
    from: usize,
    answered: Answered,
}

/// The medium with its volatile cache.
#[derive(Debug)]
pub struct Medium {
    unit: usize,
    visible: Pages,
    durable: Pages,
    unflushed: BTreeMap<u64, Vec<Version>>,
}

impl Medium {
    /// An unwritten medium with logical blocks of `unit` bytes.
    pub fn new(unit: usize, before: Before) -> Medium {
        let pages = || Pages { pages: BTreeMap::new(), before };
        Medium { unit, visible: pages(), durable: pages(), unflushed: BTreeMap::new() }
    }

    fn offset(&self, unit: u64) -> u64 {
        unit * self.unit as u64
    }

    /// What a read of one unit sees now.
    pub fn read(&self, unit: u64, out: &mut [u8]) {
        self.visible.read(self.offset(unit), out);
    }

    /// One unit of a write lands: visible, not yet durable.
    pub fn land(&mut self, unit: u64, data: &Rc<[u8]>, from: usize, answered: &Answered) {
        let at = self.offset(unit);
        self.visible.write(at, &data[from..from + self.unit]);
        self.unflushed.entry(unit).or_default().push(Version {
            data: Rc::clone(data),
            from,
            answered: Rc::clone(answered),
        });
    }

    /// Makes the newest version of `unit` that belongs to this write durable, if it still counts.
    pub fn harden(&mut self, unit: u64, write: &Answered) {
        self.promote(unit, |version| Rc::ptr_eq(&version.answered, write));
    }

    /// A flush that was called at `called` ends: what was answered before then is durable.
    pub fn flush(&mut self, called: u64) {
        let units: Vec<u64> = self.unflushed.keys().copied().collect();
        for unit in units {
            self.promote(unit, |version| version.answered.get() <= called);
        }
    }

    fn promote(&mut self, unit: u64, counts: impl Fn(&Version) -> bool) {
        let at = self.offset(unit);
        let Some(versions) = self.unflushed.get_mut(&unit) else { return };
        if let Some(newest) = versions.iter().rposition(counts) {
            let version = &versions[newest];
            self.durable.write(at, &version.data[version.from..version.from + self.unit]);
            versions.drain(..=newest);
        }
        if versions.is_empty() {
            self.unflushed.remove(&unit);
        }
    }

    /// Units that a power loss could change.
    pub fn unflushed(&self) -> usize {
        self.unflushed.len()
    }

    /// The power fails: of each unit one of its unflushed versions survives (`percent` times in a
    /// hundred) or the durable one. Returns how many units lost something.
    pub fn lose_power(&mut self, chance: &Chance, percent: u32) -> u64 {
        let mut lost = 0;
        for (unit, versions) in std::mem::take(&mut self.unflushed) {
            let at = unit * self.unit as u64;
            if chance.percent(percent) {
                let survivor = chance.index(versions.len());
                lost += u64::from(survivor + 1 < versions.len());
                let version = &versions[survivor];
                let data = &version.data[version.from..version.from + self.unit];
                self.durable.write(at, data);
                self.visible.write(at, data);
            } else {
                lost += 1;
                let mut data = vec![0; self.unit];
                self.durable.read(at, &mut data);
                self.visible.write(at, &data);
            }
        }
        lost
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(value: u8) -> Rc<[u8]> {
        Rc::from(vec![value; 512])
    }

    fn answered(at: u64) -> Answered {
        Rc::new(Cell::new(at))
    }

    fn read(medium: &Medium, unit: u64) -> u8 {
        let mut out = [0; 512];
        medium.read(unit, &mut out);
        assert!(out.iter().all(|&byte| byte == out[0]), "a unit is written whole or not at all");
        out[0]
    }

    #[test]
    fn what_is_not_flushed_may_be_lost() {
        let mut medium = Medium::new(512, Before::Zeroes);
        medium.land(3, &bytes(1), 0, &answered(10));
        medium.flush(10);
        medium.land(3, &bytes(2), 0, &answered(20));
        assert_eq!(read(&medium, 3), 2);
        assert_eq!(medium.lose_power(&Chance::new(1), 0), 1);
        assert_eq!(read(&medium, 3), 1);
    }

    #[test]
    fn a_flush_covers_only_what_was_answered_before_it_was_called() {
        let mut medium = Medium::new(512, Before::Zeroes);
        medium.land(1, &bytes(1), 0, &answered(10));
        medium.land(1, &bytes(2), 0, &answered(30));
        medium.flush(20);
        assert_eq!(read(&medium, 1), 2);
        medium.lose_power(&Chance::new(1), 0);
        assert_eq!(read(&medium, 1), 1);
    }

    #[test]
    fn hardening_one_write_settles_all_older_ones() {
        let mut medium = Medium::new(512, Before::Zeroes);
        let (old, fua) = (answered(u64::MAX), answered(u64::MAX));
        medium.land(1, &bytes(1), 0, &old);
        medium.land(1, &bytes(2), 0, &fua);
        medium.harden(1, &fua);
        assert_eq!(medium.unflushed(), 0);
        medium.lose_power(&Chance::new(1), 50);
        assert_eq!(read(&medium, 1), 2);
    }

    #[test]
    fn each_unit_survives_on_its_own() {
        let mut medium = Medium::new(512, Before::Zeroes);
        let data: Rc<[u8]> = Rc::from(vec![7; 512 * 64]);
        for unit in 0..64_u32 {
            medium.land(unit.into(), &data, 512 * unit as usize, &answered(1));
        }
        medium.lose_power(&Chance::new(9), 50);
        let survived = (0..64).filter(|&unit| read(&medium, unit) == 7).count();
        assert!((10..54).contains(&survived), "{survived} of 64 survived");
    }

    #[test]
    fn a_used_disk_is_full_of_ghosts() {
        let medium = Medium::new(4096, Before::Ghosts(5));
        let (mut a, mut b) = ([0; 4096], [0; 4096]);
        medium.read(1, &mut a);
        medium.read(2, &mut b);
        assert_ne!(a, b);
        assert_ne!(a, [0; 4096]);
    }
}
