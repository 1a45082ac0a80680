//! The asking side: plain blocking code for command-line tools.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;

use super::{Request, Response, socket_path};
use crate::error::{HostError, Result};
use crate::fuse::FILE_SYSTEM;
use crate::mount_table::{Mount, mount_of, mounted_at};

/// How long an answer may take, beyond a deadline the request names.
const PATIENCE: Duration = Duration::from_secs(120);

/// Asks the program that serves the mount at (or around) `path`.
pub fn call(path: &Path, request: &Request) -> Result<Value> {
    let mount = find_mount(path)?;
    match ask(&socket_path(mount.device), request, &mount)? {
        Response::Ok(value) => Ok(value),
        Response::Error(why) => Err(HostError::new(why)),
    }
}

/// The lunfs mount at `path`, or the one that `path` lies on. A mount point is found in the mount
/// table alone, because nothing there can be looked at when the server is dead.
pub fn find_mount(path: &Path) -> Result<Mount> {
    let absolute = std::path::absolute(path)
        .map_err(|e| HostError::io(format!("cannot tell where {} is", path.display()), e))?;
    let names = [Some(absolute.clone()), beside_its_parent(&absolute), fs::canonicalize(path).ok()];
    for name in names.iter().flatten() {
        if let Some(mount) = mounted_at(name)?.filter(|mount| mount.kind == FILE_SYSTEM) {
            return Ok(mount);
        }
    }
    let [_, _, canonical] = names;
    let around = canonical.map(|name| mount_of(&name)).transpose()?.flatten();
    around.filter(|mount| mount.kind == FILE_SYSTEM).ok_or_else(|| {
        HostError::new(format!("{} is not on a mounted lunfs volume", path.display()))
    })
}

/// The name with the links in its directory resolved, but not looked at itself.
fn beside_its_parent(absolute: &Path) -> Option<PathBuf> {
    Some(fs::canonicalize(absolute.parent()?).ok()?.join(absolute.file_name()?))
}

fn ask(socket: &Path, request: &Request, mount: &Mount) -> Result<Response> {
    let point = mount.point.display();
    let failed = |e| HostError::io(format!("no answer from the program that serves {point}"), e);
    let mut stream = UnixStream::connect(socket).map_err(|e| {
        HostError::io(
            format!(
                "cannot reach the program that serves {point}; if it is dead, remove the mount \
                 with `umount -l {point}` and mount again"
            ),
            e,
        )
    })?;
    stream.set_read_timeout(Some(patience(request))).map_err(failed)?;
    let mut line = serde_json::to_vec(request).expect("a request is plain data");
    line.push(b'\n');
    stream.write_all(&line).map_err(failed)?;
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer).map_err(failed)?;
    serde_json::from_str(&answer).map_err(|e| {
        HostError::new(format!("the program that serves {point} gave no clear answer: {e}"))
    })
}

fn patience(request: &Request) -> Duration {
    match request {
        Request::Unmount { deadline_ms, .. } => PATIENCE + Duration::from_millis(*deadline_ms),
        _ => PATIENCE,
    }
}
