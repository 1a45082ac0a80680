//! What a disk holds, cheap to copy and to compare.
//!
//! Pages nobody changed are shared; the hash is kept up to date with every write, so that two
//! images that were reached on different ways are known to be one.

use std::collections::BTreeMap;
use std::rc::Rc;

use crate::chance::mix;

/// Bytes of a page.
const PAGE: u64 = 4096;

type Page = [u8; 4096];

/// The contents of a disk. Where nobody has written lies what somebody else once stored there.
#[derive(Clone)]
pub struct Image {
    ground: Rc<Vec<Option<Rc<Page>>>>,
    changed: BTreeMap<u64, Rc<Page>>,
    hash: u128,
}

impl Image {
    /// A used disk.
    pub fn used() -> Image {
        Image { ground: Rc::default(), changed: BTreeMap::new(), hash: 0 }
    }

    /// The same image, with all of it as the ground that its copies share.
    pub fn settled(&self) -> Image {
        let mut ground = (*self.ground).clone();
        for (number, page) in &self.changed {
            let number = index(*number);
            ground.resize(ground.len().max(number + 1), None);
            ground[number] = Some(Rc::clone(page));
        }
        Image { ground: Rc::new(ground), changed: BTreeMap::new(), hash: self.hash }
    }

    /// Equal for equal images of one ancestor, and different for others but by a chance of one in
    /// 2^100.
    pub fn hash(&self) -> u128 {
        self.hash
    }

    fn page(&self, number: u64) -> Option<&Page> {
        let below = || self.ground.get(index(number))?.as_ref();
        self.changed.get(&number).or_else(below).map(|page| &**page)
    }

    /// Reads.
    pub fn read(&self, at: u64, len: usize) -> Vec<u8> {
        let mut out = Vec::with_capacity(len);
        while out.len() < len {
            let at = at + out.len() as u64;
            let (from, count) = part(at, len - out.len());
            match self.page(at / PAGE) {
                Some(page) => out.extend_from_slice(&page[from..from + count]),
                None => out.extend_from_slice(&ghosts(at / PAGE)[from..from + count]),
            }
        }
        out
    }

    /// Writes.
    pub fn write(&mut self, at: u64, data: &[u8]) {
        let mut done = 0;
        while done < data.len() {
            let at = at + done as u64;
            let (from, count) = part(at, data.len() - done);
            let number = at / PAGE;
            let mut page = self.page(number).map_or_else(|| ghosts(number), |page| *page);
            self.hash ^= hash(number, &page);
            page[from..from + count].copy_from_slice(&data[done..done + count]);
            self.hash ^= hash(number, &page);
            self.changed.insert(number, Rc::new(page));
            done += count;
        }
    }
}

fn index(number: u64) -> usize {
    usize::try_from(number).expect("a page of a small disk")
}

/// Where in its page a range starts, and how much of it lies there.
fn part(at: u64, len: usize) -> (usize, usize) {
    let from = usize::try_from(at % PAGE).unwrap_or(0);
    (from, len.min(4096 - from))
}

fn ghosts(number: u64) -> Page {
    let mut page = [0; 4096];
    for (index, word) in page.chunks_exact_mut(8).enumerate() {
        word.copy_from_slice(&mix(mix(number).wrapping_add(index as u64)).to_le_bytes());
    }
    page
}

fn hash(number: u64, page: &Page) -> u128 {
    let (mut a, mut b) = (mix(number), mix(!number));
    for word in page.as_chunks::<8>().0 {
        let word = u64::from_le_bytes(*word);
        a = (a ^ word).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(29);
        b = (b.rotate_left(31) ^ word).wrapping_mul(0xC2B2_AE3D_27D4_EB4F);
    }
    (u128::from(mix(a)) << 64) | u128::from(mix(b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_image_has_one_hash_whatever_the_way_to_it() {
        let mut one = Image::used();
        let mut other = one.clone();
        one.write(512, &[1; 512]);
        one.write(8192, &[2; 4096]);
        assert_ne!(one.hash(), other.hash());
        other.write(8192, &[3; 4096]);
        other.write(8192, &[2; 4096]);
        other.write(512, &[1; 512]);
        assert_eq!(one.hash(), other.hash());
        assert_eq!(one.settled().read(0, 16384), other.read(0, 16384));
    }

    #[test]
    fn what_was_taken_back_leaves_no_trace() {
        let image = Image::used();
        let mut other = image.clone();
        let before = other.read(4096, 512);
        other.write(4096, &[0; 512]);
        other.write(4096, &before);
        assert_eq!(image.hash(), other.hash());
    }
}
