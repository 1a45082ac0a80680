//! A disk in memory that shares what it holds with its past, and counts what is asked of it.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;

use lunfs_core::env::{Answer, Capabilities, Clock, Compared, Disk, Instant, IoError};
use lunfs_doors::Time;
use lunfs_format::{BLOCK, Block, BlockNo};

/// Requests of one story.
const REQUESTS_MAX: u64 = 200_000;
/// Bytes moved by one story: the largest is a full check, and it reads what is in use twice.
const BYTES_MAX: u64 = 2 << 30;
/// Bytes of one request.
const REQUEST_MAX: usize = 4 << 20;
const SECTOR: u64 = 512;

/// What a disk holds. Copies share their blocks until one of them changes.
#[derive(Clone)]
pub struct Image(Vec<Rc<Block>>);

impl Image {
    /// All zeroes.
    pub fn blank(blocks: usize) -> Image {
        // One block for all: copies are made when they change.
        let zeroes = Rc::new([0; BLOCK]);
        Image((0..blocks).map(|_| zeroes.clone()).collect())
    }

    pub fn blocks(&self) -> u64 {
        self.0.len() as u64
    }

    fn index(at: BlockNo) -> usize {
        usize::try_from(at.0).expect("blocks of a small disk")
    }

    pub fn block(&self, at: BlockNo) -> &Block {
        &self.0[Image::index(at)]
    }

    pub fn block_mut(&mut self, at: BlockNo) -> &mut Block {
        Rc::make_mut(&mut self.0[Image::index(at)])
    }

    /// Makes a block what it is in another image.
    pub fn take_from(&mut self, other: &Image, at: BlockNo) {
        self.0[Image::index(at)] = other.0[Image::index(at)].clone();
    }

    /// Is this block the same in both? (Blocks that were never written share their zeroes.)
    pub fn is_shared(&self, other: &Image, at: BlockNo) -> bool {
        Rc::ptr_eq(&self.0[Image::index(at)], &other.0[Image::index(at)])
    }

    fn get(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(len);
        let mut next = usize::try_from(at).expect("a small disk");
        let end = next + len;
        while next < end {
            let inside = next % BLOCK;
            let part = (BLOCK - inside).min(end - next);
            bytes.extend_from_slice(&self.0[next / BLOCK][inside..inside + part]);
            next += part;
        }
        bytes
    }

    fn put(&mut self, at: u64, data: &[u8]) {
        let mut next = usize::try_from(at).expect("a small disk");
        let mut rest = data;
        while !rest.is_empty() {
            let inside = next % BLOCK;
            let (part, behind) = rest.split_at((BLOCK - inside).min(rest.len()));
            let block = Rc::make_mut(&mut self.0[next / BLOCK]);
            block[inside..inside + part.len()].copy_from_slice(part);
            (next, rest) = (next + part.len(), behind);
        }
    }
}

/// A disk that holds an image.
pub struct Medium {
    image: Rc<RefCell<Image>>,
    time: Time,
    size: u64,
    requests: Cell<u64>,
    bytes: Cell<u64>,
    /// Blocks read since somebody began to listen.
    heard: RefCell<Option<BTreeSet<BlockNo>>>,
}

impl Medium {
    pub fn new(image: Image, time: Time) -> Medium {
        let size = image.blocks() * BLOCK as u64;
        Medium {
            image: Rc::new(RefCell::new(image)),
            time,
            size,
            requests: Cell::new(0),
            bytes: Cell::new(0),
            heard: RefCell::new(None),
        }
    }

    /// What the disk holds now.
    pub fn image(&self) -> Image {
        self.image.borrow().clone()
    }

    /// Looks at what the disk holds now.
    pub fn with<T>(&self, look: impl FnOnce(&Image) -> T) -> T {
        look(&self.image.borrow())
    }

    /// Begins to note which blocks are read.
    pub fn listen(&self) {
        *self.heard.borrow_mut() = Some(BTreeSet::new());
    }

    /// The blocks that were read since.
    pub fn heard(&self) -> BTreeSet<BlockNo> {
        self.heard.borrow_mut().take().unwrap_or_default()
    }

    fn count(&self, at: u64, len: usize) {
        self.requests.set(self.requests.get() + 1);
        self.bytes.set(self.bytes.get() + len as u64);
        assert!(self.requests.get() < REQUESTS_MAX, "endless: {REQUESTS_MAX} requests");
        assert!(self.bytes.get() < BYTES_MAX, "endless: {BYTES_MAX} bytes moved");
        assert!(len <= REQUEST_MAX, "a request of {len} bytes at {at}");
    }

    fn is_inside(&self, at: u64, len: usize) -> bool {
        let end = at.checked_add(len as u64);
        at.is_multiple_of(SECTOR) && end.is_some_and(|end| end <= self.size)
    }

    /// Nothing that was read from a disk may lead a host to write outside of it.
    fn require_inside(&self, at: u64, len: usize) {
        assert!(self.is_inside(at, len), "a write of {len} bytes at {at}, outside of the volume");
    }

    fn then<T: 'static>(
        &self,
        micros: u64,
        answer: impl FnOnce(&mut Image) -> T + 'static,
    ) -> Answer<Result<T, IoError>> {
        let (image, wait) = (self.image.clone(), self.time.sleep(Duration::from_micros(micros)));
        Box::pin(async move {
            wait.await;
            Ok(answer(&mut image.borrow_mut()))
        })
    }
}

impl Disk for Medium {
    fn capabilities(&self) -> Capabilities {
        Capabilities { logical_block: 512, size: self.size }
    }

    fn read(&self, at: u64, len: usize) -> Answer<Result<Vec<u8>, IoError>> {
        self.count(at, len);
        if !self.is_inside(at, len) {
            let why = IoError::Failed(format!("{len} bytes at {at} are behind the end"));
            return Box::pin(std::future::ready(Err(why)));
        }
        if let Some(heard) = self.heard.borrow_mut().as_mut() {
            let blocks = at / BLOCK as u64..(at + len as u64).div_ceil(BLOCK as u64);
            heard.extend(blocks.map(BlockNo));
        }
        self.then(20, move |image| image.get(at, len))
    }

    fn write(&self, at: u64, data: Vec<u8>, _: bool, _: Instant) -> Answer<Result<(), IoError>> {
        self.count(at, data.len());
        self.require_inside(at, data.len());
        self.then(30, move |image| image.put(at, &data))
    }

    fn flush(&self) -> Answer<Result<(), IoError>> {
        self.count(0, 0);
        self.then(50, |_| ())
    }

    fn compare_and_write(
        &self,
        at: u64,
        expect: Vec<u8>,
        new: Vec<u8>,
        _: Instant,
    ) -> Answer<Result<Compared, IoError>> {
        self.count(at, new.len());
        self.require_inside(at, new.len());
        self.then(30, move |image| {
            if image.get(at, expect.len()) != expect {
                return Compared::Miscompare;
            }
            image.put(at, &new);
            Compared::Written
        })
    }

    fn unmap(&self, at: u64, len: u64, _: Instant) -> Answer<Result<(), IoError>> {
        self.require_inside(at, usize::try_from(len).unwrap_or(usize::MAX));
        self.then(30, |_| ())
    }
}
