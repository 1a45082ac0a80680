//! The guest's root: this program as `/init`, the tools of ext4, what they load, kernel modules.
//!
//! A *newc* archive, as the kernel's early-userspace/buffer-format document has it. Nothing in it
//! has to be built for the guest: programs of this machine run there with their libraries.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::shell;

/// Programs besides ours, where Debian has them.
const PROGRAMS: &[&str] = &["/sbin/mke2fs", "/sbin/e2fsck"];
/// Read by mke2fs for what a usual ext4 is.
const SETTINGS: &str = "/etc/mke2fs.conf";

const DIRECTORY: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;
const CHARACTER_DEVICE: u32 = 0o020_600;

/// Files by path, without the first slash. Sorted: a directory comes before what is in it.
#[derive(Default)]
pub struct Archive(BTreeMap<String, Entry>);

struct Entry {
    mode: u32,
    device: (u32, u32),
    bytes: Vec<u8>,
}

/// Writes the guest's root to `path`.
pub fn make(path: &Path, modules: &[PathBuf]) -> Result<()> {
    let mut archive = Archive::default();
    for dir in ["dev", "proc", "sys", "mnt", "tmp"] {
        archive.put(dir, Entry { mode: DIRECTORY, device: (0, 0), bytes: Vec::new() });
    }
    // Before /dev is mounted the kernel opens this one for init.
    let console = Entry { mode: CHARACTER_DEVICE, device: (5, 1), bytes: Vec::new() };
    archive.put("dev/console", console);
    let us = fs::read_link("/proc/self/exe").context("our own path")?;
    archive.program("init", Path::new("/proc/self/exe"), &us)?;
    for program in PROGRAMS {
        archive.program(&program[1..], Path::new(program), Path::new(program))?;
    }
    if Path::new(SETTINGS).exists() {
        archive.file(&SETTINGS[1..], fs::read(SETTINGS)?);
    }
    for module in modules {
        let name = module.file_name().unwrap_or_default().to_string_lossy();
        let name = name.trim_end_matches(".xz");
        archive.file(&format!("modules/{name}"), plain(module)?);
    }
    fs::write(path, archive.bytes()).with_context(|| path.display().to_string())
}

/// A module as the kernel takes it.
fn plain(module: &Path) -> Result<Vec<u8>> {
    if module.extension().is_some_and(|extension| extension == "xz") {
        let unpacked = shell::command("xz", ["-dc"]).arg(module).output().context("xz")?;
        anyhow::ensure!(unpacked.status.success(), "xz cannot read {}", module.display());
        return Ok(unpacked.stdout);
    }
    fs::read(module).with_context(|| module.display().to_string())
}

impl Archive {
    /// A program with the libraries that the loader would take for it here.
    fn program(&mut self, name: &str, path: &Path, shown: &Path) -> Result<()> {
        let bytes = fs::read(path).with_context(|| path.display().to_string())?;
        self.file(name, bytes);
        // A build may have replaced the file since we were started: what it loads is the same.
        let loads = shell::output(shell::command("ldd", [] as [&str; 0]).arg(shown))?;
        for library in loads.lines().filter_map(library) {
            self.file(&library[1..], fs::read(library).with_context(|| library.to_owned())?);
        }
        Ok(())
    }

    fn file(&mut self, name: &str, bytes: Vec<u8>) {
        self.put(name, Entry { mode: PROGRAM, device: (0, 0), bytes });
    }

    fn put(&mut self, name: &str, entry: Entry) {
        for (at, _) in name.match_indices('/') {
            let dir = Entry { mode: DIRECTORY, device: (0, 0), bytes: Vec::new() };
            self.0.entry(name[..at].to_owned()).or_insert(dir);
        }
        self.0.insert(name.to_owned(), entry);
    }

    fn bytes(&self) -> Vec<u8> {
        let mut archive = Vec::new();
        for (inode, (name, entry)) in self.0.iter().enumerate() {
            append(&mut archive, inode + 1, name, entry);
        }
        let end = Entry { mode: 0, device: (0, 0), bytes: Vec::new() };
        append(&mut archive, 0, "TRAILER!!!", &end);
        archive
    }
}

/// The path in a line of ldd: `NAME => PATH (ADDRESS)`, or `PATH (ADDRESS)` for the loader.
fn library(line: &str) -> Option<&str> {
    line.split_whitespace().find(|word| word.starts_with('/'))
}

fn append(archive: &mut Vec<u8>, inode: usize, name: &str, entry: &Entry) {
    let (major, minor) = entry.device;
    let numbers = [
        u32::try_from(inode).unwrap_or_default(),
        entry.mode,
        0, // owner
        0, // group
        1, // links
        0, // time
        u32::try_from(entry.bytes.len()).unwrap_or_default(),
        0, // device it lies on
        0,
        major,
        minor,
        u32::try_from(name.len() + 1).unwrap_or_default(),
        0, // no checksum
    ];
    archive.extend_from_slice(b"070701");
    for number in numbers {
        archive.extend_from_slice(format!("{number:08x}").as_bytes());
    }
    archive.extend_from_slice(name.as_bytes());
    archive.push(0);
    pad(archive);
    archive.extend_from_slice(&entry.bytes);
    pad(archive);
}

fn pad(archive: &mut Vec<u8>) {
    archive.resize(archive.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_come_before_what_is_in_them() {
        let mut archive = Archive::default();
        archive.file("lib/a/b.so", vec![1, 2, 3]);
        archive.file("init", vec![4]);
        let names: Vec<_> = archive.0.keys().map(String::as_str).collect();
        assert_eq!(names, ["init", "lib", "lib/a", "lib/a/b.so"]);
        let bytes = archive.bytes();
        assert_eq!(bytes.len() % 4, 0);
        assert_eq!(bytes.windows(6).filter(|six| six == b"070701").count(), 5);
    }

    #[test]
    fn what_ldd_prints_becomes_paths() {
        assert_eq!(library("\tlibc.so.6 => /lib/x/libc.so.6 (0x7f)"), Some("/lib/x/libc.so.6"));
        assert_eq!(
            library("\t/lib64/ld-linux-x86-64.so.2 (0x7f)"),
            Some("/lib64/ld-linux-x86-64.so.2")
        );
        assert_eq!(library("\tlinux-vdso.so.1 (0x7ffd)"), None);
    }
}
