//! The fence of image files: a life mark per slot, and a kill that cannot miss.
//!
//! The real one holds a lock on the open file through which all its I/O goes, so the mark is free
//! exactly when the program is dead and its I/O drained.

use std::rc::Rc;

use futures_util::future::LocalBoxFuture;
use lunfs_core::env::{Fence, FenceError, Life};
use lunfs_format::{Pulse, SlotNo};

use crate::disk::faults::MILLISECOND;
use crate::executor::Owner;
use crate::world::{Death, World};

/// The fence as one program sees it.
pub struct HostFence {
    world: Rc<World>,
    owner: Owner,
}

impl HostFence {
    /// The fence of `owner`.
    pub fn new(world: &Rc<World>, owner: Owner) -> HostFence {
        HostFence { world: Rc::clone(world), owner }
    }

    fn fails(&self) -> Result<(), FenceError> {
        if self.world.chance.hits(self.world.disk.rates().fence_failed) {
            return Err(FenceError("the simulated fence failed".to_owned()));
        }
        Ok(())
    }
}

impl Fence for HostFence {
    fn enter(&self, slot: SlotNo) -> Result<bool, FenceError> {
        self.fails()?;
        Ok(self.world.enter(slot, self.owner))
    }

    fn leave(&self, slot: SlotNo) {
        self.world.leave(slot, self.owner);
    }

    fn life(&self, slot: SlotNo) -> Life {
        if self.world.chance.hits(self.world.disk.rates().life_unknown) {
            return Life::Unknown;
        }
        match self.world.program_of(slot) {
            None => Life::Gone,
            Some(_) => Life::Present,
        }
    }

    fn fence(&self, victim: &Pulse) -> LocalBoxFuture<'static, Result<(), FenceError>> {
        let (world, by) = (Rc::clone(&self.world), self.owner);
        let (slot, run) = (victim.slot, victim.run);
        let fails = self.fails();
        Box::pin(async move {
            world.executor.sleep(world.chance.between(MILLISECOND, 20 * MILLISECOND)).await;
            fails?;
            let Some(program) = world.program_of(slot) else { return Ok(()) };
            if world.run_of(program) != run {
                world.meet(|met| met.fences_refused += 1);
                return Err(FenceError(format!("another program runs slot {slot}")));
            }
            if world.is_alive(program) {
                world.meet(|met| met.fence_kills += 1);
                world.say(by, || format!("fences {program} of slot {slot}"));
                world.kill(program, Death::Fenced);
            }
            while !world.disk.is_drained(program) {
                world.executor.sleep(MILLISECOND).await;
            }
            Ok(())
        })
    }

    fn ended(&self, victim: &Pulse) -> LocalBoxFuture<'static, Result<(), FenceError>> {
        let is_ours = self.world.program_of(victim.slot) == Some(self.owner);
        let proven = self.fails().and_then(|()| match is_ours {
            true => Ok(()),
            false => Err(FenceError(format!("the mark of slot {} is not ours", victim.slot))),
        });
        Box::pin(async { proven })
    }

    fn method(&self) -> &'static str {
        "simulated image file"
    }
}
