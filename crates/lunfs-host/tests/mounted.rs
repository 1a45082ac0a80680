//! A volume in an image file, mounted through FUSE and used by ordinary system calls.
//!
//! Needs root and /dev/fuse; without them each test says that it was skipped.

#![allow(clippy::unwrap_used, reason = "a step that fails fails the test")]

mod hosts;

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::Path;
use std::time::Duration;

use hosts::{Host, HostProcess, Place, doors, on_core_thread, pattern};
use lunfs_core::{MountOptions, Volume};
use lunfs_host::control::{About, Request, call};
use lunfs_host::fuse::FuseOptions;
use lunfs_host::{Ending, serve_mount};

#[test]
fn files_survive_an_unmount() {
    let Some(place) = Place::new() else { return };
    let host = place.mount("a");
    fs::create_dir(host.path("dir")).unwrap();
    let data = pattern(7, 5 << 20);
    fs::write(host.path("dir/big"), &data).unwrap();
    fs::write(host.path("small"), b"hello").unwrap();
    symlink("dir/big", host.path("link")).unwrap();
    fs::hard_link(host.path("small"), host.path("dir/second")).unwrap();
    assert_eq!(host.unmount(), Ending::Unmounted);

    let host = place.mount("a");
    assert!(fs::read(host.path("link")).unwrap() == data);
    assert_eq!(fs::read(host.path("dir/second")).unwrap(), b"hello");
    assert_eq!(fs::metadata(host.path("small")).unwrap().nlink(), 2);
    let mut names: Vec<_> =
        fs::read_dir(&host.point).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["dir", "link", "small"]);
    fs::remove_file(host.path("link")).unwrap();
    fs::remove_dir_all(host.path("dir")).unwrap();
    assert!(!host.path("dir").exists());
    assert_eq!(host.unmount(), Ending::Unmounted);
}

#[test]
fn two_mounts_of_one_image_see_each_other_at_once() {
    let Some(place) = Place::new() else { return };
    let (a, b) = (place.mount("a"), place.mount("b"));
    for round in 0..5_u32 {
        let (here, there) = if round % 2 == 0 { (&a, &b) } else { (&b, &a) };
        let name = format!("file{round}");
        fs::write(here.path(&name), round.to_le_bytes()).unwrap();
        assert_eq!(fs::read(there.path(&name)).unwrap(), round.to_le_bytes());
        fs::write(there.path(&name), b"changed").unwrap();
        assert_eq!(fs::read(here.path(&name)).unwrap(), b"changed");
        fs::rename(here.path(&name), here.path("renamed")).unwrap();
        assert!(!there.path(&name).exists());
        assert_eq!(fs::read(there.path("renamed")).unwrap(), b"changed");
    }
    let append = |host: &Host| {
        let mut file = OpenOptions::new().append(true).create(true).open(host.path("log")).unwrap();
        file.write_all(b"line\n").unwrap();
    };
    for _ in 0..4 {
        append(&a);
        append(&b);
    }
    assert_eq!(fs::read(a.path("log")).unwrap().len(), 8 * 5);
    assert_eq!(a.unmount(), Ending::Unmounted);
    assert_eq!(b.unmount(), Ending::Unmounted);
}

#[test]
fn an_open_append_handle_goes_to_the_end_wherever_it_is() {
    let Some(place) = Place::new() else { return };
    let (a, b) = (place.mount("a"), place.mount("b"));
    let open =
        |host: &Host| OpenOptions::new().append(true).create(true).open(host.path("log")).unwrap();
    let (mut first, mut second) = (open(&a), open(&b));
    for round in 0..3 {
        writeln!(first, "a{round}").unwrap();
        writeln!(second, "b{round}").unwrap();
    }
    assert_eq!(fs::read_to_string(a.path("log")).unwrap(), "a0\nb0\na1\nb1\na2\nb2\n");
    drop((first, second));
    a.unmount();
    b.unmount();
}

/// A name that another host made between the kernel's look and its create must be opened like any
/// other, and created exclusively by one of the two only.
#[test]
fn hosts_that_create_the_same_name_at_once_agree() {
    let Some(place) = Place::new() else { return };
    let (a, b) = (place.mount("a"), place.mount("b"));
    let race = |exclusive: bool| {
        let start = std::sync::Barrier::new(2);
        let one = |host: &Host| -> Vec<bool> {
            let mut options = OpenOptions::new();
            options.write(true).create(true).create_new(exclusive);
            let names = (0..40).map(|index| host.path(&format!("{exclusive}{index}")));
            let made = names.map(|name| {
                start.wait();
                match options.open(&name) {
                    Ok(_) => true,
                    Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => false,
                    Err(e) => panic!("{}: {e}", name.display()),
                }
            });
            made.collect()
        };
        std::thread::scope(|scope| {
            let other = scope.spawn(|| one(&b));
            (one(&a), other.join().unwrap())
        })
    };
    let (here, there) = race(false);
    assert!(here.iter().chain(&there).all(|made| *made), "open-or-create never fails");
    let (here, there) = race(true);
    assert!(here.iter().zip(&there).all(|(a, b)| a != b), "each name was made by exactly one");
    a.unmount();
    b.unmount();
}

#[test]
fn what_system_calls_promise_is_kept() {
    let Some(place) = Place::new() else { return };
    let host = place.mount("a");
    let name = host.path("file");
    let file = OpenOptions::new().read(true).write(true).create_new(true).open(&name).unwrap();
    assert_eq!(
        OpenOptions::new().write(true).create_new(true).open(&name).unwrap_err().kind(),
        std::io::ErrorKind::AlreadyExists
    );
    file.write_all_at(&pattern(1, 100_000), 1 << 20).unwrap();
    assert_eq!(file.metadata().unwrap().len(), (1 << 20) + 100_000);
    let mut seeker = &file;
    let data = rustix::fs::seek(&file, rustix::fs::SeekFrom::Data(0)).unwrap();
    assert!(data > 0 && data <= 1 << 20, "{data}");
    let end = rustix::fs::seek(&file, rustix::fs::SeekFrom::Data(10 << 20));
    assert_eq!(end, Err(rustix::io::Errno::NXIO));
    seeker.seek(SeekFrom::Start(1 << 20)).unwrap();
    let mut found = vec![0; 1000];
    seeker.read_exact(&mut found).unwrap();
    assert_eq!(found, pattern(1, 1000));
    file.set_len(5).unwrap();
    assert_eq!(fs::read(&name).unwrap(), vec![0; 5]);
    file.sync_all().unwrap();

    // The open file outlives its name.
    fs::remove_file(&name).unwrap();
    file.write_all_at(b"still", 0).unwrap();
    let mut rest = [0; 5];
    file.read_exact_at(&mut rest, 0).unwrap();
    assert_eq!(&rest, b"still");
    drop(file);

    // A directory with the set-group-id bit hands its group down.
    let dir = host.path("dir");
    fs::create_dir(&dir).unwrap();
    std::os::unix::fs::chown(&dir, None, Some(1234)).unwrap();
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o2775)).unwrap();
    fs::create_dir(dir.join("sub")).unwrap();
    let sub = fs::metadata(dir.join("sub")).unwrap();
    assert_eq!((sub.gid(), sub.mode() & 0o2000), (1234, 0o2000));
    assert_eq!(fs::remove_dir(&dir).unwrap_err().raw_os_error(), Some(libc_enotempty()));
    let long = host.path(&"n".repeat(256));
    assert_eq!(fs::metadata(long).unwrap_err().kind(), std::io::ErrorKind::InvalidFilename);
    host.unmount();
}

fn libc_enotempty() -> i32 {
    rustix::io::Errno::NOTEMPTY.raw_os_error()
}

#[test]
fn extended_attributes_keep_their_sizes() {
    let Some(place) = Place::new() else { return };
    let host = place.mount("a");
    let name = host.path("file");
    fs::write(&name, b"x").unwrap();
    let set = |key, value: &[u8]| {
        rustix::fs::setxattr(&name, key, value, rustix::fs::XattrFlags::empty())
    };
    let get = |key, len| {
        let mut value = vec![0; len];
        let size = rustix::fs::getxattr(&name, key, &mut value)?;
        value.truncate(size);
        Ok(value)
    };
    set("user.one", b"1").unwrap();
    set("user.two", &pattern(2, 3000)).unwrap();
    assert_eq!(get("user.one", 100), Ok(b"1".to_vec()));
    assert_eq!(get("user.two", 4000), Ok(pattern(2, 3000)));
    assert_eq!(get("user.two", 10), Err(rustix::io::Errno::RANGE));
    assert_eq!(get("user.none", 10), Err(rustix::io::Errno::NODATA));
    let mut list = vec![0; 100];
    let len = rustix::fs::listxattr(&name, &mut list).unwrap();
    assert_eq!(&list[..len], b"user.one\0user.two\0");
    rustix::fs::removexattr(&name, "user.one").unwrap();
    for unknown in ["system.posix_acl_access", "system.mine", "mine", "private.mine", "User.x"] {
        assert_eq!(set(unknown, b"1234"), Err(rustix::io::Errno::OPNOTSUPP), "{unknown}");
    }
    set("trusted.mine", b"1").unwrap();
    set("security.mine", b"1").unwrap();
    host.unmount();
}

/// As docs/semantics.md lists it.
#[test]
fn what_is_not_supported_says_so() {
    let Some(place) = Place::new() else { return };
    let host = place.mount("a");
    let file = File::create(host.path("file")).unwrap();
    file.write_all_at(&[1; 8192], 0).unwrap();
    let unsupported = Err(rustix::io::Errno::OPNOTSUPP);
    for flags in [
        rustix::fs::FallocateFlags::COLLAPSE_RANGE,
        rustix::fs::FallocateFlags::INSERT_RANGE,
        rustix::fs::FallocateFlags::UNSHARE_RANGE,
    ] {
        assert_eq!(rustix::fs::fallocate(&file, flags, 0, 4096), unsupported, "{flags:?}");
    }
    let flags = rustix::fs::OFlags::TMPFILE | rustix::fs::OFlags::RDWR;
    let nameless = rustix::fs::open(&host.point, flags, rustix::fs::Mode::RUSR);
    assert_eq!(nameless.map(drop), unsupported);
    drop(file);
    host.unmount();
}

#[test]
fn a_writer_without_privileges_loses_set_id_bits() {
    let Some(place) = Place::new() else { return };
    let host = place.mount("a");
    let name = host.path("program");
    fs::write(&name, b"x").unwrap();
    fs::set_permissions(&name, fs::Permissions::from_mode(0o6777)).unwrap();
    fs::set_permissions(&host.point, fs::Permissions::from_mode(0o777)).unwrap();
    fs::set_permissions(&place.dir, fs::Permissions::from_mode(0o755)).unwrap();
    let script = format!("printf y >> {}", name.display());
    let mut command = std::process::Command::new("sh");
    std::os::unix::process::CommandExt::uid(&mut command, 65534);
    assert!(command.args(["-c", &script]).status().unwrap().success());
    assert_eq!(fs::metadata(&name).unwrap().mode() & 0o7777, 0o777);
    assert_eq!(fs::read(&name).unwrap(), b"xy");
    host.unmount();
}

#[test]
fn shared_memory_maps_reach_the_volume() {
    let Some(place) = Place::new() else { return };
    let host = place.mount("a");
    fs::write(host.path("mapped"), vec![b'.'; 8192]).unwrap();
    let script = "import mmap,sys\nf=open(sys.argv[1],'r+b')\nm=mmap.mmap(f.fileno(),8192)\n\
                  m[4096:4100]=b'mmap'\nm.flush()\n";
    let path = host.path("mapped");
    let status = std::process::Command::new("python3").args(["-c", script]).arg(&path).status();
    match status {
        Ok(status) => assert!(status.success()),
        Err(e) => eprintln!("skipped in part: no python3: {e}"),
    }
    assert_eq!(&fs::read(&path).unwrap()[4096..4100], b"mmap");
    host.unmount();
}

#[test]
fn a_busy_mount_names_its_user_and_can_be_forced() {
    let Some(place) = Place::new() else { return };
    let host = place.mount("a");
    fs::write(host.path("held"), b"x").unwrap();
    let mut user = std::process::Command::new("sleep").arg("60").current_dir(&host.point).spawn();
    let user = user.as_mut().unwrap();
    let gentle = Request::Unmount { force: false, deadline_ms: 0 };
    let refused = call(&host.point, &gentle).unwrap_err().to_string();
    assert!(refused.contains("busy") && refused.contains("sleep"), "{refused}");
    assert_eq!(fs::read(host.path("held")).unwrap(), b"x", "it still works");

    let mut host = host;
    let force = Request::Unmount { force: true, deadline_ms: 200 };
    call(&host.point, &force).unwrap();
    assert_eq!(host.thread.take().unwrap().join().unwrap(), Ending::Unmounted);
    user.kill().unwrap();
    user.wait().unwrap();
}

#[test]
fn umount_by_the_administrator_frees_the_slot() {
    let Some(place) = Place::new() else { return };
    let mut host = place.mount("a");
    fs::write(host.path("kept"), b"x").unwrap();
    let status = std::process::Command::new("umount").arg(&host.point).status().unwrap();
    assert!(status.success());
    assert_eq!(host.thread.take().unwrap().join().unwrap(), Ending::Unmounted);
    let host = place.mount("a");
    assert_eq!(fs::read(host.path("kept")).unwrap(), b"x");
    host.unmount();
}

#[test]
fn the_control_socket_answers() {
    let Some(place) = Place::new() else { return };
    let (a, b) = (place.mount("a"), place.mount("b"));
    fs::create_dir(a.path("dir")).unwrap();
    fs::write(a.path("dir/file"), b"x").unwrap();
    let info = call(&a.path("dir"), &Request::Info).unwrap();
    assert_eq!(info["label"], "test");
    assert_eq!(info["name"], "a");
    assert_eq!(info["fence"], "image file");
    assert_eq!(info["stopped"], serde_json::Value::Null);
    let hosts = call(&a.point, &Request::Hosts).unwrap();
    let names: Vec<_> = hosts.as_array().unwrap().iter().map(|host| &host["name"]).collect();
    assert_eq!(names, ["a", "b"]);
    let one = Request::Locks { path: Some("dir/file".into()) };
    assert_eq!(call(&a.point, &one).unwrap().as_array().unwrap().len(), 1);
    let none = Request::Locks { path: Some("dir/nothing".into()) };
    assert!(call(&a.point, &none).is_err());
    assert!(call(&a.point, &Request::Counters).unwrap()["pulses"].as_u64().unwrap() > 0);
    call(&b.point, &Request::Sync).unwrap();
    let elsewhere = call(Path::new("/proc"), &Request::Info).unwrap_err().to_string();
    assert!(elsewhere.contains("not on a mounted lunfs volume"), "{elsewhere}");
    a.unmount();
    b.unmount();
}

#[test]
fn many_files_are_listed_once_each() {
    let Some(place) = Place::new() else { return };
    let host = place.mount("a");
    for index in 0..500 {
        File::create(host.path(&format!("a rather long name of a file, number {index:04}")))
            .unwrap();
    }
    let mut names: Vec<_> =
        fs::read_dir(&host.point).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names.len(), 500);
    names.sort();
    names.dedup();
    assert_eq!(names.len(), 500);
    host.unmount();
}

#[test]
fn a_mount_refuses_a_second_one_at_its_place() {
    let Some(place) = Place::new() else { return };
    let host = place.mount("a");
    let image = place.image();
    let point = host.point.clone();
    let refused = on_core_thread(async move {
        let (env, identity) = doors(&image);
        let options = MountOptions { name: "z".into(), read_only: false, identity };
        let volume = Volume::mount(env, options).await.unwrap();
        let fuse =
            FuseOptions { mountpoint: point, source: "z".into(), read_only: false, threads: 1 };
        let about = About { name: "z".into(), source: "z".into(), fence: "", read_only: false };
        serve_mount(volume, &fuse, about, |_| ()).await.unwrap_err().to_string()
    });
    assert!(refused.contains("mounted at"), "{refused}");
    std::thread::sleep(Duration::from_millis(10));
    host.unmount();
}

#[test]
fn direct_io_works_from_above() {
    let Some(place) = Place::new() else { return };
    let host = place.mount("a");
    let mut options = OpenOptions::new();
    let file = options.read(true).write(true).create(true).custom_flags(0x4000);
    let file = file.open(host.path("direct")).unwrap();
    file.write_all_at(&pattern(3, 1 << 20), 0).unwrap();
    file.sync_data().unwrap();
    assert!(fs::read(host.path("direct")).unwrap() == pattern(3, 1 << 20));
    drop(file);
    host.unmount();
}

/// SIGKILL while it writes: the other host goes on within seconds, finds what was made durable, and
/// the dead mount says so.
#[test]
fn a_killed_host_is_taken_over_within_seconds() {
    HostProcess::be_host_if_asked();
    let Some(place) = Place::new() else { return };
    let mut victim =
        HostProcess::start(&place, "a_killed_host_is_taken_over_within_seconds", "victim");
    let survivor = place.mount("survivor");
    fs::create_dir(victim.point.join("dir")).unwrap();
    let durable = File::create(victim.point.join("dir/durable")).unwrap();
    durable.write_all_at(&pattern(5, 1 << 20), 0).unwrap();
    durable.sync_all().unwrap();
    let busy = victim.point.join("dir/busy");
    let writer = std::thread::spawn(move || {
        let mut round = 0;
        while fs::write(&busy, pattern(round, 300_000)).is_ok() {
            round += 1;
        }
    });
    std::thread::sleep(Duration::from_millis(200));
    victim.process.kill().unwrap();
    let killed = std::time::Instant::now();
    assert!(fs::read(survivor.path("dir/durable")).unwrap() == pattern(5, 1 << 20));
    fs::write(survivor.path("dir/new"), b"after").unwrap();
    eprintln!("taken over after {:?}", killed.elapsed());
    assert!(killed.elapsed() < Duration::from_secs(8), "{:?}", killed.elapsed());
    writer.join().unwrap();
    let dead = fs::metadata(&victim.point).unwrap_err();
    assert_eq!(dead.raw_os_error(), Some(rustix::io::Errno::NOTCONN.raw_os_error()));
    let request = Request::Unmount { force: false, deadline_ms: 0 };
    let refused = call(&victim.point, &request).unwrap_err().to_string();
    assert!(refused.contains("lunfs unmount"), "{refused}");
    drop(durable);
    drop(victim);
    assert_eq!(survivor.unmount(), Ending::Unmounted);
}

/// O_SYNC and O_DSYNC are ours to keep: the kernel only hands them on with each write.
#[test]
fn a_synchronous_write_survives_a_kill() {
    HostProcess::be_host_if_asked();
    let Some(place) = Place::new() else { return };
    let mut victim = HostProcess::start(&place, "a_synchronous_write_survives_a_kill", "victim");
    let survivor = place.mount("survivor");
    let mut options = OpenOptions::new();
    options.write(true).create(true).custom_flags(libc::O_DSYNC);
    let file = options.open(victim.point.join("log")).unwrap();
    file.write_all_at(&pattern(8, 20_000), 0).unwrap();
    victim.process.kill().unwrap();
    assert!(fs::read(survivor.path("log")).unwrap() == pattern(8, 20_000));
    drop(file);
    drop(victim);
    assert_eq!(survivor.unmount(), Ending::Unmounted);
}
