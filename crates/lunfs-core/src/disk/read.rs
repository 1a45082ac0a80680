//! Reading a snapshot without making a clone of it.
//!
//! Invariant: who has the guard of a disk keeps its snapshots: their names go under that guard, and
//! what is below them goes after they do.

use std::rc::Rc;

use super::Stack;
use crate::data::SIZE_MAX;
use crate::error::{Error, Kind, Result};
use crate::locks::Wish;
use crate::types::FileId;
use crate::volume::Volume;

impl Volume {
    /// Reads at most `len` bytes of a snapshot; fewer at its end. Another host may use the disk
    /// meanwhile.
    pub async fn read_snapshot(
        &self,
        disk: FileId,
        name: &[u8],
        at: u64,
        len: usize,
    ) -> Result<Vec<u8>> {
        let _operation = self.operation()?;
        let guard = match self.read_held(Wish::from(disk)).await {
            Some(guard) => guard,
            None => self.hold(disk).await?.downgrade(),
        };
        let found = self.snapshot_held(disk, name).await?;
        let found = found.ok_or_else(|| {
            let name = String::from_utf8_lossy(name);
            Error::new(Kind::NotFound, format!("the disk has no snapshot \"{name}\""))
        })?;
        let len = (len as u64).min(found.size.saturating_sub(at.min(SIZE_MAX)));
        let mut out = vec![0; usize::try_from(len).map_err(|_| Kind::TooLong)?];
        if !out.is_empty() {
            let stack = self.stack_of_snapshot(disk, found.layer, found.size).await?;
            self.read_stack(&stack, at, &mut out).await?;
        }
        drop(guard);
        // R1: what was read is given only by a host whose lease is open (H15).
        self.io.pass().await?;
        Ok(out)
    }

    /// A snapshot and what is below it; kept as long as the disk's lock is.
    async fn stack_of_snapshot(
        &self,
        disk: FileId,
        layer: lunfs_format::LayerRef,
        size: u64,
    ) -> Result<Rc<Stack>> {
        let id = FileId::from(layer);
        if let Some((_, stack)) = self.stacks.borrow().get(&id) {
            return Ok(stack.clone());
        }
        let stack = Rc::new(self.stack_from(disk, Some(layer), size).await?);
        self.keep_stack(id, disk.addr, &stack);
        Ok(stack)
    }
}
