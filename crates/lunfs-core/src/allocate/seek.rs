//! Looking for space where the clusters of this host have none left.
//!
//! Invariant: who looks holds no guard, and waits for nobody without an end.

use std::time::Duration;

use futures_util::future::{Either, join_all, select};
use lunfs_format::{Holder, PulseState, Request};
use tokio::sync::oneshot;

use crate::error::{Kind, Result};
use crate::volume::Volume;

/// How long a host that looks for space waits for others to show what they have freed, and how
/// often it looks meanwhile.
const SHOWING: Duration = Duration::from_secs(1);
const SHOWING_LOOKS: u32 = 4;
/// In which of the rounds that find the freeing of what is listed here still going on others are
/// asked all the same.
const ASKED_IN: u32 = 2;
/// Clusters with free space among which a host chooses.
const CANDIDATES: usize = 64;
/// Clusters read at once.
const PEEKS: usize = 32;

/// What came of freeing what this host has listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Freeing {
    /// Nothing.
    InVain,
    /// There is more space now.
    Freed,
    /// It has not ended: it may be large, or wait for another host.
    GoesOn,
}

impl Volume {
    /// Makes what was freed here usable: it may only wait for its record and for in-place writes.
    pub(crate) async fn settle_freed(&self) -> Result<()> {
        self.journal().commit(&self.io).await?;
        self.journal().checkpoint(&self.io).await
    }

    /// Looks for space beyond the clusters of this host, holding nothing. `false`: no host had any
    /// at a moment after the call began, and this one frees nothing any more. `waits` counts for
    /// one operation the calls that found it freeing.
    pub(crate) async fn seek_space(&self, waits: &mut u32) -> Result<bool> {
        if self.extend_frontier(true).await? {
            return Ok(true);
        }
        let freeing = self.free_own().await;
        let goes_on = freeing == Freeing::GoesOn;
        *waits += u32::from(goes_on);
        // It may wait for a cluster that its holder cannot give, for longer than an operation looks
        // for space: a third host may have some meanwhile.
        if freeing == Freeing::Freed || (goes_on && *waits != ASKED_IN) {
            return Ok(true);
        }
        let called = self.now();
        let mut fruitless = self.space_sought.lock().await;
        if *fruitless >= called {
            return Ok(goes_on);
        }
        let began = self.now();
        // The headers on disk are as old as their holders' last checkpoints: who believes them asks
        // for clusters that are full by now, and overlooks what was freed.
        let mut to_ask = self.other_hosts().await?;
        for _ in 0..SHOWING_LOOKS {
            to_ask = self.ring_for_space(to_ask).await?;
            self.io.env.clock.sleep(SHOWING / SHOWING_LOOKS).await;
            if self.ask_for_clusters().await? {
                return Ok(true);
            }
        }
        *fruitless = began;
        Ok(goes_on)
    }

    /// Frees what this host has listed, as others are asked to, and waits for that a while. The
    /// work goes on by itself: it may have to wait for another host, which nobody who looks for
    /// space must have to.
    async fn free_own(&self) -> Freeing {
        if !self.has_orphans() {
            return Freeing::InVain;
        }
        let before = self.alloc.borrow().free_seen();
        let (ended, end) = oneshot::channel::<()>();
        let is_idle = self.reaping.try_lock().is_ok();
        if is_idle {
            self.spawn_service(|volume| async move {
                if let Err(e) = volume.show_space().await {
                    tracing::warn!(event = "reap", error = %e, "what is deleted is not free yet");
                }
                drop(ended);
            });
        }
        let done = async {
            if is_idle {
                // An error says that the task has ended, which is all it says.
                let _ = end.await;
            } else {
                drop(self.reaping.lock().await);
            }
        };
        let limit = self.io.env.clock.sleep(SHOWING);
        let goes_on = matches!(select(std::pin::pin!(done), limit).await, Either::Right(_));
        match self.alloc.borrow().free_seen() > before {
            true => Freeing::Freed,
            false if goes_on => Freeing::GoesOn,
            false => Freeing::InVain,
        }
    }

    /// Asks hosts to show their space. Returns those whose doorbell is full of requests of others.
    pub(crate) async fn ring_for_space(&self, hosts: Vec<Holder>) -> Result<Vec<Holder>> {
        let mut not_rung = Vec::new();
        for host in hosts {
            if !self.ring(host, &[], Request::ShowSpace).await? {
                not_rung.push(host);
            }
        }
        Ok(not_rung)
    }

    /// The live hosts but this one.
    pub(crate) async fn other_hosts(&self) -> Result<Vec<Holder>> {
        let seen = self.region.scan(&self.io).await?.into_iter().filter_map(|seen| seen.pulse);
        Ok(seen
            .filter(|pulse| pulse.state == PulseState::Live && pulse.slot != self.slot())
            .map(|pulse| Holder { slot: pulse.slot, incarnation: pulse.incarnation })
            .collect())
    }

    /// Puts what is freed here into the headers of its clusters, where other hosts see it.
    pub(crate) async fn show_space(&self) -> Result<()> {
        self.reap_own().await?;
        self.settle_freed().await
    }

    /// Takes two clusters of other hosts in which there is room for what was missed: those with
    /// most space of the first ones it finds. `false`: it got none.
    async fn ask_for_clusters(&self) -> Result<bool> {
        let mut found = Vec::new();
        let mut rest = 0..self.initialised().await?;
        while !rest.is_empty() && found.len() < CANDIDATES {
            let part: Vec<u64> = rest.by_ref().take(PEEKS).collect();
            found.extend(self.with_room(part).await?);
        }
        found.truncate(CANDIDATES);
        found.sort_unstable();
        let mut taken = 0;
        for (_, index) in found.iter().rev() {
            match self.hold(self.cluster_wish(*index)).await {
                Ok(_) => taken += 1,
                Err(e) if e.kind == Kind::Stopped => return Err(e),
                // Its holder died or does not give it up, or its header is damaged: there are more.
                Err(e) => tracing::warn!(event = "cluster", index, error = %e, "stays there"),
            }
            if taken == 2 {
                break;
            }
        }
        Ok(taken > 0)
    }

    /// Those of these clusters of other hosts in which there is room for what was missed, and how
    /// much is free in them.
    async fn with_room(&self, clusters: Vec<u64>) -> Result<Vec<(u32, u64)>> {
        let (len, reserve) = self.alloc.borrow().missed;
        let foreign = |index: &u64| !self.alloc.borrow().held.contains_key(index);
        let peeks = clusters.into_iter().filter(foreign);
        let peeks = peeks.map(async |index| (index, self.peek_cluster(index).await));
        let mut found = Vec::new();
        for (index, peek) in join_all(peeks).await {
            let (lock, header) = match peek {
                Ok(Some((lock, Some(header)))) => (lock, header),
                // No cluster for files, or nobody can tell.
                Ok(_) => continue,
                Err(e) if e.kind == Kind::Io => continue,
                Err(e) => return Err(e),
            };
            if lock.holder.is_some_and(|holder| self.is_unrecovered(holder)) {
                continue;
            }
            let free = header.bitmap.count_free();
            if free >= len + reserve && header.bitmap.find_run(len, 0).is_some() {
                found.push((free, index));
            }
        }
        Ok(found)
    }
}
