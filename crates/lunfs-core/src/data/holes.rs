//! Ranges without data: allocating ahead, punching, zeroing, and finding them.
//!
//! Invariants:
//! - A hole is a grain whose bit in the mask is clear, with or without a block below it.
//! - Only whole grains leave the mask; the edges of a punched range are overwritten with zeroes.
//! - Before a run is given up nothing about it is pending: it is written back first.

use std::cell::RefCell;
use std::ops::Bound;
use std::rc::Rc;

use lunfs_format::{Content, FileKind, MapEntry, Tree};

use super::{
    ENTRIES_MAX, FILE_BLOCK, GRAIN, Held, Part, SIZE_MAX, entry_of, mask_of, parts, to_usize,
};
use crate::allocate::Purpose;
use crate::error::{Error, Kind, Result};
use crate::inode::{Delta, Inode};
use crate::locks::{Wish, WriteGuard};
use crate::tree::{self, NodeStore};
use crate::types::{Fallocate, FileId, Seek};
use crate::volume::Volume;

impl Volume {
    /// Allocates, punches or zeroes a range.
    pub async fn fallocate(&self, file: FileId, at: u64, len: u64, mode: Fallocate) -> Result<()> {
        self.writable()?;
        let end = at.checked_add(len).filter(|end| len > 0 && *end <= SIZE_MAX);
        let end = end.ok_or_else(|| Error::new(Kind::Invalid, "a range that no file has"))?;
        let made = RefCell::new(Vec::new());
        let done = self.fallocate_seeking(file, (at, len, end), mode, &made).await;
        if done.as_ref().is_err_and(|e| e.kind == Kind::NoSpace) {
            // What there was is no use to a program that wanted all of it, and none to others.
            self.give_up_unused(file, made.into_inner()).await?;
        }
        done
    }

    /// `made`: file blocks that had no place before.
    async fn fallocate_seeking(
        &self,
        file: FileId,
        (at, len, end): (u64, u64, u64),
        mode: Fallocate,
        made: &RefCell<Vec<u64>>,
    ) -> Result<()> {
        self.with_space(async || {
            let guard = self.hold(Wish::from(file)).await?;
            let inode = self.inode(file);
            let body = self.current(file);
            if body.kind != FileKind::File {
                return Err(Kind::Invalid.into());
            }
            if !matches!(body.content, Content::Tree(_)) {
                self.move_out(&inode, file).await?;
            }
            let grow = match mode {
                Fallocate::Allocate { keep_size } => {
                    self.allocate_range(&guard, &inode, parts(at, len), made).await?;
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
                self.zero_tail(&inode, file, body.size, end).await?;
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
        parts: impl Iterator<Item = Part>,
        made: &RefCell<Vec<u64>>,
    ) -> Result<()> {
        let id = inode.id;
        for part in parts {
            let old = self.current_entry(id, part.index).await?;
            if old.block.is_some() {
                // A short run keeps no promise for what is behind it.
                if old.grains < 64 {
                    self.lengthen(inode, id, part.index, &old).await?;
                }
                continue;
            }
            let reserved = self.reserve(64, Purpose::New).await?;
            made.borrow_mut().push(part.index);
            let entry = MapEntry { block: Some(reserved.start), zero: false, grains: 64, mask: 0 };
            let complete = self.io.flushes_begun();
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

    /// Gives the places of these file blocks back, where nothing was written.
    async fn give_up_unused(&self, id: FileId, indices: Vec<u64>) -> Result<()> {
        self.with_space(async || {
            let guard = self.hold(Wish::from(id)).await?;
            let inode = self.inode(id);
            for some in indices.chunks(ENTRIES_MAX) {
                self.write_back(&guard).await?;
                for index in some {
                    let entry = self.current_entry(id, *index).await?;
                    if entry.block.is_some() && entry.mask == 0 {
                        self.drop_entry(&inode, id, *index, &entry);
                    }
                }
            }
            self.write_back(&guard).await
        })
        .await
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
        let mut next = at / FILE_BLOCK;
        loop {
            // Nothing is pending here, so the map has all entries, and holes cost nothing.
            let entries = self.entries_from(id, next).await?;
            let Some((last, _)) = entries.last() else { return Ok(()) };
            next = last + 1;
            for (index, old) in entries {
                let start = index * FILE_BLOCK;
                if start >= end {
                    break;
                }
                let (from, to) = (at.max(start) - start, end.min(start + FILE_BLOCK) - start);
                self.punch_part(inode, id, size, Part { index, from, to }, &old).await?;
            }
            self.write_back(guard).await?;
            if next * FILE_BLOCK >= end {
                return Ok(());
            }
        }
    }

    async fn punch_part(
        &self,
        inode: &Rc<Inode>,
        id: FileId,
        size: u64,
        part: Part,
        old: &MapEntry,
    ) -> Result<()> {
        self.zero_edges(inode, id, size, part, old).await?;
        let whole = part.from.div_ceil(GRAIN)..part.to / GRAIN;
        if whole.is_empty() {
            return Ok(());
        }
        let mask = old.mask & !mask_of(whole);
        if mask == 0 {
            self.drop_entry(inode, id, part.index, old);
        } else if mask != old.mask {
            let entry = MapEntry { mask, ..*old };
            self.change_entry(inode, id, part.index, entry, None);
        }
        Ok(())
    }

    /// At most a transaction's worth of entries of the map at or above `from`, in order.
    async fn entries_from(&self, id: FileId, from: u64) -> Result<Vec<(u64, MapEntry)>> {
        let Content::Tree(map) = self.current(id).content else { return Ok(Vec::new()) };
        let (store, key) = (Held { volume: self, id }, from.to_be_bytes());
        let found = tree::scan(&store, &map, Bound::Included(&key[..]), ENTRIES_MAX).await?;
        let checked = |(key, value): &(Vec<u8>, Vec<u8>)| {
            let (index, entry) = entry_of(id, key, value)?;
            Ok((index, self.checked(entry)?))
        };
        found.iter().map(checked).collect()
    }

    /// Zeroes the grains of a part that are only partly inside it. They are written in place, so
    /// nothing about the part is pending behind it.
    async fn zero_edges(
        &self,
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
                self.write_mapped(inode, id, size, start + from, &zeroes).await?;
            }
        }
        Ok(())
    }

    /// The next data or hole at or after `at`.
    pub async fn seek(&self, file: FileId, at: u64, what: Seek) -> Result<u64> {
        let _operation = self.operation()?;
        self.write_back_id(file).await?;
        self.reading(file, async |view| {
            let size = view.body.size;
            if at >= size {
                return Err(Error::new(Kind::NotFound, "beyond the end of the file"));
            }
            let Content::Tree(map) = &view.body.content else {
                return Ok(if what == Seek::Data { at } else { size });
            };
            let found = seek_map(view, file, map, at, what, size).await?;
            match what {
                Seek::Data if found >= size => {
                    Err(Error::new(Kind::NotFound, "no data up to the end of the file"))
                }
                Seek::Data | Seek::Hole => Ok(found.min(size)),
            }
        })
        .await
    }
}

/// Where the next data or hole begins, by the map alone.
async fn seek_map(
    store: &impl NodeStore,
    id: FileId,
    map: &Tree,
    at: u64,
    what: Seek,
    size: u64,
) -> Result<u64> {
    let mut position = at;
    let mut next = (at / FILE_BLOCK).to_be_bytes().to_vec();
    let mut from = Bound::Included(next.as_slice());
    loop {
        let entries = tree::scan(store, map, from, 64).await?;
        if entries.is_empty() {
            return Ok(if what == Seek::Hole { position } else { size });
        }
        for (key, value) in &entries {
            let (index, entry) = entry_of(id, key, value)?;
            let start = index * FILE_BLOCK;
            if start > position {
                if what == Seek::Hole {
                    return Ok(position);
                }
                position = start;
            }
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
