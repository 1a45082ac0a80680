//! Images of other programs, which qemu-img reads for us.

use std::io::ErrorKind;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use serde_json::Value;

use crate::place;

const QEMU_IMG: &str = "qemu-img";
/// Pause between looks at whether it has ended. It has no bound of its own: it copies as much as
/// there is, and its user can end it.
const LOOK_PAUSE: Duration = Duration::from_millis(20);

/// An image that can be read.
pub struct Image {
    path: PathBuf,
    format: String,
    size: u64,
}

impl Image {
    /// Looks at an image. A guest that had a raw image can write there what makes it look like
    /// another format, which names files of this machine: who is given such an image says `format`.
    pub fn open(path: &Path, format: Option<&str>) -> Result<Image> {
        let path = place::source(path)?;
        let mut look = Command::new(QEMU_IMG);
        look.args(["info", "--output=json"]);
        if let Some(format) = format {
            look.args(["-f", format]);
        }
        let output = look.arg(&path).output().map_err(|e| missing(&path, e))?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            bail!("cannot read {}: {}; nothing was done", path.display(), said.trim());
        }
        let about = understood(&output.stdout);
        let (format, size) = about.context("qemu-img does not say what the image is")?;
        Ok(Image { path, format, size })
    }

    /// Bytes of the disk that it holds.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Copies it onto a disk that reads zero and is long enough.
    pub fn copy_to(&self, target: &Path, is_over: &AtomicBool) -> Result<()> {
        let mut copy = Command::new(QEMU_IMG);
        copy.args(["convert", "-n", "-f", &self.format, "-O", "raw"]);
        if knows_target_is_zero() {
            copy.arg("--target-is-zero");
        }
        if std::io::IsTerminal::is_terminal(&std::io::stderr()) {
            copy.arg("-p");
        }
        // Our own answer is the only thing on stdout.
        let stderr = std::io::stderr().as_fd().try_clone_to_owned()?;
        copy.arg(&self.path).arg(target).stdin(Stdio::null()).stdout(stderr);
        let mut child = copy.spawn().map_err(|e| missing(&self.path, e))?;
        let status = end_of(&mut child, is_over)?;
        if is_over.load(Ordering::Relaxed) {
            bail!("a signal ended it");
        }
        if !status.success() {
            bail!("qemu-img could not copy {} ({status}), see above", self.path.display());
        }
        Ok(())
    }
}

fn end_of(child: &mut Child, is_over: &AtomicBool) -> Result<ExitStatus> {
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        if is_over.load(Ordering::Relaxed) {
            child.kill()?;
            return Ok(child.wait()?);
        }
        std::thread::sleep(LOOK_PAUSE);
    }
}

/// Since 5.1. Without it, zeroes of the image are written, too.
fn knows_target_is_zero() -> bool {
    let help = Command::new(QEMU_IMG).args(["convert", "--help"]).output();
    help.is_ok_and(|help| String::from_utf8_lossy(&help.stdout).contains("--target-is-zero"))
}

fn missing(image: &Path, error: std::io::Error) -> anyhow::Error {
    let why = match error.kind() {
        ErrorKind::NotFound => "is not installed (Debian: qemu-utils, Fedora: qemu-img)".into(),
        _ => format!("cannot be started: {error}"),
    };
    anyhow!("qemu-img, which reads {}, {why}; nothing was done", image.display())
}

fn understood(json: &[u8]) -> Option<(String, u64)> {
    let about: Value = serde_json::from_slice(json).ok()?;
    Some((about["format"].as_str()?.to_owned(), about["virtual-size"].as_u64()?))
}

#[cfg(test)]
mod tests {
    #[test]
    fn an_image_has_a_format_and_a_size() {
        let said = br#"{"virtual-size": 1048576, "filename": "a", "format": "qcow2"}"#;
        assert_eq!(super::understood(said), Some(("qcow2".into(), 1 << 20)));
        assert_eq!(super::understood(b"{}"), None);
        assert_eq!(super::understood(b"no"), None);
    }
}
