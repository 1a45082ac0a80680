//! What a file system should do: names and files in two maps, no disk, no crash.
//!
//! It is told the same steps as the core, and the core must succeed and fail as it does.

use std::collections::BTreeMap;
use std::rc::Rc;

use lunfs_core::{Fallocate, FileKind, RenameMode};

use super::act::{OWNER, RDEV, target};
use super::seen::hash;
use super::step::{Path, Step, pattern, split};

/// Number of a file in the model.
pub type Number = u32;

/// One file, directory, link or node.
#[derive(Clone, Debug)]
pub struct Node {
    /// Its kind.
    pub kind: FileKind,
    /// Its permissions.
    pub mode: u32,
    /// Owner and group.
    pub owner: (u32, u32),
    /// Device number.
    pub rdev: u64,
    /// Extended attributes, with the hashes of their values.
    pub xattrs: BTreeMap<String, u64>,
    /// Contents, or the target of a link.
    pub content: Rc<Vec<u8>>,
    /// Is it a disk?
    pub is_disk: bool,
    /// Its snapshots, with their contents.
    pub snapshots: BTreeMap<String, Rc<Vec<u8>>>,
}

/// A whole tree of files.
#[derive(Clone, Debug)]
pub struct Tree {
    /// What each path stands for; the root is the empty path.
    pub names: BTreeMap<Path, Number>,
    /// All files, also those without a name.
    pub nodes: BTreeMap<Number, Node>,
    next: Number,
}

fn node(path: &str, kind: FileKind) -> Node {
    let is_dir = kind == FileKind::Directory;
    let content = if kind == FileKind::Symlink { target(path) } else { Vec::new() };
    Node {
        kind,
        mode: if is_dir { 0o755 } else { 0o644 },
        owner: OWNER,
        rdev: if kind == FileKind::CharDevice { RDEV } else { 0 },
        xattrs: BTreeMap::new(),
        content: Rc::new(content),
        is_disk: false,
        snapshots: BTreeMap::new(),
    }
}

impl Tree {
    /// An empty volume.
    pub fn empty() -> Tree {
        let root = Node { owner: (0, 0), ..node("", FileKind::Directory) };
        let (names, nodes) = ([(String::new(), 0)].into(), [(0, root)].into());
        Tree { names, nodes, next: 1 }
    }

    /// The file that a path stands for.
    pub fn find(&self, path: &str) -> Option<Number> {
        self.names.get(path).copied()
    }

    fn kind(&self, path: &str) -> Option<FileKind> {
        Some(self.nodes[&self.find(path)?].kind)
    }

    fn is_dir(&self, path: &str) -> bool {
        self.kind(path) == Some(FileKind::Directory)
    }

    /// Paths below a directory.
    fn below(&self, path: &str) -> Vec<Path> {
        let inside = |other: &&Path| is_below(path, other);
        self.names.keys().filter(inside).cloned().collect()
    }

    /// Links of what a path stands for.
    pub fn links(&self, path: &str, number: Number) -> u32 {
        let dirs = |other: &&Path| is_child(path, other) && self.is_dir(other);
        let count = match self.nodes[&number].kind {
            FileKind::Directory => 2 + self.names.keys().filter(dirs).count(),
            _ => self.names.values().filter(|other| **other == number).count(),
        };
        u32::try_from(count).unwrap_or(u32::MAX)
    }

    /// Does a step; `false`: it must fail, and changes nothing.
    pub fn act(&mut self, step: &Step) -> bool {
        match step {
            Step::Create { path, kind } => self.create(path, *kind),
            Step::Link { from, to } => self.link(from, to),
            Step::Unlink(path) => {
                self.find(path).is_some() && !self.is_dir(path) && self.drop(path)
            }
            Step::Rmdir(path) => {
                self.is_dir(path) && self.below(path).is_empty() && self.drop(path)
            }
            Step::Rename { from, to, mode } => self.rename(from, to, *mode),
            Step::SetMode(path, mode) => self.change(path, |node| node.mode = *mode),
            Step::SetSize(path, size) => {
                self.of_file(path, |content| content.resize(to_usize(*size), 0))
            }
            Step::Write { path, at, len, salt } => {
                self.of_file(path, |content| put(content, *at, &pattern(*at, *len, *salt)))
            }
            Step::Append { path, len, salt } => self.of_file(path, |content| {
                let at = content.len() as u64;
                put(content, at, &pattern(at, *len, *salt));
            }),
            Step::Fallocate { path, at, len, mode } => {
                self.of_file(path, |content| fallocate(content, *at, *len, *mode))
            }
            Step::SetXattr { path, name, len, salt } => self.change(path, |node| {
                node.xattrs.insert((*name).to_owned(), hash(&pattern(0, *len, *salt)));
            }),
            Step::RemoveXattr(path, name) => {
                let number = self.find(path);
                let node = number.and_then(|number| self.nodes.get_mut(&number));
                node.is_some_and(|node| node.xattrs.remove(*name).is_some())
            }
            Step::CreateDisk(path, size) => self.create_disk(path, vec![0; to_usize(*size)].into()),
            Step::Snapshot(path, name) => self.of_disk(path, |disk| {
                let is_new = !disk.snapshots.contains_key(*name);
                disk.snapshots.entry((*name).to_owned()).or_insert_with(|| disk.content.clone());
                is_new
            }),
            Step::DeleteSnapshot(path, name) => {
                self.of_disk(path, |disk| disk.snapshots.remove(*name).is_some())
            }
            Step::Clone { from, snapshot, to } => {
                let mut content = None;
                self.of_disk(from, |disk| {
                    content = match snapshot {
                        Some(name) => disk.snapshots.get(*name).cloned(),
                        None => Some(disk.content.clone()),
                    };
                    true
                });
                content.is_some_and(|content| self.create_disk(to, content))
            }
            Step::Open(path) | Step::Fsync(path) => self.find(path).is_some(),
            Step::Peer(step) => self.act(step),
            Step::Close(_) | Step::Sync | Step::Idle(_) | Step::PeerLooks | Step::Unmount => true,
        }
    }

    fn drop(&mut self, path: &str) -> bool {
        self.names.remove(path).is_some()
    }

    fn has_place_for(&self, path: &str) -> bool {
        self.is_dir(split(path).0) && !self.names.contains_key(path)
    }

    fn create(&mut self, path: &str, kind: FileKind) -> bool {
        if !self.has_place_for(path) {
            return false;
        }
        self.names.insert(path.to_owned(), self.next);
        self.nodes.insert(self.next, node(path, kind));
        self.next += 1;
        true
    }

    fn create_disk(&mut self, path: &str, content: Rc<Vec<u8>>) -> bool {
        let is_made = self.create(path, FileKind::File);
        if is_made {
            self.change(path, |node| (node.is_disk, node.content) = (true, content));
        }
        is_made
    }

    fn of_disk(&mut self, path: &str, change: impl FnOnce(&mut Node) -> bool) -> bool {
        let number = self.find(path);
        let node = number.and_then(|number| self.nodes.get_mut(&number));
        node.is_some_and(|node| node.is_disk && change(node))
    }

    fn link(&mut self, from: &str, to: &str) -> bool {
        let Some(number) = self.find(from) else { return false };
        if self.is_dir(from) || !self.has_place_for(to) {
            return false;
        }
        self.names.insert(to.to_owned(), number);
        true
    }

    fn change(&mut self, path: &str, change: impl FnOnce(&mut Node)) -> bool {
        let Some(number) = self.find(path) else { return false };
        let Some(node) = self.nodes.get_mut(&number) else { return false };
        change(node);
        true
    }

    fn of_file(&mut self, path: &str, change: impl FnOnce(&mut Vec<u8>)) -> bool {
        self.kind(path) == Some(FileKind::File)
            && self.change(path, |node| change(Rc::make_mut(&mut node.content)))
    }

    fn rename(&mut self, from: &str, to: &str, mode: RenameMode) -> bool {
        let Some(moved) = self.find(from) else { return false };
        if !self.is_dir(split(to).0) || is_below(from, to) {
            return false;
        }
        let there = self.find(to);
        match mode {
            RenameMode::NoReplace if there.is_some() => return false,
            RenameMode::Exchange => return there.is_some() && self.exchange(from, to),
            RenameMode::NoReplace | RenameMode::Replace => {}
        }
        if there == Some(moved) {
            return true;
        }
        if there.is_some() {
            let fits = self.is_dir(from) == self.is_dir(to) && self.below(to).is_empty();
            if !fits || is_below(to, from) {
                return false;
            }
        }
        self.carry(from, to);
        true
    }

    fn exchange(&mut self, from: &str, to: &str) -> bool {
        if is_below(to, from) {
            return false;
        }
        self.carry(from, "\0aside");
        self.carry(to, from);
        self.carry("\0aside", to);
        true
    }

    fn carry(&mut self, from: &str, to: &str) {
        let mut paths = self.below(from);
        paths.push(from.to_owned());
        for path in paths {
            let Some(number) = self.names.remove(&path) else { continue };
            self.names.insert(format!("{to}{}", &path[from.len()..]), number);
        }
    }
}

fn is_below(dir: &str, path: &str) -> bool {
    match path.strip_prefix(dir) {
        Some(rest) if dir.is_empty() => !rest.is_empty(),
        Some(rest) => rest.starts_with('/'),
        None => false,
    }
}

fn is_child(dir: &str, path: &str) -> bool {
    !path.is_empty() && split(path).0 == dir
}

fn to_usize(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

fn put(content: &mut Vec<u8>, at: u64, data: &[u8]) {
    let end = to_usize(at) + data.len();
    content.resize(content.len().max(end), 0);
    content[to_usize(at)..end].copy_from_slice(data);
}

fn fallocate(content: &mut Vec<u8>, at: u64, len: u64, mode: Fallocate) {
    let end = to_usize(at + len);
    let zero = |content: &mut Vec<u8>| {
        let (from, to) = (to_usize(at).min(content.len()), end.min(content.len()));
        content[from..to].fill(0);
    };
    match mode {
        Fallocate::Allocate { keep_size: true } => {}
        Fallocate::Allocate { keep_size: false } => content.resize(content.len().max(end), 0),
        Fallocate::PunchHole | Fallocate::ZeroRange { keep_size: true } => zero(content),
        Fallocate::ZeroRange { keep_size: false } => {
            content.resize(content.len().max(end), 0);
            zero(content);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rename(from: &str, to: &str, mode: RenameMode) -> Step {
        Step::Rename { from: from.into(), to: to.into(), mode }
    }

    #[test]
    fn a_renamed_directory_takes_along_what_is_in_it() {
        let mut tree = Tree::empty();
        for (path, kind) in [
            ("d", FileKind::Directory),
            ("d/x", FileKind::File),
            ("e", FileKind::Directory),
            ("dx", FileKind::File),
        ] {
            assert!(tree.act(&Step::Create { path: path.into(), kind }));
        }
        assert!(!tree.act(&rename("d", "d/y", RenameMode::Replace)));
        assert!(!tree.act(&rename("e", "d", RenameMode::Replace)));
        assert!(tree.act(&rename("d", "e", RenameMode::Replace)));
        assert_eq!(tree.names.keys().collect::<Vec<_>>(), ["", "dx", "e", "e/x"]);
        assert!(tree.act(&rename("dx", "e", RenameMode::Exchange)));
        assert_eq!(tree.names.keys().collect::<Vec<_>>(), ["", "dx", "dx/x", "e"]);
        assert_eq!(tree.links("", 0), 3);
    }
}
