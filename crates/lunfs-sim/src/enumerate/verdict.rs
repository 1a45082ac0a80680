//! Is what a survivor sees something that it may see?
//!
//! Names, links and extended attributes are as after one of the steps, and not before the last one
//! that was made durable. Permissions, size and each logical block of the contents of a file are
//! each as after some step, and not before the last one that was made durable for that file
//! (docs/semantics.md); a file that is cut may have lost a part of its whole file blocks. Nothing
//! is ever anything else.

use std::collections::BTreeMap;
use std::rc::Rc;

use super::model::{Node, Number, Tree};
use super::recorder::UNIT;
use super::seen::{Face, Seen, hash, unit};
use super::step::Step;

/// Bytes of a file block.
const FILE_BLOCK: u64 = 256 << 10;

/// What was reached when a crash came.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Limits {
    /// Names are as after this step or a later one.
    names: usize,
    /// Files are as after this step or a later one.
    files: BTreeMap<Number, usize>,
    /// The last step that has begun.
    begun: usize,
}

/// The volume after each step; the first one is before all of them.
pub struct History {
    steps: Vec<Step>,
    trees: Vec<Tree>,
    succeeds: Vec<bool>,
}

impl History {
    /// What these steps make of a volume.
    pub fn new(start: Tree, steps: &[Step]) -> History {
        let (mut trees, mut succeeds) = (vec![start], Vec::new());
        for step in steps {
            let mut next = trees[trees.len() - 1].clone();
            succeeds.push(next.act(step));
            trees.push(next);
        }
        History { steps: steps.to_vec(), trees, succeeds }
    }

    /// Must this step succeed?
    pub fn succeeds(&self, step: usize) -> bool {
        self.succeeds[step]
    }

    /// Step `index` has begun.
    pub fn begin(&self, limits: &mut Limits, index: usize) {
        limits.begun = index + 1;
    }

    /// Step `index` was answered: what does that promise?
    pub fn end(&self, limits: &mut Limits, index: usize) {
        let now = &self.trees[index + 1];
        let step = match &self.steps[index] {
            Step::Peer(step) => step,
            step => step,
        };
        match step {
            Step::Fsync(path) if self.succeeds[index] => {
                limits.names = index + 1;
                limits.files.extend(now.find(path).map(|number| (number, index + 1)));
            }
            Step::Sync | Step::Unmount => {
                limits.names = index + 1;
                limits.files.extend(now.nodes.keys().map(|number| (*number, index + 1)));
            }
            // What is in a snapshot or under it is durable with it.
            Step::Snapshot(path, _) | Step::Clone { from: path, snapshot: None, .. }
                if self.succeeds[index] =>
            {
                let step = if matches!(step, Step::Snapshot(..)) { index + 1 } else { index };
                limits.names = limits.names.max(step);
                limits.files.extend(now.find(path).map(|number| (number, index + 1)));
            }
            // A lock moves after all under it is in place and flushed (R6).
            Step::PeerLooks => limits.names = index + 1,
            _ => {}
        }
    }

    /// Why this may not be seen; `None`: it may.
    pub fn refuse(&self, limits: &Limits, seen: &Seen) -> Option<String> {
        let mut why = String::new();
        for index in (limits.names..=limits.begun).rev() {
            why = match self.differs(limits, index, seen) {
                None => return None,
                Some(difference) => format!("{why}\n      not as after step {index}: {difference}"),
            };
        }
        Some(why)
    }

    fn differs(&self, limits: &Limits, index: usize, seen: &Seen) -> Option<String> {
        let tree = &self.trees[index];
        let least = least_names(tree);
        let paths: Vec<&String> = seen.0.iter().map(|(path, ..)| path).collect();
        if !paths.iter().copied().eq(tree.names.keys()) {
            let other = paths.iter().find(|path| !tree.names.contains_key(**path));
            let missing = tree.names.keys().find(|path| !paths.contains(path));
            return Some(format!("{other:?} is there, {missing:?} is not"));
        }
        for (path, same, face) in &seen.0 {
            let number = tree.names[path];
            let node = &tree.nodes[&number];
            let links = tree.links(path, number);
            let fixed = (face.kind, face.owner, face.rdev, face.nlink, &face.xattrs);
            let wanted = (node.kind as u8, node.owner, node.rdev, links, &node.xattrs);
            if fixed != wanted {
                return Some(format!("{path:?} is {fixed:?} instead of {wanted:?}"));
            }
            let hashed = |(name, content): (&String, &Rc<Vec<u8>>)| (name.clone(), hash(content));
            let snapshots: BTreeMap<String, u64> = node.snapshots.iter().map(hashed).collect();
            if face.snapshots != snapshots {
                let found: Vec<&String> = face.snapshots.keys().collect();
                return Some(format!("{path:?} has other snapshots, or others in them: {found:?}"));
            }
            if same != least[&number] {
                return Some(format!("{path:?} and {same:?} are one file"));
            }
            if let Some(what) = self.loose(limits, number, face) {
                return Some(format!("{path:?}: {what}"));
            }
        }
        None
    }

    /// Whatever may be written back later than it was asked for.
    fn loose(&self, limits: &Limits, number: Number, face: &Face) -> Option<String> {
        let first = limits.files.get(&number).copied().unwrap_or(0);
        let versions: Vec<&Node> =
            self.trees[first..=limits.begun].iter().filter_map(|t| t.nodes.get(&number)).collect();
        if !versions.iter().any(|node| node.mode == face.mode) {
            return Some(format!("permissions {:o}", face.mode));
        }
        let sizes: Vec<u64> = versions.iter().map(|node| node.content.len() as u64).collect();
        if !sizes.contains(&face.size) && !is_between(&sizes, face.size) {
            return Some(format!("size {}", face.size));
        }
        let size = usize::try_from(face.size).unwrap_or(usize::MAX);
        for (index, found) in face.units.iter().enumerate() {
            let of = |node: &&Node| {
                let whole = &node.content[..node.content.len().min(size)];
                let from = (index * UNIT).min(whole.len());
                unit(&whole[from..whole.len().min(from + UNIT)])
            };
            if !versions.iter().any(|node| of(node) == *found) {
                return Some(format!("bytes from {} on are of no version", index * UNIT));
            }
        }
        None
    }
}

/// A file that is cut loses its blocks from the end, some in each transaction.
fn is_between(sizes: &[u64], size: u64) -> bool {
    let is_cut = |pair: &[u64]| pair[1] < size && size < pair[0];
    size.is_multiple_of(FILE_BLOCK) && sizes.windows(2).any(is_cut)
}

fn least_names(tree: &Tree) -> BTreeMap<Number, &String> {
    let mut least = BTreeMap::new();
    for (path, number) in &tree.names {
        least.entry(*number).or_insert(path);
    }
    least
}
