//! Contents of plain files: reading, writing, truncating, holes.
//!
//! Invariants:
//! - R10: data goes to reserved or own blocks first; the map that shows it follows in a later
//!   transaction (inode.rs).
//! - What lies beyond the end of a file is never trusted: whoever raises the size zeroes or
//!   overwrites it up to the end of its grain first.
//! - One writer of a file at a time on this host (the write guard), so a grain has one owner (Q8).

use std::rc::Rc;

use futures_util::future::join_all;
use lunfs_format::{BLOCK, BlockNo, Content, FileKind, MapEntry, Tree};

use crate::allocate::{Purpose, Reservation};
use crate::error::{Error, Kind, Result};
use crate::inode::{Delta, EMPTY_ENTRY, Inode};
use crate::locks::{Wish, WriteGuard};
use crate::tree::{self, NodeStore};
use crate::types::{Fallocate, FileId, Seek};
use crate::view::View;
use crate::volume::Volume;

/// Bytes of a file that its descriptor keeps in itself.
const INLINE_MAX: u64 = 2048;
/// Bytes of a file block.
const FILE_BLOCK: u64 = 64 * GRAIN;
/// Bytes of a grain.
const GRAIN: u64 = BLOCK as u64;
/// Largest size of a file.
const SIZE_MAX: u64 = 1 << 56;
/// Map entries changed before they are written back.
const ENTRIES_MAX: usize = 40;

fn to_usize(n: u64) -> usize {
    usize::try_from(n).expect("lengths fit the address space")
}

/// Part of one file block.
#[derive(Clone, Copy, Debug)]
struct Part {
    index: u64,
    from: u64,
    to: u64,
}

/// The file blocks that a byte range touches.
fn parts(at: u64, len: u64) -> impl Iterator<Item = Part> {
    let end = at + len;
    (at / FILE_BLOCK..end.div_ceil(FILE_BLOCK)).map(move |index| {
        let start = index * FILE_BLOCK;
        Part { index, from: at.max(start) - start, to: end.min(start + FILE_BLOCK) - start }
    })
}

fn grains(from: u64, to: u64) -> std::ops::Range<u64> {
    from / GRAIN..to.div_ceil(GRAIN)
}

fn mask_of(grains: std::ops::Range<u64>) -> u64 {
    grains.fold(0, |mask, g| mask | 1 << g)
}

/// Grains to allocate for a file block that needs `need`: small first blocks grow by doubling.
fn run_len(index: u64, need: u64) -> u64 {
    if index > 0 || need > 32 { 64 } else { need.next_power_of_two() }
}

impl View<'_> {
    async fn entry(&self, volume: &Volume, map: &Tree, index: u64) -> Result<MapEntry> {
        if self.is_held()
            && let Some(entry) = volume.pending_entry(self.id, index)
        {
            return Ok(entry);
        }
        entry_in(self, map, index).await
    }
}

async fn entry_in(store: &impl NodeStore, map: &Tree, index: u64) -> Result<MapEntry> {
    match tree::get(store, map, &index.to_be_bytes()).await? {
        Some(value) => MapEntry::decode(&value)
            .map_err(|e| Error::new(Kind::Corrupt, format!("map entry {index} is corrupt: {e}"))),
        None => Ok(EMPTY_ENTRY),
    }
}

impl Volume {
    fn pending_entry(&self, id: FileId, index: u64) -> Option<MapEntry> {
        let inodes = self.inodes.borrow();
        let pending = inodes.get(&id)?.pending.borrow();
        Some(pending.as_ref()?.deltas.get(&index)?.entry)
    }

    /// Reads at most `len` bytes; fewer at the end of the file.
    pub async fn read(&self, file: FileId, at: u64, len: usize) -> Result<Vec<u8>> {
        self.reading(file, async |view| self.read_view(view, at, len).await).await
    }

    async fn read_view(&self, view: &View<'_>, at: u64, len: usize) -> Result<Vec<u8>> {
        let body = &view.body;
        match body.kind {
            FileKind::Directory => return Err(Kind::IsDirectory.into()),
            FileKind::File => {}
            _ => return Err(Kind::Invalid.into()),
        }
        let len = (len as u64).min(body.size.saturating_sub(at));
        let mut out = vec![0; to_usize(len)];
        match &body.content {
            Content::Empty => {}
            Content::Bytes(bytes) => {
                let from = to_usize(at.min(bytes.len() as u64));
                let to = to_usize((at + len).min(bytes.len() as u64));
                out[..to - from].copy_from_slice(&bytes[from..to]);
            }
            Content::Tree(map) => self.read_map(view, map, at, &mut out).await?,
        }
        Ok(out)
    }

    async fn read_map(&self, view: &View<'_>, map: &Tree, at: u64, out: &mut [u8]) -> Result<()> {
        let mut pieces = Vec::new();
        for part in parts(at, out.len() as u64) {
            let entry = view.entry(self, map, part.index).await?;
            let Some(start) = entry.block else { continue };
            let mut grain = part.from / GRAIN;
            let end = part.to.div_ceil(GRAIN);
            while grain < end {
                let valid = entry.mask >> grain & 1 == 1;
                let mut next = grain + 1;
                while next < end && (entry.mask >> next & 1 == 1) == valid {
                    next += 1;
                }
                if valid {
                    pieces.push((part, start.plus(grain), grain, next));
                }
                grain = next;
            }
        }
        let reads = pieces.iter().map(|(_, b, g, next)| self.io.read(*b, to_usize(next - g)));
        for (data, (part, _, grain, next)) in join_all(reads).await.into_iter().zip(&pieces) {
            let data = data?;
            let from = part.from.max(grain * GRAIN);
            let to = part.to.min(next * GRAIN);
            let dst = to_usize(part.index * FILE_BLOCK + from - at);
            let src = to_usize(from - grain * GRAIN);
            let n = to_usize(to - from);
            out[dst..dst + n].copy_from_slice(&data[src..src + n]);
        }
        Ok(())
    }

    /// Writes all of `data`. It is durable after `fsync`.
    pub async fn write(&self, file: FileId, at: u64, data: Vec<u8>) -> Result<()> {
        self.writable()?;
        let end = at.checked_add(data.len() as u64).filter(|end| *end <= SIZE_MAX);
        end.ok_or_else(|| Error::new(Kind::TooLong, "beyond the largest size of a file"))?;
        self.with_space(async || {
            let guard = self.hold(Wish::from(file)).await?;
            self.write_guarded(&guard, file, at, &data).await
        })
        .await
    }

    /// Writes at the end of the file, wherever that is when the lock is ours; returns where it was.
    pub async fn append(&self, file: FileId, data: Vec<u8>) -> Result<u64> {
        self.writable()?;
        self.with_space(async || {
            let guard = self.hold(Wish::from(file)).await?;
            let at = self.current(file).size;
            if at.saturating_add(data.len() as u64) > SIZE_MAX {
                return Err(Error::new(Kind::TooLong, "beyond the largest size of a file"));
            }
            self.write_guarded(&guard, file, at, &data).await?;
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
        if body.kind != FileKind::File {
            return Err(Kind::Invalid.into());
        }
        let end = at + data.len() as u64;
        match &body.content {
            Content::Empty | Content::Bytes(_) if end <= INLINE_MAX && body.size <= INLINE_MAX => {
                self.write_inline(&inode, id, at, data);
            }
            Content::Empty | Content::Bytes(_) => {
                self.move_out(guard, &inode, id).await?;
                self.write_extending(guard, &inode, id, at, data).await?;
            }
            Content::Tree(_) => self.write_extending(guard, &inode, id, at, data).await?,
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
    async fn move_out(&self, guard: &WriteGuard, inode: &Rc<Inode>, id: FileId) -> Result<()> {
        let body = self.current(id);
        let bytes = match body.content {
            Content::Bytes(bytes) => bytes,
            Content::Empty | Content::Tree(_) => Vec::new(),
        };
        let size = body.size;
        if !bytes.is_empty() {
            self.write_mapped(guard, inode, id, size, 0, &bytes).await?;
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
        guard: &WriteGuard,
        inode: &Rc<Inode>,
        id: FileId,
        at: u64,
        data: &[u8],
    ) -> Result<()> {
        let size = self.current(id).size;
        if at > size {
            self.zero_tail(guard, inode, id, size, at).await?;
        }
        self.write_mapped(guard, inode, id, size, at, data).await
    }

    /// Zeroes from the old end to the end of its grain, or to `to` if that is nearer.
    async fn zero_tail(
        &self,
        guard: &WriteGuard,
        inode: &Rc<Inode>,
        id: FileId,
        size: u64,
        to: u64,
    ) -> Result<()> {
        let end = to.min(size.next_multiple_of(GRAIN));
        if end <= size {
            return Ok(());
        }
        let entry = self.current_entry(id, size / FILE_BLOCK).await?;
        let grain = size % FILE_BLOCK / GRAIN;
        if entry.block.is_none() || entry.mask >> grain & 1 == 0 {
            return Ok(());
        }
        let zeroes = vec![0; to_usize(end - size)];
        self.write_mapped(guard, inode, id, size, size, &zeroes).await
    }

    /// The map entry with pending changes, of a file whose guard the caller has.
    async fn current_entry(&self, id: FileId, index: u64) -> Result<MapEntry> {
        if let Some(entry) = self.pending_entry(id, index) {
            return Ok(entry);
        }
        match self.current(id).content {
            Content::Tree(map) => entry_in(&Held { volume: self, id }, &map, index).await,
            Content::Empty | Content::Bytes(_) => Ok(EMPTY_ENTRY),
        }
    }

    async fn write_mapped(
        &self,
        guard: &WriteGuard,
        inode: &Rc<Inode>,
        id: FileId,
        size: u64,
        at: u64,
        data: &[u8],
    ) -> Result<()> {
        let mut jobs = Vec::new();
        for part in parts(at, data.len() as u64) {
            let from = to_usize(part.index * FILE_BLOCK + part.from - at);
            let bytes = &data[from..from + to_usize(part.to - part.from)];
            jobs.push(self.plan_part(id, size, part, bytes).await?);
        }
        let writes = jobs.iter().map(|job| self.io.write(job.at, job.bytes.clone(), false));
        for answer in join_all(writes).await {
            answer?;
        }
        let complete = self.flushes_begun.get();
        inode.written.set(Some(complete));
        for job in jobs {
            install(inode, job, complete, || self.cached_descriptor(id.addr));
        }
        let deltas = inode.pending.borrow().as_ref().map_or(0, |p| p.deltas.len());
        if deltas > ENTRIES_MAX {
            self.write_back(guard).await?;
        }
        Ok(())
    }

    /// Decides where a part goes and puts together the whole grains to write.
    async fn plan_part(&self, id: FileId, size: u64, part: Part, bytes: &[u8]) -> Result<Job> {
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
                self.reserve(u32::try_from(len).expect("at most 64"), Purpose::Data).await?;
            (reserved.start, len, Some(reserved))
        };
        let entry = MapEntry {
            block: Some(start),
            zero: false,
            grains: u8::try_from(len).expect("at most 64"),
            mask,
        };
        let replaced = old.block.filter(|_| grown).map(|b| (b, u64::from(old.grains)));
        let changed = entry != old;
        let at = start.plus(first);
        Ok(Job { index: part.index, at, bytes: buffer, entry, reserved, replaced, changed })
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

    /// Sets the size of a file whose guard the caller has.
    pub(crate) async fn truncate(&self, guard: &WriteGuard, id: FileId, size: u64) -> Result<()> {
        if size > SIZE_MAX {
            return Err(Error::new(Kind::TooLong, "beyond the largest size of a file"));
        }
        let inode = self.inode(id);
        let body = self.current(id);
        match body.kind {
            FileKind::File => {}
            FileKind::Directory => return Err(Kind::IsDirectory.into()),
            _ => return Err(Kind::Invalid.into()),
        }
        if size > body.size {
            if matches!(body.content, Content::Tree(_)) {
                self.zero_tail(guard, &inode, id, body.size, size).await?;
            }
        } else if let Content::Tree(_) = body.content {
            self.cut(guard, &inode, id, size).await?;
        }
        let now = self.wall();
        inode.change(
            || self.cached_descriptor(id.addr),
            |p| {
                if let Content::Bytes(bytes) = &mut p.body.content {
                    bytes.truncate(to_usize(size.min(bytes.len() as u64)));
                }
                p.body.size = size;
                (p.body.mtime, p.body.ctime) = (now, now);
            },
        );
        self.note_dirty();
        Ok(())
    }

    /// Takes everything above `size` out of the map, from the end, a bounded number of entries in
    /// each transaction: a crash leaves a size in between, never a hole in what remains.
    async fn cut(
        &self,
        guard: &WriteGuard,
        inode: &Rc<Inode>,
        id: FileId,
        size: u64,
    ) -> Result<()> {
        self.write_back(guard).await?;
        let keep = size.div_ceil(FILE_BLOCK);
        loop {
            let entries = self.entries_from_end(id, keep).await?;
            let Some((lowest, _)) = entries.last() else { break };
            let lowest = *lowest;
            for (index, old) in entries {
                self.drop_entry(inode, id, index, &old);
            }
            inode.change(
                || self.cached_descriptor(id.addr),
                |p| p.body.size = p.body.size.min(lowest * FILE_BLOCK).max(size),
            );
            self.write_back(guard).await?;
        }
        if !size.is_multiple_of(FILE_BLOCK) {
            let index = size / FILE_BLOCK;
            let old = self.current_entry(id, index).await?;
            self.shorten(inode, id, index, &old, (size % FILE_BLOCK).div_ceil(GRAIN));
        }
        Ok(())
    }

    /// At most a transaction's worth of entries at or above `from`, highest first.
    async fn entries_from_end(&self, id: FileId, from: u64) -> Result<Vec<(u64, MapEntry)>> {
        let Content::Tree(map) = self.current(id).content else { return Ok(Vec::new()) };
        let store = Held { volume: self, id };
        let mut found = Vec::new();
        let mut below = None;
        while found.len() < ENTRIES_MAX {
            let key = below.map(u64::to_be_bytes);
            let last = tree::last(&store, &map, key.as_ref().map(<[u8; 8]>::as_slice)).await?;
            let Some((key, value)) = last else { break };
            let index = index_of(&key)?;
            if index < from {
                break;
            }
            let entry = MapEntry::decode(&value)
                .map_err(|e| Error::new(Kind::Corrupt, format!("map entry {index}: {e}")))?;
            found.push((index, entry));
            match index.checked_sub(1) {
                Some(next) => below = Some(next),
                None => break,
            }
        }
        Ok(found)
    }

    fn drop_entry(&self, inode: &Inode, id: FileId, index: u64, old: &MapEntry) {
        self.change_entry(inode, id, index, EMPTY_ENTRY, old.block.map(|b| (b, old.grains)));
    }

    /// Keeps the first `keep` grains of a file block.
    fn shorten(&self, inode: &Inode, id: FileId, index: u64, old: &MapEntry, keep: u64) {
        let Some(start) = old.block else { return };
        let len = u64::from(old.grains);
        let mask = if keep < 64 { old.mask & ((1 << keep) - 1) } else { old.mask };
        if keep >= len || mask == 0 {
            if mask == 0 {
                self.drop_entry(inode, id, index, old);
            }
            return;
        }
        let entry = MapEntry { grains: u8::try_from(keep).expect("below 64"), mask, ..*old };
        let rest = u8::try_from(len - keep).expect("below 64");
        self.change_entry(inode, id, index, entry, Some((start.plus(keep), rest)));
    }

    /// Puts a changed entry among the pending ones, giving up `run`. Reserved space in it that no
    /// transaction knows must have been written back before.
    fn change_entry(
        &self,
        inode: &Inode,
        id: FileId,
        index: u64,
        entry: MapEntry,
        run: Option<(BlockNo, u8)>,
    ) {
        let complete = self.flushes_begun.get();
        inode.change(
            || self.cached_descriptor(id.addr),
            |p| {
                let replaced = run.map(|(b, n)| (b, u64::from(n))).into_iter().collect();
                let old =
                    p.deltas.insert(index, Delta { entry, reserved: None, replaced, complete });
                assert!(old.is_none_or(|d| d.reserved.is_none() && d.replaced.is_empty()));
            },
        );
    }

    /// Allocates, punches or zeroes a range.
    pub async fn fallocate(&self, file: FileId, at: u64, len: u64, mode: Fallocate) -> Result<()> {
        self.writable()?;
        let end = at.checked_add(len).filter(|end| len > 0 && *end <= SIZE_MAX);
        let end = end.ok_or_else(|| Error::new(Kind::Invalid, "a range that no file has"))?;
        self.with_space(async || {
            let guard = self.hold(Wish::from(file)).await?;
            let inode = self.inode(file);
            let body = self.current(file);
            if body.kind != FileKind::File {
                return Err(Kind::Invalid.into());
            }
            if !matches!(body.content, Content::Tree(_)) {
                self.move_out(&guard, &inode, file).await?;
            }
            let grow = match mode {
                Fallocate::Allocate { keep_size } => {
                    self.allocate_range(&guard, &inode, file, at, len).await?;
                    !keep_size
                }
                Fallocate::PunchHole => {
                    self.punch(&guard, &inode, file, at, len).await?;
                    false
                }
                Fallocate::ZeroRange { keep_size } => {
                    self.punch(&guard, &inode, file, at, len).await?;
                    !keep_size
                }
            };
            if grow && end > body.size {
                self.zero_tail(&guard, &inode, file, body.size, end).await?;
            }
            let now = self.wall();
            inode.change(
                || self.cached_descriptor(file.addr),
                |p| {
                    if grow {
                        p.body.size = p.body.size.max(end);
                    }
                    (p.body.mtime, p.body.ctime) = (now, now);
                },
            );
            self.note_dirty();
            Ok(())
        })
        .await
    }

    async fn allocate_range(
        &self,
        guard: &WriteGuard,
        inode: &Rc<Inode>,
        id: FileId,
        at: u64,
        len: u64,
    ) -> Result<()> {
        for part in parts(at, len) {
            if self.current_entry(id, part.index).await?.block.is_some() {
                continue;
            }
            let reserved = self.reserve(64, Purpose::Data).await?;
            let entry = MapEntry { block: Some(reserved.start), zero: false, grains: 64, mask: 0 };
            let complete = self.flushes_begun.get();
            let count = inode.change(
                || self.cached_descriptor(id.addr),
                |p| {
                    // A delta that took this block out of the map gives up its old run still.
                    let replaced = p.deltas.remove(&part.index).map_or(Vec::new(), |d| d.replaced);
                    let delta = Delta { entry, reserved: Some(reserved), replaced, complete };
                    p.deltas.insert(part.index, delta);
                    p.deltas.len()
                },
            );
            if count > ENTRIES_MAX {
                self.write_back(guard).await?;
            }
        }
        Ok(())
    }

    async fn punch(
        &self,
        guard: &WriteGuard,
        inode: &Rc<Inode>,
        id: FileId,
        at: u64,
        len: u64,
    ) -> Result<()> {
        self.write_back(guard).await?;
        let size = self.current(id).size;
        let end = (at + len).min(size.next_multiple_of(FILE_BLOCK));
        if end <= at {
            return Ok(());
        }
        for part in parts(at, end - at) {
            let old = self.current_entry(id, part.index).await?;
            if old.block.is_none() {
                continue;
            }
            self.zero_edges(guard, inode, id, size, part, &old).await?;
            self.write_back(guard).await?;
            let old = self.current_entry(id, part.index).await?;
            let whole = part.from.div_ceil(GRAIN)..part.to / GRAIN;
            if whole.is_empty() {
                continue;
            }
            let mask = old.mask & !mask_of(whole);
            if mask == 0 {
                self.drop_entry(inode, id, part.index, &old);
            } else if mask != old.mask {
                let entry = MapEntry { mask, ..old };
                self.change_entry(inode, id, part.index, entry, None);
            }
        }
        self.write_back(guard).await
    }

    /// Zeroes the grains of a part that are only partly inside it.
    async fn zero_edges(
        &self,
        guard: &WriteGuard,
        inode: &Rc<Inode>,
        id: FileId,
        size: u64,
        part: Part,
        old: &MapEntry,
    ) -> Result<()> {
        let start = part.index * FILE_BLOCK;
        let first_end = part.to.min(part.from.next_multiple_of(GRAIN));
        let last_start = part.from.max(part.to / GRAIN * GRAIN);
        for (from, to) in [(part.from, first_end), (last_start, part.to)] {
            let valid = from < to && old.mask >> (from / GRAIN) & 1 == 1;
            if valid && to - from < GRAIN {
                let zeroes = vec![0; to_usize(to - from)];
                self.write_mapped(guard, inode, id, size, start + from, &zeroes).await?;
            }
        }
        Ok(())
    }

    /// The next data or hole at or after `at`.
    pub async fn seek(&self, file: FileId, at: u64, what: Seek) -> Result<u64> {
        self.write_back_id(file).await?;
        self.reading(file, async |view| {
            let size = view.body.size;
            if at >= size {
                return Err(Error::new(Kind::NotFound, "beyond the end of the file"));
            }
            let Content::Tree(map) = &view.body.content else {
                return Ok(if what == Seek::Data { at } else { size });
            };
            let found = seek_map(view, map, at, what, size).await?;
            match what {
                Seek::Data if found >= size => {
                    Err(Error::new(Kind::NotFound, "no data up to the end of the file"))
                }
                Seek::Data | Seek::Hole => Ok(found.min(size)),
            }
        })
        .await
    }

    /// Everything of the file that was acknowledged survives any crash from now on.
    pub async fn fsync(&self, file: FileId) -> Result<()> {
        let _operation = self.operation()?;
        self.write_back_id(file).await?;
        let written = self.inodes.borrow().get(&file).and_then(|i| i.written.get());
        if let Some(complete) = written {
            self.flush_data(complete).await?;
        }
        self.journal().commit(&self.io).await
    }
}

/// Where the next data or hole begins, by the map alone.
async fn seek_map(
    store: &impl NodeStore,
    map: &Tree,
    at: u64,
    what: Seek,
    size: u64,
) -> Result<u64> {
    use std::ops::Bound;
    let mut position = at;
    let mut next = (at / FILE_BLOCK).to_be_bytes().to_vec();
    let mut from = Bound::Included(next.as_slice());
    loop {
        let entries = tree::scan(store, map, from, 64).await?;
        if entries.is_empty() {
            return Ok(if what == Seek::Hole { position } else { size });
        }
        for (key, value) in &entries {
            let index = index_of(key)?;
            let start = index * FILE_BLOCK;
            if start > position {
                if what == Seek::Hole {
                    return Ok(position);
                }
                position = start;
            }
            let entry = MapEntry::decode(value)
                .map_err(|e| Error::new(Kind::Corrupt, format!("map entry {index}: {e}")))?;
            let mut grain = (position - start) / GRAIN;
            while grain < 64 {
                let valid = entry.block.is_some() && entry.mask >> grain & 1 == 1;
                if valid == (what == Seek::Data) {
                    return Ok(position);
                }
                grain += 1;
                position = start + grain * GRAIN;
            }
        }
        next = entries.last().expect("not empty").0.clone();
        from = Bound::Excluded(next.as_slice());
    }
}

fn index_of(key: &[u8]) -> Result<u64> {
    let bytes: [u8; 8] = key
        .try_into()
        .map_err(|_| Error::new(Kind::Corrupt, "a map key that is not eight bytes long"))?;
    Ok(u64::from_be_bytes(bytes))
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

/// The nodes of an object whose guard the caller has.
pub(crate) struct Held<'v> {
    /// The volume.
    pub volume: &'v Volume,
    /// The object.
    pub id: FileId,
}

impl NodeStore for Held<'_> {
    async fn node(&self, at: BlockNo) -> Result<Rc<lunfs_format::Node>> {
        self.volume.node_of(self.id.addr, at).await
    }
}
