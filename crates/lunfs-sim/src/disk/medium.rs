//! What the simulated disk holds: what a read sees, what survives a power loss, and what lies
//! between.
//!
//! The unit is the logical block. A write that landed is *visible*. It becomes *durable* by FUA
//! or by a flush; until then it sits among the *unflushed* versions of its unit, and a power loss
//! leaves any one of them or the durable one, for each unit on its own. A medium that writes
//! through has no unflushed versions: what landed is durable.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::ops::Range;
use std::rc::Rc;

use crate::chance::{Chance, mix};

/// Bytes of a page.
const PAGE: usize = 4096;
/// Bytes that are looked at together for zeroes.
const LINE: usize = 64;
/// Pages that share one place in the table.
const CHUNK: usize = 256;
/// Different pages of what somebody else once stored; a prime, so that they do not line up with
/// anything of ours.
const GHOSTS: u64 = 31;

static ZEROES: [u8; PAGE] = [0; PAGE];

/// A page, and how much of it there is before the zeroes that it ends with. A slot of 4 KiB is a
/// record and zeroes, and every host reads all slots again and again.
#[derive(Clone, Debug)]
struct Page {
    bytes: [u8; PAGE],
    used: usize,
}

impl Page {
    fn new(bytes: [u8; PAGE]) -> Page {
        Page { used: used(&bytes), bytes }
    }

    fn write(&mut self, from: usize, data: &[u8]) {
        let end = from + data.len();
        self.bytes[from..end].copy_from_slice(data);
        if end >= self.used {
            self.used = used(&self.bytes[..end]);
        }
    }

    /// Some of it: what it holds, and the zeroes behind that.
    fn parts(&self, range: Range<usize>) -> [&[u8]; 2] {
        let middle = self.used.clamp(range.start, range.end);
        [&self.bytes[range.start..middle], &ZEROES[middle..range.end]]
    }
}

/// How many bytes there are before the zeroes at the end, to the next 64.
fn used(bytes: &[u8]) -> usize {
    let is_used = |line: &[u8]| line.iter().fold(0, |all, byte| all | byte) != 0;
    bytes.chunks(LINE).rposition(is_used).map_or(0, |last| (last + 1) * LINE)
}

/// What lies where nobody has written yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Before {
    /// A new disk: zeroes.
    Zeroes,
    /// A used one: what somebody else once stored there; nobody may ever read it through a file.
    Ghosts(u64),
}

impl Before {
    fn pages(self) -> Vec<Page> {
        match self {
            Before::Zeroes => vec![Page::new(ZEROES)],
            Before::Ghosts(seed) => (0..GHOSTS).map(|number| ghost(seed, number)).collect(),
        }
    }
}

fn ghost(seed: u64, number: u64) -> Page {
    let mut bytes = [0; PAGE];
    let start = mix(seed ^ mix(number));
    for (index, word) in bytes.chunks_exact_mut(8).enumerate() {
        word.copy_from_slice(&mix(start.wrapping_add(index as u64)).to_le_bytes());
    }
    Page::new(bytes)
}

/// Pages are shared between the medium and its snapshots until one of them is written.
#[derive(Clone, Debug)]
struct Pages {
    chunks: Vec<Option<Rc<Vec<Option<Rc<Page>>>>>>,
    before: Rc<Vec<Page>>,
}

impl Pages {
    fn new(before: Before) -> Pages {
        Pages { chunks: Vec::new(), before: Rc::new(before.pages()) }
    }

    fn page(&self, page: usize) -> &Page {
        let chunk = self.chunks.get(page / CHUNK).and_then(Option::as_ref);
        match chunk.and_then(|chunk| chunk[page % CHUNK].as_ref()) {
            Some(bytes) => bytes,
            None => &self.before[page % self.before.len()],
        }
    }

    fn page_mut(&mut self, page: usize) -> &mut Page {
        if self.chunks.len() <= page / CHUNK {
            self.chunks.resize(page / CHUNK + 1, None);
        }
        let chunk = self.chunks[page / CHUNK].get_or_insert_with(|| Rc::new(vec![None; CHUNK]));
        let before = &self.before;
        let bytes = Rc::make_mut(chunk)[page % CHUNK]
            .get_or_insert_with(|| Rc::new(before[page % before.len()].clone()));
        Rc::make_mut(bytes)
    }

    /// The bytes from `at` on, `len` of them, part by part.
    fn parts(&self, at: u64, len: usize) -> impl Iterator<Item = &[u8]> {
        let (at, end) = (index(at), index(at) + len);
        (at / PAGE..end.div_ceil(PAGE)).flat_map(move |page| {
            let start = page * PAGE;
            self.page(page).parts(at.max(start) - start..end.min(start + PAGE) - start)
        })
    }

    fn write(&mut self, at: u64, data: &[u8]) {
        self.page_mut(index(at) / PAGE).write(index(at) % PAGE, data);
    }
}

fn index(at: u64) -> usize {
    usize::try_from(at).unwrap_or(usize::MAX)
}

/// When the write that a version belongs to was answered; shared by all units of the write.
/// `u64::MAX`: not yet.
pub type Answered = Rc<Cell<u64>>;

/// Bytes of a write; a version is one unit of them.
pub type Bytes = Rc<Vec<u8>>;

#[derive(Clone, Debug)]
struct Version {
    data: Bytes,
    from: usize,
    answered: Answered,
}

/// What one unit may still become.
#[derive(Clone, Debug)]
struct Unflushed {
    durable: Rc<[u8]>,
    versions: Vec<Version>,
}

/// The medium with its volatile cache.
#[derive(Clone, Debug)]
pub struct Medium {
    unit: usize,
    writes_through: bool,
    visible: Pages,
    unflushed: BTreeMap<u64, Unflushed>,
}

impl Medium {
    /// An unwritten medium with logical blocks of `unit` bytes.
    pub fn new(unit: usize, before: Before, writes_through: bool) -> Medium {
        let visible = Pages::new(before);
        Medium { unit, writes_through, visible, unflushed: BTreeMap::new() }
    }

    fn offset(&self, unit: u64) -> u64 {
        unit * self.unit as u64
    }

    /// What a read of the units from `unit` on sees now.
    pub fn read(&self, unit: u64, out: &mut [u8]) {
        let mut done = 0;
        for part in self.visible.parts(self.offset(unit), out.len()) {
            out[done..done + part.len()].copy_from_slice(part);
            done += part.len();
        }
    }

    /// The same, as new bytes.
    pub fn bytes(&self, unit: u64, len: usize) -> Vec<u8> {
        self.range(self.offset(unit), len)
    }

    /// What lies at a byte offset, `len` bytes of it.
    pub fn range(&self, at: u64, len: usize) -> Vec<u8> {
        let mut out = Vec::with_capacity(len);
        for part in self.visible.parts(at, len) {
            out.extend_from_slice(part);
        }
        out
    }

    /// One unit as it is now.
    pub fn unit(&self, unit: u64) -> &[u8] {
        let at = index(self.offset(unit));
        &self.visible.page(at / PAGE).bytes[at % PAGE..at % PAGE + self.unit]
    }

    /// One unit of a write lands: visible, not yet durable.
    pub fn land(&mut self, unit: u64, data: &Bytes, from: usize, answered: &Answered) {
        let at = self.offset(unit);
        if !self.writes_through {
            let version = Version { data: Rc::clone(data), from, answered: Rc::clone(answered) };
            match self.unflushed.get_mut(&unit) {
                Some(known) => known.versions.push(version),
                None => {
                    let durable = Rc::from(self.unit(unit));
                    self.unflushed.insert(unit, Unflushed { durable, versions: vec![version] });
                }
            }
        }
        self.visible.write(at, &data[from..from + self.unit]);
    }

    /// Makes the newest version of `unit` that belongs to this write durable, if it still counts.
    pub fn harden(&mut self, unit: u64, write: &Answered) {
        let size = self.unit;
        if let Some(known) = self.unflushed.get_mut(&unit)
            && !known.promote(size, |version| Rc::ptr_eq(&version.answered, write))
        {
            self.unflushed.remove(&unit);
        }
    }

    /// A flush that was called at `called` ends: what was answered before then is durable.
    pub fn flush(&mut self, called: u64) {
        let size = self.unit;
        self.unflushed
            .retain(|_, known| known.promote(size, |version| version.answered.get() <= called));
    }

    /// Units that a power loss could change.
    pub fn unflushed(&self) -> usize {
        self.unflushed.len()
    }

    /// The power fails: of each unit one of its unflushed versions survives (`percent` times in a
    /// hundred) or the durable one. Returns how many units lost something.
    pub fn lose_power(&mut self, chance: &Chance, percent: u32) -> u64 {
        let mut lost = 0;
        for (unit, Unflushed { durable, versions }) in std::mem::take(&mut self.unflushed) {
            let at = self.offset(unit);
            if chance.percent(percent) {
                let survivor = chance.index(versions.len());
                lost += u64::from(survivor + 1 < versions.len());
                let version = &versions[survivor];
                let data = &version.data[version.from..version.from + self.unit];
                self.visible.write(at, data);
            } else {
                lost += 1;
                self.visible.write(at, &durable);
            }
        }
        lost
    }
}

impl Unflushed {
    /// Makes the newest version that counts durable; `false`: nothing is left that is not.
    fn promote(&mut self, unit: usize, counts: impl Fn(&Version) -> bool) -> bool {
        let Some(newest) = self.versions.iter().rposition(counts) else { return true };
        if newest + 1 == self.versions.len() {
            return false;
        }
        let version = &self.versions[newest];
        self.durable = Rc::from(&version.data[version.from..version.from + unit]);
        self.versions.drain(..=newest);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(value: u8) -> Bytes {
        Rc::new(vec![value; 512])
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
        let mut medium = Medium::new(512, Before::Zeroes, false);
        medium.land(3, &bytes(1), 0, &answered(10));
        medium.flush(10);
        medium.land(3, &bytes(2), 0, &answered(20));
        assert_eq!(read(&medium, 3), 2);
        assert_eq!(medium.lose_power(&Chance::new(1), 0), 1);
        assert_eq!(read(&medium, 3), 1);
    }

    #[test]
    fn a_flush_covers_only_what_was_answered_before_it_was_called() {
        let mut medium = Medium::new(512, Before::Zeroes, false);
        medium.land(1, &bytes(1), 0, &answered(10));
        medium.land(1, &bytes(2), 0, &answered(30));
        medium.flush(20);
        assert_eq!(read(&medium, 1), 2);
        medium.lose_power(&Chance::new(1), 0);
        assert_eq!(read(&medium, 1), 1);
    }

    #[test]
    fn hardening_one_write_settles_all_older_ones() {
        let mut medium = Medium::new(512, Before::Zeroes, false);
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
        let mut medium = Medium::new(512, Before::Zeroes, false);
        let data: Bytes = Rc::new(vec![7; 512 * 64]);
        for unit in 0..64_u32 {
            medium.land(unit.into(), &data, 512 * unit as usize, &answered(1));
        }
        medium.lose_power(&Chance::new(9), 50);
        let survived = (0..64).filter(|&unit| read(&medium, unit) == 7).count();
        assert!((10..54).contains(&survived), "{survived} of 64 survived");
    }

    #[test]
    fn zeroes_at_the_end_of_a_page_are_read_like_all_bytes() {
        let mut medium = Medium::new(512, Before::Ghosts(5), true);
        for (unit, value) in [(7, 0), (3, 1), (7, 2), (7, 0), (6, 0), (5, 0), (3, 0), (4, 3)] {
            medium.land(unit, &bytes(value), 0, &answered(1));
            assert_eq!(read(&medium, unit), value);
            let whole = medium.bytes(0, 4096);
            assert!((0..8).all(|unit| medium.unit(unit) == &whole[unit as usize * 512..][..512]));
        }
    }

    #[test]
    fn a_used_disk_is_full_of_ghosts() {
        let medium = Medium::new(4096, Before::Ghosts(5), false);
        let (mut a, mut b) = ([0; 4096], [0; 4096]);
        medium.read(1, &mut a);
        medium.read(2, &mut b);
        assert_ne!(a, b);
        assert_ne!(a, [0; 4096]);
    }
}
