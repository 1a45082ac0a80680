//! Disks: snapshots, their contents, and clones of them or of what is there now.

use std::rc::Rc;

use lunfs_core::FileId;

use super::{NAMES_MAX, Next, Worker, naming};
use crate::model::names::{Node, NodeKind};
use crate::model::snapshots::Frozen;

/// Snapshots of a disk that a worker does not exceed, but for those in doubt.
const SNAPSHOTS_MAX: usize = 5;
/// Largest new disk.
const DISK_MAX: u64 = 1 << 20;

impl Worker {
    /// How large a new disk is to be; `None`: a plain file.
    pub(super) fn draw_disk(&self, percent: u32) -> Option<u64> {
        self.chance.percent(percent).then(|| self.chance.below(DISK_MAX))
    }

    /// Something with the snapshots of a disk of this worker.
    pub(super) async fn use_snapshots(&self) -> Next {
        let is_disk = |number| self.world.model.with_file(number, |file| file.is_disk);
        let wanted = |node: &Node| node.kind == NodeKind::File && is_disk(node.number);
        let Some((_, node)) = self.pick_node(wanted) else {
            return self.create_if_room().await;
        };
        let number = node.number;
        let Some(id) = self.world.model.id(number) else { return Next::Go };
        if self.world.model.with_file(number, |file| file.in_doubt) {
            return self.read_whole(number, id).await;
        }
        if let Err(next) = self.list_snapshots(number, id).await {
            return next;
        }
        let there = self.world.model.with_snapshots(|all| all.sure(number));
        let has_room = self.tree().nodes.len() < NAMES_MAX;
        match self.chance.below(100) {
            0..25 if there.len() < SNAPSHOTS_MAX => self.make_snapshot(number, id).await,
            0..35 if !there.is_empty() => self.delete_snapshot(number, id, &there).await,
            35..50 if has_room => self.clone_now(number, id).await,
            35..65 if has_room && !there.is_empty() => {
                let (name, frozen) = self.chance.pick(&there);
                self.clone_from((id, Some(name.as_bytes())), frozen).await
            }
            _ if !there.is_empty() => self.read_snapshot(number, id, &there).await,
            _ => self.read_whole(number, id).await,
        }
    }

    async fn list_snapshots(&self, number: u64, id: FileId) -> Result<(), Next> {
        let _step = self.world.progress.begin(self.owner, "snapshots");
        match self.volume.snapshots(id).await {
            Ok(found) => {
                let name = |name: &[u8]| String::from_utf8_lossy(name).into_owned();
                let found: Vec<String> = found.iter().map(|s| name(&s.name)).collect();
                self.world.model.check_snapshots(number, &found, self.owner);
                Ok(())
            }
            Err(error) => Err(self.trouble("snapshots", &error)),
        }
    }

    async fn make_snapshot(&self, number: u64, id: FileId) -> Next {
        let Some(frozen) = self.frozen(number, id).await else { return Next::Go };
        let name = format!("s{}", self.chance.below(8));
        let there = self.world.model.with_snapshots(|all| all.sure(number));
        if there.iter().any(|(there, _)| *there == name) {
            let again = self.volume.snapshot(id, name.as_bytes());
            let kinds = [lunfs_core::Kind::Exists];
            return self.refused("snapshot of a name in use", &kinds, again).await;
        }
        self.say(|| format!("worker {} calls snapshot {name} of file {number}", self.index));
        self.world.model.with_snapshots(|all| all.begin(number, &name, &frozen));
        let tick = self.world.model.tick();
        let _step = self.world.progress.begin(self.owner, "snapshot");
        match self.volume.snapshot(id, name.as_bytes()).await {
            Ok(()) => {
                self.say(|| format!("worker {} did snapshot {name}", self.index));
                self.world.model.with_snapshots(|all| all.made(number, &name));
                // What is in it is durable, and it is all there was.
                self.world.model.harden_bytes(number, self.owner, tick);
                self.world.meet(|met| met.snapshots += 1);
                self.done()
            }
            Err(error) => self.trouble("snapshot", &error),
        }
    }

    async fn delete_snapshot(
        &self,
        number: u64,
        id: FileId,
        there: &[(String, Rc<Frozen>)],
    ) -> Next {
        let (name, _) = self.chance.pick(there);
        self.say(|| format!("worker {} deletes snapshot {name} of {number}", self.index));
        self.world.model.with_snapshots(|all| all.begin_deletion(number, name));
        let _step = self.world.progress.begin(self.owner, "delete_snapshot");
        match self.volume.delete_snapshot(id, name.as_bytes()).await {
            Ok(()) => {
                self.world.model.with_snapshots(|all| all.deleted(number, name, self.owner));
                self.done()
            }
            Err(error) => self.trouble("delete_snapshot", &error),
        }
    }

    async fn read_snapshot(&self, number: u64, id: FileId, there: &[(String, Rc<Frozen>)]) -> Next {
        let (name, frozen) = self.chance.pick(there);
        let at = self.chance.below(frozen.size + 1);
        let len = usize::try_from(self.chance.between(1, 128 * 1024)).unwrap_or(1);
        let _step = self.world.progress.begin(self.owner, "read_snapshot");
        match self.volume.read_snapshot(id, name.as_bytes(), at, len).await {
            Ok(found) => {
                self.world.meet(|met| met.snapshots_read += 1);
                let wanted = frozen.bytes(at, len);
                if let Some(text) = difference(&wanted, &found, at) {
                    let text = format!("snapshot {name} of file {number}: {text}");
                    self.world.findings.add(self.owner, text);
                }
                self.done()
            }
            Err(error) => self.trouble("read_snapshot", &error),
        }
    }

    async fn clone_now(&self, number: u64, id: FileId) -> Next {
        match self.frozen(number, id).await {
            Some(frozen) => self.clone_from((id, None), &frozen).await,
            None => Next::Go,
        }
    }

    async fn clone_from(&self, source: (FileId, Option<&[u8]>), frozen: &Rc<Frozen>) -> Next {
        let directory = self.pick_directory();
        let name = self.pick_name(&directory);
        let Some(dir) = self.id_at(&directory) else { return Next::Go };
        let path = format!("{directory}/{name}");
        let mut tree = (*self.tree()).clone();
        if tree.nodes.contains_key(&path) {
            return Next::Go;
        }
        let model = &self.world.model;
        let number = model.new_file();
        model.with_file(number, |file| file.begin_as(frozen));
        tree.nodes.insert(path, Node { number, kind: NodeKind::File });
        let new = naming::new(lunfs_core::FileKind::File, &[]);
        let cloning = self.volume.clone_disk(source, dir, name.as_bytes(), new);
        match self.naming("clone", tree, vec![number], cloning).await {
            Ok(attr) => {
                model.identify(number, attr.id);
                self.world.meet(|met| met.clones += 1);
                self.done()
            }
            Err(next) => next,
        }
    }

    /// Reads all of a file, and says what it holds if there is no doubt.
    async fn frozen(&self, number: u64, id: FileId) -> Option<Rc<Frozen>> {
        match self.read_whole(number, id).await {
            Next::Go => self.world.model.freeze(number),
            Next::Stop => None,
        }
    }
}

fn difference(wanted: &[u8], found: &[u8], at: u64) -> Option<String> {
    if wanted.len() != found.len() {
        return Some(format!("{} bytes from {at} on instead of {}", found.len(), wanted.len()));
    }
    let place = wanted.iter().zip(found).position(|(wanted, found)| wanted != found)?;
    let describe = crate::model::content::describe;
    let sector = |bytes: &[u8]| describe(&bytes[place..bytes.len().min(place + 512)]);
    let (wanted, found) = (sector(wanted), sector(found));
    Some(format!("byte {} is of {found} instead of {wanted}", at + place as u64))
}
