//! The guest's kernel: Debian's for clouds, taken from its package and not installed.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::{root, shell};

/// Depends on the newest kernel of its kind.
const META_PACKAGE: &str = "linux-image-cloud-amd64";

/// What the guest needs beyond a kernel. One that the package does not have is built in.
const MODULES: &[&str] = &[
    "virtio",
    "virtio_ring",
    "virtio_pci_legacy_dev",
    "virtio_pci_modern_dev",
    "virtio_pci",
    "virtio_blk",
    "crc32c_generic",
    "crc16",
    "mbcache",
    "jbd2",
    "ext4",
];

/// A kernel and the modules for it.
pub struct Kernel {
    /// What QEMU boots.
    pub image: PathBuf,
    /// In any order.
    pub modules: Vec<PathBuf>,
}

/// The kernel, downloaded once.
pub fn get() -> Result<Kernel> {
    let dir = root().join("target/prove/guest-kernel");
    if !dir.exists() {
        download(&dir)?;
    }
    let image = starting_with(&dir.join("boot"), "vmlinuz-")?;
    let all = shell::output(shell::command("find", [""; 0]).arg(dir.join("lib/modules")))?;
    let modules = MODULES.iter().filter_map(|name| module(&all, name)).collect();
    Ok(Kernel { image, modules })
}

/// Unpacks the package into `dir`, which is there when all of it is.
fn download(dir: &Path) -> Result<()> {
    if std::env::consts::ARCH != "x86_64" {
        bail!("the guest runs on x86_64 only");
    }
    let depends = shell::output(&mut shell::command("apt-cache", ["depends", META_PACKAGE]))?;
    let mut names = depends.lines().filter_map(|line| line.trim().strip_prefix("Depends: "));
    let package = names.find(|name| name.starts_with("linux-image-")).context(META_PACKAGE)?;
    let new = dir.with_extension("new");
    if new.exists() {
        fs::remove_dir_all(&new)?;
    }
    fs::create_dir_all(&new)?;
    // As root apt gives the download to another user, who may not write here.
    let options = ["download", "-q", "-o", "APT::Sandbox::User=root", package];
    shell::output(shell::command("apt-get", options).current_dir(&new))?;
    let package = starting_with(&new, "linux-image-")?;
    shell::run(shell::command("dpkg-deb", ["-x"]).arg(&package).arg(&new))?;
    fs::remove_file(package)?;
    fs::rename(&new, dir).context("the guest's kernel")
}

fn starting_with(dir: &Path, start: &str) -> Result<PathBuf> {
    let entries = fs::read_dir(dir).with_context(|| dir.display().to_string())?;
    for entry in entries {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(start) {
            return Ok(entry.path());
        }
    }
    bail!("{}: nothing there is called {start}...", dir.display())
}

fn module(all: &str, name: &str) -> Option<PathBuf> {
    let names = [format!("/{name}.ko"), format!("/{name}.ko.xz")];
    all.lines().find(|path| names.iter().any(|name| path.ends_with(name))).map(PathBuf::from)
}
