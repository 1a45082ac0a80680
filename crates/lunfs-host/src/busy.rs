//! All that keeps a mount busy, and what may be done about it.
//!
//! The kernel only says that a mount is busy, and it does not even say that of copies elsewhere
//! (copies.rs), whose users would lose the server. So we look ourselves before we unmount.

use std::fmt;

use crate::copies::{Seen, mounts_everywhere, staying};
use crate::loop_devices::{LoopDevice, loop_devices};
use crate::mount_table::Mount;
use crate::users::{User, name_of, users_of};

/// Who and what needs a mount.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Busy {
    /// Processes.
    users: Vec<User>,
    /// Loop devices on files of it.
    loops: Vec<LoopDevice>,
    /// File systems mounted below it, or on a loop device of it. Without it they are lost.
    mounted: Vec<Mount>,
    /// Other mounts of it that stay.
    copies: Vec<Seen>,
    /// Exports that have clients, as they are named. The kernel knows nothing of them.
    exports: Vec<String>,
}

/// What may be done now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nobody needs it: unmount.
    Unmount,
    /// Its users still have time.
    Wait,
    /// Their time is over: take it from under them.
    Take,
    /// It stays.
    Refuse,
}

/// How an unmount is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// If nobody needs it.
    Gentle,
    /// Users have time.
    Force,
    /// Users had time.
    ForceNow,
}

impl Busy {
    /// Looks everywhere. Asks nothing of the mount itself.
    pub fn look(mount: &Mount) -> Busy {
        let all = mounts_everywhere();
        let points: Vec<&Mount> = all
            .iter()
            .map(|seen| &seen.mount)
            .filter(|other| other.device == mount.device)
            .collect();
        let mut loops = loop_devices();
        loops.retain(|device| points.iter().any(|on| device.backing.starts_with(&on.point)));
        Busy {
            users: users_of(mount),
            mounted: mounted_on(mount, &loops, &all),
            copies: staying(mount, &all).into_iter().cloned().collect(),
            loops,
            exports: Vec::new(),
        }
    }

    /// With the exports that have clients, which only the daemon knows.
    pub fn with_exports(self, exports: Vec<String>) -> Busy {
        Busy { exports, ..self }
    }

    /// Nobody and nothing was found.
    pub fn is_empty(&self) -> bool {
        *self == Busy::default()
    }

    /// May it be over in a moment, without anybody's doing?
    pub fn may_pass(&self) -> bool {
        self.mounted.is_empty() && self.loops.is_empty()
    }

    /// Names each of them.
    pub fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = self.users.iter().map(shown_user).collect();
        names.extend(self.mounted.iter().map(shown_mount));
        names.extend(self.loops.iter().map(shown_loop));
        names.extend(self.copies.iter().map(shown_copy));
        names.extend(self.exports.iter().cloned());
        names
    }

    /// What may be done.
    pub fn verdict(&self, wish: Wish) -> Verdict {
        match wish {
            // A file system that loses its ground loses what it has not written.
            _ if !self.mounted.is_empty() => Verdict::Refuse,
            _ if self.is_empty() => Verdict::Unmount,
            Wish::Gentle => Verdict::Refuse,
            Wish::Force => Verdict::Wait,
            Wish::ForceNow => Verdict::Take,
        }
    }
}

/// File systems below `mount`, and those on loop devices of it, in whatever namespace.
fn mounted_on(mount: &Mount, loops: &[LoopDevice], all: &[Seen]) -> Vec<Mount> {
    let mut below = vec![mount.id];
    let mut found = Vec::new();
    // Parents may come behind their children; each round adds a mount or is the last.
    loop {
        let known = below.len();
        for Seen { mount: other, .. } in all {
            let is_on_loop = loops.iter().any(|device| device.numbers.contains(&other.device));
            if !below.contains(&other.id) && (is_on_loop || below.contains(&other.parent)) {
                below.push(other.id);
                found.push(other.clone());
            }
        }
        if below.len() == known {
            return found;
        }
    }
}

/// Says what is mounted below `mount`; it goes where `mount` goes.
pub fn mounted_below(mount: &Mount) -> Vec<String> {
    mounted_on(mount, &[], &mounts_everywhere()).iter().map(shown_mount).collect()
}

impl fmt::Display for Busy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut said = self.names();
        if said.is_empty() {
            let nobody = "the kernel says so and names nobody; it may be a process that is not \
                          seen from here, or an NFS export";
            said.push(nobody.to_owned());
        }
        write!(f, "{}", said.join("; "))?;
        if self.mounted.is_empty() {
            return write!(f, "; nothing was done: end them, or use --force");
        }
        write!(f, "; nothing was done: unmount first what is mounted there, --force does not")
    }
}

fn shown_user(user: &User) -> String {
    let first = user.uses.first().map_or("", String::as_str);
    let more = match user.uses.len() {
        0 | 1 => String::new(),
        count => format!(" and {} more", count - 1),
    };
    format!("{} ({}): {first}{more}", user.name, user.pid)
}

fn shown_mount(mount: &Mount) -> String {
    format!("{} ({}) is mounted at {}", mount.source, mount.kind, mount.point.display())
}

fn shown_loop(device: &LoopDevice) -> String {
    let name = &device.name;
    format!("/dev/{name} is a loop device on {} (losetup -d ends it)", device.backing.display())
}

fn shown_copy(copy: &Seen) -> String {
    let point = copy.mount.point.display();
    match copy.by {
        None => format!("it is mounted at {point}, too (umount ends that)"),
        Some(pid) => {
            format!("{} ({pid}) has a copy of it at {point}, in its own namespace", name_of(pid))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mount_table::mounts;

    fn some_mount() -> Mount {
        mounts().unwrap().remove(0)
    }

    #[test]
    fn what_is_mounted_on_it_is_never_taken_away() {
        let busy = Busy { mounted: vec![some_mount()], ..Busy::default() };
        for wish in [Wish::Gentle, Wish::Force, Wish::ForceNow] {
            assert_eq!(busy.verdict(wish), Verdict::Refuse);
        }
        assert!(busy.to_string().contains("unmount first"), "{busy}");
    }

    #[test]
    fn users_have_time_before_force_takes_it_from_them() {
        let users = vec![User { pid: 7, name: "cat".into(), uses: vec!["fd 5 /a".into()] }];
        let busy = Busy { users, ..Busy::default() };
        assert_eq!(busy.verdict(Wish::Gentle), Verdict::Refuse);
        assert_eq!(busy.verdict(Wish::Force), Verdict::Wait);
        assert_eq!(busy.verdict(Wish::ForceNow), Verdict::Take);
        assert_eq!(
            busy.to_string(),
            "cat (7): fd 5 /a; nothing was done: end them, or use --force"
        );
        assert_eq!(Busy::default().verdict(Wish::Gentle), Verdict::Unmount);
    }

    #[test]
    fn clients_of_exports_are_users_like_others() {
        let busy = Busy::default().with_exports(vec!["a client of the export of vm".into()]);
        assert_eq!(busy.verdict(Wish::Gentle), Verdict::Refuse);
        assert_eq!(busy.verdict(Wish::Force), Verdict::Wait);
        assert_eq!(busy.verdict(Wish::ForceNow), Verdict::Take);
        assert!(busy.may_pass() && busy.to_string().starts_with("a client of the export of vm"));
    }

    #[test]
    fn nobody_is_named_where_only_the_kernel_knows() {
        assert!(Busy::default().to_string().contains("names nobody"));
    }

    #[test]
    fn file_systems_are_found_below_one_another() {
        let mount = |id, parent| Mount { id, parent, ..some_mount() };
        let mut all = mounts_everywhere();
        let one = all[0].clone();
        all.clear();
        for (id, parent) in [(3, 2), (2, 1), (1, 0), (4, 0)] {
            let mut seen = one.clone();
            seen.mount = mount(id, parent);
            all.push(seen);
        }
        let found = mounted_on(&mount(1, 0), &[], &all);
        assert_eq!(found.iter().map(|m| m.id).collect::<Vec<_>>(), [2, 3]);
    }
}
