//! Disks: files whose contents are a stack of layers (docs/decisions/0018-disks.md).
//!
//! | module | what it holds |
//! |---|---|
//! | `create` | making disks and clones |
//! | `snapshot` | freezing, listing and deleting snapshots |
//! | `read` | reading a snapshot in place |
//! | `stack` | what shows from the layers below |
//! | `gone` | giving up layers that nobody refers to |
//! | `user` | who may use a disk |
//!
//! ```text
//!   name ---> file --top--> T --below--> L2 --below--> L1
//!               |                         ^             ^
//!               +--snapshots: "b" --------+    "a" -----+
//! ```
//!
//! Invariants:
//! - The top of a disk is not frozen, has one name (the disk) and no children. All else in a stack
//!   is frozen.
//! - A layer counts its names and children; one without either is listed as an orphan by the
//!   transaction that took the last (R12).
//! - Guards of a disk and of layers are taken as those of several files are: looked for without
//!   holding any, then in the order of addresses.

mod create;
mod gone;
mod read;
mod snapshot;
mod stack;
mod user;

pub use snapshot::SnapshotStatus;
pub(crate) use stack::{Patch, Stack};

use lunfs_format::{BlockNo, Content, Descriptor, FileKind, Layer, LayerRef, Tree, Version};

use crate::error::{Error, Kind, Result};
use crate::locks::{ReadGuard, Wish, WriteGuard};
use crate::orphans::Orphan;
use crate::transaction::Transaction;
use crate::types::FileId;
use crate::volume::Volume;

impl From<LayerRef> for FileId {
    fn from(layer: LayerRef) -> FileId {
        FileId { addr: layer.addr, birth: layer.birth }
    }
}

impl From<FileId> for LayerRef {
    fn from(id: FileId) -> LayerRef {
        LayerRef { addr: id.addr, birth: id.birth }
    }
}

/// Layers below a top at most.
const LAYERS_MAX: u32 = 1024;

/// The object that has the contents of a file, for changing them: the file itself, or the top of a
/// disk.
pub(crate) struct Contents {
    /// Which object.
    pub id: FileId,
    /// Its guard.
    pub guard: WriteGuard,
    /// That of the disk.
    _disk: Option<WriteGuard>,
}

/// The same for reading, of a disk.
pub(crate) struct SharedTop {
    /// The top.
    pub id: FileId,
    /// Its guard.
    pub guard: ReadGuard,
    /// That of the disk.
    pub disk: ReadGuard,
}

impl Contents {
    /// Those of a file that has them itself, or whose contents do not matter.
    pub fn of_file(file: FileId, guard: WriteGuard) -> Contents {
        Contents { id: file, guard, _disk: None }
    }
}

impl Volume {
    /// What holds the contents of a file, for changing them.
    pub(crate) async fn hold_contents(&self, file: FileId) -> Result<Contents> {
        let guard = self.hold(file).await?;
        if self.current(file).top.is_none() {
            return Ok(Contents::of_file(file, guard));
        }
        drop(guard);
        let (disk, id, guard) = self.hold_disk(file).await?;
        self.use_disk(file).await?;
        Ok(Contents { id, guard, _disk: Some(disk) })
    }

    /// The guards of a disk and of its top.
    pub(crate) async fn hold_disk(&self, disk: FileId) -> Result<(WriteGuard, FileId, WriteGuard)> {
        let mut top = {
            let _guard = self.hold(disk).await?;
            self.top_of(disk)?
        };
        loop {
            let held = self.hold_all(&[disk.into(), top.into()]).await;
            let now = match &held {
                Ok(_) => self.top_of(disk)?,
                // It was replaced and freed, or it is damaged.
                Err(e) if e.kind == Kind::Stale => {
                    let _guard = self.hold(disk).await?;
                    self.top_of(disk)?
                }
                Err(_) => top,
            };
            if now != top {
                top = now;
                continue;
            }
            let mut guards = held?;
            let at = guards.iter().position(|guard| guard.entry.addr == top.addr);
            let guard = guards.swap_remove(at.ok_or_else(|| two_roles(disk))?);
            check_top(top, &self.current(top))?;
            self.inode(disk).top.set(Some(top));
            return Ok((guards.pop().ok_or_else(|| two_roles(disk))?, top, guard));
        }
    }

    /// The guards of a disk and of its top, for reading both.
    pub(crate) async fn share_disk(&self, disk: FileId) -> Result<SharedTop> {
        if let Some(shared) = self.share_held(disk).await {
            return Ok(shared);
        }
        let (guard, id, top) = self.hold_disk(disk).await?;
        self.use_disk(disk).await?;
        Ok(SharedTop { id, guard: top.downgrade(), disk: guard.downgrade() })
    }

    /// The same if both are here and this host may use it.
    async fn share_held(&self, disk: FileId) -> Option<SharedTop> {
        let entry = self.locks.exactly(disk.into())?;
        entry.held()?;
        let top = FileId::from(self.current(disk).top.filter(|top| top.addr != disk.addr)?);
        let wishes = if disk < top { [disk, top] } else { [top, disk] };
        let first = self.read_held(Wish::from(wishes[0])).await?;
        let second = self.read_held(Wish::from(wishes[1])).await?;
        // Waiting for guards, it may have got another top.
        if self.current(disk).top != Some(top.into()) || !self.is_used_by_us(disk) {
            return None;
        }
        check_top(top, &self.current(top)).ok()?;
        self.inode(disk).top.set(Some(top));
        let (guard, of_disk) = if disk < top { (second, first) } else { (first, second) };
        Some(SharedTop { id: top, guard, disk: of_disk })
    }

    /// The top of a disk whose guard the caller has.
    fn top_of(&self, disk: FileId) -> Result<FileId> {
        let body = self.current(disk);
        let top = body.top.ok_or_else(|| match body.nlink {
            0 => Error::new(Kind::Stale, format!("the disk at {} is gone", disk.addr)),
            _ => Error::new(Kind::Invalid, "it is a plain file, not a disk"),
        })?;
        if top.addr == disk.addr {
            return Err(two_roles(disk));
        }
        Ok(top.into())
    }

    /// A layer to be made above `below`, which shows up to its size.
    fn new_layer(&self, size: u64, below: Option<(FileId, &Descriptor)>) -> Result<Descriptor> {
        let now = self.wall();
        let depth = below.map_or(0, |(_, body)| body.layer.depth.saturating_add(1));
        if depth > LAYERS_MAX {
            let why = format!(
                "the disk has {LAYERS_MAX} layers below it already; nothing was changed, copy it \
                 to a new disk"
            );
            return Err(Error::new(Kind::TooManyLinks, why));
        }
        let below = below.map(|(id, _)| LayerRef::from(id));
        Ok(Descriptor {
            version: Version::default(),
            owner: BlockNo(0),
            kind: FileKind::Layer,
            mode: 0,
            uid: 0,
            gid: 0,
            nlink: 0,
            rdev: 0,
            size,
            blocks: 0,
            atime: now,
            mtime: now,
            ctime: now,
            btime: now,
            parent: BlockNo(0),
            parent_birth: 0,
            top: None,
            user: None,
            layer: Layer {
                below,
                visible: if below.is_some() { size } else { 0 },
                names: 1,
                depth,
                ..Layer::default()
            },
            content: Content::Empty,
            xattrs: Tree::Empty,
        })
    }

    /// A layer has a child more.
    fn add_child(layer: &mut Descriptor, child: FileId) -> Result<()> {
        let more = layer.layer.children.checked_add(1);
        layer.layer.children = more.ok_or(Kind::TooManyLinks)?;
        layer.layer.combine(child.into());
        Ok(())
    }

    /// Takes a name from a layer; who has nothing left is listed as an orphan.
    fn drop_name(&self, tx: &mut Transaction<'_>, id: FileId, body: &mut Descriptor) -> Result<()> {
        let fewer = body.layer.names.checked_sub(1);
        body.layer.names = fewer.ok_or_else(|| miscounted(id, "names"))?;
        list_if_unused(tx, id, body);
        Ok(())
    }

    /// Takes a child from a layer.
    fn drop_child(
        &self,
        tx: &mut Transaction<'_>,
        id: FileId,
        body: &mut Descriptor,
        child: FileId,
    ) -> Result<()> {
        let fewer = body.layer.children.checked_sub(1);
        body.layer.children = fewer.ok_or_else(|| miscounted(id, "children"))?;
        body.layer.combine(child.into());
        let rest = (body.layer.children_addresses, body.layer.children_births);
        if body.layer.children == 0 && rest != (0, 0) {
            return Err(miscounted(id, "children"));
        }
        list_if_unused(tx, id, body);
        Ok(())
    }
}

fn list_if_unused(tx: &mut Transaction<'_>, id: FileId, body: &Descriptor) {
    if body.layer.names == 0 && body.layer.children == 0 {
        tx.list_orphan(Orphan::File(id));
    }
}

/// A disk writes to what it names as its top: that must be nobody else's.
fn check_top(id: FileId, body: &Descriptor) -> Result<()> {
    let layer = &body.layer;
    let is_top = body.kind == FileKind::Layer && !layer.frozen;
    if is_top && (layer.names, layer.children) == (1, 0) {
        return Ok(());
    }
    Err(Error::damaged(id.addr.plus(1), "a disk names it as its top, and it is none"))
}

fn miscounted(id: FileId, what: &str) -> Error {
    Error::damaged(id.addr.plus(1), format!("a layer counts other {what} than it has"))
}

fn two_roles(disk: FileId) -> Error {
    Error::damaged(disk.addr.plus(1), "a disk is its own top")
}
