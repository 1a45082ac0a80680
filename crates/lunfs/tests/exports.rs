//! Files as disks, over NBD. Each test needs root and /dev/fuse, and says so where it has neither.

mod stage;

use std::fs::{self, File};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use stage::nbd::{BLOCK_STATUS, Client, DISCONNECT, FLUSH, FUA, READ, TRIM, WRITE, WRITE_ZEROES};
use stage::{Host, Place, told, wait_until};

const MIB: u64 = 1 << 20;
const EPERM: u64 = 1;
const EINVAL: u64 = 22;
const ENOSPC: u64 = 28;
const ENOTSUP: u64 = 95;

/// A sparse file of that size on the mount, exported.
fn export(place: &Place, host: &Host, size: u64, more: &[&str]) -> PathBuf {
    let file = File::create(host.point.join("vm.raw")).expect("a disk");
    file.set_len(size).and_then(|()| file.sync_all()).expect("its size");
    let arguments = [&["export", "nbd", "a/vm.raw", "--socket", "vm.sock"], more].concat();
    let output = place.lunfs(&arguments);
    assert!(output.status.success(), "{}", told(&output));
    place.0.join("vm.sock")
}

fn listed(place: &Place) -> String {
    let output = place.lunfs(&["exports", "a", "--json"]);
    assert!(output.status.success(), "{}", told(&output));
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// Bytes that are nowhere the same and nowhere zero.
fn bytes(len: usize) -> Vec<u8> {
    (0..len).map(|at| u8::try_from(at % 251).expect("small") + 1).collect()
}

#[test]
fn what_a_client_writes_is_the_file() {
    let Some(place) = Place::new("nbd-file") else { return };
    let a = place.mount("a");
    let socket = export(&place, &a, 8 * MIB, &[]);
    let about = fs::metadata(&socket).expect("it is there");
    assert_eq!((about.mode() & 0o7777, about.uid(), about.gid()), (0o600, 0, 0));
    let mut client = Client::connect(&socket);
    assert_eq!(client.size, 8 * MIB);
    assert!(listed(&place).contains("\"clients\":1"), "{}", listed(&place));

    // Over the edges of grains, file blocks and pieces.
    let data = bytes(3 << 20);
    client.write(FUA, MIB - 5, &data).expect("a write");
    assert!(client.read(MIB - 5, 3 << 20).expect("a read") == data);
    let file = File::open(a.point.join("vm.raw")).expect("the file");
    let mut seen = vec![0; data.len()];
    file.read_exact_at(&mut seen, MIB - 5).expect("through FUSE");
    assert!(seen == data, "the mount shows it at once");
    let one = client.ask(READ, 1 << 2, 0, 4 << 20, b"").expect("a read in one piece");
    assert_eq!((one.len(), one[0].kind), (1, 1));
    assert!(one[0].data[8..8 + (1 << 20) - 5].iter().all(|byte| *byte == 0));

    // A second connection sees it, and its flush covers it.
    let mut other = Client::connect(&socket);
    client.write(0, 0, b"first").expect("a write");
    assert_eq!(other.read(0, 5).as_deref(), Ok(&b"first"[..]));
    other.ask(FLUSH, 0, 0, 0, b"").expect("a flush");

    // Another host sees it, too: there is one volume.
    let b = place.mount("b");
    assert!(fs::read(b.point.join("vm.raw")).expect("it is there").starts_with(b"first"));
    drop((client, other, file));
    wait_until("the clients' end", || listed(&place).contains("\"clients\":0"));
    assert!(place.lunfs(&["unmount", "a"]).status.success(), "an export without clients");
    assert!(!socket.exists());
}

#[test]
fn holes_come_and_go() {
    let Some(place) = Place::new("nbd-holes") else { return };
    let a = place.mount("a");
    let mut client = Client::connect(&export(&place, &a, 16 * MIB, &[]));
    let all = 16 << 20;
    client.write(0, MIB, &bytes(2 << 20)).expect("a write");
    let runs = vec![(1 << 20, 3), (2 << 20, 0), (13 << 20, 3)];
    assert_eq!(client.status(0, all), Ok(runs.clone()));
    let first = client.ask(BLOCK_STATUS, 1 << 3, 0, all, b"").expect("the first run");
    assert_eq!(first[0].data.len(), 12);

    let blocks = || fs::metadata(a.point.join("vm.raw")).expect("it is there").blocks();
    let before = blocks();
    client.ask(TRIM, FUA, MIB, 1 << 20, b"").expect("a trim");
    assert_eq!(client.status(0, all), Ok(vec![(2 << 20, 3), (1 << 20, 0), (13 << 20, 3)]));
    assert!(client.read(MIB, 1 << 20).expect("a read").iter().all(|byte| *byte == 0));
    assert!(blocks() < before, "its space was given back");

    const NO_HOLE: u16 = 1 << 1;
    const FAST_ZERO: u16 = 1 << 4;
    client.ask(WRITE_ZEROES, FAST_ZERO, 2 * MIB, 1 << 20, b"").expect("as fast as a trim");
    assert_eq!(client.status(0, all), Ok(vec![(16 << 20, 3)]));
    let emptied = blocks();
    client.ask(WRITE_ZEROES, NO_HOLE, 2 * MIB, 1 << 20, b"").expect("zeroes with a place");
    assert_eq!(blocks(), emptied + (MIB / 512));
    assert_eq!(client.ask(WRITE_ZEROES, FAST_ZERO, 5, 9, b"").err(), Some(ENOTSUP));
    assert_eq!(client.ask(WRITE_ZEROES, 0, 5, 9, b"").err(), None);
}

#[test]
fn what_makes_no_sense_is_refused_or_ends_one_connection() {
    let Some(place) = Place::new("nbd-garbage") else { return };
    let a = place.mount("a");
    let socket = export(&place, &a, MIB, &[]);
    let mut client = Client::connect(&socket);
    for kind in [READ, WRITE_ZEROES, TRIM, BLOCK_STATUS] {
        assert_eq!(client.ask(kind, 0, MIB - 1, 2, b"").err(), Some(EINVAL), "{kind}");
        assert_eq!(client.ask(kind, 1 << 9, 0, 2, b"").err(), Some(EINVAL), "{kind}");
    }
    assert_eq!(client.write(0, MIB, b"behind"), Err(EINVAL));
    assert_eq!(client.ask(99, 0, 0, 1, b"").err(), Some(EINVAL));

    for garbage in [&b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"[..], &[0xff; 4096], &[0; 4096]] {
        let mut other = Client::connect(&socket);
        other.say(garbage);
        other.must_be_left();
    }
    let mut other = Client::connect(&socket);
    other.request(WRITE, 0, 0, u32::MAX, b"");
    other.must_be_left();
    // Killed in the middle of a payload.
    let mut other = Client::connect(&socket);
    other.request(WRITE, 0, 0, 1 << 20, b"half");
    drop(other);
    let mut other = Client::connect(&socket);
    other.request(DISCONNECT, 0, 0, 0, b"");
    other.must_be_left();
    assert_eq!(client.read(0, 4).as_deref(), Ok(&[0; 4][..]), "the others go on");
}

#[test]
fn a_client_that_does_not_listen_keeps_nobody_else_waiting() {
    let Some(place) = Place::new("nbd-deaf") else { return };
    let a = place.mount("a");
    let socket = export(&place, &a, 64 * MIB, &[]);
    let mut client = Client::connect(&socket);
    client.write(0, 0, &bytes(1 << 20)).expect("a write");
    let mut deaf = Client::connect(&socket);
    // More than the window: 200 answers of 1 MiB each that nobody takes.
    let mut cookies: Vec<u64> = (0..200).map(|_| deaf.request(READ, 0, 0, 1 << 20, b"")).collect();
    assert!(client.read(0, 1 << 20).expect("a read") == bytes(1 << 20));
    for _ in 0..200 {
        let (cookie, _) = deaf.reply();
        cookies.retain(|known| *known != cookie);
    }
    assert!(cookies.is_empty(), "each was answered once");
}

#[test]
fn a_read_only_export_is_not_changed_and_a_full_volume_says_so() {
    let Some(place) = Place::new("nbd-refused") else { return };
    let a = place.mount("a");
    let socket = export(&place, &a, 1 << 30, &["--read-only"]);
    let mut client = Client::connect(&socket);
    assert_eq!(client.write(0, 0, b"no"), Err(EPERM));
    assert_eq!(client.ask(TRIM, 0, 0, 4096, b"").err(), Some(EPERM));
    let other = place.0.join("rw.sock");
    let path = other.to_str().expect("UTF-8");
    assert!(place.lunfs(&["export", "nbd", "a/vm.raw", "--socket", path]).status.success());
    let mut client = Client::connect(&other);
    let some = bytes(8 << 20);
    let full = (0..128).find_map(|at| client.write(0, at * 8 * MIB, &some).err());
    assert_eq!(full, Some(ENOSPC));
    client.ask(TRIM, 0, 0, 1 << 30, b"").expect("space comes back");
    client.write(FUA, 0, &some).expect("and can be used");
}

#[test]
fn a_socket_replaces_nothing_that_is_used() {
    let Some(place) = Place::new("nbd-socket") else { return };
    let mut a = place.mount("a");
    let socket = export(&place, &a, MIB, &[]);
    let again = ["export", "nbd", "a/vm.raw", "--socket", "vm.sock"];
    let said = place.refused(&again);
    assert!(said.contains("is there already") && said.contains("nothing was done"), "{said}");
    fs::write(place.0.join("letter"), "precious").expect("a file");
    place.refused(&["export", "nbd", "a/vm.raw", "--socket", "letter"]);
    assert_eq!(fs::read_to_string(place.0.join("letter")).expect("there"), "precious");
    let _other = UnixListener::bind(place.0.join("other.sock")).expect("another program");
    place.refused(&["export", "nbd", "a/vm.raw", "--socket", "other.sock"]);
    let said = place.refused(&["export", "nbd", "a/vm.raw", "--socket", "a/vm.sock"]);
    assert!(said.contains("lies on a lunfs mount"), "{said}");
    fs::create_dir(a.point.join("dir")).expect("a directory");
    let said = place.refused(&["export", "nbd", "a/dir", "--socket", "dir.sock"]);
    assert!(said.contains("no plain file"), "{said}");
    let said = place.refused(&["export", "nbd", "letter", "--socket", "letter.sock"]);
    assert!(said.contains("not on a mounted lunfs volume"), "{said}");

    // A host that dies leaves its socket, and the next export takes its place.
    a.kill();
    assert!(place.lunfs(&["unmount", "a"]).status.success());
    assert!(socket.exists());
    let _a = place.mount("a");
    assert!(place.lunfs(&again).status.success());
    Client::connect(&socket).read(0, 1).expect("it works");
}

#[test]
fn an_export_ends_by_its_socket_or_its_file() {
    let Some(place) = Place::new("nbd-unexport") else { return };
    let a = place.mount("a");
    let socket = export(&place, &a, MIB, &[]);
    assert!(place.lunfs(&["unexport", "vm.sock"]).status.success());
    assert!(!socket.exists() && listed(&place).contains("\"exports\":[]"));
    let said = place.refused(&["unexport", "vm.sock"]);
    assert!(said.contains("neither an export nor"), "{said}");

    let socket = export(&place, &a, MIB, &[]);
    let mut client = Client::connect(&socket);
    let said = place.refused(&["unexport", "a/vm.raw"]);
    assert!(said.contains("a client of the export of vm.raw over NBD at "), "{said}");
    client.read(0, 1).expect("nothing was done");
    // A name that is gone keeps nobody from ending it; nor does it take the file away before.
    fs::remove_file(a.point.join("vm.raw")).expect("it is removed");
    client.write(FUA, 0, b"still here").expect("it is open");
    assert!(place.lunfs(&["unexport", "--force", "a/vm.raw"]).status.success());
    client.must_be_left();
    assert!(!socket.exists());
}

#[test]
fn a_file_that_has_grown_is_larger_for_who_connects_next() {
    let Some(place) = Place::new("nbd-grown") else { return };
    let a = place.mount("a");
    let socket = export(&place, &a, MIB, &[]);
    let mut before = Client::connect(&socket);
    before.write(0, 0, &bytes(4096)).expect("a write");
    let file = File::options().write(true).open(a.point.join("vm.raw")).expect("the file");
    file.set_len(2 * MIB).expect("it grows");
    assert_eq!(Client::connect(&socket).size, 2 * MIB);
    assert_eq!(before.read(MIB, 1).err(), Some(EINVAL));
    // And one that was cut is not made of zeroes.
    file.set_len(4096).expect("it shrinks");
    assert_eq!(before.read(MIB / 2, 1).err(), Some(5));
    assert_eq!(before.status(MIB / 2, 1).err(), Some(5));
    assert_eq!(before.status(0, 1 << 20), Ok(vec![(4096, 0)]));
}

#[test]
fn unmount_waits_for_clients_unless_it_is_forced() {
    let Some(place) = Place::new("nbd-unmount") else { return };
    let mut a = place.mount("a");
    let socket = export(&place, &a, MIB, &[]);
    let mut client = Client::connect(&socket);
    let said = place.refused(&["unmount", "a"]);
    assert!(said.contains("the mount is busy: a client of the export of vm.raw"), "{said}");
    client.write(0, 0, b"kept").expect("it goes on");
    let forced = place.lunfs(&["unmount", "--force", "--deadline", "300ms", "a"]);
    assert!(forced.status.success(), "{}", told(&forced));
    assert!(told(&forced).contains("taken from a client of the export"), "{}", told(&forced));
    client.must_be_left();
    assert!(!socket.exists());
    a.must_end();
    let a = place.mount("a");
    assert!(fs::read(a.point.join("vm.raw")).expect("it stayed").starts_with(b"kept"));
}

/// Another host may have its files by then: nobody is answered any more.
#[test]
fn a_host_that_stops_leaves_its_clients() {
    let Some(place) = Place::new("nbd-stop") else { return };
    let mut a = place.mount("a");
    let socket = export(&place, &a, MIB, &[]);
    let mut client = Client::connect(&socket);
    client.write(FUA, 0, b"kept").expect("a write");
    place.spoil_pulse(stage::slot_of(&place, "a"));
    client.must_be_left();
    a.must_end();
    assert!(!socket.exists());
}

/// It knows nothing of clients, and a disk that vanishes under a machine is worse than a daemon
/// that stays a while.
#[test]
fn a_plain_umount_leaves_the_clients_their_daemon() {
    let Some(place) = Place::new("nbd-umount") else { return };
    let mut a = place.mount("a");
    let socket = export(&place, &a, MIB, &[]);
    let mut client = Client::connect(&socket);
    rustix::mount::unmount(&a.point, rustix::mount::UnmountFlags::empty()).expect("unmounted");
    wait_until("the end of the socket", || !socket.exists());
    client.write(FUA, 0, b"kept").expect("it goes on");
    drop(client);
    a.must_end();
    must_hold(&place, b"kept");
}

fn must_hold(place: &Place, start: &[u8]) {
    let b = place.mount("b");
    assert!(fs::read(b.point.join("vm.raw")).expect("it stayed").starts_with(start));
    assert!(Path::new(&b.point).exists());
}
