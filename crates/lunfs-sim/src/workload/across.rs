//! Operations on what other hosts use too.

use std::collections::BTreeMap;

use lunfs_core::{Attr, DirEntry, FileId, FileKind, Kind, RenameMode, Result, SetAttr};

use super::naming::new;
use super::{Next, Worker};
use crate::model::content::{BLOCK, fill};
use crate::model::file::Change;
use crate::model::linear::{Said, Wish};
use crate::model::names::{NodeKind, name};
use crate::model::shared_prefix;

/// Entries asked for at once.
const PAGE: usize = 40;
/// Names that everybody makes and removes.
const COMMON_NAMES: u64 = 3;
/// What may refuse an operation where everybody does anything.
const ARENA_REFUSALS: [Kind; 8] = [
    Kind::NotFound,
    Kind::Exists,
    Kind::NotEmpty,
    Kind::IsDirectory,
    Kind::NotDirectory,
    Kind::Invalid,
    Kind::Stale,
    Kind::TooManyLinks,
];

impl Worker {
    pub(super) async fn look_across(&self) -> Next {
        match self.chance.below(100) {
            0..25 => self.write_common().await,
            25..50 => self.read_common().await,
            50..58 => self.fsync_common().await,
            58..74 => self.look_at_shared().await,
            74..80 => self.list_shared().await,
            80..88 => self.play().await,
            88..96 => self.compete().await,
            98 if self.chance.percent(20) => self.ask().await,
            _ => self.sync().await,
        }
    }

    fn pick_common(&self) -> Option<(u64, FileId)> {
        (!self.places.common.is_empty()).then(|| *self.chance.pick(&self.places.common))
    }

    fn common_range(&self, number: u64) -> (u64, usize) {
        let blocks = self.world.model.size(number) / BLOCK as u64;
        let first = self.chance.below(blocks);
        let count = self.chance.between(1, 8).min(blocks - first);
        (first * BLOCK as u64, usize::try_from(count).unwrap_or(1) * BLOCK)
    }

    async fn write_common(&self) -> Next {
        let Some((number, id)) = self.pick_common() else { return Next::Go };
        let (at, len) = self.common_range(number);
        let change = Change::Write(at..at + len as u64);
        self.bytes("write", number, &change, async |write| {
            self.volume.write(id, at, fill(number, at, len, write)).await
        })
        .await
    }

    async fn read_common(&self) -> Next {
        let Some((number, id)) = self.pick_common() else { return Next::Go };
        let (at, len) = self.common_range(number);
        self.world.meet(|met| met.looks_across += 1);
        self.read_range(number, id, at, len).await
    }

    async fn fsync_common(&self) -> Next {
        let Some((number, id)) = self.pick_common() else { return Next::Go };
        let tick = self.world.model.tick();
        let _step = self.world.progress.begin(self.owner, "fsync");
        match self.volume.fsync(id).await {
            Ok(()) => {
                self.say(|| format!("worker {} did fsync of file {number}", self.index));
                self.world.model.harden_bytes(number, self.owner, tick);
                self.done()
            }
            Err(error) => self.trouble("fsync", &error),
        }
    }

    /// Looks another worker's shared name up, and into the file.
    async fn look_at_shared(&self) -> Next {
        let names = self.world.model.shared_names();
        let Some(shared) = self.places.shared.filter(|_| !names.is_empty()) else {
            return Next::Go;
        };
        self.world.meet(|met| met.looks_across += 1);
        let wanted = self.chance.pick(&names).clone();
        let look = self.world.model.look();
        self.say(|| format!("worker {} looks up {wanted}", self.index));
        let step = self.world.progress.begin(self.owner, "lookup");
        let found: Option<Attr> = match self.volume.lookup(shared, wanted.as_bytes()).await {
            Ok(attr) => Some(attr),
            Err(error) if error.kind == Kind::NotFound => None,
            Err(error) if error.kind == Kind::Stale => return Next::Go,
            Err(error) => return self.trouble("lookup", &error),
        };
        drop(step);
        let id = found.as_ref().map(|attr| attr.id);
        let number = self.world.model.check_shared(&wanted, id, self.owner, look.from);
        match (number, found) {
            (Some(number), Some(attr)) if attr.kind == FileKind::File => {
                self.world.model.check_size(number, attr.size, self.owner, look.from);
                self.look_into(number, &attr).await
            }
            _ => self.done(),
        }
    }

    async fn look_into(&self, number: u64, attr: &Attr) -> Next {
        let at = self.chance.below(attr.size + 1);
        let len = usize::try_from(self.chance.between(1, 64 * 1024)).unwrap_or(1);
        let look = self.world.model.look();
        let step = self.world.progress.begin(self.owner, "read");
        let result = self.volume.read(attr.id, at, len).await;
        drop(step);
        match result {
            Ok(found) => {
                // A file that lost its name meanwhile may be gone in part.
                if !self.world.model.with_file(number, |file| file.is_going) {
                    self.world.model.check_bytes(number, (at, len), &found, self.owner, look.from);
                }
                self.done()
            }
            Err(error) if matches!(error.kind, Kind::Stale | Kind::NotFound) => {
                if !self.world.model.with_file(number, |file| file.is_going) {
                    let text = format!("file {number} has a name and is gone: {error}");
                    self.world.findings.add(self.owner, text);
                }
                Next::Go
            }
            // Its owner has it open just now. In the end nobody has, and all is read once more.
            Err(error) if error.kind == Kind::Busy && attr.is_disk => {
                self.world.meet(|met| met.refusals += 1);
                Next::Go
            }
            Err(error) => self.trouble("read", &error),
        }
    }

    /// All entries of a directory, in as many pages as it needs.
    pub(super) async fn entries(&self, directory: FileId) -> Result<Vec<DirEntry>> {
        let _step = self.world.progress.begin(self.owner, "readdir");
        let mut all: Vec<DirEntry> = Vec::new();
        loop {
            let after = all.last().map_or(0, |entry| entry.cookie);
            let page = self.volume.readdir(directory, after, PAGE).await?;
            if page.is_empty() {
                return Ok(all);
            }
            if page.iter().any(|entry| entry.cookie <= after) {
                self.world.findings.add(self.owner, "readdir goes backwards");
                return Ok(all);
            }
            all.extend(page);
        }
    }

    /// Lists one of the worker's own directories.
    pub(super) async fn list_directory(&self) -> Next {
        let directory = self.pick_directory();
        if directory == "s" {
            return self.list_shared().await;
        }
        let Some(id) = self.id_at(&directory) else { return Next::Go };
        let mut found: Vec<(String, FileId)> = match self.entries(id).await {
            Ok(entries) => entries.into_iter().map(|entry| (text(&entry.name), entry.id)).collect(),
            Err(error) => return self.trouble("readdir", &error),
        };
        found.sort();
        let tree = self.tree();
        let id_of = |number| self.world.model.id(number);
        let wanted: Vec<(String, FileId)> = tree
            .children(&directory)
            .filter_map(|(path, node)| Some((name(path).to_owned(), id_of(node.number)?)))
            .collect();
        self.expect(&directory, "entries", found, wanted);
        self.done()
    }

    /// Lists the shared directory and judges every name in it.
    async fn list_shared(&self) -> Next {
        let Some(shared) = self.places.shared else { return Next::Go };
        self.world.meet(|met| met.looks_across += 1);
        let look = self.world.model.look();
        self.say(|| format!("worker {} lists the shared directory", self.index));
        let entries = match self.entries(shared).await {
            Ok(entries) => entries,
            Err(error) => return self.trouble("readdir", &error),
        };
        // A name that is removed and made again while the pages are read may show twice.
        let ids: BTreeMap<&[u8], FileId> =
            entries.iter().map(|entry| (&entry.name[..], entry.id)).collect();
        for wanted in self.world.model.shared_names() {
            let id = ids.get(wanted.as_bytes()).copied();
            self.world.model.check_shared(&wanted, id, self.owner, look.from);
        }
        let own = shared_prefix(self.index);
        let tree = self.tree();
        for entry in entries.iter().filter(|entry| entry.name.starts_with(own.as_bytes())) {
            let path = format!("s/{}", text(&entry.name));
            let kind = tree.nodes.get(&path).map(|node| match node.kind {
                NodeKind::File => FileKind::File,
                NodeKind::Directory => FileKind::Directory,
                NodeKind::Symlink(_) => FileKind::Symlink,
            });
            self.expect(&path, "kind", Some(entry.kind), kind);
        }
        self.done()
    }

    /// A name that everybody makes, removes and looks at: the answers must have an order.
    async fn compete(&self) -> Next {
        let Some(&dir) = self.places.arena.last() else { return Next::Go };
        let name = format!("r{}", self.chance.below(COMMON_NAMES));
        let wish = *self.chance.pick(&[Wish::Make, Wish::Remove, Wish::Look, Wish::Look]);
        let (model, bytes) = (&self.world.model, name.as_bytes());
        let call = model.with_common_name(&name, |linear| linear.call(self.owner, wish));
        self.say(|| format!("worker {} calls {wish:?} of {name:?}", self.index));
        let step = self.world.progress.begin(self.owner, "compete");
        let answer = match wish {
            Wish::Make => {
                let made = self.volume.create(dir, bytes, new(FileKind::File, &[])).await;
                made.map(|attr| Said::Made(attr.id))
            }
            Wish::Remove => self.volume.unlink(dir, bytes).await.map(|()| Said::Removed),
            Wish::Look => self.volume.lookup(dir, bytes).await.map(|attr| Said::Found(attr.id)),
        };
        drop(step);
        let said = match (&answer, wish) {
            (Ok(said), _) => *said,
            (Err(error), Wish::Make) if error.kind == Kind::Exists => Said::Exists,
            (Err(error), Wish::Remove | Wish::Look) if error.kind == Kind::NotFound => {
                Said::Missing
            }
            (Err(error), Wish::Look) if error.kind == Kind::Stale => {
                // It was taken away during the look.
                model.with_common_name(&name, |linear| linear.fail(call));
                return Next::Go;
            }
            (Err(error), _) => {
                model.with_common_name(&name, |linear| linear.fail(call));
                return self.trouble("compete", error);
            }
        };
        self.say(|| format!("worker {} is told {said:?} of {name:?}", self.index));
        model.check_common_name(&name, call, said, self.owner);
        self.world.meet(|met| met.competitions += 1);
        self.done()
    }

    /// Anything, where everybody does anything: only the walker knows whether it went well.
    async fn play(&self) -> Next {
        if self.places.arena.is_empty() {
            return Next::Go;
        }
        let (dir, other) =
            (*self.chance.pick(&self.places.arena), *self.chance.pick(&self.places.arena));
        let number = self.chance.below(10);
        let one = format!("{}{number}", "a".repeat(if number > 6 { 150 } else { 1 })).into_bytes();
        let two = format!("a{}", self.chance.below(10)).into_bytes();
        let _step = self.world.progress.begin(self.owner, "play");
        let result: Result<()> = match self.chance.below(8) {
            0 | 1 => {
                let kind = *self.chance.pick(&[FileKind::File, FileKind::Directory]);
                self.volume.create(dir, &one, new(kind, &[])).await.map(|_| ())
            }
            2 => self.volume.unlink(dir, &one).await,
            3 => self.volume.rmdir(dir, &one).await,
            4 => {
                let modes = [RenameMode::Replace, RenameMode::NoReplace, RenameMode::Exchange];
                self.volume.rename(dir, &one, other, &two, *self.chance.pick(&modes)).await
            }
            5 => self.play_deeper(dir, &one, other, &two).await,
            _ => self.play_with_file(dir, &one).await,
        };
        match result {
            Err(error) if !ARENA_REFUSALS.contains(&error.kind) => self.trouble("play", &error),
            Ok(()) | Err(_) => self.done(),
        }
    }

    /// Moves things into directories that others may move or remove at the same time.
    async fn play_deeper(&self, dir: FileId, one: &[u8], other: FileId, two: &[u8]) -> Result<()> {
        let deeper = self.volume.lookup(dir, one).await?.id;
        if self.chance.percent(50) {
            return self.volume.rename(other, two, deeper, two, RenameMode::Replace).await;
        }
        let file = self.volume.lookup(other, two).await?.id;
        self.volume.link(file, deeper, one).await.map(|_| ())
    }

    async fn play_with_file(&self, dir: FileId, name: &[u8]) -> Result<()> {
        let attr = self.volume.lookup(dir, name).await?;
        if attr.kind != FileKind::File {
            return Ok(());
        }
        match self.chance.below(4) {
            0 => {
                let size = self.chance.below(300 * 1024);
                let set = SetAttr { size: Some(size), ..SetAttr::default() };
                self.volume.setattr(attr.id, set).await.map(|_| ())
            }
            1 => self.volume.fsync(attr.id).await,
            _ => {
                let len = usize::try_from(self.chance.between(1, 90_000)).unwrap_or(1);
                let at = self.chance.below(1 << 19);
                self.volume.write(attr.id, at, vec![0x5A; len]).await
            }
        }
    }

    /// Asks the volume for everything it tells people.
    async fn ask(&self) -> Next {
        let _step = self.world.progress.begin(self.owner, "ask");
        let space = match self.volume.space().await {
            Ok(space) => space,
            Err(error) => return self.trouble("space", &error),
        };
        if space.free > space.total {
            self.world.findings.add(self.owner, format!("more space than there is: {space:?}"));
        }
        let hosts = match self.volume.hosts().await {
            Ok(hosts) => hosts,
            Err(error) => return self.trouble("hosts", &error),
        };
        if !hosts.iter().any(|host| host.is_self) {
            self.world.findings.add(self.owner, "a host that does not see itself");
        }
        drop(self.volume.locks());
        self.done()
    }
}

fn text(name: &[u8]) -> String {
    String::from_utf8_lossy(name).into_owned()
}
