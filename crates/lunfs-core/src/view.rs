//! Reading an object: under its lock, or without it as a snapshot that is checked afterwards.
//!
//! Taking a lock costs a flush. Who looks at an object once or twice (a listing, a copy of a tree)
//! reads it without; who comes back takes the lock, and then reads from memory.
//!
//! A lock that nobody holds exclusively changes its image before its object changes. So what was
//! read between two readings of one image is consistent (docs/protocol.md#reading-without-a-lock).

use std::collections::BTreeMap;
use std::rc::Rc;

use lunfs_format::{
    BlockNo, Content, Descriptor, FileKind, Holder, Lock, LockObject, Node, NodeBlock, Tree,
    Version,
};

use crate::error::{Error, Kind, Result};
use crate::lock::{Judged, judge};
use crate::locks::{ReadGuard, Wish, stamp_matches};
use crate::tree::NodeStore;
use crate::types::FileId;
use crate::volume::Volume;

/// Bytes of map entries that a descriptor keeps in itself.
pub const MAP_INLINE: usize = 2000;
/// Attempts without the lock before it is taken.
const ATTEMPTS_MAX: u32 = 4;
/// Requests to let go before the lock is asked for by name: a writer that takes it again at once
/// must not keep readers waiting.
const ASKED_MAX: u32 = 2;
/// Readings without the lock before it is taken for more of them. A listing reads each object once
/// to three times; a copy of a file about eight times, which costs more than the lock.
const READINGS_MAX: u32 = 3;
/// Objects whose readings are counted. Beyond it counting begins anew.
const COUNTED_MAX: usize = 16_384;

/// How often objects were read without their locks.
#[derive(Default)]
pub struct Readings(BTreeMap<FileId, u32>);

impl Readings {
    /// Counts one more; true when it is time to take the lock.
    fn is_worth_the_lock(&mut self, id: FileId) -> bool {
        if self.0.len() >= COUNTED_MAX {
            self.0.clear();
        }
        let count = self.0.entry(id).or_default();
        *count += 1;
        if *count <= READINGS_MAX {
            return false;
        }
        self.0.remove(&id);
        true
    }
}

/// How the object was reached.
enum Hold {
    /// Its lock is ours.
    Held { _guard: ReadGuard },
    /// Nobody holds it; this image must still be there afterwards.
    Seen { lock: Lock },
}

/// One object, for reading.
pub struct View<'v> {
    volume: &'v Volume,
    /// Which file.
    pub id: FileId,
    /// Its body, pending changes included.
    pub body: Rc<Descriptor>,
    hold: Hold,
}

impl<'v> View<'v> {
    /// An object whose guard the caller had.
    pub fn held(volume: &'v Volume, id: FileId, guard: ReadGuard) -> View<'v> {
        let body = Rc::new(volume.current(id));
        View { volume, id, body, hold: Hold::Held { _guard: guard } }
    }
}

impl View<'_> {
    /// Is what was read through this view consistent?
    pub async fn is_valid(&self) -> Result<bool> {
        let Hold::Seen { lock } = &self.hold else { return Ok(true) };
        let (now, _) = self.volume.read_lock(self.id.addr).await?;
        Ok(now.as_ref() == Some(lock))
    }

    /// Does this host hold the lock?
    pub fn is_held(&self) -> bool {
        matches!(self.hold, Hold::Held { .. })
    }

    /// The content as a tree.
    pub fn content_tree(&self) -> Tree {
        match &self.body.content {
            Content::Tree(tree) => tree.clone(),
            Content::Empty | Content::Bytes(_) => Tree::Empty,
        }
    }
}

impl NodeStore for View<'_> {
    async fn node(&self, at: BlockNo) -> Result<Rc<Node>> {
        match &self.hold {
            Hold::Held { .. } => self.volume.node_of(self.id.addr, at).await,
            Hold::Seen { .. } => Ok(Rc::new(self.volume.read_node(self.id.addr, at).await?.node)),
        }
    }
}

enum Look {
    Seen(Box<Descriptor>, Lock),
    Torn,
    Take,
    Ask(Holder, Version),
}

impl Volume {
    /// Reads a node from disk.
    pub(crate) async fn read_node(&self, lock: BlockNo, at: BlockNo) -> Result<NodeBlock> {
        if self.geometry().cluster_of(at).is_none() {
            return Err(Error::damaged(lock, format!("a tree points to {at}, in no cluster")));
        }
        let bytes = self.io.read(at, 1).await?;
        let block =
            NodeBlock::decode(&bytes, self.sb.volume, at).map_err(|e| Error::corrupt(at, &e))?;
        if block.owner != lock {
            let why = format!("it is a node of {}, not of {lock}", block.owner);
            return Err(Error::damaged(at, why));
        }
        Ok(block)
    }

    /// An object for reading.
    pub(crate) async fn view(&self, id: FileId) -> Result<View<'_>> {
        let wish = Wish::from(id);
        let (mut torn, mut asked) = (0, 0);
        loop {
            if let Some(guard) = self.read_held(wish).await {
                return Ok(View::held(self, id, guard));
            }
            match self.look_unheld(id).await? {
                Look::Seen(body, lock) => {
                    let body = Rc::from(body);
                    return Ok(View { volume: self, id, body, hold: Hold::Seen { lock } });
                }
                Look::Take => drop(self.hold(wish).await?),
                Look::Ask(holder, generation) if asked < ASKED_MAX => {
                    asked += 1;
                    self.ask_to_read(wish, holder, generation).await?;
                }
                Look::Ask(..) => drop(self.hold(wish).await?),
                Look::Torn if torn < ATTEMPTS_MAX => {
                    torn += 1;
                    self.io.count(|c| c.reads_retried += 1);
                }
                Look::Torn => drop(self.hold(wish).await?),
            }
        }
    }

    async fn look_unheld(&self, id: FileId) -> Result<Look> {
        let (lock, bytes) = loop {
            let began = self.lives_learned.get();
            let (lock, bytes) = self.read_object(id.addr).await?;
            let holder = lock.and_then(|lock| lock.holder);
            // Only what was read after its holder was recovered has what that replay brought.
            if holder.is_none_or(|holder| !self.learned_since(holder.slot, began)) {
                break (lock, bytes);
            }
        };
        let gone = || Error::new(Kind::Stale, format!("the file at {} is gone", id.addr));
        let lock = lock.ok_or_else(gone)?;
        if lock.generation.birth != id.birth || lock.object != LockObject::Descriptor {
            return Err(gone());
        }
        let judged = judge(&lock, self.me(), |slot| self.known_incarnation(slot));
        let binds = match judged {
            Judged::Free => true,
            Judged::Stale(_) => false,
            Judged::Held(holder) => return Ok(Look::Ask(holder, lock.generation)),
            Judged::Ours | Judged::Unsupported => return Ok(Look::Take),
            Judged::Gone => return Err(gone()),
        };
        if !self.is_contended(id.addr) && self.readings.borrow_mut().is_worth_the_lock(id) {
            return Ok(Look::Take);
        }
        let Ok(body) = Descriptor::decode(&bytes, self.sb.volume, id.addr.plus(1)) else {
            return Ok(Look::Torn);
        };
        let torn = if binds {
            !stamp_matches(&lock.stamp, &bytes)
        } else {
            body.version < lock.stamp.version
        };
        if torn {
            return Ok(Look::Torn);
        }
        if body.kind == FileKind::Void {
            return Err(gone());
        }
        Ok(Look::Seen(Box::new(body), lock))
    }

    /// Runs `read` on a view until what it read is consistent. Errors count only if it was.
    pub(crate) async fn reading<T>(
        &self,
        id: FileId,
        mut read: impl AsyncFnMut(&View<'_>) -> Result<T>,
    ) -> Result<T> {
        let _operation = self.operation()?;
        let result = self.read_consistently(id, &mut read).await;
        // R1: a cached answer too is given only by a host whose lease is open (H15).
        self.io.pass().await?;
        result
    }

    async fn read_consistently<T>(
        &self,
        id: FileId,
        read: &mut impl AsyncFnMut(&View<'_>) -> Result<T>,
    ) -> Result<T> {
        for _ in 0..ATTEMPTS_MAX {
            let view = self.view(id).await?;
            let result = read(&view).await;
            if view.is_held() || view.is_valid().await? {
                return result;
            }
            self.io.count(|c| c.reads_retried += 1);
        }
        // Writers are faster than we read: read under the lock.
        loop {
            drop(self.hold(Wish::from(id)).await?);
            if let Some(guard) = self.read_held(Wish::from(id)).await {
                return read(&View::held(self, id, guard)).await;
            }
        }
    }
}
