//! Setting the size of a file, and giving up what lies beyond it.
//!
//! Invariants:
//! - A file is cut from its end, a bounded number of map entries in each transaction, and its size
//!   goes down with them: a crash leaves a size in between, never a hole in what remains.
//! - A size that rises shows no old bytes: the grain of the old end is zeroed first.

use std::rc::Rc;

use lunfs_format::{Content, MapEntry};

use super::{ENTRIES_MAX, FILE_BLOCK, GRAIN, Held, SIZE_MAX, entry_of, may_change, to_usize};
use crate::error::{Error, Kind, Result};
use crate::inode::Inode;
use crate::locks::WriteGuard;
use crate::tree;
use crate::types::FileId;
use crate::volume::Volume;

impl Volume {
    /// Sets the size of a file whose guard the caller has.
    pub(crate) async fn truncate(&self, guard: &WriteGuard, id: FileId, size: u64) -> Result<()> {
        if size > SIZE_MAX {
            return Err(Error::new(Kind::TooLong, "beyond the largest size of a file"));
        }
        let inode = self.inode(id);
        let body = self.current(id);
        may_change(id, &body)?;
        if size > body.size {
            if matches!(body.content, Content::Tree(_)) {
                self.zero_tail(&inode, id, body.size, size).await?;
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
                p.body.layer.visible = p.body.layer.visible.min(size);
                (p.body.mtime, p.body.ctime) = (now, now);
            },
        );
        self.forget_stack(id.addr);
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
                self.drop_run(inode, id, index, &old, false);
            }
            // What was hidden of the layers below stays so: they show no further than the end.
            inode.change(
                || self.cached_descriptor(id.addr),
                |p| {
                    p.body.size = p.body.size.min(lowest * FILE_BLOCK).max(size);
                    p.body.layer.visible = p.body.layer.visible.min(p.body.size);
                },
            );
            self.forget_stack(id.addr);
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
            let (index, entry) = entry_of(id, &key, &value)?;
            if index < from {
                break;
            }
            found.push((index, self.checked(entry)?));
            match index.checked_sub(1) {
                Some(next) => below = Some(next),
                None => break,
            }
        }
        Ok(found)
    }

    /// Keeps the first `keep` grains of a file block.
    fn shorten(&self, inode: &Inode, id: FileId, index: u64, old: &MapEntry, keep: u64) {
        let Some(start) = old.block else { return };
        let len = u64::from(old.grains);
        let mask = if keep < 64 { old.mask & ((1 << keep) - 1) } else { old.mask };
        if keep >= len || mask == 0 {
            if mask == 0 {
                self.drop_run(inode, id, index, old, old.zero);
            }
            return;
        }
        let entry = MapEntry { grains: u8::try_from(keep).expect("below 64"), mask, ..*old };
        let rest = u8::try_from(len - keep).expect("below 64");
        self.change_entry(inode, id, index, entry, Some((start.plus(keep), rest)));
    }
}
