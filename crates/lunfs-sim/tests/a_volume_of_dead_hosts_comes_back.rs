//! Where every slot has a dead host, whoever mounts next still can.

use lunfs_sim::disk::faults::{Rates, SECOND};
use lunfs_sim::script::{Host, Sim};

/// Slots of the scripted volume.
const SLOTS: usize = 64;

/// A host that dies as soon as it has a slot, again and again, each time in another one. The
/// checkers watch what the next one does without a slot, on a disk that doubts and repeats.
#[test]
fn every_slot_has_a_dead_host_and_the_next_one_mounts() {
    let sim = Sim::named("every_slot_has_a_dead_host_and_the_next_one_mounts");
    let [first] = sim.hosts();
    let file = sim.create(first, "kept");
    sim.write(first, file, 0, &[7; 8192]);
    sim.sync(first, file);
    sim.crash(first);
    for _ in 1..SLOTS {
        sim.die_joining(Host(1));
    }
    sim.set_rates(Rates { compare_in_doubt: 100_000, doubled: 100_000, ..Rates::NONE });
    sim.begin(Host(2));
    assert_eq!(sim.volume(Host(2)).counters().takeovers_alone, 1);
    sim.set_rates(Rates::NONE);
    assert_eq!(sim.read(Host(2), file, 0..8192), vec![7; 8192]);
    sim.run_for(100 * SECOND);
    sim.check();
}
