//! A program that writes until it is stopped, and logs what it was told is durable.
//!
//! It creates, appends, replaces by rename and unlinks files in a few directories, so that a kill
//! at any moment meets data, names, allocation and freed blocks.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;

use super::ledger::{Content, Ledger};
use crate::Ending;

/// Files kept; the oldest goes when there are more.
const FILES_MAX: usize = 80;
const DIRECTORIES: u64 = 4;

/// Where to write and where to log.
#[derive(Args)]
pub struct Options {
    /// Directory to write below
    dir: PathBuf,
    /// Log, outside of the volume
    log: PathBuf,
    /// Start of the random choices
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How the names of its files begin
    #[arg(long, default_value = "")]
    prefix: String,
}

/// What a writer says of a file that is not what it wrote.
pub const DIFFERS: &str = "differs from what was written";

/// Writes until an operation fails or somebody kills it.
pub fn run(options: &Options) -> Result<Ending> {
    let mut writer = Writer {
        dir: options.dir.clone(),
        prefix: options.prefix.clone(),
        ledger: Ledger::append(&options.log)?,
        chance: Chance(options.seed | 1),
        files: VecDeque::new(),
        count: 0,
    };
    for directory in 0..DIRECTORIES {
        fs::create_dir_all(writer.dir.join(format!("d{directory}")))?;
    }
    loop {
        writer.step()?;
    }
}

/// A random start that differs from run to run.
pub fn seed_of_now() -> u64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(1, |since| since.as_secs() % 1_000_000)
}

/// Random numbers that a seed repeats (xorshift).
pub struct Chance(pub u64);

impl Chance {
    /// The next number below `limit`.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % limit
    }

    /// Bytes that no other call gave.
    pub fn bytes(&mut self, len: u64) -> Vec<u8> {
        let mut bytes = Vec::new();
        while (bytes.len() as u64) < len {
            bytes.extend_from_slice(&self.below(u64::MAX).to_le_bytes());
        }
        bytes.truncate(usize::try_from(len).unwrap_or(usize::MAX));
        bytes
    }
}

struct Writer {
    dir: PathBuf,
    prefix: String,
    ledger: Ledger,
    chance: Chance,
    /// Files that are durable, oldest first, with their content.
    files: VecDeque<(String, Vec<u8>)>,
    count: u64,
}

impl Writer {
    fn step(&mut self) -> Result<()> {
        if self.files.len() >= FILES_MAX {
            return self.unlink();
        }
        match self.chance.below(11) {
            10 if !self.files.is_empty() => self.read(),
            5..=6 if !self.files.is_empty() => self.append(),
            7..=8 if !self.files.is_empty() => self.replace(),
            9 if self.files.len() > FILES_MAX / 2 => self.unlink(),
            _ => self.create(),
        }
    }

    fn create(&mut self) -> Result<()> {
        self.count += 1;
        let (prefix, directory) = (&self.prefix, self.chance.below(DIRECTORIES));
        let name = format!("d{directory}/{prefix}f{}", self.count);
        let bytes = self.some_bytes();
        let path = self.dir.join(&name);
        write_durably(&path, &bytes, File::options().create_new(true).write(true))?;
        sync_directory(&path)?;
        self.ledger.done(&name, &Content::of(&bytes))?;
        self.files.push_back((name, bytes));
        Ok(())
    }

    fn append(&mut self) -> Result<()> {
        let more = self.some_bytes();
        let (name, bytes) = self.pick();
        write_durably(&self.dir.join(&name), &more, File::options().append(true))?;
        let bytes = [bytes, more].concat();
        self.ledger.done(&name, &Content::of(&bytes))?;
        self.files.push_back((name, bytes));
        Ok(())
    }

    fn replace(&mut self) -> Result<()> {
        let (name, _) = self.pick();
        let bytes = self.some_bytes();
        let path = self.dir.join(&name);
        let new = path.with_extension("new");
        write_durably(&new, &bytes, File::options().create_new(true).write(true))?;
        self.ledger.will(&name, &Content::of(&bytes))?;
        fs::rename(&new, &path).with_context(|| format!("rename {}", path.display()))?;
        sync_directory(&path)?;
        self.ledger.done(&name, &Content::of(&bytes))?;
        self.files.push_back((name, bytes));
        Ok(())
    }

    fn unlink(&mut self) -> Result<()> {
        let Some((name, _)) = self.files.pop_front() else { return Ok(()) };
        self.ledger.drop(&name)?;
        fs::remove_file(self.dir.join(&name)).with_context(|| format!("unlink {name}"))
    }

    /// Reads a file back: nobody else changes it.
    fn read(&mut self) -> Result<()> {
        let (name, bytes) = self.pick();
        let path = self.dir.join(&name);
        let found = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
        if found != bytes {
            let at = found.iter().zip(&bytes).position(|(found, wrote)| found != wrote);
            bail!("{name} {DIFFERS}: {} of {} bytes, first at {at:?}", found.len(), bytes.len());
        }
        self.files.push_back((name, bytes));
        Ok(())
    }

    /// Takes a random file out of the list; it comes back as the youngest.
    fn pick(&mut self) -> (String, Vec<u8>) {
        let index = self.chance.below(self.files.len() as u64);
        let index = usize::try_from(index).unwrap_or_default();
        self.files.remove(index).expect("the index is below the length")
    }

    fn some_bytes(&mut self) -> Vec<u8> {
        let limit = match self.chance.below(10) {
            0..=3 => 3_000,
            4..=7 => 40_000,
            8 => 300_000,
            _ => 1_000_000,
        };
        let len = 1 + self.chance.below(limit);
        self.chance.bytes(len)
    }
}

fn write_durably(path: &Path, bytes: &[u8], how: &fs::OpenOptions) -> Result<()> {
    let mut file = how.open(path).with_context(|| format!("open {}", path.display()))?;
    file.write_all(bytes).with_context(|| format!("write {}", path.display()))?;
    file.sync_all().with_context(|| format!("fsync {}", path.display()))
}

fn sync_directory(path: &Path) -> Result<()> {
    let dir = path.parent().context("a file is in a directory")?;
    File::open(dir)?.sync_all().with_context(|| format!("fsync {}", dir.display()))
}
