//! Mounting: /dev/fuse, mount(2), fuser's threads, and the loop that runs jobs on the core's
//! thread.
//!
//! fuser's own mount is not used: it cannot name the type `fuse.lunfs`, falls back to a set-uid
//! helper, and unmounts when dropped, where a stopped host must leave a mount that says ENOTCONN.

use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::thread;

use fuser::{Config, Session, SessionACL};
use lunfs_core::Volume;
use rustix::mount::{MountFlags, UnmountFlags};
use tokio::sync::{mpsc, oneshot};
use tokio::task;

use super::adapter::{Adapter, Job};
use super::server::Server;
use crate::error::{HostError, Result};
use crate::mount_table::{self, Mount};

/// The type of our mounts.
pub(crate) const FILE_SYSTEM: &str = "fuse.lunfs";

/// How to mount.
#[derive(Clone, Debug)]
pub struct FuseOptions {
    /// An empty directory.
    pub mountpoint: PathBuf,
    /// What the mount table shows as the source.
    pub source: String,
    /// The kernel refuses what would change anything.
    pub read_only: bool,
    /// Threads that take requests from the kernel.
    pub threads: usize,
}

/// A FUSE mount that is being served. Dropping it does not unmount.
#[derive(Debug)]
pub struct FuseMount {
    mount: Mount,
    /// `None`: it was told.
    ended: Option<oneshot::Receiver<io::Result<()>>>,
}

impl FuseMount {
    /// Mounts and starts serving; must be called inside a `LocalSet` of the core's thread.
    pub fn start(volume: &Rc<Volume>, options: &FuseOptions) -> Result<FuseMount> {
        let point = free_mount_point(&options.mountpoint)?;
        let device = mount(&point, options)?;
        match serve(volume, options, device, &point) {
            Ok(ended) => Ok(FuseMount { mount: entry(&point)?, ended: Some(ended) }),
            Err(e) => {
                // Nobody would ever answer there.
                let _ = rustix::mount::unmount(&point, UnmountFlags::DETACH);
                Err(e)
            }
        }
    }

    /// Its line in the mount table.
    pub fn mount(&self) -> &Mount {
        &self.mount
    }

    /// Ends when the kernel has unmounted it.
    pub async fn ended(&mut self) -> io::Result<()> {
        if let Some(ended) = &mut self.ended {
            let lost = |_| Err(io::Error::other("the FUSE threads ended"));
            let outcome = ended.await.unwrap_or_else(lost);
            self.ended = None;
            return outcome;
        }
        Ok(())
    }
}

fn free_mount_point(wanted: &Path) -> Result<PathBuf> {
    let shown = wanted.display();
    let point = fs::canonicalize(wanted).map_err(|e| {
        let hint = match e.raw_os_error() {
            Some(libc::ENOTCONN) => {
                format!("; a mount without a server is there, `lunfs unmount {shown}` removes it")
            }
            _ => String::new(),
        };
        HostError::io(format!("cannot mount at {shown}{hint}"), e)
    })?;
    if !point.is_dir() {
        return Err(HostError::new(format!("cannot mount at {shown}: it is not a directory")));
    }
    match mount_table::mounted_at(&point)? {
        Some(mount) if mount.kind == FILE_SYSTEM => {
            Err(HostError::new(format!("{} is mounted at {shown} already", mount.source)))
        }
        _ => Ok(point),
    }
}

fn mount(point: &Path, options: &FuseOptions) -> Result<File> {
    let device = OpenOptions::new().read(true).write(true).open("/dev/fuse").map_err(|e| {
        HostError::io("cannot open /dev/fuse; is the kernel module `fuse` loaded?", e)
    })?;
    // The kernel's own uid and gid count for nothing beside allow_other.
    let data = format!(
        "fd={},rootmode=40000,user_id=0,group_id=0,default_permissions,allow_other",
        device.as_raw_fd()
    );
    let data = CString::new(data).expect("no zero byte in it");
    let flags = if options.read_only { MountFlags::RDONLY } else { MountFlags::empty() };
    rustix::mount::mount(options.source.as_str(), point, FILE_SYSTEM, flags, data.as_c_str())
        .map_err(|e| HostError::io(format!("cannot mount at {}", point.display()), e))?;
    Ok(device)
}

fn serve(
    volume: &Rc<Volume>,
    options: &FuseOptions,
    device: File,
    point: &Path,
) -> Result<oneshot::Receiver<io::Result<()>>> {
    let failed = |e| HostError::io(format!("cannot serve {}", point.display()), e);
    let (jobs, queue) = mpsc::unbounded_channel();
    let mut config = Config::default();
    config.acl = SessionACL::All;
    config.n_threads = Some(options.threads.max(1));
    let adapter = Adapter { jobs };
    let session =
        Session::from_fd(adapter, device.into(), SessionACL::All, config).map_err(failed)?;
    let (end, ended) = oneshot::channel();
    let body = move || drop(end.send(session.run()));
    thread::Builder::new().name("lunfs-fuse".into()).spawn(body).map_err(failed)?;
    task::spawn_local(run_jobs(Rc::new(Server::new(Rc::clone(volume))), queue));
    Ok(ended)
}

/// One local task per request: none waits for another but inside the volume.
async fn run_jobs(server: Rc<Server>, mut queue: mpsc::UnboundedReceiver<Job>) {
    while let Some(job) = queue.recv().await {
        task::spawn_local(job(Rc::clone(&server)));
    }
}

fn entry(point: &Path) -> Result<Mount> {
    mount_table::mounted_at(point)?.ok_or_else(|| {
        HostError::new(format!("{} was unmounted while it was being mounted", point.display()))
    })
}
