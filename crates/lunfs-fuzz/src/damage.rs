//! How an input becomes damage: flips, swaps, replays from the past, and lies with right checksums.
//!
//! One damage takes eight bytes of the input:
//!
//! ```text
//!   byte    0        1        2..4      4..6     6..8
//!         what    flags      place      one     other
//! ```

use lunfs_format::{BLOCK, Lock, RECORD, Stamp, VolumeId, layout, peek_header, stored_checksum};

use crate::history::{History, Place};
use crate::input::Choices;
use crate::seal::seal;
use crate::world::Image;

/// Damages of one input at most.
const DAMAGES_MAX: usize = 12;

/// The checksum is made right again.
const SEALED: u8 = 1;
/// It says that it was written for the place where it is.
const READDRESSED: u8 = 2;
/// The lock in front of it vouches for it.
const STAMPED: u8 = 4;

/// Numbers at which arithmetic ends.
const EDGES: [u64; 32] = [
    0,
    1,
    2,
    3,
    4,
    5,
    7,
    8,
    62,
    63,
    64,
    65,
    255,
    1023,
    1024,
    1025,
    4095,
    4096,
    0x7FFF,
    0xFFFF,
    0x1_0000,
    0xFFFF_FFFF,
    (1 << 40) - 1,
    1 << 52,
    (1 << 56) - 1,
    (1 << 56) + 1,
    1 << 62,
    (1 << 63) - 1,
    1 << 63,
    u64::MAX - 4096,
    u64::MAX - 1,
    u64::MAX,
];

/// What became of an image.
pub struct Damaged {
    /// The image.
    pub image: Image,
    /// No checksum was made right: whatever changed is noise, or was true once.
    pub is_honest: bool,
    /// How many damages there were.
    pub count: usize,
}

/// Does to `image` what the input says, at the given places.
pub fn damage(
    mut image: Image,
    history: &History,
    places: &[Place],
    choices: &mut Choices<'_>,
) -> Damaged {
    let (mut is_honest, mut count) = (true, 0);
    while !choices.is_over() && count < DAMAGES_MAX {
        let (what, flags) = (choices.byte(), choices.byte());
        let (place, one, other) = (choices.word(), choices.word(), choices.word());
        let place = pick(places, place);
        // Nobody vouches for contents: bytes that change there show.
        let is_structure = lunfs_format::kind_of(slice_of(&image, place)).is_some();
        let is_whole = change(&mut image, history, places, (what, place, one, other));
        let lies = flags & (SEALED | READDRESSED | STAMPED) != 0;
        if lies {
            vouch(&mut image, history.superblock.volume, place, flags);
        }
        is_honest &= is_structure && is_whole && !lies;
        count += 1;
    }
    Damaged { image, is_honest, count }
}

fn pick(places: &[Place], number: u16) -> Place {
    places[usize::from(number) % places.len()]
}

/// Changes the image; `false` if that can leave a right checksum over what was never true.
fn change(
    image: &mut Image,
    history: &History,
    places: &[Place],
    (what, place, one, other): (u8, Place, u16, u16),
) -> bool {
    let past = &history.snapshots[usize::from(one) % history.snapshots.len()];
    let beside = pick(places, one);
    match what % 16 {
        0 => {
            let bit = usize::from(one) % (place.len * 8);
            bytes_of(image, place)[bit / 8] ^= 1 << (bit % 8);
        }
        1 => {
            let at = usize::from(one) % place.len;
            bytes_of(image, place)[at] = other as u8;
        }
        2 => {
            swap(image, place, beside);
            return lunfs_format::kind_of(slice_of(image, place)).is_some();
        }
        3 => copy(past, place, image, place),
        4 => {
            let from = image.clone();
            copy(&from, beside, image, place);
        }
        5 => bytes_of(image, place).fill(0),
        6 => {
            // Torn: a part is of the past.
            let keep = RECORD * (1 + usize::from(other) % 7).min(place.len / RECORD);
            let old = slice_of(past, place)[keep.min(place.len)..].to_vec();
            bytes_of(image, place)[keep.min(place.len)..].copy_from_slice(&old);
        }
        7 => {
            let cluster = |place: &Place| place.block.0 >> 10;
            for same in places.iter().filter(|p| cluster(p) == cluster(&place)) {
                copy(past, *same, image, *same);
            }
            return false;
        }
        8..=10 => set_field(image, place, one, |_| edge(other, places)),
        11 | 12 => {
            let delta = u64::from(other % 32).wrapping_sub(16);
            set_field(image, place, one, |old| old.wrapping_add(delta));
        }
        13 | 14 => {
            let from = pick(places, other);
            let value =
                field(slice_of(image, from), one).map_or(0, |f| f.get(slice_of(image, from)));
            set_field(image, place, one, |_| value);
        }
        _ => {
            // Two words change places: entries, runs, children.
            let (a, b) = (usize::from(one) % (place.len / 8), usize::from(other) % (place.len / 8));
            let bytes = bytes_of(image, place);
            for i in 0..8 {
                bytes.swap(a * 8 + i, b * 8 + i);
            }
        }
    }
    true
}

fn edge(number: u16, places: &[Place]) -> u64 {
    let number = usize::from(number);
    match EDGES.get(number % (2 * EDGES.len())) {
        Some(edge) => *edge,
        None => pick(places, (number / (2 * EDGES.len())) as u16 * 7).block.0,
    }
}

/// A number inside a structure.
struct FieldAt {
    at: usize,
    len: usize,
}

impl FieldAt {
    fn get(&self, bytes: &[u8]) -> u64 {
        let mut word = [0; 8];
        if let Some(found) = bytes.get(self.at..self.at + self.len) {
            word[..self.len].copy_from_slice(found);
        }
        u64::from_le_bytes(word)
    }

    fn set(&self, bytes: &mut [u8], value: u64) {
        if let Some(place) = bytes.get_mut(self.at..self.at + self.len) {
            place.copy_from_slice(&value.to_le_bytes()[..self.len]);
        }
    }
}

/// The field that a number means: one that the format knows, or any word.
fn field(bytes: &[u8], number: u16) -> Option<FieldAt> {
    let number = usize::from(number);
    let known = lunfs_format::kind_of(bytes)
        .and_then(|kind| layout::ALL.get(usize::from(kind)))
        .filter(|_| number.is_multiple_of(2));
    let Some(layout) = known else {
        let at = number / 2 % (bytes.len() / 8) * 8;
        return Some(FieldAt { at, len: 8 });
    };
    let header = layout::ALL[0].fields.iter();
    let fields: Vec<_> = header.chain(layout.fields.iter().skip(1)).collect();
    let number = number / 2;
    let chosen = fields[number % fields.len()];
    let words = chosen.size.div_ceil(8);
    let at = chosen.offset + number / fields.len() % words * 8;
    Some(FieldAt { at, len: chosen.size.min(8).min(chosen.offset + chosen.size - at) })
}

fn set_field(image: &mut Image, place: Place, number: u16, new: impl FnOnce(u64) -> u64) {
    let bytes = bytes_of(image, place);
    if let Some(field) = field(bytes, number) {
        let value = new(field.get(bytes));
        field.set(bytes, value);
    }
}

fn slice_of(image: &Image, place: Place) -> &[u8] {
    &image.block(place.block)[place.offset..place.offset + place.len]
}

fn bytes_of(image: &mut Image, place: Place) -> &mut [u8] {
    &mut image.block_mut(place.block)[place.offset..place.offset + place.len]
}

fn copy(from: &Image, source: Place, into: &mut Image, target: Place) {
    if source == target && target.len == BLOCK {
        into.take_from(from, target.block);
        return;
    }
    let len = source.len.min(target.len);
    let bytes = slice_of(from, source)[..len].to_vec();
    bytes_of(into, target)[..len].copy_from_slice(&bytes);
}

fn swap(image: &mut Image, one: Place, other: Place) {
    let before = image.clone();
    copy(&before, other, image, one);
    copy(&before, one, image, other);
}

/// Makes wrong bytes look right: address, checksum, and the stamp in the lock that covers them.
fn vouch(image: &mut Image, volume: VolumeId, place: Place, flags: u8) {
    if flags & READDRESSED != 0 && place.offset == 0 && place.len == BLOCK {
        let address = place.block.0.to_le_bytes();
        bytes_of(image, place)[32..40].copy_from_slice(&address);
    }
    seal(bytes_of(image, place));
    if flags & STAMPED == 0 || place.block.0 == 0 {
        return;
    }
    let at = lunfs_format::BlockNo(place.block.0 - 1);
    let Ok(header) = peek_header(slice_of(image, place)) else { return };
    let Ok(mut lock) = Lock::decode(&image.block(at)[..RECORD], volume, at) else { return };
    let checksum = stored_checksum(slice_of(image, place));
    lock.stamp = Stamp { version: header.version, checksum };
    image.block_mut(at)[..RECORD].copy_from_slice(&lock.encode(volume, at)[..]);
}
