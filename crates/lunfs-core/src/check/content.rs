//! What the entries of trees mean: names, runs, extended attributes, orphans. Pure.
//!
//! Keys are known to rise (`tree`), so a name comes twice only under a wrong hash.

use std::hash::Hasher;

use lunfs_format::{BlockNo, EntryValue, FILE_BLOCK_BLOCKS, MapEntry};

use super::tree::Entry;

/// Longest name in bytes, of files and of extended attributes.
const NAME_MAX: usize = 255;
/// Bytes of a piece of an extended attribute.
const PIECE: usize = 1024;

/// Sentences about what is wrong.
pub(super) type Faults = Vec<String>;

/// A name in a directory.
pub(super) struct Named {
    pub name: Vec<u8>,
    pub value: EntryValue,
}

/// Contents of a file block.
pub(super) struct Run {
    /// Which file block.
    pub index: u64,
    pub start: BlockNo,
    pub len: u64,
    /// Grains up to the last one that holds data.
    pub valid: u64,
}

/// Something without a name.
pub(super) enum Orphan {
    File { addr: BlockNo, birth: u64 },
    Run { start: BlockNo, len: u64 },
}

/// How a name is shown.
pub(super) fn shown(name: &[u8]) -> String {
    String::from_utf8_lossy(name).escape_debug().to_string()
}

/// The entries of a directory.
pub(super) fn names(entries: Vec<Entry>, hash_key: &[u8; 16]) -> (Vec<Named>, Faults) {
    let mut names = Vec::new();
    let mut faults = Faults::new();
    for (key, value) in entries {
        let Some((hash, name)) = key.split_first_chunk::<8>() else {
            faults.push(format!("a key of {} bytes is no entry of a directory", key.len()));
            continue;
        };
        let mut hasher = siphasher::sip::SipHasher24::new_with_key(hash_key);
        hasher.write(name);
        if u64::from_be_bytes(*hash) != (hasher.finish() >> 1 | 16) {
            faults.push(format!(
                "the name \"{}\" lies under the hash of another name: it is listed but cannot be \
                 looked up",
                shown(name)
            ));
        }
        if let Some(why) = fault_of_name(name) {
            faults.push(format!("the name \"{}\" {why}", shown(name)));
        }
        match EntryValue::decode(&value) {
            Ok(value) => names.push(Named { name: name.to_vec(), value }),
            Err(why) => {
                faults.push(format!("what the name \"{}\" refers to is lost: {why}", shown(name)));
            }
        }
    }
    (names, faults)
}

fn fault_of_name(name: &[u8]) -> Option<String> {
    match name {
        b"" => Some("is empty".into()),
        b"." | b".." => Some("must not be in a directory".into()),
        _ if name.len() > NAME_MAX => {
            Some(format!("has {} bytes, {NAME_MAX} are allowed", name.len()))
        }
        _ if name.contains(&b'/') => Some("contains a slash".into()),
        _ if name.contains(&0) => Some("contains a zero byte".into()),
        _ => None,
    }
}

/// The entries of a file's map.
pub(super) fn runs(entries: Vec<Entry>) -> (Vec<Run>, Faults) {
    let mut runs = Vec::new();
    let mut faults = Faults::new();
    for (key, value) in entries {
        let Ok(index) = <[u8; 8]>::try_from(key.as_slice()).map(u64::from_be_bytes) else {
            faults.push(format!("a key of {} bytes is no file block of a map", key.len()));
            continue;
        };
        match MapEntry::decode(&value) {
            Ok(MapEntry { block: Some(start), grains, mask, .. }) => {
                let valid = u64::from(u64::BITS - mask.leading_zeros());
                runs.push(Run { index, start, len: u64::from(grains), valid });
            }
            Ok(_) => {}
            Err(why) => faults.push(format!(
                "the map entry of file block {index} is damaged ({why}): {} KiB of contents are \
                 lost",
                FILE_BLOCK_BLOCKS * 4
            )),
        }
    }
    (runs, faults)
}

/// What is wrong with the extended attributes.
pub(super) fn attributes(entries: &[Entry]) -> Faults {
    let mut faults = Faults::new();
    let mut last: Option<(&[u8], u8, usize)> = None;
    for (key, value) in entries {
        let Some(([name @ .., 0], piece)) = key.split_last().map(|(piece, name)| (name, *piece))
        else {
            faults.push(format!("a key of {} bytes is no extended attribute", key.len()));
            continue;
        };
        let attribute = format!("the extended attribute \"{}\"", shown(name));
        if name.is_empty() || name.len() > NAME_MAX || name.contains(&0) {
            faults.push(format!("{attribute} has no valid name"));
        }
        if value.len() > PIECE {
            faults.push(format!("piece {piece} of {attribute} has {} bytes", value.len()));
        }
        let before = last.filter(|(other, ..)| *other == name);
        let wanted = before.map_or(Some(0), |(_, piece, _)| piece.checked_add(1));
        if wanted != Some(piece) {
            faults.push(format!("{attribute} lacks a piece before piece {piece}"));
        }
        if let Some((_, piece, len)) = before
            && len != PIECE
        {
            faults
                .push(format!("piece {piece} of {attribute} has {len} bytes but is not the last"));
        }
        last = Some((name, piece, value.len()));
    }
    faults
}

/// The entries of an orphan directory.
pub(super) fn orphans(entries: &[Entry]) -> (Vec<Orphan>, Faults) {
    let mut orphans = Vec::new();
    let mut faults = Faults::new();
    for (key, value) in entries {
        if !value.is_empty() {
            faults.push(format!("an orphan has a value of {} bytes", value.len()));
        }
        match orphan(key) {
            Some(orphan) => orphans.push(orphan),
            None => {
                faults.push(format!("a key of {} bytes is no orphan: something leaks", key.len()));
            }
        }
    }
    (orphans, faults)
}

fn orphan(key: &[u8]) -> Option<Orphan> {
    let (what, rest) = key.split_first()?;
    let (first, second) = rest.split_first_chunk()?;
    let first = BlockNo(u64::from_be_bytes(*first));
    let second = u64::from_be_bytes(second.try_into().ok()?);
    match what {
        0 => Some(Orphan::File { addr: first, birth: second }),
        1 => Some(Orphan::Run { start: first, len: second }),
        _ => None,
    }
}
