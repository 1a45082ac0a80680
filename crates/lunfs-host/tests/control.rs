//! The control socket of a mount, used by callers that do what they like.
//!
//! Needs root and /dev/fuse; without them each test says that it was skipped.

#![allow(clippy::unwrap_used, reason = "a step that fails fails the test")]
#![allow(dead_code, reason = "this file uses a part of the hosts")]

mod hosts;

use std::fs;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use hosts::{Host, Place};
use lunfs_host::Ending;
use lunfs_host::control::{Request, call};
use serde_json::Value;

/// As many callers are served at once (control/server.rs).
const CALLERS_MAX: usize = 64;

fn connect(host: &Host) -> UnixStream {
    let device = fs::metadata(&host.point).unwrap().dev();
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let stream = UnixStream::connect(format!("/run/lunfs/{major}-{minor}.sock")).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream.set_write_timeout(Some(Duration::from_secs(20))).unwrap();
    stream
}

/// Says something, ends, and returns all that came back. A line too long is cut off in its middle,
/// so neither side need be told all.
fn tell(host: &Host, bytes: &[u8]) -> String {
    let mut stream = connect(host);
    let _cut_off = stream.write_all(bytes);
    let _gone_already = stream.shutdown(Shutdown::Write);
    let mut answer = Vec::new();
    let _cut_off = stream.read_to_end(&mut answer);
    String::from_utf8(answer).unwrap()
}

/// The mount goes on: it answers here, and its files work.
fn goes_on(host: &Host) {
    let info: Value = call(&host.point, &Request::Info).unwrap();
    assert!(info["stopped"].is_null(), "{info}");
    fs::write(host.path("alive"), b"yes").unwrap();
    assert_eq!(fs::read(host.path("alive")).unwrap(), b"yes");
}

#[test]
fn no_bytes_on_the_control_socket_end_a_mount() {
    let Some(place) = Place::new() else { return };
    let host = place.mount("a");
    let deep = [b"[".repeat(50_000), b"\n".to_vec()].concat();
    let long = [b"x".repeat(3 << 20), b"\n".to_vec()].concat();
    let path = format!("{{\"op\":\"locks\",\"path\":\"{}\"}}\n", "a/".repeat(30_000));
    let far = r#"{"op":"unmount","force":1e99,"deadline_ms":18446744073709551616}"#;
    let told: [&[u8]; 8] = [
        b"",
        b"\n",
        b"\xff\xfe\n",
        b"{\"op\":\"info\"",
        &deep,
        &long,
        path.as_bytes(),
        far.as_bytes(),
    ];
    for bytes in told {
        let answer = tell(&host, bytes);
        assert!(!answer.contains("\"ok\""), "{answer}");
    }
    let mut noise = 0x9E37_79B9_7F4A_7C15_u64;
    let request = br#"{"op":"locks","path":"a/b"}"#;
    for round in 0..300 {
        let mut line = request.to_vec();
        for _ in 0..=round % 4 {
            noise = noise.wrapping_mul(0x5851_F42D_4C95_7F2D).wrapping_add(1);
            let at = (noise >> 40) as usize % line.len();
            line[at] = (noise >> 32) as u8;
        }
        tell(&host, &[line, b"\n".to_vec()].concat());
    }
    goes_on(&host);
    assert_eq!(host.unmount(), Ending::Unmounted);
}

/// Found by asking how many callers a mount can bear: each took a descriptor and a buffer, for
/// ever if it asked and did not listen.
#[test]
fn callers_that_ask_nothing_keep_nobody_else_out_for_long() {
    let Some(place) = Place::new() else { return };
    let host = place.mount("a");
    let mut idle: Vec<UnixStream> = (0..CALLERS_MAX).map(|_| connect(&host)).collect();
    for stream in idle.iter_mut().take(20) {
        stream.write_all(b"{\"op\":\"in").unwrap();
    }
    let refused = tell(&host, b"{\"op\":\"info\"}\n");
    assert!(refused.contains("64 callers are being served"), "{refused}");
    fs::write(host.path("alive"), b"yes").unwrap();
    drop(idle);
    let mut answer = String::new();
    while !answer.contains("\"ok\"") {
        answer = tell(&host, b"{\"op\":\"info\"}\n");
    }
    goes_on(&host);
    assert_eq!(host.unmount(), Ending::Unmounted);
}
