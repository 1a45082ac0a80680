//! The volume at rest: the walker of the core, which shares no code with what it checks.

use std::rc::Rc;

use lunfs_core::check::{Options, check};

use crate::clock::HostClock;
use crate::disk::HostDisk;
use crate::disk::faults::SECOND;
use crate::executor::Owner;
use crate::world::World;

/// Virtual time within which a walk must end.
const BOUND: u64 = 600 * SECOND;
/// Errors of one walk that are reported.
const ERRORS_MAX: usize = 8;

/// Walks the volume; nobody must have it mounted. Each error is a finding.
pub fn walk(world: &Rc<World>, when: &str) {
    world.meet(|met| met.walks += 1);
    world.note(Owner::WORLD, "walk", 0, "");
    let clock = HostClock::exact(&world.executor);
    let disk = HostDisk::new(&world.disk, Owner::WORLD, &clock);
    let walking = async move {
        let options = Options { offline: true, ..Options::default() };
        check(&disk, &options).await
    };
    match world.complete(Owner::WORLD, BOUND, walking) {
        None => world.findings.add(Owner::WORLD, format!("{when}: the walk does not end")),
        Some(Err(error)) => world.findings.add(Owner::WORLD, format!("{when}: {error}")),
        Some(Ok(report)) => {
            for error in report.errors().take(ERRORS_MAX) {
                world.findings.add(Owner::WORLD, format!("{when}: {error}"));
            }
        }
    }
}
