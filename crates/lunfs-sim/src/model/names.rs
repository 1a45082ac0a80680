//! What the names of one worker may be.
//!
//! A worker changes only names of its own, one operation after the other. A host's changes of names
//! survive its death up to some point and not beyond it, so after a death the names must be as
//! they were after one of the worker's operations, none of them older than what was made durable.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

/// What a name stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodeKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link with its target.
    Symlink(Vec<u8>),
}

/// What a name stands for, with its number in the model: links share it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Number in the model.
    pub number: u64,
    /// What it is.
    pub kind: NodeKind,
}

/// Extended attributes of one file.
pub type Attributes = BTreeMap<Vec<u8>, Vec<u8>>;

/// All names of one worker. Paths start with the name of one of its two places: `p` is its
/// private directory, `s` the directory that all share.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tree {
    /// Paths and what they stand for.
    pub nodes: BTreeMap<String, Node>,
    /// Extended attributes by number.
    pub attributes: BTreeMap<u64, Attributes>,
}

/// The directory part of a path.
pub fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(parent, _)| parent)
}

/// The last part of a path.
pub fn name(path: &str) -> &str {
    path.rsplit_once('/').map_or(path, |(_, name)| name)
}

impl Tree {
    /// Names of a directory, without deeper ones.
    pub fn children<'a>(
        &'a self,
        directory: &'a str,
    ) -> impl Iterator<Item = (&'a String, &'a Node)> {
        self.nodes.iter().filter(move |(path, _)| parent(path) == directory)
    }

    /// Paths at `path` and below.
    fn subtree(&self, path: &str) -> Vec<String> {
        let below = format!("{path}/");
        let inside = |known: &&String| *known == path || known.starts_with(&below);
        self.nodes.keys().filter(inside).cloned().collect()
    }

    /// Moves `from` with all below it to `to`, replacing what is there.
    pub fn rename(&mut self, from: &str, to: &str) {
        let moved: Vec<(String, Node)> = self
            .subtree(from)
            .into_iter()
            .filter_map(|path| {
                let node = self.nodes.remove(&path)?;
                Some((format!("{to}{}", &path[from.len()..]), node))
            })
            .collect();
        self.nodes.remove(to);
        self.nodes.extend(moved);
        self.forget_unnamed();
    }

    /// Lets two names change places.
    pub fn exchange(&mut self, one: &str, other: &str) {
        let aside = "\u{1}";
        self.rename(one, aside);
        self.rename(other, one);
        self.rename(aside, other);
    }

    /// Removes a name.
    pub fn remove(&mut self, path: &str) {
        self.nodes.remove(path);
        self.forget_unnamed();
    }

    fn forget_unnamed(&mut self) {
        let numbers: BTreeSet<u64> = self.nodes.values().map(|node| node.number).collect();
        self.attributes.retain(|number, _| numbers.contains(number));
    }

    /// Names of one file.
    pub fn links(&self, number: u64) -> usize {
        self.nodes.values().filter(|node| node.number == number).count()
    }

    /// Numbers of all files.
    pub fn numbers(&self) -> BTreeSet<u64> {
        self.nodes.values().map(|node| node.number).collect()
    }

    /// Names in the shared directory that differ between `self` and `other`: with what they
    /// stand for in `other`.
    pub fn shared_changes(&self, other: &Tree) -> Vec<(String, Option<u64>)> {
        let shared = |tree: &Tree| -> BTreeMap<String, u64> {
            tree.children("s").map(|(path, node)| (name(path).to_owned(), node.number)).collect()
        };
        let (old, new) = (shared(self), shared(other));
        let all: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
        all.into_iter()
            .filter(|name| old.get(*name) != new.get(*name))
            .map(|name| (name.clone(), new.get(name).copied()))
            .collect()
    }

    /// First difference to `other`, for people.
    pub fn difference(&self, other: &Tree) -> String {
        for (path, node) in &self.nodes {
            match other.nodes.get(path) {
                None => return format!("{path} is missing"),
                Some(found) if found != node => {
                    return format!("{path} is {found:?} instead of {node:?}");
                }
                Some(_) => {}
            }
        }
        if let Some(path) = other.nodes.keys().find(|path| !self.nodes.contains_key(*path)) {
            return format!("{path} should not be there");
        }
        "other attributes".to_owned()
    }
}

#[derive(Clone, Debug)]
struct Version {
    mark: u64,
    tree: Rc<Tree>,
    touches: Vec<u64>,
    acknowledged: Option<u64>,
}

/// The names of one worker through time.
#[derive(Clone, Debug)]
pub struct Names {
    /// The first is durable, the last is what all called operations make of it.
    history: Vec<Version>,
    next_mark: u64,
    /// An operation ended in doubt, or the program died: the names must be looked at.
    pub in_doubt: bool,
}

impl Default for Names {
    fn default() -> Names {
        Names {
            history: vec![Version {
                mark: 0,
                tree: Rc::default(),
                touches: Vec::new(),
                acknowledged: Some(0),
            }],
            next_mark: 1,
            in_doubt: false,
        }
    }
}

impl Names {
    /// The names after all that was called.
    pub fn newest(&self) -> Rc<Tree> {
        let last = self.history.last().expect("there is always a version");
        Rc::clone(&last.tree)
    }

    /// An operation is called that makes `tree` of the names and concerns the files `touches`.
    pub fn begin(&mut self, tree: Tree, touches: Vec<u64>) -> u64 {
        let mark = self.next_mark;
        self.next_mark += 1;
        self.history.push(Version { mark, tree: Rc::new(tree), touches, acknowledged: None });
        mark
    }

    /// An operation was acknowledged.
    pub fn acknowledge(&mut self, mark: u64, tick: u64) {
        for version in self.history.iter_mut().filter(|version| version.mark == mark) {
            version.acknowledged = Some(tick);
        }
    }

    /// An operation was refused and surely changed nothing.
    pub fn cancel(&mut self, mark: u64) {
        self.history.retain(|version| version.mark != mark);
    }

    /// Everything that was done to `number` is durable. Returns the last mark that is.
    pub fn harden(&mut self, number: u64) -> u64 {
        let touching = self.history.iter().rposition(|version| version.touches.contains(&number));
        self.harden_to(touching.unwrap_or(0))
    }

    /// Everything up to `mark` is durable.
    pub fn harden_mark(&mut self, mark: u64) -> u64 {
        let last = self.history.iter().rposition(|version| version.mark <= mark);
        self.harden_to(last.unwrap_or(0))
    }

    /// Everything that was acknowledged before `tick` is durable. Returns the last mark that is.
    pub fn harden_before(&mut self, tick: u64) -> u64 {
        let last = self
            .history
            .iter()
            .rposition(|version| version.acknowledged.is_some_and(|known| known <= tick));
        self.harden_to(last.unwrap_or(0))
    }

    fn harden_to(&mut self, index: usize) -> u64 {
        self.history.drain(..index);
        self.history[0].mark
    }

    /// Versions that could be lost, plus one.
    pub fn depth(&self) -> usize {
        self.history.len()
    }

    /// All that the names may be, newest first.
    pub fn candidates(&self) -> Vec<(u64, Rc<Tree>)> {
        let newest_first = self.history.iter().rev();
        newest_first.map(|version| (version.mark, Rc::clone(&version.tree))).collect()
    }

    /// A look found the version `mark`. What came after it did not happen. With `durable`, what
    /// came before it can never come back.
    pub fn found(&mut self, mark: u64, durable: bool) {
        self.history.retain(|version| version.mark <= mark);
        if durable {
            self.harden_mark(mark);
        }
        self.in_doubt = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(number: u64) -> Node {
        Node { number, kind: NodeKind::File }
    }

    fn tree(paths: &[(&str, u64)]) -> Tree {
        let nodes = paths.iter().map(|(path, number)| ((*path).to_owned(), file(*number)));
        Tree { nodes: nodes.collect(), ..Tree::default() }
    }

    #[test]
    fn a_directory_moves_with_all_below_it() {
        let mut names = tree(&[("p/a", 1), ("p/a/b", 2), ("p/ab", 3), ("p/c", 4)]);
        names.rename("p/a", "s/x");
        assert_eq!(names, tree(&[("s/x", 1), ("s/x/b", 2), ("p/ab", 3), ("p/c", 4)]));
        names.exchange("p/ab", "s/x");
        assert_eq!(names, tree(&[("p/ab", 1), ("p/ab/b", 2), ("s/x", 3), ("p/c", 4)]));
    }

    #[test]
    fn changes_of_shared_names_are_found() {
        let (old, new) = (tree(&[("s/a", 1), ("s/b", 2)]), tree(&[("s/b", 3), ("p/a", 1)]));
        let changes = old.shared_changes(&new);
        assert_eq!(changes, [("a".to_owned(), None), ("b".to_owned(), Some(3))]);
    }

    #[test]
    fn making_one_file_durable_makes_all_before_durable() {
        let mut names = Names::default();
        names.begin(tree(&[("p/a", 1)]), vec![1]);
        names.begin(tree(&[("p/a", 1), ("p/b", 2)]), vec![2]);
        names.begin(tree(&[("p/a", 1), ("p/b", 2), ("p/c", 3)]), vec![3]);
        names.harden(2);
        assert_eq!(names.candidates().len(), 2);
        let oldest = names.candidates().pop().map(|(_, tree)| tree);
        assert_eq!(oldest.as_deref(), Some(&tree(&[("p/a", 1), ("p/b", 2)])));
    }

    #[test]
    fn what_was_found_ends_all_doubt() {
        let mut names = Names::default();
        let mark = names.begin(tree(&[("p/a", 1)]), vec![1]);
        names.begin(tree(&[]), vec![1]);
        names.in_doubt = true;
        names.found(mark, true);
        assert_eq!(names.candidates().len(), 1);
        assert_eq!(*names.newest(), tree(&[("p/a", 1)]));
    }
}
