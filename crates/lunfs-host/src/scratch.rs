//! Temporary image files and child processes for the tests of this crate.

use std::fs::{File, OpenOptions};
use std::future::Future;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use lunfs_format::{Geometry, Superblock, Timing, VolumeId};

/// A temporary image, removed at the end of the test. `LUNFS_TEST_DIR` or the system's temporary
/// directory.
pub struct Scratch {
    path: PathBuf,
}

impl Scratch {
    /// A sparse image of `size` bytes.
    pub fn image(name: &str, size: u64) -> Scratch {
        let dir = std::env::var_os("LUNFS_TEST_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
        let unique = u64::from_le_bytes(crate::rng::random_bytes());
        let path = dir.join(format!("lunfs-host-{name}-{unique:016x}.img"));
        let file = File::create_new(&path).expect("a scratch image can be made");
        file.set_len(size).expect("and sized");
        Scratch { path }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// One more description of it, without direct I/O.
    pub fn open(&self) -> File {
        let mut options = OpenOptions::new();
        options.read(true).write(true).custom_flags(libc::O_CLOEXEC);
        options.open(&self.path).expect("the scratch image opens")
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(e) = std::fs::remove_file(&self.path) {
            eprintln!("{} stays behind: {e}", self.path.display());
        }
    }
}

/// A superblock of a volume labelled `ds1`.
pub fn superblock(volume: VolumeId, geometry: Geometry) -> Superblock {
    Superblock {
        volume,
        label: "ds1".into(),
        compat: 0,
        ro_compat: 0,
        incompat: 0,
        logical_block: geometry.logical_block,
        cluster_blocks: geometry.cluster_blocks,
        slot_count: geometry.slot_count,
        volume_blocks: geometry.volume_blocks,
        cluster_count: geometry.cluster_count,
        clusters_start: geometry.clusters_start,
        root: geometry.clusters_start.plus(2),
        root_birth: 1,
        created_seconds: 1,
        hash_key: [3; 16],
        timing: Timing::FAST,
        geometry_epoch: 1,
    }
}

/// A loop device over an image, detached at the end of the test.
pub struct LoopDevice {
    pub node: PathBuf,
}

impl LoopDevice {
    /// `None`: this machine gives us none, and the test says so.
    pub fn attach(image: &Path, logical_block: u32) -> Option<LoopDevice> {
        let mut command = Command::new("losetup");
        command.args(["--find", "--show", "--direct-io=on"]);
        let made = command.args(["--sector-size", &logical_block.to_string()]).arg(image).output();
        let node = made.ok().filter(|made| made.status.success());
        let Some(node) = node.and_then(|made| String::from_utf8(made.stdout).ok()) else {
            eprintln!("skipped: losetup gives no loop device (root is needed)");
            return None;
        };
        Some(LoopDevice { node: node.trim().into() })
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let detached = Command::new("losetup").arg("--detach").arg(&self.node).status();
        if !detached.is_ok_and(|status| status.success()) {
            eprintln!("{} stays behind", self.node.display());
        }
    }
}

/// From now on every `fdatasync` of this thread, and of threads that it starts, fails as on a
/// device whose cache is broken. What goes through an io_uring is not met. `false`: this machine
/// does not let us, and the test says so.
pub fn fail_flushes() -> bool {
    let step = |code: u32, jf: u8, k: u32| libc::sock_filter {
        code: u16::try_from(code).expect("a small number"),
        jt: 0,
        jf,
        k,
    };
    let number = u32::try_from(libc::SYS_fdatasync).expect("a small number");
    let error = libc::SECCOMP_RET_ERRNO | libc::EIO.unsigned_abs();
    let mut filter = [
        // The number of the system call is the first field of what a filter sees.
        step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0),
        step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 1, number),
        step(libc::BPF_RET | libc::BPF_K, 0, error),
        step(libc::BPF_RET | libc::BPF_K, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let len = u16::try_from(filter.len()).expect("a small number");
    let program = libc::sock_fprog { len, filter: filter.as_mut_ptr() };
    // SAFETY: takes no pointer; it forbids this thread to gain privileges.
    let alone = unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
    let mode = libc::SECCOMP_MODE_FILTER;
    // SAFETY: the program and the filter it points to are valid for the whole call.
    let set = unsafe { libc::prctl(libc::PR_SET_SECCOMP, mode, &raw const program) };
    if alone != 0 || set != 0 {
        eprintln!("skipped: no filter of system calls here");
        return false;
    }
    true
}

/// Runs the test `name` of this crate again as a process of its own, with `LUNFS_CHILD` set to
/// `argument`. The test must do the child's part when it finds that set, see `child_argument`.
pub fn spawn_child(name: &str, argument: &str) -> Child {
    let program = std::env::current_exe().expect("a test has a program");
    let mut command = Command::new(program);
    command.args(["--exact", name, "--nocapture", "--test-threads=1"]).env("LUNFS_CHILD", argument);
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    command.spawn().expect("a test can run itself")
}

/// In a process made by `spawn_child`: its argument.
pub fn child_argument() -> Option<String> {
    std::env::var("LUNFS_CHILD").ok()
}

/// In a child: tells the parent something.
pub fn say(word: &str) {
    eprintln!("{word}");
}

/// Waits until a child says `word`; returns all it said in that line.
pub fn hear(child: &mut Child, word: &str) -> String {
    let stderr = child.stderr.as_mut().expect("piped");
    let mut line = Vec::new();
    let mut byte = [0];
    while stderr.read(&mut byte).expect("a pipe can be read") == 1 {
        if byte != *b"\n" {
            line.push(byte[0]);
            continue;
        }
        let text = String::from_utf8_lossy(&line).into_owned();
        if text.starts_with(word) {
            return text;
        }
        eprintln!("child: {text}");
        line.clear();
    }
    panic!("the child ended without saying {word:?}");
}

/// Runs a future of the core on a runtime like the real one.
pub fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime.expect("a runtime can be made"), future)
}
