//! Where every slot has a dead host, whoever mounts next still can.

use lunfs_sim::disk::faults::{Rates, SECOND};
use lunfs_sim::script::{Host, Sim};

/// Slots of the scripted volume.
const SLOTS: usize = 64;

/// A host that dies as soon as it has written something, again and again, each time in another
/// slot, before anybody had the time to recover another. The checkers watch what the next one does
/// without a slot, on a disk that doubts and repeats.
#[test]
fn every_slot_has_a_dead_host_and_the_next_one_mounts() {
    let sim = Sim::named("every_slot_has_a_dead_host_and_the_next_one_mounts");
    let mut last = None;
    for number in 0..SLOTS {
        let host = Host(number % 2);
        sim.begin(host);
        if number == 0 {
            let file = sim.create(host, "kept");
            sim.write(host, file, 0, &[7; 8192]);
            sim.sync(host, file);
            last = Some(file);
        }
        sim.crash(host);
    }
    let file = last.expect("it was made");
    sim.set_rates(Rates { compare_in_doubt: 100_000, doubled: 100_000, ..Rates::NONE });
    sim.begin(Host(3));
    assert_eq!(sim.volume(Host(3)).counters().takeovers_alone, 1);
    sim.set_rates(Rates::NONE);
    assert_eq!(sim.read(Host(3), file, 0..8192), vec![7; 8192]);
    sim.run_for(100 * SECOND);
    sim.check();
}
