//! `qemu`: what QEMU's tools do with images on a mount is what they do on a local file system.
//!
//! That is the storage of Proxmox VE's kind *directory*: raw and qcow2 files, opened with O_DIRECT.
//! Every command of a list runs in a directory on the mount and in a local one, and must say the
//! same; then the images must be the same, also through another host.

mod bench;
mod images;
mod locks;
mod twins;

use std::fs;

use anyhow::{Context, Result};

use super::world::World;
use super::{Extent, Figure};
use twins::Twins;

/// Runs all commands on both sides, then looks at speed and locks.
pub fn run(_: &Extent) -> Result<Figure> {
    let mut world = World::new("qemu")?;
    world.format_image("8G")?;
    let a = world.mount("a")?;
    let b = world.mount("b")?;
    let (local, on_mount) = (world.path("local"), a.dir.join("images"));
    fs::create_dir(&local)?;
    fs::create_dir(&on_mount).context("a directory on the mount")?;
    let mut twins = Twins::new(local, on_mount, b.dir.join("images"));

    images::commands(&mut twins)?;
    images::preallocation(&mut twins)?;
    images::across(&mut twins)?;
    images::same_contents(&mut twins)?;
    images::zeroing(&twins)?;
    let locks = locks::look(&world, &a, &b)?;
    bench::tell(&twins)?;

    let Twins { commands, differences, times, .. } = twins;
    let longest = times.iter().map(|(_, mount, _)| *mount).max().unwrap_or_default();
    world.unmount(a)?;
    world.unmount(b)?;
    world.check()?;
    world.done();
    Ok(Figure {
        measured: format!(
            "{commands} commands, {} differences, longest {:.1} s; locks of images hold on one \
             host, between hosts: {locks}",
            differences.len(),
            longest.as_secs_f64()
        ),
        bound: "0 differences; locks hold on one host".into(),
        is_kept: differences.is_empty(),
    })
}
