//! One writer on one mount, from its first file to the last look at what it was told is durable.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Child;

use anyhow::{Context, Result, bail};

use super::ledger::{self, Verified};
use super::world::{Host, World};
use super::writer::DIFFERS;

/// Where lives write that share their directories.
const SHARED: &str = "shared";

/// A writer, where it writes and what it was told.
pub struct Life {
    /// Its number in this scenario.
    pub number: u32,
    /// Where it writes, relative to a mount.
    place: PathBuf,
    /// How the names of its files begin.
    prefix: String,
    ledger: PathBuf,
    writer: Child,
}

impl Life {
    /// Starts a writer in a directory of its own.
    pub fn alone(world: &World, host: &Host, number: u32, seed: u64) -> Result<Life> {
        let place = PathBuf::from(format!("life{number}"));
        fs::create_dir(host.dir.join(&place)).context("a directory for a writer")?;
        Life::start(world, host, Life::named(world, number, place, ""), seed)
    }

    /// Starts a writer in directories that others write to at the same time, on other hosts.
    pub fn among_others(world: &World, host: &Host, number: u32, seed: u64) -> Result<Life> {
        let place = PathBuf::from(SHARED);
        fs::create_dir_all(host.dir.join(&place)).context("a directory for writers")?;
        let named = Life::named(world, number, place, &format!("life{number}-"));
        Life::start(world, host, named, seed)
    }

    fn named(world: &World, number: u32, place: PathBuf, prefix: &str) -> Named {
        let ledger = world.path(&format!("logs/life{number}.ledger"));
        Named { number, place, prefix: prefix.into(), ledger }
    }

    fn start(world: &World, host: &Host, named: Named, seed: u64) -> Result<Life> {
        let Named { number, place, prefix, ledger } = named;
        let writer = world.writer(&host.dir.join(&place), &ledger, seed, &prefix)?;
        Ok(Life { number, place, prefix, ledger, writer })
    }

    /// How often it was told that something is durable.
    pub fn count_done(&self) -> Result<usize> {
        if self.ledger.exists() { ledger::count_done(&self.ledger) } else { Ok(0) }
    }

    /// What it said when it ended by itself; `None`: it is running.
    pub fn last_words(&mut self) -> Result<Option<String>> {
        let Some(status) = self.writer.try_wait()? else { return Ok(None) };
        Ok(Some(format!("{status}: {}", self.said()?)))
    }

    /// Ends it. Where it read something else than it wrote, that is the error.
    pub fn end(&mut self) -> Result<()> {
        // It may have ended by itself, together with its host.
        let _ = self.writer.kill();
        self.writer.wait()?;
        let said = self.said()?;
        if said.contains(DIFFERS) {
            bail!("life{}: {}", self.number, said.trim());
        }
        Ok(())
    }

    fn said(&self) -> Result<String> {
        let path = self.ledger.with_extension("stderr");
        fs::read_to_string(&path).with_context(|| path.display().to_string())
    }

    /// Compares its files, as `host` sees them, with what it was told.
    pub fn verify(&self, host: &Host) -> Result<Verified> {
        ledger::verify(&host.dir.join(&self.place), &self.ledger)
            .with_context(|| format!("life{}, seen by {}", self.number, host.name))
    }

    /// Removes its files through `host`.
    pub fn remove(&self, host: &Host) -> Result<()> {
        let place = host.dir.join(&self.place);
        if self.prefix.is_empty() {
            return fs::remove_dir_all(&place).context(place.display().to_string());
        }
        for dir in list(&place)? {
            for file in list(&dir)? {
                let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
                if name.starts_with(&self.prefix) {
                    fs::remove_file(&file).context(file.display().to_string())?;
                }
            }
        }
        Ok(())
    }
}

/// A writer before its start.
struct Named {
    number: u32,
    place: PathBuf,
    prefix: String,
    ledger: PathBuf,
}

fn list(dir: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(dir).with_context(|| format!("list {}", dir.display()))?;
    entries.map(|entry| Ok(entry?.path())).collect()
}
