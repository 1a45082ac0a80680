//! Which processes use a mount: for the sentence that says why it cannot be unmounted.
//!
//! A process is found by the device of the file system, not by a path or a mount: it may reach the
//! same files through a bind mount, or through a copy of the mount in another namespace. Nothing on
//! the mount itself is asked: its server may be us, or dead.

use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, StatxFlags, statx};
use serde::{Deserialize, Serialize};

use crate::mount_table::Mount;

/// A process that uses a mount.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    /// Its number.
    pub pid: u32,
    /// Its name.
    pub name: String,
    /// What it has there: `cwd`, `root`, `exe`, `fd 5`, `map`, and the path.
    pub uses: Vec<String>,
}

/// Processes that keep the file system of `mount` busy, as far as this program may see them.
pub fn users_of(mount: &Mount) -> Vec<User> {
    let mut users: Vec<User> = processes().filter_map(|pid| user(pid, mount)).collect();
    users.sort_by_key(|user| user.pid);
    users
}

/// The numbers of all processes that this program may see.
pub fn processes() -> impl Iterator<Item = u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten();
    entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
}

/// The name of a process; empty if it has ended.
pub fn name_of(pid: u32) -> String {
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    name.trim_end().to_owned()
}

fn user(pid: u32, mount: &Mount) -> Option<User> {
    let dir = PathBuf::from(format!("/proc/{pid}"));
    let mut uses = Vec::new();
    for link in ["cwd", "root", "exe"] {
        uses.extend(used_by_link(&dir.join(link), mount).map(|path| format!("{link} {path}")));
    }
    uses.extend(open_files(&dir, mount));
    uses.extend(mapped_file(&dir, mount).map(|path| format!("map {path}")));
    (!uses.is_empty()).then(|| User { pid, name: name_of(pid), uses })
}

/// Processes come and go while we look: what cannot be read is not there.
fn used_by_link(link: &Path, mount: &Mount) -> Option<String> {
    is_on(link, mount).then(|| target_of(link))
}

fn target_of(link: &Path) -> String {
    fs::read_link(link).map_or_else(|_| "?".to_owned(), |target| target.display().to_string())
}

/// What the link leads to lies on the file system, as the kernel has it in memory.
fn is_on(link: &Path, mount: &Mount) -> bool {
    let flags = AtFlags::STATX_DONT_SYNC | AtFlags::NO_AUTOMOUNT;
    let about = statx(CWD, link, flags, StatxFlags::empty());
    about.is_ok_and(|about| (about.stx_dev_major, about.stx_dev_minor) == mount.device)
}

fn open_files(dir: &Path, mount: &Mount) -> Vec<String> {
    let Ok(entries) = fs::read_dir(dir.join("fd")) else { return Vec::new() };
    let numbers = entries.filter_map(|entry| Some(entry.ok()?.file_name()));
    numbers.filter_map(|number| open_file(dir, &number, mount)).collect()
}

fn open_file(dir: &Path, number: &OsStr, mount: &Mount) -> Option<String> {
    let target = used_by_link(&dir.join("fd").join(number), mount)?;
    Some(format!("fd {} {target}", number.to_string_lossy()))
}

/// The first mapped file of the mount: `start-end perms offset major:minor inode path`.
fn mapped_file(dir: &Path, mount: &Mount) -> Option<String> {
    let wanted = format!("{:02x}:{:02x}", mount.device.0, mount.device.1);
    let lines = BufReader::new(fs::File::open(dir.join("maps")).ok()?).lines();
    lines.map_while(Result::ok).find_map(|line| {
        let mut fields = line.split_ascii_whitespace();
        (fields.nth(3)? == wanted).then(|| fields.nth(1).unwrap_or("?").to_owned())
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;
    use crate::mount_table::mount_of;
    use crate::scratch::Scratch;

    #[test]
    fn an_open_file_names_its_process() {
        let scratch = Scratch::image("users", 4096);
        let open = scratch.open();
        let path = fs::canonicalize(scratch.path()).unwrap();
        let mount = mount_of(&path).unwrap().unwrap();
        // Some file systems have more devices than the one of their mount.
        let number = open.metadata().unwrap().dev();
        let device = (rustix::fs::major(number), rustix::fs::minor(number));
        // By another name of the mount: the path does not count.
        let mount = Mount { point: "/nowhere".into(), id: u64::MAX, device, ..mount };
        let users = users_of(&mount);
        let us = users.iter().find(|user| user.pid == std::process::id()).expect("we use it");
        let shown = path.display().to_string();
        assert!(
            us.uses.iter().any(|one| one.starts_with("fd ") && one.ends_with(&shown)),
            "{us:?}"
        );
        assert!(!us.name.is_empty());

        assert_eq!(users_of(&Mount { device: (0, 0xfffff), ..mount }), []);
    }
}
