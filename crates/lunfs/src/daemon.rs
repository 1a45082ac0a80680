//! `lunfs daemon`: serves a mount. Its parent (mount.rs) starts it and reads two lines from it:
//! which slot is ours, and that files can be used.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::rc::Rc;

use anyhow::Result;
use clap::Args;
use lunfs_core::{MountOptions, Volume};
use lunfs_host::control::About;
use lunfs_host::disk::{Access, UringDisk};
use lunfs_host::fuse::FuseOptions;
use lunfs_host::parent::{Announcement, announce};
use lunfs_host::{Ending, identity, serve_mount};
use rustix::io::Errno;

use crate::{logging, mount, runtime};

/// Threads that take requests from the kernel; the core has one.
const FUSE_THREADS: usize = 2;

/// As `lunfs mount`, with everything decided.
#[derive(Args)]
pub struct Options {
    source: PathBuf,
    dir: PathBuf,
    #[arg(long)]
    host: String,
    #[arg(long)]
    log: PathBuf,
    #[arg(long)]
    read_only: bool,
    /// Leave the terminal once files can be used
    #[arg(long)]
    detached: bool,
}

/// Serves until the mount ends. Its exit code tells the parent: 0 is a clean end.
pub fn run(options: &Options) -> Result<ExitCode> {
    logging::start(&options.log, !options.detached)?;
    end_at_a_panic();
    watch_parent();
    let ending = runtime::block_on(serve(options));
    match ending {
        Ok(Ending::Unmounted) => Ok(ExitCode::SUCCESS),
        Ok(Ending::Lossy(why)) => {
            tracing::error!(event = "unwritten", why, "unmounted, but not all could be written");
            Ok(ExitCode::FAILURE)
        }
        Ok(Ending::Stopped(why)) => {
            let advice = if is_storage_full(&why) { STORAGE_FULL } else { "other hosts take over" };
            tracing::error!(event = "stopped", why, "this mount is dead; {advice}");
            // At once: nothing may be written any more, not even by what destructors do.
            std::process::exit(1);
        }
        Err(error) => {
            tracing::error!(event = "failed", why = format!("{error:#}"), "the daemon ends");
            Err(error)
        }
    }
}

/// Whatever a panic left half changed in memory must not go on: the host dies as by a kill, its
/// parent says so on the volume, and others replay what was durable.
fn end_at_a_panic() {
    let tell = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        tell(info);
        tracing::error!(event = "panic", %info, "a defect of lunfs: this mount is dead");
        std::process::abort();
    }));
}

/// Tells when the parent is gone: stdin is a pipe that only it holds. The mount goes on without
/// it, but nobody will speak the last word of this host.
fn watch_parent() {
    std::thread::spawn(|| {
        // Nothing is ever written to it.
        let ended = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        tracing::warn!(
            event = "parent_gone",
            ?ended,
            "the parent has died; this mount goes on, but if its daemon dies, too, others wait \
             until they are sure of it"
        );
    });
}

async fn serve(options: &Options) -> Result<Ending> {
    let identity = identity(true)?;
    let disk = open(options)?;
    let env = runtime::env(disk, &identity);
    let fence = env.fence.method();
    let how = MountOptions {
        name: options.host.clone(),
        read_only: options.read_only,
        identity: identity.clone(),
    };
    let volume = Volume::mount(env, how).await.map_err(with_advice)?;
    announce(std::io::stdout(), &announcement(&volume, identity.run))?;
    let source = options.source.display().to_string();
    let fuse = FuseOptions {
        mountpoint: options.dir.clone(),
        source: source.clone(),
        read_only: options.read_only,
        threads: FUSE_THREADS,
    };
    let about = About { name: options.host.clone(), source, fence, read_only: options.read_only };
    let ready = |mount: &lunfs_host::Mount| tell_ready(options, &mount.point);
    Ok(serve_mount(volume, &fuse, about, ready).await?)
}

fn open(options: &Options) -> Result<UringDisk> {
    UringDisk::open(&options.source, Access::ReadWrite).map_err(|error| {
        let is_refused = matches!(
            error.kind(),
            Some(ErrorKind::ReadOnlyFilesystem | ErrorKind::PermissionDenied)
        );
        let error = anyhow::Error::from(error);
        if is_refused {
            return error.context(
                "the storage must be writable, with --read-only too: a host writes its pulse, its \
                 locks and its journal; nothing was done. `lunfs check` and `lunfs inspect` only \
                 read",
            );
        }
        error
    })
}

/// The storage says that it is full, which an image on a full file system does.
fn is_storage_full(why: &str) -> bool {
    why.contains(&Errno::NOSPC.to_string())
}

const STORAGE_FULL: &str = "the storage below the volume is full: nothing that was synced is lost. \
                            Make room there, then mount again";

fn with_advice(error: lunfs_core::Error) -> anyhow::Error {
    let is_full = is_storage_full(&error.to_string());
    let error = anyhow::Error::from(error);
    if is_full { error.context(STORAGE_FULL) } else { error }
}

fn announcement(volume: &Rc<Volume>, run: [u8; 16]) -> Announcement {
    let me = volume.me();
    Announcement {
        volume: volume.superblock().volume.0,
        slot: me.slot.0,
        incarnation: me.incarnation.0,
        run,
    }
}

#[expect(clippy::print_stdout, reason = "a parent that is gone is a panic, which the log tells")]
fn tell_ready(options: &Options, point: &Path) {
    tracing::info!(
        event = "mounted",
        source = %options.source.display(),
        dir = %point.display(),
        host = options.host,
        "files can be used"
    );
    println!("{}", mount::READY);
    if options.detached
        && let Err(error) = mount::leave_terminal()
    {
        tracing::warn!(event = "terminal", %error, "the terminal stays open");
    }
}
