//! Damage to files, directories, orphans and space.

use lunfs_format::{
    BlockNo, Content, EntryValue, FileKind, LockMode, LockObject, MapEntry, Node, Tree,
};

use super::sample::{BIRTH, Sample, inline, key_of, orphan_key, piece_key};
use super::{each_is_found, offline};

#[test]
fn a_lock_that_does_not_fit_its_file_is_found() {
    each_is_found(
        3,
        &[
            ("/file: its lock is damaged", |s| s.flip(s.file, 70)),
            ("/held: its lock covers a cluster, not a descriptor", |s| {
                s.edit_lock(s.held, |lock| lock.object = LockObject::Cluster);
            }),
            ("/file: its lock says that nothing is here any more", |s| {
                s.edit_lock(s.file, |lock| lock.mode = LockMode::Void);
            }),
            ("/file: its lock is in mode MultiWriter", |s| {
                s.edit_lock(s.file, |lock| lock.mode = LockMode::MultiWriter);
            }),
            ("/file: what leads to it means a file of birth 2, but one of birth 3", |s| {
                s.edit_lock(s.file, |lock| lock.generation.birth = 3);
            }),
        ],
    );
}

#[test]
fn a_body_that_does_not_fit_its_lock_is_found() {
    each_is_found(
        1,
        &[
            ("/file: its body is damaged: the checksum", |s| s.flip(s.file.plus(1), 4000)),
            ("/file: its body belongs to the lock in block 9", |s| {
                s.edit(s.file, |d| d.owner = BlockNo(9));
            }),
            ("/file: its body is of birth 1, its lock of birth 2", |s| {
                s.edit(s.file, |d| d.version.birth = 1);
            }),
            ("/file: its body has version 2.3, its lock saw 2.4: a write was lost", |s| {
                s.edit_lock(s.file, |lock| lock.stamp.version.count = 4);
            }),
            ("/file: its body has version 2.3, but nobody holds its lock, which saw 2.2", |s| {
                s.edit_lock(s.file, |lock| lock.stamp.version.count = 2);
            }),
            ("/file: its body has the checksum", |s| {
                s.edit_lock(s.file, |lock| lock.stamp.checksum ^= 1);
            }),
            // A stale holder's body may be newer than the stamp, but not older.
            ("/held: its body has version 2.3, its lock saw 2.4: a write was lost", |s| {
                s.edit_lock(s.held, |lock| lock.stamp.version.count = 4);
            }),
            ("/pipe: it was deleted but is still referred to", |s| {
                s.edit(s.pipe, |d| d.kind = FileKind::Void);
            }),
        ],
    );
}

#[test]
fn a_name_that_leads_astray_is_found() {
    each_is_found(
        3,
        &[
            ("/pipe refers to block 77: it lies outside of all clusters", |s| {
                s.edit_value("pipe", |value| value.addr = BlockNo(77));
            }),
            ("it lies over the lock or the header of cluster 2", |s| {
                let start = s.superblock.geometry().cluster_start(2);
                s.edit_value("pipe", |value| value.addr = start);
            }),
            ("it reaches over the end of cluster 0", |s| {
                let end = s.superblock.geometry().cluster_start(1);
                s.edit_value("pipe", |value| value.addr = BlockNo(end.0 - 1));
            }),
            ("/pipe leads to the orphan directory of slot 3, which must not have a name", |s| {
                s.edit_value("pipe", |value| value.addr = s.orphans);
            }),
            ("it lies in cluster 1, which is a journal", |s| {
                s.edit_value("pipe", |value| value.addr = s.orphans.plus(1));
            }),
            ("/link: its name says that it is a file, it is a symbolic link", |s| {
                s.edit_value("link", |value| value.kind = FileKind::File);
            }),
            ("/pipe: what leads to it means a file of birth 9", |s| {
                s.edit_value("pipe", |value| value.birth = 9);
            }),
            ("lead to one file but disagree about it", |s| {
                s.edit_value("file", |value| value.birth = 9);
            }),
            ("/dir is the same as /: directories make a circle", |s| {
                s.edit_value("dir", |value| value.addr = s.root);
            }),
        ],
    );
}

#[test]
fn a_directory_that_is_wrong_in_itself_is_found() {
    fn rename(s: &Sample, name: &[u8]) {
        s.edit_entries(s.root, |entries| {
            let old = s.name_key(b"pipe");
            entries.iter_mut().find(|(key, _)| *key == old).unwrap().0 = s.name_key(name);
        });
    }
    each_is_found(
        2,
        &[
            ("/: names: it says 11, there are 10", |s| s.edit(s.root, |d| d.size = 11)),
            ("/: links: it says 4, there are 3", |s| s.edit(s.root, |d| d.nlink = 4)),
            ("/dir: it says that its parent is the directory", |s| {
                s.edit(s.dir, |d| d.parent = s.sub);
            }),
            ("/dir/sub: it says that its parent is the directory", |s| {
                s.edit(s.sub, |d| d.parent_birth = 1);
            }),
            ("/: it says that its parent is the directory", |s| {
                s.edit(s.root, |d| d.parent = s.dir);
            }),
            ("the name \"pipe\" lies under the hash of another name", |s| {
                s.edit_entries(s.root, |entries| {
                    let old = s.name_key(b"pipe");
                    entries.iter_mut().find(|(key, _)| *key == old).unwrap().0[7] ^= 1;
                });
            }),
            ("the name \"..\" must not be in a directory", |s| rename(s, b"..")),
            ("the name \"a/b\" contains a slash", |s| rename(s, b"a/b")),
            ("the name \"\" is empty", |s| rename(s, b"")),
            ("the name \"a\\0\" contains a zero byte", |s| rename(s, b"a\0")),
            ("has 256 bytes, 255 are allowed", |s| rename(s, &[b'a'; 256])),
        ],
    );
    each_is_found(
        4,
        &[
            ("a key of 3 bytes is no entry of a directory", |s| {
                s.edit_entries(s.root, |entries| entries.push((vec![0xff; 3], vec![0; 17])));
            }),
            ("what the name \"new\" refers to is lost", |s| {
                let key = s.name_key(b"new");
                s.edit_entries(s.root, |entries| entries.push((key, vec![0; 17])));
            }),
        ],
    );
}

#[test]
fn names_that_are_not_as_many_as_links_are_found() {
    each_is_found(
        1,
        &[
            ("links: it says 5, there are 6", |s| s.edit(s.many, |d| d.nlink = 5)),
            ("/file: links: it says 3, there are 2", |s| s.edit(s.file, |d| d.nlink = 3)),
            ("/link: links: it says 0, there are 1", |s| s.edit(s.link, |d| d.nlink = 0)),
        ],
    );
}

#[test]
fn a_directory_with_two_names_is_found() {
    each_is_found(
        3,
        &[("a second name", |s| {
            let entry = s.entry("again", s.sub, FileKind::Directory);
            s.edit_entries(s.root, |entries| entries.push(entry));
            s.edit(s.root, |d| (d.size, d.nlink) = (11, 4));
        })],
    );
}

#[test]
fn a_tree_that_is_wrong_in_itself_is_found() {
    // The last leaf of the directory holds two names, so some files have too few then.
    each_is_found(
        4,
        &[
            ("/dir: a node of its tree is damaged: the checksum", |s| {
                s.flip(s.leaf_of(s.dir, 2), 99);
            }),
            ("/dir: a node of its tree belongs to the lock in block 5", |s| {
                s.edit_node(s.leaf_of(s.dir, 2), |block| block.owner = BlockNo(5));
            }),
            ("/dir: a node of its tree has no entries", |s| {
                s.edit_node(s.leaf_of(s.dir, 2), |block| block.node.entries.clear());
            }),
        ],
    );
    each_is_found(
        3,
        &[
            ("/huge: a node of its tree has a key above its range", |s| {
                s.edit_node(s.leaf_of(s.huge, 0), |block| block.node.entries[2].0 = key_of(9));
            }),
            ("/huge: a node of its tree has a key below its range", |s| {
                s.edit_node(s.leaf_of(s.huge, 1), |block| block.node.entries[0].0 = key_of(1));
            }),
            ("/huge: a node of its tree has an entry that is too long", |s| {
                s.edit_node(s.leaf_of(s.huge, 1), |block| block.node.entries[2].1 = vec![0; 2100]);
            }),
        ],
    );
}

#[test]
fn a_tree_of_a_wrong_shape_is_found() {
    each_is_found(
        3,
        &[
            ("/huge: a node of its tree is at level 0, not 2", |s| {
                s.edit_node(s.root_of(s.huge), |block| block.node.level = 3);
            }),
            ("/huge: the root of its tree is at level 12", |s| {
                s.edit_node(s.root_of(s.huge), |block| block.node.level = 12);
            }),
            ("/huge: its tree leads to one node twice", |s| {
                let first = s.leaf_of(s.huge, 0);
                s.edit_node(s.root_of(s.huge), |block| {
                    block.node.entries[1].1 = first.0.to_le_bytes().to_vec();
                });
            }),
            ("/huge: its tree leads to one node twice", |s| {
                let root = s.root_of(s.huge);
                s.edit_node(root, |b| b.node.entries[1].1 = root.0.to_le_bytes().to_vec());
            }),
            ("/huge: a node of its tree lies outside of all clusters", |s| {
                s.edit_node(s.root_of(s.huge), |block| {
                    block.node.entries[1].1 = u64::MAX.to_le_bytes().to_vec();
                });
            }),
            ("/big: the tree's root lies in the descriptor and is no leaf", |s| {
                let child = s.run_of(s.big, 0).0.to_le_bytes().to_vec();
                let node = Node { level: 1, entries: vec![(Vec::new(), child)] };
                s.edit(s.big, |d| d.content = Content::Tree(Tree::Inline(node)));
            }),
        ],
    );
}

#[test]
fn a_map_that_is_wrong_is_found() {
    fn put(s: &Sample, block: u64, grains: u8) {
        let entry = MapEntry { block: Some(BlockNo(block)), zero: false, grains, mask: 0 };
        s.edit_entries(s.big, |map| map.push((key_of(1000), entry.encode().to_vec())));
        s.edit(s.big, |d| (d.size, d.blocks) = (1 << 40, d.blocks + u64::from(grains)));
    }
    each_is_found(
        1,
        &[
            ("/big has contents at block 3: it lies outside of all clusters", |s| put(s, 3, 1)),
            ("it reaches over the end of cluster 0", |s| {
                put(s, s.superblock.geometry().cluster_start(1).0 - 4, 8);
            }),
            ("it lies in cluster 1, which is a journal", |s| put(s, s.journal.0 + 100, 8)),
            ("a key of 4 bytes is no file block of a map", |s| {
                s.edit_entries(s.big, |map| map.push((vec![9; 4], vec![0; 16])));
            }),
            ("the map entry of file block 7 is damaged", |s| {
                s.edit_entries(s.big, |map| map.push((key_of(7), vec![0; 15])));
            }),
            ("/big: blocks: it says 77, there are 76", |s| s.edit(s.big, |d| d.blocks += 1)),
            ("/huge: blocks: it says 8, there are 9", |s| s.edit(s.huge, |d| d.blocks -= 1)),
            ("/dir: blocks: it says 5, there are 4", |s| s.edit(s.dir, |d| d.blocks += 1)),
        ],
    );
}

#[test]
fn content_that_does_not_go_with_its_file_is_found() {
    each_is_found(
        1,
        &[
            ("it has 5 bytes of content but a size of 4", |s| s.edit(s.file, |d| d.size = 4)),
            ("/link: bytes of its target: it says 5, there are 4", |s| {
                s.edit(s.link, |d| d.size = 5);
            }),
            ("/link: its target is lost", |s| s.edit(s.link, |d| d.content = Content::Empty)),
            ("/pipe: it is a fifo but has content", |s| {
                s.edit(s.pipe, |d| d.content = inline(Vec::new()));
            }),
        ],
    );
}

#[test]
fn an_extended_attribute_that_is_wrong_is_found() {
    each_is_found(
        1,
        &[
            ("/attrs: the extended attribute \"user.a\" lacks a piece before piece 1", |s| {
                s.edit_entries(s.attrs, |xattrs| drop(xattrs.remove(0)));
            }),
            ("lacks a piece before piece 3", |s| {
                s.edit_entries(s.attrs, |xattrs| xattrs[1].0 = piece_key("user.a", 3));
            }),
            (
                "piece 0 of the extended attribute \"user.a\" has 1000 bytes but is not the last",
                |s| {
                    s.edit_entries(s.attrs, |xattrs| xattrs[0].1 = vec![0; 1000]);
                },
            ),
            ("piece 1 of the extended attribute \"user.a\" has 1025 bytes", |s| {
                s.edit_entries(s.attrs, |xattrs| xattrs[1].1 = vec![0; 1025]);
            }),
            ("the extended attribute \"\" has no valid name", |s| {
                s.edit_entries(s.attrs, |xattrs| xattrs.push((piece_key("", 0), vec![])));
            }),
            ("a key of 1 bytes is no extended attribute", |s| {
                s.edit_entries(s.attrs, |xattrs| xattrs.push((vec![b'x'], vec![])));
            }),
            (
                "piece 2 of the extended attribute \"user.c\" has 1000 bytes but is not the last",
                |s| {
                    s.edit_node(s.leaf_of(s.attrs_tree, 1), |b| {
                        b.node.entries[0].1 = vec![0; 1000];
                    });
                },
            ),
        ],
    );
}

#[test]
fn an_orphan_that_is_wrong_is_found() {
    each_is_found(
        2,
        &[
            ("it is an orphan but counts 1 links", |s| s.edit(s.deleted, |d| d.nlink = 1)),
            ("its lock is void but its body is not", |s| {
                s.edit_lock(s.deleted_dir, |lock| lock.mode = LockMode::Void);
            }),
            ("it is a deleted directory with 1 names", |s| {
                let entry = s.entry("pipe", s.pipe, FileKind::Fifo);
                s.edit(s.deleted_dir, |d| d.content = inline(vec![entry]));
            }),
            ("it is void but still has content", |s| {
                s.edit(s.half_voided, |d| d.content = inline(Vec::new()));
            }),
            ("its lock is damaged", |s| s.flip(s.voided, 70)),
            ("means a file of birth 2, but one of birth 8", |s| {
                s.edit_lock(s.voided, |lock| lock.generation.birth = 8);
            }),
            ("an orphan has a value of 1 bytes", |s| {
                s.edit_entries(s.orphans, |entries| entries[0].1.push(0));
            }),
        ],
    );
    each_is_found(
        4,
        &[
            ("a key of 17 bytes is no orphan", |s| {
                s.edit_entries(s.orphans, |entries| entries[4].0[0] = 2);
            }),
            ("it lies outside of all clusters", |s| {
                s.edit_entries(s.orphans, |entries| entries[4].0 = orphan_key(1, 3, 5));
            }),
            ("it reaches over the end of cluster 0", |s| {
                s.edit_entries(s.orphans, |e| e[4].0 = orphan_key(1, s.freed.0, u64::MAX));
            }),
            ("is empty", |s| {
                s.edit_entries(s.orphans, |e| e[4].0 = orphan_key(1, s.freed.0, 0));
            }),
        ],
    );
}

#[test]
fn an_orphan_that_is_listed_twice_or_has_a_name_is_found() {
    each_is_found(
        4,
        &[
            ("is listed as an orphan twice", |s| {
                s.edit_entries(s.orphans, |entries| {
                    entries.push((orphan_key(0, s.deleted.0, BIRTH + 1), Vec::new()));
                });
                s.edit(s.orphans, |d| d.size += 1);
            }),
            ("is listed as an orphan: it will be freed under its name", |s| {
                s.edit_value("pipe", |value: &mut EntryValue| {
                    (value.addr, value.kind) = (s.deleted, FileKind::File);
                });
            }),
        ],
    );
}

/// What a crash while a file grew could leave before the size went along with the map.
#[test]
fn data_beyond_the_end_is_found() {
    each_is_found(
        1,
        &[("has data beyond the end of the file", |s| {
            s.edit(s.big, |d| d.size = 1);
        })],
    );
}

#[test]
fn a_block_that_is_used_twice_is_found() {
    fn share(s: &Sample, block: BlockNo) {
        let entry = MapEntry { block: Some(block), zero: false, grains: 2, mask: 0 };
        s.edit_entries(s.big, |map| map.push((key_of(1000), entry.encode().to_vec())));
        s.edit(s.big, |d| (d.size, d.blocks) = (1 << 40, d.blocks + 2));
    }
    each_is_found(
        2,
        &[
            ("as a freed run of the orphan directory of slot 3", |s| share(s, s.freed)),
            ("are used twice, as contents of /big and as contents of /big", |s| {
                share(s, s.run_of(s.big, 0));
            }),
            ("as the descriptor of /pipe and as contents of /big", |s| share(s, s.pipe)),
            ("as the descriptor of the orphan", |s| share(s, s.voided)),
            ("as a tree node of /huge", |s| share(s, s.leaf_of(s.huge, 0))),
            ("as the descriptor of /", |s| share(s, s.root)),
        ],
    );
}

#[test]
fn a_bitmap_that_says_otherwise_is_found() {
    fn set(s: &Sample, at: BlockNo, len: u32, used: bool) {
        let offset = u32::try_from(at.0 - s.superblock.clusters_start.0).unwrap();
        s.edit_cluster(0, |cluster| cluster.bitmap.set_run(offset, len, used));
    }
    each_is_found(
        1,
        &[
            ("contents of /big, is free in the bitmap of cluster 0", |s| {
                set(s, s.run_of(s.big, 2).plus(3), 2, false);
            }),
            ("the descriptor of /dir/sub, is free in the bitmap", |s| set(s, s.sub, 1, false)),
            ("leaked: 3 blocks are in use but nothing refers to them: blocks 2900 to 2902", |s| {
                set(s, BlockNo(2900), 3, true);
            }),
        ],
    );
    let sample = Sample::new();
    for index in 0..12 {
        sample.edit_cluster(2, |cluster| cluster.bitmap.set_run(10 + 2 * index, 1, true));
    }
    let report = offline(&sample.disk);
    let errors: Vec<String> = report.errors().map(ToString::to_string).collect();
    assert_eq!(errors.len(), 1);
    assert!(errors[0].contains("leaked: 12 blocks") && errors[0].contains("and 4 more runs"));
}
