//! Making disks and clones.
//!
//! Invariant: locks of new objects are on disk, ours and durable, before the record that makes
//! them reachable commits (H3). One record has the name, the file, its top, and what the layer
//! below counts.

use lunfs_format::{Content, Descriptor};

use crate::allocate::Purpose;
use crate::error::{Error, Kind, Result};
use crate::locks::Wish;
use crate::types::{Attr, FileId, FileKind, New};
use crate::volume::Volume;

/// Images of a record that makes a disk: file, top, layer below, directory and its path.
const IMAGES: u64 = 16;

impl Volume {
    /// Makes a disk of `size` bytes, which read zero.
    pub async fn create_disk(&self, dir: FileId, name: &[u8], new: New, size: u64) -> Result<Attr> {
        self.writable()?;
        Self::checked_name(name)?;
        Self::checked_disk(&new, size)?;
        let made = self
            .with_space(async || {
                let guard = self.hold(Wish::from(dir)).await?;
                self.write_back(&guard).await?;
                self.make_disk(dir, name, &new, (size, None)).await
            })
            .await?;
        self.getattr(made).await
    }

    /// Makes a disk that begins as a snapshot of another, or as that is now.
    pub async fn clone_disk(
        &self,
        (source, snapshot): (FileId, Option<&[u8]>),
        dir: FileId,
        name: &[u8],
        new: New,
    ) -> Result<Attr> {
        self.writable()?;
        Self::checked_name(name)?;
        Self::checked_disk(&new, 0)?;
        // A freeze that no clone follows would leave a layer behind.
        if self.reading(dir, async |view| self.find(view, name).await).await?.is_some() {
            return Err(Kind::Exists.into());
        }
        let frozen = match snapshot {
            Some(_) => None,
            None => Some(self.freeze_disk(source, None).await?),
        };
        let made = self
            .with_space(async || {
                let below = match (frozen, snapshot) {
                    (None, Some(snapshot)) => self.named(source, snapshot).await?,
                    (frozen, _) => frozen,
                };
                let below = below.ok_or_else(|| gone(snapshot))?;
                let wishes = [dir.into(), source.into(), below.into()];
                let guards = match self.hold_all(&wishes).await {
                    Err(e) if e.kind == Kind::Stale => return Err(gone(snapshot)),
                    other => other?,
                };
                self.write_back_all(&guards).await?;
                let layer = self.current(below);
                let is_there = match snapshot {
                    Some(name) => self.names_layer(source, name, below).await?,
                    None => layer.layer.children > 0 || layer.layer.names > 0,
                };
                if !is_there {
                    return Err(gone(snapshot));
                }
                self.make_disk(dir, name, &new, (layer.size, Some(below))).await
            })
            .await?;
        self.getattr(made).await
    }

    fn checked_disk(new: &New, size: u64) -> Result<()> {
        if new.kind != FileKind::File {
            return Err(Error::new(Kind::Invalid, "only a file can be a disk"));
        }
        if size > lunfs_format::SIZE_MAX {
            return Err(Error::new(Kind::TooLong, "beyond the largest size of a file"));
        }
        Ok(())
    }

    async fn named(&self, source: FileId, snapshot: &[u8]) -> Result<Option<FileId>> {
        let _guard = self.hold(source).await?;
        Ok(self.snapshot_held(source, snapshot).await?.map(|found| found.layer.into()))
    }

    async fn names_layer(&self, source: FileId, snapshot: &[u8], layer: FileId) -> Result<bool> {
        let found = self.snapshot_held(source, snapshot).await?;
        Ok(found.is_some_and(|found| FileId::from(found.layer) == layer))
    }

    /// The caller has the guards of the directory and of the layer below.
    async fn make_disk(
        &self,
        dir: FileId,
        name: &[u8],
        new: &New,
        (size, below): (u64, Option<FileId>),
    ) -> Result<FileId> {
        let mut parent = self.opened(dir)?;
        if self.find_held(dir, name).await?.is_some() {
            return Err(Kind::Exists.into());
        }
        let mut tx = self.begin(IMAGES, Purpose::New).await?;
        let (file, top) =
            (self.reserve(2, Purpose::New).await?, self.reserve(2, Purpose::New).await?);
        let [id, top_id] = [&file, &top].map(|made| FileId { addr: made.start, birth: made.birth });
        let locks = (self.init_lock(&file).await?, self.init_lock(&top).await?);
        let body = Descriptor {
            top: Some(top_id.into()),
            size: 0,
            content: Content::Empty,
            ..self.new_body(dir, new)
        };
        self.insert(&mut tx, &mut parent, name, id, FileKind::File).await?;
        tx.put_descriptor(dir.addr, parent.into_body());
        tx.put_new_descriptor(file, body);
        let layer = below.map(|below| (below, self.current(below)));
        let below = layer.as_ref().map(|(below, body)| (*below, body));
        tx.put_new_descriptor(top, self.new_layer(size, below)?);
        if let Some((below, mut body)) = layer {
            if !body.layer.frozen {
                return Err(Error::damaged(below.addr.plus(1), "a snapshot that is not frozen"));
            }
            Self::add_child(&mut body, top_id)?;
            tx.put_descriptor(below.addr, body);
        }
        tx.prepare().await?;
        self.adopt_new(id.addr, locks.0);
        self.adopt_new(top_id.addr, locks.1);
        tx.apply();
        Ok(id)
    }
}

fn gone(snapshot: Option<&[u8]>) -> Error {
    match snapshot {
        Some(name) => {
            let name = String::from_utf8_lossy(name);
            Error::new(Kind::NotFound, format!("the disk has no snapshot \"{name}\""))
        }
        None => Error::new(Kind::Busy, "the disk was changed meanwhile; try again"),
    }
}
