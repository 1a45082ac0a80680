//! Writing: grains go to own or reserved blocks first, then their map entries are pending.
//!
//! Invariants:
//! - R10: no block is named by an entry before its grains were written; the entry remembers which
//!   flush makes them durable.
//! - A grain is written whole. What of it lies beyond the old end of the file is zeroed first.
//! - A run that grows takes its valid grains along; the old one is given up with the same entry.

use std::rc::Rc;

use futures_util::future::join_all;
use lunfs_format::{BLOCK, BlockNo, Content, FileKind, MapEntry, Tree};

use super::{
    ENTRIES_MAX, FILE_BLOCK, GRAIN, INLINE_MAX, Part, SIZE_MAX, grains, mask_of, may_change, parts,
    to_usize,
};
use crate::allocate::{Purpose, Reservation};
use crate::disk::Stack;
use crate::error::{Error, Kind, Result};
use crate::inode::{Delta, Inode};
use crate::locks::WriteGuard;
use crate::types::FileId;
use crate::volume::Volume;

/// Grains to allocate for a file block that needs `need`: small first blocks grow by doubling.
fn run_len(index: u64, need: u64) -> u64 {
    if index > 0 || need > 32 { 64 } else { need.next_power_of_two() }
}

/// Grains up to the last valid one.
fn used(entry: &MapEntry) -> u64 {
    64 - u64::from(entry.mask.leading_zeros())
}

/// One write of whole grains, and what it changes in the map.
struct Job {
    index: u64,
    at: BlockNo,
    bytes: Vec<u8>,
    entry: MapEntry,
    reserved: Option<Reservation>,
    replaced: Option<(BlockNo, u64)>,
    changed: bool,
}

fn install(
    inode: &Inode,
    job: Job,
    complete: u64,
    current: impl FnOnce() -> lunfs_format::Descriptor,
) {
    if !job.changed {
        return;
    }
    inode.change(current, |p| {
        let delta = match p.deltas.remove(&job.index) {
            Some(old) if job.reserved.is_some() => {
                let mut replaced = old.replaced;
                // A replaced run that was never in a transaction goes with its reservation.
                if old.reserved.is_none() {
                    replaced.extend(job.replaced);
                }
                Delta { entry: job.entry, reserved: job.reserved, replaced, complete }
            }
            Some(old) => Delta { entry: job.entry, complete, ..old },
            None => Delta {
                entry: job.entry,
                reserved: job.reserved,
                replaced: job.replaced.into_iter().collect(),
                complete,
            },
        };
        p.deltas.insert(job.index, delta);
    });
}

impl Volume {
    /// Writes all of `data`. It is durable after `fsync`.
    pub async fn write(&self, file: FileId, at: u64, data: Vec<u8>) -> Result<()> {
        self.writable()?;
        let end = at.checked_add(data.len() as u64).filter(|end| *end <= SIZE_MAX);
        end.ok_or_else(|| Error::new(Kind::TooLong, "beyond the largest size of a file"))?;
        self.with_space(async || {
            let held = self.hold_contents(file).await?;
            self.write_guarded(&held.guard, held.id, at, &data).await
        })
        .await
    }

    /// Writes at the end of the file, wherever that is when the lock is ours; returns where it was.
    pub async fn append(&self, file: FileId, data: Vec<u8>) -> Result<u64> {
        self.writable()?;
        self.with_space(async || {
            let held = self.hold_contents(file).await?;
            let at = self.current(held.id).size;
            if at.saturating_add(data.len() as u64) > SIZE_MAX {
                return Err(Error::new(Kind::TooLong, "beyond the largest size of a file"));
            }
            self.write_guarded(&held.guard, held.id, at, &data).await?;
            Ok(at)
        })
        .await
    }

    async fn write_guarded(
        &self,
        guard: &WriteGuard,
        id: FileId,
        at: u64,
        data: &[u8],
    ) -> Result<()> {
        if data.is_empty() {
            return Ok(());
        }
        let inode = self.inode(id);
        let body = self.current(id);
        may_change(id, &body)?;
        let may_be_inline = body.kind == FileKind::File;
        // Before, not behind: once this write has entries in the map, the size that covers them
        // must be there too, or a crash leaves valid grains beyond the end of the file.
        if inode.pending.borrow().as_ref().is_some_and(|p| p.deltas.len() > ENTRIES_MAX) {
            self.write_back(guard).await?;
        }
        let end = at + data.len() as u64;
        match &body.content {
            Content::Empty | Content::Bytes(_)
                if may_be_inline && end <= INLINE_MAX && body.size <= INLINE_MAX =>
            {
                self.write_inline(&inode, id, at, data);
            }
            Content::Empty | Content::Bytes(_) => {
                self.move_out(&inode, id).await?;
                self.write_extending(&inode, id, at, data).await?;
            }
            Content::Tree(_) => self.write_extending(&inode, id, at, data).await?,
        }
        let now = self.wall();
        inode.change(
            || self.cached_descriptor(id.addr),
            |p| {
                p.body.size = p.body.size.max(end);
                (p.body.mtime, p.body.ctime) = (now, now);
            },
        );
        self.note_dirty();
        Ok(())
    }

    fn write_inline(&self, inode: &Inode, id: FileId, at: u64, data: &[u8]) {
        inode.change(
            || self.cached_descriptor(id.addr),
            |p| {
                let mut bytes = match std::mem::replace(&mut p.body.content, Content::Empty) {
                    Content::Bytes(bytes) => bytes,
                    Content::Empty | Content::Tree(_) => Vec::new(),
                };
                let (from, to) = (to_usize(at), to_usize(at) + data.len());
                if bytes.len() < to {
                    bytes.resize(to, 0);
                }
                bytes[from..to].copy_from_slice(data);
                p.body.content = Content::Bytes(bytes);
            },
        );
    }

    /// Moves bytes out of the descriptor into blocks.
    pub(super) async fn move_out(&self, inode: &Rc<Inode>, id: FileId) -> Result<()> {
        let body = self.current(id);
        let bytes = match body.content {
            Content::Bytes(bytes) => bytes,
            Content::Empty | Content::Tree(_) => Vec::new(),
        };
        let size = body.size;
        if !bytes.is_empty() {
            self.write_mapped(inode, id, size, 0, &bytes).await?;
        }
        inode.change(
            || self.cached_descriptor(id.addr),
            |p| p.body.content = Content::Tree(Tree::Empty),
        );
        Ok(())
    }

    /// Writes to blocks, zeroing what lies between the old end and `at` in the old end's grain.
    async fn write_extending(
        &self,
        inode: &Rc<Inode>,
        id: FileId,
        at: u64,
        data: &[u8],
    ) -> Result<()> {
        let size = self.current(id).size;
        if at > size {
            self.zero_tail(inode, id, size, at).await?;
        }
        self.write_mapped(inode, id, size, at, data).await
    }

    /// Zeroes from the old end to the end of its grain, or to `to` if that is nearer.
    pub(super) async fn zero_tail(
        &self,
        inode: &Rc<Inode>,
        id: FileId,
        size: u64,
        to: u64,
    ) -> Result<()> {
        let end = to.min(size.next_multiple_of(GRAIN));
        // What is below shows up to `visible` at most, which no end of this layer was below.
        if end <= size {
            return Ok(());
        }
        let entry = self.current_entry(id, size / FILE_BLOCK).await?;
        let grain = size % FILE_BLOCK / GRAIN;
        if entry.block.is_none() || entry.mask >> grain & 1 == 0 {
            return Ok(());
        }
        let zeroes = vec![0; to_usize(end - size)];
        self.write_mapped(inode, id, size, size, &zeroes).await
    }

    pub(super) async fn write_mapped(
        &self,
        inode: &Rc<Inode>,
        id: FileId,
        size: u64,
        at: u64,
        data: &[u8],
    ) -> Result<()> {
        let stack = self.stack(id).await?;
        let mut jobs = Vec::new();
        for part in parts(at, data.len() as u64) {
            let from = to_usize(part.index * FILE_BLOCK + part.from - at);
            let bytes = &data[from..from + to_usize(part.to - part.from)];
            jobs.push(self.plan_part(&stack, (id, size), part, bytes).await?);
        }
        let writes = jobs.iter().map(|job| self.io.write(job.at, job.bytes.clone(), false));
        for answer in join_all(writes).await {
            answer?;
        }
        let complete = self.io.flushes_begun();
        inode.written.set(Some(complete));
        for job in jobs {
            install(inode, job, complete, || self.cached_descriptor(id.addr));
        }
        Ok(())
    }

    /// Decides where a part goes and puts together the whole grains to write.
    async fn plan_part(
        &self,
        stack: &Stack,
        (id, size): (FileId, u64),
        part: Part,
        bytes: &[u8],
    ) -> Result<Job> {
        let old = self.current_entry(id, part.index).await?;
        let touched = grains(part.from, part.to);
        let fits = old.block.is_some() && u64::from(old.grains) >= touched.end;
        // A grown run takes the valid grains of the old one along.
        let grown = old.block.is_some() && !fits;
        let (first, last) = if grown {
            (touched.start.min(u64::from(old.mask.trailing_zeros())), touched.end.max(used(&old)))
        } else {
            (touched.start, touched.end)
        };
        let mut buffer = vec![0; to_usize((last - first) * GRAIN)];
        let keep = (first..last).filter(|g| {
            let whole = g * GRAIN >= part.from && (g + 1) * GRAIN <= part.to;
            old.mask >> g & 1 == 1 && !whole
        });
        self.read_grains(&old, keep.collect(), first, &mut buffer).await?;
        self.copy_up(stack, &old, &part, (first, &mut buffer)).await?;
        let block_start = part.index * FILE_BLOCK;
        // What lies beyond the end of the file is garbage and must not come back to life.
        let end = size.saturating_sub(block_start + first * GRAIN);
        if end < buffer.len() as u64 {
            buffer[to_usize(end)..].fill(0);
        }
        let from = to_usize(part.from - first * GRAIN);
        buffer[from..from + bytes.len()].copy_from_slice(bytes);
        let mask = old.mask | mask_of(touched.clone());
        let (start, len, reserved) = if fits {
            (old.block.expect("it fits"), u64::from(old.grains), None)
        } else {
            let len = run_len(part.index, touched.end.max(if grown { used(&old) } else { 0 }));
            let reserved =
                self.reserve(u32::try_from(len).expect("at most 64"), Purpose::New).await?;
            (reserved.start, len, Some(reserved))
        };
        let entry = MapEntry {
            block: Some(start),
            zero: old.zero,
            grains: u8::try_from(len).expect("at most 64"),
            mask,
        };
        let replaced = old.block.filter(|_| grown).map(|b| (b, u64::from(old.grains)));
        let changed = entry != old;
        let at = start.plus(first);
        Ok(Job { index: part.index, at, bytes: buffer, entry, reserved, replaced, changed })
    }

    /// Gives a file block a run of all its grains in place of a shorter one.
    pub(super) async fn lengthen(
        &self,
        inode: &Rc<Inode>,
        id: FileId,
        index: u64,
        old: &MapEntry,
    ) -> Result<()> {
        let reserved = self.reserve(64, Purpose::New).await?;
        let at = reserved.start;
        let valid: Vec<u64> = (0..used(old)).filter(|g| old.mask >> g & 1 == 1).collect();
        let mut bytes = vec![0; to_usize(used(old) * GRAIN)];
        self.read_grains(old, valid, 0, &mut bytes).await?;
        if !bytes.is_empty() {
            self.io.write(at, bytes, false).await?;
        }
        let complete = self.io.flushes_begun();
        inode.written.set(Some(complete));
        let entry = MapEntry { block: Some(at), grains: 64, ..*old };
        let replaced = old.block.map(|b| (b, u64::from(old.grains)));
        let reserved = Some(reserved);
        let job = Job { index, at, bytes: Vec::new(), entry, reserved, replaced, changed: true };
        install(inode, job, complete, || self.cached_descriptor(id.addr));
        Ok(())
    }

    /// Puts what shows from below into grains that are written in part: they become this layer's
    /// own. `buffer` begins with grain `first`.
    async fn copy_up(
        &self,
        stack: &Stack,
        old: &MapEntry,
        part: &Part,
        (first, buffer): (u64, &mut [u8]),
    ) -> Result<()> {
        let is_part = |g: &u64| g * GRAIN < part.from || (g + 1) * GRAIN > part.to;
        let missing: Vec<u64> =
            grains(part.from, part.to).filter(|g| old.mask >> g & 1 == 0).filter(is_part).collect();
        if missing.is_empty() || old.zero || stack.is_empty() {
            return Ok(());
        }
        let below = self.below(stack, part.index).await?;
        for grain in missing {
            let wanted = grain..grain + 1;
            for patch in below.iter().flat_map(|patch| patch.without(0, &wanted)) {
                let data = self.io.read(patch.block, 1).await?;
                let whole =
                    Part { index: part.index, from: grain * GRAIN, to: (grain + 1) * GRAIN };
                let (from, to) = patch.bytes_in(&whole);
                let n = to_usize(to.saturating_sub(from));
                let at = to_usize((grain - first) * GRAIN);
                buffer[at..at + n].copy_from_slice(&data[..n]);
            }
        }
        Ok(())
    }

    async fn read_grains(
        &self,
        entry: &MapEntry,
        wanted: Vec<u64>,
        first: u64,
        buffer: &mut [u8],
    ) -> Result<()> {
        let Some(start) = entry.block else { return Ok(()) };
        let reads = wanted.iter().map(|g| self.io.read(start.plus(*g), 1));
        for (data, grain) in join_all(reads).await.into_iter().zip(&wanted) {
            let at = to_usize((grain - first) * GRAIN);
            buffer[at..at + BLOCK].copy_from_slice(&data?);
        }
        Ok(())
    }
}
