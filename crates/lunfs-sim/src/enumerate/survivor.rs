//! The host that comes after a crash: it mounts, takes the dead over, looks at everything, leaves,
//! and the walker looks once more.
//!
//! Each image is recovered once, however many ways lead to it; the same holds for the walker.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;

use futures_util::future::join;
use lunfs_core::check::{Options, check};
use lunfs_core::env::{Disk, Env};
use lunfs_core::{Counters, Volume};
use lunfs_doors::{Limits, Time, mount, sleep};
use lunfs_format::{Geometry, Pulse, PulseState, RECORD, SlotNo, VolumeId};

use super::act::look;
use super::doors::doors;
use super::image::Image;
use super::recorder::{Event, Recorder};
use super::seen::Seen;

/// Slots that are ever used here.
const SLOTS: u32 = 8;
/// Seconds within which the dead are taken over, and the whole visit ends.
const TAKEN_OVER: u64 = 60;
const VISIT: Limits = Limits::seconds(300);

/// Which volume it is.
#[derive(Clone, Copy)]
pub struct Place {
    /// Bytes of the disk.
    pub size: u64,
    /// The volume.
    pub volume: VolumeId,
    /// Its layout.
    pub geometry: Geometry,
}

impl Place {
    /// Slots of hosts that did not leave.
    fn dead(&self, image: &Image) -> u64 {
        let in_use = |slot: &u32| {
            let slot = SlotNo(*slot);
            let bytes = image.read(self.geometry.slot_offset(slot), RECORD);
            !Pulse::decode(&bytes, self.volume, slot).is_ok_and(|p| p.state == PulseState::Free)
        };
        (0..SLOTS).filter(in_use).count() as u64
    }
}

/// What a recovery came to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    /// Everything is well; number of what was seen, and what the replay did.
    Sound {
        /// Number of what was seen.
        seen: usize,
        /// Images applied, in place already, refused, and cancelled by revokes.
        replayed: [u64; 4],
    },
    /// It broke a rule.
    Broken(String),
}

/// Recovers images and remembers what came of it.
pub struct Survivor {
    place: Place,
    known: BTreeMap<u128, usize>,
    outcomes: Vec<Outcome>,
    numbers: BTreeMap<Outcome, usize>,
    sights: Vec<Rc<Seen>>,
    sight_numbers: BTreeMap<Rc<Seen>, usize>,
    walked: BTreeMap<u128, Option<String>>,
    /// Recoveries run.
    pub recoveries: u64,
    /// Walks run.
    pub walks: u64,
}

struct Visit {
    seen: Seen,
    counters: Counters,
}

impl Survivor {
    /// One that has seen nothing yet.
    pub fn new(place: Place) -> Survivor {
        Survivor {
            place,
            known: BTreeMap::new(),
            outcomes: Vec::new(),
            numbers: BTreeMap::new(),
            sights: Vec::new(),
            sight_numbers: BTreeMap::new(),
            walked: BTreeMap::new(),
            recoveries: 0,
            walks: 0,
        }
    }

    /// Different images so far.
    pub fn distinct(&self) -> u64 {
        self.known.len() as u64
    }

    /// An outcome by its number.
    pub fn outcome(&self, number: usize) -> &Outcome {
        &self.outcomes[number]
    }

    /// What was seen, by its number.
    pub fn seen(&self, number: usize) -> &Seen {
        &self.sights[number]
    }

    /// Recovers an image; the number of the outcome.
    pub fn recover(&mut self, image: Image) -> usize {
        let hash = image.hash();
        if let Some(number) = self.known.get(&hash) {
            return *number;
        }
        self.recoveries += 1;
        let outcome = self.recover_new(image);
        let number = self.number(outcome);
        self.known.insert(hash, number);
        number
    }

    fn number(&mut self, outcome: Outcome) -> usize {
        if let Some(number) = self.numbers.get(&outcome) {
            return *number;
        }
        self.outcomes.push(outcome.clone());
        self.numbers.insert(outcome, self.outcomes.len() - 1);
        self.outcomes.len() - 1
    }

    fn recover_new(&mut self, image: Image) -> Outcome {
        let dead = self.place.dead(&image);
        let disk = Rc::new(Recorder::<()>::quick(image, self.place.size));
        let time = Time::begin();
        let env = doors(disk.clone(), &time, 3);
        match guarded(&time, visit(&env, "survivor", dead)) {
            Err(why) => Outcome::Broken(why),
            Ok(Visit { seen, counters: c }) => match self.walk(&disk.visible()) {
                Some(why) => Outcome::Broken(why),
                None => Outcome::Sound {
                    seen: self.sight(seen),
                    replayed: [
                        c.images_applied,
                        c.images_in_place,
                        c.images_refused,
                        c.revokes_used,
                    ],
                },
            },
        }
    }

    fn sight(&mut self, seen: Seen) -> usize {
        let seen = Rc::new(seen);
        if let Some(number) = self.sight_numbers.get(&seen) {
            return *number;
        }
        self.sights.push(Rc::clone(&seen));
        self.sight_numbers.insert(seen, self.sights.len() - 1);
        self.sights.len() - 1
    }

    /// What the walker says of a volume that nobody has mounted.
    pub fn walk(&mut self, image: &Image) -> Option<String> {
        if let Some(said) = self.walked.get(&image.hash()) {
            return said.clone();
        }
        self.walks += 1;
        let disk = Recorder::<()>::quick(image.clone(), self.place.size);
        let said = walked(&disk);
        self.walked.insert(image.hash(), said.clone());
        said
    }

    /// The recovery that is to be crashed: everything it did to a disk that shows `visible`.
    pub fn record(&self, visible: Image) -> Result<Vec<Event<()>>, String> {
        let dead = self.place.dead(&visible);
        let time = Time::begin();
        let disk = Rc::new(Recorder::slow(visible, self.place.size, &time));
        disk.record();
        let env = doors(disk.clone(), &time, 2);
        guarded(&time, visit(&env, "recoverer", dead))?;
        Ok(disk.events())
    }
}

fn walked(disk: &dyn Disk) -> Option<String> {
    let time = Time::begin();
    let options = Options { offline: true, progress: None };
    let walk = async { Ok(check(disk, &options).await) };
    match guarded(&time, walk) {
        Err(why) => Some(format!("the walker: {why}")),
        Ok(Err(error)) => Some(format!("the walker: {error}")),
        Ok(Ok(report)) => report.errors().next().map(|error| format!("the walker: {error}")),
    }
}

/// Runs something that must end, and must not panic.
pub fn guarded<T>(time: &Time, what: impl Future<Output = Result<T, String>>) -> Result<T, String> {
    match catch_unwind(AssertUnwindSafe(|| time.run(VISIT, what))) {
        Ok(Ok(done)) => done,
        Ok(Err(endless)) => Err(endless.to_string()),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string));
            Err(format!("panic: {}", text.unwrap_or_default()))
        }
    }
}

async fn visit(env: &Env, name: &str, dead: u64) -> Result<Visit, String> {
    let volume = mount(env, name).await.map_err(|e| format!("no mount: {e}"))?;
    let (_, visit) = join(volume.serve(), stay(env, &volume, dead)).await;
    visit
}

async fn stay(env: &Env, volume: &Rc<Volume>, dead: u64) -> Result<Visit, String> {
    let until = env.clock.now() + std::time::Duration::from_secs(TAKEN_OVER);
    while volume.counters().takeovers < dead {
        if env.clock.now() > until {
            return Err(format!("the dead are not taken over within {TAKEN_OVER} s"));
        }
        sleep(env, 10).await;
    }
    // What the dead had deleted is freed meanwhile.
    sleep(env, 40).await;
    let seen = look(volume).await.map_err(|e| format!("a look: {e}"))?;
    volume.unmount().await.map_err(|e| format!("unmount: {e}"))?;
    Ok(Visit { seen, counters: volume.counters() })
}
