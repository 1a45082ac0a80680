//! One object: its lock, its body, its trees.

use lunfs_format::{
    BLOCK, BlockNo, Content, Descriptor, FILE_BLOCK_BLOCKS, FileKind, Lock, LockMode, LockObject,
    Tree, stored_checksum,
};

use super::content::{self, Faults, Orphan, Run};
use super::media::Pair;
use super::rules;
use super::space::{Purpose, Reference};
use super::tree::{self, Entry, Found};
use super::walk::{Place, Walk};
use crate::error::Result;

/// Bytes of a file block.
const FILE_BLOCK: u64 = FILE_BLOCK_BLOCKS as u64 * BLOCK as u64;

/// What an object is to the walk.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    Named,
    Orphan,
    OrphanDirectory,
    Layer,
}

impl Walk<'_, '_> {
    /// Judges an object that was just read, and follows what it refers to.
    pub async fn examine(&mut self, at: BlockNo, pair: &Pair) -> Result<()> {
        self.locks.insert(at, pair.lock.ok());
        let role = match self.objects.get(&at).map(|object| &object.place) {
            Some(Place::Root | Place::Name { .. }) => Role::Named,
            Some(Place::OrphanDirectory(_)) => Role::OrphanDirectory,
            Some(Place::Orphan { .. }) => Role::Orphan,
            Some(Place::Layer { .. }) => Role::Layer,
            None => return Ok(()),
        };
        match self.opened(at, role, pair) {
            Ok(Some(body)) => self.follow(at, role, body).await,
            Ok(None) => Ok(()),
            Err(why) => {
                self.error(at, at, &format!("{why}; what it holds is lost"));
                self.is_partial = true;
                Ok(())
            }
        }
    }

    /// The body, unless the object holds nothing any more. `Err`: it cannot be used.
    fn opened(
        &mut self,
        at: BlockNo,
        role: Role,
        pair: &Pair,
    ) -> std::result::Result<Option<Descriptor>, String> {
        let lock = pair.lock.map_err(|why| format!("its lock is damaged: {why}"))?;
        self.judge_birth(at, &lock)?;
        let is_void = role == Role::Orphan && lock.mode == LockMode::Void;
        if !is_void && let Some(why) = rules::lock(&lock, LockObject::Descriptor) {
            return Err(why);
        }
        let body = Descriptor::decode(&pair.body, self.media.volume(), at.plus(1))
            .map_err(|why| format!("its body is damaged: {why}"))?;
        let stamp = rules::stamp(&lock, body.version, stored_checksum(&pair.body));
        let faults = [
            rules::owner(body.owner, at),
            rules::birth(body.version, &lock),
            stamp.filter(|_| !is_void),
        ];
        self.report(at, faults.into_iter().flatten().collect());
        match (role, body.kind) {
            (Role::Orphan, FileKind::Void) => {
                self.report(at, rules::void(&body).into_iter().collect());
                Ok(None)
            }
            (_, FileKind::Void) => Err("it was deleted but is still referred to".into()),
            _ if is_void => Err("its lock is void but its body is not".into()),
            _ => {
                self.judge_kind(at, &body);
                Ok(Some(body))
            }
        }
    }

    fn judge_birth(&self, at: BlockNo, lock: &Lock) -> std::result::Result<(), String> {
        let wanted = self.objects.get(&at).and_then(|object| object.birth);
        let found = lock.generation.birth;
        match wanted {
            Some(wanted) if wanted != found => Err(format!(
                "what leads to it means a file of birth {wanted}, but one of birth {found} is there"
            )),
            Some(_) | None => Ok(()),
        }
    }

    fn judge_kind(&mut self, at: BlockNo, body: &Descriptor) {
        if let Some(wanted) = self.objects.get(&at).and_then(|object| object.kind)
            && wanted != body.kind
        {
            let (wanted, found) = (kind_name(wanted), kind_name(body.kind));
            self.error(
                at.plus(1),
                at,
                &format!("its name says that it is {wanted}, it is {found}"),
            );
        }
    }

    /// Walks the trees of an object and judges what they hold.
    async fn follow(&mut self, at: BlockNo, role: Role, mut body: Descriptor) -> Result<()> {
        let content = std::mem::take(&mut body.content);
        self.judge_content(at, role, &body, &content);
        let content = match content {
            Content::Tree(tree) => self.tree(at, &tree).await?,
            Content::Empty | Content::Bytes(_) => Found::default(),
        };
        let xattrs = self.tree(at, &body.xattrs).await?;
        self.report(at, content::attributes(&xattrs.entries));
        let is_whole = !content.is_partial && !xattrs.is_partial;
        let nodes = (content.nodes.len() + xattrs.nodes.len()) as u64;
        let held = match (role, body.kind) {
            (Role::OrphanDirectory, FileKind::Directory) => {
                self.orphans(at, &body, &content);
                Some(0)
            }
            (_, FileKind::Directory) => {
                self.directory(at, role, &body, content);
                Some(0)
            }
            (_, FileKind::File) if body.top.is_some() => {
                self.disk(at, &body, &content);
                Some(0)
            }
            (_, FileKind::Layer) => {
                self.layer(at, &body);
                self.file(at, role, &body, content.entries)
            }
            (_, FileKind::File) => self.file(at, role, &body, content.entries),
            _ => Some(0),
        };
        if role != Role::Orphan
            && is_whole
            && let Some(held) = held
        {
            self.report(
                at,
                rules::count("blocks", body.blocks, nodes + held).into_iter().collect(),
            );
        }
        self.judge_nlink(at, role, &body);
        Ok(())
    }

    /// Reads a tree, reports what is wrong with its nodes, and refers to them.
    async fn tree(&mut self, at: BlockNo, tree: &Tree) -> Result<Found> {
        let mut found = tree::read(self.media, at, tree).await?;
        for (node, why) in std::mem::take(&mut found.faults) {
            self.error(node, at, &why);
        }
        self.is_partial |= found.is_partial;
        for node in &found.nodes {
            self.refer(Reference { start: *node, len: 1, owner: at, purpose: Purpose::Node });
        }
        Ok(found)
    }

    fn report(&mut self, at: BlockNo, faults: Faults) {
        for why in faults {
            self.error(at.plus(1), at, &why);
        }
    }

    /// Reports entries that cannot be understood: what they refer to is not found.
    fn report_lost(&mut self, at: BlockNo, faults: Faults) {
        self.is_partial |= !faults.is_empty();
        self.report(at, faults);
    }

    /// Does the content go with the kind?
    fn judge_content(&mut self, at: BlockNo, role: Role, body: &Descriptor, content: &Content) {
        let fault = match (body.kind, content) {
            // What is being emptied has a size of zero.
            _ if role == Role::Orphan => None,
            (FileKind::File, Content::Bytes(bytes)) if bytes.len() as u64 > body.size => {
                Some(format!(
                    "it has {} bytes of content but a size of {}: the others show when it grows",
                    bytes.len(),
                    body.size
                ))
            }
            (FileKind::File | FileKind::Directory | FileKind::Void | FileKind::Layer, _) => None,
            (FileKind::Symlink, Content::Bytes(target)) => {
                rules::count("bytes of its target", body.size, target.len() as u64)
            }
            (FileKind::Symlink, _) => Some("its target is lost".into()),
            (_, Content::Empty) => None,
            (kind, _) => Some(format!("it is {} but has content", kind_name(kind))),
        };
        self.report(at, fault.into_iter().collect());
    }

    fn judge_nlink(&mut self, at: BlockNo, role: Role, body: &Descriptor) {
        match role {
            Role::Orphan if body.nlink > 0 => {
                let what = format!("it is an orphan but counts {} links", body.nlink);
                self.error(at.plus(1), at, &what);
            }
            Role::Orphan | Role::OrphanDirectory | Role::Layer => {}
            Role::Named => {
                let count = match body.kind {
                    FileKind::File => &mut self.tally.files,
                    FileKind::Directory => &mut self.tally.directories,
                    FileKind::Symlink => &mut self.tally.symlinks,
                    _ => &mut self.tally.others,
                };
                *count += 1;
                if body.kind != FileKind::Directory
                    && let Some(object) = self.objects.get_mut(&at)
                {
                    object.nlink = Some(body.nlink);
                }
            }
        }
    }

    /// The names of a directory.
    fn directory(&mut self, at: BlockNo, role: Role, body: &Descriptor, found: Found) {
        let count = found.entries.len() as u64;
        if role == Role::Orphan {
            if count > 0 {
                let what = format!("it is a deleted directory with {count} names: all are lost");
                self.report_lost(at, vec![what]);
            }
            return;
        }
        let (names, faults) = content::names(found.entries, &self.media.superblock.hash_key);
        let is_whole = !found.is_partial && faults.is_empty();
        self.report_lost(at, faults);
        if is_whole {
            let is_directory = |kind: FileKind| kind == FileKind::Directory;
            let below = names.iter().filter(|named| is_directory(named.value.kind)).count() as u64;
            let links = rules::count("links", body.nlink.into(), 2 + below);
            let size = rules::count("names", body.size, count);
            self.report(at, [links, size].into_iter().flatten().collect());
        }
        self.judge_parent(at, body);
        for named in names {
            let place = Place::Name { directory: at, name: named.name };
            let value = named.value;
            self.reach(value.addr, Some(value.birth), Some(value.kind), place);
        }
    }

    fn judge_parent(&mut self, at: BlockNo, body: &Descriptor) {
        let parent = match self.objects.get(&at).map(|object| &object.place) {
            Some(Place::Root) => at,
            Some(Place::Name { directory, .. }) => *directory,
            Some(Place::OrphanDirectory(_) | Place::Orphan { .. } | Place::Layer { .. }) | None => {
                return;
            }
        };
        let birth = self.objects.get(&parent).and_then(|object| object.birth);
        let is_right =
            body.parent == parent && birth.is_none_or(|birth| birth == body.parent_birth);
        if !is_right {
            let what = format!(
                "it says that its parent is the directory {} of birth {}, it is in {parent} of \
                 birth {}: \"..\" leads astray",
                body.parent,
                body.parent_birth,
                birth.unwrap_or_default()
            );
            self.error(at.plus(1), at, &what);
        }
    }

    /// The map of a file. Returns the blocks of its runs, unless some are lost.
    fn file(
        &mut self,
        at: BlockNo,
        role: Role,
        body: &Descriptor,
        entries: Vec<Entry>,
    ) -> Option<u64> {
        let (runs, faults) = content::runs(entries);
        let is_whole = faults.is_empty();
        self.report_lost(at, faults);
        let is_beyond = |index: u64| index.saturating_mul(FILE_BLOCK) >= body.size;
        let beyond = runs.iter().filter(|run| is_beyond(run.index)).count();
        if beyond > 0 && role != Role::Orphan {
            let what =
                format!("{}: {beyond} file blocks are allocated beyond the end", self.path(at));
            self.claims.note(at.plus(1), what);
        }
        // Whoever makes the file longer zeroes up to the end of its last grain only.
        let end = body.size.next_multiple_of(BLOCK as u64);
        let shows = |run: &Run| {
            let valid =
                run.index.saturating_mul(FILE_BLOCK).saturating_add(run.valid * BLOCK as u64);
            run.valid > 0 && valid > end
        };
        if let Some(run) = runs.iter().find(|run| shows(run))
            && role != Role::Orphan
            && (body.nlink > 0 || role == Role::Layer)
        {
            let what = format!(
                "file block {} has data beyond the end of the file, which would show if the file \
                 grew; truncate it to its own size",
                run.index
            );
            self.error(at.plus(1), at, &what);
        }
        let held = runs.iter().map(|run| run.len).sum();
        for run in runs {
            let purpose = Purpose::Contents;
            self.refer(Reference { start: run.start, len: run.len, owner: at, purpose });
        }
        is_whole.then_some(held)
    }

    /// The entries of an orphan directory.
    fn orphans(&mut self, at: BlockNo, body: &Descriptor, found: &Found) {
        let (orphans, faults) = content::orphans(&found.entries);
        self.report_lost(at, faults);
        if !found.is_partial {
            let size = rules::count("orphans", body.size, found.entries.len() as u64);
            self.report(at, size.into_iter().collect());
        }
        self.tally.orphans += orphans.len() as u64;
        for orphan in orphans {
            match orphan {
                Orphan::File { addr, birth } => {
                    self.reach(addr, Some(birth), None, Place::Orphan { directory: at });
                }
                Orphan::Run { start, len: 0 } => {
                    self.error(at.plus(1), at, &format!("the run at block {start} is empty"));
                }
                Orphan::Run { start, len } => {
                    self.refer(Reference { start, len, owner: at, purpose: Purpose::FreedRun });
                }
            }
        }
    }
}

fn kind_name(kind: FileKind) -> &'static str {
    match kind {
        FileKind::File => "a file",
        FileKind::Directory => "a directory",
        FileKind::Symlink => "a symbolic link",
        FileKind::Fifo => "a fifo",
        FileKind::Socket => "a socket",
        FileKind::CharDevice => "a character device",
        FileKind::BlockDevice => "a block device",
        FileKind::Void => "void",
        FileKind::Layer => "a layer",
    }
}
