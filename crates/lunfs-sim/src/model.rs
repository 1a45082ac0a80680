//! The reference: what anybody who looks at the volume may see.
//!
//! It knows which operation was called when, which was acknowledged, and what was made durable. It
//! knows nothing of blocks, locks or journals.

pub mod content;
pub mod file;
pub mod linear;
pub mod names;
pub mod register;
pub mod snapshots;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use lunfs_core::FileId;

use crate::executor::Owner;
use crate::finding::Findings;
use file::{Change, FileModel, Pending, Span};
use linear::{Linear, Said};
use names::{Names, Tree};
use register::{ChangeNo, Deaths, Register};
use snapshots::{Frozen, Snapshots};

/// The dead, with the ticks of their deaths, and the looks that have not ended.
#[derive(Debug, Default)]
struct Dead {
    died: RefCell<BTreeMap<Owner, u64>>,
    looks: RefCell<BTreeSet<u64>>,
}

impl Deaths for Dead {
    fn died(&self, program: Owner) -> Option<u64> {
        self.died.borrow().get(&program).copied()
    }

    fn oldest_look(&self) -> u64 {
        self.looks.borrow().first().copied().unwrap_or(u64::MAX)
    }
}

/// A look that has begun: over when dropped.
pub struct Look {
    model: Rc<Model>,
    /// The tick at which it began.
    pub from: u64,
}

impl Drop for Look {
    fn drop(&mut self) {
        self.model.dead.looks.borrow_mut().remove(&self.from);
    }
}

/// A change of names that was called.
#[derive(Clone, Debug)]
pub struct PendingNames {
    worker: usize,
    mark: u64,
    shared: Vec<(String, ChangeNo)>,
}

impl PendingNames {
    /// Its place among its worker's operations.
    pub fn mark(&self) -> u64 {
        self.mark
    }
}

/// The reference model of one world.
pub struct Model {
    findings: Rc<Findings>,
    tick: Cell<u64>,
    next_number: Cell<u64>,
    dead: Dead,
    files: RefCell<BTreeMap<u64, FileModel>>,
    ids: RefCell<BTreeMap<u64, FileId>>,
    shared: RefCell<BTreeMap<String, Register<Option<u64>>>>,
    /// Permission bits, which are not ordered with names: each file's are durable by themselves.
    modes: RefCell<BTreeMap<u64, Register<u32>>>,
    workers: RefCell<Vec<Names>>,
    /// Names that everybody makes and removes.
    common_names: RefCell<BTreeMap<String, Linear>>,
    bytes_checked: Cell<u64>,
    snapshots: RefCell<Snapshots>,
}

impl Model {
    /// A model of an empty volume used by `workers` workers.
    pub fn new(findings: &Rc<Findings>, workers: usize) -> Rc<Model> {
        Rc::new(Model {
            findings: Rc::clone(findings),
            tick: Cell::new(1),
            next_number: Cell::new(1),
            dead: Dead::default(),
            files: RefCell::default(),
            ids: RefCell::default(),
            shared: RefCell::default(),
            modes: RefCell::default(),
            workers: RefCell::new(vec![Names::default(); workers]),
            common_names: RefCell::default(),
            bytes_checked: Cell::new(0),
            snapshots: RefCell::default(),
        })
    }

    /// The next tick; take one before each call and one after each answer.
    pub fn tick(&self) -> u64 {
        self.tick.set(self.tick.get() + 1);
        self.tick.get()
    }

    /// Somebody begins to look at something.
    pub fn look(self: &Rc<Self>) -> Look {
        let from = self.tick();
        self.dead.looks.borrow_mut().insert(from);
        Look { model: Rc::clone(self), from }
    }

    /// Bytes that were compared so far.
    pub fn bytes_checked(&self) -> u64 {
        self.bytes_checked.get()
    }

    fn report(&self, by: Owner, result: Result<(), String>) -> bool {
        match result {
            Ok(()) => true,
            Err(what) => {
                self.findings.add(by, what);
                false
            }
        }
    }

    // Programs.

    /// A program died: what it had not made durable may be lost.
    pub fn died(&self, program: Owner, workers: &[usize]) {
        let tick = self.tick();
        self.dead.died.borrow_mut().insert(program, tick);
        self.common_names.borrow_mut().values_mut().for_each(|name| name.died(program));
        for &worker in workers {
            self.workers.borrow_mut()[worker].in_doubt = true;
        }
    }

    /// A program made everything durable that it had acknowledged before `tick`.
    pub fn synced(&self, program: Owner, tick: u64, workers: &[usize]) {
        for file in self.files.borrow_mut().values_mut() {
            file.harden(program, tick, &self.dead);
        }
        for modes in self.modes.borrow_mut().values_mut() {
            modes.harden(program, tick, &self.dead);
        }
        for &worker in workers {
            let mark = {
                let names = &mut self.workers.borrow_mut()[worker];
                // What an earlier program left and nobody has looked at yet may be lost already.
                if names.in_doubt { None } else { Some(names.harden_before(tick)) }
            };
            if let Some(mark) = mark {
                self.harden_shared(program, mark, worker);
            }
        }
    }

    fn harden_shared(&self, program: Owner, mark: u64, worker: usize) {
        let prefix = shared_prefix(worker);
        for (name, register) in self.shared.borrow_mut().range_mut(prefix.clone()..) {
            if !name.starts_with(&prefix) {
                break;
            }
            register.harden_mark(program, mark, &self.dead);
        }
    }

    // Bytes.

    /// A number for something new.
    pub fn new_number(&self) -> u64 {
        let number = self.next_number.get();
        self.next_number.set(number + 1);
        number
    }

    /// A new empty file.
    pub fn new_file(&self) -> u64 {
        let number = self.new_number();
        self.files.borrow_mut().insert(number, FileModel::new(number));
        number
    }

    /// The identity that the volume gave to `number`.
    pub fn identify(&self, number: u64, id: FileId) {
        self.ids.borrow_mut().insert(number, id);
        if let Some(file) = self.files.borrow_mut().get_mut(&number) {
            file.id = Some(id);
        }
    }

    /// The identity of `number` on the volume, if it is known.
    pub fn id(&self, number: u64) -> Option<FileId> {
        self.ids.borrow().get(&number).copied()
    }

    /// Whose lock covers the bytes of a file. Of a disk they may be in any layer, and in those of
    /// its clones: `None`.
    pub fn holder_of_bytes(&self, number: u64) -> Option<FileId> {
        let is_disk = self.files.borrow().get(&number).is_some_and(|file| file.is_disk);
        self.id(number).filter(|_| !is_disk)
    }

    /// Does something with a file of the model.
    pub fn with_file<T>(&self, number: u64, act: impl FnOnce(&mut FileModel) -> T) -> T {
        let mut files = self.files.borrow_mut();
        act(files.entry(number).or_insert_with(|| FileModel::new(number)))
    }

    /// Size of a file after all that was called.
    pub fn size(&self, number: u64) -> u64 {
        self.with_file(number, |file| file.size())
    }

    /// A change of bytes is called. Returns the number of its tags too.
    pub fn begin_bytes(&self, number: u64, change: &Change, by: Owner) -> (Pending, u64) {
        let tick = self.tick();
        self.with_file(number, |file| {
            let write = file.next_write();
            (file.begin(change, write, by, tick), write)
        })
    }

    /// It was acknowledged.
    pub fn acknowledge_bytes(&self, number: u64, pending: &Pending) {
        let tick = self.tick();
        self.with_file(number, |file| file.acknowledge(pending, tick, &self.dead));
    }

    /// It ended with an error.
    pub fn doubt_bytes(&self, number: u64, pending: &Pending) {
        let tick = self.tick();
        self.with_file(number, |file| file.doubt(pending, tick));
    }

    /// What `by` did to the permission bits of `number` before `tick` is durable.
    pub fn harden_mode(&self, number: u64, by: Owner, tick: u64) {
        if let Some(modes) = self.modes.borrow_mut().get_mut(&number) {
            modes.harden(by, tick, &self.dead);
        }
    }

    /// Does something with the permission bits of `number`, which has had `usual` from its
    /// creation.
    pub fn with_mode<T>(
        &self,
        number: u64,
        usual: u32,
        act: impl FnOnce(&mut Register<u32>, u64) -> T,
    ) -> T {
        let tick = self.tick();
        let mut modes = self.modes.borrow_mut();
        act(modes.entry(number).or_insert_with(|| Register::new(usual)), tick)
    }

    /// A look that began at tick `from` found these permission bits.
    pub fn check_mode(
        &self,
        (number, usual): (u64, u32),
        found: u32,
        by: Owner,
        from: u64,
    ) -> bool {
        let result = self.with_mode(number, usual, |modes, now| {
            let allowed = modes.allowed(from, &self.dead);
            let seen: Vec<ChangeNo> =
                allowed.iter().filter(|(_, mode)| **mode == found).map(|(no, _)| *no).collect();
            if seen.is_empty() {
                let history = modes.history();
                return Err(format!("file {number} has mode {found}; allowed: {history}"));
            }
            modes.observe(&seen, by, (from, now), &self.dead);
            Ok(())
        });
        self.report(by, result)
    }

    /// What `by` did to the bytes of `number` before `tick` is durable.
    pub fn harden_bytes(&self, number: u64, by: Owner, tick: u64) {
        self.with_file(number, |file| file.harden(by, tick, &self.dead));
    }

    /// A look that began at tick `from` and ends now found these bytes.
    pub fn check_bytes(
        &self,
        number: u64,
        range: (u64, usize),
        found: &[u8],
        by: Owner,
        from: u64,
    ) -> bool {
        let span: Span = (from, self.tick());
        self.bytes_checked.set(self.bytes_checked.get() + found.len() as u64);
        let result =
            self.with_file(number, |file| file.check_bytes(range, found, by, span, &self.dead));
        self.report(by, result)
    }

    /// A look that began at tick `from` and ends now found this size.
    pub fn check_size(&self, number: u64, found: u64, by: Owner, from: u64) -> bool {
        let span = (from, self.tick());
        let result = self.with_file(number, |file| file.check_size(found, by, span, &self.dead));
        self.report(by, result)
    }

    /// The whole file was read; `tail` is the part of its last block.
    pub fn settle_file(&self, number: u64, size: u64, tail: &[u8], by: Owner, from: u64) {
        let span = (from, self.tick());
        self.with_file(number, |file| file.settle_end((size, tail), by, span, &self.dead));
    }

    /// A file as everybody must see it now; `None`: there is more than one way.
    pub fn freeze(&self, number: u64) -> Option<Rc<Frozen>> {
        let now = self.tick();
        self.with_file(number, |file| file.freeze(now, &self.dead)).map(Rc::new)
    }

    /// Does something with the snapshots of all disks.
    pub fn with_snapshots<T>(&self, act: impl FnOnce(&mut Snapshots) -> T) -> T {
        act(&mut self.snapshots.borrow_mut())
    }

    /// A disk was found to have these snapshots.
    pub fn check_snapshots(&self, number: u64, found: &[String], by: Owner) -> bool {
        let result = self.with_snapshots(|all| all.check(number, found, &self.dead));
        self.report(by, result)
    }

    // Names.

    /// Does something with the names of a worker.
    pub fn with_names<T>(&self, worker: usize, act: impl FnOnce(&mut Names) -> T) -> T {
        act(&mut self.workers.borrow_mut()[worker])
    }

    /// The names of a worker after all that was called.
    pub fn tree(&self, worker: usize) -> Rc<Tree> {
        self.with_names(worker, |names| names.newest())
    }

    /// A change of names is called that makes `tree` of them and concerns the files `touches`.
    pub fn begin_names(
        &self,
        worker: usize,
        tree: Tree,
        touches: Vec<u64>,
        by: Owner,
    ) -> PendingNames {
        let tick = self.tick();
        let changes = self.tree(worker).shared_changes(&tree);
        let left = self.tree(worker).numbers();
        for gone in left.difference(&tree.numbers()) {
            if self.files.borrow().contains_key(gone) {
                self.with_file(*gone, |file| file.is_going = true);
            }
        }
        let mark = self.with_names(worker, |names| names.begin(tree, touches));
        let mut shared = self.shared.borrow_mut();
        let begun = changes.into_iter().map(|(name, value)| {
            let register = shared.entry(name.clone()).or_insert_with(|| Register::new(None));
            let change = register.begin(value, by, tick, mark);
            (name, change)
        });
        PendingNames { worker, mark, shared: begun.collect() }
    }

    fn each_shared(
        &self,
        pending: &PendingNames,
        act: impl Fn(&mut Register<Option<u64>>, ChangeNo),
    ) {
        let mut shared = self.shared.borrow_mut();
        for (name, change) in &pending.shared {
            if let Some(register) = shared.get_mut(name) {
                act(register, *change);
            }
        }
    }

    /// It was acknowledged.
    pub fn acknowledge_names(&self, pending: &PendingNames) {
        let tick = self.tick();
        self.with_names(pending.worker, |names| names.acknowledge(pending.mark, tick));
        self.each_shared(pending, |register, change| register.acknowledge(change, tick));
    }

    /// It ended with an error.
    pub fn doubt_names(&self, pending: &PendingNames) {
        let tick = self.tick();
        self.each_shared(pending, |register, change| register.doubt(change, tick));
        self.with_names(pending.worker, |names| names.in_doubt = true);
    }

    /// What a worker did to the names of `number` is durable.
    pub fn harden_names(&self, worker: usize, number: u64, by: Owner) {
        let mark = self.with_names(worker, |names| names.harden(number));
        self.harden_shared(by, mark, worker);
    }

    /// A look found that the names of a worker are those of version `mark`. Its shared names are
    /// known again. `durable`: the program that made them is dead and recovered.
    pub fn found_names(&self, worker: usize, mark: u64, by: Owner, durable: bool) {
        self.with_names(worker, |names| names.found(mark, durable));
        let tick = self.tick();
        let tree = self.tree(worker);
        let prefix = shared_prefix(worker);
        let mut shared = self.shared.borrow_mut();
        for (name, register) in shared.range_mut(prefix.clone()..) {
            if !name.starts_with(&prefix) {
                break;
            }
            let value = tree.nodes.get(&format!("s/{name}")).map(|node| node.number);
            register.settle(value, by, (tick, mark), &self.dead);
        }
    }

    /// Does something with a name that everybody makes and removes.
    pub fn with_common_name<T>(&self, name: &str, act: impl FnOnce(&mut Linear) -> T) -> T {
        act(self.common_names.borrow_mut().entry(name.to_owned()).or_default())
    }

    /// A call with such a name was answered.
    pub fn check_common_name(&self, name: &str, call: u64, said: Said, by: Owner) {
        let result = self.with_common_name(name, |linear| linear.answer(call, said));
        self.report(by, result.map_err(|what| format!("the name {name:?}: {what}")));
    }

    /// A look of `by` that began at tick `from` found that the shared `name` stands for `found`, or
    /// for nothing. Returns the number in the model.
    pub fn check_shared(
        &self,
        name: &str,
        found: Option<FileId>,
        by: Owner,
        from: u64,
    ) -> Option<u64> {
        let span = (from, self.tick());
        let mut shared = self.shared.borrow_mut();
        let register = shared.entry(name.to_owned()).or_insert_with(|| Register::new(None));
        let allowed = register.allowed(from, &self.dead);
        let matches = |value: &Option<u64>| match (value, found) {
            (None, None) => true,
            (Some(number), Some(id)) => self.id(*number).is_none_or(|known| known == id),
            _ => false,
        };
        let seen: Vec<ChangeNo> =
            allowed.iter().filter(|(_, value)| matches(value)).map(|(change, _)| *change).collect();
        let values: Vec<Option<u64>> = allowed.iter().map(|(_, value)| **value).collect();
        if seen.is_empty() {
            let known: Vec<Option<FileId>> =
                values.iter().map(|value| value.and_then(|number| self.id(number))).collect();
            let what = format!(
                "the shared name {name:?} stands for {found:?}; allowed: {values:?} = {known:?}"
            );
            self.findings.add(by, what);
            return None;
        }
        let number = values.iter().copied().find(|value| matches(value)).flatten();
        let marks: Vec<(Owner, u64)> = register.marks(&number, from);
        register.observe(&seen, by, span, &self.dead);
        drop(shared);
        // What another host sees came through a release, and with it all that its author did
        // before.
        if let (Some(worker), [(author, mark)]) = (worker_of(name), marks.as_slice())
            && *author != by
            && *author != Owner::WORLD
        {
            let durable = self.with_names(worker, |names| names.harden_mark(*mark));
            self.harden_shared(*author, durable, worker);
        }
        number
    }

    /// All shared names that anybody ever used.
    pub fn shared_names(&self) -> Vec<String> {
        self.shared.borrow().keys().cloned().collect()
    }
}

/// How the shared names of a worker begin.
pub fn shared_prefix(worker: usize) -> String {
    format!("w{worker}-")
}

fn worker_of(name: &str) -> Option<usize> {
    name.strip_prefix('w')?.split_once('-')?.0.parse().ok()
}
