//! Giving locks up: on request, or because they are idle.
//!
//! Invariants:
//! - R6: a lock is given up only after its operations drained, its file's pending changes and the
//!   journal are durable, what it covers is in place, and the device was flushed.
//! - A file that cannot be written back keeps its own lock, not its neighbours'.

use std::rc::Rc;
use std::time::Duration;

use futures_util::future::{Either, join_all, select};
use lunfs_format::{BlockNo, Doorbell, Holder, LockObject, Request, Stamp, stored_checksum};
use tokio::sync::OwnedRwLockWriteGuard;

use super::{Entry, Wish, WishKind, WriteGuard};
use crate::error::{Kind, Result};
use crate::lock::{RELEASE, ReleaseStep, released};
use crate::volume::Volume;

/// How often a cluster that is to be given up is looked at for changes to write back.
const DRAIN_PAUSE: Duration = Duration::from_millis(20);

impl Volume {
    /// Serves one request from the doorbell: hands over or lets go what we hold, or shows what
    /// space is free.
    pub(crate) async fn serve_bell(&self, bell: Doorbell) -> Result<()> {
        self.io.count(|c| c.rings_served += 1);
        if bell.request == Request::ShowSpace {
            return self.show_space().await;
        }
        for addr in &bell.locks {
            let entry = match self.locks.get(*addr) {
                Some(entry) if entry.held.get().is_some() => entry,
                Some(_) | None => match self.unknown_but_ours(*addr).await? {
                    Some(entry) => entry,
                    None => continue,
                },
            };
            let successor = (bell.request == Request::HandOver).then_some(bell.ringer);
            if successor.is_none() {
                self.mark_contended(&entry);
            }
            self.release(&entry, successor).await?;
        }
        Ok(())
    }

    /// A lock that names us on disk though we do not know it is released on request (H4).
    async fn unknown_but_ours(&self, addr: BlockNo) -> Result<Option<Rc<Entry>>> {
        let (lock, _) = self.read_lock(addr).await?;
        let Some(lock) = lock.filter(|l| l.holder == Some(self.me())) else { return Ok(None) };
        let kind = match lock.object {
            LockObject::Cluster => WishKind::Cluster,
            LockObject::Descriptor => WishKind::Descriptor,
            LockObject::System => WishKind::System,
            LockObject::Journal => return Ok(None),
        };
        let wish = Wish { addr, birth: lock.generation.birth, kind };
        match self.hold(wish).await {
            Ok(guard) => Ok(Some(guard.entry)),
            Err(e) if e.kind == Kind::Stopped => Err(e),
            Err(_) => Ok(None),
        }
    }

    /// Gives a lock up, to `successor` or to nobody, with its idle neighbours to nobody.
    pub(crate) async fn release(&self, entry: &Rc<Entry>, successor: Option<Holder>) -> Result<()> {
        let guard = if entry.object == LockObject::Cluster {
            match self.drained_cluster(entry).await? {
                Some(guard) => guard,
                None => return Ok(()),
            }
        } else {
            entry.rw.clone().write_owned().await
        };
        if entry.held.get().is_none() {
            return Ok(());
        }
        let mut batch = vec![(WriteGuard { entry: entry.clone(), _guard: guard }, successor)];
        if entry.object == LockObject::Descriptor {
            let near = self.locks.neighbours(entry.addr, u64::from(self.sb.cluster_blocks));
            for neighbour in near.into_iter().filter(|e| !self.is_kept(e.addr)) {
                if let Ok(guard) = neighbour.rw.clone().try_write_owned() {
                    batch.push((WriteGuard { entry: neighbour, _guard: guard }, None));
                }
            }
        }
        self.release_all(batch).await
    }

    /// The guard of a cluster in which nobody has space reserved. `None`: a file that has could not
    /// be written back, since on a full volume its map may need the very space that nobody may
    /// reserve here meanwhile. The cluster stays, and who wants it asks again.
    async fn drained_cluster(&self, entry: &Entry) -> Result<Option<OwnedRwLockWriteGuard<()>>> {
        // The guard is asked for first: nobody reserves space here from now on. It is granted once
        // the files that did have written their maps back (Q7).
        let mut wanted = Box::pin(entry.rw.clone().write_owned());
        loop {
            let written_back = Box::pin(self.write_back_users(entry.addr));
            wanted = match select(wanted, written_back).await {
                Either::Left((guard, written_back)) => {
                    written_back.await?;
                    return Ok(Some(guard));
                }
                Either::Right((Ok(false), _)) => return Ok(None),
                Either::Right((all, wanted)) => {
                    all?;
                    wanted
                }
            };
            // What is left are writes under way: each has its space already, and becomes a change
            // to write back when its data is on the disk.
            let moment = self.io.env.clock.sleep(DRAIN_PAUSE);
            wanted = match select(wanted, moment).await {
                Either::Left((guard, _)) => return Ok(Some(guard)),
                Either::Right(((), wanted)) => wanted,
            };
        }
    }

    /// Releases idle locks so that memory stays bounded.
    pub(crate) async fn release_idle(&self, count: usize) -> Result<()> {
        let batch: Vec<_> = self
            .locks
            .idle(count)
            .into_iter()
            .filter(|e| !self.is_kept(e.addr))
            .filter_map(|entry| {
                let guard = entry.rw.clone().try_write_owned().ok()?;
                Some((WriteGuard { entry, _guard: guard }, None))
            })
            .collect();
        self.release_all(batch).await?;
        self.locks.trim();
        Ok(())
    }

    /// Gives up a lock whose guard the caller has, to nobody.
    pub(crate) async fn release_held(&self, guard: WriteGuard) -> Result<()> {
        self.release_all(vec![(guard, None)]).await
    }

    /// R6 for several locks at once: the caller's guards say that their operations drained.
    async fn release_all(&self, batch: Vec<(WriteGuard, Option<Holder>)>) -> Result<()> {
        let (mut batch, mut failed) = (batch, Ok(()));
        for step in RELEASE {
            match step {
                ReleaseStep::WriteBack => (batch, failed) = self.written_back(batch).await,
                ReleaseStep::Commit => self.journal().commit(&self.io).await?,
                ReleaseStep::Place => {
                    let locks = batch.iter().map(|(guard, _)| guard.entry.addr).collect();
                    self.journal().place_locks(&self.io, &locks).await?;
                }
                ReleaseStep::Give => {
                    let jobs = batch.iter().map(|(guard, to)| self.give(&guard.entry, *to));
                    for answer in join_all(jobs).await {
                        answer?;
                    }
                }
            }
        }
        failed
    }

    /// Those of a batch that have nothing pending any more. One file that cannot be written back
    /// keeps its own lock, not its neighbours'.
    async fn written_back(
        &self,
        batch: Vec<(WriteGuard, Option<Holder>)>,
    ) -> (Vec<(WriteGuard, Option<Holder>)>, Result<()>) {
        let (mut ready, mut failed) = (Vec::new(), Ok(()));
        for (guard, successor) in batch {
            let written = match guard.entry.object {
                LockObject::Descriptor => self.write_back(&guard).await,
                LockObject::Cluster | LockObject::Journal | LockObject::System => Ok(()),
            };
            match written {
                Ok(()) => ready.push((guard, successor)),
                Err(e) => failed = failed.and(Err(e)),
            }
        }
        (ready, failed)
    }

    async fn give(&self, entry: &Rc<Entry>, successor: Option<Holder>) -> Result<()> {
        let Some(lock) = entry.held.get() else { return Ok(()) };
        let stamp = {
            let cache = self.cache.borrow();
            cache.get(entry.addr.plus(1)).map_or(Stamp::default(), |cached| Stamp {
                version: cached.version,
                checksum: stored_checksum(&cached.encode(self.sb.volume, entry.addr.plus(1))[..]),
            })
        };
        let new = released(&lock, self.me().slot, successor, stamp, self.nonce());
        self.swap_held(entry.addr, &lock, &new).await?;
        entry.held.set(None);
        self.cache.borrow_mut().forget_lock(entry.addr);
        self.forget_stack(entry.addr);
        if entry.object == LockObject::Cluster {
            self.alloc.borrow_mut().gave(entry.addr);
        }
        self.io.count(|c| {
            c.locks_released += 1;
            c.handovers += u64::from(successor.is_some());
        });
        Ok(())
    }
}
