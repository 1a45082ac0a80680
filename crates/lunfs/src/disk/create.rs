//! `lunfs disk create`: an empty disk with as much of its space as is wanted, or what an image has.
//!
//! Invariant: a disk that could not be filled is deleted again, unless this program is killed.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, anyhow, bail};
use clap::{Args, ValueEnum};
use lunfs_host::control::Request;
use lunfs_host::{Mount, Signals};
use rustix::fs::{FallocateFlags, fallocate};
use serde_json::Value;

use super::import::Image;
use super::{absolute, bytes, checked};
use crate::out::say;
use crate::progress::Progress;
use crate::size::Size;
use crate::{place, runtime};

/// Bytes that are allocated by one request: other work comes in between.
const ALLOCATE: u64 = 64 << 20;
/// Bytes of zeroes in one write, as the kernel sends them.
const ZEROES: usize = 1 << 20;

/// What to make, and where.
#[derive(Args)]
pub struct Create {
    /// Name of the new disk, on a mounted volume
    path: PathBuf,
    /// Its size, as in 20G; K, M, G, T and P are powers of 1024. With --from, only if it shall be
    /// longer than the image
    #[arg(long, required_unless_present = "from")]
    size: Option<Size>,
    /// When its space is taken
    #[arg(long, value_enum, default_value_t = Format::Thin)]
    format: Format,
    /// Begin with the contents of this image: raw, qcow2, vmdk, or what else qemu-img reads
    #[arg(long, value_name = "FILE")]
    from: Option<PathBuf>,
    /// What the image is, if it is not to be guessed from its contents
    #[arg(long, value_name = "NAME", requires = "from")]
    from_format: Option<String>,
    /// For scripts
    #[arg(long)]
    json: bool,
}

/// When a disk gets its space.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// When a guest writes
    Thin,
    /// At once, unwritten
    Lazy,
    /// At once, with zeroes written
    Eager,
}

/// Makes the disk, fills it, and makes it durable.
pub fn run(options: &Create) -> Result<ExitCode> {
    let shown = options.path.display();
    let (mount, path) = place::name_on_mount(&options.path)?;
    let format = options.from_format.as_deref();
    let image = options.from.as_deref().map(|from| Image::open(from, format)).transpose()?;
    let size = checked(size_of(options, image.as_ref())?)?;
    let target = std::path::absolute(&options.path)?;
    let fill = Arc::new(Fill { target, size, format: options.format, image });
    let mut told = runtime::block_on(made(&mount, path, &fill))?;
    if options.json {
        told["path"] = absolute(&options.path)?;
        say!("{told}");
    } else {
        let allocated = bytes(&told["allocated"]);
        say!("{shown} is a disk of {}, {allocated} are allocated", Size(size));
    }
    Ok(ExitCode::SUCCESS)
}

async fn made(mount: &Mount, path: String, fill: &Arc<Fill>) -> Result<Value> {
    // From here on no signal leaves half a disk.
    let mut signals = Signals::listen()?;
    let request = Request::CreateDisk { path: path.clone(), size: fill.size };
    let told = place::ask(mount, &request)?;
    if fill.is_nothing() {
        return Ok(told);
    }
    match filled(fill, &mut signals).await {
        Ok(()) => place::ask(mount, &Request::Disk { path }),
        Err(error) => Err(deleted(mount, path, &fill.target, error)),
    }
}

fn size_of(options: &Create, image: Option<&Image>) -> Result<u64> {
    let wanted = options.size.map(|Size(size)| size);
    match (wanted, image.map(Image::size)) {
        (Some(wanted), Some(needed)) if wanted < needed => bail!(
            "the image has {}, more than {}; nothing was done: leave out --size, or make the disk \
             smaller afterwards",
            Size(needed),
            Size(wanted)
        ),
        (Some(size), _) | (None, Some(size)) => Ok(size),
        (None, None) => bail!("a new disk needs --size"),
    }
}

fn deleted(mount: &Mount, path: String, target: &Path, why: anyhow::Error) -> anyhow::Error {
    let why = format!("cannot make {}: {why:#}", target.display());
    match place::ask(mount, &Request::DeleteDisk { path }) {
        Ok(_) => anyhow!("{why}; it was deleted again, and all else is as it was"),
        Err(e) => anyhow!("{why}; it stays, half filled, and is to be deleted: {e:#}"),
    }
}

/// What becomes of a new disk.
struct Fill {
    target: PathBuf,
    size: u64,
    format: Format,
    image: Option<Image>,
}

/// Fills a disk in a thread of its own, so that a signal ends it in good order.
async fn filled(fill: &Arc<Fill>, signals: &mut Signals) -> Result<()> {
    let is_over = Arc::new(AtomicBool::new(false));
    let (fill, seen) = (Arc::clone(fill), Arc::clone(&is_over));
    let mut work = tokio::task::spawn_blocking(move || fill.run(&seen));
    tokio::select! {
        done = &mut work => return done?,
        () = signals.recv() => is_over.store(true, Ordering::Relaxed),
    }
    work.await?
}

impl Fill {
    fn is_nothing(&self) -> bool {
        self.format == Format::Thin && self.image.is_none()
    }

    fn run(&self, is_over: &AtomicBool) -> Result<()> {
        let disk = File::options().write(true).open(&self.target);
        let disk = disk.context("the new disk cannot be opened")?;
        if self.format != Format::Thin {
            self.allocate(&disk, is_over)?;
        }
        if self.format == Format::Eager {
            self.write_zeroes(&disk, is_over)?;
        }
        if let Some(image) = &self.image {
            image.copy_to(&self.target, is_over)?;
            if self.format != Format::Thin {
                // An old qemu-img has made holes.
                self.allocate(&disk, is_over)?;
            }
        }
        disk.sync_all().context("it cannot be made durable")
    }

    fn allocate(&self, disk: &File, is_over: &AtomicBool) -> Result<()> {
        let mut progress = Progress::new("allocating", self.size);
        for at in (0..self.size).step_by(ALLOCATE as usize) {
            go_on(is_over)?;
            let len = ALLOCATE.min(self.size - at);
            let done = fallocate(disk, FallocateFlags::KEEP_SIZE, at, len);
            done.context("its space cannot be allocated (`lunfs info` shows what there is)")?;
            progress.reach(at + len);
        }
        Ok(())
    }

    fn write_zeroes(&self, disk: &File, is_over: &AtomicBool) -> Result<()> {
        let zeroes = vec![0; ZEROES];
        let mut progress = Progress::new("writing zeroes", self.size);
        let mut at = 0;
        while at < self.size {
            go_on(is_over)?;
            let rest = usize::try_from(self.size - at).unwrap_or(ZEROES);
            let piece = &zeroes[..rest.min(ZEROES)];
            disk.write_all_at(piece, at).context("zeroes cannot be written")?;
            at += piece.len() as u64;
            progress.reach(at);
        }
        Ok(())
    }
}

fn go_on(is_over: &AtomicBool) -> Result<()> {
    if is_over.load(Ordering::Relaxed) {
        bail!("a signal ended it");
    }
    Ok(())
}
