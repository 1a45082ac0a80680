//! What ends requests early or takes back what was written: deaths, power losses, a device that
//! forgets.

use std::rc::Rc;

use super::medium::Medium;
use super::plan::{Step, Verdict};
use super::reads::Reads;
use super::{DRAIN_MAX, Inner, SharedDisk, index, plan};
use crate::executor::Owner;

impl SharedDisk {
    /// The pause of `owner` is over: what it submitted goes to the device.
    pub fn resume(self: &Rc<Self>, owner: Owner) {
        let held: Vec<u64> = {
            let inner = self.inner.borrow();
            let held = inner.ops.iter().filter(|(_, op)| op.owner == owner && op.held);
            held.map(|(&number, _)| number).collect()
        };
        for number in held {
            self.release(number);
        }
    }

    /// The program is dead: each of its requests lands wholly, partly or not, within the drain
    /// time.
    pub fn orphan(self: &Rc<Self>, owner: Owner) {
        let drained = self.executor.now() + self.chance.below(DRAIN_MAX);
        let mut schedules = Vec::new();
        {
            let mut inner = self.inner.borrow_mut();
            inner.triggers.remove(&owner);
            inner.stalled_until.remove(&owner);
            inner.ops.retain(|_, op| op.owner != owner || (op.may_change() && !op.held));
            let Inner { ops, reads, .. } = &mut *inner;
            reads.forget(|number| !ops.contains_key(&number));
            for (&number, op) in inner.ops.iter_mut().filter(|(_, op)| op.owner == owner) {
                op.epoch += 1;
                let now = self.executor.now();
                op.steps = plan::last_steps(&op.untouched(), now, drained, &self.chance);
                op.steps.reverse();
                schedules.push((number, op.epoch));
            }
        }
        for (number, epoch) in schedules {
            self.schedule(number, epoch);
        }
    }

    /// Has everything that `owner` submitted landed, or never will?
    pub fn is_drained(&self, owner: Owner) -> bool {
        let inner = self.inner.borrow();
        !inner.ops.values().any(|op| op.owner == owner && op.may_change())
    }

    /// The power fails: requests in flight are torn, and of each block that was not flushed any
    /// version survives. All programs must be dead. Returns how many blocks lost something.
    pub fn lose_power(&self) -> u64 {
        let mut inner = self.inner.borrow_mut();
        let ops = std::mem::take(&mut inner.ops);
        inner.reads = Reads::default();
        for op in ops.into_values() {
            if !op.may_change() || op.wanted.expect.is_some() {
                continue;
            }
            for unit in op.untouched() {
                if self.chance.percent(50) {
                    let from = unit as usize * index(self.unit);
                    inner.medium.land(
                        op.unit + u64::from(unit),
                        &op.wanted.data,
                        from,
                        &op.answered,
                    );
                }
            }
        }
        inner.stalled_until.clear();
        inner.triggers.clear();
        let percent = *self.chance.pick(&[0, 10, 50, 90, 100]);
        let lost = inner.medium.lose_power(&self.chance, percent);
        drop(inner);
        self.trace(Owner::WORLD, "power", lost, u64::from(percent), "lost");
        lost
    }

    /// The disk alone loses its cache while hosts live (H25). Writes that it had begun and not
    /// answered end in doubt; of what it had answered it says nothing. Returns how many blocks
    /// lost something.
    pub fn lose_cache(&self) -> u64 {
        let percent = *self.chance.pick(&[0, 50, 90]);
        let mut inner = self.inner.borrow_mut();
        for op in inner.ops.values_mut().filter(|op| op.may_change() && !op.touched.is_empty()) {
            for (_, step) in &mut op.steps {
                if *step == Step::Answer(Verdict::Truth) {
                    *step = Step::Answer(Verdict::InDoubt);
                }
            }
        }
        inner.keep_reads();
        let lost = inner.medium.lose_power(&self.chance, percent);
        drop(inner);
        self.trace(Owner::WORLD, "cache", lost, u64::from(percent), "lost");
        lost
    }

    /// What the disk shows now, to be gone back to.
    pub fn snapshot(&self) -> Medium {
        self.inner.borrow().medium.clone()
    }

    /// The whole disk goes back to an earlier time while hosts live; requests in flight go on (H5).
    pub fn roll_back(&self, to: Medium) {
        let mut inner = self.inner.borrow_mut();
        inner.keep_reads();
        inner.medium = to;
        drop(inner);
        self.trace(Owner::WORLD, "rolls back", 0, 0, "");
    }
}
