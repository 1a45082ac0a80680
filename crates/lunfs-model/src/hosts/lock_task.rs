//! What a program does with locks: take, change, commit, put in place, give up.

use lunfs_core::lock::{Judged, RELEASE, ReleaseStep, acquired, judge, released};
use lunfs_format::{SlotNo, Stamp};

use super::answer::Told;
use super::state::{Broken, Flight, Held, LockTask, Stage, State, Swap};
use crate::image::{Life, LockImage};

impl State {
    /// Reads a lock and takes it, if that allows it.
    pub fn take(&mut self, at: usize, lock: usize) -> Option<()> {
        let me = self.programs[at].me;
        let there = self.locks[lock];
        let slots = self.slots;
        let known = |slot: SlotNo| Some(u64::from(slots[slot.0 as usize].life));
        match judge(&there.lock(), me.holder(), known) {
            // One that names us already too: what is seen may not be durable.
            Judged::Free | Judged::Stale(_) | Judged::Ours => {
                let new = LockImage::of(&acquired(&there.lock(), me.holder(), 0));
                let swap = Swap::Lock { lock: lock as u8, expect: there, new };
                let op = self.swap(me, swap, false);
                self.programs[at].lock_task = LockTask::Taking { lock: lock as u8, op };
            }
            Judged::Held(_) | Judged::Gone | Judged::Unsupported => return None,
        }
        Some(())
    }

    /// The lock is ours: reads the block under it.
    fn install(&mut self, at: usize, lock: usize, generation: u8) {
        let body = self.bodies[lock];
        if body.now != body.promised {
            self.note(Broken::LostWork);
        }
        let held = Held { generation, version: body.now, stage: Stage::Clean };
        self.programs[at].holds[lock] = Some(held);
    }

    /// Changes what is under a held lock, in memory.
    pub fn change(&mut self, at: usize, lock: usize) -> Option<()> {
        let held = self.programs[at].holds[lock].as_mut()?;
        if held.stage != Stage::Clean {
            return None;
        }
        held.version += 1;
        held.stage = Stage::Pending;
        Some(())
    }

    /// Commits what has changed under a lock.
    pub fn commit(&mut self, at: usize, lock: usize) -> Option<()> {
        let me = self.programs[at].me;
        let held = self.programs[at].holds[lock].as_mut()?;
        if !matches!(held.stage, Stage::Pending | Stage::Running) {
            return None;
        }
        held.stage = Stage::Committed;
        let Held { generation, version, .. } = *held;
        let journal = &mut self.journals[me.slot as usize];
        if journal.life != me.life {
            self.note(Broken::PastLife);
            return Some(());
        }
        journal.images[lock] = Some((generation, version));
        let promised = &mut self.bodies[lock].promised;
        *promised = version.max(*promised);
        Some(())
    }

    /// Puts in place what is committed.
    pub fn place(&mut self, at: usize, lock: usize) -> Option<()> {
        let by = self.programs[at].me;
        let held = self.programs[at].holds[lock].as_mut()?;
        if held.stage != Stage::Committed {
            return None;
        }
        held.stage = Stage::Placing;
        let Held { generation, version, .. } = *held;
        self.send(Flight::Place { by, lock: lock as u8, generation, version });
        Some(())
    }

    /// What was put in place becomes durable.
    pub fn flush_placed(&mut self, at: usize, lock: usize) -> Option<()> {
        let held = self.programs[at].holds[lock].as_mut()?;
        if held.stage != Stage::Placed {
            return None;
        }
        held.stage = Stage::Clean;
        self.flush();
        Some(())
    }

    /// Begins to give a lock up.
    pub fn release(&mut self, at: usize, lock: usize, to: Option<Life>) -> Option<()> {
        self.programs[at].holds[lock]?;
        self.programs[at].lock_task =
            LockTask::Releasing { lock: lock as u8, to, step: 0, op: None };
        self.go_on(at).or(Some(()))
    }

    /// Works off the steps of a release until one has to wait.
    pub fn go_on(&mut self, at: usize) -> Option<()> {
        let mut moved = None;
        while let LockTask::Releasing { lock, to, step, op: None } = self.programs[at].lock_task {
            let place = lock as usize;
            let is_done = match RELEASE.get(step as usize) {
                Some(ReleaseStep::WriteBack) => self.write_back(at, place),
                Some(ReleaseStep::Commit) => {
                    if self.stage(at, place) == Stage::Running {
                        self.commit(at, place);
                    }
                    true
                }
                Some(ReleaseStep::Place) => match self.stage(at, place) {
                    Stage::Committed => {
                        self.place(at, place);
                        return Some(());
                    }
                    Stage::Placing => return moved,
                    Stage::Placed => self.flush_placed(at, place).is_some(),
                    Stage::Clean | Stage::Pending | Stage::Running => true,
                },
                Some(ReleaseStep::Give) => {
                    self.give(at, place, to);
                    return Some(());
                }
                // Without a last step nobody ever gets the lock.
                None => return moved,
            };
            assert!(is_done, "every other case has returned");
            moved = Some(());
            let op = None;
            self.programs[at].lock_task = LockTask::Releasing { lock, to, step: step + 1, op };
        }
        moved
    }

    fn stage(&self, at: usize, lock: usize) -> Stage {
        self.programs[at].holds[lock].map_or(Stage::Clean, |held| held.stage)
    }

    fn write_back(&mut self, at: usize, lock: usize) -> bool {
        if let Some(held) = &mut self.programs[at].holds[lock]
            && held.stage == Stage::Pending
        {
            held.stage = Stage::Running;
        }
        true
    }

    fn give(&mut self, at: usize, lock: usize, to: Option<Life>) {
        let me = self.programs[at].me;
        let held = self.programs[at].holds[lock].expect("only what is held is given up");
        // What it shows to the next holder is promised from here on.
        let promised = &mut self.bodies[lock].promised;
        *promised = held.version.max(*promised);
        let expect = LockImage { holder: Some(me), generation: held.generation };
        let slot = SlotNo(u32::from(me.slot));
        let new = released(&expect.lock(), slot, to.map(Life::holder), Stamp::default(), 0);
        let swap = Swap::Lock { lock: lock as u8, expect, new: LockImage::of(&new) };
        let op = self.swap(me, swap, false);
        let step = RELEASE.len() as u8 - 1;
        self.programs[at].lock_task =
            LockTask::Releasing { lock: lock as u8, to, step, op: Some(op) };
    }

    /// A compare-and-write of a lock has ended, or has not.
    pub fn lock_told(&mut self, at: usize, told: Told) {
        let task = self.programs[at].lock_task;
        match (task, told) {
            (_, Told::Stop) => self.stop(at),
            (LockTask::Taking { lock, .. }, Told::Again(op)) => {
                self.programs[at].lock_task = LockTask::Taking { lock, op };
            }
            (LockTask::Releasing { lock, to, step, .. }, Told::Again(op)) => {
                self.programs[at].lock_task = LockTask::Releasing { lock, to, step, op: Some(op) };
            }
            (LockTask::Taking { lock, op }, Told::Won) => {
                let Swap::Lock { new, .. } = op.swap else { unreachable!("a lock's") };
                self.programs[at].lock_task = LockTask::Idle;
                self.install(at, lock as usize, new.generation);
            }
            (LockTask::Releasing { lock, .. }, Told::Won) => {
                self.programs[at].lock_task = LockTask::Idle;
                self.programs[at].holds[lock as usize] = None;
            }
            // `swap_held`: a lock that changed under its holder.
            (LockTask::Releasing { .. }, Told::Lost) => self.stop(at),
            // The caller gets an error, and what is held stays so in memory.
            (LockTask::Taking { .. } | LockTask::Releasing { .. }, Told::Lost | Told::Error) => {
                self.programs[at].lock_task = LockTask::Idle;
            }
            (LockTask::Idle, _) => unreachable!("it waits for nothing"),
        }
    }
}
