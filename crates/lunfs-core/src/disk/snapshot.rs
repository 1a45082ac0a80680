//! Snapshots: the top is frozen under its name, and an empty layer above it is the new top.
//!
//! Invariants:
//! - One record has the frozen old top, the new one and the disk (N14): a crash leaves all or
//!   nothing of a snapshot.
//! - The old top's lock is given up before the guards of disk and new top are (R6): whoever reaches
//!   it finds it in place, and no image of its map can be replayed any more (N1).

use std::ops::Bound;

use lunfs_format::{Content, Descriptor, LayerRef, Snapshot, Timestamp, Tree};

use crate::allocate::Purpose;
use crate::data::Held;
use crate::error::{Error, Kind, Result};
use crate::tree;
use crate::types::FileId;
use crate::volume::Volume;

/// Bytes of the table of snapshots that a disk keeps in its descriptor.
const SNAPSHOTS_INLINE: usize = 2400;
/// Longest name of a snapshot in bytes.
const NAME_MAX: usize = 255;
/// Snapshots that are read at a time.
const BATCH: usize = 256;
/// Images of a record that makes or deletes a snapshot: disk, old top, new top, path in the table.
const IMAGES: u64 = 12;

/// A snapshot, for showing it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotStatus {
    /// Its name.
    pub name: Vec<u8>,
    /// Bytes of the disk then.
    pub size: u64,
    /// When it was made.
    pub created: Timestamp,
    /// The layer that is its top.
    pub layer: FileId,
}

impl Volume {
    /// Makes a snapshot: the disk's contents as they are now, all writes that were answered
    /// included. It is durable when this returns, and so is what is in it.
    pub async fn snapshot(&self, disk: FileId, name: &[u8]) -> Result<()> {
        self.writable()?;
        let is_name = !name.is_empty() && !name.contains(&b'/') && !name.contains(&0);
        if !is_name || name.contains(&b'@') {
            return Err(Error::new(Kind::Invalid, "not a name of a snapshot"));
        }
        if name.len() > NAME_MAX {
            return Err(Error::new(Kind::TooLong, "a name is longer than 255 bytes"));
        }
        self.freeze_disk(disk, Some(name)).await?;
        Ok(())
    }

    /// Freezes the top, under a name or under none; returns it.
    pub(super) async fn freeze_disk(&self, disk: FileId, name: Option<&[u8]>) -> Result<FileId> {
        self.with_space(async || {
            let (guard, id, top) = self.hold_disk(disk).await?;
            let body = self.current(disk);
            if body.nlink == 0 {
                return Err(Error::new(Kind::NotFound, "the disk was deleted"));
            }
            self.used_by_nobody_else(&body).await?;
            if let Some(name) = name
                && self.snapshot_held(disk, name).await?.is_some()
            {
                return Err(Kind::Exists.into());
            }
            self.write_back(&guard).await?;
            // What was written and answered is in the snapshot: its map first, then it is frozen.
            self.write_back(&top).await?;
            self.put_top_above(disk, id, name).await?;
            // A crash before the lock is given leaves disk, old and new top with us: replay makes
            // all three or none. After it nothing of ours in any journal fits the old top.
            self.release_held(top).await?;
            Ok(id)
        })
        .await
    }

    /// The caller has the guards of the disk and of its top, which have nothing pending.
    async fn put_top_above(&self, disk: FileId, old: FileId, name: Option<&[u8]>) -> Result<()> {
        let mut body = self.current(disk);
        let mut frozen = self.current(old);
        let mut tx = self.begin(IMAGES, Purpose::New).await?;
        let made = self.reserve(2, Purpose::New).await?;
        let new = FileId { addr: made.start, birth: made.birth };
        let lock = self.init_lock(&made).await?;
        tx.put_new_descriptor(made, self.new_layer(frozen.size, Some((old, &frozen)))?);
        frozen.layer.frozen = true;
        frozen.layer.names = u32::from(name.is_some());
        Self::add_child(&mut frozen, new)?;
        if let Some(name) = name {
            let created = self.wall();
            let value = Snapshot { layer: old.into(), size: frozen.size, created }.encode();
            let mut table = table_of(&mut body);
            let mut store = tx.tree(disk.addr);
            tree::insert(&mut store, &mut table, SNAPSHOTS_INLINE, name, &value).await?;
            body.blocks = body.blocks.saturating_add_signed(store.nodes);
            body.content = Content::Tree(table);
        }
        body.top = Some(new.into());
        tx.put_descriptor(disk.addr, body);
        tx.put_descriptor(old.addr, frozen);
        tx.prepare().await?;
        self.adopt_new(new.addr, lock);
        tx.apply();
        // What is known of it as a top is not what it is as a snapshot.
        self.forget_stack(old.addr);
        self.inode(disk).top.set(Some(new));
        Ok(())
    }

    /// All snapshots of a disk, in the order of their names.
    pub async fn snapshots(&self, disk: FileId) -> Result<Vec<SnapshotStatus>> {
        self.reading(disk, async |view| {
            if view.body.top.is_none() {
                return Err(Error::new(Kind::Invalid, "it is a plain file, not a disk"));
            }
            let mut snapshots: Vec<SnapshotStatus> = Vec::new();
            loop {
                let after = snapshots.last().map(|last| last.name.clone());
                let from = after.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
                let found = tree::scan(view, &view.content_tree(), from, BATCH).await?;
                if found.is_empty() {
                    return Ok(snapshots);
                }
                for (name, value) in found {
                    let Snapshot { layer, size, created } = decode(disk, &value)?;
                    let layer = layer.into();
                    snapshots.push(SnapshotStatus { name, size, created, layer });
                }
            }
        })
        .await
    }

    /// Deletes a snapshot. Its space is free once nothing above needs it.
    pub async fn delete_snapshot(&self, disk: FileId, name: &[u8]) -> Result<()> {
        self.writable()?;
        self.with_space(async || {
            let missing = || {
                let name = String::from_utf8_lossy(name);
                Error::new(Kind::NotFound, format!("the disk has no snapshot \"{name}\""))
            };
            let layer = {
                let _guard = self.hold(disk).await?;
                self.top_of(disk)?;
                self.snapshot_held(disk, name).await?.ok_or_else(missing)?.layer
            };
            self.drop_snapshot(disk, name, layer).await?.then_some(()).ok_or_else(missing)
        })
        .await
    }

    /// Takes a snapshot's name away; `false`: it names that layer no more.
    pub(super) async fn drop_snapshot(
        &self,
        disk: FileId,
        name: &[u8],
        layer: LayerRef,
    ) -> Result<bool> {
        let id = FileId::from(layer);
        let guards = match self.hold_all(&[disk.into(), id.into()]).await {
            Err(e) if e.kind == Kind::Stale => return self.is_layer_lost(disk, name, layer).await,
            other => other?,
        };
        self.write_back_all(&guards).await?;
        if self.snapshot_held(disk, name).await?.map(|found| found.layer) != Some(layer) {
            return Ok(false);
        }
        let (mut body, mut frozen) = (self.current(disk), self.current(id));
        let mut tx = self.begin(IMAGES, Purpose::Metadata).await?;
        let mut table = table_of(&mut body);
        let mut store = tx.tree(disk.addr);
        tree::remove(&mut store, &mut table, SNAPSHOTS_INLINE, name).await?;
        body.blocks = body.blocks.saturating_add_signed(store.nodes);
        body.content = Content::Tree(table);
        self.drop_name(&mut tx, id, &mut frozen)?;
        tx.put_descriptor(disk.addr, body);
        tx.put_descriptor(id.addr, frozen.clone());
        tx.finish().await?;
        self.forget_stack(id.addr);
        drop(guards);
        self.reap_if_unused(id, &frozen);
        Ok(true)
    }

    /// A name goes before its layer does: a name without one is damage.
    async fn is_layer_lost(&self, disk: FileId, name: &[u8], layer: LayerRef) -> Result<bool> {
        let _guard = self.hold(disk).await?;
        if self.snapshot_held(disk, name).await?.map(|found| found.layer) != Some(layer) {
            return Ok(false);
        }
        Err(Error::damaged(disk.addr.plus(1), "a snapshot names a layer that is gone"))
    }

    /// What a name stands for, in a disk whose guard the caller has.
    pub(super) async fn snapshot_held(
        &self,
        disk: FileId,
        name: &[u8],
    ) -> Result<Option<Snapshot>> {
        let table = table_of(&mut self.current(disk));
        let store = Held { volume: self, id: disk };
        let value = tree::get(&store, &table, name).await?;
        value.map(|value| decode(disk, &value)).transpose()
    }

    /// The first snapshot of a disk whose guard the caller has.
    pub(super) async fn first_snapshot(&self, disk: FileId) -> Result<Option<(Vec<u8>, LayerRef)>> {
        let table = table_of(&mut self.current(disk));
        let store = Held { volume: self, id: disk };
        let found = tree::scan(&store, &table, Bound::Unbounded, 1).await?;
        let first = found.into_iter().next();
        first.map(|(name, value)| Ok((name, decode(disk, &value)?.layer))).transpose()
    }
}

fn table_of(body: &mut Descriptor) -> Tree {
    match std::mem::take(&mut body.content) {
        Content::Tree(table) => table,
        Content::Empty | Content::Bytes(_) => Tree::Empty,
    }
}

fn decode(disk: FileId, value: &[u8]) -> Result<Snapshot> {
    Snapshot::decode(value)
        .map_err(|e| Error::damaged(disk.addr, format!("an entry of its snapshots: {e}")))
}
