//! What a writer was told is durable, and whether a volume still has it.
//!
//! The writer appends one line per event to a file outside of the volume:
//!
//! ```text
//! will PATH LENGTH SHA256    about to make this the content of PATH, by rename
//! done PATH LENGTH SHA256    an fsync said that PATH starts with these bytes
//! drop PATH                  about to unlink PATH
//! ```
//!
//! A file must start with the bytes of its last `done`, or be exactly what a later `will` says; a
//! later append that was under way may stand behind them. After a `drop` it may be gone.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{ErrorKind, Read as _, Write as _};
use std::path::Path;

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

/// Length and hash of a file's content, or of its start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Content {
    /// Bytes.
    pub length: u64,
    /// SHA-256 in hexadecimal.
    pub hash: String,
}

impl Content {
    /// The content that these bytes are.
    pub fn of(bytes: &[u8]) -> Content {
        let hash = hexadecimal(&Sha256::digest(bytes));
        Content { length: bytes.len() as u64, hash }
    }

    /// The first `length` bytes of a file, or all of it.
    pub fn of_file(path: &Path, length: Option<u64>) -> std::io::Result<Content> {
        let mut rest = File::open(path)?.take(length.unwrap_or(u64::MAX));
        let mut digest = Sha256::new();
        let mut buffer = vec![0; 1 << 20];
        let mut total = 0;
        loop {
            let read = rest.read(&mut buffer)?;
            if read == 0 {
                return Ok(Content { length: total, hash: hexadecimal(&digest.finalize()) });
            }
            digest.update(&buffer[..read]);
            total += read as u64;
        }
    }
}

/// The log of a writer, written line by line.
pub struct Ledger(File);

impl Ledger {
    /// Opens the log for appending.
    pub fn append(path: &Path) -> Result<Ledger> {
        let file = File::options().create(true).append(true).open(path);
        Ok(Ledger(file.with_context(|| format!("cannot open {}", path.display()))?))
    }

    /// `path` is about to be replaced by `content`.
    pub fn will(&mut self, path: &str, content: &Content) -> Result<()> {
        self.line(&format!("will {path} {} {}", content.length, content.hash))
    }

    /// `path` durably starts with `content`.
    pub fn done(&mut self, path: &str, content: &Content) -> Result<()> {
        self.line(&format!("done {path} {} {}", content.length, content.hash))
    }

    /// `path` is about to be unlinked.
    pub fn drop(&mut self, path: &str) -> Result<()> {
        self.line(&format!("drop {path}"))
    }

    fn line(&mut self, text: &str) -> Result<()> {
        // One write: a killed writer leaves whole lines only.
        self.0.write_all(format!("{text}\n").as_bytes()).context("the log outside the volume")
    }
}

/// What was verified.
#[derive(Default)]
pub struct Verified {
    /// Files that had to be there and were.
    pub files: u64,
    /// Bytes that had to be in them and were.
    pub bytes: u64,
}

impl Verified {
    /// Adds what was verified elsewhere.
    pub fn add(&mut self, other: Verified) {
        self.files += other.files;
        self.bytes += other.bytes;
    }
}

/// Number of `done` lines so far.
pub fn count_done(log: &Path) -> Result<usize> {
    let text = std::fs::read_to_string(log)?;
    Ok(text.lines().filter(|line| line.starts_with("done ")).count())
}

/// Compares the files below `dir` with what the log says of them. A writer that was killed before
/// it opened its log has written nothing.
pub fn verify(dir: &Path, log: &Path) -> Result<Verified> {
    let text = match std::fs::read_to_string(log) {
        Err(error) if error.kind() == ErrorKind::NotFound => String::new(),
        text => text.with_context(|| log.display().to_string())?,
    };
    let mut verified = Verified::default();
    for (path, expected) in expectations(&text)? {
        if let Some(bytes) = expected.verify(&dir.join(&path))? {
            verified.files += 1;
            verified.bytes += bytes;
        }
    }
    Ok(verified)
}

/// What must hold of one path.
#[derive(Default)]
struct Expected {
    done: Option<Content>,
    later: Vec<Content>,
    may_be_gone: bool,
}

fn expectations(log: &str) -> Result<BTreeMap<String, Expected>> {
    let mut all: BTreeMap<String, Expected> = BTreeMap::new();
    for line in log.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        match words[..] {
            ["done", path, length, hash] => {
                let done = Some(Content { length: length.parse()?, hash: hash.into() });
                all.insert(path.into(), Expected { done, ..Expected::default() });
            }
            ["will", path, length, hash] => {
                let content = Content { length: length.parse()?, hash: hash.into() };
                all.entry(path.into()).or_default().later.push(content);
            }
            ["drop", path] => all.entry(path.into()).or_default().may_be_gone = true,
            _ => bail!("not a line of a ledger: {line}"),
        }
    }
    Ok(all)
}

impl Expected {
    /// The number of bytes that had to be there, or `None` where nothing had to.
    fn verify(&self, path: &Path) -> Result<Option<u64>> {
        let whole = match Content::of_file(path, None) {
            Ok(whole) => whole,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                if self.may_be_gone || self.done.is_none() {
                    return Ok(None);
                }
                bail!("{}: was durable and is gone", path.display());
            }
            Err(error) => return Err(error).context(format!("{}", path.display())),
        };
        if self.later.contains(&whole) {
            return Ok(Some(whole.length));
        }
        let Some(done) = &self.done else { return Ok(None) };
        let start = Content::of_file(path, Some(done.length))?;
        if start != *done {
            bail!(
                "{}: {} bytes with hash {} were durable, found {} of {} bytes with hash {}",
                path.display(),
                done.length,
                done.hash,
                start.length,
                whole.length,
                start.hash
            );
        }
        Ok(Some(done.length))
    }
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verified(log: &str, files: &[(&str, &[u8])]) -> Result<u64> {
        let name = format!("lunfs-ledger-{}-{:p}", std::process::id(), log);
        let dir = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&dir)?;
        for (path, bytes) in files {
            std::fs::write(dir.join(path), bytes)?;
        }
        let ledger = dir.join("the-log");
        std::fs::write(&ledger, log)?;
        let result = verify(&dir, &ledger).map(|verified| verified.files);
        std::fs::remove_dir_all(&dir)?;
        result
    }

    fn line(verb: &str, path: &str, bytes: &[u8]) -> String {
        let content = Content::of(bytes);
        format!("{verb} {path} {} {}\n", content.length, content.hash)
    }

    #[test]
    fn a_durable_file_must_be_there_and_whole() {
        let log = line("done", "a", b"durable");
        assert_eq!(verified(&log, &[("a", b"durable")]).expect("whole"), 1);
        assert!(verified(&log, &[("a", b"durab\0e")]).is_err());
        assert!(verified(&log, &[("a", b"dur")]).is_err());
        assert!(verified(&log, &[]).is_err());
    }

    #[test]
    fn an_append_under_way_may_stand_behind_it() {
        let log = line("done", "a", b"durable");
        assert_eq!(verified(&log, &[("a", b"durable and more")]).expect("a longer file"), 1);
    }

    #[test]
    fn a_replacement_is_the_old_or_the_new_and_nothing_else() {
        let log = line("done", "a", b"old") + &line("will", "a", b"new!");
        assert!(verified(&log, &[("a", b"old")]).is_ok());
        assert!(verified(&log, &[("a", b"new!")]).is_ok());
        assert!(verified(&log, &[("a", b"ne")]).is_err());
        assert!(verified(&log, &[]).is_err());
    }

    #[test]
    fn a_dropped_file_may_be_there_or_not() {
        let log = line("done", "a", b"old") + "drop a\n";
        assert_eq!(verified(&log, &[("a", b"old")]).expect("still there"), 1);
        assert_eq!(verified(&log, &[]).expect("gone"), 0);
        assert!(verified(&log, &[("a", b"odd")]).is_err());
    }
}
