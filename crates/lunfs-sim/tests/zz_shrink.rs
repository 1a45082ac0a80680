//! scratch
use lunfs_core::{Fallocate, SetAttr};
use lunfs_sim::chance::Chance;
use lunfs_sim::checkers::walker::walk;
use lunfs_sim::script::{Host, Sim};

#[derive(Clone, Debug)]
enum Op {
    Write(u64, usize),
    Cut(u64),
    Punch(u64, u64),
    Zero(u64, u64),
    Alloc(u64, u64),
    Sync,
    Read(u64, usize),
}

fn run(ops: &[Op]) -> bool {
    let sim = Sim::with_seed("shrink", 1);
    let [a] = sim.hosts();
    let f = sim.create(a, "f");
    for op in ops {
        let op = op.clone();
        let _ = sim.with(a, move |v| async move {
            match op {
                Op::Write(at, len) => v.write(f, at, vec![7; len]).await,
                Op::Cut(s) => {
                    v.setattr(f, SetAttr { size: Some(s), ..Default::default() }).await.map(|_| ())
                }
                Op::Punch(at, l) => v.fallocate(f, at, l, Fallocate::PunchHole).await,
                Op::Zero(at, l) => {
                    v.fallocate(f, at, l, Fallocate::ZeroRange { keep_size: true }).await
                }
                Op::Alloc(at, l) => {
                    v.fallocate(f, at, l, Fallocate::Allocate { keep_size: false }).await
                }
                Op::Sync => v.fsync(f).await,
                Op::Read(at, l) => v.read(f, at, l).await.map(|_| ()),
            }
        });
    }
    sim.unmount(Host(0));
    walk(&sim.world, "x");
    let all = sim.world.findings.all();
    if std::env::var_os("SHOW").is_some() {
        for f in &all {
            println!("{f}");
        }
    }
    let bad = !all.is_empty();
    bad
}

#[test]
fn shrink() {
    let mut smallest: Option<Vec<Op>> = None;
    for seed in 0..400 {
        let c = Chance::new(seed);
        let n = c.between(2, 12);
        let ops: Vec<Op> = (0..n)
            .map(|_| {
                let at = c.below(40) * 4096;
                let l = c.between(1, 20) * 4096;
                match c.below(10) {
                    0..4 => Op::Write(at, l as usize),
                    4 => Op::Cut(at),
                    5 => Op::Punch(at, l),
                    6 => Op::Zero(at, l),
                    7 => Op::Alloc(at, l),
                    8 => Op::Sync,
                    _ => Op::Read(at, l as usize),
                }
            })
            .collect();
        if !run(&ops) {
            continue;
        }
        let mut ops = ops;
        loop {
            let mut better = None;
            for i in 0..ops.len() {
                let mut t = ops.clone();
                t.remove(i);
                if run(&t) {
                    better = Some(t);
                    break;
                }
            }
            match better {
                Some(b) => ops = b,
                None => break,
            }
        }
        println!("seed {seed}: {ops:?}");
        if smallest.as_ref().is_none_or(|s| ops.len() < s.len()) {
            smallest = Some(ops);
        }
        if seed > 60 {
            break;
        }
    }
    println!("smallest {smallest:?}");
    unsafe { std::env::set_var("SHOW", "1") };
    if let Some(s) = smallest {
        run(&s);
    }
}
