use super::*;

const SECOND: u64 = 1_000_000_000;

fn log() -> (Rc<RefCell<Vec<(u64, u32)>>>, Rc<Executor>) {
    (Rc::new(RefCell::new(Vec::new())), Executor::new(Chance::new(1)))
}

#[test]
fn time_moves_only_when_nothing_is_ready() {
    let (log, executor) = log();
    for number in 0..3_u32 {
        let (log, own) = (Rc::clone(&log), Rc::clone(&executor));
        executor.spawn(Owner(1), async move {
            own.sleep(u64::from(3 - number) * SECOND).await;
            log.borrow_mut().push((own.now(), number));
        });
    }
    assert_eq!(executor.run(10 * SECOND, || false), Ended::Idle);
    assert_eq!(*log.borrow(), vec![(SECOND, 2), (2 * SECOND, 1), (3 * SECOND, 0)]);
}

#[test]
fn the_order_of_ready_tasks_comes_from_the_seed() {
    let order = |seed| {
        let executor = Executor::new(Chance::new(seed));
        let log = Rc::new(RefCell::new(Vec::new()));
        for number in 0..20 {
            let log = Rc::clone(&log);
            executor.spawn(Owner(1), async move { log.borrow_mut().push(number) });
        }
        executor.run(SECOND, || false);
        Rc::try_unwrap(log).unwrap().into_inner()
    };
    assert_eq!(order(5), order(5));
    assert_ne!(order(5), order(6));
}

#[test]
fn a_killed_task_is_dropped_at_once_and_never_runs_again() {
    struct Dropped(Rc<Cell<bool>>);
    impl Drop for Dropped {
        fn drop(&mut self) {
            self.0.set(true);
        }
    }
    let (log, executor) = log();
    let dropped = Rc::new(Cell::new(false));
    let (guard, own, inside) = (Dropped(Rc::clone(&dropped)), Rc::clone(&executor), log.clone());
    executor.spawn(Owner(1), async move {
        own.sleep(SECOND).await;
        inside.borrow_mut().push((own.now(), 1));
        drop(guard);
    });
    assert_eq!(executor.run(SECOND / 2, || false), Ended::TimeLimit);
    executor.kill(Owner(1));
    assert!(dropped.get());
    executor.run(10 * SECOND, || false);
    assert!(log.borrow().is_empty());
}

#[test]
fn a_task_may_kill_its_own_process() {
    let (log, executor) = log();
    let (own, inside) = (Rc::clone(&executor), Rc::clone(&log));
    executor.spawn(Owner(1), async move {
        own.kill(Owner(1));
        inside.borrow_mut().push((0, 1));
        own.sleep(1).await;
        inside.borrow_mut().push((0, 2));
    });
    executor.run(SECOND, || false);
    assert_eq!(*log.borrow(), vec![(0, 1)]);
    assert!(!executor.has_tasks(Owner(1)));
}

#[test]
fn a_paused_process_catches_up_afterwards() {
    let (log, executor) = log();
    let (own, inside) = (Rc::clone(&executor), Rc::clone(&log));
    executor.spawn(Owner(1), async move {
        for number in 1..=3 {
            own.sleep_until(u64::from(number) * SECOND).await;
            inside.borrow_mut().push((own.now(), number));
        }
    });
    executor.run(SECOND / 2, || false);
    executor.pause(Owner(1), 2 * SECOND + SECOND / 2);
    assert!(executor.is_paused(Owner(1)));
    executor.run(10 * SECOND, || false);
    let late = 2 * SECOND + SECOND / 2;
    assert_eq!(*log.borrow(), vec![(late, 1), (late, 2), (3 * SECOND, 3)]);
}

#[test]
fn a_panic_is_an_answer() {
    let executor = Executor::new(Chance::new(1));
    executor.spawn(Owner(4), async { panic!("broken invariant {}", 7) });
    let ended = executor.run(SECOND, || false);
    assert_eq!(ended, Ended::Panicked(Owner(4), "broken invariant 7".to_owned()));
}
