//! Who uses a mount: for the sentence that says why it cannot be unmounted.
//!
//! Only links are read, nothing on the mount itself is touched: its server may be us, or dead.

use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

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

/// Processes that keep `mount` busy, as far as this program may see them.
pub fn users_of(mount: &Mount) -> Vec<User> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let numbers = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let mut users: Vec<User> = numbers.filter_map(|pid| user(pid, mount)).collect();
    users.sort_by_key(|user| user.pid);
    users
}

fn user(pid: u32, mount: &Mount) -> Option<User> {
    let dir = PathBuf::from(format!("/proc/{pid}"));
    let mut uses = Vec::new();
    for link in ["cwd", "root", "exe"] {
        uses.extend(used_by_link(&dir.join(link), mount).map(|path| format!("{link} {path}")));
    }
    uses.extend(open_files(&dir, mount));
    uses.extend(mapped_file(&dir, mount).map(|path| format!("map {path}")));
    if uses.is_empty() {
        return None;
    }
    let name = fs::read_to_string(dir.join("comm")).unwrap_or_default();
    Some(User { pid, name: name.trim_end().to_owned(), uses })
}

/// Processes come and go while we look: what cannot be read is not there.
fn used_by_link(link: &Path, mount: &Mount) -> Option<String> {
    let target = fs::read_link(link).ok()?;
    target.starts_with(&mount.point).then(|| target.display().to_string())
}

fn open_files(dir: &Path, mount: &Mount) -> Vec<String> {
    let Ok(entries) = fs::read_dir(dir.join("fd")) else { return Vec::new() };
    let numbers = entries.filter_map(|entry| Some(entry.ok()?.file_name()));
    numbers.filter_map(|number| open_file(dir, &number, mount)).collect()
}

fn open_file(dir: &Path, number: &OsStr, mount: &Mount) -> Option<String> {
    let link = dir.join("fd").join(number);
    let target = fs::read_link(&link).ok()?;
    // The path counts in our namespace; the mount's number tells also in a process's own root.
    let is_there = target.starts_with(&mount.point)
        || mount_id(&dir.join("fdinfo").join(number)) == Some(mount.id);
    is_there.then(|| format!("fd {} {}", number.to_string_lossy(), target.display()))
}

fn mount_id(fdinfo: &Path) -> Option<u64> {
    let text = fs::read_to_string(fdinfo).ok()?;
    text.lines().find_map(|line| line.strip_prefix("mnt_id:")?.trim().parse().ok())
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
    use super::*;
    use crate::mount_table::mount_of;
    use crate::scratch::Scratch;

    #[test]
    fn an_open_file_names_its_process() {
        let scratch = Scratch::image("users", 4096);
        let _open = scratch.open();
        let path = fs::canonicalize(scratch.path()).unwrap();
        let mount = mount_of(&path).unwrap().unwrap();
        let users = users_of(&mount);
        let us = users.iter().find(|user| user.pid == std::process::id()).expect("we use it");
        let shown = path.display().to_string();
        assert!(
            us.uses.iter().any(|one| one.starts_with("fd ") && one.ends_with(&shown)),
            "{us:?}"
        );
        assert!(!us.name.is_empty());

        let nowhere =
            Mount { point: "/nowhere".into(), id: u64::MAX, device: (0, 0xfffff), ..mount };
        assert_eq!(users_of(&nowhere), []);
    }
}
