//! Operations on a worker's own names.

use lunfs_core::{FileId, FileKind, Kind, New, RenameMode, SetAttr, XattrMode};

use super::{NAMES_MAX, Next, Worker};
use crate::model::content::fill;
use crate::model::file::Change;
use crate::model::names::{Node, NodeKind, Tree, name, parent};
use crate::model::register::Register;
use crate::model::snapshots::Frozen;

/// Directories in each other that a worker does not exceed.
const DEPTH_MAX: usize = 14;
/// Permission bits of new files and symbolic links.
pub const MODE_FILE: u32 = 0o644;
/// Permission bits of new directories.
pub const MODE_DIRECTORY: u32 = 0o755;

/// Permission bits that a new file of this kind has.
pub fn usual_mode(kind: &NodeKind) -> u32 {
    if *kind == NodeKind::Directory { MODE_DIRECTORY } else { MODE_FILE }
}

/// A file to be made.
pub fn new(kind: FileKind, target: &[u8]) -> New {
    let mode = if kind == FileKind::Directory { MODE_DIRECTORY } else { MODE_FILE };
    New { kind, mode, uid: 0, gid: 0, rdev: 0, target: target.to_vec() }
}

impl Worker {
    pub(super) async fn change_names(&self) -> Next {
        let full = self.tree().nodes.len() >= NAMES_MAX;
        match self.chance.below(100) {
            0..28 if !full => self.create().await,
            0..45 => self.remove().await,
            45..60 => self.rename().await,
            60..68 if !full => self.link().await,
            60..78 => self.look_at_node().await,
            78..86 => self.list_directory().await,
            86..94 => self.attributes().await,
            94..96 => self.change_mode().await,
            96..98 => self.use_orphan().await,
            _ => self.fsync_directory().await,
        }
    }

    /// Creates something, or removes if there is enough.
    pub(super) async fn create_if_room(&self) -> Next {
        let full = self.tree().nodes.len() >= NAMES_MAX;
        if full { self.remove().await } else { self.create().await }
    }

    async fn create(&self) -> Next {
        let directory = self.pick_directory();
        let name = self.pick_name(&directory);
        let kind = match self.chance.below(10) {
            0 | 1 => NodeKind::Directory,
            2 => {
                let len = usize::try_from(self.chance.between(1, 300)).unwrap_or(1);
                NodeKind::Symlink(vec![b't'; len])
            }
            _ => NodeKind::File,
        };
        self.create_as(&directory, &name, kind).await
    }

    /// A directory in the deepest one of this worker.
    pub(super) async fn dig(&self) -> Next {
        let tree = self.tree();
        let depth = |path: &str| path.matches('/').count();
        let directories = tree.nodes.iter().filter(|(_, node)| node.kind == NodeKind::Directory);
        let deepest = directories.map(|(path, _)| path.clone()).max_by_key(|path| depth(path));
        let deepest = deepest.unwrap_or_else(|| "p".to_owned());
        if depth(&deepest) >= DEPTH_MAX || tree.nodes.len() >= NAMES_MAX {
            return self.remove().await;
        }
        let name = self.pick_name(&deepest);
        self.create_as(&deepest, &name, NodeKind::Directory).await
    }

    /// Takes a name away and gives it to something else at once.
    pub(super) async fn reuse(&self) -> Next {
        let wanted = |node: &Node| node.kind != NodeKind::Directory;
        let Some((path, node)) = self.pick_node(wanted) else { return self.create().await };
        let Some(dir) = self.id_at(parent(&path)) else { return Next::Go };
        let base = name(&path).as_bytes().to_vec();
        let mut tree = (*self.tree()).clone();
        tree.remove(&path);
        let removing = self.volume.unlink(dir, &base);
        if let Err(next) = self.naming("unlink", tree, vec![node.number], removing).await {
            return next;
        }
        let kind = if self.chance.percent(20) { NodeKind::Directory } else { NodeKind::File };
        self.create_as(parent(&path), name(&path), kind).await
    }

    async fn create_as(&self, directory: &str, name: &str, node_kind: NodeKind) -> Next {
        let Some(dir) = self.id_at(directory) else { return Next::Go };
        let path = format!("{directory}/{name}");
        let kind = match node_kind {
            NodeKind::File => FileKind::File,
            NodeKind::Directory => FileKind::Directory,
            NodeKind::Symlink(_) => FileKind::Symlink,
        };
        let target = match &node_kind {
            NodeKind::Symlink(target) => target.clone(),
            NodeKind::File | NodeKind::Directory => Vec::new(),
        };
        let disk = self.draw_disk(if kind == FileKind::File { 30 } else { 0 });
        let creating = async {
            match disk {
                Some(size) => {
                    self.volume.create_disk(dir, name.as_bytes(), new(kind, &target), size).await
                }
                None => self.volume.create(dir, name.as_bytes(), new(kind, &target)).await,
            }
        };
        let mut tree = (*self.tree()).clone();
        if tree.nodes.contains_key(&path) {
            return self.refused("create of an existing name", &[Kind::Exists], creating).await;
        }
        let model = &self.world.model;
        let number = if kind == FileKind::File { model.new_file() } else { model.new_number() };
        if let Some(size) = disk {
            let empty = Frozen { size, ..Frozen::default() };
            model.with_file(number, |file| file.begin_as(&empty));
        }
        tree.nodes.insert(path, Node { number, kind: node_kind });
        match self.naming("create", tree, vec![number], creating).await {
            Ok(attr) => {
                model.identify(number, attr.id);
                self.done()
            }
            Err(next) => next,
        }
    }

    pub(super) async fn remove(&self) -> Next {
        let Some((path, node)) = self.pick_node(|_| true) else { return Next::Go };
        let Some(dir) = self.id_at(parent(&path)) else { return Next::Go };
        let base = name(&path).as_bytes().to_vec();
        let mut tree = (*self.tree()).clone();
        let is_directory = node.kind == NodeKind::Directory;
        if self.chance.percent(5) {
            return if is_directory {
                let wrong = self.volume.unlink(dir, &base);
                self.refused("unlink of a directory", &[Kind::IsDirectory], wrong).await
            } else {
                let wrong = self.volume.rmdir(dir, &base);
                self.refused("rmdir of a file", &[Kind::NotDirectory], wrong).await
            };
        }
        if is_directory && tree.children(&path).next().is_some() {
            let wrong = self.volume.rmdir(dir, &base);
            return self.refused("rmdir of a full directory", &[Kind::NotEmpty], wrong).await;
        }
        tree.remove(&path);
        let touches = vec![node.number];
        let result = if is_directory {
            self.naming("rmdir", tree, touches, self.volume.rmdir(dir, &base)).await
        } else {
            self.naming("unlink", tree, touches, self.volume.unlink(dir, &base)).await
        };
        result.map_or_else(|next| next, |()| self.done())
    }

    pub(super) async fn rename(&self) -> Next {
        let Some((from, node)) = self.pick_node(|_| true) else { return Next::Go };
        let directory = self.pick_directory();
        let to_name = self.pick_name(&directory);
        let to = format!("{directory}/{to_name}");
        let inside = |a: &str, b: &str| b == a || b.starts_with(&format!("{a}/"));
        if inside(&from, &to) || inside(&to, &from) {
            return Next::Go;
        }
        let (Some(dir), Some(to_dir)) = (self.id_at(parent(&from)), self.id_at(&directory)) else {
            return Next::Go;
        };
        let mut tree = (*self.tree()).clone();
        let target = tree.nodes.get(&to).cloned();
        let mode = match (&target, self.chance.below(4)) {
            (_, 0) => RenameMode::NoReplace,
            (Some(_), 1) => RenameMode::Exchange,
            _ => RenameMode::Replace,
        };
        let renaming =
            self.volume.rename(dir, name(&from).as_bytes(), to_dir, to_name.as_bytes(), mode);
        if let Some(kind) = refusal(&tree, &node, &to, target.as_ref(), mode) {
            return self.refused("rename onto a wrong target", &[kind], renaming).await;
        }
        if target.as_ref().is_some_and(|target| target.number == node.number) {
            // Two names of one file: POSIX says that nothing happens.
            return Next::Go;
        }
        let mut touches = vec![node.number];
        touches.extend(target.map(|target| target.number));
        if mode == RenameMode::Exchange {
            tree.exchange(&from, &to);
        } else {
            tree.rename(&from, &to);
        }
        let result = self.naming("rename", tree, touches, renaming).await;
        result.map_or_else(|next| next, |()| self.done())
    }

    async fn link(&self) -> Next {
        let Some((_, number, id)) = self.pick_file() else { return Next::Go };
        let directory = self.pick_directory();
        let Some(dir) = self.id_at(&directory) else { return Next::Go };
        let base = self.pick_name(&directory);
        let path = format!("{directory}/{base}");
        let linking = self.volume.link(id, dir, base.as_bytes());
        let mut tree = (*self.tree()).clone();
        if tree.nodes.contains_key(&path) {
            return self.refused("link to an existing name", &[Kind::Exists], linking).await;
        }
        tree.nodes.insert(path, Node { number, kind: NodeKind::File });
        let result = self.naming("link", tree, vec![number], linking).await;
        result.map_or_else(|next| next, |_| self.done())
    }

    /// Looks a name up and compares what is said of the file.
    async fn look_at_node(&self) -> Next {
        let Some((path, node)) = self.pick_node(|_| true) else { return Next::Go };
        let Some(dir) = self.id_at(parent(&path)) else { return Next::Go };
        let look = self.world.model.look();
        let step = self.world.progress.begin(self.owner, "lookup");
        let attr = match self.volume.lookup(dir, name(&path).as_bytes()).await {
            Ok(attr) => attr,
            Err(error) => return self.trouble("lookup", &error),
        };
        drop(step);
        let tree = self.tree();
        self.expect(&path, "id", Some(attr.id), self.world.model.id(node.number));
        match &node.kind {
            NodeKind::File => {
                self.expect(&path, "links", attr.nlink as usize, tree.links(node.number));
                self.world.model.check_size(node.number, attr.size, self.owner, look.from);
            }
            NodeKind::Directory => {
                let children: Vec<&Node> = tree.children(&path).map(|(_, node)| node).collect();
                let is_directory = |node: &&&Node| node.kind == NodeKind::Directory;
                let directories = children.iter().filter(is_directory).count();
                self.expect(&path, "links", attr.nlink as usize, 2 + directories);
                self.expect(&path, "entries", attr.size, children.len() as u64);
            }
            NodeKind::Symlink(target) => {
                let _step = self.world.progress.begin(self.owner, "readlink");
                match self.volume.readlink(attr.id).await {
                    Ok(found) => self.expect(&path, "target", &found, target),
                    Err(error) => return self.trouble("readlink", &error),
                }
            }
        }
        self.done()
    }

    pub(super) fn expect<T: PartialEq + std::fmt::Debug>(
        &self,
        path: &str,
        what: &str,
        found: T,
        wanted: T,
    ) {
        if found != wanted {
            let index = self.index;
            let text =
                format!("{what} of {path} of worker {index}: {found:?} instead of {wanted:?}");
            self.world.findings.add(self.owner, text);
        }
    }

    /// Makes the names of a file durable through the directory that holds them.
    async fn fsync_directory(&self) -> Next {
        let directories = self.pick_node(|node| node.kind == NodeKind::Directory);
        let Some((_, node)) = directories else { return self.sync().await };
        let Some(id) = self.world.model.id(node.number) else { return Next::Go };
        let tick = self.world.model.tick();
        let _step = self.world.progress.begin(self.owner, "fsync");
        match self.volume.fsync(id).await {
            Ok(()) => {
                self.world.model.harden_mode(node.number, self.owner, tick);
                self.say(|| format!("worker {} did fsync of {}", self.index, node.number));
                self.world.model.harden_names(self.index, node.number, self.owner);
                self.done()
            }
            Err(error) => self.trouble("fsync", &error),
        }
    }

    pub(super) async fn attributes(&self) -> Next {
        let takes = |node: &Node| !matches!(node.kind, NodeKind::Symlink(_));
        let Some((path, node)) = self.pick_node(takes) else { return Next::Go };
        let Some(id) = self.world.model.id(node.number) else { return Next::Go };
        let key = format!("user.a{}", self.chance.below(6)).into_bytes();
        let mut tree = (*self.tree()).clone();
        let known = tree.attributes.get(&node.number).and_then(|all| all.get(&key)).cloned();
        match self.chance.below(4) {
            0 => {
                let _step = self.world.progress.begin(self.owner, "get_xattr");
                match (self.volume.get_xattr(id, &key).await, known) {
                    (Ok(found), Some(value)) => self.expect(&path, "attribute", found, value),
                    (Err(error), None) if error.kind == Kind::NoAttribute => {}
                    (Err(error), _) => return self.trouble("get_xattr", &error),
                    (Ok(found), None) => self.expect(&path, "attribute", Some(found), None),
                }
                self.done()
            }
            1 if known.is_none() => {
                let wrong = self.volume.remove_xattr(id, &key);
                self.refused("remove_xattr of nothing", &[Kind::NoAttribute], wrong).await
            }
            1 => {
                if let Some(all) = tree.attributes.get_mut(&node.number) {
                    all.remove(&key);
                    if all.is_empty() {
                        tree.attributes.remove(&node.number);
                    }
                }
                let removing = self.volume.remove_xattr(id, &key);
                let result = self.naming("remove_xattr", tree, vec![node.number], removing).await;
                result.map_or_else(|next| next, |()| self.done())
            }
            _ => {
                let len = if self.chance.percent(15) { 3_000 } else { 120 };
                let len = usize::try_from(self.chance.below(len)).unwrap_or(0);
                let value = fill(node.number, self.chance.below(1 << 20), len, 0);
                let all = tree.attributes.entry(node.number).or_default();
                all.insert(key.clone(), value.clone());
                let setting = self.volume.set_xattr(id, &key, &value, XattrMode::Any);
                let result = self.naming("set_xattr", tree, vec![node.number], setting).await;
                result.map_or_else(|next| next, |()| self.done())
            }
        }
    }

    async fn change_mode(&self) -> Next {
        let takes = |node: &Node| !matches!(node.kind, NodeKind::Symlink(_));
        let Some((_, node)) = self.pick_node(takes) else { return Next::Go };
        let Some(id) = self.world.model.id(node.number) else { return Next::Go };
        let mode = u32::try_from(self.chance.below(0o1000)).unwrap_or(0);
        let (model, by, usual) = (&self.world.model, self.owner, usual_mode(&node.kind));
        let begin = |modes: &mut Register<u32>, tick| modes.begin(mode, by, tick, 0);
        let change = model.with_mode(node.number, usual, begin);
        self.say(|| format!("worker {} calls chmod {mode} of {}", self.index, node.number));
        let _step = self.world.progress.begin(by, "chmod");
        let set = SetAttr { mode: Some(mode), ..SetAttr::default() };
        match self.volume.setattr(id, set).await {
            Ok(_) => {
                model.with_mode(node.number, usual, |modes, tick| modes.acknowledge(change, tick));
                self.done()
            }
            Err(error) => {
                model.with_mode(node.number, usual, |modes, tick| modes.doubt(change, tick));
                self.trouble("chmod", &error)
            }
        }
    }

    /// A file that is used after its last name is gone.
    async fn use_orphan(&self) -> Next {
        let wanted = |node: &Node| node.kind == NodeKind::File;
        let Some((path, node)) = self.pick_node(wanted) else { return Next::Go };
        let mut tree = (*self.tree()).clone();
        let in_doubt = self.world.model.with_file(node.number, |file| file.in_doubt);
        if tree.links(node.number) != 1 || in_doubt {
            return Next::Go;
        }
        let (Some(id), Some(dir)) = (self.world.model.id(node.number), self.id_at(parent(&path)))
        else {
            return Next::Go;
        };
        self.volume.open(id);
        tree.remove(&path);
        let removing = self.volume.unlink(dir, name(&path).as_bytes());
        let next = match self.naming("unlink", tree, vec![node.number], removing).await {
            Ok(()) => self.use_unnamed(node.number, id).await,
            Err(next) => next,
        };
        self.volume.close(id);
        next
    }

    async fn use_unnamed(&self, number: u64, id: FileId) -> Next {
        for _ in 0..self.chance.below(4) {
            self.rest().await;
            let at = self.chance.below(16) * 4096;
            let change = Change::Write(at..at + 8192);
            let next = self
                .bytes("write of an orphan", number, &change, async |write| {
                    self.volume.write(id, at, fill(number, at, 8192, write)).await
                })
                .await;
            if let Next::Stop = next {
                return next;
            }
            if self.world.model.with_file(number, |file| file.in_doubt) {
                return Next::Go;
            }
            if let Next::Stop = self.read_whole(number, id).await {
                return Next::Stop;
            }
        }
        self.done()
    }
}

/// Why a rename must be refused, if it must.
fn refusal(
    tree: &Tree,
    node: &Node,
    to: &str,
    target: Option<&Node>,
    mode: RenameMode,
) -> Option<Kind> {
    let target = target?;
    let is_directory = |node: &Node| node.kind == NodeKind::Directory;
    match mode {
        RenameMode::NoReplace => Some(Kind::Exists),
        RenameMode::Exchange => None,
        RenameMode::Replace if target.number == node.number => None,
        RenameMode::Replace => match (is_directory(node), is_directory(target)) {
            (true, false) => Some(Kind::NotDirectory),
            (false, true) => Some(Kind::IsDirectory),
            (true, true) if tree.children(to).next().is_some() => Some(Kind::NotEmpty),
            _ => None,
        },
    }
}
