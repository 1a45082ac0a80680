//! One host on a disk without faults: what operations do when nothing goes wrong.

mod support;

use std::rc::Rc;

use lunfs_core::{Fallocate, FileId, Kind, RenameMode, Seek, SetAttr, Volume, XattrMode};
use lunfs_format::Sizes;
use support::{
    block_on, check_clean, directory, env, file, formatted_as, left_after, mount, pattern,
};

/// Formats, mounts, runs `story` while serving, unmounts, and has the walker look.
fn with_volume(story: impl AsyncFnOnce(&Rc<Volume>)) {
    let (env, time) = env(256 << 20);
    block_on(&time, async {
        formatted_as(&env, Sizes::default()).await;
        let volume = mount(&env, "a").await;
        left_after(&volume, story(&volume)).await;
        check_clean(&env).await;
    });
}

async fn make(v: &Volume, dir: FileId, name: &str) -> FileId {
    v.create(dir, name.as_bytes(), file()).await.expect("creates").id
}

#[test]
fn what_was_written_is_read_at_every_size() {
    with_volume(async |v| {
        for (i, size) in [0, 1, 2048, 2049, 4095, 4096, 70_000, 262_144, 262_145, 1_500_000]
            .into_iter()
            .enumerate()
        {
            let id = make(v, v.root(), &format!("f{i}")).await;
            let data = pattern(size, i as u8);
            v.write(id, 0, data.clone()).await.expect("writes");
            assert_eq!(v.read(id, 0, size + 100).await.expect("reads"), data, "size {size}");
            v.fsync(id).await.expect("syncs");
            assert_eq!(v.read(id, 0, size + 100).await.expect("reads"), data, "size {size}");
        }
    });
}

#[test]
fn small_appends_add_up() {
    with_volume(async |v| {
        let id = make(v, v.root(), "log").await;
        let mut all = Vec::new();
        for i in 0..900 {
            let line = pattern(777, i as u8);
            v.write(id, all.len() as u64, line.clone()).await.expect("writes");
            all.extend(line);
            if i % 100 == 7 {
                v.fsync(id).await.expect("syncs");
            }
        }
        assert_eq!(v.read(id, 0, all.len()).await.expect("reads"), all);
    });
}

#[test]
fn holes_and_cut_tails_read_zero() {
    with_volume(async |v| {
        let id = make(v, v.root(), "sparse").await;
        v.write(id, 1_000_000, b"end".to_vec()).await.expect("writes");
        assert_eq!(v.read(id, 0, 100).await.expect("reads"), vec![0; 100]);
        assert_eq!(v.seek(id, 0, Seek::Data).await.expect("seeks"), 999_424);
        assert_eq!(v.seek(id, 0, Seek::Hole).await.expect("seeks"), 0);
        v.write(id, 0, pattern(9000, 1)).await.expect("writes");
        let size = |size| SetAttr { size: Some(size), ..SetAttr::default() };
        v.setattr(id, size(5000)).await.expect("cuts");
        v.setattr(id, size(9000)).await.expect("extends");
        let mut expect = pattern(9000, 1);
        expect[5000..].fill(0);
        assert_eq!(v.read(id, 0, 10_000).await.expect("reads"), expect);
        v.fallocate(id, 100, 5000, Fallocate::PunchHole).await.expect("punches");
        expect[100..5100].fill(0);
        assert_eq!(v.read(id, 0, 10_000).await.expect("reads"), expect);
        v.setattr(id, size(0)).await.expect("empties");
        assert_eq!(v.getattr(id).await.expect("attrs").blocks, 0);
        v.write(id, 3, b"x".to_vec()).await.expect("writes");
        assert_eq!(v.read(id, 0, 10).await.expect("reads"), b"\0\0\0x");
    });
}

#[test]
fn thousands_of_names_come_and_go() {
    with_volume(async |v| {
        let dir = v.create(v.root(), b"many", directory()).await.expect("creates").id;
        for i in 0..3000 {
            make(v, dir, &format!("a rather ordinary file name {i}")).await;
        }
        let mut seen = std::collections::BTreeSet::new();
        let mut after = 0;
        loop {
            let some = v.readdir(dir, after, 100).await.expect("lists");
            let Some(last) = some.last() else { break };
            after = last.cookie;
            seen.extend(some.iter().map(|e| e.name.clone()));
        }
        assert_eq!(seen.len(), 3000);
        for i in (0..3000).rev() {
            let name = format!("a rather ordinary file name {i}");
            v.unlink(dir, name.as_bytes()).await.expect("unlinks");
        }
        v.rmdir(v.root(), b"many").await.expect("removes");
    });
}

#[test]
fn names_move_and_links_count() {
    with_volume(async |v| {
        let a = v.create(v.root(), b"a", directory()).await.expect("creates").id;
        let b = v.create(v.root(), b"b", directory()).await.expect("creates").id;
        let f = make(v, a, "f").await;
        v.write(f, 0, b"hello".to_vec()).await.expect("writes");
        assert_eq!(v.link(f, b, b"g").await.expect("links").nlink, 2);
        v.rename(a, b"f", b, b"h", RenameMode::Replace).await.expect("renames");
        assert_eq!(v.lookup(a, b"f").await.unwrap_err().kind, Kind::NotFound);
        assert_eq!(v.lookup(b, b"h").await.expect("finds").id, f);
        let g = make(v, b, "other").await;
        v.rename(b, b"other", b, b"g", RenameMode::Replace).await.expect("replaces");
        assert_eq!(v.lookup(b, b"g").await.expect("finds").id, g);
        assert_eq!(v.getattr(f).await.expect("attrs").nlink, 1);
        v.rename(b, b"g", b, b"h", RenameMode::Exchange).await.expect("exchanges");
        assert_eq!(v.lookup(b, b"g").await.expect("finds").id, f);
        v.rename(v.root(), b"b", a, b"inner", RenameMode::Replace).await.expect("moves");
        let circle = v.rename(v.root(), b"a", b, b"x", RenameMode::Replace).await;
        assert_eq!(circle.unwrap_err().kind, Kind::Invalid);
        assert_eq!(v.rmdir(v.root(), b"a").await.unwrap_err().kind, Kind::NotEmpty);
    });
}

#[test]
fn a_name_has_255_bytes_at_most() {
    with_volume(async |v| {
        let (root, longest, longer) = (v.root(), [b'n'; 255], [b'n'; 256]);
        let f = v.create(root, &longest, file()).await.expect("creates").id;
        assert_eq!(v.lookup(root, &longest).await.expect("finds").id, f);
        let replace = RenameMode::Replace;
        for kind in [
            v.lookup(root, &longer).await.unwrap_err().kind,
            v.create(root, &longer, file()).await.unwrap_err().kind,
            v.create(root, &longer, directory()).await.unwrap_err().kind,
            v.link(f, root, &longer).await.unwrap_err().kind,
            v.unlink(root, &longer).await.unwrap_err().kind,
            v.rmdir(root, &longer).await.unwrap_err().kind,
            v.rename(root, &longer, root, b"short", replace).await.unwrap_err().kind,
            v.rename(root, &longest, root, &longer, replace).await.unwrap_err().kind,
        ] {
            assert_eq!(kind, Kind::TooLong);
        }
        assert_eq!(v.readdir(root, 0, 10).await.expect("lists").len(), 1);
        v.unlink(root, &longest).await.expect("unlinks");
    });
}

#[test]
fn attributes_of_any_length_are_kept() {
    with_volume(async |v| {
        let id = make(v, v.root(), "f").await;
        for (i, len) in [0, 1, 900, 1024, 1025, 65_536].into_iter().enumerate() {
            let name = format!("user.n{i}");
            let value = pattern(len, 3);
            v.set_xattr(id, name.as_bytes(), &value, XattrMode::Create).await.expect("sets");
            assert_eq!(v.get_xattr(id, name.as_bytes()).await.expect("gets"), value);
        }
        v.set_xattr(id, b"user.n5", b"short", XattrMode::Any).await.expect("sets");
        assert_eq!(v.get_xattr(id, b"user.n5").await.expect("gets"), b"short");
        assert_eq!(v.list_xattrs(id).await.expect("lists").len(), 6);
        v.remove_xattr(id, b"user.n4").await.expect("removes");
        assert_eq!(v.get_xattr(id, b"user.n4").await.unwrap_err().kind, Kind::NoAttribute);
    });
}

#[test]
fn a_deleted_file_lives_while_it_is_open() {
    with_volume(async |v| {
        let id = make(v, v.root(), "f").await;
        v.write(id, 0, pattern(100_000, 5)).await.expect("writes");
        v.open(id);
        v.unlink(v.root(), b"f").await.expect("unlinks");
        assert_eq!(v.read(id, 0, 100_000).await.expect("reads"), pattern(100_000, 5));
        v.close(id);
    });
}

#[test]
fn a_full_volume_says_so_and_is_whole() {
    with_volume(async |v| {
        let mut written = 0;
        let error = loop {
            let id = make(v, v.root(), &format!("big{written}")).await;
            match v.write(id, 0, pattern(8 << 20, written as u8)).await {
                Ok(()) => written += 1,
                Err(e) => break e,
            }
        };
        assert_eq!(error.kind, Kind::NoSpace);
        assert!(written > 20, "only {written} files of 8 MiB fit into 256 MiB");
        for i in 0..written {
            v.unlink(v.root(), format!("big{i}").as_bytes()).await.expect("unlinks");
        }
    });
}

/// What was allocated ahead is there, also where a short run had to grow for it.
#[test]
fn space_allocated_ahead_is_allocated() {
    with_volume(async |v| {
        let id = make(v, v.root(), "ahead").await;
        let data = pattern(16 * 1024, 1);
        v.write(id, 0, data.clone()).await.expect("writes");
        let allocate = Fallocate::Allocate { keep_size: false };
        v.fallocate(id, 0, 300 * 1024, allocate).await.expect("allocates");
        v.fsync(id).await.expect("syncs");
        let attr = v.getattr(id).await.expect("attrs");
        assert_eq!((attr.size, attr.blocks), (300 * 1024, 128));
        let mut expect = data;
        expect.resize(300 * 1024, 0);
        assert_eq!(v.read(id, 0, 1 << 20).await.expect("reads"), expect);
    });
}

/// Archivers take a file without blocks for a hole: GNU tar with -S stored zeroes for what had been
/// written a second ago, or lay in the descriptor.
#[test]
fn a_file_with_contents_has_blocks() {
    with_volume(async |v| {
        for len in [1, 2000, 40_000, 1_000_000] {
            let id = make(v, v.root(), &format!("f{len}")).await;
            v.write(id, 0, pattern(len, 1)).await.expect("writes");
            let at_once = v.getattr(id).await.expect("attrs").blocks;
            assert!(at_once * 4096 >= len as u64, "{at_once} blocks for {len} bytes");
            v.fsync(id).await.expect("syncs");
            assert_eq!(v.getattr(id).await.expect("attrs").blocks, at_once);
        }
    });
}

/// A program asked for more than there was, and got nothing; the volume stayed full of it.
#[test]
fn what_was_allocated_in_vain_is_given_back() {
    with_volume(async |v| {
        let id = make(v, v.root(), "vain").await;
        v.write(id, 0, pattern(5000, 1)).await.expect("writes");
        v.fsync(id).await.expect("syncs");
        let before = v.getattr(id).await.expect("attrs").blocks;
        let all = Fallocate::Allocate { keep_size: false };
        let error = v.fallocate(id, 1 << 20, 1 << 40, all).await.expect_err("not that much");
        assert_eq!(error.kind, Kind::NoSpace);
        let after = v.getattr(id).await.expect("attrs");
        assert_eq!((after.size, after.blocks), (5000, before));
        let other = make(v, v.root(), "other").await;
        v.write(other, 0, pattern(64 << 20, 2)).await.expect("there is room");
    });
}

/// Punching costs what is there, not what the range says: this one has 2^38 file blocks.
#[test]
fn a_huge_sparse_file_is_punched_at_once() {
    with_volume(async |v| {
        let id = make(v, v.root(), "huge").await;
        v.write(id, 1 << 40, pattern(600_000, 1)).await.expect("writes");
        let size = SetAttr { size: Some(1 << 56), ..SetAttr::default() };
        v.setattr(id, size).await.expect("extends");
        v.fallocate(id, 5, (1 << 56) - 5, Fallocate::PunchHole).await.expect("punches");
        assert_eq!(v.getattr(id).await.expect("attrs").blocks, 0);
        assert_eq!(v.read(id, 1 << 40, 700_000).await.expect("reads"), vec![0; 700_000]);
    });
}
