//! What the kernel remembers of us: nodes with their lookup counts, and open handles.

use std::collections::HashMap;

use fuser::Errno;
use lunfs_core::FileId;

/// The root's node number.
pub const ROOT_NODE: u64 = 1;

/// Nodes the kernel knows.
///
/// A node number is a descriptor's address, which may be used again for another file while the
/// kernel still holds the old one. The kernel sees the other generation in the next reply and
/// drops the old node; the lookups of both are given back under the same number, so they share
/// one count.
pub struct Nodes {
    root: FileId,
    known: HashMap<u64, Node>,
}

struct Node {
    file: FileId,
    lookups: u64,
}

impl Nodes {
    /// Knows the root only, which is never forgotten.
    pub fn new(root: FileId) -> Nodes {
        Nodes { root, known: HashMap::new() }
    }

    /// The number under which the kernel knows `file`.
    pub fn number(&self, file: FileId) -> u64 {
        if file == self.root { ROOT_NODE } else { file.addr.0 }
    }

    /// The file behind a node number.
    pub fn file(&self, number: u64) -> Result<FileId, Errno> {
        if number == ROOT_NODE {
            return Ok(self.root);
        }
        self.known.get(&number).map(|node| node.file).ok_or(Errno::ESTALE)
    }

    /// The kernel is told about `file` once more; returns its number.
    pub fn remember(&mut self, file: FileId) -> u64 {
        let number = self.number(file);
        if number != ROOT_NODE {
            let node = self.known.entry(number).or_insert(Node { file, lookups: 0 });
            node.file = file;
            node.lookups += 1;
        }
        number
    }

    /// The kernel forgets `lookups` of what it was told.
    pub fn forget(&mut self, number: u64, lookups: u64) {
        let Some(node) = self.known.get_mut(&number) else { return };
        node.lookups = node.lookups.saturating_sub(lookups);
        if node.lookups == 0 {
            self.known.remove(&number);
        }
    }
}

/// Open files and directories.
#[derive(Default)]
pub struct Handles {
    open: HashMap<u64, FileId>,
    last: u64,
}

impl Handles {
    /// A new handle; never zero, never used before.
    pub fn add(&mut self, file: FileId) -> u64 {
        self.last += 1;
        self.open.insert(self.last, file);
        self.last
    }

    /// The file of a handle.
    pub fn file(&self, handle: u64) -> Result<FileId, Errno> {
        self.open.get(&handle).copied().ok_or(Errno::EBADF)
    }

    /// Ends a handle.
    pub fn remove(&mut self, handle: u64) -> Option<FileId> {
        self.open.remove(&handle)
    }
}

#[cfg(test)]
mod tests {
    use lunfs_format::BlockNo;

    use super::*;

    fn file(addr: u64, birth: u64) -> FileId {
        FileId { addr: BlockNo(addr), birth }
    }

    #[test]
    fn a_node_lives_as_long_as_the_kernel_counts_it() {
        let mut nodes = Nodes::new(file(5000, 1));
        assert_eq!(nodes.remember(file(5000, 1)), ROOT_NODE);
        nodes.forget(ROOT_NODE, 10);
        assert_eq!(nodes.file(ROOT_NODE), Ok(file(5000, 1)));

        assert_eq!(nodes.remember(file(7000, 2)), 7000);
        nodes.remember(file(7000, 2));
        nodes.forget(7000, 1);
        assert_eq!(nodes.file(7000), Ok(file(7000, 2)));
        nodes.forget(7000, 1);
        assert_eq!(nodes.file(7000), Err(Errno::ESTALE));
        nodes.forget(7000, 1);
    }

    #[test]
    fn a_reused_address_names_the_new_file() {
        let mut nodes = Nodes::new(file(5000, 1));
        nodes.remember(file(7000, 2));
        nodes.remember(file(7000, 9));
        assert_eq!(nodes.file(7000), Ok(file(7000, 9)));
        nodes.forget(7000, 1);
        assert_eq!(nodes.file(7000), Ok(file(7000, 9)), "the old node's lookup was forgotten");
    }

    #[test]
    fn handles_are_not_used_twice() {
        let mut handles = Handles::default();
        let first = handles.add(file(7000, 2));
        assert_eq!(handles.file(first), Ok(file(7000, 2)));
        assert_eq!(handles.remove(first), Some(file(7000, 2)));
        assert_eq!(handles.file(first), Err(Errno::EBADF));
        assert_ne!(handles.add(file(7000, 2)), first);
    }
}
