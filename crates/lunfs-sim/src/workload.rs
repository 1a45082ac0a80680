//! What programs do to the volume: random operations, each checked against the model.
//!
//! A worker belongs to a host and goes on where it stopped when the host's program starts again. It
//! changes only what is its own: its private directory, and names of its own in the directory
//! that all share. It looks at everything in the shared directory, and writes whole blocks of the
//! common files, which everybody writes.

mod across;
pub mod audit;
mod data;
mod disks;
pub mod kinds;
mod naming;
pub mod setup;

use std::pin::pin;
use std::rc::Rc;

use futures_util::future::select;
use lunfs_core::{Error, FileId, FileKind, Kind, New, Volume};

use crate::chance::Chance;
use crate::disk::faults::MILLISECOND;
use crate::executor::Owner;
use crate::model::file::Change;
use crate::model::names::{Node, NodeKind, Tree};
use crate::model::{PendingNames, shared_prefix};
use crate::world::{Program, World};

/// Names of a worker that it does not exceed.
const NAMES_MAX: usize = 36;
/// Largest file.
const SIZE_MAX: u64 = 1 << 20;
/// Changes of names after which a worker makes everything durable.
const HISTORY_MAX: usize = 60;

/// Where the workload lives on the volume.
#[derive(Clone, Debug, Default)]
pub struct Places {
    /// The directory that all share.
    pub shared: Option<FileId>,
    /// The private directory of each worker.
    pub private: Vec<FileId>,
    /// Files that everybody writes, with their numbers in the model.
    pub common: Vec<(u64, FileId)>,
    /// Directories in which everybody does anything.
    pub arena: Vec<FileId>,
}

/// How busy workers are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// Mean pause between two operations in nanoseconds.
    pub think: u64,
    /// Percent of operations on what other hosts use too.
    pub across: u32,
}

/// A new file of this kind, with the usual permission bits.
pub fn new_file(kind: FileKind) -> New {
    naming::new(kind, &[])
}

/// What is left to do after an operation.
pub(crate) enum Next {
    /// Go on.
    Go,
    /// The program stopped: nothing can be done any more.
    Stop,
}

/// One worker in one program.
pub(crate) struct Worker {
    world: Rc<World>,
    owner: Owner,
    program: Rc<Program>,
    volume: Rc<Volume>,
    /// Number among all workers of the world.
    index: usize,
    chance: Chance,
    places: Places,
    pace: Pace,
}

/// The life of a worker in one program.
pub async fn work(world: Rc<World>, owner: Owner, volume: Rc<Volume>, index: usize) {
    let program = world.program(owner);
    let places = world.places.borrow().clone();
    let pace = world.pace.get();
    let chance = world.chance.fork();
    let worker = Worker { world, owner, program, volume, index, chance, places, pace };
    worker.run().await;
}

impl Worker {
    async fn run(&self) {
        if self.world.model.with_names(self.index, |names| names.in_doubt)
            && let Next::Stop = self.audit(true).await
        {
            return self.stopped().await;
        }
        while !self.program.leave.is_raised() && !self.world.is_idle.get() {
            if let Next::Stop = self.step().await {
                return self.stopped().await;
            }
            let think = self.world.executor.sleep(self.chance.around(self.pace.think));
            // Who thinks for minutes still leaves when asked.
            select(pin!(think), pin!(self.program.leave.wait())).await;
        }
        self.program.working.set(self.program.working.get() - 1);
    }

    /// Waits for the end of a program that stopped itself; it must come.
    async fn stopped(&self) {
        let _step = self.world.progress.begin(self.owner, "the end of a stopped program");
        std::future::pending::<()>().await;
    }

    async fn step(&self) -> Next {
        if self.world.model.with_names(self.index, |names| names.in_doubt) {
            return self.audit(false).await;
        }
        if self.world.model.with_names(self.index, |names| names.depth()) > HISTORY_MAX {
            return self.sync().await;
        }
        self.act().await
    }

    // What every operation needs.

    fn tree(&self) -> Rc<Tree> {
        self.world.model.tree(self.index)
    }

    /// Identity of the directory or file at `path`.
    fn id_at(&self, path: &str) -> Option<FileId> {
        match path {
            "p" => self.places.private.get(self.index).copied(),
            "s" => self.places.shared,
            _ => self.world.model.id(self.tree().nodes.get(path)?.number),
        }
    }

    fn pick_node(&self, wanted: impl Fn(&Node) -> bool) -> Option<(String, Node)> {
        let tree = self.tree();
        let nodes: Vec<(&String, &Node)> =
            tree.nodes.iter().filter(|(_, node)| wanted(node)).collect();
        if nodes.is_empty() {
            return None;
        }
        let (path, node) = *self.chance.pick(&nodes);
        Some((path.clone(), node.clone()))
    }

    fn pick_file(&self) -> Option<(String, u64, FileId)> {
        let (path, node) = self.pick_node(|node| node.kind == NodeKind::File)?;
        let id = self.world.model.id(node.number)?;
        Some((path, node.number, id))
    }

    /// A directory of this worker, or the shared one.
    fn pick_directory(&self) -> String {
        let tree = self.tree();
        let mut paths = vec!["p".to_owned(), "s".to_owned(), "s".to_owned()];
        let is_directory = |node: &&Node| node.kind == NodeKind::Directory;
        let own = tree.nodes.iter().filter(|(_, node)| is_directory(node));
        paths.extend(own.map(|(path, _)| path.clone()));
        self.chance.pick(&paths).clone()
    }

    /// A name in `directory` that may or may not exist.
    fn pick_name(&self, directory: &str) -> String {
        let number = self.chance.below(24);
        let mut name = format!("n{number}");
        if number.is_multiple_of(2) {
            // Long names make directories that need nodes, and give them up again.
            let len = 130 + usize::try_from(number).unwrap_or(0) * 4;
            name.push_str(&"x".repeat(len));
        }
        if directory == "s" { format!("{}{name}", shared_prefix(self.index)) } else { name }
    }

    /// Judges an error: is it one that faults explain?
    fn trouble(&self, what: &str, error: &Error) -> Next {
        self.world.meet(|met| met.doubts += 1);
        self.world.say(self.owner, || format!("{what}: {:?}: {error}", error.kind));
        let explained = match error.kind {
            Kind::Stopped => return Next::Stop,
            Kind::Io | Kind::Busy => !self.world.is_quiet.get(),
            // The device shows wrong things: to say so is what is asked.
            Kind::Corrupt => self.world.is_lied_to(),
            Kind::NoSpace => true,
            _ => false,
        };
        if !explained {
            let text = format!("{what} fails with {:?}: {error}", error.kind);
            self.world.findings.add(self.owner, text);
        }
        Next::Go
    }

    fn say(&self, line: impl FnOnce() -> String) {
        self.world.say(self.owner, line);
    }

    fn done(&self) -> Next {
        self.world.meet(|met| met.operations += 1);
        Next::Go
    }

    /// An operation that must be refused with `kind`.
    async fn refused<T>(
        &self,
        what: &'static str,
        kinds: &[Kind],
        operation: impl Future<Output = Result<T, Error>>,
    ) -> Next {
        let _step = self.world.progress.begin(self.owner, what);
        match operation.await {
            Err(error) if kinds.contains(&error.kind) => {
                self.world.meet(|met| met.refusals += 1);
                Next::Go
            }
            Err(error) => self.trouble(what, &error),
            Ok(_) => {
                let text = format!("{what} succeeds; expected: {kinds:?}");
                self.world.findings.add(self.owner, text);
                Next::Go
            }
        }
    }

    /// An operation on names: the model's names become `tree` if it succeeds.
    async fn naming<T>(
        &self,
        what: &'static str,
        tree: Tree,
        touches: Vec<u64>,
        operation: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Next> {
        let change = self.tree().difference(&tree);
        let pending: PendingNames =
            self.world.model.begin_names(self.index, tree, touches, self.owner);
        let (worker, mark) = (self.index, pending.mark());
        self.say(|| format!("worker {worker} calls {what} {mark}: {change}"));
        let _step = self.world.progress.begin(self.owner, what);
        match operation.await {
            Ok(value) => {
                self.say(|| format!("worker {worker} did {what} {mark}"));
                self.world.model.acknowledge_names(&pending);
                Ok(value)
            }
            Err(error) => {
                self.world.model.doubt_names(&pending);
                Err(self.trouble(what, &error))
            }
        }
    }

    /// An operation on the bytes of file `number`.
    async fn bytes<T>(
        &self,
        what: &'static str,
        number: u64,
        change: &Change,
        operation: impl AsyncFnOnce(u64) -> Result<T, Error>,
    ) -> Next {
        let (pending, write) = self.world.model.begin_bytes(number, change, self.owner);
        let worker = self.index;
        self.say(|| format!("worker {worker} calls {what} {write} of file {number}: {change:?}"));
        let _step = self.world.progress.begin(self.owner, what);
        match operation(write).await {
            Ok(_) => {
                self.say(|| format!("worker {worker} did {what} {write} of file {number}"));
                self.world.model.acknowledge_bytes(number, &pending);
                self.done()
            }
            Err(error) => {
                self.world.model.doubt_bytes(number, &pending);
                self.trouble(what, &error)
            }
        }
    }

    async fn sync(&self) -> Next {
        let tick = self.world.model.tick();
        let _step = self.world.progress.begin(self.owner, "sync");
        match self.volume.sync().await {
            Ok(()) => {
                self.say(|| format!("worker {} did sync", self.index));
                let workers = self.world.workers_of(self.program.host);
                self.world.model.synced(self.owner, tick, &workers);
                self.done()
            }
            Err(error) => self.trouble("sync", &error),
        }
    }

    /// A short rest inside of an operation that has several steps.
    async fn rest(&self) {
        self.world.executor.sleep(self.chance.below(2 * MILLISECOND)).await;
    }
}
