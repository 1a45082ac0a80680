//! Operations on the bytes of a worker's own files.

use lunfs_core::{Fallocate, FileId, Seek, SetAttr};

use super::{Next, SIZE_MAX, Worker};
use crate::model::content::{BLOCK, fill};
use crate::model::file::Change;

const BLOCK_: u64 = BLOCK as u64;
/// Largest file with holes.
const SPARSE_MAX: u64 = 12 << 20;

impl Worker {
    pub(super) async fn change_data(&self) -> Next {
        let Some((_, number, id)) = self.pick_file() else {
            return self.change_names().await;
        };
        if self.world.model.with_file(number, |file| file.in_doubt) {
            return self.read_whole(number, id).await;
        }
        match self.chance.below(100) {
            0..35 => self.write(number, id).await,
            35..60 => self.read(number, id).await,
            60..75 => self.fsync(number, id).await,
            75..82 => self.truncate(number, id).await,
            82..92 => self.allocate(number, id).await,
            92..95 => self.seek(number, id).await,
            _ => self.read_whole(number, id).await,
        }
    }

    /// A range for a write; mostly whole blocks, seldom large.
    fn range(&self, number: u64) -> std::ops::Range<u64> {
        let size = self.world.model.size(number);
        let reach = (size + 64 * 1024).min(SIZE_MAX);
        let len = match self.chance.below(20) {
            0 => self.chance.between(1, 600 * 1024),
            1..8 => self.chance.between(1, 8 * BLOCK_),
            _ => self.chance.between(1, 8) * BLOCK_,
        };
        let mut at = if self.chance.percent(25) { size } else { self.chance.below(reach) };
        if self.chance.percent(70) {
            at = at / BLOCK_ * BLOCK_;
        }
        at..at + len
    }

    async fn write(&self, number: u64, id: FileId) -> Next {
        let range = self.range(number);
        let change = Change::Write(range.clone());
        self.bytes("write", number, &change, async |write| {
            let len = usize::try_from(range.end - range.start).unwrap_or(0);
            self.volume.write(id, range.start, fill(number, range.start, len, write)).await
        })
        .await
    }

    /// At the end, wherever that is: only this worker moves it.
    pub(super) async fn append(&self, number: u64, id: FileId) -> Next {
        // Not the model's newest size: an append in doubt may have moved the end or not.
        let look = self.world.model.look();
        let step = self.world.progress.begin(self.owner, "getattr");
        let end = match self.volume.getattr(id).await {
            Ok(attr) => attr.size,
            Err(error) => return self.trouble("getattr", &error),
        };
        drop(step);
        if !self.world.model.check_size(number, end, self.owner, look.from) {
            return Next::Go;
        }
        drop(look);
        if end >= SIZE_MAX {
            return self.truncate(number, id).await;
        }
        let len = usize::try_from(self.chance.between(1, 9_000)).unwrap_or(1);
        let change = Change::Write(end..end + len as u64);
        self.bytes("append", number, &change, async |write| {
            let at = self.volume.append(id, fill(number, end, len, write)).await?;
            self.expect("an append", "place", at, end);
            Ok(())
        })
        .await
    }

    /// Far from everything else in the file.
    pub(super) async fn write_sparse(&self, number: u64, id: FileId) -> Next {
        let at = self.chance.below(SPARSE_MAX / BLOCK_) * BLOCK_;
        let len = usize::try_from(self.chance.between(1, 16) * BLOCK_).unwrap_or(BLOCK);
        let change = Change::Write(at..at + len as u64);
        self.bytes("write", number, &change, async |write| {
            self.volume.write(id, at, fill(number, at, len, write)).await
        })
        .await
    }

    pub(super) async fn read(&self, number: u64, id: FileId) -> Next {
        let size = self.world.model.size(number);
        let at = self.chance.below(size + BLOCK_);
        let len = usize::try_from(self.chance.between(1, 64 * 1024)).unwrap_or(1);
        self.read_range(number, id, at, len).await
    }

    pub(super) async fn read_range(&self, number: u64, id: FileId, at: u64, len: usize) -> Next {
        let look = self.world.model.look();
        self.say(|| format!("worker {} reads {len} bytes at {at} of file {number}", self.index));
        let step = self.world.progress.begin(self.owner, "read");
        let result = self.volume.read(id, at, len).await;
        drop(step);
        match result {
            Ok(found) => {
                self.world.model.check_bytes(number, (at, len), &found, self.owner, look.from);
                self.done()
            }
            Err(error) => self.trouble("read", &error),
        }
    }

    /// Reads all of a file: afterwards there is no doubt about it.
    pub(super) async fn read_whole(&self, number: u64, id: FileId) -> Next {
        let look = self.world.model.look();
        let step = self.world.progress.begin(self.owner, "getattr");
        let attr = match self.volume.getattr(id).await {
            Ok(attr) => attr,
            Err(error) => return self.trouble("getattr", &error),
        };
        drop(step);
        if !self.world.model.check_size(number, attr.size, self.owner, look.from) {
            return Next::Go;
        }
        let whole = 64 * BLOCK;
        let (mut at, mut tail) = (0, Vec::new());
        while at < attr.size {
            let look = self.world.model.look();
            let step = self.world.progress.begin(self.owner, "read");
            let found = match self.volume.read(id, at, whole).await {
                Ok(found) => found,
                Err(error) => return self.trouble("read", &error),
            };
            drop(step);
            if !self.world.model.check_bytes(number, (at, whole), &found, self.owner, look.from) {
                return Next::Go;
            }
            tail = found[found.len() / BLOCK * BLOCK..].to_vec();
            at += whole as u64;
        }
        self.world.model.settle_file(number, attr.size, &tail, self.owner, look.from);
        self.done()
    }

    pub(super) async fn fsync(&self, number: u64, id: FileId) -> Next {
        let tick = self.world.model.tick();
        let _step = self.world.progress.begin(self.owner, "fsync");
        match self.volume.fsync(id).await {
            Ok(()) => {
                self.say(|| format!("worker {} did fsync of file {number}", self.index));
                self.world.model.harden_bytes(number, self.owner, tick);
                self.world.model.harden_mode(number, self.owner, tick);
                self.world.model.harden_names(self.index, number, self.owner);
                self.done()
            }
            Err(error) => self.trouble("fsync", &error),
        }
    }

    pub(super) async fn truncate(&self, number: u64, id: FileId) -> Next {
        let old = self.world.model.size(number);
        let size = match self.chance.below(4) {
            0 => 0,
            1 => (old + self.chance.below(128 * 1024)).min(SIZE_MAX),
            _ => self.chance.below(old + 1),
        };
        let set = SetAttr { size: Some(size), ..SetAttr::default() };
        self.bytes("truncate", number, &Change::Resize(size), async |_| {
            self.volume.setattr(id, set).await
        })
        .await
    }

    pub(super) async fn allocate(&self, number: u64, id: FileId) -> Next {
        let range = self.range(number);
        let (at, len) = (range.start, range.end - range.start);
        let size = self.world.model.size(number);
        let grows = size.max(range.end);
        let (mode, change) = match self.chance.below(4) {
            0 | 1 => (Fallocate::PunchHole, Change::Zero(range)),
            2 if range.end <= size => {
                (Fallocate::ZeroRange { keep_size: true }, Change::Zero(range))
            }
            2 => (Fallocate::Allocate { keep_size: true }, Change::Zero(at..at)),
            _ => (Fallocate::Allocate { keep_size: false }, Change::Resize(grows)),
        };
        self.bytes("fallocate", number, &change, async |_| {
            self.volume.fallocate(id, at, len, mode).await
        })
        .await
    }

    /// Data and holes: what is said to be a hole must read zero, and every answer lies in the file.
    async fn seek(&self, number: u64, id: FileId) -> Next {
        // Not the model's newest size: what a former program made of the file may be lost.
        let look = self.world.model.look();
        let step = self.world.progress.begin(self.owner, "seek");
        let size = match self.volume.getattr(id).await {
            Ok(attr) => attr.size,
            Err(error) => return self.trouble("getattr", &error),
        };
        if !self.world.model.check_size(number, size, self.owner, look.from) || size == 0 {
            return Next::Go;
        }
        let at = self.chance.below(size);
        let hole = match self.volume.seek(id, at, Seek::Hole).await {
            Ok(hole) => hole,
            Err(error) => return self.trouble("seek", &error),
        };
        drop(step);
        if hole < at || hole > size {
            let text = format!("a hole after {at} of file {number} with {size} bytes: {hole}");
            self.world.findings.add(self.owner, text);
        }
        self.done()
    }
}
