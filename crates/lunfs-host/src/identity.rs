//! Who runs a mount: what another program of this machine needs to find, verify and stop it.

use std::fs;
use std::os::unix::fs::MetadataExt;

use lunfs_core::Identity;

use crate::error::{HostError, Result};
use crate::rng::random_bytes;

const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
const MACHINE_ID: &str = "/etc/machine-id";

/// The identity of this program; `run` is new at each call.
pub fn identity(has_parent: bool) -> Result<Identity> {
    let pid = std::process::id();
    let about = format!("/proc/{pid}/stat");
    let start = process_start(pid).map_err(|e| HostError::io(format!("cannot read {about}"), e))?;
    let boot = boot_id()?;
    Ok(Identity {
        run: random_bytes(),
        boot,
        machine: machine_id(&fs::read_to_string(MACHINE_ID).unwrap_or_default(), boot),
        pid,
        pid_start: start.ok_or_else(|| HostError::new(format!("{about} tells no start time")))?,
        pid_namespace: pid_namespace()?,
        has_parent,
    })
}

/// Start time of a process in clock ticks since boot; `None`: the kernel's line is not understood.
pub(crate) fn process_start(pid: u32) -> std::io::Result<Option<u64>> {
    Ok(start_in(&fs::read_to_string(format!("/proc/{pid}/stat"))?))
}

/// Field 22. The name in field 2 may hold blanks and parentheses, so count behind its end.
fn start_in(stat: &str) -> Option<u64> {
    let (_, behind_name) = stat.rsplit_once(')')?;
    behind_name.split_ascii_whitespace().nth(19)?.parse().ok()
}

fn boot_id() -> Result<[u8; 16]> {
    let text = fs::read_to_string(BOOT_ID)
        .map_err(|e| HostError::io(format!("cannot read {BOOT_ID}"), e))?;
    hex16(&text).ok_or_else(|| HostError::new(format!("{BOOT_ID} is not an id: {text:?}")))
}

/// A machine without an id of its own is another one after each boot: nothing is then proven by it.
fn machine_id(text: &str, boot: [u8; 16]) -> [u8; 16] {
    hex16(text).filter(|id| *id != [0; 16]).unwrap_or(boot)
}

/// 32 hexadecimal digits, hyphens ignored.
fn hex16(text: &str) -> Option<[u8; 16]> {
    let digits: Vec<u8> = text.trim().bytes().filter(|byte| *byte != b'-').collect();
    let digits = std::str::from_utf8(&digits).ok().filter(|d| d.len() == 32)?;
    u128::from_str_radix(digits, 16).ok().map(u128::to_be_bytes)
}

fn pid_namespace() -> Result<u64> {
    let path = "/proc/self/ns/pid";
    fs::metadata(path).map(|m| m.ino()).map_err(|e| HostError::io(format!("cannot stat {path}"), e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_program_has_an_identity() {
        let (one, two) = (identity(false).unwrap(), identity(true).unwrap());
        assert_ne!(one.run, two.run, "each mount is a new run");
        assert_eq!((one.boot, one.machine, one.pid), (two.boot, two.machine, two.pid));
        assert!(one.pid_start > 0 && one.pid_namespace > 0 && one.boot != [0; 16]);
        assert!(two.has_parent && !one.has_parent);
    }

    #[test]
    fn a_process_name_may_look_like_fields() {
        let fields: Vec<String> = (4..=52).map(|n| n.to_string()).collect();
        let stat = format!("77 (a) S (b c) S {}", fields.join(" "));
        assert_eq!(start_in(&stat), Some(22));
        assert_eq!(start_in("77 (cut off"), None);
    }

    #[test]
    fn ids_are_read_with_and_without_hyphens() {
        let id = hex16("00112233-4455-6677-8899-aabbccddeeff\n").unwrap();
        assert_eq!(id[..3], [0x00, 0x11, 0x22]);
        assert_eq!(hex16("00112233445566778899aabbccddeeff"), Some(id));
        assert_eq!(hex16("0011"), None);
        assert_eq!(machine_id("", id), id, "no machine id: derived from the boot");
        assert_eq!(machine_id("uninitialized\n", id), id);
    }
}
