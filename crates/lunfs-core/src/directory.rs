//! Names: looking up, listing, linking, removing.
//!
//! | module | what it holds |
//! |---|---|
//! | `create` | making files |
//! | `rename` | giving files other names |
//!
//! Invariants:
//! - Each operation is one transaction: after a crash it happened or it did not.
//! - The key of a name is its hash and the name itself, so equal hashes stay apart.
//! - The number of entries is the size of the directory.

mod create;
mod rename;

use std::hash::Hasher;
use std::ops::Bound;

use lunfs_format::{Content, Descriptor, EntryValue, LockObject, Tree};

use crate::allocate::Purpose;
use crate::data::Held;
use crate::error::{Error, Kind, Result};
use crate::locks::WriteGuard;
use crate::orphans::Orphan;
use crate::transaction::Transaction;
use crate::tree;
use crate::types::{Attr, DirEntry, FileId, FileKind};
use crate::view::View;
use crate::volume::Volume;

/// Bytes of entries that a directory keeps in its descriptor.
const ENTRIES_INLINE: usize = 2400;
/// Longest name in bytes.
const NAME_MAX: usize = 255;
/// Most links of one file.
const LINKS_MAX: u32 = 65_000;

/// A directory being changed: its new body and how its entries change.
pub(crate) struct Dir {
    id: FileId,
    body: Descriptor,
    entries: Tree,
}

impl Dir {
    pub(crate) fn into_body(self) -> Descriptor {
        Descriptor { content: Content::Tree(self.entries), ..self.body }
    }
}

fn entries_of(body: &Descriptor) -> Tree {
    match &body.content {
        Content::Tree(tree) => tree.clone(),
        Content::Empty | Content::Bytes(_) => Tree::Empty,
    }
}

impl Volume {
    fn key(&self, name: &[u8]) -> Vec<u8> {
        let mut hasher = siphasher::sip::SipHasher24::new_with_key(&self.sb.hash_key);
        hasher.write(name);
        let mut key = ((hasher.finish() >> 1) | 16).to_be_bytes().to_vec();
        key.extend_from_slice(name);
        key
    }

    /// For names that must exist: the kernel asks for longer ones, and they are not just missing.
    fn checked_length(name: &[u8]) -> Result<()> {
        if name.len() > NAME_MAX {
            return Err(Error::new(Kind::TooLong, "a name is longer than 255 bytes"));
        }
        Ok(())
    }

    /// For names that are to be made.
    pub(crate) fn checked_name(name: &[u8]) -> Result<()> {
        Self::checked_length(name)?;
        if name.is_empty() || name == b"." || name == b".." || name.contains(&b'/') {
            return Err(Error::new(Kind::Invalid, "not a name"));
        }
        Ok(())
    }

    pub(crate) async fn find(&self, view: &View<'_>, name: &[u8]) -> Result<Option<FileId>> {
        if view.body.kind != lunfs_format::FileKind::Directory {
            return Err(Kind::NotDirectory.into());
        }
        let value = tree::get(view, &view.content_tree(), &self.key(name)).await?;
        value.map(|v| decode_entry(view.id, &v)).transpose().map(|e| e.map(|(id, _)| id))
    }

    pub(crate) async fn find_held(&self, dir: FileId, name: &[u8]) -> Result<Option<FileId>> {
        let entries = entries_of(&self.current(dir));
        let store = Held { volume: self, id: dir };
        let value = tree::get(&store, &entries, &self.key(name)).await?;
        value.map(|v| decode_entry(dir, &v)).transpose().map(|e| e.map(|(id, _)| id))
    }

    /// What a name names.
    pub async fn lookup(&self, dir: FileId, name: &[u8]) -> Result<Attr> {
        Self::checked_length(name)?;
        loop {
            let found = self.reading(dir, async |view| self.find(view, name).await).await?;
            let id = found.ok_or(Kind::NotFound)?;
            match self.getattr(id).await {
                // Removed between the two looks: look again.
                Err(e) if e.kind == Kind::Stale => {
                    if self.still(dir, name, Some(id)).await? {
                        return Err(names_nothing(dir, id));
                    }
                }
                other => return other,
            }
        }
    }

    /// Entries behind cookie `after`, in the order of their cookies.
    pub async fn readdir(&self, dir: FileId, after: u64, max: usize) -> Result<Vec<DirEntry>> {
        self.reading(dir, async |view| {
            if view.body.kind != lunfs_format::FileKind::Directory {
                return Err(Kind::NotDirectory.into());
            }
            // Nothing is behind the last cookie there can be.
            let Some(from) = after.checked_add(1).map(u64::to_be_bytes) else {
                return Ok(Vec::new());
            };
            let found =
                tree::scan(view, &view.content_tree(), Bound::Included(&from[..]), max).await?;
            found
                .into_iter()
                .map(|(key, value)| {
                    let (hash, name) = key.split_at_checked(8).ok_or_else(|| bad_entry(dir))?;
                    let (id, kind) = decode_entry(dir, &value)?;
                    let hash = hash.try_into().map_err(|_| bad_entry(dir))?;
                    let cookie = u64::from_be_bytes(hash);
                    Ok(DirEntry { name: name.to_vec(), id, kind, cookie })
                })
                .collect()
        })
        .await
    }

    /// Where a symbolic link points.
    pub async fn readlink(&self, file: FileId) -> Result<Vec<u8>> {
        self.reading(file, async |view| match (&view.body.kind, &view.body.content) {
            (lunfs_format::FileKind::Symlink, Content::Bytes(target)) => Ok(target.clone()),
            _ => Err(Error::new(Kind::Invalid, "not a symbolic link")),
        })
        .await
    }

    pub(crate) fn opened(&self, id: FileId) -> Result<Dir> {
        let body = self.current(id);
        if body.kind != lunfs_format::FileKind::Directory {
            return Err(Kind::NotDirectory.into());
        }
        if body.nlink == 0 {
            return Err(Error::new(Kind::NotFound, "the directory was removed"));
        }
        let entries = entries_of(&body);
        Ok(Dir { id, body, entries })
    }

    pub(crate) async fn insert(
        &self,
        tx: &mut Transaction<'_>,
        dir: &mut Dir,
        name: &[u8],
        id: FileId,
        kind: FileKind,
    ) -> Result<()> {
        let value = EntryValue { addr: id.addr, birth: id.birth, kind: kind.to_format() }.encode();
        let mut store = tx.tree(dir.id.addr);
        let key = self.key(name);
        let old = tree::insert(&mut store, &mut dir.entries, ENTRIES_INLINE, &key, &value).await?;
        dir.body.blocks = dir.body.blocks.saturating_add_signed(store.nodes);
        dir.body.size += u64::from(old.is_none());
        self.touch(&mut dir.body);
        Ok(())
    }

    async fn remove(&self, tx: &mut Transaction<'_>, dir: &mut Dir, name: &[u8]) -> Result<()> {
        let mut store = tx.tree(dir.id.addr);
        let key = self.key(name);
        let old = tree::remove(&mut store, &mut dir.entries, ENTRIES_INLINE, &key).await?;
        dir.body.blocks = dir.body.blocks.saturating_add_signed(store.nodes);
        let fewer = dir.body.size.checked_sub(u64::from(old.is_some()));
        dir.body.size =
            fewer.ok_or_else(|| Error::damaged(dir.id.addr, "it has more entries than it says"))?;
        self.touch(&mut dir.body);
        Ok(())
    }

    fn touch(&self, body: &mut Descriptor) {
        let now = self.wall();
        (body.mtime, body.ctime) = (now, now);
    }

    /// Gives a file one more name.
    pub async fn link(&self, file: FileId, dir: FileId, name: &[u8]) -> Result<Attr> {
        self.writable()?;
        Self::checked_name(name)?;
        self.with_space(async || {
            let guards = self.hold_all(&[file.into(), dir.into()]).await?;
            self.write_back_all(&guards).await?;
            let mut body = self.current(file);
            let kind = FileKind::of(body.kind).ok_or(Kind::Stale)?;
            if kind == FileKind::Directory {
                return Err(Error::new(Kind::IsDirectory, "directories have one name"));
            }
            if body.nlink == 0 {
                return Err(Kind::NotFound.into());
            }
            if body.nlink >= LINKS_MAX {
                return Err(Kind::TooManyLinks.into());
            }
            let mut parent = self.opened(dir)?;
            if self.find_held(dir, name).await?.is_some() {
                return Err(Kind::Exists.into());
            }
            let mut tx = self.begin(12, Purpose::New).await?;
            self.insert(&mut tx, &mut parent, name, file, kind).await?;
            body.nlink += 1;
            body.ctime = self.wall();
            tx.put_descriptor(dir.addr, parent.into_body());
            tx.put_descriptor(file.addr, body);
            tx.finish().await
        })
        .await?;
        self.getattr(file).await
    }

    pub(crate) async fn write_back_all(&self, guards: &[WriteGuard]) -> Result<()> {
        for guard in guards {
            if guard.entry.object == LockObject::Descriptor {
                self.write_back(guard).await?;
            }
        }
        Ok(())
    }

    /// Removes a name that is not a directory's.
    pub async fn unlink(&self, dir: FileId, name: &[u8]) -> Result<()> {
        self.remove_name(dir, name, false).await
    }

    /// Removes an empty directory.
    pub async fn rmdir(&self, dir: FileId, name: &[u8]) -> Result<()> {
        self.remove_name(dir, name, true).await
    }

    async fn remove_name(&self, dir: FileId, name: &[u8], directory: bool) -> Result<()> {
        self.writable()?;
        Self::checked_length(name)?;
        self.with_space(async || {
            loop {
                let found = self.reading(dir, async |v| self.find(v, name).await).await?;
                let id = found.ok_or(Kind::NotFound)?;
                let guards = match self.hold_all(&[dir.into(), id.into()]).await {
                    Err(e) if e.kind == Kind::Stale && self.still(dir, name, Some(id)).await? => {
                        return Err(names_nothing(dir, id));
                    }
                    Err(e) if e.kind == Kind::Stale => continue,
                    other => other?,
                };
                self.write_back_all(&guards).await?;
                if self.find_held(dir, name).await? == Some(id) {
                    self.used_by_nobody_else(&self.current(id)).await?;
                    return self.remove_entry(dir, name, id, directory).await;
                }
            }
        })
        .await
    }

    async fn still(&self, dir: FileId, name: &[u8], id: Option<FileId>) -> Result<bool> {
        Ok(self.reading(dir, async |v| self.find(v, name).await).await? == id)
    }

    async fn remove_entry(
        &self,
        dir: FileId,
        name: &[u8],
        id: FileId,
        directory: bool,
    ) -> Result<()> {
        let mut parent = self.opened(dir)?;
        let mut body = self.current(id);
        match (directory, body.kind == lunfs_format::FileKind::Directory) {
            (true, false) => return Err(Kind::NotDirectory.into()),
            (false, true) => return Err(Kind::IsDirectory.into()),
            (true, true) if body.size > 0 => return Err(Kind::NotEmpty.into()),
            _ => {}
        }
        let mut tx = self.begin(16, Purpose::Metadata).await?;
        self.remove(&mut tx, &mut parent, name).await?;
        if directory {
            fewer_links(&mut parent)?;
        }
        self.drop_link(&mut tx, id, &mut body)?;
        tx.put_descriptor(dir.addr, parent.into_body());
        let last = body.nlink == 0;
        tx.put_descriptor(id.addr, body);
        tx.finish().await?;
        self.gone_if(last, id);
        Ok(())
    }

    /// Takes a link from a body; the last one lists the file as an orphan.
    fn drop_link(&self, tx: &mut Transaction<'_>, id: FileId, body: &mut Descriptor) -> Result<()> {
        let directory = body.kind == lunfs_format::FileKind::Directory;
        let fewer = body.nlink.checked_sub(1);
        let fewer = fewer.ok_or_else(|| Error::damaged(id.addr, "it has a name but no links"))?;
        body.nlink = if directory { 0 } else { fewer };
        body.ctime = self.wall();
        if body.nlink == 0 {
            tx.list_orphan(Orphan::File(id));
        }
        Ok(())
    }

    fn gone_if(&self, last: bool, id: FileId) {
        if last {
            self.inode(id).unlinked.set(true);
            self.reap_if_closed(id);
        }
    }
}

/// A file's last name goes before the file does: a name without a file is damage.
fn names_nothing(dir: FileId, id: FileId) -> Error {
    Error::damage(format!(
        "an entry of directory {} names block {}, where the lock of its file is damaged or gone; \
         nothing was changed",
        dir.addr, id.addr
    ))
}

/// A directory has a subdirectory less.
fn fewer_links(dir: &mut Dir) -> Result<()> {
    let fewer = dir.body.nlink.checked_sub(1);
    dir.body.nlink =
        fewer.ok_or_else(|| Error::damaged(dir.id.addr, "it has more directories than links"))?;
    Ok(())
}

fn bad_entry(dir: FileId) -> Error {
    Error::damaged(dir.addr, "an entry of a directory makes no sense")
}

fn decode_entry(dir: FileId, value: &[u8]) -> Result<(FileId, FileKind)> {
    let entry = EntryValue::decode(value).map_err(|_| bad_entry(dir))?;
    let kind = FileKind::of(entry.kind).ok_or_else(|| bad_entry(dir))?;
    Ok((FileId { addr: entry.addr, birth: entry.birth }, kind))
}
