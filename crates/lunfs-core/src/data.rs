//! Contents of plain files: their geometry, their map as it is now, reading and syncing.
//!
//! | module | what it holds |
//! |---|---|
//! | `write` | writing and appending |
//! | `truncate` | setting the size |
//! | `holes` | allocating ahead, punching, finding data and holes |
//!
//! A file is made of file blocks of 64 grains. Its map has an entry for each file block: a run of
//! blocks, and a mask that says which of its grains hold data.
//!
//! Invariants:
//! - R10: data goes to reserved or own blocks first; the map that shows it follows in a later
//!   transaction (inode.rs).
//! - What lies beyond the end of a file is never trusted: whoever raises the size zeroes or
//!   overwrites it up to the end of its grain first.
//! - One writer of a file at a time on this host (the write guard), so a grain has one owner (Q8).

mod holes;
mod truncate;
mod write;

use std::rc::Rc;

use futures_util::future::join_all;
use lunfs_format::{BLOCK, BlockNo, Content, Descriptor, FileKind, MapEntry, Tree};

use crate::disk::{Patch, Stack};
use crate::error::{Error, Kind, Result};
use crate::inode::{Delta, EMPTY_ENTRY, Inode};
use crate::tree::{self, NodeStore};
use crate::types::FileId;
use crate::view::View;
use crate::volume::Volume;

/// Bytes of a file that its descriptor keeps in itself.
const INLINE_MAX: u64 = 2048;
/// Bytes of a file block.
pub(crate) const FILE_BLOCK: u64 = 64 * GRAIN;
/// Bytes of a grain.
pub(crate) const GRAIN: u64 = BLOCK as u64;
/// Largest size of a file.
pub(crate) const SIZE_MAX: u64 = lunfs_format::SIZE_MAX;
/// Map entries changed before they are written back.
const ENTRIES_MAX: usize = 40;

fn to_usize(n: u64) -> usize {
    usize::try_from(n).expect("lengths fit the address space")
}

/// Part of one file block.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Part {
    /// Which file block.
    pub index: u64,
    /// First byte in it,
    pub from: u64,
    /// and the one behind the last.
    pub to: u64,
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

/// The bits of some grains.
pub(crate) fn mask_of(grains: std::ops::Range<u64>) -> u64 {
    grains.fold(0, |mask, g| mask | 1 << g)
}

/// Runs of an entry's valid grains among those wanted.
fn own_patches(entry: &MapEntry, wanted: &std::ops::Range<u64>) -> Vec<Patch> {
    let Some(start) = entry.block else { return Vec::new() };
    Patch::runs(entry.mask & mask_of(wanted.clone()), start, u64::MAX).collect()
}

/// Refuses what has no bytes to read or write.
fn may_have_map(body: &Descriptor) -> Result<()> {
    match body.kind {
        FileKind::File | FileKind::Layer => Ok(()),
        FileKind::Directory => Err(Kind::IsDirectory.into()),
        _ => Err(Kind::Invalid.into()),
    }
}

/// The same for writing: what is frozen is somebody's snapshot.
fn may_change(id: FileId, body: &Descriptor) -> Result<()> {
    may_have_map(body)?;
    if body.layer.frozen || body.top.is_some() {
        return Err(Error::damaged(id.addr.plus(1), "a frozen layer was to be written to"));
    }
    Ok(())
}

impl View<'_> {
    async fn entry(&self, volume: &Volume, map: &Tree, index: u64) -> Result<MapEntry> {
        if self.is_held()
            && let Some(entry) = volume.pending_entry(self.id, index)
        {
            return Ok(entry);
        }
        volume.checked(entry_in(self, self.id, map, index).await?)
    }
}

/// The entry of a file block, as the map has it.
pub(crate) async fn entry_in(
    store: &impl NodeStore,
    id: FileId,
    map: &Tree,
    index: u64,
) -> Result<MapEntry> {
    let key = index.to_be_bytes();
    match tree::get(store, map, &key).await? {
        Some(value) => Ok(entry_of(id, &key, &value)?.1),
        None => Ok(EMPTY_ENTRY),
    }
}

impl Volume {
    /// An entry from the disk: nothing is read, written or freed where it cannot point to.
    pub(crate) fn checked(&self, entry: MapEntry) -> Result<MapEntry> {
        if let Some(start) = entry.block {
            self.check_run(start, u64::from(entry.grains))?;
        }
        Ok(entry)
    }

    fn pending_entry(&self, id: FileId, index: u64) -> Option<MapEntry> {
        let inodes = self.inodes.borrow();
        let pending = inodes.get(&id)?.pending.borrow();
        Some(pending.as_ref()?.deltas.get(&index)?.entry)
    }

    /// Reads at most `len` bytes; fewer at the end of the file.
    pub async fn read(&self, file: FileId, at: u64, len: usize) -> Result<Vec<u8>> {
        let bytes = self
            .reading(file, async |view| match view.body.top {
                Some(_) => Ok(None),
                None => self.read_view(view, at, len).await.map(Some),
            })
            .await?;
        match bytes {
            Some(bytes) => Ok(bytes),
            None => self.read_disk(file, at, len).await,
        }
    }

    async fn read_disk(&self, disk: FileId, at: u64, len: usize) -> Result<Vec<u8>> {
        let _operation = self.operation()?;
        let shared = self.share_disk(disk).await?;
        let view = View::held(self, shared.id, shared.guard);
        let bytes = self.read_view(&view, at, len).await;
        drop(shared.disk);
        // R1: what was read is given only by a host whose lease is open (H15).
        self.io.pass().await?;
        bytes
    }

    async fn read_view(&self, view: &View<'_>, at: u64, len: usize) -> Result<Vec<u8>> {
        let body = &view.body;
        may_have_map(body)?;
        let len = (len as u64).min(body.size.saturating_sub(at));
        if len == 0 {
            return Ok(Vec::new());
        }
        let mut out = vec![0; to_usize(len)];
        match &body.content {
            Content::Empty if body.layer.below.is_some() => {
                self.read_map(view, &Tree::Empty, at, &mut out).await?;
            }
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
        let stack = match view.body.layer.below {
            Some(_) => self.stack(view.id).await?,
            None => Rc::default(),
        };
        let mut pieces = Vec::new();
        for part in parts(at, out.len() as u64) {
            let entry = view.entry(self, map, part.index).await?;
            let wanted = grains(part.from, part.to);
            let mut patches = own_patches(&entry, &wanted);
            let shows_below = !entry.zero && mask_of(wanted.clone()) & !entry.mask != 0;
            if shows_below && !stack.is_empty() {
                let below = self.below(&stack, part.index).await?;
                patches.extend(below.iter().flat_map(|patch| patch.without(entry.mask, &wanted)));
            }
            pieces.extend(patches.into_iter().map(|patch| (part, patch)));
        }
        self.read_pieces(&pieces, at, out).await
    }

    /// Reads what a stack alone shows.
    pub(crate) async fn read_stack(&self, stack: &Stack, at: u64, out: &mut [u8]) -> Result<()> {
        let mut pieces = Vec::new();
        for part in parts(at, out.len() as u64) {
            let wanted = grains(part.from, part.to);
            let below = self.below(stack, part.index).await?;
            let patches = below.iter().flat_map(|patch| patch.without(0, &wanted));
            pieces.extend(patches.map(|patch| (part, patch)));
        }
        self.read_pieces(&pieces, at, out).await
    }

    async fn read_pieces(&self, pieces: &[(Part, Patch)], at: u64, out: &mut [u8]) -> Result<()> {
        let reads =
            pieces.iter().map(|(_, patch)| self.io.read(patch.block, to_usize(patch.grains())));
        for (data, (part, patch)) in join_all(reads).await.into_iter().zip(pieces) {
            let data = data?;
            let (from, to) = patch.bytes_in(part);
            if from >= to {
                continue;
            }
            let dst = to_usize(part.index * FILE_BLOCK + from - at);
            let src = to_usize(from - patch.from * GRAIN);
            let n = to_usize(to - from);
            out[dst..dst + n].copy_from_slice(&data[src..src + n]);
        }
        Ok(())
    }

    /// The map entry with pending changes, of a file whose guard the caller has.
    async fn current_entry(&self, id: FileId, index: u64) -> Result<MapEntry> {
        if let Some(entry) = self.pending_entry(id, index) {
            return Ok(entry);
        }
        match self.current(id).content {
            Content::Tree(map) => {
                self.checked(entry_in(&Held { volume: self, id }, id, &map, index).await?)
            }
            Content::Empty | Content::Bytes(_) => Ok(EMPTY_ENTRY),
        }
    }

    /// Gives up the run of an entry. What it hid of the layers below stays hidden.
    fn drop_run(&self, inode: &Inode, id: FileId, index: u64, old: &MapEntry, zero: bool) {
        let entry = MapEntry { zero, ..EMPTY_ENTRY };
        self.change_entry(inode, id, index, entry, old.block.map(|b| (b, old.grains)));
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
        let complete = self.io.flushes_begun();
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

    /// Everything of the file that was acknowledged survives any crash from now on.
    pub async fn fsync(&self, file: FileId) -> Result<()> {
        // What was accepted may need a block for its map that only another host has.
        self.with_space(async || self.fsync_once(file).await).await
    }

    async fn fsync_once(&self, file: FileId) -> Result<()> {
        // What is pending here was written through a top that is remembered as long as it is.
        let top = self.inodes.borrow().get(&file).and_then(|inode| inode.top.get());
        for id in [Some(file), top].into_iter().flatten() {
            self.write_back_id(id).await?;
            let written = self.inodes.borrow().get(&id).and_then(|i| i.written.get());
            if let Some(complete) = written {
                self.flush_data(complete).await?;
            }
        }
        self.journal().commit(&self.io).await
    }
}

/// A file block's number and its entry, as the map has them.
pub(crate) fn entry_of(id: FileId, key: &[u8], value: &[u8]) -> Result<(u64, MapEntry)> {
    let index = key.try_into().ok().map(u64::from_be_bytes);
    // Behind the largest file lies nothing, and no arithmetic reaches there.
    let index = index.filter(|index| *index <= SIZE_MAX / FILE_BLOCK);
    let index = index.ok_or_else(|| Error::damaged(id.addr, "its map has a key of no file"))?;
    let entry = MapEntry::decode(value)
        .map_err(|e| Error::damaged(id.addr, format!("entry {index} of its map: {e}")))?;
    Ok((index, entry))
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
