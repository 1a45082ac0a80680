//! R1: nothing is submitted after the lease. R4: nothing lands after recovery.
//!
//! The lease is computed here from what reached the disk: it ends `lease` after the first
//! submission of the newest image of the program's pulse that landed, by its host's clock.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::time::Duration;

use lunfs_core::env::Instant;
use lunfs_format::{Holder, Pulse, PulseState, RECORD, SlotNo};

use super::{Known, Place, View};
use crate::disk::faults::Request;
use crate::disk::watch::{Landing, Submission};
use crate::executor::Owner;

/// Images of a pulse that are remembered after their submission.
const IMAGES_MAX: usize = 256;

#[derive(Clone)]
struct Life {
    run: [u8; 16],
    holder: Option<Holder>,
    lease_ends: Option<Instant>,
    /// Images of the own pulse with their first submission.
    images: Vec<(Vec<u8>, Instant)>,
    /// The slot became free by the program's own hand.
    has_left: bool,
}

/// The leases of all programs.
#[derive(Default)]
pub(super) struct Leases {
    lives: RefCell<BTreeMap<Owner, Life>>,
}

impl Leases {
    pub fn born(&self, owner: Owner, run: [u8; 16]) {
        let life =
            Life { run, holder: None, lease_ends: None, images: Vec::new(), has_left: false };
        self.lives.borrow_mut().insert(owner, life);
    }

    /// Did the program give its slot back by itself?
    pub fn has_left(&self, owner: Owner) -> bool {
        self.lives.borrow().get(&owner).is_some_and(|life| life.has_left)
    }

    /// The life of a slot that a program has.
    pub fn holder(&self, owner: Owner) -> Option<Holder> {
        self.lives.borrow().get(&owner)?.holder
    }

    /// `is_alone`: it has all life marks, and needs no lease as long as it has no slot.
    pub fn submitted(
        &self,
        submission: &Submission<'_>,
        known: &Known,
        is_alone: impl Fn() -> bool,
    ) -> Result<(), String> {
        if !submission.request.changes() {
            return Ok(());
        }
        let mut lives = self.lives.borrow_mut();
        let Some(life) = lives.get_mut(&submission.owner) else { return Ok(()) };
        let place = known.place(submission.at);
        if let (Place::Pulse(slot), Request::Compare) = (place, submission.request) {
            let image = &submission.data[..RECORD];
            let pulse = Pulse::decode(image, known.volume, slot);
            if pulse.is_ok_and(|pulse| pulse.run == life.run) {
                // The own pulse: the only thing that may be written at any time.
                if !life.images.iter().any(|(seen, _)| seen == image) {
                    life.images.push((image.to_vec(), submission.host_now));
                    let surplus = life.images.len().saturating_sub(IMAGES_MAX);
                    life.images.drain(..surplus);
                }
                return Ok(());
            }
            if life.holder.is_some_and(|holder| holder.slot == slot) {
                // The own slot is given back.
                return Ok(());
            }
        }
        let now = submission.host_now;
        match life.lease_ends {
            Some(end) if now < end => Ok(()),
            Some(end) => Err(format!(
                "R1: a {} at {:#x} was submitted {} ms after the end of the lease",
                submission.request.name(),
                submission.at,
                now.since(end).as_millis()
            )),
            None if is_alone() => Ok(()),
            None => Err(format!(
                "R1: a {} at {:#x} was submitted before the program had a lease",
                submission.request.name(),
                submission.at
            )),
        }
    }

    pub fn pulse_landed(&self, landing: &Landing<'_>, slot: SlotNo, known: &Known) {
        let image = &landing.after[..RECORD];
        let Ok(pulse) = Pulse::decode(image, known.volume, slot) else { return };
        let mut lives = self.lives.borrow_mut();
        let Some(life) = lives.get_mut(&landing.owner) else { return };
        let is_own = life.holder.is_some_and(|holder| holder.slot == slot);
        life.has_left |= is_own && pulse.state == PulseState::Free;
        if pulse.run != life.run {
            return;
        }
        life.holder = Some(Holder { slot, incarnation: pulse.incarnation });
        if let Some((_, submitted)) = life.images.iter().find(|(seen, _)| seen == image) {
            let lease = Duration::from_millis(u64::from(pulse.timing.lease_ms));
            let end = *submitted + lease;
            life.lease_ends = Some(life.lease_ends.map_or(end, |old| old.max(end)));
        }
    }
}

/// R4: what a program wrote may not land once its life of the slot is over. An answer to a doorbell
/// may, if the program left by itself: it replaces one request, or nothing.
pub(super) fn landed(
    landing: &Landing<'_>,
    me: Option<Holder>,
    has_left: bool,
    view: &View,
) -> Result<(), String> {
    let Some(me) = me else { return Ok(()) };
    match view.known.place(landing.at) {
        Place::Pulse(slot) if slot == me.slot => return Ok(()),
        Place::Doorbell(_) if has_left => return Ok(()),
        Place::Pulse(_) | Place::Doorbell(_) | Place::Block(_) | Place::Outside => {}
    }
    if view.is_stale(me) {
        return Err(format!(
            "R4: a {} at {:#x} lands although life {me} of its slot is over",
            landing.request.name(),
            landing.at
        ));
    }
    Ok(())
}
