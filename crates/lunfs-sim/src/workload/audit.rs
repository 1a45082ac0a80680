//! A look at everything that is a worker's own: does it match one of the states that it may be in?

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::rc::Rc;

use lunfs_core::{Error, FileId, FileKind, Volume};

use super::naming::usual_mode;
use super::{Next, Worker};
use crate::chance::Chance;
use crate::executor::Owner;
use crate::model::names::{Attributes, Node, NodeKind, Tree};
use crate::model::shared_prefix;
use crate::world::World;

/// What was found under one name.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Found {
    id: FileId,
    kind: NodeKind,
    links: u32,
    mode: u32,
}

/// What was found of one worker.
#[derive(Debug, Default)]
struct Picture {
    names: BTreeMap<String, Found>,
    attributes: BTreeMap<FileId, Attributes>,
}

impl Picture {
    /// Is this what `tree` says? The first difference if not.
    fn compare(&self, tree: &Tree, known: impl Fn(u64) -> Option<FileId>) -> Result<(), String> {
        let mut ids: BTreeMap<u64, FileId> = BTreeMap::new();
        for (path, node) in &tree.nodes {
            let Some(found) = self.names.get(path) else {
                return Err(format!("{path} is missing"));
            };
            if found.kind != node.kind {
                return Err(format!("{path} is {:?} instead of {:?}", found.kind, node.kind));
            }
            let id = *ids.entry(node.number).or_insert(found.id);
            if id != found.id || known(node.number).is_some_and(|known| known != found.id) {
                return Err(format!("{path} is {:?}, not file {}", found.id, node.number));
            }
            self.compare_node(path, node, found, tree)?;
        }
        match self.names.keys().find(|path| !tree.nodes.contains_key(*path)) {
            Some(path) => Err(format!("{path} should not be there")),
            None => Ok(()),
        }
    }

    /// How many names of `tree` lead to a file that is known to be the one that was found.
    fn known_in(&self, tree: &Tree, known: impl Fn(u64) -> Option<FileId>) -> usize {
        let is_it = |(path, node): &(&String, &Node)| {
            known(node.number).is_some_and(|id| self.names.get(*path).is_some_and(|f| f.id == id))
        };
        tree.nodes.iter().filter(is_it).count()
    }

    fn compare_node(
        &self,
        path: &str,
        node: &Node,
        found: &Found,
        tree: &Tree,
    ) -> Result<(), String> {
        let links = match node.kind {
            NodeKind::Directory => {
                let below = tree.children(path);
                2 + below.filter(|(_, node)| node.kind == NodeKind::Directory).count()
            }
            NodeKind::File | NodeKind::Symlink(_) => tree.links(node.number),
        };
        if found.links as usize != links {
            return Err(format!("{path} has {} links instead of {links}", found.links));
        }
        let wanted = tree.attributes.get(&node.number).cloned().unwrap_or_default();
        let attributes = self.attributes.get(&found.id).cloned().unwrap_or_default();
        if attributes != wanted {
            return Err(format!("{path} has other attributes"));
        }
        Ok(())
    }
}

/// Compares everything that worker `index` has with the model, through a mount of another program.
pub async fn audit_as(world: Rc<World>, owner: Owner, volume: Rc<Volume>, index: usize) {
    let program = world.program(owner);
    let places = world.places.borrow().clone();
    let pace = world.pace.get();
    let chance = Chance::new(0);
    let worker = Worker { world, owner, program, volume, index, chance, places, pace };
    worker.audit(true).await;
    if index == 0 {
        for &(number, id) in &worker.places.common {
            worker.read_whole(number, id).await;
        }
    }
}

impl Worker {
    /// Finds out which of the possible states the worker's files are in. `after_death`: the program
    /// that changed them is gone and recovered.
    pub(super) async fn audit(&self, after_death: bool) -> Next {
        let look = self.world.model.look();
        let picture = match self.picture().await {
            Ok(picture) => picture,
            Err(error) => return self.trouble("audit", &error),
        };
        let model = &self.world.model;
        let candidates = model.with_names(self.index, |names| names.candidates());
        let known = |number| model.id(number);
        // A name that was taken away and given again may look the same before and after: of states
        // that match, the one with most files that are known to be these, then the newest.
        let matching = (0..candidates.len())
            .filter(|place| picture.compare(&candidates[*place].1, known).is_ok())
            .min_by_key(|place| Reverse(picture.known_in(&candidates[*place].1, known)));
        let Some(place) = matching else {
            let reasons: Vec<String> = candidates
                .iter()
                .filter_map(|(mark, tree)| Some((mark, picture.compare(tree, known).err()?)))
                .map(|(mark, why)| format!("{mark}: {why}"))
                .collect();
            let text =
                format!("names of worker {} are in no possible state: {reasons:?}", self.index);
            self.world.findings.add(self.owner, text);
            return Next::Go;
        };
        let (mark, tree) = &candidates[place];
        self.world.meet(|met| {
            met.audits += 1;
            met.audits_with_loss += u64::from(place > 0);
        });
        self.world.say(self.owner, || {
            format!("audit of worker {}: state {mark}, {place} lost", self.index)
        });
        for (path, node) in &tree.nodes {
            if let Some(found) = picture.names.get(path) {
                model.identify(node.number, found.id);
                let file = (node.number, usual_mode(&node.kind));
                model.check_mode(file, found.mode & 0o7777, self.owner, look.from);
            }
        }
        model.found_names(self.index, *mark, self.owner, after_death);
        self.read_all_files().await
    }

    async fn read_all_files(&self) -> Next {
        let tree = self.tree();
        let files: BTreeMap<u64, ()> = tree
            .nodes
            .values()
            .filter(|node| node.kind == NodeKind::File)
            .map(|node| (node.number, ()))
            .collect();
        for number in files.into_keys() {
            let Some(id) = self.world.model.id(number) else { continue };
            self.world.model.with_file(number, |file| file.is_going = false);
            if let Next::Stop = self.read_whole(number, id).await {
                return Next::Stop;
            }
        }
        self.done()
    }

    async fn picture(&self) -> Result<Picture, Error> {
        let mut picture = Picture::default();
        let mut open: Vec<(String, FileId)> = Vec::new();
        open.extend(self.places.private.get(self.index).map(|&id| ("p".to_owned(), id)));
        open.extend(self.places.shared.map(|id| ("s".to_owned(), id)));
        let own = shared_prefix(self.index);
        while let Some((directory, id)) = open.pop() {
            for entry in self.entries(id).await? {
                if directory == "s" && !entry.name.starts_with(own.as_bytes()) {
                    continue;
                }
                let base = String::from_utf8_lossy(&entry.name).into_owned();
                let path = format!("{directory}/{base}");
                let found = self.found(&path, id, &entry.name, &mut picture).await?;
                if found.kind == NodeKind::Directory {
                    open.push((path.clone(), found.id));
                }
                picture.names.insert(path, found);
            }
        }
        Ok(picture)
    }

    async fn found(
        &self,
        path: &str,
        directory: FileId,
        name: &[u8],
        picture: &mut Picture,
    ) -> Result<Found, Error> {
        let _step = self.world.progress.begin(self.owner, "audit");
        let attr = self.volume.lookup(directory, name).await?;
        let kind = match attr.kind {
            FileKind::Directory => NodeKind::Directory,
            FileKind::Symlink => NodeKind::Symlink(self.volume.readlink(attr.id).await?),
            FileKind::File => NodeKind::File,
            other => {
                let text = format!("{path} is a {other:?}");
                self.world.findings.add(self.owner, text);
                NodeKind::File
            }
        };
        if let std::collections::btree_map::Entry::Vacant(e) = picture.attributes.entry(attr.id) {
            let mut attributes = Attributes::new();
            for key in self.volume.list_xattrs(attr.id).await? {
                let value = self.volume.get_xattr(attr.id, &key).await?;
                attributes.insert(key, value);
            }
            e.insert(attributes);
        }
        Ok(Found { id: attr.id, kind, links: attr.nlink, mode: attr.mode })
    }
}
