//! Recovering without a slot: where every slot has a dead host, nobody could join to recover any.
//!
//! ```text
//! no slot is free -> all life marks -> every slot's program has ended -> all slots silent
//!     -> flush -> replay of one -> flush -> that slot Free, incarnation + 1 -> marks back -> join
//! ```
//!
//! Invariants:
//! - Nothing is written before every life mark is ours, every slot's program is proven over, and no
//!   slot has changed for as long as the silence that is death: then nobody writes or claims, and
//!   nobody joins, since no slot is free. So there is no claim and no lease
//!   (docs/decisions/0016-alone.md).
//! - Marks are given back when all that was written is answered and went well, or else not before
//!   this program ends.
//! - A crash between any two steps leaves a dead slot as before: a replay is idempotent (R8).

use futures_util::future::{Either, select};
use lunfs_format::{Pulse, PulseState};

use crate::claim::freed;
use crate::error::{Error, Kind, Result};
use crate::io::Settled;
use crate::journal::replay::Replayed;
use crate::liveness::claim_wait;
use crate::marks::Marks;
use crate::recovery::{CLAIM_DEADLINE, Failure};
use crate::volume::Volume;

impl Volume {
    /// Every slot is in use. Recovers one of them if nobody has the volume mounted. `false`:
    /// somebody may have, or none can be recovered.
    pub(crate) async fn free_a_slot(&self) -> Result<bool> {
        let mut marks = match Marks::take_all(&self.io.env, self.sb.slot_count) {
            Err(e) if e.kind == Kind::Busy => return Ok(false),
            taken => taken?,
        };
        // Read under the marks: who freed a slot meanwhile did it before.
        let Some(dead) = self.all_pulses().await? else {
            tracing::error!(
                event = "alone",
                "no slot is free, and one is damaged: nobody can tell whether its host lives; run \
                 `lunfs check --repair`"
            );
            return Ok(false);
        };
        if dead.iter().any(|pulse| pulse.state == PulseState::Free) {
            return Ok(true);
        }
        for pulse in &dead {
            if let Err(e) = marks.ended(pulse).await {
                tracing::warn!(event = "alone", slot = pulse.slot.0, error = %e, "not over");
                return Ok(false);
            }
        }
        // A host of which neither mark nor process can be seen from here pulses all the same.
        self.io.env.clock.sleep(claim_wait(self.sb.timing)).await;
        if self.all_pulses().await?.as_ref() != Some(&dead) {
            return Ok(false);
        }
        for victim in &dead {
            marks.keep();
            match self.replay_alone(victim).await {
                Ok(done) => {
                    self.free_alone(victim, done).await?;
                    marks.let_go();
                    return Ok(true);
                }
                Err(failure @ (Failure::Fence(_) | Failure::Io(_) | Failure::Corrupt(_))) => {
                    marks.let_go();
                    let slot = victim.slot.0;
                    tracing::error!(event = "alone", slot, error = %failure, "cannot be recovered");
                }
                Err(failure @ (Failure::Write(_) | Failure::Stopped(_))) => {
                    self.io.stop(format!("the replay of slot {} failed", victim.slot));
                    return Err(Error::new(Kind::Stopped, failure.to_string()));
                }
            }
        }
        Ok(false)
    }

    /// Frees the slot, unless its parent said its last word meanwhile: then we look again.
    async fn free_alone(&self, victim: &Pulse, done: Replayed) -> Result<()> {
        let free = freed(victim, self.nonce());
        match self.region.swap(&self.io, victim, &free).await? {
            Settled::Won => {
                self.io.count(|c| c.takeovers_alone += 1);
                self.note_recovered(victim, &free, done);
                Ok(())
            }
            Settled::Lost(_) => {
                let found = self.region.pulse(&self.io, victim.slot).await?;
                let is_word = found.state == PulseState::Dead
                    && found.incarnation == victim.incarnation
                    && victim.state != PulseState::Dead;
                if is_word {
                    return Ok(());
                }
                let why = format!("slot {} changed although nobody can have it", victim.slot);
                self.io.stop(why.clone());
                Err(Error::new(Kind::Stopped, why))
            }
        }
    }

    /// What all slots say; `None`: one of them is damaged.
    async fn all_pulses(&self) -> Result<Option<Vec<Pulse>>> {
        Ok(self.region.scan(&self.io).await?.into_iter().map(|seen| seen.pulse).collect())
    }

    /// The steps of a takeover without a claim, of a slot whose program has ended.
    async fn replay_alone(&self, victim: &Pulse) -> std::result::Result<Replayed, Failure> {
        let work = std::pin::pin!(self.replay_fenced(victim));
        let deadline = self.io.env.clock.sleep(CLAIM_DEADLINE);
        match select(work, deadline).await {
            Either::Left((done, _)) => done,
            Either::Right(((), _)) => {
                let why = format!("the replay of slot {} overran its deadline", victim.slot);
                Err(Failure::Stopped(Error::new(Kind::Stopped, why)))
            }
        }
    }
}
