//! Other mounts of the same file system: bind mounts, and copies in other mount namespaces.
//!
//! The kernel keeps the file system, and asks its server, until the last of them is gone. An
//! unmount of ours takes some along: those that lie at the same place of a parent which repeats
//! what happens to our parent. The others stay, and whoever uses them needs the server.
//!
//! ```text
//!  parent shared:1 --+-- shared:1                 taken along: a peer
//!                    +-- master:1                 taken along: a slave (systemd's services)
//!                    +-- master:1 shared:7 ------ master:7       taken along: a slave's slave
//!  parent without a group, or at another place    stays (unshare -m, bind mounts)
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use crate::mount_table::{Mount, mounts, mounts_in};
use crate::users::processes;

/// A mount of some namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// The mount, by the names its namespace has.
    pub mount: Mount,
    /// A process that sees it; `None`: we do.
    pub by: Option<u32>,
    /// `None`: its parent is not seen.
    place: Option<Place>,
}

/// Where something is mounted, said without the names of a namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Place {
    device: (u32, u32),
    path: PathBuf,
    shared: Option<u64>,
    master: Option<u64>,
}

/// The mounts of all namespaces in which a process lives, as far as this program may see them.
pub fn mounts_everywhere() -> Vec<Seen> {
    let mut all = BTreeMap::new();
    add(&mut all, None, mounts().unwrap_or_default());
    let namespace = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/mnt")).ok();
    // Who has another root sees other mounts of the same namespace.
    let mut seen = BTreeSet::from([(namespace("self"), Some(PathBuf::from("/")))]);
    for pid in processes() {
        let root = std::fs::read_link(format!("/proc/{pid}/root")).ok();
        if seen.insert((namespace(&pid.to_string()), root)) {
            let table = PathBuf::from(format!("/proc/{pid}/mountinfo"));
            // It may have ended since.
            add(&mut all, Some(pid), mounts_in(&table).unwrap_or_default());
        }
    }
    all.into_values().collect()
}

fn add(all: &mut BTreeMap<u64, Seen>, by: Option<u32>, table: Vec<Mount>) {
    let by_id: BTreeMap<u64, &Mount> = table.iter().map(|mount| (mount.id, mount)).collect();
    for mount in &table {
        let place = by_id.get(&mount.parent).and_then(|parent| place(mount, parent));
        let is_news = all.get(&mount.id).is_none_or(|known| known.place.is_none());
        if is_news && (place.is_some() || !all.contains_key(&mount.id)) {
            all.insert(mount.id, Seen { mount: mount.clone(), by, place });
        }
    }
}

fn place(mount: &Mount, parent: &Mount) -> Option<Place> {
    let below: &Path = mount.point.strip_prefix(&parent.point).ok()?;
    Some(Place {
        device: parent.device,
        path: parent.root.join(below),
        shared: parent.shared,
        master: parent.master,
    })
}

/// The mounts of the file system that stay when `ours` is unmounted.
pub fn staying<'a>(ours: &Mount, all: &'a [Seen]) -> Vec<&'a Seen> {
    let place = all.iter().find(|seen| seen.mount.id == ours.id).and_then(|us| us.place.clone());
    let groups = place.as_ref().map(|place| repeating(place, all)).unwrap_or_default();
    let is_in = |group: Option<u64>| group.is_some_and(|group| groups.contains(&group));
    let goes_along = |seen: &Seen| match (&seen.place, &place) {
        (Some(theirs), Some(place)) => {
            (theirs.device, &theirs.path) == (place.device, &place.path)
                && (is_in(theirs.shared) || is_in(theirs.master))
        }
        _ => false,
    };
    let others = all.iter().filter(|seen| seen.mount.device == ours.device);
    others.filter(|seen| seen.mount.id != ours.id && !goes_along(seen)).collect()
}

/// The peer groups in which an unmount at `place` is repeated: its own, and those of its slaves.
fn repeating(place: &Place, all: &[Seen]) -> BTreeSet<u64> {
    let mut groups: BTreeSet<u64> = place.shared.into_iter().collect();
    // Each round adds a group or is the last.
    loop {
        let known = groups.len();
        let slaves = all.iter().filter(|s| s.mount.master.is_some_and(|g| groups.contains(&g)));
        let more: Vec<u64> = slaves.filter_map(|seen| seen.mount.shared).collect();
        groups.extend(more);
        if groups.len() == known {
            return groups;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOT: (u32, u32) = (254, 0);
    const OURS: (u32, u32) = (0, 99);

    fn mount(id: u64, parent: u64, device: (u32, u32), point: &str) -> Mount {
        let (root, kind) = (PathBuf::from("/"), "fuse.lunfs".to_owned());
        let (point, source) = (point.into(), String::new());
        Mount { id, parent, device, root, point, kind, source, shared: None, master: None }
    }

    /// Our mount at /mnt/a on a root in `shared`, and a copy at `point` on another root.
    fn stays(shared: Option<u64>, other: (Option<u64>, Option<u64>), point: &str) -> bool {
        let ours = mount(2, 1, OURS, "/mnt/a");
        let mut all = BTreeMap::new();
        let root = Mount { shared, ..mount(1, 0, ROOT, "/") };
        add(&mut all, None, vec![root, ours.clone()]);
        let between = Mount { shared: Some(7), master: Some(1), ..mount(20, 0, ROOT, "/") };
        add(&mut all, Some(8), vec![between]);
        let root = Mount { shared: other.0, master: other.1, ..mount(10, 0, ROOT, "/") };
        add(&mut all, Some(9), vec![root, mount(11, 10, OURS, point)]);
        let all: Vec<Seen> = all.into_values().collect();
        let staying = staying(&ours, &all);
        assert!(staying.iter().all(|seen| seen.mount.id == 11 && seen.by == Some(9)));
        !staying.is_empty()
    }

    #[test]
    fn a_copy_stays_where_unmounts_are_not_repeated() {
        assert!(stays(None, (None, None), "/mnt/a"), "unshare -m");
        assert!(stays(Some(1), (None, None), "/mnt/a"), "unshare -m on a shared root");
        assert!(stays(Some(1), (Some(2), None), "/mnt/a"), "a group of its own");
        assert!(stays(Some(1), (Some(1), None), "/other"), "a bind mount elsewhere");
        assert!(!stays(Some(1), (Some(1), None), "/mnt/a"), "a peer");
        assert!(!stays(Some(1), (None, Some(1)), "/mnt/a"), "a slave");
        assert!(!stays(Some(1), (Some(5), Some(1)), "/mnt/a"), "a slave with peers of its own");
        assert!(!stays(Some(1), (None, Some(7)), "/mnt/a"), "a slave of a slave");
    }

    #[test]
    fn our_own_mounts_are_seen_once() {
        let all = mounts_everywhere();
        let ids: BTreeSet<u64> = all.iter().map(|seen| seen.mount.id).collect();
        assert_eq!(ids.len(), all.len());
        assert!(all.iter().any(|seen| seen.by.is_none() && seen.mount.kind == "proc"));
    }
}
