use futures_util::future::join;
use lunfs_core::env::{Disk, Instant, IoError};

use super::*;
use crate::clock::HostClock;
use faults::SECOND;

const A: Owner = Owner(1);
const B: Owner = Owner(2);

struct Bench {
    executor: Rc<Executor>,
    disk: Rc<SharedDisk>,
}

impl Bench {
    fn new(seed: u64) -> Bench {
        let executor = Executor::new(Chance::new(seed));
        let trace = Rc::new(Trace::new(false));
        let model = Model {
            unit: 512,
            size: 1 << 30,
            writes_through: false,
            before: Before::Zeroes,
            latency: Latency::USUAL,
        };
        let disk = SharedDisk::new(&executor, &trace, Chance::new(seed ^ 1), model);
        Bench { executor, disk }
    }

    fn handle(&self, owner: Owner) -> HostDisk {
        HostDisk::new(&self.disk, owner, &HostClock::exact(&self.executor))
    }

    /// Runs a future as a task of `owner` until it ends.
    fn run<T: 'static>(&self, owner: Owner, future: impl Future<Output = T> + 'static) -> T {
        let result = Rc::new(RefCell::new(None));
        let to = Rc::clone(&result);
        self.executor.spawn(owner, async move { *to.borrow_mut() = Some(future.await) });
        self.executor.run(u64::MAX, || result.borrow().is_some());
        result.borrow_mut().take().unwrap()
    }

    fn start(&self, owner: Owner, future: impl Future + 'static) {
        self.executor.spawn(owner, async move {
            future.await;
        });
    }

    fn settle(&self) {
        self.executor.run(self.executor.now() + 100 * SECOND, || false);
    }
}

fn filled(value: u8, units: usize) -> Vec<u8> {
    vec![value; 512 * units]
}

#[test]
fn what_was_written_is_read() {
    let bench = Bench::new(1);
    let disk = bench.handle(A);
    bench.run(A, disk.write(4096, filled(7, 3), false, Instant::FAR)).unwrap();
    assert_eq!(bench.run(A, disk.read(4096, 1536)).unwrap(), filled(7, 3));
    assert!(bench.executor.now() > 0 && bench.executor.now() < SECOND / 100);
}

#[test]
fn nothing_is_submitted_after_the_lease() {
    let bench = Bench::new(1);
    let disk = bench.handle(A);
    let late = bench.run(A, disk.write(0, filled(7, 1), true, Instant(0)));
    assert_eq!(late, Err(IoError::TooLate));
    let late = bench.run(A, disk.compare_and_write(0, filled(0, 1), filled(1, 1), Instant(0)));
    assert_eq!(late, Err(IoError::TooLate));
    assert_eq!(bench.disk.peek(0, 512), filled(0, 1));
}

#[test]
fn readers_see_writes_in_flight_torn_between_blocks_only() {
    let mut torn = 0;
    for seed in 0..200 {
        let bench = Bench::new(seed);
        let (writer, reader) = (bench.handle(A), bench.handle(B));
        let both =
            join(writer.write(0, filled(1, 8), false, Instant::FAR), reader.read(0, 8 * 512));
        let (_, found) = bench.run(A, both);
        let found = found.unwrap();
        for unit in found.chunks(512) {
            assert!(unit.iter().all(|&byte| byte == unit[0]));
        }
        torn += u32::from(found != filled(0, 8) && found != filled(1, 8));
    }
    assert!(torn > 20, "{torn} torn reads");
}

#[test]
fn of_two_compare_and_writes_one_wins() {
    for seed in 0..200 {
        let bench = Bench::new(seed);
        let (a, b) = (bench.handle(A), bench.handle(B));
        let both = join(
            a.compare_and_write(0, filled(0, 1), filled(1, 1), Instant::FAR),
            b.compare_and_write(0, filled(0, 1), filled(2, 1), Instant::FAR),
        );
        let (a, b) = bench.run(A, both);
        let winner = match (a.unwrap(), b.unwrap()) {
            (Compared::Written, Compared::Miscompare) => 1,
            (Compared::Miscompare, Compared::Written) => 2,
            both => panic!("{both:?}"),
        };
        assert_eq!(bench.disk.peek(0, 512), filled(winner, 1));
    }
}

#[test]
fn a_doubled_compare_and_write_reports_a_miscompare_although_it_was_done() {
    let mut lies = 0;
    for seed in 0..50 {
        let bench = Bench::new(seed);
        bench.disk.set_rates(Rates { doubled: 1_000_000, ..Rates::NONE });
        let disk = bench.handle(A);
        let answer = disk.compare_and_write(0, filled(0, 1), filled(1, 1), Instant::FAR);
        lies += u32::from(bench.run(A, answer) == Ok(Compared::Miscompare));
        assert_eq!(bench.disk.peek(0, 512), filled(1, 1));
    }
    assert_eq!(lies, 50);
}

#[test]
fn no_later_flush_makes_up_for_one_that_failed() {
    let mut lost = 0;
    for seed in 0..50 {
        let bench = Bench::new(seed);
        bench.disk.set_rates(Rates { compare_unflushed: 1_000_000, ..Rates::NONE });
        let (disk, other) = (bench.handle(A), bench.handle(B));
        let answer = disk.compare_and_write(0, filled(0, 1), filled(1, 1), Instant::FAR);
        assert!(matches!(bench.run(A, answer), Err(IoError::Unflushed(_))));
        let again = disk.compare_and_write(0, filled(0, 1), filled(2, 1), Instant::FAR);
        assert_eq!(bench.run(A, again), Ok(Compared::Miscompare));
        bench.run(B, other.flush()).unwrap();
        assert_eq!(bench.disk.peek(0, 512), filled(1, 1));
        bench.settle();
        bench.disk.lose_power();
        lost += u32::from(bench.disk.peek(0, 512) == filled(0, 1));
    }
    assert!((5..50).contains(&lost), "{lost} of 50 were lost");
}

#[test]
fn a_request_in_doubt_is_done_early_late_or_never() {
    let (mut early, mut late, mut never) = (0, 0, 0);
    for seed in 0..100 {
        let bench = Bench::new(seed);
        bench.disk.set_rates(Rates { write_in_doubt: 1_000_000, ..Rates::NONE });
        let disk = bench.handle(A);
        let answer = bench.run(A, disk.write(0, filled(1, 1), false, Instant::FAR));
        assert!(matches!(answer, Err(IoError::InDoubt(_))));
        assert!(bench.executor.now() >= SECOND);
        let before = bench.disk.peek(0, 512) == filled(1, 1);
        bench.settle();
        let after = bench.disk.peek(0, 512) == filled(1, 1);
        early += u32::from(before);
        late += u32::from(!before && after);
        never += u32::from(!after);
    }
    assert!(early > 10 && late > 10 && never > 10, "{early} {late} {never}");
}

#[test]
fn only_flushed_writes_survive_a_power_loss() {
    for seed in 0..100 {
        let bench = Bench::new(seed);
        let disk = bench.handle(A);
        bench.run(A, disk.write(0, filled(1, 4), false, Instant::FAR)).unwrap();
        bench.run(A, disk.flush()).unwrap();
        bench.run(A, disk.write(0, filled(2, 4), false, Instant::FAR)).unwrap();
        bench.run(A, disk.write(8192, filled(3, 4), true, Instant::FAR)).unwrap();
        let all = disk.compare_and_write(16384, filled(0, 1), filled(4, 1), Instant::FAR);
        bench.run(A, all).unwrap();
        bench.executor.kill(A);
        bench.disk.lose_power();
        for unit in bench.disk.peek(0, 2048).chunks(512) {
            assert!(unit == filled(1, 1) || unit == filled(2, 1));
        }
        assert_eq!(bench.disk.peek(8192, 2048), filled(3, 4));
        assert_eq!(bench.disk.peek(16384, 512), filled(4, 1));
    }
}

#[test]
fn a_dead_programs_requests_land_in_part_and_then_no_more() {
    let (mut none, mut part, mut all) = (0, 0, 0);
    for seed in 0..200 {
        let bench = Bench::new(seed);
        let disk = bench.handle(A);
        bench.start(A, disk.write(0, filled(1, 16), false, Instant::FAR));
        bench.executor.run(30_000, || false);
        bench.executor.kill(A);
        bench.disk.orphan(A);
        assert!(!bench.disk.is_drained(A));
        let killed = bench.executor.now();
        let (executor, disk) = (Rc::clone(&bench.executor), Rc::clone(&bench.disk));
        executor.run(u64::MAX, || disk.is_drained(A));
        assert!(executor.now() <= killed + DRAIN_MAX);
        let landed = bench.disk.peek(0, 16 * 512).iter().filter(|&&byte| byte == 1).count() / 512;
        bench.settle();
        let later = bench.disk.peek(0, 16 * 512).iter().filter(|&&byte| byte == 1).count() / 512;
        assert_eq!(landed, later);
        none += u32::from(landed == 0);
        part += u32::from((1..16).contains(&landed));
        all += u32::from(landed == 16);
    }
    assert!(none > 20 && part > 20 && all > 20, "{none} {part} {all}");
}

#[test]
fn a_pause_between_the_look_at_the_clock_and_the_device() {
    let bench = Bench::new(1);
    let (disk, shared, executor) = (bench.handle(A), &bench.disk, &bench.executor);
    let (held, own) = (Rc::clone(shared), Rc::clone(executor));
    shared.arm(A, 2, Some(Request::Write), move || {
        let end = own.now() + 10 * SECOND;
        own.pause(A, end);
        own.at(end, move || held.resume(A));
    });
    bench.run(A, disk.write(0, filled(1, 1), false, Instant(SECOND))).unwrap();
    bench.start(A, disk.write(0, filled(2, 1), false, Instant(SECOND)));
    executor.run(9 * SECOND, || false);
    assert_eq!(shared.peek(0, 512), filled(1, 1));
    assert!(!shared.is_drained(A));
    executor.run(11 * SECOND, || false);
    assert_eq!(shared.peek(0, 512), filled(2, 1));
}

#[test]
fn a_held_request_of_a_killed_program_never_lands() {
    let bench = Bench::new(1);
    let disk = bench.handle(A);
    bench.executor.spawn(A, std::future::ready(()));
    bench.executor.pause(A, 100 * SECOND);
    drop(disk.write(0, filled(2, 1), false, Instant::FAR));
    bench.executor.kill(A);
    bench.disk.orphan(A);
    assert!(bench.disk.is_drained(A));
    bench.settle();
    assert_eq!(bench.disk.peek(0, 512), filled(0, 1));
}
