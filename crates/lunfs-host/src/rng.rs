//! Chance from the kernel. Nonces of all hosts together must never repeat, so nothing is seeded
//! once and stretched: every number comes from `getrandom`.

use std::cell::RefCell;

use lunfs_core::env::Rng;
use rustix::rand::{GetRandomFlags, getrandom};

/// Numbers fetched by one system call.
const STOCK: usize = 32;

/// The kernel's random numbers.
#[derive(Debug, Default)]
pub struct HostRng {
    stock: RefCell<Vec<u64>>,
}

impl Rng for HostRng {
    fn next(&self) -> u64 {
        let mut stock = self.stock.borrow_mut();
        if stock.is_empty() {
            let bytes: [u8; STOCK * 8] = random_bytes();
            stock.extend(bytes.as_chunks::<8>().0.iter().map(|c| u64::from_le_bytes(*c)));
        }
        stock.pop().expect("the stock was just filled")
    }
}

/// Random bytes for names that must be unique.
pub fn random_bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    let mut filled = 0;
    while filled < N {
        match getrandom(&mut bytes[filled..], GetRandomFlags::empty()) {
            Ok(count) => filled += count,
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => panic!("the kernel gives no random numbers: {e}"),
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_do_not_repeat() {
        let rng = HostRng::default();
        let mut seen: Vec<u64> = (0..1000).map(|_| rng.next()).collect();
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen.len(), 1000);
        assert_ne!(random_bytes::<16>(), random_bytes::<16>());
    }
}
