//! Ranges without data: allocating ahead, punching, zeroing, and finding them.
//!
//! Invariants:
//! - A hole is a grain whose bit in the mask is clear, with or without a block below it.
//! - Only whole grains leave the mask; the edges of a punched range are overwritten with zeroes.
//! - Before a run is given up nothing about it is pending: it is written back first.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::Bound;
use std::rc::Rc;

use lunfs_format::{Content, MapEntry};

use super::{
    ENTRIES_MAX, FILE_BLOCK, GRAIN, Held, Part, SIZE_MAX, entry_of, mask_of, may_change, parts,
    to_usize,
};
use crate::allocate::Purpose;
use crate::disk::Stack;
use crate::error::{Error, Kind, Result};
use crate::inode::{Delta, EMPTY_ENTRY, Inode};
use crate::locks::WriteGuard;
use crate::tree;
use crate::types::{Fallocate, FileId, Seek};
use crate::view::View;
use crate::volume::Volume;

/// What becomes of the space of a range that is to read zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    GivenBack,
    Kept,
}

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
            let held = self.hold_contents(file).await?;
            let (guard, file) = (&held.guard, held.id);
            let inode = self.inode(file);
            let body = self.current(file);
            may_change(file, &body).map_err(|e| match e.kind {
                Kind::IsDirectory => Kind::Invalid.into(),
                _ => e,
            })?;
            if !matches!(body.content, Content::Tree(_)) {
                self.move_out(&inode, file).await?;
            }
            let grow = match mode {
                Fallocate::Allocate { keep_size } => {
                    self.allocate_range(guard, &inode, parts(at, len), made).await?;
                    !keep_size
                }
                Fallocate::PunchHole => {
                    self.zero(guard, &inode, file, (at, len), Place::GivenBack).await?;
                    false
                }
                Fallocate::ZeroRange { keep_size } => {
                    self.zero(guard, &inode, file, (at, len), Place::Kept).await?;
                    self.allocate_range(guard, &inode, parts(at, len), made).await?;
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
            let entry = MapEntry { block: Some(reserved.start), grains: 64, mask: 0, ..old };
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
            let held = self.hold_contents(id).await?;
            let (guard, id) = (&held.guard, held.id);
            let inode = self.inode(id);
            for some in indices.chunks(ENTRIES_MAX) {
                self.write_back(guard).await?;
                for index in some {
                    let entry = self.current_entry(id, *index).await?;
                    if entry.block.is_some() && entry.mask == 0 {
                        self.drop_run(&inode, id, *index, &entry, entry.zero);
                    }
                }
            }
            self.write_back(guard).await
        })
        .await
    }

    /// Has a range read zero.
    async fn zero(
        &self,
        guard: &WriteGuard,
        inode: &Rc<Inode>,
        id: FileId,
        (at, len): (u64, u64),
        place: Place,
    ) -> Result<()> {
        self.write_back(guard).await?;
        let size = self.current(id).size;
        let end = (at + len).min(size.next_multiple_of(FILE_BLOCK));
        if end <= at {
            return Ok(());
        }
        let stack = self.stack(id).await?;
        let mut next = at / FILE_BLOCK;
        loop {
            // Nothing is pending here, so the map has all entries, and holes cost nothing.
            let entries = self.touched_from(&stack, id, next).await?;
            let Some((last, _)) = entries.last() else { return Ok(()) };
            next = last + 1;
            for (index, old) in entries {
                let start = index * FILE_BLOCK;
                if start >= end {
                    break;
                }
                let (from, to) = (at.max(start) - start, end.min(start + FILE_BLOCK) - start);
                let part = Part { index, from, to };
                self.zero_part(guard, inode, (&stack, id, size), (part, place), old).await?;
            }
            self.write_back(guard).await?;
            if next * FILE_BLOCK >= end {
                return Ok(());
            }
        }
    }

    async fn zero_part(
        &self,
        guard: &WriteGuard,
        inode: &Rc<Inode>,
        (stack, id, size): (&Stack, FileId, u64),
        (part, place): (Part, Place),
        mut old: MapEntry,
    ) -> Result<()> {
        let below = self.below(stack, part.index).await?;
        let shown = if old.zero { 0 } else { below.iter().fold(0, |mask, p| mask | p.mask()) };
        self.zero_edges(inode, id, size, part, old.mask | shown).await?;
        let whole = part.from.div_ceil(GRAIN)..part.to / GRAIN;
        if whole.is_empty() {
            return Ok(());
        }
        if self.pending_entry(id, part.index).is_some() {
            // The edges were put together from below: that entry first.
            self.write_back(guard).await?;
            old = self.current_entry(id, part.index).await?;
        }
        let whole = mask_of(whole);
        let mask = old.mask & !whole;
        if shown & whole != 0 && shown & !whole & !mask != 0 {
            // Something else of this file block shows from below, and must not be hidden with it.
            // Behind the end nothing shows, and no grain may be valid.
            let end = size.next_multiple_of(GRAIN).saturating_sub(part.index * FILE_BLOCK);
            let from = part.from.next_multiple_of(GRAIN);
            let to = (part.to / GRAIN * GRAIN).min(end);
            let zeroes = vec![0; to_usize(to - from)];
            let at = part.index * FILE_BLOCK + from;
            return self.write_mapped(inode, id, size, at, &zeroes).await;
        }
        let zero = old.zero || shown & whole != 0;
        if mask == 0 && old.block.is_none() && zero == old.zero {
            // Neither here nor below is anything.
        } else if mask == 0 && place == Place::GivenBack {
            self.drop_run(inode, id, part.index, &old, zero);
        } else if (mask, zero) != (old.mask, old.zero) {
            let entry = MapEntry { mask, zero, ..old };
            self.change_entry(inode, id, part.index, entry, None);
        }
        Ok(())
    }

    /// The same as `entries_from`, and with them those file blocks that only show from below.
    async fn touched_from(
        &self,
        stack: &Stack,
        id: FileId,
        from: u64,
    ) -> Result<Vec<(u64, MapEntry)>> {
        let own = self.entries_from(id, from).await?;
        let below = self.indices_below(stack, from, ENTRIES_MAX).await?;
        Ok(merged(own, below, ENTRIES_MAX))
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

    /// Zeroes the grains of a part that are only partly inside it, where they show anything. Own
    /// ones are written in place, so nothing about them is pending behind it.
    async fn zero_edges(
        &self,
        inode: &Rc<Inode>,
        id: FileId,
        size: u64,
        part: Part,
        shown: u64,
    ) -> Result<()> {
        let start = part.index * FILE_BLOCK;
        let first_end = part.to.min(part.from.next_multiple_of(GRAIN));
        let last_start = part.from.max(part.to / GRAIN * GRAIN);
        for (from, to) in [(part.from, first_end), (last_start, part.to)] {
            let valid = from < to && shown >> (from / GRAIN) & 1 == 1;
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
        let found = self
            .reading(file, async |view| match view.body.top {
                Some(_) => Ok(None),
                None => self.seek_view(view, file, at, what).await.map(Some),
            })
            .await?;
        match found {
            Some(found) => Ok(found),
            None => self.seek_disk(file, at, what).await,
        }
    }

    async fn seek_disk(&self, disk: FileId, at: u64, what: Seek) -> Result<u64> {
        loop {
            let shared = self.share_disk(disk).await?;
            let top = shared.id;
            if self.inodes.borrow().get(&top).is_some_and(|inode| inode.is_dirty()) {
                // What is pending is in no map yet.
                drop(shared);
                self.write_back_id(top).await?;
                continue;
            }
            let view = View::held(self, top, shared.guard);
            let found = self.seek_view(&view, top, at, what).await;
            self.io.pass().await?;
            return found;
        }
    }

    async fn seek_view(&self, view: &View<'_>, id: FileId, at: u64, what: Seek) -> Result<u64> {
        let size = view.body.size;
        if at >= size {
            return Err(Error::new(Kind::NotFound, "beyond the end of the file"));
        }
        if let Content::Bytes(_) = &view.body.content {
            return Ok(if what == Seek::Data { at } else { size });
        }
        let stack = match view.body.layer.below {
            Some(_) => self.stack(id).await?,
            None => Rc::default(),
        };
        let found = self.seek_map((view, &stack), id, at, what).await?;
        match what {
            Seek::Data if found >= size => {
                Err(Error::new(Kind::NotFound, "no data up to the end of the file"))
            }
            Seek::Data | Seek::Hole => Ok(found.min(size)),
        }
    }

    /// Where the next data or hole begins, by the maps alone.
    async fn seek_map(
        &self,
        (view, stack): (&View<'_>, &Stack),
        id: FileId,
        at: u64,
        what: Seek,
    ) -> Result<u64> {
        let map = view.content_tree();
        let mut position = at;
        let mut next = at / FILE_BLOCK;
        loop {
            let key = next.to_be_bytes();
            let own = tree::scan(view, &map, Bound::Included(&key[..]), 64).await?;
            let own: Result<Vec<_>> =
                own.iter().map(|(key, value)| entry_of(id, key, value)).collect();
            let below = self.indices_below(stack, next, 64).await?;
            let touched = merged(own?, below, 64);
            if touched.is_empty() {
                return Ok(if what == Seek::Hole { position } else { view.body.size });
            }
            for (index, entry) in touched {
                let start = index * FILE_BLOCK;
                if start > position {
                    if what == Seek::Hole {
                        return Ok(position);
                    }
                    position = start;
                }
                let mask = self.data_in(stack, index, &entry).await?;
                let mut grain = (position - start) / GRAIN;
                while grain < 64 {
                    if (mask >> grain & 1 == 1) == (what == Seek::Data) {
                        return Ok(position);
                    }
                    grain += 1;
                    position = start + grain * GRAIN;
                }
                next = index + 1;
            }
        }
    }

    /// Grains of a file block that hold data, here or below.
    async fn data_in(&self, stack: &Stack, index: u64, entry: &MapEntry) -> Result<u64> {
        let own = if entry.block.is_some() { entry.mask } else { 0 };
        if entry.zero {
            return Ok(own);
        }
        let below = self.below(stack, index).await?;
        Ok(below.iter().fold(own, |mask, patch| mask | patch.mask()))
    }
}

/// Entries of a map in order, and the file blocks that only show from below. Of both at most `max`
/// were looked for: what is behind the last of a full one is left out.
fn merged(own: Vec<(u64, MapEntry)>, below: Vec<u64>, max: usize) -> Vec<(u64, MapEntry)> {
    let end_of = |len: usize, last: Option<u64>| match last {
        Some(last) if len >= max => last,
        _ => u64::MAX,
    };
    let end = end_of(own.len(), own.last().map(|(index, _)| *index));
    let end = end.min(end_of(below.len(), below.last().copied()));
    let mut merged: BTreeMap<u64, MapEntry> =
        below.into_iter().map(|index| (index, EMPTY_ENTRY)).collect();
    merged.extend(own);
    merged.into_iter().filter(|(index, _)| *index <= end).take(max).collect()
}
