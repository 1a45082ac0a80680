//! `lunfs format`: an empty volume, where nothing is lost by it.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use lunfs_core::FormatOptions;
use lunfs_core::env::Disk as _;
use lunfs_format::{Geometry, Sizes, Superblock, Timing};
use lunfs_host::disk::{Access, UringDisk};
use lunfs_host::{format_guard, identity};
use rustix::fs::FallocateFlags;

use crate::out::say;
use crate::place;
use crate::runtime::{self, env};
use crate::size::Size;

/// What to make, and where.
#[derive(Args)]
pub struct Options {
    /// Image file or block device
    source: PathBuf,
    /// Name of the volume
    #[arg(long, default_value = "")]
    label: String,
    /// Create a sparse image of this size, as in 10G; K, M, G, T and P are powers of 1024
    #[arg(long)]
    size: Option<Size>,
    /// Slots, one for each host: a power of two from 64 to 1024. Fewer make joining cheaper, but
    /// hosts that died keep theirs until they are recovered: have twice as many as hosts
    #[arg(long, default_value_t = 1024)]
    slots: u32,
    /// How soon a silent host is taken over
    #[arg(long, value_enum, default_value_t = Pace::Fast)]
    timing: Pace,
    /// Overwrite what is there; never what is in use
    #[arg(long)]
    force: bool,
}

/// Timing of a volume.
#[derive(Clone, Copy, ValueEnum)]
enum Pace {
    /// For storage that answers within a second
    Fast,
    /// For storage that sometimes does not
    Calm,
}

/// Makes an empty volume and says what it is.
pub fn run(options: &Options) -> Result<ExitCode> {
    if options.label.len() > 64 {
        bail!("a label has at most 64 bytes");
    }
    let is_new = make_image(options)?;
    let source = place::source(&options.source)?;
    if !is_new {
        guard(&source, options.force)?;
        refuse_impossible(&source, options)?;
    }
    match write(&source, options) {
        Ok(superblock) => {
            tell(&source, &superblock);
            Ok(ExitCode::SUCCESS)
        }
        Err(error) => {
            if is_new {
                // Ours, and no volume: leave nothing behind.
                let _ = fs::remove_file(&source);
            }
            Err(error)
        }
    }
}

/// Makes the image if there is none; `true`: it is new. An image that is there gets the size.
fn make_image(options: &Options) -> Result<bool> {
    let path = &options.source;
    let shown = path.display();
    let Some(Size(size)) = options.size else {
        if !path.exists() {
            bail!("{shown} does not exist; give --size to create an image");
        }
        return Ok(false);
    };
    match File::options().write(true).create_new(true).open(path) {
        Ok(image) => {
            image.set_len(size).with_context(|| format!("cannot make {shown} so large"))?;
            Ok(true)
        }
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            let about = fs::metadata(path).with_context(|| format!("cannot look at {shown}"))?;
            if !about.is_file() {
                bail!("{shown} is a device: its size is what it is, leave out --size");
            }
            guard(path, options.force)?;
            refuse_impossible(path, options)?;
            let image = File::options().write(true).open(path);
            let image = image.with_context(|| format!("cannot open {shown}"))?;
            image.set_len(size).with_context(|| format!("cannot make {shown} so large"))?;
            Ok(false)
        }
        Err(error) => Err(error).with_context(|| format!("cannot create {shown}")),
    }
}

/// What cannot become a volume is refused while it is still what it was.
fn refuse_impossible(source: &Path, options: &Options) -> Result<()> {
    let about = UringDisk::open(source, Access::ReadOnly)?.capabilities();
    let size = options.size.map_or(about.size, |Size(size)| size);
    match Geometry::plan(size, about.logical_block, sizes(options)) {
        Ok(_) => Ok(()),
        Err(error) => bail!("{}: {error}; nothing was written", source.display()),
    }
}

fn sizes(options: &Options) -> Sizes {
    Sizes { cluster_blocks: None, slot_count: Some(options.slots) }
}

fn guard(source: &Path, force: bool) -> Result<()> {
    let shown = source.display();
    if let Some(user) = format_guard::in_use(source)? {
        bail!("{shown} is in use: {user}; nothing was written, and --force does not help");
    }
    match format_guard::what_is_there(source)? {
        Some(data) if !force => {
            bail!("{shown} holds data: {data}; nothing was written. If it may be lost, add --force")
        }
        _ => Ok(()),
    }
}

fn write(source: &Path, options: &Options) -> Result<Superblock> {
    clear_image(source)?;
    let disk = UringDisk::open(source, Access::ReadWrite)?;
    let env = env(disk, &identity(false)?);
    let format = FormatOptions {
        label: options.label.clone(),
        timing: match options.timing {
            Pace::Fast => Timing::FAST,
            Pace::Calm => Timing::CALM,
        },
        sizes: sizes(options),
    };
    runtime::block_on(async move { Ok(lunfs_core::format_volume(&env, &format).await?) })
}

/// Frees what an old image holds, so that the new one is sparse. A device keeps its blocks.
fn clear_image(source: &Path) -> Result<()> {
    let about = fs::metadata(source)?;
    if !about.is_file() || about.len() == 0 {
        return Ok(());
    }
    let image = File::options().write(true).open(source)?;
    let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    match rustix::fs::fallocate(&image, hole, 0, about.len()) {
        // A file system that cannot punch holes keeps the old bytes; format needs no zeroes.
        Ok(()) | Err(rustix::io::Errno::OPNOTSUPP) => Ok(()),
        Err(error) => Err(error).with_context(|| format!("cannot clear {}", source.display())),
    }
}

fn tell(source: &Path, superblock: &Superblock) {
    let geometry = superblock.geometry();
    let size = Size(geometry.volume_blocks * lunfs_format::BLOCK as u64);
    let label = match superblock.label.as_str() {
        "" => "without a label".into(),
        label => format!("\"{label}\""),
    };
    say!("{}: volume {} {label}, {size}", source.display(), superblock.volume);
    say!(
        "{} clusters of {} blocks, logical block {}, slots for {} hosts",
        geometry.cluster_count,
        geometry.cluster_blocks,
        geometry.logical_block,
        geometry.slot_count
    );
    say!("next: lunfs mount {} DIR", source.display());
}
