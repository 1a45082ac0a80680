//! A name for the code that a soak ran on: the same files have the same name, in any clone.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

/// What a finding or the absence of one depends on.
const CRATES: &[&str] =
    &["crates/lunfs-format", "crates/lunfs-core", "crates/lunfs-doors", "crates/lunfs-sim"];

/// Digits of the hash that are kept.
const DIGITS: usize = 16;

/// Names the sources and manifests of format, core and simulator, with the versions of all
/// dependencies.
pub fn hash(root: &Path) -> Result<String> {
    let mut paths = vec!["Cargo.lock".to_owned()];
    for package in CRATES {
        paths.push(format!("{package}/Cargo.toml"));
        collect(root, &format!("{package}/src"), &mut paths)?;
    }
    paths.sort();
    let mut files = Vec::new();
    for path in paths {
        let bytes = fs::read(root.join(&path)).with_context(|| path.clone())?;
        files.push((path, bytes));
    }
    Ok(hash_of(&files))
}

fn collect(root: &Path, dir: &str, paths: &mut Vec<String>) -> Result<()> {
    for entry in fs::read_dir(root.join(dir)).with_context(|| dir.to_owned())? {
        let entry = entry?;
        let path = format!("{dir}/{}", entry.file_name().to_string_lossy());
        if entry.file_type()?.is_dir() {
            collect(root, &path, paths)?;
        } else {
            paths.push(path);
        }
    }
    Ok(())
}

/// Lengths go in as well: no two lists of files give the same bytes.
fn hash_of(files: &[(String, Vec<u8>)]) -> String {
    let mut digest = Sha256::new();
    for (path, bytes) in files {
        for part in [path.as_bytes(), bytes] {
            digest.update((part.len() as u64).to_le_bytes());
            digest.update(part);
        }
    }
    let mut hexadecimal: String =
        digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    hexadecimal.truncate(DIGITS);
    hexadecimal
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_and_every_name_counts() {
        let file = |path: &str, bytes: &[u8]| (path.to_owned(), bytes.to_vec());
        let one = hash_of(&[file("a", b"xy"), file("b", b"")]);
        assert_eq!(one.len(), DIGITS);
        assert_ne!(one, hash_of(&[file("a", b"xz"), file("b", b"")]));
        assert_ne!(one, hash_of(&[file("a", b"x"), file("yb", b"")]));
        assert_ne!(one, hash_of(&[file("a", b"xy"), file("c", b"")]));
    }

    #[test]
    fn this_workspace_has_a_name() {
        assert_eq!(hash(&crate::root()).expect("sources"), hash(&crate::root()).expect("sources"));
    }
}
