//! The disk on real files: what is written is read, races have one winner, late writes stay away.

use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::Duration;

use futures_util::future::join_all;

use super::*;
use crate::clock::boottime;
use crate::ofd;
use crate::scratch::{
    LoopDevice, Scratch, block_on, child_argument, fail_flushes, hear, say, spawn_child,
};

const SIZE: u64 = 64 << 20;

fn open(path: &Path) -> UringDisk {
    UringDisk::open(path, Access::ReadWrite).unwrap()
}

fn pattern(seed: u64, len: usize) -> Vec<u8> {
    (0..len as u64).map(|i| (i.wrapping_mul(31) ^ (i >> 9) ^ seed) as u8).collect()
}

#[test]
fn what_is_written_is_read() {
    let scratch = Scratch::image("io", SIZE);
    block_on(async {
        let disk = open(scratch.path());
        let block = disk.capabilities().logical_block as usize;
        for (at, len) in
            [(0, block), (8192, 4096), (1 << 20, 1 << 20), (8 << 20, (3 << 20) + block)]
        {
            let data = pattern(at, len);
            disk.write(at, data.clone(), at == 0, Instant::FAR).await.unwrap();
            disk.flush().await.unwrap();
            assert_eq!(disk.read(at, len).await.unwrap(), data, "{len} bytes at {at}");
        }
        assert_eq!(disk.read(4096, 4096).await.unwrap(), vec![0; 4096], "untouched");
    });
}

#[test]
fn a_thousand_requests_at_once_are_answered() {
    let scratch = Scratch::image("many", SIZE);
    block_on(async {
        let disk = open(scratch.path());
        let writes = (0..1000).map(|i| disk.write(i * 4096, pattern(i, 4096), false, Instant::FAR));
        assert!(join_all(writes).await.iter().all(Result::is_ok));
        let reads = join_all((0..1000).map(|i| disk.read(i * 4096, 4096))).await;
        for (i, found) in reads.into_iter().enumerate() {
            assert_eq!(found.unwrap(), pattern(i as u64, 4096));
        }
    });
}

#[test]
fn a_write_behind_its_time_never_lands() {
    let scratch = Scratch::image("late", SIZE);
    block_on(async {
        let disk = open(scratch.path());
        let block = disk.capabilities().logical_block as usize;
        let past = boottime();
        let late = disk.write(4096, pattern(1, 4096), false, past).await;
        assert_eq!(late, Err(IoError::TooLate));
        let late = disk.compare_and_write(4096, vec![0; block], vec![1; block], past).await;
        assert_eq!(late, Err(IoError::TooLate));
        assert_eq!(disk.unmap(0, SIZE, past).await, Err(IoError::TooLate));
        assert_eq!(disk.read(4096, 4096).await.unwrap(), vec![0; 4096]);
    });
}

#[test]
fn a_write_is_not_submitted_before_it_is_awaited() {
    let scratch = Scratch::image("lazy", SIZE);
    block_on(async {
        let disk = open(scratch.path());
        drop(disk.write(0, pattern(1, 4096), false, Instant::FAR));
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert_eq!(disk.read(0, 4096).await.unwrap(), vec![0; 4096]);
    });
}

#[test]
fn an_address_behind_the_end_is_an_error_and_nothing_grows() {
    let scratch = Scratch::image("end", SIZE);
    block_on(async {
        let disk = open(scratch.path());
        for at in [SIZE, u64::MAX - 4095] {
            assert!(matches!(disk.read(at, 4096).await, Err(IoError::Failed(_))));
            let write = disk.write(at, vec![1; 4096], false, Instant::FAR).await;
            assert!(matches!(write, Err(IoError::Failed(_))));
        }
        assert_eq!(scratch.open().metadata().unwrap().len(), SIZE);
    });
}

#[test]
fn unmap_gives_space_back() {
    let scratch = Scratch::image("unmap", SIZE);
    block_on(async {
        let disk = open(scratch.path());
        disk.write(0, pattern(3, 1 << 20), true, Instant::FAR).await.unwrap();
        disk.unmap(0, 1 << 20, Instant::FAR).await.unwrap();
        assert_eq!(disk.read(0, 1 << 20).await.unwrap(), vec![0; 1 << 20]);
    });
}

#[test]
fn compare_and_write_changes_only_what_is_as_expected() {
    let scratch = Scratch::image("caw", SIZE);
    block_on(async {
        let disk = open(scratch.path());
        let block = disk.capabilities().logical_block as usize;
        let image = |n: u8| vec![n; block];
        let caw =
            |old: u8, new: u8| disk.compare_and_write(4096, image(old), image(new), Instant::FAR);
        assert_eq!(caw(0, 1).await, Ok(Compared::Written));
        assert_eq!(caw(0, 2).await, Ok(Compared::Miscompare));
        assert_eq!(disk.read(4096, block).await.unwrap(), image(1));
        // All at once, for one block and for many: exactly one wins the one block.
        let race = join_all((10..74).map(|new| caw(1, new))).await;
        assert_eq!(race.iter().filter(|o| **o == Ok(Compared::Written)).count(), 1);
        let many = (0..200).map(|i| {
            disk.compare_and_write((4 << 20) + i * 4096, image(0), image(9), Instant::FAR)
        });
        assert!(join_all(many).await.iter().all(|o| *o == Ok(Compared::Written)));
    });
}

#[test]
fn a_mark_held_by_another_program_is_waited_for_but_not_for_ever() {
    let scratch = Scratch::image("stuck", SIZE);
    let other = scratch.open();
    assert!(ofd::try_lock(&other, ofd::CAW_BASE + 4096).unwrap());
    block_on(async {
        let disk = open(scratch.path());
        let block = disk.capabilities().logical_block as usize;
        let caw = |at| disk.compare_and_write(at, vec![0; block], vec![1; block], Instant::FAR);
        let (stuck, free) = futures_util::future::join(caw(4096), caw(8192)).await;
        assert!(
            matches!(&stuck, Err(IoError::Failed(why)) if why.contains("lock byte")),
            "{stuck:?}"
        );
        assert_eq!(free, Ok(Compared::Written), "others go on meanwhile");
        let (passed, ()) = futures_util::future::join(caw(4096), async {
            tokio::time::sleep(Duration::from_millis(50)).await;
            ofd::unlock(&other, ofd::CAW_BASE + 4096).unwrap();
        })
        .await;
        assert_eq!(passed, Ok(Compared::Written));
    });
}

/// N41: the flush beneath a compare-and-write failed; the program was told "in doubt" and flushed
/// again. That flush succeeded, since an error is told once, and what the program then believed to
/// be durable was gone at the next power loss.
#[test]
fn after_a_flush_that_failed_nothing_is_durable_any_more() {
    let scratch = Scratch::image("unflushed", SIZE);
    if !fail_flushes() {
        return;
    }
    block_on(async {
        let disk = open(scratch.path());
        let block = disk.capabilities().logical_block as usize;
        let image = |n: u8| vec![n; block];
        disk.flush().await.expect("the cache works");
        let caw = |at, n| disk.compare_and_write(at, image(0), image(n), Instant::FAR);
        let differs = disk.compare_and_write(4096, image(9), image(1), Instant::FAR).await;
        assert_eq!(differs, Ok(Compared::Miscompare), "nothing was written or flushed");
        for (at, what) in [(4096, "the first that fails"), (8192, "one after it")] {
            let told = caw(at, 1).await;
            assert!(matches!(told, Err(IoError::Unflushed(_))), "{what}: {told:?}");
        }
        assert_eq!(disk.read(4096, block).await.unwrap(), image(1), "it was done");
        assert_eq!(disk.read(8192, block).await.unwrap(), image(0), "it was not begun");
        let flushed = disk.flush().await;
        assert!(matches!(flushed, Err(IoError::Unflushed(_))), "{flushed:?}");
        let now = Exchange { at: 8192, expect: image(0), new: image(1), until: Instant::FAR };
        let told = caw::compare_and_write_now(&disk.source(), &now);
        assert!(matches!(told, Err(IoError::Unflushed(_))), "{told:?}");
    });
}

/// Adds one to the number at `at` `count` times, by compare-and-write.
async fn count_up(disk: &UringDisk, at: u64, count: u32) {
    let block = disk.capabilities().logical_block as usize;
    let mut done = 0;
    while done < count {
        let old = disk.read(at, block).await.unwrap();
        let mut new = old.clone();
        let number = u64::from_le_bytes(*old.first_chunk().unwrap());
        new[..8].copy_from_slice(&(number + 1).to_le_bytes());
        if disk.compare_and_write(at, old, new, Instant::FAR).await.unwrap() == Compared::Written {
            done += 1;
        }
    }
}

async fn counted(disk: &UringDisk, at: u64) -> u64 {
    let block = disk.capabilities().logical_block as usize;
    u64::from_le_bytes(*disk.read(at, block).await.unwrap().first_chunk().unwrap())
}

#[test]
fn four_opens_that_race_lose_no_update() {
    let scratch = Scratch::image("opens", SIZE);
    block_on(async {
        let disks: Vec<UringDisk> = (0..4).map(|_| open(scratch.path())).collect();
        join_all(disks.iter().map(|disk| count_up(disk, 4096, 25))).await;
        assert_eq!(counted(&disks[0], 4096).await, 100);
    });
}

#[test]
fn four_processes_that_race_lose_no_update() {
    let name = "disk::uring::tests::four_processes_that_race_lose_no_update";
    if let Some(path) = child_argument() {
        return block_on(async {
            let disk = open(Path::new(&path));
            join_all([4096, 8192].map(|at| count_up(&disk, at, 40))).await;
        });
    }
    let scratch = Scratch::image("processes", SIZE);
    let path = scratch.path().to_str().unwrap();
    let children: Vec<_> = (0..4).map(|_| spawn_child(name, path)).collect();
    for child in children {
        assert!(child.wait_with_output().unwrap().status.success());
    }
    let disk = open(scratch.path());
    assert_eq!(block_on(counted(&disk, 4096)), 160);
    assert_eq!(block_on(counted(&disk, 8192)), 160);
}

#[test]
fn block_devices_of_both_block_sizes_work_like_images() {
    for logical_block in [512, 4096] {
        let scratch = Scratch::image("device", SIZE);
        let Some(device) = LoopDevice::attach(scratch.path(), logical_block) else { return };
        block_on(async {
            let disks = [open(&device.node), open(&device.node)];
            assert_eq!(disks[0].capabilities(), Capabilities { logical_block, size: SIZE });
            let data = pattern(1, 1 << 20);
            disks[0].write(1 << 20, data.clone(), true, Instant::FAR).await.unwrap();
            assert!(disks[1].read(1 << 20, 1 << 20).await.unwrap() == data);
            join_all(disks.iter().map(|disk| count_up(disk, 4096, 20))).await;
            assert_eq!(counted(&disks[0], 4096).await, 40);
            disks[0].unmap(1 << 20, 1 << 20, Instant::FAR).await.unwrap();
            disks[0].flush().await.unwrap();
        });
    }
}

#[test]
fn a_dropped_disk_lets_its_marks_go() {
    let scratch = Scratch::image("dropped", SIZE);
    let watcher = scratch.open();
    let held = || ofd::held_elsewhere(&watcher, ofd::LIFE_BASE, 1).unwrap().is_some();
    block_on(async {
        let disk = open(scratch.path());
        assert!(ofd::try_lock(&*disk.source(), ofd::LIFE_BASE).unwrap());
        disk.flush().await.unwrap();
        assert!(held());
    });
    let began = boottime();
    while held() {
        assert!(boottime().since(began) < Duration::from_secs(10), "its threads live on");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A program is killed while hundreds of its writes are in flight. Once its life mark is free, none
/// of them may land any more: whoever replays its journal relies on that (R4, H10).
#[test]
fn a_life_mark_outlives_every_write_in_flight() {
    let name = "disk::uring::tests::a_life_mark_outlives_every_write_in_flight";
    if let Some(path) = child_argument() {
        return block_on(write_for_ever(&path));
    }
    let scratch = Scratch::image("life", SIZE);
    let brake = Brake::new(scratch.path(), 32 << 20);
    let mut child = spawn_child(name, scratch.path().to_str().unwrap());
    hear(&mut child, "writing");
    if let Some(brake) = &brake {
        brake.apply(child.id());
    }
    std::thread::sleep(Duration::from_millis(300));
    let watcher = Source::open(scratch.path(), Access::ReadOnly).unwrap();
    let held = || ofd::held_elsewhere(&watcher, ofd::LIFE_BASE, 1).unwrap().is_some();
    assert!(held());
    child.kill().unwrap();
    let killed = boottime();
    while held() {
        std::thread::sleep(Duration::from_micros(100));
    }
    eprintln!("the mark was free {:?} after the kill", boottime().since(killed));
    let first = watcher.read_now(0, SIZE as usize).unwrap();
    std::thread::sleep(Duration::from_millis(300));
    assert!(first == watcher.read_now(0, SIZE as usize).unwrap(), "a write landed afterwards");
    child.wait().unwrap();
}

/// Slows a process's writes down, so that many are in flight for a long time. Needs root and the
/// blkio controller of cgroup 1; without it the test still runs, but proves less.
struct Brake {
    group: PathBuf,
}

impl Brake {
    fn new(image: &Path, bytes_per_second: u64) -> Option<Brake> {
        let number = std::fs::metadata(image).unwrap().dev();
        let (major, minor) = (libc::major(number), libc::minor(number));
        let group = format!("/sys/fs/cgroup/blkio/lunfs-host-test-{}", std::process::id());
        let brake = Brake { group: group.into() };
        let limit = format!("{major}:{minor} {bytes_per_second}");
        let made = std::fs::create_dir(&brake.group)
            .and_then(|()| brake.set("blkio.throttle.write_bps_device", &limit));
        if let Err(e) = &made {
            eprintln!("skipped in part: writes cannot be slowed down here: {e}");
        }
        made.is_ok().then_some(brake)
    }

    fn set(&self, file: &str, value: &str) -> io::Result<()> {
        std::fs::OpenOptions::new()
            .write(true)
            .open(self.group.join(file))?
            .write_all(value.as_bytes())
    }

    fn apply(&self, pid: u32) {
        self.set("cgroup.procs", &pid.to_string()).unwrap();
    }
}

impl Drop for Brake {
    fn drop(&mut self) {
        if let Err(e) = std::fs::remove_dir(&self.group) {
            eprintln!("{} stays behind: {e}", self.group.display());
        }
    }
}

async fn write_for_ever(path: &str) {
    let disk = open(Path::new(path));
    assert!(ofd::try_lock(&*disk.source(), ofd::LIFE_BASE).unwrap());
    let one = |place: u64| {
        let disk = &disk;
        async move {
            for round in 0.. {
                let data = pattern(round, 256 << 10);
                disk.write(place * (256 << 10), data, false, Instant::FAR).await.unwrap();
                if place == 0 && round == 1 {
                    say("writing");
                }
            }
        }
    };
    join_all((0..SIZE / (256 << 10)).map(one)).await;
}
