//! The lines that go over the socket, which tools and scripts may write themselves.

use serde_json::{Value, from_str, json, to_string};

use super::*;

#[test]
fn requests_are_plain_json() {
    let cases = [
        (r#"{"op":"info"}"#, Request::Info),
        (r#"{"op":"locks"}"#, Request::Locks { path: None }),
        (r#"{"op":"locks","path":"a/b"}"#, Request::Locks { path: Some("a/b".into()) }),
        (r#"{"op":"unmount"}"#, Request::Unmount { force: false, deadline_ms: 0 }),
        (
            r#"{"op":"unmount","force":true,"deadline_ms":500}"#,
            Request::Unmount { force: true, deadline_ms: 500 },
        ),
        (
            r#"{"op":"export","protocol":"nbd","path":"a/b","socket":"/run/b.sock"}"#,
            Request::Export {
                protocol: Protocol::Nbd,
                path: "a/b".into(),
                socket: "/run/b.sock".into(),
                read_only: false,
            },
        ),
        (r#"{"op":"exports"}"#, Request::Exports),
        (
            r#"{"op":"unexport","path":"a/b"}"#,
            Request::Unexport { socket: None, path: Some("a/b".into()), force: false },
        ),
        (
            r#"{"op":"create_disk","path":"a/b","size":512}"#,
            Request::CreateDisk { path: "a/b".into(), size: 512 },
        ),
        (r#"{"op":"disks","path":""}"#, Request::Disks { path: String::new(), after: 0 }),
        (
            r#"{"op":"clone_disk","source":"a/b","path":"c"}"#,
            Request::CloneDisk { source: "a/b".into(), snapshot: None, path: "c".into() },
        ),
        (
            r#"{"op":"create_snapshot","path":"a/b","name":"n"}"#,
            Request::CreateSnapshot { path: "a/b".into(), name: "n".into() },
        ),
    ];
    for (line, request) in cases {
        assert_eq!(from_str::<Request>(line).unwrap(), request);
        assert_eq!(from_str::<Request>(&to_string(&request).unwrap()).unwrap(), request);
    }
    assert!(from_str::<Request>(r#"{"op":"format"}"#).is_err());
}

#[test]
fn a_response_says_ok_or_error() {
    assert_eq!(to_string(&Response::Ok(Value::Null)).unwrap(), r#"{"ok":null}"#);
    let error: Response = from_str(r#"{"error":"busy"}"#).unwrap();
    assert_eq!(error, Response::Error("busy".into()));
    assert_eq!(to_string(&Response::Ok(json!([1]))).unwrap(), r#"{"ok":[1]}"#);
}

#[test]
fn what_is_not_mounted_is_not_found() {
    let refused = |path| find_mount(std::path::Path::new(path)).unwrap_err().sentence();
    for path in ["/", "/proc/self", "."] {
        assert!(refused(path).contains("not on a mounted lunfs volume"), "{}", refused(path));
    }
    assert!(refused("no/such/path").starts_with("cannot find no/such/path: No such file"));
    assert_eq!(socket_path((0, 41)), PathBuf::from("/run/lunfs/0-41.sock"));
}

/// The kernel gives the device number of a mount that is gone to the next one at once, while the
/// program of the old one is still on its way out.
#[test]
fn an_ending_mount_leaves_the_socket_of_its_successor_alone() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: root is needed for {DIRECTORY}");
        return;
    }
    crate::scratch::block_on(async {
        // No kernel hands out such a number.
        let path = socket_path((u32::MAX, std::process::id()));
        let listen = || crate::socket::Bound::replacing(&path).unwrap().listen().unwrap();
        let (old, new) = (listen(), listen());
        old.name.remove().unwrap();
        assert!(path.exists(), "it is the successor's");
        new.name.remove().unwrap();
        assert!(!path.exists());
        new.name.remove().expect("and gone is gone");
    });
}
