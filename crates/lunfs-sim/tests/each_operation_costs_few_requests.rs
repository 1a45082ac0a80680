//! What an operation asks of the disk is bounded, whatever the volume holds: R for its kind, when
//! its host is alone and has what it needs in memory (warm), and when it has just been mounted
//! (cold). The bounds are those of docs/testing.md.

use lunfs_core::{FileId, FileKind, RenameMode, SetAttr};
use lunfs_sim::disk::faults::SECOND;
use lunfs_sim::script::{Host, Sim};
use lunfs_sim::workload::new_file;

/// Requests of a host's own services that may fall into the time of one operation.
const SERVICES: u64 = 4;

/// How many requests an operation makes, its host's services included.
fn cost(sim: &Sim, operation: impl FnOnce()) -> u64 {
    sim.run_for(10 * SECOND);
    let before = sim.world.disk.requests();
    operation();
    sim.world.disk.requests() - before
}

fn assert_within(what: &str, cost: u64, bound: u64) {
    assert!(cost <= bound + SERVICES, "{what}: {cost} requests; bound {bound} + {SERVICES}");
}

fn lookup(sim: &Sim, host: Host, name: &str) -> FileId {
    sim.find(host, name).expect("it is there")
}

#[test]
fn each_operation_costs_few_requests() {
    let sim = Sim::named("each_operation_costs_few_requests");
    let [host] = sim.hosts();
    for number in 0..150 {
        sim.create(host, &format!("file{number}"));
    }
    let file = sim.create(host, "f");
    let create = cost(&sim, || {
        sim.create(host, "g");
    });
    let write = cost(&sim, || sim.write(host, file, 0, &[1; 4096]));
    let sync = cost(&sim, || sim.sync(host, file));
    let over = cost(&sim, || sim.write(host, file, 0, &[2; 4096]));
    let read = cost(&sim, || drop(sim.read(host, file, 0..4096)));
    let find = cost(&sim, || {
        lookup(&sim, host, "g");
    });
    let again = cost(&sim, || {
        lookup(&sim, host, "g");
    });
    let stat = cost(&sim, || {
        sim.with(host, move |volume| async move { volume.getattr(file).await }).expect("works");
    });
    let rename = cost(&sim, || {
        sim.with(host, |v| async move {
            v.rename(v.root(), b"g", v.root(), b"h", RenameMode::Replace).await
        })
        .expect("works");
    });
    let cut = cost(&sim, || {
        let set = SetAttr { size: Some(0), ..SetAttr::default() };
        sim.with(host, move |volume| async move { volume.setattr(file, set).await })
            .expect("works");
    });
    let unlink = cost(&sim, || {
        sim.with(host, |v| async move { v.unlink(v.root(), b"h").await }).expect("works");
    });
    let make = cost(&sim, || {
        sim.with(host, |v| async move {
            v.create(v.root(), b"d", new_file(FileKind::Directory)).await.map(drop)
        })
        .expect("works");
    });
    let costs = [
        ("create", create, 6),
        ("mkdir", make, 6),
        ("write of a new grain", write, 4),
        ("fsync", sync, 8),
        ("write over a grain", over, 1),
        ("read", read, 1),
        ("lookup", find, 4),
        ("lookup again", again, 4),
        ("getattr", stat, 1),
        ("rename", rename, 6),
        ("truncate", cut, 6),
        ("unlink", unlink, 6),
    ];
    for (what, cost, bound) in costs {
        assert_within(what, cost, bound);
    }
    sim.check();
}
