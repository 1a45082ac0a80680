//! Who may use a disk: one host, from its first I/O through an open handle to the last close.
//!
//! Invariant: the mark is in the body, which another host sees only under the disk's lock; so it
//! needs no commit of its own. A mark of a life that is over says nothing, as with locks.

use lunfs_format::Descriptor;

use crate::error::{Error, Kind, Result};
use crate::types::FileId;
use crate::volume::Volume;

/// How often a mark that could not be taken away is tried again, and the first pause before that.
const LEAVE_TRIES: u32 = 16;
const LEAVE_PAUSE: std::time::Duration = std::time::Duration::from_secs(1);

impl Volume {
    /// May this host do I/O to a disk whose guard the caller has, without any change to it?
    pub(super) fn is_used_by_us(&self, disk: FileId) -> bool {
        let user = self.current(disk).user;
        user == Some(self.me()) || (user.is_none() && !self.is_open(disk))
    }

    fn is_open(&self, disk: FileId) -> bool {
        self.inodes.borrow().get(&disk).is_some_and(|inode| inode.opens.get() > 0)
    }

    /// Makes sure that no other host uses a disk whose write guard the caller has, and if it is
    /// open here, that none will.
    pub(crate) async fn use_disk(&self, disk: FileId) -> Result<()> {
        if self.is_used_by_us(disk) {
            return Ok(());
        }
        self.used_by_nobody_else(&self.current(disk)).await?;
        let user = self.is_open(disk).then(|| self.me());
        self.inode(disk).change(|| self.cached_descriptor(disk.addr), |p| p.body.user = user);
        self.note_dirty();
        Ok(())
    }

    /// Refuses what must not happen to a disk that another host uses.
    pub(crate) async fn used_by_nobody_else(&self, body: &Descriptor) -> Result<()> {
        let Some(user) = body.user.filter(|user| *user != self.me()) else { return Ok(()) };
        let is_over = |now: Option<u64>| now.is_some_and(|reached| reached > user.incarnation.0);
        if !is_over(self.known_incarnation(user.slot)) {
            self.look_at(user.slot).await?;
        }
        if is_over(self.known_incarnation(user.slot)) {
            return Ok(());
        }
        let why = format!("the disk is in use on the host in slot {}", user.slot);
        Err(Error::new(Kind::Busy, why))
    }

    /// The last handle was closed: others may have it.
    pub(crate) fn leave_disk(&self, disk: FileId) {
        let inode = self.inode(disk);
        if inode.opens.get() > 0 || inode.top.get().is_none() {
            return;
        }
        self.spawn(move |volume| async move {
            for round in 0..LEAVE_TRIES {
                match volume.leave_disk_now(disk).await {
                    Err(e) if !matches!(e.kind, Kind::Stopped | Kind::Stale) => {
                        // It is tried again for a while, then at the next close here; after that
                        // the mark goes with this life.
                        let error = &e;
                        tracing::warn!(event = "disk", file = %disk.addr, %error, "stays in use");
                    }
                    Ok(()) | Err(_) => return,
                }
                volume.sleep_about(LEAVE_PAUSE * (round + 1)).await;
            }
        });
    }

    async fn leave_disk_now(&self, disk: FileId) -> Result<()> {
        let _guard = self.hold(disk).await?;
        if !self.is_open(disk) && self.current(disk).user == Some(self.me()) {
            let inode = self.inode(disk);
            inode.change(|| self.cached_descriptor(disk.addr), |p| p.body.user = None);
            self.note_dirty();
        }
        Ok(())
    }
}
