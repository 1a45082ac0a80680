//! What snapshots of disks must hold, and which there may be.

use std::collections::BTreeMap;
use std::rc::Rc;

use super::content::BLOCK;
use super::register::Deaths;
use crate::executor::Owner;

/// A file as it was at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Frozen {
    /// Bytes.
    pub size: u64,
    /// Blocks; those that are not there are zero.
    pub blocks: BTreeMap<u64, Rc<[u8]>>,
}

impl Frozen {
    /// Its bytes from `at` on, at most `len`.
    pub fn bytes(&self, at: u64, len: usize) -> Vec<u8> {
        let end = self.size.min(at.saturating_add(len as u64));
        let block = BLOCK as u64;
        let byte = |place: u64| {
            let found = self.blocks.get(&(place / block));
            found.map_or(0, |bytes| bytes[usize::try_from(place % block).unwrap_or(0)])
        };
        (at..end).map(byte).collect()
    }
}

/// What is known of a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// It is there, and stays.
    Sure,
    /// Making or deleting it ended in doubt.
    Doubt,
    /// This program deleted it: that may be lost with it.
    Deleted(Owner),
}

/// All snapshots, by the number of the disk and their names.
#[derive(Debug, Default)]
pub struct Snapshots(BTreeMap<(u64, String), (Rc<Frozen>, Fate)>);

impl Snapshots {
    /// It is to be made; nobody knows yet whether it was.
    pub fn begin(&mut self, disk: u64, name: &str, frozen: &Rc<Frozen>) {
        self.0.insert((disk, name.to_owned()), (frozen.clone(), Fate::Doubt));
    }

    /// It was made.
    pub fn made(&mut self, disk: u64, name: &str) {
        self.set(disk, name, Fate::Sure);
    }

    /// It is to be deleted.
    pub fn begin_deletion(&mut self, disk: u64, name: &str) {
        self.set(disk, name, Fate::Doubt);
    }

    /// It was deleted.
    pub fn deleted(&mut self, disk: u64, name: &str, by: Owner) {
        self.set(disk, name, Fate::Deleted(by));
    }

    fn set(&mut self, disk: u64, name: &str, fate: Fate) {
        if let Some((_, known)) = self.0.get_mut(&(disk, name.to_owned())) {
            *known = fate;
        }
    }

    /// A disk was found to have these.
    pub fn check(&mut self, disk: u64, found: &[String], dead: &dyn Deaths) -> Result<(), String> {
        for name in found {
            match self.0.get_mut(&(disk, name.clone())) {
                None => return Err(format!("disk {disk} has a snapshot {name} nobody made")),
                Some((_, Fate::Deleted(by))) if dead.died(*by).is_none() => {
                    return Err(format!("snapshot {name} of disk {disk} was deleted"));
                }
                Some((_, fate)) => *fate = Fate::Sure,
            }
        }
        let mut lost = None;
        self.0.retain(|(of, name), (_, fate)| {
            let is_missing = *of == disk && !found.contains(name);
            if is_missing && *fate == Fate::Sure {
                lost = Some(name.clone());
            }
            let may_return = matches!(fate, Fate::Deleted(by) if dead.died(*by).is_none());
            !is_missing || may_return
        });
        lost.map_or(Ok(()), |name| Err(format!("snapshot {name} of disk {disk} is lost")))
    }

    /// Those that are surely there.
    pub fn sure(&self, disk: u64) -> Vec<(String, Rc<Frozen>)> {
        let of_disk = self.0.range((disk, String::new())..(disk + 1, String::new()));
        let sure = of_disk.filter(|(_, (_, fate))| *fate == Fate::Sure);
        sure.map(|((_, name), (frozen, _))| (name.clone(), frozen.clone())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Nobody;

    impl Deaths for Nobody {
        fn died(&self, _: Owner) -> Option<u64> {
            None
        }
        fn oldest_look(&self) -> u64 {
            u64::MAX
        }
    }

    #[test]
    fn what_was_made_must_be_there_and_what_nobody_made_must_not() {
        let mut snapshots = Snapshots::default();
        let found = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>();
        snapshots.begin(1, "a", &Rc::default());
        assert!(snapshots.check(1, &found(&[]), &Nobody).is_ok(), "it was in doubt");
        assert!(snapshots.check(1, &found(&["a"]), &Nobody).is_err(), "it was settled");
        snapshots.begin(1, "a", &Rc::default());
        snapshots.made(1, "a");
        assert!(snapshots.check(1, &found(&["a"]), &Nobody).is_ok());
        assert!(snapshots.check(1, &found(&["a", "b"]), &Nobody).is_err());
        assert!(snapshots.check(1, &found(&[]), &Nobody).is_err());
    }

    #[test]
    fn a_frozen_file_reads_zero_where_it_has_no_block() {
        let block: Rc<[u8]> = vec![7; BLOCK].into();
        let frozen = Frozen { size: 2 * BLOCK as u64 - 1, blocks: [(1, block)].into() };
        assert_eq!(frozen.bytes(BLOCK as u64 - 1, 2), [0, 7]);
        assert_eq!(frozen.bytes(BLOCK as u64, 2 * BLOCK).len(), BLOCK - 1);
    }
}
