//! Scripted runs: one property, step by step.
//!
//! Each step runs the world until it is done. A finding or a step that does not end is a panic that
//! says how to see it again.

use std::cell::RefCell;
use std::future::Future;
use std::rc::Rc;

use lunfs_core::env::Env;
use lunfs_core::{FileId, FileKind, Result, Volume};
use lunfs_format::Timing;

use crate::chance::mix;
use crate::checkers::walker::walk;
use crate::disk::Model as DiskModel;
use crate::disk::faults::{Latency, Rates, Request, SECOND};
use crate::disk::medium::Before;
use crate::executor::Owner;
use crate::host::{mount, session};
use crate::schedule::{format, recover_alone};
use crate::trace::seconds;
use crate::workload::new_file;
use crate::world::{Death, Program, World, WorldOptions};

/// Hosts that a scripted world can have.
const HOSTS_MAX: usize = 4;
/// Slots of the volume.
const SLOTS: u32 = 64;
/// Virtual time within which each step must be done.
const STEP: u64 = 200 * SECOND;

/// A host of a scripted run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Host(pub usize);

/// A scripted run.
pub struct Sim {
    name: String,
    seed: u64,
    /// The world, for what has no step of its own.
    pub world: Rc<World>,
}

impl Sim {
    /// A world with an empty volume. The seed comes from the name, or from `LUNFS_SEED`.
    pub fn named(name: &str) -> Sim {
        let from_name = name.bytes().fold(0, |sum, byte| mix(sum ^ u64::from(byte)));
        let given = std::env::var("LUNFS_SEED").ok().and_then(|seed| seed.parse().ok());
        Sim::with_seed(name, given.unwrap_or(from_name))
    }

    /// A world with an empty volume, from a seed.
    pub fn with_seed(name: &str, seed: u64) -> Sim {
        let disk = DiskModel {
            unit: if seed.is_multiple_of(3) { 4096 } else { 512 },
            size: 256 << 20,
            writes_through: false,
            before: Before::Ghosts(seed),
            latency: Latency::USUAL,
        };
        let verbose = std::env::var_os("LUNFS_VERBOSE").is_some();
        let world = World::new(WorldOptions { seed, hosts: HOSTS_MAX, workers: 1, disk, verbose });
        let sim = Sim { name: name.to_owned(), seed, world };
        format(&sim.world, Timing::FAST, SLOTS);
        sim.assert_sound();
        sim
    }

    /// Hosts `0..N`, each with its mount.
    pub fn hosts<const N: usize>(&self) -> [Host; N] {
        std::array::from_fn(|number| {
            let host = Host(number);
            self.begin(host);
            host
        })
    }

    fn fail(&self, what: &str) -> ! {
        let at = seconds(self.now());
        panic!("{what} (at{at} s; again: LUNFS_SEED={} cargo test {})", self.seed, self.name);
    }

    /// Panics if anything broke a rule so far.
    pub fn assert_sound(&self) {
        if let Some(finding) = self.world.findings.all().first() {
            self.fail(&finding.to_string());
        }
    }

    /// World time in nanoseconds.
    pub fn now(&self) -> u64 {
        self.world.executor.now()
    }

    /// Lets time pass.
    pub fn run_for(&self, nanoseconds: u64) {
        self.world.run(self.now() + nanoseconds, || false);
        self.assert_sound();
    }

    /// Lets time pass until `done`.
    pub fn run_until(&self, mut done: impl FnMut(&Sim) -> bool) {
        let limit = self.now() + STEP;
        self.world.run(limit, || done(self));
        self.assert_sound();
        if !done(self) {
            self.fail("what was waited for does not happen");
        }
    }

    /// Runs a future in a task of `owner` until it ends.
    fn finish<T: 'static>(&self, owner: Owner, future: impl Future<Output = T> + 'static) -> T {
        let value = self.world.complete(owner, STEP, future);
        self.assert_sound();
        value.unwrap_or_else(|| self.fail("a step does not end"))
    }

    fn program(&self, host: Host) -> (Owner, Rc<Program>) {
        match self.world.running(host.0) {
            Some(owner) => (owner, self.world.program(owner)),
            None => self.fail(&format!("{host:?} is not running")),
        }
    }

    /// The mount of a host.
    pub fn volume(&self, host: Host) -> Rc<Volume> {
        let (_, program) = self.program(host);
        let volume = program.volume.borrow().clone();
        volume.unwrap_or_else(|| self.fail(&format!("{host:?} has no mount")))
    }

    /// The doors of a host.
    pub fn env(&self, host: Host) -> Env {
        self.world.env(self.program(host).0)
    }

    /// Starts a host; it must be able to mount, if need be after others' deaths were noticed.
    pub fn begin(&self, host: Host) {
        let limit = self.now() + STEP;
        while self.now() < limit {
            let (owner, program) = self.world.new_program(host.0);
            let mounted = Rc::new(RefCell::new(None));
            let (to, world) = (Rc::clone(&mounted), Rc::clone(&self.world));
            self.world.executor.spawn(owner, async move {
                let volume = mount(&world, owner, &program, false).await;
                *to.borrow_mut() = Some(volume.is_some());
            });
            let until = self.now() + STEP;
            self.world.run(until, || mounted.borrow().is_some() || !self.world.is_alive(owner));
            self.assert_sound();
            if *mounted.borrow() == Some(true) {
                return;
            }
            self.run_for(SECOND);
        }
        self.fail(&format!("{host:?} cannot mount"));
    }

    /// Starts a host that dies as soon as it has a slot.
    pub fn die_joining(&self, host: Host) {
        let (owner, program) = self.world.new_program(host.0);
        let (inside, world) = (Rc::clone(&program), Rc::clone(&self.world));
        self.world.executor.spawn(owner, async move {
            mount(&world, owner, &inside, false).await;
        });
        self.run_until(|sim| sim.world.checkers.has_slot(owner) || !sim.world.is_alive(owner));
        if !self.world.is_alive(owner) {
            self.fail(&format!("{host:?} gets no slot"));
        }
        self.world.kill(owner, Death::Crashed);
        self.run_for(SECOND);
    }

    /// Does something with the mount of a host.
    pub fn with<T: 'static, F: Future<Output = T> + 'static>(
        &self,
        host: Host,
        act: impl FnOnce(Rc<Volume>) -> F,
    ) -> T {
        let (owner, _) = self.program(host);
        self.finish(owner, act(self.volume(host)))
    }

    fn must<T>(&self, what: &str, result: Result<T>) -> T {
        result.unwrap_or_else(|error| self.fail(&format!("{what}: {error}")))
    }

    /// Makes a file in the root directory.
    pub fn create(&self, host: Host, name: &str) -> FileId {
        let bytes = name.as_bytes().to_vec();
        let made = self.with(host, |volume| async move {
            volume.create(volume.root(), &bytes, new_file(FileKind::File)).await
        });
        self.must("create", made).id
    }

    /// Looks a file up in the root directory.
    pub fn find(&self, host: Host, name: &str) -> Option<FileId> {
        let bytes = name.as_bytes().to_vec();
        let found =
            self.with(host, |volume| async move { volume.lookup(volume.root(), &bytes).await });
        found.ok().map(|attr| attr.id)
    }

    /// Writes.
    pub fn write(&self, host: Host, file: FileId, at: u64, data: &[u8]) {
        let data = data.to_vec();
        let written = self.with(host, |volume| async move { volume.write(file, at, data).await });
        self.must("write", written);
    }

    /// Reads.
    pub fn read(&self, host: Host, file: FileId, range: std::ops::Range<u64>) -> Vec<u8> {
        let len = usize::try_from(range.end - range.start).unwrap_or(0);
        let read =
            self.with(host, |volume| async move { volume.read(file, range.start, len).await });
        self.must("read", read)
    }

    /// Makes a file durable.
    pub fn sync(&self, host: Host, file: FileId) {
        let synced = self.with(host, |volume| async move { volume.fsync(file).await });
        self.must("fsync", synced);
    }

    /// Starts something that nobody waits for.
    pub fn start<T: 'static, F: Future<Output = T> + 'static>(
        &self,
        host: Host,
        act: impl FnOnce(Rc<Volume>) -> F,
    ) {
        let doing = act(self.volume(host));
        self.world.executor.spawn(self.program(host).0, async move {
            doing.await;
        });
    }

    /// Starts a write that nobody waits for.
    pub fn start_write(&self, host: Host, file: FileId, at: u64, data: &[u8]) {
        let data = data.to_vec();
        self.start(host, |volume| async move { volume.write(file, at, data).await });
    }

    /// The disk does nothing of what is submitted from now on, for this time.
    pub fn stall(&self, nanoseconds: u64) {
        self.world.stall(Owner::WORLD, nanoseconds);
    }

    /// Kills the program of a host; what it has in flight lands, lands in part, or not. Returns
    /// when.
    pub fn crash(&self, host: Host) -> u64 {
        self.world.kill(self.program(host).0, Death::Crashed);
        self.now()
    }

    /// Stops a host for a time.
    pub fn pause(&self, host: Host, nanoseconds: u64) {
        self.world.pause(self.program(host).0, nanoseconds);
    }

    /// Stops a host for a time at its next write, between its look at the clock and the device.
    pub fn pause_at_write(&self, host: Host, nanoseconds: u64) {
        let (owner, _) = self.program(host);
        let world = Rc::downgrade(&self.world);
        self.world.disk.arm(owner, 1, Some(Request::Write), move || {
            if let Some(world) = world.upgrade() {
                world.pause(owner, nanoseconds);
            }
        });
    }

    /// Is the program of this host, as it was started last, still alive?
    pub fn is_alive(&self, host: Host) -> bool {
        self.world.running(host.0).is_some()
    }

    /// The power of the disk and of all hosts fails.
    pub fn lose_power(&self) {
        self.world.lose_power();
    }

    /// How often requests go wrong from now on.
    pub fn set_rates(&self, rates: Rates) {
        self.world.disk.set_rates(rates);
    }

    /// Does this host hold the lock of a file?
    pub fn holds_lock(&self, host: Host, file: FileId) -> bool {
        self.volume(host).locks().iter().any(|lock| lock.addr == file.addr)
    }

    /// Unmounts a host.
    pub fn unmount(&self, host: Host) {
        let (owner, program) = self.program(host);
        let volume = self.volume(host);
        let world = Rc::clone(&self.world);
        let leaving = Rc::clone(&program);
        self.world.executor.spawn(owner, async move {
            crate::host::unmount(&world, owner, &leaving, &volume).await;
        });
        self.run_until(|_| program.ended.is_raised());
        assert_eq!(program.death.get(), Some(Death::Unmounted), "{host:?} does not unmount");
    }

    /// Unmounts all, lets one host recover the dead, and walks the volume.
    pub fn check(&self) {
        for host in 0..HOSTS_MAX {
            if self.is_alive(Host(host)) {
                self.unmount(Host(host));
            }
        }
        recover_alone(&self.world, 0);
        self.assert_sound();
        walk(&self.world, "check");
        self.assert_sound();
    }

    /// Mounts with a host that is not running, does something, and unmounts.
    pub fn session<T: 'static, F: Future<Output = T>>(
        &self,
        host: Host,
        act: impl FnOnce(Owner, Rc<Volume>) -> F + 'static,
    ) -> T {
        let value = session(&self.world, host.0, STEP, act);
        self.assert_sound();
        value.unwrap_or_else(|| self.fail("a session does not end"))
    }
}

impl Drop for Sim {
    fn drop(&mut self) {
        self.world.close();
    }
}
