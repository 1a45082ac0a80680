//! Names: looking up, listing, making, linking, renaming, removing.
//!
//! Invariants:
//! - Each operation is one transaction: after a crash it happened or it did not.
//! - A new descriptor's lock is on disk, ours and durable, before the record that makes it
//!   reachable commits (H3).
//! - A directory is moved to another parent only under the volume's rename lock, so no two hosts
//!   can together make a circle.

use std::hash::Hasher;
use std::ops::Bound;

use lunfs_format::{
    BLOCK, Content, Descriptor, EntryValue, Lock, LockMode, LockObject, RENAME_LOCK, Stamp, Tree,
    Version,
};

use crate::allocate::{Purpose, Reservation};
use crate::data::Held;
use crate::error::{Error, Kind, Result};
use crate::locks::{Wish, WishKind, WriteGuard};
use crate::orphans::Orphan;
use crate::transaction::Transaction;
use crate::tree;
use crate::types::{Attr, DirEntry, FileId, FileKind, New, RenameMode};
use crate::view::View;
use crate::volume::Volume;

/// Bytes of entries that a directory keeps in its descriptor.
const ENTRIES_INLINE: usize = 2400;
/// Longest name in bytes.
const NAME_MAX: usize = 255;
/// Longest target of a symbolic link in bytes.
const TARGET_MAX: usize = 2600;
/// Most links of one file.
const LINKS_MAX: u32 = 65_000;
/// Deepest directory that a move into is checked for.
const DEPTH_MAX: usize = 4096;

/// A directory being changed: its new body and how its entries change.
struct Dir {
    id: FileId,
    body: Descriptor,
    entries: Tree,
}

impl Dir {
    fn into_body(self) -> Descriptor {
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

    fn checked_name(name: &[u8]) -> Result<()> {
        if name.len() > NAME_MAX {
            return Err(Error::new(Kind::TooLong, "a name is longer than 255 bytes"));
        }
        if name.is_empty() || name == b"." || name == b".." || name.contains(&b'/') {
            return Err(Error::new(Kind::Invalid, "not a name"));
        }
        Ok(())
    }

    async fn find(&self, view: &View<'_>, name: &[u8]) -> Result<Option<FileId>> {
        if view.body.kind != lunfs_format::FileKind::Directory {
            return Err(Kind::NotDirectory.into());
        }
        let value = tree::get(view, &view.content_tree(), &self.key(name)).await?;
        value.map(|v| decode_entry(&v)).transpose().map(|e| e.map(|(id, _)| id))
    }

    async fn find_held(&self, dir: FileId, name: &[u8]) -> Result<Option<FileId>> {
        let entries = entries_of(&self.current(dir));
        let store = Held { volume: self, id: dir };
        let value = tree::get(&store, &entries, &self.key(name)).await?;
        value.map(|v| decode_entry(&v)).transpose().map(|e| e.map(|(id, _)| id))
    }

    /// What a name names.
    pub async fn lookup(&self, dir: FileId, name: &[u8]) -> Result<Attr> {
        loop {
            let found = self.reading(dir, async |view| self.find(view, name).await).await?;
            let id = found.ok_or(Kind::NotFound)?;
            match self.getattr(id).await {
                // Removed between the two looks: look again.
                Err(e) if e.kind == Kind::Stale => {
                    let again = self.reading(dir, async |v| self.find(v, name).await).await?;
                    if again == Some(id) {
                        return Err(e);
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
            let from = (after + 1).to_be_bytes();
            let found =
                tree::scan(view, &view.content_tree(), Bound::Included(&from[..]), max).await?;
            found
                .into_iter()
                .map(|(key, value)| {
                    let (hash, name) = key.split_at_checked(8).ok_or_else(bad_entry)?;
                    let (id, kind) = decode_entry(&value)?;
                    let cookie = u64::from_be_bytes(hash.try_into().map_err(|_| bad_entry())?);
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

    fn opened(&self, id: FileId) -> Result<Dir> {
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

    async fn insert(
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
        dir.body.blocks = dir.body.blocks.wrapping_add_signed(store.nodes);
        dir.body.size += u64::from(old.is_none());
        self.touch(&mut dir.body);
        Ok(())
    }

    async fn remove(&self, tx: &mut Transaction<'_>, dir: &mut Dir, name: &[u8]) -> Result<()> {
        let mut store = tx.tree(dir.id.addr);
        let key = self.key(name);
        let old = tree::remove(&mut store, &mut dir.entries, ENTRIES_INLINE, &key).await?;
        dir.body.blocks = dir.body.blocks.wrapping_add_signed(store.nodes);
        dir.body.size -= u64::from(old.is_some());
        self.touch(&mut dir.body);
        Ok(())
    }

    fn touch(&self, body: &mut Descriptor) {
        let now = self.wall();
        (body.mtime, body.ctime) = (now, now);
    }

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
        let mut tx = self.begin(12).await?;
        let reserved = self.reserve(2, Purpose::Metadata).await?;
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

    /// Writes the first image of a new descriptor's lock: ours, durable, before anything refers to
    /// it. A crash behind it leaves a lock in free space, which nobody looks at.
    async fn init_lock(&self, reserved: &Reservation) -> Result<Lock> {
        let lock = Lock {
            mode: LockMode::Exclusive,
            object: LockObject::Descriptor,
            holder: Some(self.me()),
            generation: Version { birth: reserved.birth, count: 1 },
            nonce: self.nonce(),
            stamp: Stamp::default(),
            giver: None,
            payload: 0,
        };
        let mut block = vec![0; BLOCK];
        let record = lock.encode(self.sb.volume, reserved.start);
        block[..record.len()].copy_from_slice(&record[..]);
        self.io.write(reserved.start, block, true).await?;
        Ok(lock)
    }

    fn new_body(&self, dir: FileId, new: &New) -> Descriptor {
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
            content: if new.kind == FileKind::Symlink {
                Content::Bytes(new.target.clone())
            } else {
                Content::Empty
            },
            xattrs: Tree::Empty,
        }
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
            let mut tx = self.begin(12).await?;
            self.insert(&mut tx, &mut parent, name, file, kind).await?;
            body.nlink += 1;
            body.ctime = self.wall();
            tx.put_descriptor(dir.addr, parent.into_body());
            tx.put_descriptor(file.addr, body);
            tx.finish().await?;
            Ok(self.attr_of(file, &self.current(file)))
        })
        .await
    }

    async fn write_back_all(&self, guards: &[WriteGuard]) -> Result<()> {
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
        self.with_space(async || {
            loop {
                let found = self.reading(dir, async |v| self.find(v, name).await).await?;
                let id = found.ok_or(Kind::NotFound)?;
                let guards = match self.hold_all(&[dir.into(), id.into()]).await {
                    Err(e) if e.kind == Kind::Stale && self.still(dir, name, id).await? => {
                        return Err(e);
                    }
                    Err(e) if e.kind == Kind::Stale => continue,
                    other => other?,
                };
                self.write_back_all(&guards).await?;
                if self.find_held(dir, name).await? == Some(id) {
                    return self.remove_entry(dir, name, id, directory).await;
                }
            }
        })
        .await
    }

    async fn still(&self, dir: FileId, name: &[u8], id: FileId) -> Result<bool> {
        Ok(self.reading(dir, async |v| self.find(v, name).await).await? == Some(id))
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
        let mut tx = self.begin(16).await?;
        self.remove(&mut tx, &mut parent, name).await?;
        if directory {
            parent.body.nlink -= 1;
        }
        self.drop_link(&mut tx, id, &mut body);
        tx.put_descriptor(dir.addr, parent.into_body());
        let last = body.nlink == 0;
        tx.put_descriptor(id.addr, body);
        tx.finish().await?;
        self.gone_if(last, id);
        Ok(())
    }

    /// Takes a link from a body; the last one lists the file as an orphan.
    fn drop_link(&self, tx: &mut Transaction<'_>, id: FileId, body: &mut Descriptor) {
        let directory = body.kind == lunfs_format::FileKind::Directory;
        body.nlink = if directory { 0 } else { body.nlink - 1 };
        body.ctime = self.wall();
        if body.nlink == 0 {
            tx.list_orphan(Orphan::File(id));
        }
    }

    fn gone_if(&self, last: bool, id: FileId) {
        if last {
            self.inode(id).unlinked.set(true);
            self.reap_if_closed(id);
        }
    }

    /// Gives a file another name, which may be in another directory.
    pub async fn rename(
        &self,
        dir: FileId,
        name: &[u8],
        to_dir: FileId,
        to_name: &[u8],
        mode: RenameMode,
    ) -> Result<()> {
        self.writable()?;
        Self::checked_name(to_name)?;
        self.with_space(async || {
            loop {
                let from = self.reading(dir, async |v| self.find(v, name).await).await?;
                let from = from.ok_or(Kind::NotFound)?;
                let to = self.reading(to_dir, async |v| self.find(v, to_name).await).await?;
                let step = Rename { dir, name, from, to_dir, to_name, to, mode };
                if self.rename_step(&step).await? {
                    return Ok(());
                }
            }
        })
        .await
    }

    /// One try; `false`: the names changed meanwhile.
    async fn rename_step(&self, step: &Rename<'_>) -> Result<bool> {
        let is_dir = self.is_directory(step.from).await?
            || (step.mode == RenameMode::Exchange
                && match step.to {
                    Some(to) => self.is_directory(to).await?,
                    None => false,
                });
        let moves_dir = is_dir && step.dir != step.to_dir;
        let _alone = if moves_dir {
            let wish = Wish { addr: RENAME_LOCK, birth: 0, kind: WishKind::System };
            let guard = self.hold(wish).await?;
            self.refuse_circle(step.from, step.to_dir).await?;
            if let (RenameMode::Exchange, Some(to)) = (step.mode, step.to) {
                self.refuse_circle(to, step.dir).await?;
            }
            Some(guard)
        } else {
            None
        };
        let mut wishes: Vec<Wish> = vec![step.dir.into(), step.to_dir.into(), step.from.into()];
        wishes.extend(step.to.map(Wish::from));
        let guards = match self.hold_all(&wishes).await {
            Err(e) if e.kind == Kind::Stale => {
                let same = self.still(step.dir, step.name, step.from).await?;
                return if same && step.to.is_none() { Err(e) } else { Ok(false) };
            }
            other => other?,
        };
        self.write_back_all(&guards).await?;
        let unchanged = self.find_held(step.dir, step.name).await? == Some(step.from)
            && self.find_held(step.to_dir, step.to_name).await? == step.to;
        if !unchanged {
            return Ok(false);
        }
        self.rename_held(step).await?;
        Ok(true)
    }

    async fn is_directory(&self, id: FileId) -> Result<bool> {
        match self.getattr(id).await {
            Ok(attr) => Ok(attr.kind == FileKind::Directory),
            Err(e) if e.kind == Kind::Stale => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// The caller has the rename lock: no directory changes its parent meanwhile.
    async fn refuse_circle(&self, moved: FileId, into: FileId) -> Result<()> {
        let mut at = into;
        for _ in 0..DEPTH_MAX {
            if at == moved {
                return Err(Error::new(Kind::Invalid, "a directory cannot move into itself"));
            }
            if at == self.root() {
                return Ok(());
            }
            at = self.getattr(at).await?.parent;
        }
        Err(Error::new(Kind::TooLong, "directories are nested too deep"))
    }

    async fn rename_held(&self, step: &Rename<'_>) -> Result<()> {
        if step.to.is_some() && step.mode == RenameMode::NoReplace {
            return Err(Kind::Exists.into());
        }
        if step.to == Some(step.from) {
            return Ok(());
        }
        let mut from_body = self.current(step.from);
        let kind = FileKind::of(from_body.kind).ok_or(Kind::Stale)?;
        let to_body = step.to.map(|to| self.current(to));
        step.judge(kind, to_body.as_ref())?;
        let mut tx = self.begin(24).await?;
        let same = step.dir == step.to_dir;
        let mut source = self.opened(step.dir)?;
        let mut target = if same { None } else { Some(self.opened(step.to_dir)?) };
        let mut last = None;
        match (step.mode, step.to, to_body) {
            (RenameMode::Exchange, Some(to), Some(mut body)) => {
                let to_kind = FileKind::of(body.kind).ok_or(Kind::Stale)?;
                self.insert(&mut tx, &mut source, step.name, to, to_kind).await?;
                moved(&mut body, step.dir, same);
                count_moved(&mut source, target.as_mut(), to_kind, kind);
                body.ctime = self.wall();
                tx.put_descriptor(to.addr, body);
            }
            (RenameMode::Exchange, _, _) => return Err(Kind::NotFound.into()),
            (_, to, body) => {
                self.remove(&mut tx, &mut source, step.name).await?;
                if kind == FileKind::Directory
                    && let Some(target) = target.as_mut()
                {
                    source.body.nlink -= 1;
                    target.body.nlink += 1;
                }
                if let (Some(to), Some(mut body)) = (to, body) {
                    if kind == FileKind::Directory {
                        target.as_mut().unwrap_or(&mut source).body.nlink -= 1;
                    }
                    self.drop_link(&mut tx, to, &mut body);
                    last = (body.nlink == 0).then_some(to);
                    tx.put_descriptor(to.addr, body);
                }
            }
        }
        let into = target.as_mut().unwrap_or(&mut source);
        self.insert(&mut tx, into, step.to_name, step.from, kind).await?;
        moved(&mut from_body, step.to_dir, same);
        from_body.ctime = self.wall();
        tx.put_descriptor(step.from.addr, from_body);
        tx.put_descriptor(step.dir.addr, source.into_body());
        if let Some(target) = target {
            tx.put_descriptor(step.to_dir.addr, target.into_body());
        }
        tx.finish().await?;
        if let Some(id) = last {
            self.gone_if(true, id);
        }
        Ok(())
    }
}

struct Rename<'a> {
    dir: FileId,
    name: &'a [u8],
    from: FileId,
    to_dir: FileId,
    to_name: &'a [u8],
    to: Option<FileId>,
    mode: RenameMode,
}

impl Rename<'_> {
    /// May a file of this kind take the target's place?
    fn judge(&self, kind: FileKind, to: Option<&Descriptor>) -> Result<()> {
        let Some(to) = to else { return Ok(()) };
        let to_dir = to.kind == lunfs_format::FileKind::Directory;
        match (self.mode, kind == FileKind::Directory, to_dir) {
            (RenameMode::NoReplace | RenameMode::Exchange, _, _) => Ok(()),
            (RenameMode::Replace, true, false) => Err(Kind::NotDirectory.into()),
            (RenameMode::Replace, false, true) => Err(Kind::IsDirectory.into()),
            (RenameMode::Replace, true, true) if to.size > 0 => Err(Kind::NotEmpty.into()),
            (RenameMode::Replace, _, _) => Ok(()),
        }
    }
}

/// A directory that changed its parent says so.
fn moved(body: &mut Descriptor, parent: FileId, same: bool) {
    if !same && body.kind == lunfs_format::FileKind::Directory {
        (body.parent, body.parent_birth) = (parent.addr, parent.birth);
    }
}

/// Links of two directories between which two files change places.
fn count_moved(source: &mut Dir, target: Option<&mut Dir>, into: FileKind, out: FileKind) {
    let Some(target) = target else { return };
    if into == FileKind::Directory {
        source.body.nlink += 1;
        target.body.nlink -= 1;
    }
    if out == FileKind::Directory {
        source.body.nlink -= 1;
        target.body.nlink += 1;
    }
}

fn bad_entry() -> Error {
    Error::new(Kind::Corrupt, "a directory entry is corrupt; run `lunfs check`")
}

fn decode_entry(value: &[u8]) -> Result<(FileId, FileKind)> {
    let entry = EntryValue::decode(value).map_err(|_| bad_entry())?;
    let kind = FileKind::of(entry.kind).ok_or_else(bad_entry)?;
    Ok((FileId { addr: entry.addr, birth: entry.birth }, kind))
}
