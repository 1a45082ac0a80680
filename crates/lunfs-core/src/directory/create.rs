//! Making files, directories, links and nodes.
//!
//! Invariant: a new descriptor's lock is on disk, ours and durable, before the record that makes it
//! reachable commits (H3).

use lunfs_format::{Content, Descriptor, Lock, Tree, Version};

use super::LINKS_MAX;
use crate::allocate::{Purpose, Reservation};
use crate::error::{Error, Kind, Result};
use crate::format::lock_block;
use crate::lock::prepared;
use crate::locks::{Wish, WriteGuard};
use crate::types::{Attr, FileId, FileKind, New};
use crate::volume::Volume;

/// Longest target of a symbolic link in bytes.
const TARGET_MAX: usize = 2600;

impl Volume {
    /// Makes a file.
    pub async fn create(&self, dir: FileId, name: &[u8], new: New) -> Result<Attr> {
        self.writable()?;
        Self::checked_name(name)?;
        if new.target.len() > TARGET_MAX {
            return Err(Error::new(Kind::TooLong, "a link's target is longer than 2600 bytes"));
        }
        self.with_space(async || {
            let guard = self.hold(Wish::from(dir)).await?;
            self.create_in(&guard, dir, name, &new).await
        })
        .await
    }

    async fn create_in(
        &self,
        guard: &WriteGuard,
        dir: FileId,
        name: &[u8],
        new: &New,
    ) -> Result<Attr> {
        let mut parent = self.opened(dir)?;
        if self.find_held(dir, name).await?.is_some() {
            return Err(Kind::Exists.into());
        }
        if new.kind == FileKind::Directory && parent.body.nlink >= LINKS_MAX {
            return Err(Kind::TooManyLinks.into());
        }
        self.write_back(guard).await?;
        let mut tx = self.begin(12, Purpose::New).await?;
        let reserved = self.reserve(2, Purpose::New).await?;
        let id = FileId { addr: reserved.start, birth: reserved.birth };
        let lock = self.init_lock(&reserved).await?;
        let body = self.new_body(dir, new);
        if new.kind == FileKind::Directory {
            parent.body.nlink += 1;
        }
        self.insert(&mut tx, &mut parent, name, id, new.kind).await?;
        tx.put_descriptor(dir.addr, parent.into_body());
        tx.put_new_descriptor(reserved, body);
        tx.prepare().await?;
        self.adopt_new(id.addr, lock);
        tx.apply();
        Ok(self.attr_of(id, &self.current(id)))
    }

    /// Writes the first image of a new descriptor's lock: ours, before anything refers to it. One
    /// flush makes all locks of a record durable before the record. A crash behind this write
    /// leaves a lock in free space, which nobody looks at.
    pub(crate) async fn init_lock(&self, reserved: &Reservation) -> Result<Lock> {
        let lock = prepared(reserved.birth, self.me(), self.nonce());
        let block = lock_block(self.sb.volume, reserved.start, &lock);
        self.io.write(reserved.start, block, false).await?;
        self.journal().follows_lock(&self.io);
        Ok(lock)
    }

    pub(crate) fn new_body(&self, dir: FileId, new: &New) -> Descriptor {
        let now = self.wall();
        let is_dir = new.kind == FileKind::Directory;
        Descriptor {
            version: Version::default(),
            owner: lunfs_format::BlockNo(0),
            kind: new.kind.to_format(),
            mode: new.mode & 0o7777,
            uid: new.uid,
            gid: new.gid,
            nlink: if is_dir { 2 } else { 1 },
            rdev: new.rdev,
            size: new.target.len() as u64,
            blocks: 0,
            atime: now,
            mtime: now,
            ctime: now,
            btime: now,
            parent: if is_dir { dir.addr } else { lunfs_format::BlockNo(0) },
            parent_birth: if is_dir { dir.birth } else { 0 },
            top: None,
            user: None,
            layer: lunfs_format::Layer::default(),
            content: if new.kind == FileKind::Symlink {
                Content::Bytes(new.target.clone())
            } else {
                Content::Empty
            },
            xattrs: Tree::Empty,
        }
    }
}
