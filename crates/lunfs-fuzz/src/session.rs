//! What a host does with a damaged volume: mount, look at everything, change much, leave.
//!
//! An operation that waits for ever in virtual time is given up, and with it the session: a host
//! that was killed.

use std::collections::BTreeSet;
use std::pin::pin;

use futures_util::future::{Either, select};
use lunfs_core::{
    Attr, DirEntry, Fallocate, FileId, FileKind, RenameMode, Seek, SetAttr, Volume, XattrMode,
};

use crate::history::{Host, mount, new};
use crate::oracle::Found;
use crate::world::World;

/// How long an operation may wait: longer than recovering two hosts takes.
const OPERATION_MS: u64 = 20_000;
/// How long a session may take.
const SESSION_MS: u64 = 120_000;
/// Objects that a walk looks at.
const OBJECTS_MAX: usize = 160;
/// Entries of a directory that a walk looks at.
const ENTRIES_MAX: usize = 400;
/// Bytes read at the start of a file.
const READ: usize = 128 * 1024;

/// How a session ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Unmounted.
    Left,
    /// It could not mount, or stopped.
    Stopped,
    /// Something waited for too long.
    GaveUp,
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plan {
    /// Only look.
    Look,
    /// Look, change, look again.
    Change,
}

struct GaveUp;

struct Session<'w> {
    world: &'w World,
    volume: &'w Volume,
    found: &'w mut Found,
}

/// Mounts, does as planned, unmounts.
pub async fn session(world: &World, plan: Plan, found: &mut Found) -> Ended {
    let mounted = world.within(OPERATION_MS, mount(world, "z")).await;
    let Some(mounted) = mounted else { return Ended::GaveUp };
    let Some(mut host) = found.note("mount", mounted) else { return Ended::Stopped };
    let ended = lived(world, &mut host, plan, found).await;
    world.marks.kill(host.volume.slot());
    ended
}

async fn lived(world: &World, host: &mut Host, plan: Plan, found: &mut Found) -> Ended {
    let volume = host.volume.clone();
    let story = world.within(SESSION_MS, async {
        let mut session = Session { world, volume: &volume, found };
        session.run(plan).await?;
        let left = session.within("unmount", volume.unmount()).await?;
        Ok(left.is_some())
    });
    match select(pin!(story), &mut host.serving).await {
        Either::Left((Some(Ok(true)), _)) => Ended::Left,
        Either::Left((Some(Ok(false)), _)) | Either::Right(_) => Ended::Stopped,
        Either::Left((Some(Err(GaveUp)) | None, _)) => Ended::GaveUp,
    }
}

impl Session<'_> {
    /// What an operation ended with, if it went well.
    async fn within<T>(
        &mut self,
        doing: &str,
        story: impl Future<Output = lunfs_core::Result<T>>,
    ) -> Result<Option<T>, GaveUp> {
        let ended = self.world.within(OPERATION_MS, story).await.ok_or(GaveUp)?;
        Ok(self.found.note(doing, ended))
    }

    async fn run(&mut self, plan: Plan) -> Result<(), GaveUp> {
        let files = self.walk().await?;
        if plan == Plan::Look {
            return Ok(());
        }
        for (n, (dir, entry)) in files.iter().take(24).enumerate() {
            self.change(*dir, entry, n).await?;
        }
        self.make().await?;
        self.within("hosts", self.volume.hosts()).await?;
        self.within("sync", self.volume.sync()).await?;
        // Services run a few rounds more: reaping, adopting, putting in place.
        self.world.pass_services().await;
        self.walk().await?;
        Ok(())
    }

    /// Looks at everything below the root; returns all names but those of directories' insides.
    async fn walk(&mut self) -> Result<Vec<(FileId, DirEntry)>, GaveUp> {
        let v = self.volume;
        self.within("space", v.space()).await?;
        let mut found = Vec::new();
        let mut dirs = vec![v.root()];
        let mut seen = BTreeSet::new();
        let mut next = 0;
        while let Some(dir) = dirs.get(next).copied() {
            next += 1;
            for entry in self.names(dir).await? {
                if found.len() >= OBJECTS_MAX {
                    return Ok(found);
                }
                let looked = self.within("lookup", v.lookup(dir, &entry.name)).await?;
                if let Some(attr) = looked.filter(|attr| seen.insert(attr.id)) {
                    self.look(&attr).await?;
                    if attr.kind == FileKind::Directory {
                        dirs.push(attr.id);
                    }
                }
                found.push((dir, entry));
            }
        }
        Ok(found)
    }

    async fn names(&mut self, dir: FileId) -> Result<Vec<DirEntry>, GaveUp> {
        let mut names: Vec<DirEntry> = Vec::new();
        let mut after = 0;
        while names.len() < ENTRIES_MAX {
            let page = self.within("readdir", self.volume.readdir(dir, after, 32)).await?;
            let Some(page) = page else { break };
            let Some(last) = page.last() else { break };
            assert!(last.cookie > after, "a listing that does not go on ends never");
            after = last.cookie;
            names.extend(page);
        }
        Ok(names)
    }

    async fn look(&mut self, attr: &Attr) -> Result<(), GaveUp> {
        let (v, id) = (self.volume, attr.id);
        if let Some(names) = self.within("listxattr", v.list_xattrs(id)).await? {
            for name in names.iter().take(8) {
                self.within("getxattr", v.get_xattr(id, name)).await?;
            }
        }
        match attr.kind {
            FileKind::Symlink => drop(self.within("readlink", v.readlink(id)).await?),
            FileKind::File => {
                self.read(id, 0, READ).await?;
                if attr.size > READ as u64 {
                    let end = attr.size.saturating_sub(70_000) / 512 * 512;
                    self.read(id, end, 140_000).await?;
                }
                for what in [Seek::Data, Seek::Hole] {
                    self.within("seek", v.seek(id, 5000, what)).await?;
                }
            }
            _ => {}
        }
        Ok(())
    }

    async fn read(&mut self, id: FileId, at: u64, len: usize) -> Result<(), GaveUp> {
        self.world.medium.listen();
        let bytes = self.within("read", self.volume.read(id, at, len)).await?;
        let heard = self.world.medium.heard();
        if let Some(bytes) = bytes {
            self.world.medium.with(|image| self.found.owns(id, heard, image));
            self.found.contents(id, at, &bytes);
        }
        Ok(())
    }

    /// Does one of several things to what has this name.
    async fn change(&mut self, dir: FileId, entry: &DirEntry, n: usize) -> Result<(), GaveUp> {
        let (v, id, root) = (self.volume, entry.id, self.volume.root());
        let bytes = crate::history::tagged(id, 0, 9 * 1024);
        let moved = format!("moved-{n}").into_bytes();
        let size = |size| SetAttr { size: Some(size), ..SetAttr::default() };
        v.open(id);
        match entry.kind {
            FileKind::File => {
                self.within("write", v.write(id, 0, bytes.clone())).await?;
                match n % 4 {
                    0 => drop(self.within("append", v.append(id, vec![0; 9000])).await?),
                    1 => {
                        self.within("cut", v.setattr(id, size(3000))).await?;
                    }
                    2 => {
                        let punch = v.fallocate(id, 1024, 300_032, Fallocate::PunchHole);
                        self.within("punch", punch).await?;
                    }
                    _ => {
                        let mode = Fallocate::Allocate { keep_size: false };
                        self.within("allocate", v.fallocate(id, 0, 600_000, mode)).await?;
                    }
                }
                self.within("fsync", v.fsync(id)).await?;
                self.within("link", v.link(id, root, format!("link-{n}").as_bytes())).await?;
            }
            FileKind::Directory => {
                let made = v.create(id, b"fresh", new(FileKind::Directory));
                self.within("mkdir", made).await?;
            }
            _ => {}
        }
        self.within("setxattr", v.set_xattr(id, b"user.z", &[7; 900], XattrMode::Any)).await?;
        let mode = if n.is_multiple_of(3) { RenameMode::Exchange } else { RenameMode::Replace };
        self.within("rename", v.rename(dir, &entry.name, root, &moved, mode)).await?;
        if n % 3 == 1 {
            self.within("unlink", v.unlink(root, &moved)).await?;
            self.within("rmdir", v.rmdir(root, &moved)).await?;
        }
        v.close(id);
        Ok(())
    }

    /// Makes things of its own.
    async fn make(&mut self) -> Result<(), GaveUp> {
        let (v, root) = (self.volume, self.volume.root());
        for n in 0..6 {
            let name = format!("made-{n}").into_bytes();
            let made = self.within("create", v.create(root, &name, new(FileKind::File))).await?;
            let Some(made) = made else { continue };
            let bytes = crate::history::tagged(made.id, 0, 50 * 1024 * n);
            self.within("write", v.write(made.id, 0, bytes)).await?;
            if n > 3 {
                self.within("unlink", v.unlink(root, &name)).await?;
            }
        }
        Ok(())
    }
}
