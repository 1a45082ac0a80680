//! Every acknowledged write is seen by whoever looks next, on whichever host.

use lunfs_sim::script::Sim;

#[test]
fn a_handover_shows_the_newest_bytes() {
    let sim = Sim::named("a_handover_shows_the_newest_bytes");
    let hosts: [_; 3] = sim.hosts();
    let file = sim.create(hosts[0], "shared.log");
    for round in 0..30_u8 {
        let writer = hosts[usize::from(round) % 3];
        let at = u64::from(round % 5) * 3000;
        sim.write(writer, file, at, &[round + 1; 3000]);
        for reader in hosts {
            let found = sim.read(reader, file, at..at + 3000);
            assert_eq!(found, vec![round + 1; 3000], "round {round} as {reader:?} sees it");
        }
    }
    sim.check();
}

#[test]
fn what_was_handed_over_survives_the_death_of_its_writer() {
    let sim = Sim::named("what_was_handed_over_survives_the_death_of_its_writer");
    let [writer, reader] = sim.hosts();
    let file = sim.create(writer, "shared.log");
    sim.write(writer, file, 0, b"never synced");
    assert_eq!(sim.read(reader, file, 0..100), b"never synced");

    sim.crash(writer);

    assert_eq!(sim.read(reader, file, 0..100), b"never synced");
    assert_eq!(sim.find(reader, "shared.log"), Some(file));
    sim.check();
}
