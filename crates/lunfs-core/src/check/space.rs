//! R12: every block in use is referenced exactly once, and the bitmaps say the same.

use std::collections::BTreeMap;

use lunfs_format::{Bitmap, BlockNo, Cluster};

use super::claim::{Basis, Claims};
use super::clusters::{Clusters, FIXED, Use};
use super::media::Media;
use super::walk::Walk;

/// Leaked runs that a finding names.
const RUNS_NAMED: usize = 8;

/// What a block is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// Lock and body of a descriptor.
    Descriptor,
    /// A node of a tree.
    Node,
    /// Contents of a file.
    Contents,
    /// A run that waits in an orphan directory to be freed.
    FreedRun,
}

impl Purpose {
    /// How to say it.
    pub fn name(self) -> &'static str {
        match self {
            Purpose::Descriptor => "the descriptor",
            Purpose::Node => "a tree node",
            Purpose::Contents => "contents",
            Purpose::FreedRun => "a freed run",
        }
    }
}

/// Blocks that something refers to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Reference {
    pub start: BlockNo,
    pub len: u64,
    /// The lock that covers the reference.
    pub owner: BlockNo,
    pub purpose: Purpose,
}

impl Reference {
    fn end(&self) -> u64 {
        self.start.0 + self.len
    }
}

/// All references, none over another.
#[derive(Default)]
pub(super) struct References {
    runs: BTreeMap<u64, Reference>,
    /// Blocks referenced.
    pub blocks: u64,
}

impl References {
    /// Adds blocks within one cluster; returns those parts of it that are referenced already.
    pub fn add(&mut self, new: Reference) -> Vec<Reference> {
        let before = self.runs.range(..=new.start.0).next_back().map(|(_, run)| *run);
        let before = before.filter(|run| run.end() > new.start.0);
        let inside = self.runs.range(new.start.0 + 1..new.end().max(new.start.0 + 1));
        let over: Vec<Reference> = before.into_iter().chain(inside.map(|(_, run)| *run)).collect();
        let mut clashes = Vec::new();
        let mut free_from = new.start.0;
        for old in over {
            let (start, end) = (old.start.0.max(new.start.0), old.end().min(new.end()));
            clashes.push(Reference { start: BlockNo(start), len: end - start, ..old });
            self.insert(free_from, start, new);
            free_from = end;
        }
        self.insert(free_from, new.end(), new);
        clashes
    }

    fn insert(&mut self, start: u64, end: u64, new: Reference) {
        let Some(len) = end.checked_sub(start).filter(|len| *len > 0) else { return };
        self.blocks += len;
        if let Some((_, before)) = self.runs.range_mut(..start).next_back()
            && before.end() == start
            && (before.owner, before.purpose) == (new.owner, new.purpose)
        {
            before.len += len;
            return;
        }
        self.runs.insert(start, Reference { start: BlockNo(start), len, ..new });
    }

    fn within(&self, start: BlockNo, end: BlockNo) -> impl Iterator<Item = &Reference> {
        self.runs.range(start.0..end.0).map(|(_, run)| run)
    }
}

/// Blocks of the initialised clusters, as their bitmaps say.
#[derive(Default)]
pub(super) struct Counted {
    pub used: u64,
    pub free: u64,
    /// Of those in use the ones that something must refer to: no lock, no header, no journal.
    pub allocated: u64,
}

/// Counts the blocks of the initialised clusters.
pub(super) fn count(media: &Media<'_>, clusters: &Clusters) -> Counted {
    let per_cluster = u64::from(media.geometry.cluster_blocks);
    let mut counted = Counted::default();
    for cluster in &clusters.uses {
        match cluster {
            Use::Files(bitmap) => {
                let free = u64::from(bitmap.count_free());
                counted.free += free;
                counted.used += per_cluster - free;
                counted.allocated += per_cluster - free - FIXED;
            }
            Use::Journal => counted.used += per_cluster,
            Use::Unknown => {}
        }
    }
    counted
}

/// A cluster whose bitmap says something else than what refers to its blocks.
pub(super) struct Mismatch {
    pub cluster: u64,
    pub says: Bitmap,
    pub wanted: Bitmap,
}

/// All of them, after a walk on a volume at rest.
pub(super) fn mismatches<'w>(walk: &'w Walk<'_, '_>) -> impl Iterator<Item = Mismatch> + 'w {
    let geometry = walk.media.geometry;
    (0u64..).zip(&walk.clusters.uses).filter_map(move |(cluster, cluster_use)| {
        let Use::Files(says) = cluster_use else { return None };
        let (first, end) = (geometry.cluster_start(cluster), geometry.cluster_start(cluster + 1));
        let mut wanted = Cluster::new(cluster, geometry.cluster_blocks).bitmap;
        for run in walk.references.within(first, end) {
            wanted.set_run(offset_in(first, run.start.0), offset_in(run.start, run.end()), true);
        }
        (wanted != *says).then(|| Mismatch { cluster, says: says.clone(), wanted })
    })
}

/// Compares the references with the bitmaps, after a walk on a volume at rest.
pub(super) fn compare(walk: &Walk<'_, '_>, claims: &mut Claims) {
    let geometry = walk.media.geometry;
    let mut leaked = Leaked::default();
    for Mismatch { cluster, says, wanted } in mismatches(walk) {
        let (first, end) = (geometry.cluster_start(cluster), geometry.cluster_start(cluster + 1));
        for run in walk.references.within(first, end) {
            let missing = (run.start.0..run.end()).filter(|at| !says.get(offset_in(first, *at)));
            for (start, len) in merged(missing) {
                let (blocks, purpose) = (blocks(start, len), run.purpose.name());
                let what = format!(
                    "{blocks}, {purpose} of {}, is free in the bitmap of cluster {cluster}: it \
                     will be handed out again and overwritten; do not mount the volume before \
                     `lunfs check --repair`",
                    walk.path(run.owner),
                );
                claims.error(BlockNo(start), Basis::Volume, what);
            }
        }
        let lost = (0..geometry.cluster_blocks).filter(|i| says.get(*i) && !wanted.get(*i));
        leaked.add(merged(lost.map(|i| first.0 + u64::from(i))));
    }
    leaked.report(walk.is_partial, claims);
}

/// Blocks in use that nothing refers to.
#[derive(Default)]
struct Leaked {
    blocks: u64,
    runs: u64,
    first: Vec<(u64, u64)>,
}

impl Leaked {
    fn add(&mut self, runs: Vec<(u64, u64)>) {
        for (start, len) in runs {
            self.blocks += len;
            self.runs += 1;
            if self.first.len() < RUNS_NAMED {
                self.first.push((start, len));
            }
        }
    }

    fn report(&self, is_partial: bool, claims: &mut Claims) {
        let Some((start, _)) = self.first.first() else { return };
        let named: Vec<String> =
            self.first.iter().map(|(start, len)| blocks(*start, *len)).collect();
        let more = match self.runs - self.first.len() as u64 {
            0 => String::new(),
            more => format!(" and {more} more runs"),
        };
        let why = if is_partial { "; what is damaged above may refer to them" } else { "" };
        claims.error(
            BlockNo(*start),
            Basis::Volume,
            format!(
                "leaked: {} blocks are in use but nothing refers to them: {}{more}; no data is in \
                 danger, the space is lost{why}",
                self.blocks,
                named.join(", "),
            ),
        );
    }
}

/// Runs of consecutive numbers: first and count.
fn merged(numbers: impl Iterator<Item = u64>) -> Vec<(u64, u64)> {
    let mut runs: Vec<(u64, u64)> = Vec::new();
    for number in numbers {
        match runs.last_mut() {
            Some((start, len)) if *start + *len == number => *len += 1,
            _ => runs.push((number, 1)),
        }
    }
    runs
}

/// Names a run of blocks.
pub(super) fn blocks(start: u64, len: u64) -> String {
    match len {
        1 => format!("block {start}"),
        _ => format!("blocks {start} to {}", start.saturating_add(len.saturating_sub(1))),
    }
}

fn offset_in(first: BlockNo, at: u64) -> u32 {
    u32::try_from(at - first.0).expect("a run ends within its cluster")
}
