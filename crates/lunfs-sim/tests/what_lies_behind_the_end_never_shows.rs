//! Who makes a file longer finds zeroes there, whatever happened before.

use lunfs_core::{FileId, SetAttr};
use lunfs_sim::script::{Host, Sim};

const FILE_BLOCK: u64 = 256 * 1024;

/// Makes a file of sevens longer: it has sevens as far as it said, and zeroes behind.
fn grows_over_zeroes(sim: &Sim, host: Host, file: FileId, end: u64) {
    let found = sim.with(host, move |v| async move { v.getattr(file).await });
    let size = found.expect("it has a name").size;
    let longer = SetAttr { size: Some(end), ..SetAttr::default() };
    let set = sim.with(host, move |v| async move { v.setattr(file, longer).await });
    set.expect("it can grow");
    let before = sim.read(host, file, 0..size);
    assert!(before.iter().all(|&byte| byte == 7), "a hole within what the file says it has");
    let behind = sim.read(host, file, size..end);
    assert!(behind.iter().all(|&byte| byte == 0), "old bytes behind byte {size}");
}

/// Many file blocks are written without fsync, and the host dies when some of their map entries
/// are in the journal. Entries used to go there before the size that covers them: the file was
/// short, its map was long, and who made it longer saw the old bytes instead of zeroes.
#[test]
fn a_crash_while_a_file_grows_leaves_no_bytes_behind_its_end() {
    for blocks in [41, 60, 100] {
        let name = "a_crash_while_a_file_grows_leaves_no_bytes_behind_its_end";
        let sim = Sim::with_seed(name, blocks);
        let [owner, survivor] = sim.hosts();
        let file = sim.create(owner, "file");
        sim.sync(owner, file);
        for number in 0..blocks {
            sim.write(owner, file, number * FILE_BLOCK, &vec![7; 256 * 1024]);
        }
        sim.run_for(200_000_000);
        sim.crash(owner);

        grows_over_zeroes(&sim, survivor, file, 2 * blocks * FILE_BLOCK);
        sim.check();
    }
}

/// One call that writes more than a transaction takes: a crash between its transactions leaves a
/// shorter file, whole as far as it says, and nothing behind.
#[test]
fn a_crash_within_one_large_write_leaves_a_part_of_it_from_its_beginning() {
    for stage in 0..12 {
        let name = "a_crash_within_one_large_write_leaves_a_part_of_it_from_its_beginning";
        let sim = Sim::with_seed(name, stage);
        let [owner, survivor] = sim.hosts();
        let file = sim.create(owner, "file");
        sim.sync(owner, file);
        sim.start(owner, move |volume| async move {
            let wrote = volume.write(file, 0, vec![7; 100 * 256 * 1024]).await;
            wrote.and(volume.fsync(file).await)
        });
        sim.run_for(10_000_000 + stage * 3_000_000);
        sim.crash(owner);

        grows_over_zeroes(&sim, survivor, file, 120 * FILE_BLOCK);
        sim.check();
    }
}
