//! A host: starts its program again whenever it ended, and speaks for it when it cannot.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use lunfs_core::env::{Clock, Compared, Disk, Instant, IoError};
use lunfs_core::last_word::{LastWord, Say};
use lunfs_core::{Identity, MountOptions, StopReason, Volume};
use lunfs_format::{Pulse, RECORD};

use crate::disk::HostDisk;
use crate::disk::faults::{MILLISECOND, SECOND};
use crate::executor::Owner;
use crate::workload;
use crate::world::{Death, Program, World};

/// Owners above this number are parents; they have no slot of their own.
const PARENTS: u32 = 1_000_000;
/// Attempts of a parent to write its last word.
const LAST_WORD_ATTEMPTS: u32 = 5;

/// What the keeper of a host shall do.
#[derive(Debug, Default)]
pub struct Keeping {
    /// Start the program whenever it is not running.
    pub is_on: Cell<bool>,
    /// Run workers in it.
    pub with_workers: Cell<bool>,
    /// Longest time before it is started again, in nanoseconds.
    pub pause_max: Cell<u64>,
    /// So many of the next mounts end right after they began, and the next one follows at once: a
    /// slot changes hands faster than others look at it (Q4).
    pub visits: Cell<u32>,
    /// In a hundred cases, how often a parent outlives the program.
    pub parents: Cell<u32>,
}

/// Who runs a program of `host`.
pub fn identity(program: &Program, owner: Owner, has_parent: bool) -> Identity {
    Identity {
        run: program.run,
        boot: [1; 16],
        machine: [2; 16],
        pid: 1_000 + owner.0,
        pid_start: u64::from(owner.0),
        pid_namespace: 4_026_531_836,
        has_parent,
    }
}

/// Keeps a host running: a task of the world.
pub async fn keep(world: Rc<World>, host: usize, keeping: Rc<Keeping>) {
    loop {
        while !keeping.is_on.get() {
            world.executor.sleep(20 * MILLISECOND).await;
        }
        let has_parent = world.chance.percent(keeping.parents.get());
        let (owner, program) = world.new_program(host);
        let living =
            live(Rc::clone(&world), owner, Rc::clone(&program), has_parent, Rc::clone(&keeping));
        world.executor.spawn(owner, living);
        program.ended.wait().await;
        let death = program.death.get();
        if has_parent && matches!(death, Some(Death::Crashed | Death::Fenced | Death::Stopped)) {
            speak(&world, host, owner, &program).await;
        }
        if keeping.visits.get() == 0 {
            let pause = world.chance.below(keeping.pause_max.get().max(MILLISECOND));
            world.executor.sleep(pause).await;
        }
    }
}

/// The life of one program.
async fn live(
    world: Rc<World>,
    owner: Owner,
    program: Rc<Program>,
    has_parent: bool,
    keeping: Rc<Keeping>,
) {
    let Some(volume) = mount(&world, owner, &program, has_parent).await else { return };
    if keeping.with_workers.get() {
        for worker in world.workers_of(program.host) {
            program.working.set(program.working.get() + 1);
            let work = workload::work(Rc::clone(&world), owner, Rc::clone(&volume), worker);
            world.executor.spawn(owner, work);
        }
    }
    if keeping.visits.get() > 0 {
        keeping.visits.set(keeping.visits.get() - 1);
        world.executor.sleep(world.chance.below(SECOND)).await;
        program.leave.raise();
    }
    program.leave.wait().await;
    while program.working.get() > 0 {
        world.executor.sleep(5 * MILLISECOND).await;
    }
    unmount(&world, owner, &program, &volume).await;
    // From here on `serve` decides.
    std::future::pending::<()>().await;
}

/// Mounts the volume and serves it; a refusal ends the program.
pub async fn mount(
    world: &Rc<World>,
    owner: Owner,
    program: &Rc<Program>,
    has_parent: bool,
) -> Option<Rc<Volume>> {
    let options = MountOptions {
        name: format!("host{}", program.host),
        read_only: false,
        identity: identity(program, owner, has_parent),
    };
    let _step = world.progress.begin(owner, "mount");
    match Volume::mount(world.env(owner), options).await {
        Ok(volume) => {
            world.mounted(program.host);
            world.say(owner, || format!("mounted as slot {}", volume.slot()));
            program.me.set(Some(volume.me()));
            *program.volume.borrow_mut() = Some(Rc::clone(&volume));
            let (world, program) = (Rc::clone(world), Rc::clone(program));
            let serving = serve(Rc::clone(&world), owner, program, Rc::clone(&volume));
            world.executor.spawn(owner, serving);
            Some(volume)
        }
        Err(error) => {
            world.meet(|met| met.mounts_refused += 1);
            world.say(owner, || format!("cannot mount: {error}"));
            world.refused(program.host, &error.to_string());
            world.kill(owner, Death::Refused);
            None
        }
    }
}

/// Unmounts; all that the program did is then durable.
pub async fn unmount(world: &Rc<World>, owner: Owner, program: &Program, volume: &Rc<Volume>) {
    let _step = world.progress.begin(owner, "unmount");
    let tick = world.model.tick();
    match volume.unmount().await {
        Ok(()) => world.model.synced(owner, tick, &world.workers_of(program.host)),
        Err(error) => {
            world.say(owner, || format!("unmount: {error}"));
            program.has_lost.set(true);
            if world.is_quiet.get() && volume.stopped().is_none() {
                let text = format!("unmount fails although nothing is wrong: {error}");
                world.findings.add(owner, text);
            }
        }
    }
    program.left.raise();
}

async fn serve(world: Rc<World>, owner: Owner, program: Rc<Program>, volume: Rc<Volume>) {
    match volume.serve().await {
        StopReason::Unmounted => {
            program.left.wait().await;
            world.meet(|met| met.unmounts += 1);
            world.kill(owner, Death::Unmounted);
        }
        StopReason::Stopped(why) => {
            world.meet(|met| met.stops += 1);
            world.stopped(owner, &why);
            world.kill(owner, Death::Stopped);
        }
    }
}

/// Mounts the volume as `host`, does `work` with it and unmounts it again, running the world
/// meanwhile. `None`: it did not end within `bound`, or the mount was refused; both are findings.
pub fn session<T: 'static, F: Future<Output = T>>(
    world: &Rc<World>,
    host: usize,
    bound: u64,
    work: impl FnOnce(Owner, Rc<Volume>) -> F + 'static,
) -> Option<T> {
    let (owner, program) = world.new_program(host);
    let result = Rc::new(RefCell::new(None));
    let (own, to, inside) = (Rc::clone(world), Rc::clone(&result), Rc::clone(&program));
    world.executor.spawn(owner, async move {
        let Some(volume) = mount(&own, owner, &inside, false).await else { return };
        let value = work(owner, Rc::clone(&volume)).await;
        *to.borrow_mut() = Some(value);
        unmount(&own, owner, &inside, &volume).await;
    });
    world.run(world.executor.now() + bound, || program.ended.is_raised());
    if program.death.get() != Some(Death::Unmounted) && !world.findings.any() {
        let why = world.locked_out(u64::MAX).map(|(_, why)| why);
        let text = format!(
            "a session ends with {:?} instead of an unmount: {why:?}; under way: {:?}",
            program.death.get(),
            world.progress.list()
        );
        world.findings.add(owner, text);
    }

    result.borrow_mut().take()
}

/// The parent of a dead program writes its last word, once its I/O is drained.
async fn speak(world: &Rc<World>, host: usize, owner: Owner, program: &Program) {
    let Some(me) = program.me.get() else { return };
    while !world.disk.is_drained(owner) {
        world.executor.sleep(MILLISECOND).await;
    }
    world.executor.sleep(world.chance.below(SECOND / 5)).await;
    let parent = Owner(PARENTS + owner.0);
    let clock = world.clock(host);
    let disk = HostDisk::new(&world.disk, parent, clock);
    let Some((volume, geometry)) = world.checkers.volume() else { return };
    let at = geometry.slot_offset(me.slot);
    let mut parent_of = LastWord::new(program.run, me.incarnation);
    for _ in 0..LAST_WORD_ATTEMPTS {
        let Ok(found) = disk.read(at, geometry.logical_block as usize).await else { continue };
        let Ok(pulse) = Pulse::decode(&found[..RECORD], volume, me.slot) else { return };
        let Say::Word(word) = parent_of.look(&pulse, world.chance.next()) else { return };
        let mut new = found.clone();
        new[..RECORD].copy_from_slice(&word.encode(volume)[..]);
        match disk.compare_and_write(at, found, new, Instant::FAR).await {
            Ok(Compared::Written) => {
                world.meet(|met| met.last_words += 1);
                world.note(parent, "last word", u64::from(me.slot.0), "");
                return;
            }
            Ok(Compared::Miscompare)
            | Err(IoError::InDoubt(_) | IoError::Failed(_) | IoError::Unflushed(_)) => {
                clock.sleep(std::time::Duration::from_millis(50)).await;
            }
            Err(IoError::TooLate) => return,
        }
    }
}
