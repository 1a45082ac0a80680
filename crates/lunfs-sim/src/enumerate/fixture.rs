//! The volume on which operations are tried: files, directories and links of every kind, some of
//! them one step from growing or shrinking a tree, on a disk full of what was deleted before.

use std::rc::Rc;

use futures_util::future::{join, join_all};
use lunfs_core::env::Env;
use lunfs_core::{Fallocate, FileKind, FormatOptions, Volume, format_volume};
use lunfs_doors::{Time, mount, sleep};
use lunfs_format::{Sizes, Timing};

use super::act::Host;
use super::doors::doors;
use super::image::Image;
use super::model::Tree;
use super::recorder::Recorder;
use super::step::Step;
use super::survivor::{Place, guarded};

/// Blocks of a cluster: the smallest there is.
const CLUSTER: u32 = 1024;
/// Slots of the volume: as few as there may be, since whoever joins reads all.
const SLOTS: u32 = 64;
/// Hosts that have a journal.
const HOSTS: usize = 4;
/// Entries of the directory that the next name turns from one within its descriptor into a node.
pub const INLINE_FULL: usize = 10;
/// Entries of the directory whose only node the next name splits.
pub const LEAF_FULL: usize = 17;
/// Entries of the directory with two leaves, and how many go until they are one leaf again, within
/// the descriptor.
pub const TWO_LEAVES: usize = 18;
/// See [`TWO_LEAVES`].
pub const MERGES: usize = 14;

/// The file that takes all space, how many file blocks it takes, and where they end.
pub const FILLER: &str = "filler";
const FILLER_BLOCKS: u64 = 840;
const FILE_BLOCK: u64 = 256 << 10;
/// Where the next one would begin.
pub const FILLER_END: u64 = FILLER_BLOCKS * FILE_BLOCK;

/// A volume at rest, and what is on it.
pub struct Fixture {
    /// What was prepared.
    pub kind: Kind,
    /// The volume.
    pub place: Place,
    /// Its disk.
    pub image: Image,
    /// Its files.
    pub tree: Tree,
}

/// A name that takes much room.
pub fn long(dir: &str, number: usize) -> String {
    format!("{dir}/{number:03}-{}", "x".repeat(200))
}

fn create(path: &str, kind: FileKind) -> Step {
    Step::Create { path: path.into(), kind }
}

fn write(path: &str, at: u64, len: usize, salt: u8) -> Step {
    Step::Write { path: path.into(), at, len, salt }
}

/// What fills the volume before anything is tried.
fn steps() -> Vec<Step> {
    let mut steps = Vec::new();
    // What is deleted here is what must never be read again.
    for (number, salt) in (0..6).zip([0xE0, 0xE1, 0xE2, 0xE3, 0xE4, 0xE5]) {
        let ghost = format!("ghost{number}");
        steps.push(create(&ghost, FileKind::File));
        steps.push(write(&ghost, 0, 270_000, salt));
    }
    steps.push(Step::Sync);
    steps.extend((0..6).map(|number| Step::Unlink(format!("ghost{number}"))));
    steps.extend([Step::Idle(200), Step::Sync, Step::Idle(6000)]);
    for dir in ["d", "e", "e2", "full", "i", "m", "n"] {
        steps.push(create(dir, FileKind::Directory));
    }
    for (path, len, salt) in [("f", 10_000, 1), ("g", 3000, 2), ("small", 300, 3), ("l1", 5000, 4)]
    {
        steps.extend([create(path, FileKind::File), write(path, 0, len, salt)]);
    }
    steps.extend([create("d/x", FileKind::File), write("d/x", 0, 4096, 5)]);
    steps.push(create("full/y", FileKind::File));
    steps.push(Step::Link { from: "l1".into(), to: "d/l2".into() });
    steps.push(create("s", FileKind::Symlink));
    steps.push(create("big", FileKind::File));
    steps.push(write("big", 0, 8192, 6));
    steps.push(write("big", 256 << 10, 12_000, 6));
    // A disk with a snapshot below it, and a clone of that.
    steps.extend([Step::CreateDisk("k".into(), 600_000), write("k", 0, 20_000, 10)]);
    steps.extend([write("k", 270_000, 9000, 11), Step::Snapshot("k".into(), "old")]);
    steps.extend([write("k", 5000, 6000, 12), write("k", 530_000, 5000, 13)]);
    let (from, to) = ("k".to_owned(), "kc".to_owned());
    steps.push(Step::Clone { from, snapshot: Some("old"), to });
    for (name, len) in [("user.small", 20), ("user.tree", 5000)] {
        steps.push(Step::SetXattr { path: "g".into(), name, len, salt: 9 });
    }
    for (dir, count) in [("i", INLINE_FULL), ("m", LEAF_FULL), ("n", TWO_LEAVES)] {
        steps.extend((0..count).map(|number| create(&long(dir, number), FileKind::File)));
    }
    steps
}

/// Takes all space of the clusters that are initialised, one file block after the other.
fn fill_up(blocks: u64) -> Vec<Step> {
    let keep_size = true;
    let block = |number| Step::Fallocate {
        path: FILLER.into(),
        at: number * FILE_BLOCK,
        len: 1,
        mode: Fallocate::Allocate { keep_size },
    };
    let mut steps = vec![create(FILLER, FileKind::File)];
    steps.extend((0..blocks).map(block));
    steps
}

/// A volume to try operations on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Files of every kind.
    Usual,
    /// Nobody has ever mounted it.
    New,
    /// The next file block lies behind the frontier.
    Full,
}

impl Kind {
    fn clusters(self) -> u64 {
        match self {
            Kind::Usual | Kind::New => 16,
            Kind::Full => 70,
        }
    }

    fn steps(self) -> Vec<Step> {
        match self {
            Kind::Usual => steps(),
            Kind::New => Vec::new(),
            Kind::Full => fill_up(FILLER_BLOCKS),
        }
    }
}

impl Fixture {
    /// Prepares a volume; but for a new one, `HOSTS` hosts have had a journal on it.
    pub fn build(kind: Kind) -> Result<Fixture, String> {
        let size = (2048 + kind.clusters() * u64::from(CLUSTER)) * 4096;
        let time = Time::begin();
        let disk = Rc::new(Recorder::<()>::quick(Image::used(), size));
        let env = doors(disk.clone(), &time, 1);
        let (tree, superblock) = guarded(&time, async {
            let options = FormatOptions {
                label: "enumerated".into(),
                timing: Timing::FAST,
                sizes: Sizes { cluster_blocks: Some(CLUSTER), slot_count: Some(SLOTS) },
            };
            let superblock =
                format_volume(&env, &options).await.map_err(|e| format!("format: {e}"))?;
            if kind == Kind::New {
                return Ok((Tree::empty(), superblock));
            }
            let mut hosts = Vec::new();
            for number in 0..HOSTS {
                let name = format!("builder{number}");
                hosts.push(mount(&env, &name).await.map_err(|e| format!("mount: {e}"))?);
            }
            let serving = join_all(hosts.iter().map(Volume::serve));
            let (_, tree) = join(serving, fill(&env, &hosts, &kind.steps())).await;
            Ok((tree?, superblock))
        })?;
        let place = Place { size, volume: superblock.volume, geometry: superblock.geometry() };
        Ok(Fixture { kind, place, image: disk.visible().settled(), tree })
    }
}

async fn fill(env: &Env, hosts: &[Rc<Volume>], steps: &[Step]) -> Result<Tree, String> {
    sleep(env, 100).await;
    for other in &hosts[1..] {
        other.unmount().await.map_err(|e| format!("unmount: {e}"))?;
    }
    let (first, mut tree) = (Host::new(Rc::clone(&hosts[0])), Tree::empty());
    for step in steps {
        first.act(env, step).await.map_err(|e| format!("{step:?}: {e}"))?;
        if !tree.act(step) {
            return Err(format!("the model refuses {step:?}"));
        }
    }
    first.volume.unmount().await.map_err(|e| format!("unmount: {e}"))?;
    Ok(tree)
}

#[cfg(test)]
mod tests {
    use lunfs_doors::Limits;
    use lunfs_format::{FRONTIER_LOCK, Lock, RECORD};

    use super::super::act::look;
    use super::super::operation::{of_a_full_volume, operations};
    use super::*;

    /// Runs steps on a fixture and hands out the disk after it.
    fn after(fixture: &Fixture, steps: &[Step], path: &str) -> (Image, u64) {
        let time = Time::begin();
        let disk = Rc::new(Recorder::<()>::quick(fixture.image.clone(), fixture.place.size));
        let env = doors(disk.clone(), &time, 9);
        let blocks = time.run(Limits::seconds(100), async {
            let host = Host::new(mount(&env, "host").await.expect("mounts"));
            let story = async {
                for step in steps {
                    host.act(&env, step).await.expect("works");
                }
                let blocks = host.blocks(path).await;
                host.volume.unmount().await.expect("unmounts");
                blocks
            };
            join(host.volume.serve(), story).await.1
        });
        (disk.visible(), blocks.expect("it ends"))
    }

    fn frontier(fixture: &Fixture, image: &Image) -> u64 {
        let bytes = image.read(FRONTIER_LOCK.offset(), RECORD);
        Lock::decode(&bytes, fixture.place.volume, FRONTIER_LOCK).expect("a lock").payload
    }

    #[test]
    fn trees_grow_and_shrink_in_the_operations_that_say_so() {
        let fixture = Fixture::build(Kind::Usual).expect("prepares");
        let change = |name: &str, path: &str| {
            let all = operations();
            let operation = all.iter().find(|o| o.name == name).expect("an operation");
            let before = after(&fixture, &[], path).1;
            let now = after(&fixture, &operation.steps, path).1;
            now.cast_signed() - before.cast_signed()
        };
        assert_eq!(change("inline-grows", "i"), 1);
        assert_eq!(change("tree-splits", "m"), 2);
        assert_eq!(change("trees-merge", "n"), -3);
        assert!(change("xattr-grows-tree", "f") > 0);
        assert!(change("xattr-frees-tree", "g") < 0);
    }

    #[test]
    fn the_next_file_block_of_a_full_volume_moves_the_frontier() {
        let fixture = Fixture::build(Kind::Full).expect("prepares");
        let before = frontier(&fixture, &fixture.image);
        let (image, _) = after(&fixture, &of_a_full_volume()[0].steps, FILLER);
        assert!(frontier(&fixture, &image) > before, "still {before} clusters");
    }

    #[test]
    fn what_is_prepared_is_what_the_model_says() {
        let fixture = Fixture::build(Kind::Usual).expect("prepares");
        let time = Time::begin();
        let disk = Rc::new(Recorder::<()>::quick(fixture.image.clone(), fixture.place.size));
        let env = doors(disk, &time, 9);
        let seen = time.run(Limits::seconds(100), async {
            let volume = mount(&env, "host").await.expect("mounts");
            let story = async {
                let seen = look(&volume).await.expect("looks");
                volume.unmount().await.expect("unmounts");
                seen
            };
            join(volume.serve(), story).await.1
        });
        let paths: Vec<String> = seen.expect("it ends").0.into_iter().map(|(p, ..)| p).collect();
        assert!(paths.iter().eq(fixture.tree.names.keys()));
    }
}
