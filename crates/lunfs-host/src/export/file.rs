//! A file of the volume as a disk: what every protocol of exports needs, and no protocol.
//!
//! Invariants:
//! - The volume is never asked for more at once than the kernel asks for (`PIECE`): a longer read
//!   or write is made of pieces, one after the other, and is not one step for others.
//! - What lies behind the end of a file that was cut is an error, not zeroes.

use std::rc::Rc;

use lunfs_core::{Error, Fallocate, FileId, Kind, Result, Seek, Volume};

/// Bytes of one read or write of the volume, as FUSE has them.
const PIECE: u64 = 1 << 20;
/// What the volume reads and writes as a whole: a grain of a file.
pub const GRAIN: u64 = 4096;

/// A run of bytes that were written, or of none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    pub len: u64,
    /// It has data; without, it reads zero and has no place yet.
    pub has_data: bool,
}

/// An open file of the volume; closed when dropped.
pub struct ExportedFile {
    volume: Rc<Volume>,
    id: FileId,
    /// The last part of its name when it was exported.
    pub name: String,
    pub read_only: bool,
}

impl ExportedFile {
    pub fn open(volume: &Rc<Volume>, id: FileId, name: String, read_only: bool) -> ExportedFile {
        volume.open(id);
        ExportedFile { volume: Rc::clone(volume), id, name, read_only }
    }

    pub async fn size(&self) -> Result<u64> {
        Ok(self.volume.getattr(self.id).await?.size)
    }

    /// All of a range, in pieces.
    pub async fn read(&self, at: u64, len: u32) -> Result<Vec<Vec<u8>>> {
        let mut read = Vec::new();
        for (at, len) in pieces(at, len) {
            let piece = self.volume.read(self.id, at, len).await?;
            if piece.len() < len {
                return Err(self.cut());
            }
            read.push(piece);
        }
        Ok(read)
    }

    /// Writes pieces that lie one behind the other from `at`.
    pub async fn write(&self, mut at: u64, pieces: Vec<Vec<u8>>) -> Result<()> {
        for piece in pieces {
            let len = piece.len() as u64;
            self.volume.write(self.id, at, piece).await?;
            at += len;
        }
        Ok(())
    }

    /// Everything that was answered, on whatever connection or mount of this host, is durable.
    pub async fn sync(&self) -> Result<()> {
        self.volume.fsync(self.id).await
    }

    /// The range reads zero, and its space is given back where that is possible.
    pub async fn punch(&self, at: u64, len: u64) -> Result<()> {
        self.volume.fallocate(self.id, at, len, Fallocate::PunchHole).await
    }

    /// The range reads zero and has its place: a later write there does not lack space.
    pub async fn zero_in_place(&self, at: u64, len: u64) -> Result<()> {
        self.volume.fallocate(self.id, at, len, Fallocate::ZeroRange { keep_size: true }).await?;
        self.volume.fallocate(self.id, at, len, Fallocate::Allocate { keep_size: true }).await
    }

    /// What lies from `at`, in at most about `count_max` runs; at least one, at most `len` bytes.
    pub async fn extents(&self, at: u64, len: u64, count_max: usize) -> Result<Vec<Extent>> {
        let end = at + len;
        let mut extents = Extents { at, list: Vec::new() };
        while extents.at < end && extents.list.len() < count_max {
            let from = extents.at;
            let Some(data) = self.seek(from, Seek::Data).await? else {
                let size = self.size().await?;
                if size <= from && extents.list.is_empty() {
                    return Err(self.cut());
                }
                extents.reach(end.min(size), false);
                break;
            };
            extents.reach(data.min(end), false);
            if data < end {
                // Somebody may have punched it since: the hole may begin right there.
                let hole = self.seek(data, Seek::Hole).await?.unwrap_or(end);
                extents.reach(hole.min(end).max(data + 1), true);
            }
        }
        Ok(extents.list)
    }

    /// `None`: the file has none of it from there on.
    async fn seek(&self, at: u64, what: Seek) -> Result<Option<u64>> {
        match self.volume.seek(self.id, at, what).await {
            Err(e) if e.kind == Kind::NotFound => Ok(None),
            found => found.map(Some),
        }
    }

    fn cut(&self) -> Error {
        Error::new(Kind::Io, format!("{} was cut while it is exported", self.name))
    }
}

impl Drop for ExportedFile {
    fn drop(&mut self) {
        self.volume.close(self.id);
    }
}

/// Runs that follow each other.
struct Extents {
    at: u64,
    list: Vec<Extent>,
}

impl Extents {
    fn reach(&mut self, to: u64, has_data: bool) {
        if to > self.at {
            self.list.push(Extent { len: to - self.at, has_data });
            self.at = to;
        }
    }
}

/// The parts of a range that the volume is asked for: they end at multiples of `PIECE`.
pub fn pieces(at: u64, len: u32) -> impl Iterator<Item = (u64, usize)> {
    let end = at + u64::from(len);
    let mut next = at;
    std::iter::from_fn(move || {
        let from = next;
        next = end.min((from / PIECE + 1) * PIECE);
        let len = usize::try_from(next - from).expect("a piece fits the address space");
        (from < end).then_some((from, len))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_cover_a_range_and_end_at_their_multiples() {
        let all = |at, len| pieces(at, len).collect::<Vec<_>>();
        assert_eq!(all(5, 0), []);
        assert_eq!(all(5, 7), [(5, 7)]);
        assert_eq!(all(PIECE - 1, 2), [(PIECE - 1, 1), (PIECE, 1)]);
        assert_eq!(all(0, 3 << 20).len(), 3);
        assert_eq!(all(1, 32 << 20).len(), 33);
        let far = (1 << 56) - 10;
        assert_eq!(all(far, 10), [(far, 10)]);
    }

    #[test]
    fn runs_follow_each_other_and_none_is_empty() {
        let mut extents = Extents { at: 10, list: Vec::new() };
        extents.reach(10, false);
        extents.reach(14, true);
        extents.reach(12, false);
        extents.reach(20, false);
        let hole = Extent { len: 6, has_data: false };
        assert_eq!(extents.list, [Extent { len: 4, has_data: true }, hole]);
    }
}
