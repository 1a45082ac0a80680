//! The places that the workload needs.

use lunfs_core::{FileKind, Result, SetAttr, Volume};

use super::Places;
use super::naming::new;
use crate::executor::Owner;
use crate::model::file::Change;
use crate::world::World;

/// How much of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SetupOptions {
    /// Files that everybody writes.
    pub common: usize,
    /// Bytes of each.
    pub common_size: u64,
    /// Directories in which everybody does anything.
    pub arena: usize,
}

/// Makes all places, durably.
pub async fn set_up(
    world: &World,
    owner: Owner,
    volume: &Volume,
    options: SetupOptions,
) -> Result<Places> {
    let root = volume.root();
    let directory = || new(FileKind::Directory, &[]);
    let mut places = Places {
        shared: Some(volume.create(root, b"shared", directory()).await?.id),
        ..Places::default()
    };
    for worker in 0..world.options.hosts * world.options.workers {
        let name = format!("private{worker}");
        places.private.push(volume.create(root, name.as_bytes(), directory()).await?.id);
    }
    for number in 0..options.arena {
        let name = format!("arena{number}");
        places.arena.push(volume.create(root, name.as_bytes(), directory()).await?.id);
    }
    for number in 0..options.common {
        let name = format!("common{number}");
        let id = volume.create(root, name.as_bytes(), new(FileKind::File, &[])).await?.id;
        let size = SetAttr { size: Some(options.common_size), ..SetAttr::default() };
        let file = world.model.new_file();
        world.model.identify(file, id);
        let resize = Change::Resize(options.common_size);
        let (pending, _) = world.model.begin_bytes(file, &resize, owner);
        volume.setattr(id, size).await?;
        world.model.acknowledge_bytes(file, &pending);
        places.common.push((file, id));
    }
    let tick = world.model.tick();
    volume.sync().await?;
    world.model.synced(owner, tick, &[]);
    Ok(places)
}
