//! Attributes: mode, owner, times, size, extended attributes.

use std::ops::Bound;

use lunfs_format::{Content, Descriptor, FileKind as Stored, Tree};

use crate::allocate::Purpose;
use crate::data::Held;
use crate::disk::Contents;
use crate::error::{Error, Kind, Result};
use crate::locks::Wish;
use crate::tree::{self, NodeStore};
use crate::types::{Attr, FileId, FileKind, SetAttr, XattrMode};
use crate::volume::Volume;

/// Bytes of extended attributes that a descriptor keeps in itself.
const XATTRS_INLINE: usize = 1000;
/// Blocks of a descriptor: its lock and its body.
const DESCRIPTOR_BLOCKS: u64 = 2;
/// Bytes of one piece of a value.
const PIECE: usize = 1024;
/// Largest value in bytes.
const VALUE_MAX: usize = 64 * 1024;
/// Longest name in bytes.
const NAME_MAX: usize = 255;

impl Volume {
    pub(crate) fn attr_of(&self, id: FileId, body: &Descriptor) -> Attr {
        Attr {
            id,
            kind: FileKind::of(body.kind).unwrap_or(FileKind::File),
            mode: body.mode,
            uid: body.uid,
            gid: body.gid,
            nlink: body.nlink,
            rdev: body.rdev,
            size: body.size,
            blocks: self.blocks_of(id, body),
            atime: body.atime,
            mtime: body.mtime,
            ctime: body.ctime,
            btime: body.btime,
            parent: FileId { addr: body.parent, birth: body.parent_birth },
            is_disk: body.top.is_some(),
        }
    }

    /// What a program is told of the blocks of a file. Some take one with less than its size for
    /// sparse, and one with none for a hole: so what is not written back counts, and the
    /// descriptor, where it holds the contents.
    fn blocks_of(&self, id: FileId, body: &Descriptor) -> u64 {
        let is_inside = matches!(&body.content, Content::Bytes(bytes) if !bytes.is_empty());
        let own = if is_inside { body.blocks + DESCRIPTOR_BLOCKS } else { body.blocks };
        let pending = self.inodes.borrow().get(&id).map_or(0, |inode| inode.growth());
        own.saturating_add_signed(pending)
    }

    /// Attributes of a file.
    pub async fn getattr(&self, file: FileId) -> Result<Attr> {
        loop {
            let (attr, top) = self
                .reading(file, async |view| Ok((self.attr_of(file, &view.body), view.body.top)))
                .await?;
            let Some(top) = top.map(FileId::from) else { return Ok(attr) };
            let of_top = self.reading(top, async |view| Ok(self.attr_of(top, &view.body))).await;
            match of_top {
                // Another top took its place, and it was freed.
                Err(e) if e.kind == Kind::Stale && !self.has_top(file, top).await? => {}
                Err(e) if e.kind == Kind::Stale => {
                    return Err(Error::damaged(file.addr.plus(1), "the top of a disk is gone"));
                }
                of_top => return Ok(of_disk(attr, &of_top?)),
            }
        }
    }

    async fn has_top(&self, disk: FileId, top: FileId) -> Result<bool> {
        self.reading(disk, async |view| Ok(view.body.top == Some(top.into()))).await
    }

    /// Changes attributes; a size cuts or extends the file.
    pub async fn setattr(&self, file: FileId, set: SetAttr) -> Result<Attr> {
        self.writable()?;
        self.with_space(async || {
            let guard = self.hold(Wish::from(file)).await?;
            let is_of_contents = set.size.is_some() || set.mtime.is_some();
            let held = match self.current(file).top {
                Some(_) if is_of_contents => {
                    drop(guard);
                    self.hold_contents(file).await?
                }
                _ => Contents::of_file(file, guard),
            };
            if let Some(size) = set.size
                && size != self.current(held.id).size
            {
                self.truncate(&held.guard, held.id, size).await?;
            }
            let now = self.wall();
            if let Some(mtime) = set.mtime {
                let inode = self.inode(held.id);
                inode.change(|| self.cached_descriptor(held.id.addr), |p| p.body.mtime = mtime);
            }
            self.inode(file).change(
                || self.cached_descriptor(file.addr),
                |p| {
                    apply(&mut p.body, &set);
                    p.body.ctime = set.ctime.unwrap_or(now);
                },
            );
            self.note_dirty();
            Ok(())
        })
        .await?;
        self.getattr(file).await
    }

    /// The value of an extended attribute.
    pub async fn get_xattr(&self, file: FileId, name: &[u8]) -> Result<Vec<u8>> {
        self.reading(file, async |view| {
            read_value(view, &view.body.xattrs, name).await?.ok_or(Kind::NoAttribute.into())
        })
        .await
    }

    /// Names of all extended attributes.
    pub async fn list_xattrs(&self, file: FileId) -> Result<Vec<Vec<u8>>> {
        self.reading(file, async |view| {
            let mut names: Vec<Vec<u8>> = Vec::new();
            let mut after: Option<Vec<u8>> = None;
            loop {
                let from = after.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
                let found = tree::scan(view, &view.body.xattrs, from, 256).await?;
                let Some((last, _)) = found.last() else { return Ok(names) };
                after = Some(last.clone());
                for (key, _) in found {
                    let name = key[..key.len().saturating_sub(2)].to_vec();
                    if names.last() != Some(&name) {
                        names.push(name);
                    }
                }
            }
        })
        .await
    }

    /// Sets an extended attribute.
    pub async fn set_xattr(
        &self,
        file: FileId,
        name: &[u8],
        value: &[u8],
        mode: XattrMode,
    ) -> Result<()> {
        self.writable()?;
        if name.is_empty() || name.len() > NAME_MAX || value.len() > VALUE_MAX {
            return Err(Error::new(Kind::TooLong, "an attribute's name or value is too long"));
        }
        self.change_xattr(file, name, Some(value), mode).await
    }

    /// Removes an extended attribute.
    pub async fn remove_xattr(&self, file: FileId, name: &[u8]) -> Result<()> {
        self.writable()?;
        self.change_xattr(file, name, None, XattrMode::Replace).await
    }

    async fn change_xattr(
        &self,
        file: FileId,
        name: &[u8],
        value: Option<&[u8]>,
        mode: XattrMode,
    ) -> Result<()> {
        // Where nothing else can be had, room can still be made.
        let purpose = if value.is_some() { Purpose::New } else { Purpose::Metadata };
        self.with_space(async || {
            let guard = self.hold(Wish::from(file)).await?;
            self.write_back(&guard).await?;
            let mut body = self.current(file);
            let store = Held { volume: self, id: file };
            let old = pieces_of(&store, &body.xattrs, name).await?;
            match (mode, old.is_empty()) {
                (XattrMode::Create, false) => return Err(Kind::Exists.into()),
                (XattrMode::Replace, true) => return Err(Kind::NoAttribute.into()),
                _ => {}
            }
            let new: Vec<&[u8]> = match value {
                Some([]) => vec![&[]],
                Some(value) => value.chunks(PIECE).collect(),
                None => Vec::new(),
            };
            let images = 4 * (old.len() + new.len()) as u64 + 4;
            let mut tx = self.begin(images, purpose).await?;
            let mut store = tx.tree(file.addr);
            for (key, _) in old.iter().skip(new.len()) {
                tree::remove(&mut store, &mut body.xattrs, XATTRS_INLINE, key).await?;
            }
            for (i, piece) in (0u8..).zip(&new) {
                let key = piece_key(name, i);
                tree::insert(&mut store, &mut body.xattrs, XATTRS_INLINE, &key, piece).await?;
            }
            body.blocks = body.blocks.saturating_add_signed(store.nodes);
            body.ctime = self.wall();
            tx.put_descriptor(file.addr, body);
            tx.finish().await
        })
        .await
    }
}

/// A disk has its size, its space and its times of writing from its top.
fn of_disk(disk: Attr, top: &Attr) -> Attr {
    let later = (disk.ctime.seconds, disk.ctime.nanos) > (top.ctime.seconds, top.ctime.nanos);
    Attr {
        size: top.size,
        blocks: disk.blocks + top.blocks,
        mtime: top.mtime,
        ctime: if later { disk.ctime } else { top.ctime },
        ..disk
    }
}

fn apply(body: &mut Descriptor, set: &SetAttr) {
    if let Some(mode) = set.mode {
        body.mode = mode & 0o7777;
    }
    if let Some(uid) = set.uid {
        body.uid = uid;
    }
    if let Some(gid) = set.gid {
        body.gid = gid;
    }
    if let Some(atime) = set.atime {
        body.atime = atime;
    }
    assert!(body.kind != Stored::Void, "a deleted file has no attributes to set");
}

fn piece_key(name: &[u8], piece: u8) -> Vec<u8> {
    [name, &[0, piece]].concat()
}

async fn pieces_of(
    store: &impl NodeStore,
    xattrs: &Tree,
    name: &[u8],
) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let first = piece_key(name, 0);
    let mut found = tree::scan(store, xattrs, Bound::Included(&first), VALUE_MAX / PIECE).await?;
    let prefix = &first[..first.len() - 1];
    found.retain(|(key, _)| key.len() == first.len() && key.starts_with(prefix));
    Ok(found)
}

async fn read_value(store: &impl NodeStore, xattrs: &Tree, name: &[u8]) -> Result<Option<Vec<u8>>> {
    let pieces = pieces_of(store, xattrs, name).await?;
    if pieces.is_empty() {
        return Ok(None);
    }
    Ok(Some(pieces.into_iter().flat_map(|(_, piece)| piece).collect()))
}
