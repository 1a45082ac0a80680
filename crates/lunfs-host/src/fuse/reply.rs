//! Answers of the server into fuser's replies.

use std::time::Duration;

use fuser::{
    Errno, FileAttr, FileHandle, FopenFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyEmpty,
    ReplyEntry, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr,
};
use lunfs_core::Space;

use super::server::{Answer, Entry, Xattr};
use super::translate::NAME_MAX;

/// Nothing may be answered from the kernel's caches: another host may have changed it.
const NO_TIME: Duration = Duration::ZERO;
/// Unit of `Space`.
const BLOCK: u32 = 4096;

/// A reply that takes a `T`.
pub trait Reply<T>: Sized {
    /// Sends the value.
    fn send(self, value: T);
    /// Sends the error.
    fn refuse(self, error: Errno);
    /// Sends either.
    fn give(self, answer: Answer<T>) {
        match answer {
            Ok(value) => self.send(value),
            Err(error) => self.refuse(error),
        }
    }
}

macro_rules! reply {
    ($reply:ident, $kind:ty, |$it:ident, $value:ident| $send:expr) => {
        impl Reply<$kind> for $reply {
            fn send(self, $value: $kind) {
                let $it = self;
                $send;
            }
            fn refuse(self, error: Errno) {
                self.error(error);
            }
        }
    };
}

reply!(ReplyEmpty, (), |it, _nothing| it.ok());
reply!(ReplyEntry, Entry, |it, entry| it.entry(&NO_TIME, &entry.attr, entry.generation));
reply!(ReplyAttr, FileAttr, |it, attr| it.attr(&NO_TIME, &attr));
reply!(ReplyData, Vec<u8>, |it, data| it.data(&data));
reply!(ReplyWrite, u32, |it, len| it.written(len));
reply!(ReplyLseek, i64, |it, at| it.offset(at));
reply!(ReplyOpen, (u64, FopenFlags), |it, opened| it.opened(FileHandle(opened.0), opened.1));
reply!(ReplyCreate, (Entry, u64), |it, made| {
    let (Entry { attr, generation }, handle) = made;
    it.created(&NO_TIME, &attr, generation, FileHandle(handle), FopenFlags::FOPEN_DIRECT_IO);
});
reply!(ReplyXattr, Xattr, |it, value| match value {
    Xattr::Size(size) => it.size(size),
    Xattr::Bytes(bytes) => it.data(&bytes),
});
// Files have no number of their own to run out of.
reply!(ReplyStatfs, Space, |it, space| {
    it.statfs(space.total, space.free, space.available, 0, 0, BLOCK, NAME_MAX as u32, BLOCK);
});
