//! Loop devices: files that the kernel shows as disks. Their user is the kernel, no process.

use std::fs;
use std::path::{Path, PathBuf};

/// A loop device and the file that it shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoopDevice {
    /// As in `/dev`: `loop3`.
    pub name: String,
    /// The file, as the kernel names it; with ` (deleted)` behind it where it has no name.
    pub backing: PathBuf,
    /// The device numbers of the whole and of its partitions.
    pub numbers: Vec<(u32, u32)>,
}

/// All loop devices that show a file.
pub fn loop_devices() -> Vec<LoopDevice> {
    let devices = fs::read_dir("/sys/block").into_iter().flatten().filter_map(Result::ok);
    devices.filter_map(|entry| loop_device(&entry.path())).collect()
}

fn loop_device(dir: &Path) -> Option<LoopDevice> {
    let backing = fs::read_to_string(dir.join("loop/backing_file")).ok()?;
    let partitions = fs::read_dir(dir).into_iter().flatten().filter_map(Result::ok);
    let dirs = partitions.map(|entry| entry.path()).chain([dir.to_owned()]);
    Some(LoopDevice {
        name: dir.file_name()?.to_string_lossy().into_owned(),
        backing: backing.trim_end_matches('\n').into(),
        numbers: dirs.filter_map(|dir| number_in(&dir.join("dev"))).collect(),
    })
}

/// `major:minor`.
fn number_in(file: &Path) -> Option<(u32, u32)> {
    let text = fs::read_to_string(file).ok()?;
    let (major, minor) = text.trim_end().split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}
