//! Hosts for tests: an image, mounts served by threads, and mounts served by processes.

use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use lunfs_core::env::Env;
use lunfs_core::{FormatOptions, MountOptions, Volume, format_volume};
use lunfs_format::{Sizes, Timing};
use lunfs_host::control::{About, Request, call};
use lunfs_host::disk::{Access, UringDisk};
use lunfs_host::fuse::FuseOptions;
use lunfs_host::{Ending, HostClock, HostRng, ImageFence, identity, random_bytes, serve_mount};

/// A directory of its own for one test: an image and mount points.
pub struct Place {
    pub dir: PathBuf,
}

impl Place {
    pub fn new() -> Option<Place> {
        let fuse = OpenOptions::new().read(true).write(true).open("/dev/fuse");
        if !rustix::process::geteuid().is_root() || fuse.is_err() {
            eprintln!("skipped: root and /dev/fuse are needed");
            return None;
        }
        let unique = u64::from_le_bytes(random_bytes());
        let dir = std::env::temp_dir().join(format!("lunfs-mounted-{unique:016x}"));
        fs::create_dir(&dir).unwrap();
        let place = Place { dir };
        File::create(place.image()).unwrap().set_len(1 << 30).unwrap();
        let image = place.image();
        on_core_thread(async move {
            let (env, _) = doors(&image);
            let options = FormatOptions {
                label: "test".into(),
                timing: Timing::FAST,
                sizes: Sizes::default(),
            };
            format_volume(&env, &options).await.unwrap();
        });
        Some(place)
    }

    pub fn image(&self) -> PathBuf {
        self.dir.join("image")
    }

    pub fn mount(&self, name: &str) -> Host {
        let point = self.dir.join(name);
        fs::create_dir_all(&point).unwrap();
        Host::start(&self.image(), name, point)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Err(e) = fs::remove_dir_all(&self.dir) {
            eprintln!("{} stays behind: {e}", self.dir.display());
        }
    }
}

pub fn on_core_thread<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, future)
}

pub fn doors(image: &Path) -> (Env, lunfs_core::Identity) {
    let disk = UringDisk::open(image, Access::ReadWrite).unwrap();
    let who = identity(false).unwrap();
    let fence = Rc::new(ImageFence::new(disk.source(), who.clone()));
    let (clock, rng) = (Rc::new(HostClock), Rc::new(HostRng::default()));
    (Env { disk: Rc::new(disk), fence, clock, rng }, who)
}

/// One mount, served by a thread.
pub struct Host {
    pub point: PathBuf,
    pub thread: Option<JoinHandle<Ending>>,
}

impl Host {
    fn start(image: &Path, name: &str, point: PathBuf) -> Host {
        let (image, name, mountpoint) = (image.to_owned(), name.to_owned(), point.clone());
        let (ready, is_ready) = mpsc::channel();
        let body = move || {
            on_core_thread(async move {
                let (env, identity) = doors(&image);
                let fence = env.fence.method();
                let options = MountOptions { name: name.clone(), read_only: false, identity };
                let volume = Volume::mount(env, options).await.unwrap();
                let source = image.display().to_string();
                let about = About { name, source: source.clone(), fence, read_only: false };
                let fuse = FuseOptions { mountpoint, source, read_only: false, threads: 2 };
                serve_mount(volume, &fuse, about, |_| ready.send(()).unwrap()).await.unwrap()
            })
        };
        let thread = Some(std::thread::spawn(body));
        is_ready.recv().expect("the mount works");
        Host { point, thread }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.point.join(name)
    }

    pub fn unmount(mut self) -> Ending {
        let request = Request::Unmount { force: false, deadline_ms: 0 };
        call(&self.point, &request).unwrap();
        self.thread.take().expect("unmounted once").join().unwrap()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if self.thread.is_some() {
            // A failed test: do not leave a mount behind.
            let force = Request::Unmount { force: true, deadline_ms: 0 };
            if call(&self.point, &force).is_err() {
                let _ = rustix::mount::unmount(&self.point, rustix::mount::UnmountFlags::DETACH);
            }
        }
    }
}

/// A host in a process of its own, which can be killed.
pub struct HostProcess {
    pub point: PathBuf,
    pub process: std::process::Child,
}

impl HostProcess {
    /// Runs the calling test again, which must call `be_host_if_asked` first.
    pub fn start(place: &Place, test: &str, name: &str) -> HostProcess {
        let point = place.dir.join(name);
        fs::create_dir_all(&point).unwrap();
        let mut command = std::process::Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", test, "--nocapture"]).env("LUNFS_HOST", name);
        command.env("LUNFS_IMAGE", place.image()).env("LUNFS_POINT", &point);
        let process = command.stdout(std::process::Stdio::null()).spawn().unwrap();
        while !fs::read_to_string("/proc/self/mountinfo").unwrap().contains(point.to_str().unwrap())
        {
            std::thread::sleep(Duration::from_millis(5));
        }
        HostProcess { point, process }
    }

    pub fn be_host_if_asked() {
        if let Ok(name) = std::env::var("LUNFS_HOST") {
            let path = |key| PathBuf::from(std::env::var_os(key).unwrap());
            let mut host = Host::start(&path("LUNFS_IMAGE"), &name, path("LUNFS_POINT"));
            let ending = host.thread.take().unwrap().join().unwrap();
            std::process::exit(i32::from(ending != Ending::Unmounted));
        }
    }
}

impl Drop for HostProcess {
    fn drop(&mut self) {
        drop(self.process.kill());
        drop(self.process.wait());
        let _ = rustix::mount::unmount(&self.point, rustix::mount::UnmountFlags::DETACH);
    }
}

pub fn pattern(seed: u64, len: usize) -> Vec<u8> {
    (0..len as u64).map(|i| (i.wrapping_mul(31) ^ (i >> 9) ^ seed) as u8).collect()
}
