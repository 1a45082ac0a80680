//! Memory that direct I/O accepts: aligned to 4096 bytes, and reused.

/// Alignment of every buffer. No disk of today wants more.
pub const ALIGNMENT: usize = 4096;
/// Bytes the pool keeps for later; more is given back to the allocator.
const KEPT_MAX: usize = 32 << 20;

#[derive(Clone, Copy)]
#[repr(C, align(4096))]
struct Page([u8; ALIGNMENT]);

const ZERO_PAGE: Page = Page([0; ALIGNMENT]);
const _: () = assert!(size_of::<Page>() == ALIGNMENT && align_of::<Page>() == ALIGNMENT);

/// Whole aligned pages. They do not move when the value moves.
pub struct AlignedBuffer {
    pages: Vec<Page>,
}

impl AlignedBuffer {
    /// At least `len` bytes.
    pub fn new(len: usize) -> AlignedBuffer {
        AlignedBuffer { pages: vec![ZERO_PAGE; len.div_ceil(ALIGNMENT).max(1)] }
    }

    /// How many bytes it has.
    pub fn capacity(&self) -> usize {
        self.pages.len() * ALIGNMENT
    }

    /// Its bytes.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: the pages are `capacity` initialised bytes without padding, borrowed like `self`.
        unsafe { std::slice::from_raw_parts(self.pages.as_ptr().cast(), self.capacity()) }
    }

    /// Its bytes, to be changed.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        let capacity = self.capacity();
        // SAFETY: as in `bytes`; every value of a byte is a valid page, and the borrow is
        // exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.pages.as_mut_ptr().cast(), capacity) }
    }
}

/// Buffers in sizes of powers of two, for one thread.
#[derive(Default)]
pub struct BufferPool {
    free: Vec<Vec<AlignedBuffer>>,
    kept: usize,
}

impl BufferPool {
    /// A buffer of at least `len` bytes; what it holds is undefined.
    pub fn take(&mut self, len: usize) -> AlignedBuffer {
        let size = len.max(ALIGNMENT).next_power_of_two();
        match self.free.get_mut(class(size)).and_then(Vec::pop) {
            Some(buffer) => {
                self.kept -= buffer.capacity();
                buffer
            }
            None => AlignedBuffer::new(size),
        }
    }

    /// Takes a buffer back.
    pub fn give(&mut self, buffer: AlignedBuffer) {
        let size = buffer.capacity();
        if self.kept + size > KEPT_MAX {
            return;
        }
        let class = class(size);
        if self.free.len() <= class {
            self.free.resize_with(class + 1, Vec::new);
        }
        self.kept += size;
        self.free[class].push(buffer);
    }
}

fn class(size: usize) -> usize {
    (size / ALIGNMENT).ilog2() as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned_and_reused() {
        let mut pool = BufferPool::default();
        for len in [1, 512, 4096, 4097, 1 << 20] {
            let mut buffer = pool.take(len);
            assert!(buffer.capacity() >= len);
            assert_eq!(buffer.bytes().as_ptr() as usize % ALIGNMENT, 0);
            buffer.bytes_mut().fill(7);
            assert!(buffer.bytes().iter().all(|byte| *byte == 7));
            let place = buffer.bytes().as_ptr();
            pool.give(buffer);
            assert_eq!(pool.take(len).bytes().as_ptr(), place, "the same memory again");
        }
    }

    #[test]
    fn the_pool_keeps_a_bounded_amount() {
        let mut pool = BufferPool::default();
        let many: Vec<_> = (0..9).map(|_| pool.take(8 << 20)).collect();
        many.into_iter().for_each(|buffer| pool.give(buffer));
        assert_eq!(pool.kept, KEPT_MAX);
    }
}
