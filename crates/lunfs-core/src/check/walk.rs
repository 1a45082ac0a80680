//! The walk from the root and the orphan directories: what there is, how it was reached, and what
//! it refers to.
//!
//! Invariant: an object enters the queue once, when something first refers to it.

use std::collections::{BTreeMap, VecDeque};

use futures_util::future::join_all;
use lunfs_format::{BlockNo, FRONTIER_LOCK, FileKind, Lock, SlotNo};

use super::claim::{Basis, Claims};
use super::clusters::Clusters;
use super::content::shown;
use super::layers::Layers;
use super::media::{Media, PARALLEL};
use super::rules;
use super::space::{Purpose, Reference, References, blocks};
use crate::error::Result;

/// Names of a path that are shown.
const NAMES_SHOWN: usize = 64;

/// How an object was first reached.
pub(super) enum Place {
    Root,
    OrphanDirectory(SlotNo),
    Name {
        directory: BlockNo,
        name: Vec<u8>,
    },
    Orphan {
        directory: BlockNo,
    },
    /// The top of a disk, or below a layer.
    Layer {
        above: BlockNo,
    },
}

/// What was reached at one lock.
pub(super) struct Object {
    pub place: Place,
    /// Its birth, as what first led to it says.
    pub birth: Option<u64>,
    /// Its kind, as its first name says.
    pub kind: Option<FileKind>,
    /// Names found.
    pub names: u64,
    /// Links that its body counts, of anything with names but directories.
    pub nlink: Option<u32>,
}

/// Objects counted.
#[derive(Default)]
pub(super) struct Tally {
    pub files: u64,
    pub directories: u64,
    pub symlinks: u64,
    pub others: u64,
    pub orphans: u64,
}

/// A walk and all that it collects.
pub(super) struct Walk<'a, 'd> {
    pub media: &'a Media<'d>,
    pub clusters: &'a Clusters,
    pub claims: Claims,
    pub objects: BTreeMap<BlockNo, Object>,
    /// Locks as first read.
    pub locks: BTreeMap<BlockNo, Option<Lock>>,
    pub references: References,
    /// Who refers to each layer, and what it says about that.
    pub layers: Layers,
    pub tally: Tally,
    /// Damage hid something that may refer to blocks.
    pub is_partial: bool,
    queue: VecDeque<BlockNo>,
}

impl<'a, 'd> Walk<'a, 'd> {
    /// A walk that has not begun, with what was found before it.
    pub fn new(media: &'a Media<'d>, clusters: &'a Clusters, claims: Claims) -> Walk<'a, 'd> {
        Walk {
            media,
            clusters,
            claims,
            objects: BTreeMap::new(),
            locks: clusters.locks.clone(),
            references: References::default(),
            layers: Layers::default(),
            tally: Tally::default(),
            is_partial: false,
            queue: VecDeque::new(),
        }
    }

    /// Walks everything. `progress` is called with the blocks accounted for.
    pub async fn run(&mut self, progress: impl Fn(u64)) -> Result<()> {
        let root = &self.media.superblock;
        self.reach(root.root, Some(root.root_birth), Some(FileKind::Directory), Place::Root);
        let begun = self.clusters.journals.iter().filter(|journal| journal.has_begun);
        for journal in begun {
            // It lies in a journal, where no bitmap counts it.
            let place = Place::OrphanDirectory(journal.slot);
            self.enter(journal.orphans(), None, Some(FileKind::Directory), place);
        }
        while !self.queue.is_empty() {
            let batch: Vec<BlockNo> = self.queue.drain(..PARALLEL.min(self.queue.len())).collect();
            let reads = batch.iter().map(|at| self.media.pair(*at));
            for (at, pair) in batch.iter().zip(join_all(reads).await) {
                self.examine(*at, &pair?).await?;
            }
            progress(self.references.blocks);
        }
        Ok(())
    }

    /// Something refers to an object.
    pub fn reach(&mut self, at: BlockNo, birth: Option<u64>, kind: Option<FileKind>, place: Place) {
        if self.objects.contains_key(&at) {
            self.reach_again(at, birth, kind, &place);
            return;
        }
        let reference = Reference { start: at, len: 2, owner: at, purpose: Purpose::Descriptor };
        if let Some(why) = self.clusters.fault_of_place(self.media, at, 2) {
            let what = format!("{} refers to block {at}: {why}", self.path_of(&place));
            self.misplaced(at, lock_of(&place), &what);
            return;
        }
        self.enter(at, birth, kind, place);
        self.add(reference);
    }

    fn enter(&mut self, at: BlockNo, birth: Option<u64>, kind: Option<FileKind>, place: Place) {
        let names = u64::from(matches!(place, Place::Name { .. }));
        self.objects.insert(at, Object { place, birth, kind, names, nlink: None });
        self.queue.push_back(at);
    }

    fn reach_again(
        &mut self,
        at: BlockNo,
        birth: Option<u64>,
        kind: Option<FileKind>,
        place: &Place,
    ) {
        let (here, before) = (self.path_of(place), self.path(at));
        let Some(object) = self.objects.get_mut(&at) else { return };
        let mut locks: Vec<BlockNo> =
            [lock_of(&object.place), lock_of(place)].into_iter().flatten().collect();
        locks.dedup();
        let is_directory = [kind, object.kind].contains(&Some(FileKind::Directory));
        let what = match (&object.place, place) {
            (Place::Name { .. }, Place::Name { .. }) => {
                object.names += 1;
                if is_directory {
                    Some(format!("the directory {before} has a second name, {here}"))
                } else if (object.birth, object.kind) != (birth, kind) {
                    Some(format!("{before} and {here} lead to one file but disagree about it"))
                } else {
                    None
                }
            }
            (Place::Layer { .. }, Place::Layer { .. }) if object.birth == birth => None,
            (Place::Layer { .. }, Place::Layer { .. }) => {
                Some(format!("{before} is referred to as a layer of two births"))
            }
            (Place::OrphanDirectory(_), _) => {
                Some(format!("{here} leads to {before}, which must not have a name"))
            }
            (Place::Orphan { .. }, Place::Orphan { .. }) => {
                Some(format!("{before} is listed as an orphan twice: it will be freed twice"))
            }
            (Place::Orphan { .. }, _) => {
                Some(format!("{here} is listed as an orphan: it will be freed under its name"))
            }
            (_, Place::Orphan { .. }) => {
                Some(format!("{before} is listed as an orphan: it will be freed under its name"))
            }
            _ => Some(format!("{here} is the same as {before}: directories make a circle")),
        };
        if let Some(what) = what {
            self.claims.error(at, Basis::Locks(locks), what);
        }
    }

    /// Something refers to blocks that are no descriptor.
    pub fn refer(&mut self, new: Reference) {
        if let Some(why) = self.clusters.fault_of_place(self.media, new.start, new.len) {
            let (path, purpose) = (self.path(new.owner), new.purpose.name());
            let what = format!("{path} has {purpose} at {}: {why}", blocks(new.start.0, new.len));
            self.misplaced(new.start, Some(new.owner), &what);
            return;
        }
        self.add(new);
    }

    /// A reference to where nothing can be. It may also be our picture of the clusters that is old.
    fn misplaced(&mut self, at: BlockNo, owner: Option<BlockNo>, what: &str) {
        let geometry = &self.media.geometry;
        let cluster = geometry.cluster_of(at).map(|index| geometry.cluster_start(index));
        let cluster = cluster.filter(|lock| self.locks.contains_key(lock));
        let locks = owner.into_iter().chain(cluster).chain([FRONTIER_LOCK]).collect();
        self.claims.error(at, Basis::Locks(locks), format!("{what}; it was not followed"));
        self.is_partial = true;
    }

    fn add(&mut self, new: Reference) {
        for old in self.references.add(new) {
            let say = |r: &Reference| format!("{} of {}", r.purpose.name(), self.path(r.owner));
            let what = format!(
                "{} are used twice, as {} and as {}: whoever writes one destroys the other",
                blocks(old.start.0, old.len),
                say(&old),
                say(&new),
            );
            let locks = [self.basis_of(&old), self.basis_of(&new)].into_iter().flatten().collect();
            self.claims.error(old.start, Basis::Locks(locks), what);
        }
    }

    /// The lock that covers what says that there is such a reference.
    fn basis_of(&self, reference: &Reference) -> Option<BlockNo> {
        match reference.purpose {
            Purpose::Descriptor => lock_of(&self.objects.get(&reference.owner)?.place),
            Purpose::Node | Purpose::Contents | Purpose::FreedRun => Some(reference.owner),
        }
    }

    /// Reports what is wrong with an object. What is wrong with how it was reached also rests on
    /// what led to it.
    pub fn error(&mut self, at: BlockNo, object: BlockNo, what: &str) {
        let place = self.objects.get(&object).and_then(|object| lock_of(&object.place));
        let locks = [object].into_iter().chain(place).collect();
        let what = format!("{}: {what}", self.path(object));
        self.claims.error(at, Basis::Locks(locks), what);
    }

    /// Reports all files whose names are not as many as their links.
    pub fn judge_links(&mut self) {
        let faults: Vec<(BlockNo, String)> = self
            .objects
            .iter()
            .filter_map(|(at, object)| {
                let links = u64::from(object.nlink?);
                Some((*at, rules::count("links", links, object.names)?))
            })
            .collect();
        for (at, fault) in faults {
            let what = format!("{}: {fault}", self.path(at));
            self.claims.error(at.plus(1), Basis::Volume, what);
        }
    }

    /// The path of an object, by the names that first led to it.
    pub fn path(&self, at: BlockNo) -> String {
        match self.objects.get(&at) {
            Some(object) => match object.place {
                Place::Orphan { .. } => format!("the orphan {at}"),
                _ => self.path_of(&object.place),
            },
            None => format!("the object {at}"),
        }
    }

    fn path_of(&self, place: &Place) -> String {
        let mut names = Vec::new();
        let mut place = place;
        for _ in 0..NAMES_SHOWN {
            match place {
                Place::Name { directory, name } => {
                    names.push(shown(name));
                    match self.objects.get(directory) {
                        Some(object) => place = &object.place,
                        None => break,
                    }
                }
                Place::Root => return format!("/{}", joined(&names)),
                Place::OrphanDirectory(slot) => {
                    return format!("the orphan directory of slot {slot}");
                }
                Place::Orphan { directory } => return self.path(*directory),
                Place::Layer { above } => return format!("a layer of {}", self.path(*above)),
            }
        }
        format!(".../{}", joined(&names))
    }
}

/// The lock that covers what led to an object.
fn lock_of(place: &Place) -> Option<BlockNo> {
    match place {
        Place::Root | Place::OrphanDirectory(_) => None,
        Place::Name { directory, .. } | Place::Orphan { directory } => Some(*directory),
        Place::Layer { above } => Some(*above),
    }
}

fn joined(names: &[String]) -> String {
    let names: Vec<&str> = names.iter().rev().map(String::as_str).collect();
    names.join("/")
}
