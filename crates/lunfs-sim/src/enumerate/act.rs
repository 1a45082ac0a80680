//! Has a mount do a step, and looks at all that a mount shows.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use lunfs_core::env::Env;
use lunfs_core::{Attr, Error, FileId, FileKind, Kind, New, Result, SetAttr, Volume, XattrMode};

use super::seen::{Face, Seen, hash, units};
use super::step::{Step, pattern, split};

/// Device number of device nodes.
pub const RDEV: u64 = 0x0103;
/// Owner and group of all files.
pub const OWNER: (u32, u32) = (7, 8);

/// Where symbolic links point.
pub fn target(path: &str) -> Vec<u8> {
    format!("../to/{path}").into_bytes()
}

/// One mount, and what its programs have open.
pub struct Host {
    /// The mount.
    pub volume: Rc<Volume>,
    opened: RefCell<BTreeMap<String, FileId>>,
}

impl Host {
    /// A mount without open files.
    pub fn new(volume: Rc<Volume>) -> Host {
        Host { volume, opened: RefCell::default() }
    }

    async fn find(&self, path: &str) -> Result<FileId> {
        let mut at = self.volume.root();
        for name in path.split('/').filter(|name| !name.is_empty()) {
            at = self.volume.lookup(at, name.as_bytes()).await?.id;
        }
        Ok(at)
    }

    /// Blocks of 4 KiB that a file takes.
    #[cfg(test)]
    pub async fn blocks(&self, path: &str) -> u64 {
        let file = self.find(path).await.expect("it is there");
        self.volume.getattr(file).await.expect("it can be read").blocks
    }

    /// Does one step of this host.
    pub async fn act(&self, env: &Env, step: &Step) -> Result<()> {
        let v = &self.volume;
        match step {
            Step::Create { path, kind } => {
                let (dir, name) = split(path);
                let dir = self.find(dir).await?;
                v.create(dir, name.as_bytes(), new(path, *kind)).await.map(drop)
            }
            Step::Link { from, to } => {
                let (file, (dir, name)) = (self.find(from).await?, split(to));
                v.link(file, self.find(dir).await?, name.as_bytes()).await.map(drop)
            }
            Step::Unlink(path) => {
                let (dir, name) = split(path);
                v.unlink(self.find(dir).await?, name.as_bytes()).await
            }
            Step::Rmdir(path) => {
                let (dir, name) = split(path);
                v.rmdir(self.find(dir).await?, name.as_bytes()).await
            }
            Step::Rename { from, to, mode } => {
                let ((dir, name), (to_dir, to_name)) = (split(from), split(to));
                let (dir, to_dir) = (self.find(dir).await?, self.find(to_dir).await?);
                v.rename(dir, name.as_bytes(), to_dir, to_name.as_bytes(), *mode).await
            }
            Step::CreateDisk(path, size) => {
                let (dir, name) = split(path);
                let (dir, new) = (self.find(dir).await?, new(path, FileKind::File));
                v.create_disk(dir, name.as_bytes(), new, *size).await.map(drop)
            }
            Step::Snapshot(path, name) => v.snapshot(self.find(path).await?, name.as_bytes()).await,
            Step::DeleteSnapshot(path, name) => {
                v.delete_snapshot(self.find(path).await?, name.as_bytes()).await
            }
            Step::Clone { from, snapshot, to } => {
                let source = (self.find(from).await?, snapshot.map(str::as_bytes));
                let (dir, name) = split(to);
                let (dir, new) = (self.find(dir).await?, new(to, FileKind::File));
                v.clone_disk(source, dir, name.as_bytes(), new).await.map(drop)
            }
            Step::Open(path) => {
                let file = self.find(path).await?;
                v.open(file);
                self.opened.borrow_mut().insert(path.clone(), file);
                Ok(())
            }
            Step::Close(path) => {
                // What could not be opened, since its name was gone, is not closed either.
                let file = self.opened.borrow_mut().remove(path);
                file.into_iter().for_each(|file| v.close(file));
                Ok(())
            }
            Step::Sync => v.sync().await,
            Step::Idle(ms) => {
                lunfs_doors::sleep(env, *ms).await;
                Ok(())
            }
            Step::Unmount => v.unmount().await,
            Step::PeerLooks => look(v).await.map(drop),
            Step::Peer(step) => Box::pin(self.act(env, step)).await,
            of_a_file => self.act_on_file(of_a_file).await,
        }
    }

    async fn act_on_file(&self, step: &Step) -> Result<()> {
        let v = &self.volume;
        match step {
            Step::SetMode(path, mode) => {
                let set = SetAttr { mode: Some(*mode), ..SetAttr::default() };
                v.setattr(self.find(path).await?, set).await.map(drop)
            }
            Step::SetSize(path, size) => {
                let set = SetAttr { size: Some(*size), ..SetAttr::default() };
                v.setattr(self.find(path).await?, set).await.map(drop)
            }
            Step::Write { path, at, len, salt } => {
                let file = self.find(path).await?;
                v.write(file, *at, pattern(*at, *len, *salt)).await
            }
            Step::Append { path, len, salt } => {
                let file = self.find(path).await?;
                let at = v.getattr(file).await?.size;
                v.append(file, pattern(at, *len, *salt)).await.map(drop)
            }
            Step::Fallocate { path, at, len, mode } => {
                v.fallocate(self.find(path).await?, *at, *len, *mode).await
            }
            Step::SetXattr { path, name, len, salt } => {
                let (file, value) = (self.find(path).await?, pattern(0, *len, *salt));
                v.set_xattr(file, name.as_bytes(), &value, XattrMode::Any).await
            }
            Step::RemoveXattr(path, name) => {
                v.remove_xattr(self.find(path).await?, name.as_bytes()).await
            }
            Step::Fsync(path) => v.fsync(self.find(path).await?).await,
            other => unreachable!("{other:?} is about no single file"),
        }
    }
}

fn new(path: &str, kind: FileKind) -> New {
    let target = if kind == FileKind::Symlink { target(path) } else { Vec::new() };
    let mode = if kind == FileKind::Directory { 0o755 } else { 0o644 };
    let rdev = if kind == FileKind::CharDevice { RDEV } else { 0 };
    New { kind, mode, uid: OWNER.0, gid: OWNER.1, rdev, target }
}

/// Everything that a mount shows: names, attributes, contents.
pub async fn look(v: &Volume) -> Result<Seen> {
    let mut found = Vec::new();
    let mut idents: BTreeMap<FileId, String> = BTreeMap::new();
    let root = v.getattr(v.root()).await?;
    let mut to_visit = vec![(String::new(), root)];
    while let Some((path, attr)) = to_visit.pop() {
        if attr.kind == FileKind::Directory {
            for (name, attr) in list(v, &attr).await? {
                let path = if path.is_empty() { name } else { format!("{path}/{name}") };
                to_visit.push((path, attr));
            }
        }
        // Several names of one file: all say the least of them.
        let ident = idents.entry(attr.id).or_insert_with(|| path.clone());
        if path < *ident {
            ident.clone_from(&path);
        }
        let face = face(v, &attr).await?;
        found.push((path, attr.id, face));
    }
    let named = |(path, id, face)| (path, idents.get(&id).cloned().unwrap_or_default(), face);
    let mut seen: Vec<(String, String, Face)> = found.into_iter().map(named).collect();
    seen.sort();
    Ok(Seen(seen))
}

async fn list(v: &Volume, dir: &Attr) -> Result<Vec<(String, Attr)>> {
    let mut entries = Vec::new();
    let mut after = 0;
    loop {
        let some = v.readdir(dir.id, after, 500).await?;
        let Some(last) = some.last() else { break };
        after = last.cookie;
        for entry in some {
            let attr = v.getattr(entry.id).await?;
            if attr.kind != entry.kind {
                return Err(Error::new(Kind::Corrupt, "an entry says another kind"));
            }
            entries.push((String::from_utf8_lossy(&entry.name).into_owned(), attr));
        }
    }
    if entries.len() as u64 != dir.size {
        let what = format!("a directory says {} entries, has {}", dir.size, entries.len());
        return Err(Error::new(Kind::Corrupt, what));
    }
    Ok(entries)
}

async fn face(v: &Volume, attr: &Attr) -> Result<Face> {
    let mut xattrs = BTreeMap::new();
    for name in v.list_xattrs(attr.id).await? {
        let value = v.get_xattr(attr.id, &name).await?;
        xattrs.insert(String::from_utf8_lossy(&name).into_owned(), hash(&value));
    }
    let is_file = attr.kind == FileKind::File;
    let mut snapshots = BTreeMap::new();
    for snapshot in if attr.is_disk { v.snapshots(attr.id).await? } else { Vec::new() } {
        let size = usize::try_from(snapshot.size).unwrap_or(0);
        let content = v.read_snapshot(attr.id, &snapshot.name, 0, size).await?;
        snapshots.insert(String::from_utf8_lossy(&snapshot.name).into_owned(), hash(&content));
    }
    let content = match attr.kind {
        FileKind::File => v.read(attr.id, 0, usize::try_from(attr.size).unwrap_or(0)).await?,
        FileKind::Symlink => v.readlink(attr.id).await?,
        _ => Vec::new(),
    };
    if is_file && content.len() as u64 != attr.size {
        return Err(Error::new(Kind::Corrupt, "a read ends before the end of its file"));
    }
    Ok(Face {
        kind: attr.kind as u8,
        mode: attr.mode,
        owner: (attr.uid, attr.gid),
        nlink: attr.nlink,
        rdev: attr.rdev,
        xattrs,
        snapshots,
        size: if is_file { attr.size } else { content.len() as u64 },
        units: units(&content),
    })
}
