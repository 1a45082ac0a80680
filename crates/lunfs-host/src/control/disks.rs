//! Disks, snapshots and clones, as the control socket speaks of them.
//!
//! What changed is durable before it is answered: who types a command may pull the plug after it.

use lunfs_core::{
    Attr, DirEntry, Error, FileId, FileKind, Kind, New, Result, SetAttr, SnapshotStatus,
};
use lunfs_format::{BLOCK, Timestamp};
use serde_json::{Value, json};

use super::server::Served;
use crate::socket::Owner;

/// Entries of a directory in one answer: each may be a look at the storage.
const ENTRIES_MAX: usize = 100;
/// A disk is for who made it, until he says otherwise.
const MODE: u32 = 0o600;
/// A group is inherited from a directory that has this bit.
const SET_GROUP_ID: u32 = 0o2000;

impl Served {
    /// An empty disk.
    pub(super) async fn create_disk(&self, path: &str, size: u64, owner: Owner) -> Result<Value> {
        let (dir, name) = self.new_name(path).await?;
        let new = Self::new_disk(&dir, owner);
        let made = self.volume.create_disk(dir.id, name.as_bytes(), new, size).await;
        let made = made.map_err(|e| self.explained(path, e))?;
        self.volume.fsync(made.id).await?;
        Ok(row(path, &made, json!([])))
    }

    /// A disk that begins as another one was at a snapshot, or is now.
    pub(super) async fn clone_disk(
        &self,
        (source, snapshot): (&str, Option<&str>),
        path: &str,
        owner: Owner,
    ) -> Result<Value> {
        let disk = self.find_disk(source).await?.id;
        let (dir, name) = self.new_name(path).await?;
        let new = Self::new_disk(&dir, owner);
        let from = (disk, snapshot.map(str::as_bytes));
        let made = self.volume.clone_disk(from, dir.id, name.as_bytes(), new).await;
        let made = made.map_err(|e| self.explained(source, e))?;
        self.volume.fsync(made.id).await?;
        Ok(row(path, &made, json!([])))
    }

    /// What a disk is.
    pub(super) async fn disk(&self, path: &str) -> Result<Value> {
        let disk = self.find_disk(path).await?;
        let snapshots = self.volume.snapshots(disk.id).await?;
        Ok(row(path, &disk, snapshots.iter().map(snapshot).collect()))
    }

    /// Some disks and directories of a directory, and where to go on: `null` at its end, and in one
    /// that was removed meanwhile.
    pub(super) async fn disks(&self, path: &str, after: u64) -> Result<Value> {
        let entries = match self.entries(path, after).await {
            Err(e) if matches!(e.kind, Kind::NotFound | Kind::Stale) => Vec::new(),
            other => other.map_err(|e| self.explained(path, e))?,
        };
        let (mut disks, mut directories) = (Vec::new(), Vec::new());
        for entry in &entries {
            let name = String::from_utf8_lossy(&entry.name);
            match entry.kind {
                FileKind::Directory => directories.push(name.into_owned()),
                FileKind::File => disks.extend(self.listed(&name, entry.id).await),
                _ => {}
            }
        }
        let next = entries.last().map(|entry| entry.cookie);
        Ok(json!({ "disks": disks, "directories": directories, "next": next }))
    }

    async fn entries(&self, path: &str, after: u64) -> Result<Vec<DirEntry>> {
        let dir = self.find(path).await?;
        self.volume.readdir(dir, after, ENTRIES_MAX).await
    }

    /// One that is damaged does not hide the others.
    async fn listed(&self, name: &str, file: FileId) -> Option<Value> {
        match self.counted(name, file).await {
            // It was deleted meanwhile.
            Err(e) if matches!(e.kind, Kind::NotFound | Kind::Stale) => None,
            Err(e) => Some(json!({ "path": name, "error": e.to_string() })),
            Ok(row) => row,
        }
    }

    async fn counted(&self, name: &str, file: FileId) -> Result<Option<Value>> {
        let attr = self.volume.getattr(file).await?;
        if !attr.is_disk {
            return Ok(None);
        }
        let snapshots = self.volume.snapshots(file).await?.len();
        Ok(Some(row(name, &attr, json!(snapshots))))
    }

    /// Makes a disk longer, or cuts it.
    pub(super) async fn resize_disk(&self, path: &str, size: u64) -> Result<Value> {
        let disk = self.find_disk(path).await?.id;
        let set = SetAttr { size: Some(size), ..SetAttr::default() };
        let now = self.volume.setattr(disk, set).await.map_err(|e| self.explained(path, e))?;
        self.volume.fsync(disk).await?;
        Ok(row(path, &now, Value::Null))
    }

    /// Takes the name of a disk away; with the last one goes the disk, and with it its snapshots.
    pub(super) async fn delete_disk(&self, path: &str) -> Result<Value> {
        let disk = self.find_disk(path).await?;
        let (dir, name) = self.parent(path).await?;
        let snapshots = self.volume.snapshots(disk.id).await?.len();
        let gone = self.volume.unlink(dir.id, name.as_bytes()).await;
        gone.map_err(|e| self.explained(path, e))?;
        self.volume.fsync(dir.id).await?;
        let names = disk.nlink.saturating_sub(1);
        Ok(json!({ "path": path, "snapshots": snapshots, "names_left": names }))
    }

    /// A snapshot of all that was answered before.
    pub(super) async fn create_snapshot(&self, path: &str, name: &str) -> Result<Value> {
        let disk = self.find_disk(path).await?.id;
        let made = self.volume.snapshot(disk, name.as_bytes()).await;
        made.map_err(|e| match e.kind {
            Kind::Exists => Error::new(
                e.kind,
                format!(
                    "{} has a snapshot \"{name}\" already; nothing was done: give another name, \
                     or delete that one first",
                    self.shown(path)
                ),
            ),
            _ => self.explained(path, e),
        })?;
        let all = self.volume.snapshots(disk).await?;
        let found = all.iter().find(|found| found.name == name.as_bytes());
        Ok(found.map_or(Value::Null, snapshot))
    }

    /// Takes the name of a snapshot away.
    pub(super) async fn delete_snapshot(&self, path: &str, name: &str) -> Result<Value> {
        let disk = self.find_disk(path).await?.id;
        let gone = self.volume.delete_snapshot(disk, name.as_bytes()).await;
        gone.map_err(|e| self.explained(path, e))?;
        self.volume.fsync(disk).await?;
        Ok(Value::Null)
    }

    async fn find_disk(&self, path: &str) -> Result<Attr> {
        let attr = self.volume.getattr(self.find(path).await?).await?;
        if attr.is_disk {
            return Ok(attr);
        }
        let what = match attr.kind {
            FileKind::File => "a plain file",
            FileKind::Directory => "a directory",
            _ => "no file",
        };
        let shown = self.shown(path);
        let why = format!(
            "{shown} is {what}, not a disk; nothing was done. Disks are made by `lunfs disk \
             create` and `lunfs clone`"
        );
        Err(Error::new(Kind::Invalid, why))
    }

    /// The directory of a path, and the last name.
    async fn parent<'p>(&self, path: &'p str) -> Result<(Attr, &'p str)> {
        let (dir, name) = path.rsplit_once('/').unwrap_or(("", path));
        Ok((self.volume.getattr(self.find(dir).await?).await?, name))
    }

    /// The same for a name that is free. The core looks again; a clone that finds out there has
    /// frozen its source for nothing.
    async fn new_name<'p>(&self, path: &'p str) -> Result<(Attr, &'p str)> {
        let (dir, name) = self.parent(path).await?;
        match self.volume.lookup(dir.id, name.as_bytes()).await {
            Err(e) if e.kind == Kind::NotFound => Ok((dir, name)),
            Err(e) => Err(self.explained(path, e)),
            Ok(_) => Err(Error::new(
                Kind::Exists,
                format!("{} exists; nothing was done: give another name", self.shown(path)),
            )),
        }
    }

    fn new_disk(dir: &Attr, Owner { uid, gid }: Owner) -> New {
        let gid = if dir.mode & SET_GROUP_ID != 0 { dir.gid } else { gid };
        New { kind: FileKind::File, mode: MODE, uid, gid, rdev: 0, target: Vec::new() }
    }

    fn shown(&self, path: &str) -> String {
        // The mount point itself, without a slash behind it.
        let below = path.trim_start_matches('/');
        let point = &self.mount.point;
        if below.is_empty() { point.clone() } else { point.join(below) }.display().to_string()
    }

    /// Where it was, and what to do, for what an operator can do something about.
    fn explained(&self, path: &str, Error { kind, what }: Error) -> Error {
        let (shown, point) = (self.shown(path), self.mount.point.display());
        let next = match kind {
            Kind::Busy => format!(
                "; nothing was done. `lunfs hosts {point}` says which host that is: do it there, \
                 or when nobody has the disk open there any more"
            ),
            Kind::NotFound => {
                format!("; nothing was done. `lunfs snapshot list {shown}` says what there is")
            }
            Kind::NoSpace => format!(
                "; nothing was done: delete something. `lunfs info {point}` shows the space"
            ),
            Kind::Exists | Kind::Invalid | Kind::TooLong | Kind::ReadOnly => {
                "; nothing was done".into()
            }
            _ => String::new(),
        };
        Error::new(kind, format!("{shown}: {what}{next}"))
    }
}

fn row(path: &str, disk: &Attr, snapshots: Value) -> Value {
    json!({
        "path": path,
        "size": disk.size,
        "allocated": disk.blocks.saturating_mul(BLOCK as u64),
        "snapshots": snapshots,
    })
}

fn snapshot(status: &SnapshotStatus) -> Value {
    json!({
        "name": String::from_utf8_lossy(&status.name),
        "size": status.size,
        "created": rfc3339(status.created),
    })
}

/// A moment as RFC 3339 has it, in UTC, to the millisecond.
fn rfc3339(moment: Timestamp) -> String {
    const DAY: i64 = 24 * 60 * 60;
    let (year, month, day) = date(moment.seconds.div_euclid(DAY));
    let second = moment.seconds.rem_euclid(DAY);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{:03}Z",
        second / 3600,
        second / 60 % 60,
        second % 60,
        moment.nanos / 1_000_000
    )
}

/// Year, month and day, from the days since 1970-01-01. Years begin in March here, so that the day
/// that is not always there is their last; 400 of them have the same days always.
fn date(days: i64) -> (i64, i64, i64) {
    const OF_400_YEARS: i64 = 146_097;
    const BEFORE_1970: i64 = 719_468;
    let days = days + BEFORE_1970;
    let of_era = days.rem_euclid(OF_400_YEARS);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let year = days.div_euclid(OF_400_YEARS) * 400 + year_of_era;
    if month < 10 { (year, month + 3, day) } else { (year + 1, month - 9, day) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_told_as_other_programs_tell_them() {
        let told = |seconds, nanos| rfc3339(Timestamp { seconds, nanos });
        assert_eq!(told(0, 0), "1970-01-01T00:00:00.000Z");
        assert_eq!(told(-1, 999_000_000), "1969-12-31T23:59:59.999Z");
        assert_eq!(told(951_782_400, 0), "2000-02-29T00:00:00.000Z");
        assert_eq!(told(951_868_799, 1_999_999), "2000-02-29T23:59:59.001Z");
        assert_eq!(told(1_709_164_800, 0), "2024-02-29T00:00:00.000Z");
        assert_eq!(told(1_795_757_500, 0), "2026-11-27T05:31:40.000Z");
        assert_eq!(told(4_107_542_400, 0), "2100-03-01T00:00:00.000Z");
        for any in [i64::MIN, i64::MAX] {
            told(any, u32::MAX);
        }
    }
}
