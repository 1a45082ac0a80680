use lunfs_core::SetAttr;
use lunfs_sim::checkers::walker::walk;
use lunfs_sim::script::Sim;
#[test]
fn one() {
    let sim = Sim::with_seed("one", 1);
    let [a] = sim.hosts();
    let f = sim.create(a, "f");
    sim.write(a, f, 81920, &[7; 49152]);
    eprintln!("cut");
    sim.with(a, move |v| async move {
        v.setattr(f, SetAttr { size: Some(114688), ..Default::default() }).await
    })
    .unwrap();
    eprintln!("write");
    sim.write(a, f, 122880, &[7; 36864]);
    eprintln!("unmount");
    sim.unmount(a);
    walk(&sim.world, "x");
    sim.assert_sound();
}
