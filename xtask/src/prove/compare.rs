//! Compares two trees: names, kinds, modes, owners, times, links, attributes, contents.

use std::collections::BTreeMap;
use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::ledger::Content;

/// At most so many differences are told one by one.
const TOLD_MAX: usize = 20;

/// What a comparison found.
#[derive(Default)]
pub struct Comparison {
    /// Files, directories, links and nodes in the first tree.
    pub entries: u64,
    /// Bytes whose hashes were compared.
    pub bytes: u64,
    /// What differs.
    pub differences: Vec<String>,
}

impl Comparison {
    /// Prints the first differences and a summary.
    pub fn tell(&self) {
        for difference in self.differences.iter().take(TOLD_MAX) {
            println!("  differs: {difference}");
        }
        let megabytes = self.bytes >> 20;
        let differ = self.differences.len();
        println!("  {} entries, {megabytes} MiB by sha256, {differ} differences", self.entries);
    }
}

/// Compares everything below two directories, and the directories.
pub fn compare(left: &Path, right: &Path) -> Result<Comparison> {
    let left = read_tree(left)?;
    let right = read_tree(right)?;
    let mut comparison = Comparison::default();
    for (path, entry) in &left {
        comparison.entries += 1;
        comparison.bytes += entry.content.as_ref().map_or(0, |content| content.length);
        match right.get(path) {
            None => comparison.differences.push(format!("{}: missing", path.display())),
            Some(other) => comparison.differences.extend(
                entry.differences(other).into_iter().map(|d| format!("{}: {d}", path.display())),
            ),
        }
    }
    let extra = right.keys().filter(|path| !left.contains_key(*path));
    comparison.differences.extend(extra.map(|path| format!("{}: extra", path.display())));
    Ok(comparison)
}

/// Everything of an entry that a faithful copy keeps.
struct Entry {
    metadata: Vec<(&'static str, String)>,
    attributes: BTreeMap<Vec<u8>, Vec<u8>>,
    content: Option<Content>,
}

impl Entry {
    fn differences(&self, other: &Entry) -> Vec<String> {
        let pairs = self.metadata.iter().zip(&other.metadata);
        let mut found: Vec<String> = pairs
            .filter(|(ours, theirs)| ours != theirs)
            .map(|((what, ours), (_, theirs))| format!("{what} {ours}, there {theirs}"))
            .collect();
        if self.attributes != other.attributes {
            found.push("extended attributes".into());
        }
        if self.content != other.content {
            found.push("content".into());
        }
        found
    }
}

type Tree = BTreeMap<PathBuf, Entry>;

fn read_tree(top: &Path) -> Result<Tree> {
    let mut tree = Tree::new();
    // First path of each file with several links: two trees agree if their groups do.
    let mut links: BTreeMap<u64, PathBuf> = BTreeMap::new();
    let mut waiting = vec![PathBuf::new()];
    while let Some(path) = waiting.pop() {
        let place = top.join(&path);
        let metadata = fs::symlink_metadata(&place).with_context(|| place.display().to_string())?;
        if metadata.is_dir() {
            let mut names = Vec::new();
            for entry in fs::read_dir(&place).with_context(|| place.display().to_string())? {
                names.push(path.join(entry?.file_name()));
            }
            names.sort();
            waiting.extend(names.into_iter().rev());
        }
        let first = links.entry(metadata.ino()).or_insert_with(|| path.clone()).clone();
        tree.insert(path, entry(&place, &metadata, &first)?);
    }
    Ok(tree)
}

fn entry(place: &Path, metadata: &Metadata, first_link: &Path) -> Result<Entry> {
    let kind = metadata.file_type();
    let mut facts = vec![
        ("mode", format!("{:o}", metadata.mode())),
        ("owner", format!("{}:{}", metadata.uid(), metadata.gid())),
        ("mtime", format!("{}.{:09}", metadata.mtime(), metadata.mtime_nsec())),
    ];
    if kind.is_dir() {
        return Ok(Entry { metadata: facts, attributes: attributes(place)?, content: None });
    }
    facts.push(("links", metadata.nlink().to_string()));
    facts.push(("first link", first_link.display().to_string()));
    facts.push(("size", metadata.size().to_string()));
    facts.push(("device", metadata.rdev().to_string()));
    if kind.is_symlink() {
        facts.push(("target", fs::read_link(place)?.display().to_string()));
    }
    let content = match kind.is_file() {
        true => Some(Content::of_file(place, None).with_context(|| place.display().to_string())?),
        false => None,
    };
    Ok(Entry { metadata: facts, attributes: attributes(place)?, content })
}

fn attributes(place: &Path) -> Result<BTreeMap<Vec<u8>, Vec<u8>>> {
    let mut names = vec![0; 64 << 10];
    let len = rustix::fs::llistxattr(place, &mut names[..])
        .with_context(|| format!("attributes of {}", place.display()))?;
    let mut all = BTreeMap::new();
    for name in names[..len].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let mut value = vec![0; 64 << 10];
        let len = rustix::fs::lgetxattr(place, name, &mut value[..])
            .with_context(|| format!("an attribute of {}", place.display()))?;
        value.truncate(len);
        all.insert(name.to_vec(), value);
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_equals_itself_and_differs_when_one_byte_does() {
        let dir = std::env::temp_dir().join(format!("lunfs-compare-{}", std::process::id()));
        let [left, right] = ["left", "right"].map(|name| dir.join(name));
        for side in [&left, &right] {
            fs::create_dir_all(side.join("d")).expect("a directory");
            fs::write(side.join("d/a"), b"same").expect("a file");
            fs::hard_link(side.join("d/a"), side.join("d/b")).expect("a link");
        }
        assert!(compare(&left, &left).expect("readable").differences.is_empty());
        fs::write(right.join("d/b"), b"some").expect("a file");
        let found = compare(&left, &right).expect("readable").differences;
        fs::remove_dir_all(&dir).expect("ours");
        assert!(found.iter().any(|f| f == "d/a: content"), "{found:?}");
        assert!(found.iter().any(|f| f == "d/b: content"), "{found:?}");
    }
}
