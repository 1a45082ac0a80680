//! Giving up layers: a deleted disk gives up its snapshots and its top, a layer that nobody refers
//! to the one below it.
//!
//! Invariant: each step is one transaction that takes a reference and the count of it, and lists
//! what has none left (R12). A crash between two steps leaves the orphan listed, and it goes on
//! with what is left.

use lunfs_format::{Descriptor, FileKind};

use crate::allocate::Purpose;
use crate::error::{Error, Kind, Result};
use crate::types::FileId;
use crate::volume::Volume;

/// Images of a record that takes a reference.
const IMAGES: u64 = 8;

impl Volume {
    /// Has a layer freed that nobody refers to any more.
    pub(super) fn reap_if_unused(&self, id: FileId, body: &Descriptor) {
        if body.layer.names == 0 && body.layer.children == 0 {
            self.inode(id).unlinked.set(true);
            self.reap_if_closed(id);
        }
    }

    /// Gives up all layers of a deleted disk.
    pub(crate) async fn give_up_layers(&self, disk: FileId) -> Result<()> {
        loop {
            let found = {
                let _guard = self.hold(disk).await?;
                let body = self.current(disk);
                if body.top.is_none() {
                    return Ok(());
                }
                is_nameless(disk, &body)?;
                self.first_snapshot(disk).await?
            };
            match found {
                Some((name, layer)) => {
                    self.drop_snapshot(disk, &name, layer).await?;
                }
                None if self.give_up_top(disk).await? => return Ok(()),
                None => {}
            }
        }
    }

    /// `false`: a snapshot came meanwhile.
    async fn give_up_top(&self, disk: FileId) -> Result<bool> {
        let (guard, id, top) = self.hold_disk(disk).await?;
        is_nameless(disk, &self.current(disk))?;
        if self.first_snapshot(disk).await?.is_some() {
            return Ok(false);
        }
        if let Some(inode) = self.inodes.borrow().get(&id) {
            // What was never in a transaction dies with the disk.
            *inode.pending.borrow_mut() = None;
        }
        self.write_back(&guard).await?;
        let (mut body, mut layer) = (self.current(disk), self.current(id));
        let mut tx = self.begin(IMAGES, Purpose::Metadata).await?;
        (body.top, body.user) = (None, None);
        self.drop_name(&mut tx, id, &mut layer)?;
        tx.put_descriptor(disk.addr, body);
        tx.put_descriptor(id.addr, layer.clone());
        tx.finish().await?;
        drop((guard, top));
        self.reap_if_unused(id, &layer);
        Ok(true)
    }

    /// Takes the reference of a layer that is being freed to the one below it.
    pub(crate) async fn leave_below(&self, id: FileId) -> Result<()> {
        let below = {
            let _guard = self.hold(id).await?;
            let body = self.current(id);
            if body.kind != FileKind::Layer {
                return Ok(());
            }
            if body.layer.names > 0 || body.layer.children > 0 {
                let why = "a layer is listed as an orphan and has referrers";
                return Err(Error::damaged(id.addr.plus(1), why));
            }
            let Some(below) = body.layer.below else { return Ok(()) };
            FileId::from(below)
        };
        let guards = self.hold_all(&[id.into(), below.into()]).await.map_err(|e| match e.kind {
            Kind::Stale => Error::damaged(id.addr.plus(1), "the layer below it is gone"),
            _ => e,
        })?;
        let (mut body, mut lower) = (self.current(id), self.current(below));
        if body.layer.below != Some(below.into()) {
            return Ok(());
        }
        let mut tx = self.begin(IMAGES, Purpose::Metadata).await?;
        (body.layer.below, body.layer.visible) = (None, 0);
        self.drop_child(&mut tx, below, &mut lower, id)?;
        tx.put_descriptor(id.addr, body);
        tx.put_descriptor(below.addr, lower.clone());
        tx.finish().await?;
        drop(guards);
        self.reap_if_unused(below, &lower);
        Ok(())
    }
}

/// An orphan has no name. One that has was listed by mistake, and nothing of it may go.
fn is_nameless(disk: FileId, body: &Descriptor) -> Result<()> {
    if body.nlink > 0 {
        return Err(Error::damaged(disk.addr, "it is listed as an orphan and has a name"));
    }
    Ok(())
}
