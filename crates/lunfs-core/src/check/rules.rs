//! What a lock and its body must be: pure judgements. `None`: nothing is wrong.

use lunfs_format::{
    BlockNo, Content, Descriptor, Holder, JournalHeader, Lock, LockMode, LockObject, Tree, Version,
};

use super::slots::Slots;

/// What is wrong with a lock that must cover `object`.
pub(super) fn lock(lock: &Lock, object: LockObject) -> Option<String> {
    if lock.object != object {
        return Some(format!("its lock covers {}, not {}", covers(lock.object), covers(object)));
    }
    match lock.mode {
        LockMode::Free | LockMode::Exclusive => None,
        LockMode::Void => Some("its lock says that nothing is here any more".into()),
        LockMode::Shared | LockMode::MultiWriter | LockMode::Frozen => {
            Some(format!("its lock is in mode {:?}, which this version does not know", lock.mode))
        }
    }
}

fn covers(object: LockObject) -> &'static str {
    match object {
        LockObject::Cluster => "a cluster",
        LockObject::Descriptor => "a descriptor",
        LockObject::Journal => "a journal",
        LockObject::System => "something of the whole volume",
    }
}

/// What a body's version and checksum say against the stamp: it binds while nobody holds the lock,
/// and under a holder the body is not older.
pub(super) fn stamp(lock: &Lock, version: Version, checksum: u32) -> Option<String> {
    let saw = lock.stamp.version;
    if version < saw {
        return Some(format!(
            "its body has version {version}, its lock saw {saw}: a write was lost, and what it \
             changed with it"
        ));
    }
    if lock.mode != LockMode::Free {
        return None;
    }
    if version > saw {
        return Some(format!(
            "its body has version {version}, but nobody holds its lock, which saw {saw}: somebody \
             wrote without holding it"
        ));
    }
    (checksum != lock.stamp.checksum).then(|| {
        format!(
            "its body has the checksum {checksum:#010x}, its lock saw {:#010x} at the same version \
             {saw}: two different images of one version were written",
            lock.stamp.checksum
        )
    })
}

/// What is wrong with who a body says it belongs to.
pub(super) fn owner(found: BlockNo, lock: BlockNo) -> Option<String> {
    (found != lock)
        .then(|| format!("its body belongs to the lock in block {found}, not to its own"))
}

/// What is wrong with the age of a descriptor's body: it was made together with its lock.
pub(super) fn birth(body: Version, lock: &Lock) -> Option<String> {
    let (found, wanted) = (body.birth, lock.generation.birth);
    (found != wanted).then(|| {
        format!(
            "its body is of birth {found}, its lock of birth {wanted}: the body is what another \
             file left at this place"
        )
    })
}

/// What is wrong with a void body.
pub(super) fn void(body: &Descriptor) -> Option<String> {
    let is_empty = body.content == Content::Empty && body.xattrs == Tree::Empty;
    (!is_empty).then(|| "it is void but still has content, which will never be freed".into())
}

/// Compares two numbers that must be the same.
pub(super) fn count(what: &str, said: u64, found: u64) -> Option<String> {
    (said != found).then(|| format!("{what}: it says {said}, there are {found}"))
}

/// What is wrong with who holds a lock that was read before these slots were.
pub(super) fn holder(lock: &Lock, slots: &Slots) -> Option<String> {
    let holder = lock.holder?;
    let why = slots.fault_of(holder)?;
    Some(format!("its lock is held by {holder}, but {why}; nobody can ever take it over"))
}

/// What is wrong with the newest header of a journal that was read before these slots were.
pub(super) fn journal(header: &JournalHeader, ring: u64, slots: &Slots) -> Option<String> {
    let position = header.tail_position;
    if position >= ring {
        return Some(format!(
            "its tail is at {position} of a ring of {ring} blocks: no replay finds it"
        ));
    }
    let writer = Holder { slot: header.slot, incarnation: header.incarnation };
    slots.fault_of(writer).map(|why| format!("it was written by {writer}, but {why}"))
}
