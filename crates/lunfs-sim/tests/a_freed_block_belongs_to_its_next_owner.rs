//! What was freed and given to somebody else is not touched by what its first owner had logged.

use lunfs_core::{FileId, FileKind, New};
use lunfs_sim::script::Sim;

/// Names that fill several nodes of a directory.
const NAMES: usize = 60;
/// Files of one grain each, which take the place of those nodes.
const FILES: usize = 40;

fn new(kind: FileKind) -> New {
    New { kind, mode: 0o755, uid: 0, gid: 0, rdev: 0, target: Vec::new() }
}

fn long_name(number: usize) -> Vec<u8> {
    format!("{number:0>200}").into_bytes()
}

/// A directory grows over several nodes and shrinks again; its nodes become contents of files,
/// which are made durable; the host dies. The directory's lock never moved, so its generation
/// proves nothing (R7), and what is in the place of a node is no valid node. Only the revokes keep
/// replay from writing names over contents (H1).
#[test]
fn a_node_that_became_a_file_stays_a_file() {
    let sim = Sim::named("a_node_that_became_a_file_stays_a_file");
    let [owner, survivor] = sim.hosts();

    let dir = sim.with(owner, |volume| async move {
        let made = volume.create(volume.root(), b"dir", new(FileKind::Directory)).await;
        let dir = made.expect("a directory").id;
        for number in 0..NAMES {
            let name = long_name(number);
            volume.create(dir, &name, new(FileKind::File)).await.expect("a file");
        }
        volume.fsync(dir).await.expect("durable");
        for number in 0..NAMES {
            volume.unlink(dir, &long_name(number)).await.expect("unlinked");
        }
        volume.fsync(dir).await.expect("durable");
        dir
    });
    let files: Vec<FileId> = (0..FILES)
        .map(|number| {
            let file = sim.create(owner, &format!("file {number}"));
            sim.write(owner, file, 0, &[contents(number); 4096]);
            sim.sync(owner, file);
            file
        })
        .collect();
    assert!(sim.holds_lock(owner, dir), "else R7 would do");
    sim.crash(owner);

    for (number, file) in files.into_iter().enumerate() {
        let found = sim.read(survivor, file, 0..4096);
        assert!(found == [contents(number); 4096], "file {number} is not what was written");
    }
    let revoked = sim.volume(survivor).counters().revokes_used;
    assert!(revoked > 0, "no revoke was needed: this run shows nothing");
    sim.check();
}

fn contents(number: usize) -> u8 {
    u8::try_from(number).expect("few files") + 1
}
