//! A disk in memory, and what else it takes to format one.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::future::{Future, ready};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use lunfs_format::{
    BLOCK, BlockNo, Pulse, RECORD, Sizes, SlotNo, Superblock, Timestamp, Timing, kind, kind_of,
};

use crate::env::{
    Answer, Capabilities, Clock, Compared, Disk, Env, Fence, FenceError, Instant, IoError, Life,
    Rng,
};
use crate::format::{FormatOptions, format_volume};

#[derive(Default)]
struct Medium {
    bytes: Vec<u8>,
    failing: BTreeSet<u64>,
    /// Blocks to put once the block in front was read.
    later: BTreeMap<u64, Vec<(BlockNo, Vec<u8>)>>,
}

/// A disk in memory.
#[derive(Clone, Default)]
pub struct Memory {
    medium: Rc<RefCell<Medium>>,
    logical_block: u32,
}

impl Memory {
    pub fn new(blocks: usize, logical_block: u32) -> Memory {
        let disk = Memory { medium: Rc::default(), logical_block };
        disk.medium.borrow_mut().bytes = vec![0; blocks * BLOCK];
        disk
    }

    pub fn block(&self, at: BlockNo) -> Vec<u8> {
        let start = usize::try_from(at.offset()).unwrap();
        self.medium.borrow().bytes[start..start + BLOCK].to_vec()
    }

    /// Puts bytes at the start of a block.
    pub fn put(&self, at: BlockNo, bytes: &[u8]) {
        self.put_at(at.offset(), bytes);
    }

    pub fn put_at(&self, offset: u64, bytes: &[u8]) {
        let start = usize::try_from(offset).unwrap();
        self.medium.borrow_mut().bytes[start..start + bytes.len()].copy_from_slice(bytes);
    }

    /// Every read of a block fails from now on.
    pub fn fail(&self, at: BlockNo) {
        self.medium.borrow_mut().failing.insert(at.0);
    }

    /// Puts bytes once block `after` was read.
    pub fn put_later(&self, after: BlockNo, at: BlockNo, bytes: &[u8]) {
        let mut medium = self.medium.borrow_mut();
        medium.later.entry(after.0).or_default().push((at, bytes.to_vec()));
    }

    fn read_now(&self, at: u64, len: usize) -> Result<Vec<u8>, IoError> {
        let (answer, later) = {
            let mut medium = self.medium.borrow_mut();
            let blocks = at / BLOCK as u64..(at + len as u64).div_ceil(BLOCK as u64);
            if medium.failing.range(blocks.clone()).next().is_some() {
                return Err(IoError::Failed("medium error".into()));
            }
            let start = usize::try_from(at).unwrap();
            let answer = medium.bytes[start..start + len].to_vec();
            let due: Vec<u64> = medium.later.range(blocks).map(|(at, _)| *at).collect();
            let later: Vec<_> = due.iter().filter_map(|at| medium.later.remove(at)).collect();
            (answer, later)
        };
        for (at, bytes) in later.into_iter().flatten() {
            self.put(at, &bytes);
        }
        Ok(answer)
    }
}

impl Disk for Memory {
    fn capabilities(&self) -> Capabilities {
        let size = self.medium.borrow().bytes.len() as u64;
        Capabilities { logical_block: self.logical_block, size }
    }

    fn read(&self, at: u64, len: usize) -> Answer<Result<Vec<u8>, IoError>> {
        Box::pin(ready(self.read_now(at, len)))
    }

    fn write(&self, at: u64, data: Vec<u8>, _: bool, _: Instant) -> Answer<Result<(), IoError>> {
        self.put_at(at, &data);
        Box::pin(ready(Ok(())))
    }

    fn flush(&self) -> Answer<Result<(), IoError>> {
        Box::pin(ready(Ok(())))
    }

    fn compare_and_write(
        &self,
        _: u64,
        _: Vec<u8>,
        _: Vec<u8>,
        _: Instant,
    ) -> Answer<Result<Compared, IoError>> {
        unreachable!("a check changes nothing")
    }

    fn unmap(&self, _: u64, _: u64, _: Instant) -> Answer<Result<(), IoError>> {
        unreachable!("a check changes nothing")
    }
}

/// Nobody to fence, a clock that stands, and chance that counts.
struct Nothing(RefCell<u64>);

impl Fence for Nothing {
    fn enter(&self, _: SlotNo) -> Result<bool, FenceError> {
        Ok(true)
    }
    fn leave(&self, _: SlotNo) {}
    fn life(&self, _: SlotNo) -> Life {
        Life::Unknown
    }
    fn fence(&self, _: &Pulse) -> Answer<Result<(), FenceError>> {
        Box::pin(ready(Ok(())))
    }
    fn ended(&self, _: &Pulse) -> Answer<Result<(), FenceError>> {
        Box::pin(async { Ok(()) })
    }
    fn method(&self) -> &'static str {
        "none"
    }
}

impl Clock for Nothing {
    fn now(&self) -> Instant {
        Instant(0)
    }
    fn sleep_until(&self, _: Instant) -> Answer<()> {
        Box::pin(ready(()))
    }
    fn wall(&self) -> Timestamp {
        Timestamp { seconds: 1_700_000_000, nanos: 0 }
    }
}

impl Rng for Nothing {
    fn next(&self) -> u64 {
        let mut last = self.0.borrow_mut();
        *last += 1;
        last.wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }
}

/// An empty volume of four clusters.
pub fn formatted(logical_block: u32) -> (Memory, Superblock) {
    let start = if logical_block == 512 { 2048 } else { 9216 };
    let disk = Memory::new(start + 4 * 1024, logical_block);
    let nothing = Rc::new(Nothing(RefCell::new(0)));
    let env = Env {
        disk: Rc::new(disk.clone()),
        fence: nothing.clone(),
        clock: nothing.clone(),
        rng: nothing,
    };
    let options =
        FormatOptions { label: "sample".into(), timing: Timing::FAST, sizes: Sizes::default() };
    let superblock = block_on(format_volume(&env, &options)).expect("it is formatted");
    (disk, superblock)
}

/// Runs a future whose I/O never waits.
pub fn block_on<T>(future: impl Future<Output = T>) -> T {
    let mut future = std::pin::pin!(future);
    let mut context = Context::from_waker(Waker::noop());
    for _ in 0..1000 {
        if let Poll::Ready(value) = future.as_mut().poll(&mut context) {
            return value;
        }
    }
    panic!("it waits for something that never comes");
}

/// Makes the checksum of a record or block right again, so that damage reaches deeper.
pub fn seal(bytes: &mut [u8]) {
    let len = match kind_of(bytes) {
        Some(kind::PULSE | kind::DOORBELL | kind::LOCK) => RECORD,
        _ => BLOCK,
    };
    bytes[4..8].fill(0);
    let mut crc = u32::MAX;
    for byte in &bytes[..len] {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 };
        }
    }
    bytes[4..8].copy_from_slice(&(!crc).to_le_bytes());
}
