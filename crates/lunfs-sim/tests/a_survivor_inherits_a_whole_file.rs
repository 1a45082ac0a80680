//! What a crash may cost the other hosts: time, and nothing else.

use lunfs_sim::disk::faults::SECOND;
use lunfs_sim::script::Sim;

/// The owner of a disk image makes one write durable, starts a second, and dies. The survivor gets
/// the lock within seconds, and finds the durable data or the later write, whole blocks of either,
/// on a volume that needs no repair.
#[test]
fn a_survivor_inherits_a_whole_file() {
    let sim = Sim::named("a_survivor_inherits_a_whole_file");
    let [owner, survivor] = sim.hosts();

    let image = sim.create(owner, "vm.img");
    sim.write(owner, image, 0, &[b'd'; 64 * 1024]);
    sim.sync(owner, image);
    sim.start_write(owner, image, 0, &[b'u'; 64 * 1024]);
    sim.run_for(40_000);
    let died_at = sim.crash(owner);

    assert_eq!(sim.find(survivor, "vm.img"), Some(image), "an fsynced file has its name");
    let found = sim.read(survivor, image, 0..64 * 1024);
    assert!(sim.now() < died_at + 10 * SECOND, "the life mark is free: no need to wait");
    assert_eq!(found.len(), 64 * 1024);
    for block in found.chunks(512) {
        let is_whole = block.iter().all(|&byte| byte == block[0]);
        assert!(is_whole && matches!(block[0], b'd' | b'u'), "torn inside of a logical block");
    }
    assert_eq!(sim.read(survivor, image, 0..64 * 1024), found, "what was read once stays");

    sim.write(survivor, image, 4096, b"mine now");
    sim.sync(survivor, image);
    sim.check();
}

/// The owner dies at every stage of an fsync: what is then found is one of the two states.
#[test]
fn a_death_during_fsync_leaves_the_old_or_the_new() {
    for stage in 0..40 {
        let sim = Sim::with_seed("a_death_during_fsync_leaves_the_old_or_the_new", stage);
        let [owner, survivor] = sim.hosts();
        let file = sim.create(owner, "log");
        sim.write(owner, file, 0, &[1; 5000]);
        sim.sync(owner, file);
        sim.write(owner, file, 5000, &[2; 5000]);
        sim.start(owner, |volume| async move { volume.fsync(file).await });
        sim.run_for(stage * 50_000);
        sim.crash(owner);

        let found = sim.read(survivor, file, 0..20_000);
        assert!(found.len() == 5000 || found.len() == 10_000, "{} bytes", found.len());
        assert!(found[..5000].iter().all(|&byte| byte == 1));
        assert!(found[5000..].iter().all(|&byte| byte == 2), "what is in the file was written");
        sim.check();
    }
}
