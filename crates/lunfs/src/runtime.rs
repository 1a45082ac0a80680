//! The one thread of a command on which the core runs, and the doors it is given.

use std::future::Future;
use std::rc::Rc;

use anyhow::{Context, Result};
use lunfs_core::Identity;
use lunfs_core::env::Env;
use lunfs_host::disk::UringDisk;
use lunfs_host::{HostClock, HostRng, ImageFence};
use tokio::runtime::Builder;
use tokio::task::LocalSet;

/// Runs a task of the core on this thread until it ends.
pub fn block_on<T>(task: impl Future<Output = Result<T>>) -> Result<T> {
    let runtime =
        Builder::new_current_thread().enable_all().build().context("cannot start a runtime")?;
    let done = LocalSet::new().block_on(&runtime, task);
    // A thread of it may be caught in the kernel for ever. Nothing waits for what it brings.
    runtime.shutdown_background();
    done
}

/// The doors of the real world, for the program `identity`.
pub fn env(disk: UringDisk, identity: &Identity) -> Env {
    let fence = ImageFence::new(disk.source(), identity.clone());
    Env {
        disk: Rc::new(disk),
        fence: Rc::new(fence),
        clock: Rc::new(HostClock),
        rng: Rc::new(HostRng::default()),
    }
}
