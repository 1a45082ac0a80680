//! `lunfs format`: an empty volume, where nothing is lost by it.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use lunfs_core::FormatOptions;
use lunfs_core::env::Disk as _;
use lunfs_format::{Geometry, PlanError, Sizes, Superblock, Timing};
use lunfs_host::disk::{Access, UringDisk};
use lunfs_host::{format_guard, identity};
use rustix::fs::FallocateFlags;

use crate::out::say;
use crate::runtime::{self, env};
use crate::size::Size;
use crate::{name, place};

/// What to make, and where.
#[derive(Args)]
pub struct Options {
    /// Image file or block device
    source: PathBuf,
    /// Name of the volume
    #[arg(long, default_value = "", value_parser = name::label)]
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
    let shown = options.source.display();
    let superblock = if options.source.exists() {
        overwrite(options)?
    } else if let Some(size) = options.size {
        create(options, size)?
    } else {
        bail!("{shown} does not exist; give --size to create an image");
    };
    let source = place::source(&options.source)?;
    tell(&source, &superblock);
    warn_of_little_room(&source);
    Ok(ExitCode::SUCCESS)
}

/// All questions come before the first change: what is refused stays what it was.
fn overwrite(options: &Options) -> Result<Superblock> {
    let source = place::source(&options.source)?;
    let shown = options.source.display();
    if options.size.is_some() && !fs::metadata(&source)?.is_file() {
        bail!("{shown} is no image file: its size is what it is, leave out --size");
    }
    guard(&source, options.force)?;
    refuse_impossible(&source, options)?;
    if let Some(Size(size)) = options.size {
        let image = File::options().write(true).open(&source);
        let image = image.with_context(|| format!("cannot open {shown}"))?;
        grow(&image, size).with_context(|| format!("{shown} is as it was"))?;
    }
    write(&source, options)
}

/// A new image; gone again if no volume can be made of it.
fn create(options: &Options, Size(size): Size) -> Result<Superblock> {
    let path = &options.source;
    let image = File::options().write(true).create_new(true).open(path);
    let image = image.with_context(|| format!("cannot create {}", path.display()))?;
    let made = grow(&image, size).and_then(|()| {
        let source = place::source(path)?;
        refuse_impossible(&source, options)?;
        write(&source, options)
    });
    made.inspect_err(|_| drop(fs::remove_file(path)))
}

fn grow(image: &File, size: u64) -> Result<()> {
    image.set_len(size).with_context(|| {
        format!("a file of {} cannot be made there, its file system says", Size(size))
    })
}

/// What cannot become a volume is refused while it is still what it was.
fn refuse_impossible(source: &Path, options: &Options) -> Result<()> {
    let about = UringDisk::open(source, Access::ReadOnly)?.capabilities();
    let size = options.size.map_or(about.size, |Size(size)| size);
    let why = match Geometry::plan(size, about.logical_block, sizes(options)) {
        Ok(_) => return Ok(()),
        Err(PlanError::TooSmall { need }) => {
            format!("{} are too small for a volume, {} are needed", Size(size), exactly(need))
        }
        Err(PlanError::TooLarge { limit }) => {
            format!("{} are too large for a volume, {} are the limit", Size(size), exactly(limit))
        }
        Err(error) => error.to_string(),
    };
    bail!("{}: {why}; nothing was written", source.display())
}

fn exactly(bytes: u64) -> String {
    format!("{} ({bytes} bytes)", Size(bytes))
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

/// The image is sparse: what is written to the volume must fit on the file system below.
fn warn_of_little_room(source: &Path) {
    let Ok(about) = fs::metadata(source) else { return };
    let Some(room) = room_below(source).filter(|_| about.is_file()) else { return };
    let size = about.len();
    if size > room {
        eprintln!(
            "lunfs: warning: the image is sparse; it may grow to {}, and the file system below \
             has room for {}. When that is full, hosts stop, and what was not synced is lost: keep \
             an eye on it",
            Size(size),
            Size(room)
        );
    }
}

fn room_below(source: &Path) -> Option<u64> {
    let about = rustix::fs::statvfs(source).ok()?;
    about.f_bavail.checked_mul(about.f_frsize)
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
