//! Names that a volume keeps: of hosts, snapshots, and labels. They appear in logs, tables and JSON
//! of every host, so they are one line of text.

use std::path::PathBuf;
use std::str::FromStr;

use anyhow::{Context, Result, bail};

/// As much as a pulse and a superblock have room for.
const BYTES_MAX: usize = 64;

/// The name of a host.
pub fn host(text: &str) -> Result<String> {
    if text.is_empty() {
        bail!("a host has a name");
    }
    label(text)
}

/// The label of a volume; it may be empty.
pub fn label(text: &str) -> Result<String> {
    if text.len() > BYTES_MAX {
        bail!("it has {} bytes, and at most {BYTES_MAX} are kept", text.len());
    }
    if text.chars().any(char::is_control) {
        bail!("it holds a line break or another control character");
    }
    Ok(text.to_owned())
}

/// A disk, or one of its snapshots: `DISK@NAME`, split at the last `@` of the file's name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskAt {
    /// The disk.
    pub disk: PathBuf,
    /// The name behind the `@`.
    pub snapshot: Option<String>,
}

impl FromStr for DiskAt {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<DiskAt> {
        let name_at = text.rfind('/').map_or(0, |at| at + 1);
        let Some(at) = text[name_at..].rfind('@') else {
            return Ok(DiskAt { disk: text.into(), snapshot: None });
        };
        let (disk, name) = (&text[..name_at + at], &text[name_at + at + 1..]);
        if disk.len() == name_at {
            bail!("no disk is named before the @");
        }
        if name.chars().any(char::is_control) {
            bail!("the snapshot's name holds a line break or another control character");
        }
        // So a disk whose own name has one can be meant: `disk@1@`.
        let snapshot = (!name.is_empty()).then(|| name.to_owned());
        Ok(DiskAt { disk: disk.into(), snapshot })
    }
}

/// What must be a snapshot: the disk and the name.
pub fn snapshot(text: &str) -> Result<(PathBuf, String)> {
    let DiskAt { disk, snapshot } = text.parse()?;
    Ok((disk, snapshot.context("a snapshot is named as DISK@NAME")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_is_behind_the_last_at_of_the_name() {
        let split = |text: &str| {
            let DiskAt { disk, snapshot } = text.parse().expect("a disk");
            (disk.to_str().expect("text").to_owned(), snapshot.unwrap_or_default())
        };
        let both = |disk: &str, snapshot: &str| (disk.to_owned(), snapshot.to_owned());
        assert_eq!(split("vm.raw"), both("vm.raw", ""));
        assert_eq!(split("/mnt/a/vm.raw@one"), both("/mnt/a/vm.raw", "one"));
        assert_eq!(split("vm@1@two"), both("vm@1", "two"));
        assert_eq!(split("vm@1@"), both("vm@1", ""));
        // Directories may have one, too.
        assert_eq!(split("a@b/vm.raw"), both("a@b/vm.raw", ""));
        assert_eq!(split("a@b/vm.raw@one"), both("a@b/vm.raw", "one"));
        for bad in ["@one", "/mnt/@one", "vm@a\nb"] {
            assert!(bad.parse::<DiskAt>().is_err(), "{bad:?}");
        }
        assert!(snapshot("vm.raw").is_err() && snapshot("vm.raw@").is_err());
        assert_eq!(snapshot("vm@1").ok(), Some(("vm".into(), "1".into())));
    }

    #[test]
    fn a_name_is_one_line() {
        assert_eq!(host("node-1 (rack b)").ok().as_deref(), Some("node-1 (rack b)"));
        assert_eq!(label("").ok().as_deref(), Some(""));
        for bad in ["a\nb", "\t", "\u{1b}[31m", "\u{9b}", &"x".repeat(65)] {
            assert!(host(bad).is_err() && label(bad).is_err(), "{bad:?}");
        }
        assert!(host("").is_err());
    }
}
