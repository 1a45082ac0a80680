//! The volume at rest: the walker of the core, which shares no code with what it checks.

use std::rc::Rc;

use lunfs_core::check::{CheckOptions, check};

use crate::disk::HostDisk;
use crate::disk::faults::SECOND;
use crate::executor::Owner;
use crate::clock::HostClock;
use crate::world::World;

/// Walks the volume; nobody must have it mounted. Each problem is a finding.
pub fn walk(world: &Rc<World>, when: &str) {
    world.meet(|met| met.walks += 1);
    world.note(Owner::WORLD, "walk", 0, "");
    let clock = HostClock::exact(&world.executor);
    let disk = Rc::new(HostDisk::new(&world.disk, Owner::WORLD, &clock));
    let walking = async move { check(disk, CheckOptions::default()).await };
    match world.complete(Owner::WORLD, 600 * SECOND, walking) {
        None => world.findings.add(Owner::WORLD, format!("{when}: the walk did not end")),
        Some(Err(error)) => world.findings.add(Owner::WORLD, format!("{when}: {error}")),
        Some(Ok(report)) => {
            for problem in report.problems {
                world.findings.add(Owner::WORLD, format!("{when}: {problem}"));
            }
        }
    }
}
