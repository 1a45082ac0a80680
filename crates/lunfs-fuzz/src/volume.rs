//! Whole images and journals, damaged as an input says, used, checked, mended; and requests at the
//! ends of all numbers.
//!
//! What must hold, beside that nothing panics, turns in circles, or writes outside the volume:
//! - Every error that speaks of damage says where it is and what to do.
//! - What a check calls clean a host can read from end to end; no block shows in two files.
//! - Where nobody forged a checksum, such a volume shows no byte of another file.
//! - A damaged journal is refused or replayed up to a whole record: what was never damaged itself
//!   stays consistent.
//! - What a repair has done is not offered again, and what it calls clean can be used like that.

use lunfs_core::check::{Options, Report, check, repair};
use lunfs_core::{Fallocate, Identity, Kind, Seek, SetAttr, XattrMode};
use lunfs_format::{JOURNAL_HEADERS, JOURNAL_RING};

use crate::damage::{Damaged, damage};
use crate::history::{History, Place, beside, mount};
use crate::input::Choices;
use crate::oracle::{Found, require_place_and_cure};
use crate::session::{Ended, Plan, session};
use crate::world::{Image, World};

thread_local! {
    static HISTORY: History = History::make();
}

/// Damages after which old contents may well be under old maps: nobody can tell.
const HONEST_MAX: usize = 3;
/// The snapshots whose last records were not in place yet when all died.
const PENDING: [usize; 2] = [4, 6];

/// A whole volume is damaged; a host mounts it, works, and leaves; it is checked.
pub fn image(input: &[u8]) {
    HISTORY.with(|history| {
        let mut choices = Choices::new(input);
        let (start, mode) = (usize::from(choices.byte()), choices.byte());
        let start = history.snapshots[start % history.snapshots.len()].clone();
        let damaged = damage(start, history, &history.places, &mut choices);
        if mode & 1 == 1 {
            checked(&World::new(damaged.image.clone()), false);
        }
        let plan = if mode & 2 == 2 { Plan::Look } else { Plan::Change };
        used(damaged, plan);
    });
}

/// The journals of dead hosts are damaged; another host recovers them.
pub fn journal(input: &[u8]) {
    HISTORY.with(|history| {
        let mut choices = Choices::new(input);
        let start = PENDING[usize::from(choices.byte()) % PENDING.len()];
        let places: Vec<Place> =
            history.journal.iter().filter(|p| is_log(history, p)).copied().collect();
        let image = history.snapshots[start].clone();
        let damaged = damage(image, history, &places, &mut choices);
        let is_honest = damaged.is_honest;
        let (ended, report) = used(damaged, Plan::Look);
        if is_honest && ended == Ended::Left {
            let Some(report) = report else { return };
            let slots = report.live_slots.len();
            let errors: Vec<String> = report.errors().map(ToString::to_string).collect();
            // A slot that could not be recovered stays as it was: the journal was refused.
            assert!(slots > 0 || errors.is_empty(), "a replay left {errors:#?}");
        }
    });
}

/// Headers and records of a journal, and what once lay in its ring: not its lock, its bitmap, and
/// the orphan directory.
fn is_log(history: &History, place: &Place) -> bool {
    let geometry = history.superblock.geometry();
    let Some(index) = geometry.cluster_of(place.block) else { return false };
    let offset = place.block.0 - geometry.cluster_start(index).0;
    JOURNAL_HEADERS.contains(&offset) || offset >= JOURNAL_RING
}

/// A host uses the volume, then it is checked, and what is called clean is looked at once more.
fn used(damaged: Damaged, plan: Plan) -> (Ended, Option<Report>) {
    let Damaged { image, is_honest, count } = damaged;
    let mut found = Found::default();
    let world = World::new(image);
    let ended = world.run(session(&world, plan, &mut found));
    let image = world.medium.image();
    let report = checked(&World::new(image.clone()), true);
    let (image, report) = match report {
        Some(report) if !report.is_clean() => mended(image, report),
        other => (image, other),
    };
    if report.as_ref().is_some_and(Report::is_clean) {
        looked(image, is_honest && count <= HONEST_MAX);
    }
    (ended, report)
}

/// What the walker says; `None` if nothing can be said.
fn checked(world: &World, offline: bool) -> Option<Report> {
    let options = Options { offline, progress: None };
    match world.run(check(&*world.medium, &options)) {
        Ok(report) => Some(report),
        Err(error) => {
            if error.kind == Kind::Corrupt {
                require_place_and_cure(&error);
            }
            None
        }
    }
}

/// Mends what can be mended. What is offered is done, and then not offered any more.
fn mended(image: Image, found: Report) -> (Image, Option<Report>) {
    let world = World::new(image);
    let done = world.run(repair(&world.env(), &Identity::default()));
    let image = world.medium.image();
    let report = checked(&World::new(image.clone()), true);
    match done {
        Ok(repairs) => {
            let left = report.as_ref().map(|report| report.repairs.clone()).unwrap_or_default();
            let again = repairs.iter().find(|repair| left.contains(repair));
            assert_eq!(again, None, "it was mended, and is offered again");
        }
        Err(error) if error.kind == Kind::Corrupt => require_place_and_cure(&error),
        Err(_) => {}
    }
    (image, if found.repairs.is_empty() { Some(found) } else { report })
}

/// Looks at everything on a volume that was called clean.
fn looked(image: Image, is_honest: bool) {
    let world = World::new(image);
    let mut found = Found::default();
    let ended = world.run(session(&world, Plan::Look, &mut found));
    assert_eq!(ended, Ended::Left, "a clean volume cannot be used: {:#?}", found.damage);
    assert!(found.damage.is_empty(), "called clean, but {:#?}", found.damage);
    assert!(found.shared.is_empty(), "called clean, but {:#?}", found.shared);
    assert!(!is_honest || found.foreign.is_empty(), "called clean, but {:#?}", found.foreign);
}

/// Inputs for both: one damage of each kind at places spread over the volume.
pub fn seeds() -> Vec<Vec<u8>> {
    let mut seeds = vec![vec![4, 0], vec![5, 0], vec![6, 1]];
    for what in 0..16u8 {
        for flags in [0, 1, 3, 5] {
            let place = u16::from(what) * 37 + u16::from(flags) * 11;
            let [low, high] = place.to_le_bytes();
            seeds.push(vec![4 + what % 3, 0, what, flags, low, high, what * 9, 1, 3, 0]);
        }
    }
    seeds
}

/// Offsets, sizes and names at the ends of what a request can say, on an undamaged volume.
pub fn extremes(input: &[u8]) {
    HISTORY.with(|history| {
        let image = history.snapshots[5].clone();
        let world = World::new(image);
        world.run(async {
            let mut host = mount(&world, "z").await.expect("an undamaged volume mounts");
            let volume = host.volume.clone();
            let mut choices = Choices::new(input);
            beside(&mut [&mut host], async {
                for _ in 0..12 {
                    if !choices.is_over() {
                        request(&world, &volume, &mut choices).await;
                    }
                }
            })
            .await;
        });
    });
}

/// A number near an end, or any.
fn number(choices: &mut Choices<'_>) -> u64 {
    let near = u64::from(choices.byte());
    match choices.byte() % 8 {
        0 => near,
        1 => u64::MAX - near,
        2 => (1u64 << 63).wrapping_sub(near),
        3 => (1u64 << 63) + near,
        4 => (1u64 << 56).wrapping_sub(near),
        5 => (1u64 << 56) + near,
        6 => near << 18,
        _ => choices.long(),
    }
}

async fn request(world: &World, v: &lunfs_core::Volume, choices: &mut Choices<'_>) {
    let root = v.root();
    let names: [&[u8]; 4] = [b"large", b"sparse", b"small", b"empty"];
    let name = names[usize::from(choices.byte()) % names.len()];
    let Ok(attr) = v.lookup(root, name).await else { return };
    let (what, at, len) = (choices.byte(), number(choices), number(choices));
    let small = usize::try_from(len % 70_000).unwrap_or(0);
    let id = attr.id;
    let keep_size = what & 0x80 != 0;
    let story = async {
        match what % 12 {
            0 => v.read(id, at, usize::try_from(len.min(1 << 20)).unwrap_or(0)).await.map(drop),
            1 => v.write(id, at, vec![7; small]).await,
            2 => v.append(id, vec![8; small]).await.map(drop),
            3 => v.setattr(id, SetAttr { size: Some(at), ..SetAttr::default() }).await.map(drop),
            4 => v.fallocate(id, at, len, Fallocate::PunchHole).await,
            5 => v.fallocate(id, at, len, Fallocate::ZeroRange { keep_size }).await,
            6 => {
                // What it may take is bounded by the volume; the request need not be.
                v.fallocate(id, at, len.min(8 << 20), Fallocate::Allocate { keep_size }).await
            }
            7 => v.seek(id, at, if keep_size { Seek::Data } else { Seek::Hole }).await.map(drop),
            8 => v.readdir(root, at, 40).await.map(drop),
            9 => v.lookup(root, &vec![b'n'; small % 5000]).await.map(drop),
            10 => {
                let (name, value) = (vec![b'x'; usize::from(what)], vec![1; small]);
                v.set_xattr(id, &name, &value, XattrMode::Any).await
            }
            _ => v.fsync(id).await,
        }
    };
    let ended = world.within(60_000, story).await.expect("on a sound volume every request ends");
    if let Err(error) = ended {
        assert_ne!(error.kind, Kind::Corrupt, "on a sound volume: {error}");
    }
}

/// Every request at every end.
pub fn extreme_seeds() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for what in 0..12u8 {
        for end in 0..8u8 {
            seeds.push(vec![
                what,
                what,
                1,
                end,
                1,
                7 - end,
                255,
                255,
                255,
                255,
                255,
                255,
                255,
                127,
            ]);
        }
    }
    seeds
}
