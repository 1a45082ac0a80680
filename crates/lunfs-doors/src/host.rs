//! How a host mounts and waits in these worlds.

use std::rc::Rc;
use std::time::Duration;

use lunfs_core::env::Env;
use lunfs_core::{Identity, MountOptions, Result, Volume};

/// Mounts as a host of this name.
pub async fn mount(env: &Env, name: &str) -> Result<Rc<Volume>> {
    let mut run = [0; 16];
    run[..8].copy_from_slice(&env.rng.next().to_le_bytes());
    let identity = Identity { run, ..Identity::default() };
    let options = MountOptions { name: name.into(), read_only: false, identity };
    Volume::mount(env.clone(), options).await
}

/// Lets some milliseconds pass.
pub async fn sleep(env: &Env, ms: u64) {
    env.clock.sleep(Duration::from_millis(ms)).await;
}
