//! A host that stands still loses its slot, and with it every way to write.

use lunfs_sim::disk::faults::{MILLISECOND, SECOND};
use lunfs_sim::script::Sim;

/// Stopped between its look at the clock and the device (a SIGSTOP, a page fault, a hypervisor):
/// the write that was about to be submitted must never land once somebody else owns the file.
#[test]
fn a_paused_host_is_killed_and_none_of_its_bytes_land_after_takeover() {
    let sim = Sim::named("a_paused_host_is_killed_and_none_of_its_bytes_land_after_takeover");
    let [sleeper, survivor] = sim.hosts();
    let file = sim.create(sleeper, "disk");
    sim.write(sleeper, file, 0, &[1; 32 * 1024]);
    sim.sync(sleeper, file);

    sim.pause_at_write(sleeper, 60 * SECOND);
    sim.start_write(sleeper, file, 0, &[2; 32 * 1024]);
    sim.run_for(SECOND);
    assert!(sim.is_alive(sleeper), "nobody is robbed within the lease");

    let found = sim.read(survivor, file, 0..32 * 1024);
    assert!(!sim.is_alive(sleeper), "its locks are taken only after it was killed");
    assert!(sim.now() < 40 * SECOND, "it took {} ns", sim.now());
    assert_eq!(found, vec![1; 32 * 1024], "the write never reached the device");

    sim.write(survivor, file, 0, &[3; 32 * 1024]);
    sim.sync(survivor, file);
    sim.run_for(100 * SECOND);
    assert_eq!(sim.read(survivor, file, 0..32 * 1024), vec![3; 32 * 1024]);
    sim.check();
}

/// A pause shorter than the wait costs nothing: the host is suspended, pulses, and resumes.
#[test]
fn a_short_pause_costs_nothing() {
    let sim = Sim::named("a_short_pause_costs_nothing");
    let [sleeper, other] = sim.hosts();
    let file = sim.create(sleeper, "disk");
    sim.write(sleeper, file, 0, &[1; 8192]);

    sim.pause(sleeper, 7 * SECOND);
    sim.run_for(8 * SECOND);

    assert!(sim.is_alive(sleeper));
    sim.write(sleeper, file, 0, &[2; 8192]);
    assert_eq!(sim.read(other, file, 0..8192), vec![2; 8192]);
    sim.check();
}

/// The whole disk stands still for all: nobody may take anybody for dead.
#[test]
fn a_common_stall_kills_nobody() {
    let sim = Sim::named("a_common_stall_kills_nobody");
    let hosts: [_; 3] = sim.hosts();
    let file = sim.create(hosts[0], "disk");
    sim.write(hosts[0], file, 0, &[1; 8192]);

    sim.stall(30 * SECOND);
    sim.run_for(40 * SECOND);

    for host in hosts {
        assert!(sim.is_alive(host), "{host:?} was killed by a common stall");
        assert_eq!(sim.read(host, file, 0..8192), vec![1; 8192]);
    }
    sim.run_for(100 * MILLISECOND);
    sim.check();
}
