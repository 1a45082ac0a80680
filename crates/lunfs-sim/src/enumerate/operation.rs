//! The operations that are tried: at least one for each `Step`, and for each way it can go.

use lunfs_core::{Fallocate, FileKind, RenameMode};

use super::fixture::{FILLER, FILLER_END, INLINE_FULL, LEAF_FULL, MERGES, long};
use super::step::Step;

/// An operation with a name.
#[derive(Clone, Debug)]
pub struct Operation {
    /// Its name.
    pub name: &'static str,
    /// What is done.
    pub steps: Vec<Step>,
    /// What makes it durable.
    pub sync: Step,
}

fn operation(name: &'static str, sync: &str, steps: impl Into<Vec<Step>>) -> Operation {
    Operation { name, steps: steps.into(), sync: Step::Fsync(sync.into()) }
}

fn peer(step: Step) -> Step {
    Step::Peer(Box::new(step))
}

fn create(path: &str, kind: FileKind) -> Step {
    Step::Create { path: path.into(), kind }
}

fn rename(from: &str, to: &str, mode: RenameMode) -> Step {
    Step::Rename { from: from.into(), to: to.into(), mode }
}

fn write(path: &str, at: u64, len: usize, salt: u8) -> Step {
    Step::Write { path: path.into(), at, len, salt }
}

fn fallocate(path: &str, at: u64, len: u64, mode: Fallocate) -> Step {
    Step::Fallocate { path: path.into(), at, len, mode }
}

fn set_xattr(path: &str, name: &'static str, len: usize, salt: u8) -> Step {
    Step::SetXattr { path: path.into(), name, len, salt }
}

/// Names: making and taking them.
fn naming() -> Vec<Operation> {
    let unlinks: Vec<Step> = (0..MERGES).map(|number| Step::Unlink(long("n", number))).collect();
    vec![
        operation("create", "d/new", [create("d/new", FileKind::File)]),
        operation("mkdir", "d/dir", [create("d/dir", FileKind::Directory)]),
        operation("symlink", "d", [create("d/sym", FileKind::Symlink)]),
        operation("mknod", "d", [create("d/node", FileKind::CharDevice)]),
        operation("link", "d", [Step::Link { from: "f".into(), to: "d/lf".into() }]),
        operation("unlink-last", "", [Step::Unlink("f".into())]),
        operation("unlink-one-of-two", "d", [Step::Unlink("d/l2".into())]),
        operation("unlink-open", "", [Step::Open("g".into()), Step::Unlink("g".into())]),
        operation(
            "unlink-open-close",
            "",
            [Step::Open("big".into()), Step::Unlink("big".into()), Step::Close("big".into())],
        ),
        operation("rmdir", "", [Step::Rmdir("e".into())]),
        operation("inline-grows", "i", [create(&long("i", INLINE_FULL), FileKind::File)]),
        operation("tree-splits", "m", [create(&long("m", LEAF_FULL), FileKind::File)]),
        operation("trees-merge", "n", unlinks),
    ]
}

/// Names: moving them.
fn renaming() -> Vec<Operation> {
    use RenameMode::{Exchange, NoReplace, Replace};
    vec![
        operation("rename", "", [rename("f", "f2", Replace)]),
        operation("rename-onto-file", "", [rename("g", "f", Replace)]),
        operation("rename-onto-directory", "", [rename("d", "e", Replace)]),
        operation("rename-noreplace", "", [rename("small", "small2", NoReplace)]),
        operation("rename-across", "d", [rename("f", "d/f", Replace)]),
        operation("rename-directory-across", "d", [rename("e2", "d/e2", Replace)]),
        operation("exchange", "", [rename("f", "g", Exchange)]),
        operation("exchange-across", "full", [rename("e", "full/y", Exchange)]),
    ]
}

/// Contents.
fn contents() -> Vec<Operation> {
    let keep_size = true;
    vec![
        operation("write-first", "full/y", [write("full/y", 0, 5000, 20)]),
        operation("write-inline", "small", [write("small", 100, 400, 21)]),
        operation("write-out-of-inline", "small", [write("small", 200, 3000, 22)]),
        operation("append", "f", [Step::Append { path: "f".into(), len: 3000, salt: 23 }]),
        operation("overwrite", "f", [write("f", 1000, 5000, 24)]),
        operation("write-hole", "big", [write("big", 100_000, 5000, 25)]),
        operation("write-behind-end", "g", [write("g", 20_000, 3000, 26)]),
        operation(
            "fallocate",
            "f",
            [fallocate("f", 8192, 20_000, Fallocate::Allocate { keep_size: false })],
        ),
        operation(
            "fallocate-keep",
            "g",
            [fallocate("g", 0, 30_000, Fallocate::Allocate { keep_size })],
        ),
        operation("punch", "f", [fallocate("f", 1000, 8000, Fallocate::PunchHole)]),
        operation("punch-block", "big", [fallocate("big", 0, 256 << 10, Fallocate::PunchHole)]),
        operation(
            "zero-range",
            "f",
            [fallocate("f", 2000, 9000, Fallocate::ZeroRange { keep_size: false })],
        ),
    ]
}

/// Disks, snapshots and clones.
fn disks() -> Vec<Operation> {
    let clone = |snapshot, to: &str| Step::Clone { from: "k".into(), snapshot, to: to.into() };
    vec![
        operation("disk-create", "d/disk", [Step::CreateDisk("d/disk".into(), 1 << 20)]),
        operation("disk-write-in-grain", "k", [write("k", 12_500, 100, 60)]),
        operation("disk-write-new-block", "kc", [write("kc", 530_000, 9000, 61)]),
        operation("disk-punch", "k", [fallocate("k", 2000, 14_000, Fallocate::PunchHole)]),
        operation(
            "disk-punch-block",
            "kc",
            [fallocate("kc", 256 << 10, 256 << 10, Fallocate::PunchHole)],
        ),
        operation(
            "disk-cut-and-grow",
            "k",
            [Step::SetSize("k".into(), 275_000), Step::SetSize("k".into(), 600_000)],
        ),
        operation("snapshot", "k", [write("k", 1000, 3000, 62), Step::Snapshot("k".into(), "new")]),
        operation("snapshot-delete", "k", [Step::DeleteSnapshot("k".into(), "old")]),
        operation("clone-snapshot", "d/c", [clone(Some("old"), "d/c")]),
        operation("clone", "d/c", [write("k", 1000, 3000, 63), clone(None, "d/c")]),
        operation("disk-unlink", "", [Step::Unlink("k".into())]),
        operation("clone-unlink", "", [Step::Unlink("kc".into())]),
    ]
}

/// Attributes.
fn attributes() -> Vec<Operation> {
    vec![
        operation("chmod", "f", [Step::SetMode("f".into(), 0o600)]),
        operation("grow", "g", [Step::SetSize("g".into(), 50_000)]),
        operation("cut-in-grain", "f", [Step::SetSize("f".into(), 9000)]),
        operation("cut-grains", "f", [Step::SetSize("f".into(), 100)]),
        operation("cut-blocks", "big", [Step::SetSize("big".into(), 5000)]),
        operation("cut-to-nothing", "l1", [Step::SetSize("l1".into(), 0)]),
        operation(
            "cut-and-grow",
            "f",
            [Step::SetSize("f".into(), 5000), Step::SetSize("f".into(), 9500)],
        ),
        operation("set-xattr", "f", [set_xattr("f", "user.new", 30, 30)]),
        operation("replace-xattr", "g", [set_xattr("g", "user.small", 40, 31)]),
        operation("remove-xattr", "g", [Step::RemoveXattr("g".into(), "user.small")]),
        operation("xattr-grows-tree", "f", [set_xattr("f", "user.large", 9000, 32)]),
        operation("xattr-frees-tree", "g", [Step::RemoveXattr("g".into(), "user.tree")]),
    ]
}

/// What the volume does beside operations.
fn services() -> Vec<Operation> {
    vec![
        Operation { name: "sync", steps: vec![], sync: Step::Sync },
        Operation { name: "checkpoint", steps: vec![Step::Idle(5500)], sync: Step::Sync },
        Operation { name: "hand-over", steps: vec![Step::PeerLooks], sync: Step::Sync },
    ]
}

/// Everything that makes pairs.
pub fn operations() -> Vec<Operation> {
    [naming(), renaming(), contents(), disks(), attributes(), services()].concat()
}

/// What two hosts do to one file or directory; not for pairs, since the order in which the changes
/// of two hosts become durable is promised for none but what they share.
pub fn of_two_hosts() -> Vec<Operation> {
    vec![
        operation(
            "both-create",
            "d",
            [
                create("d/a1", FileKind::File),
                peer(create("d/b1", FileKind::File)),
                create("d/a2", FileKind::File),
            ],
        ),
        operation(
            "both-write",
            "f",
            [write("f", 0, 6000, 40), peer(write("f", 4096, 6000, 41)), write("f", 2000, 3000, 42)],
        ),
        Operation {
            name: "peer-unlinks",
            steps: vec![write("f", 0, 6000, 43), peer(Step::Unlink("f".into()))],
            sync: peer(Step::Fsync(String::new())),
        },
        Operation {
            name: "peer-renames",
            steps: vec![
                create("d/new", FileKind::File),
                peer(rename("d/new", "f", RenameMode::Replace)),
            ],
            sync: peer(Step::Fsync("d".into())),
        },
    ]
}

/// What happens on a volume that no host has ever had mounted; the mount is recorded, too.
pub fn of_the_first_host() -> Vec<Operation> {
    vec![operation("first-mount", "f", [create("f", FileKind::File), write("f", 0, 5000, 50)])]
}

/// What happens on a volume whose next file block lies behind the frontier.
pub fn of_a_full_volume() -> Vec<Operation> {
    let keep_size = true;
    let more = fallocate(FILLER, FILLER_END, 1, Fallocate::Allocate { keep_size });
    vec![operation("frontier-moves", FILLER, [more])]
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// Operations of `Volume` that change nothing, or that every case contains.
    const OTHERS: [&str; 14] = [
        "get_xattr",
        "getattr",
        "hosts",
        "list_xattrs",
        "lookup",
        "mount",
        "read",
        "readdir",
        "read_snapshot",
        "readlink",
        "seek",
        "serve",
        "snapshots",
        "space",
    ];

    fn sources(dir: &std::path::Path, into: &mut String) {
        for entry in std::fs::read_dir(dir).expect("sources").flatten() {
            let path = entry.path();
            if path.is_dir() {
                if !path.ends_with("check")
                    && !path.ends_with("journal")
                    && !path.ends_with("tests")
                {
                    sources(&path, into);
                }
            } else {
                into.push_str(&std::fs::read_to_string(path).expect("a source"));
            }
        }
    }

    #[test]
    fn every_operation_of_a_volume_is_a_step_or_changes_nothing() {
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
        let (mut core, steps) = (String::new(), include_str!("step.rs"));
        sources(&root.join("../lunfs-core/src"), &mut core);
        let mut is_of_a_volume = false;
        let public: BTreeSet<&str> = core
            .lines()
            .filter_map(|line| {
                if line.starts_with("impl") {
                    is_of_a_volume = line.starts_with("impl Volume ");
                }
                let name = line.strip_prefix("    pub async fn ")?.split(['(', '<']).next();
                name.filter(|_| is_of_a_volume)
            })
            .collect();
        let unknown: Vec<&&str> = public
            .iter()
            .filter(|name| !OTHERS.contains(*name))
            .filter(|name| !steps.contains(&format!("`Volume::{name}`")))
            .collect();
        assert_eq!(unknown, [&""; 0], "neither a step nor known to change nothing");
        assert!(public.len() > 15, "{public:?}");
    }

    #[test]
    fn every_step_is_tried() {
        let steps = include_str!("step.rs");
        let (_, variants) = steps.split_once("pub enum Step {").expect("the enum");
        let (variants, _) = variants.split_once("\n}").expect("its end");
        let all: Vec<Operation> = [operations(), of_two_hosts()].concat();
        let mut tried: String =
            all.iter().map(|o| format!("{:?} {:?} ", o.steps, o.sync)).collect();
        // The driver ends each case with it.
        tried.push_str("Unmount");
        for line in
            variants.lines().filter(|line| line.starts_with("    ") && !line.starts_with("     "))
        {
            let name: String = line.trim().chars().take_while(char::is_ascii_alphabetic).collect();
            assert!(name.is_empty() || tried.contains(&name), "{name} is in no operation");
        }
    }
}
