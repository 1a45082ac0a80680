//! What was promised to be durable is there after the array and all hosts lost power.

use lunfs_sim::script::{Host, Sim};

#[test]
fn fsynced_data_survives_a_power_loss_of_the_array() {
    for seed in 0..12 {
        let sim = Sim::with_seed("fsynced_data_survives_a_power_loss_of_the_array", seed);
        let [one, two] = sim.hosts();
        let mine = sim.create(one, "mine");
        let yours = sim.create(two, "yours");
        sim.write(one, mine, 0, &[1; 300_000]);
        sim.write(two, yours, 123, &[2; 3000]);
        sim.sync(one, mine);
        sim.sync(two, yours);
        sim.write(one, mine, 0, &[3; 100_000]);
        sim.write(two, yours, 3123, &[4; 3000]);

        sim.lose_power();
        sim.begin(Host(2));

        assert_eq!(sim.find(Host(2), "mine"), Some(mine));
        assert_eq!(sim.find(Host(2), "yours"), Some(yours));
        let found = sim.read(Host(2), mine, 0..400_000);
        assert_eq!(found.len(), 300_000);
        for (number, sector) in found[..99_840].chunks(512).enumerate() {
            let whole = sector.iter().all(|&byte| byte == sector[0]);
            assert!(whole && matches!(sector[0], 1 | 3), "sector {number}");
        }
        assert!(found[102_400..].iter().all(|&byte| byte == 1));
        let found = sim.read(Host(2), yours, 0..10_000);
        assert!(found[..123].iter().all(|&byte| byte == 0), "never written");
        assert!(found[123..3123].iter().all(|&byte| byte == 2));
        assert!(found[3123..].iter().all(|&byte| byte == 4), "never what was on the disk before");
        sim.check();
    }
}

#[test]
fn what_was_synced_has_its_name_in_every_directory() {
    let sim = Sim::named("what_was_synced_has_its_name_in_every_directory");
    let [host] = sim.hosts();
    let files: Vec<_> =
        (0..60).map(|number| sim.create(host, &format!("file{number:060}"))).collect();
    sim.with(host, |volume| async move { volume.sync().await }).unwrap();
    sim.create(host, "later");

    sim.lose_power();
    sim.begin(host);

    for (number, file) in files.iter().enumerate() {
        assert_eq!(sim.find(host, &format!("file{number:060}")), Some(*file));
    }
    sim.check();
}
