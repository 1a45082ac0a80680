//! The tree against `BTreeMap`, a walker of its own, failing stores and garbage.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;

use futures_util::FutureExt;

use super::*;
use crate::error::{Error, Kind};

const INLINE_MAX: usize = 3800;

/// xorshift64*.
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11
    }

    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next()).unwrap() % end
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.next().to_le_bytes()[0]).collect()
    }
}

/// A store in memory that fails on command and watches its caller.
#[derive(Clone, Default)]
struct Memory {
    nodes: BTreeMap<u64, Rc<Node>>,
    allocated: BTreeSet<u64>,
    /// Blocks put since the last `begin`.
    touched: BTreeSet<u64>,
    allocations_left: Option<usize>,
    reads_left: Cell<Option<usize>>,
    reads: Cell<usize>,
    /// With garbage inside, the tree may ask for nonsense.
    is_garbage: bool,
}

impl NodeStore for Memory {
    async fn node(&self, at: BlockNo) -> Result<Rc<Node>> {
        self.reads.set(self.reads.get() + 1);
        spend(self.reads_left.take(), |left| self.reads_left.set(left))?;
        self.nodes.get(&at.0).cloned().ok_or_else(|| Error::new(Kind::Io, "no node there"))
    }
}

impl NodeStoreMut for Memory {
    fn put(&mut self, at: BlockNo, node: Node) {
        assert!(node.encoded_len() <= NODE_CAPACITY, "a node is too long");
        assert!(self.is_garbage || self.allocated.contains(&at.0), "put into a free block");
        self.touched.insert(at.0);
        self.nodes.insert(at.0, Rc::new(node));
    }

    async fn allocate(&mut self) -> Result<BlockNo> {
        spend(self.allocations_left, |left| self.allocations_left = left)?;
        // The lowest free block, so that blocks are used again soon.
        let at = (1..).find(|at| !self.allocated.contains(at)).unwrap();
        self.allocated.insert(at);
        Ok(BlockNo(at))
    }

    fn free(&mut self, at: BlockNo) {
        assert!(self.allocated.remove(&at.0) || self.is_garbage, "freed twice");
        self.nodes.remove(&at.0);
    }
}

fn spend(left: Option<usize>, set: impl FnOnce(Option<usize>)) -> Result<()> {
    match left {
        Some(0) => {
            set(Some(0));
            Err(Error::new(Kind::NoSpace, "as the test wants it"))
        }
        Some(n) => {
            set(Some(n - 1));
            Ok(())
        }
        None => Ok(()),
    }
}

fn now<T>(future: impl Future<Output = T>) -> T {
    future.now_or_never().expect("nothing to wait for")
}

/// A tree with its store, and what it must hold.
struct World {
    store: Memory,
    tree: Tree,
    model: BTreeMap<Vec<u8>, Vec<u8>>,
    inline_max: usize,
}

impl World {
    fn new(inline_max: usize) -> World {
        let store = Memory::default();
        World { store, tree: Tree::Empty, model: BTreeMap::new(), inline_max }
    }

    fn insert(&mut self, key: &[u8], value: &[u8]) {
        self.store.touched.clear();
        let old = now(insert(&mut self.store, &mut self.tree, self.inline_max, key, value));
        assert_eq!(old, Ok(self.model.insert(key.to_vec(), value.to_vec())));
        assert!(self.store.touched.len() <= NODES_TOUCHED_MAX);
    }

    fn remove(&mut self, key: &[u8]) {
        self.store.touched.clear();
        let old = now(remove(&mut self.store, &mut self.tree, self.inline_max, key));
        assert_eq!(old, Ok(self.model.remove(key)));
        assert!(self.store.touched.len() <= NODES_TOUCHED_MAX);
    }

    /// Checks everything: structure, content, and that no block is lost.
    fn check(&self) -> Shape {
        let shape = shape(&self.store, &self.tree);
        let model: Vec<Entry> = self.model.clone().into_iter().collect();
        assert_eq!(shape.entries, model);
        assert_eq!(shape.blocks, self.store.allocated, "blocks leaked");
        let listed = now(blocks(&self.store, &self.tree)).unwrap();
        assert_eq!(listed.len(), shape.blocks.len());
        assert_eq!(listed.iter().map(|at| at.0).collect::<BTreeSet<_>>(), shape.blocks);
        if let Tree::Inline(leaf) = &self.tree {
            assert!(leaf.encoded_len() <= self.inline_max);
        }
        assert_eq!(matches!(self.tree, Tree::Empty), self.model.is_empty());
        shape
    }

    /// Compares what readers see around a key.
    fn check_reads(&self, key: &[u8], max: usize) {
        let (store, tree, model) = (&self.store, &self.tree, &self.model);
        let owned = |(k, v): (&Vec<u8>, &Vec<u8>)| (k.clone(), v.clone());
        assert_eq!(now(get(store, tree, key)), Ok(model.get(key).cloned()));
        for from in [Bound::Included(key), Bound::Excluded(key), Bound::Unbounded] {
            let range = (from, Bound::Unbounded);
            let expected: Vec<Entry> = model.range::<[u8], _>(range).take(max).map(owned).collect();
            assert_eq!(now(scan(store, tree, from, max)), Ok(expected));
        }
        let up_to = (Bound::Unbounded, Bound::Included(key));
        let expected = model.range::<[u8], _>(up_to).next_back().map(owned);
        assert_eq!(now(last(store, tree, Some(key))), Ok(expected));
        assert_eq!(now(last(store, tree, None)), Ok(model.last_key_value().map(owned)));
    }
}

/// What the walker of the tests finds.
#[derive(Default)]
struct Shape {
    entries: Vec<Entry>,
    blocks: BTreeSet<u64>,
    depth: usize,
    leaf_bytes: usize,
    leaves: usize,
    inner_bytes: usize,
    inners: usize,
}

fn shape(store: &Memory, tree: &Tree) -> Shape {
    let mut shape = Shape::default();
    match tree {
        Tree::Empty => {}
        Tree::Inline(leaf) => {
            assert_eq!(leaf.level, 0);
            assert!(!leaf.entries.is_empty());
            shape.entries.clone_from(&leaf.entries);
        }
        Tree::Root(at) => {
            let root = &store.nodes[&at.0];
            shape.depth = usize::from(root.level) + 1;
            assert!(root.level == 0 || root.entries.len() >= 2, "a root with one child");
            shape.walk(store, at.0, root.level, b"", None);
        }
    }
    assert!(shape.entries.is_sorted_by(|a, b| a.0 < b.0));
    shape
}

impl Shape {
    fn walk(&mut self, store: &Memory, at: u64, level: u16, lower: &[u8], upper: Option<&[u8]>) {
        assert!(self.blocks.insert(at), "two ways to one block");
        let node = &store.nodes[&at];
        assert_eq!(node.level, level);
        assert!(!node.entries.is_empty());
        assert!(node.encoded_len() <= NODE_CAPACITY);
        if level == 0 {
            self.leaves += 1;
            self.leaf_bytes += node.encoded_len();
            for (key, _) in &node.entries {
                assert!(
                    key.as_slice() >= lower && upper.is_none_or(|upper| key.as_slice() < upper)
                );
            }
            self.entries.extend(node.entries.iter().cloned());
            return;
        }
        self.inners += 1;
        self.inner_bytes += node.encoded_len();
        assert!(node.entries[0].0.is_empty());
        for (index, (key, value)) in node.entries.iter().enumerate() {
            let lower = if index == 0 { lower } else { key };
            let upper = node.entries.get(index + 1).map(|(key, _)| key.as_slice()).or(upper);
            assert!(upper.is_none_or(|upper| lower < upper), "a child without a range");
            let child = u64::from_le_bytes(value.as_slice().try_into().unwrap());
            self.walk(store, child, level - 1, lower, upper);
        }
    }
}

/// How a run makes keys.
#[derive(Clone, Copy, Debug)]
enum Keys {
    Rising,
    Falling,
    Numbers,
    Names,
    Long,
    Tiny,
}

/// How a run makes values.
#[derive(Clone, Copy, Debug)]
enum Values {
    Small,
    Big,
    Mixed,
}

const KEYS: [Keys; 6] =
    [Keys::Rising, Keys::Falling, Keys::Numbers, Keys::Names, Keys::Long, Keys::Tiny];
const VALUES: [Values; 3] = [Values::Small, Values::Big, Values::Mixed];

fn key(kind: Keys, step: usize, random: &mut Random) -> Vec<u8> {
    let step = step as u64;
    match kind {
        Keys::Rising => step.to_be_bytes().to_vec(),
        Keys::Falling => (u64::MAX / 2 - step).to_be_bytes().to_vec(),
        Keys::Numbers => (random.next() % 1000).to_be_bytes().to_vec(),
        Keys::Names => name(random.next() % 2000),
        Keys::Long => {
            // Differ only at the end, so that separators are as long as keys.
            let mut key = vec![7; 590 + random.below(7)];
            key.extend((random.next() % 400).to_be_bytes()[5..].iter());
            key
        }
        Keys::Tiny => {
            let len = random.below(3);
            random.bytes(len)
        }
    }
}

fn value(kind: Values, random: &mut Random) -> Vec<u8> {
    let len = match kind {
        Values::Small => random.below(20),
        Values::Big => 900 + random.below(201),
        Values::Mixed if random.below(4) == 0 => random.below(1101),
        Values::Mixed => random.below(40),
    };
    random.bytes(len)
}

/// A key like a directory's: a hash, then the name.
fn name(number: u64) -> Vec<u8> {
    let hash = number.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let hash = (hash ^ (hash >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 1;
    let mut key = hash.to_be_bytes().to_vec();
    key.extend(format!("file-{number:08}.data").into_bytes());
    key
}

/// One run of changes: grows for a while, shrinks for a while, empties at the end.
fn run(keys: Keys, values: Values, seed: u64, steps: usize) {
    let mut random = Random::new(seed);
    let inline_max = [0, 200, INLINE_MAX][random.below(3)];
    let mut world = World::new(inline_max);
    let mut is_growing = true;
    for step in 0..steps {
        if random.below(steps / 4) == 0 {
            is_growing = !is_growing;
        }
        let mut key = key(keys, step, &mut random);
        if random.below(10) < if is_growing { 8 } else { 2 } {
            world.insert(&key, &value(values, &mut random));
        } else {
            // Mostly a key that exists.
            if random.below(8) > 0 {
                let next = world.model.range(key.clone()..).next();
                let present = next.or_else(|| world.model.last_key_value());
                key = present.map_or(key, |(key, _)| key.clone());
            }
            world.remove(&key);
        }
        if step % 64 == 0 {
            world.check();
        }
        if step % 8 == 0 {
            world.check_reads(&key, random.below(200));
            let end = random.below(key.len() + 1);
            world.check_reads(&key[..end], random.below(20));
        }
    }
    world.check();
    while !world.model.is_empty() {
        let index = random.below(world.model.len());
        let key = world.model.keys().nth(index).unwrap().clone();
        world.remove(&key);
        if world.model.len().is_multiple_of(32) {
            world.check();
        }
    }
    world.check();
    assert!(world.store.nodes.is_empty());
}

#[test]
fn it_is_a_sorted_map_whatever_comes() {
    for seed in 0..3 {
        for keys in KEYS {
            for values in VALUES {
                run(keys, values, seed, 1200);
            }
        }
    }
}

#[test]
fn first_inline_then_a_block_then_many_and_all_the_way_back() {
    let mut world = World::new(INLINE_MAX);
    let mut seen = Vec::new();
    let mut note = |tree: &Tree, depth: usize| {
        let form = match tree {
            Tree::Empty => "empty".to_string(),
            Tree::Inline(_) => "inline".to_string(),
            Tree::Root(_) => format!("depth {depth}"),
        };
        if seen.last() != Some(&form) {
            seen.push(form);
        }
    };
    note(&world.tree, 0);
    for number in 0..300 {
        world.insert(&name(number), &[1; 17]);
        note(&world.tree, world.check().depth);
    }
    for number in 0..300 {
        world.remove(&name(number));
        note(&world.tree, world.check().depth);
    }
    let forms = ["empty", "inline", "depth 1", "depth 2", "depth 1", "inline", "empty"];
    assert_eq!(seen, forms);
}

/// The first block of a tree costs a write per change; at the border it must not come and go.
#[test]
fn a_root_does_not_flip_between_inline_and_block() {
    let mut world = World::new(1000);
    let mut number = 0;
    while !matches!(world.tree, Tree::Root(_)) {
        world.insert(&name(number), b"value");
        number += 1;
    }
    for _ in 0..10 {
        number -= 1;
        world.remove(&name(number));
        assert!(matches!(world.tree, Tree::Root(_)));
    }
    world.check();
}

#[test]
fn an_inline_root_is_never_longer_than_a_node() {
    let mut world = World::new(usize::MAX);
    for number in 0..200 {
        world.insert(&name(number), &[1; 17]);
    }
    assert_eq!(world.check().depth, 2);
}

/// The descriptor may need the room before the tree heard of it.
#[test]
fn an_inline_root_above_a_smaller_limit_moves_out_at_the_next_insertion() {
    let mut world = World::new(INLINE_MAX);
    for number in 0..75 {
        world.insert(&name(number), &[1; 17]);
    }
    assert!(matches!(world.tree, Tree::Inline(_)));
    world.inline_max = 0;
    world.insert(&name(75), &[1; 1100]);
    assert_eq!(world.check().depth, 2);
}

#[test]
fn what_is_inserted_in_order_fills_its_nodes() {
    let mut world = World::new(INLINE_MAX);
    for number in 0..100_000_u64 {
        world.insert(&number.to_be_bytes(), &[1; 16]);
    }
    let shape = world.check();
    assert_eq!(shape.depth, 3);
    assert!(shape.leaf_bytes >= shape.leaves * NODE_CAPACITY * 98 / 100);
    // All but the root and the last.
    assert!(shape.inner_bytes >= (shape.inners - 2) * NODE_CAPACITY * 98 / 100);
}

#[test]
fn a_large_directory_is_flat() {
    let mut world = World::new(INLINE_MAX);
    for number in 0..200_000 {
        world.insert(&name(number), &[1; 17]);
    }
    let shape = world.check();
    assert!(shape.depth <= 4, "{} levels", shape.depth);
    assert!(shape.leaf_bytes >= shape.leaves * NODE_CAPACITY * 60 / 100);
}

#[test]
fn an_emptied_directory_has_no_blocks() {
    let mut world = World::new(INLINE_MAX);
    for number in 0..40_000 {
        world.insert(&name(number), &[1; 17]);
    }
    assert_eq!(world.check().depth, 3);
    for number in 0..40_000 {
        world.remove(&name(number));
        if number % 2000 == 0 {
            world.check();
        }
    }
    world.check();
    assert!(world.store.nodes.is_empty());
}

/// The file that shrinks from its end, as truncation does it.
#[test]
fn removing_from_the_end_frees_block_by_block() {
    let mut world = World::new(INLINE_MAX);
    for number in 0..20_000_u64 {
        world.insert(&number.to_be_bytes(), &[1; 16]);
    }
    while let Some((key, _)) = now(last(&world.store, &world.tree, None)).unwrap() {
        world.remove(&key);
        if world.model.len().is_multiple_of(1000) {
            let shape = world.check();
            assert!(shape.leaves <= world.model.len() / 143 + 2);
        }
    }
    world.check();
}

#[test]
fn a_small_first_leaf_joins_the_next() {
    let mut world = World::new(0);
    for number in (0..144_u64).rev() {
        world.insert(&number.to_be_bytes(), &[1; 16]);
    }
    assert_eq!(world.check().leaves, 2);
    for number in 0..50_u64 {
        world.remove(&number.to_be_bytes());
    }
    let shape = world.check();
    assert_eq!((shape.leaves, shape.depth), (1, 1));
}

#[test]
fn a_leaf_that_becomes_the_root_is_not_written_again() {
    let mut world = World::new(0);
    for number in 0..144_u64 {
        world.insert(&number.to_be_bytes(), &[1; 16]);
    }
    assert_eq!(world.check().depth, 2);
    world.remove(&143_u64.to_be_bytes());
    assert_eq!(world.check().depth, 1);
    assert!(world.store.touched.is_empty());
}

#[test]
fn separators_are_as_short_as_can_be() {
    let mut world = World::new(0);
    for number in 0..3000 {
        world.insert(&name(number), &[1; 17]);
    }
    let Tree::Root(root) = world.tree else { panic!("a tree in blocks") };
    let root = &world.store.nodes[&root.0];
    assert_eq!(root.level, 1);
    assert!(root.entries.iter().all(|(key, _)| key.len() <= 3));
}

/// The longest entries allowed, of which two and a bit fit, in every order.
#[test]
fn the_longest_entries_fit() {
    for seed in 0..20 {
        let mut random = Random::new(seed);
        let mut world = World::new(INLINE_MAX);
        for _ in 0..60 {
            let mut key = vec![9; 599];
            key.push(random.next().to_le_bytes()[0]);
            let len = if random.below(2) == 0 { ENTRY_MAX - 604 } else { random.below(30) };
            world.insert(&key, &vec![1; len]);
            world.check();
        }
    }
}

#[test]
#[should_panic(expected = "an entry must fit twice in a node")]
fn a_longer_entry_is_refused() {
    World::new(0).insert(&[1; 600], &[1; ENTRY_MAX - 603]);
}

/// Its value may be short, but as a separator it would have an address beside it.
#[test]
#[should_panic(expected = "an entry must fit twice in a node")]
fn a_key_too_long_to_separate_is_refused() {
    World::new(0).insert(&[1; ENTRY_MAX - 11], b"");
}

/// Lets every allocation and every read fail once: the change then did not happen at all.
#[test]
fn a_change_that_fails_changes_nothing() {
    for seed in 0..12 {
        let mut random = Random::new(seed);
        let keys = [Keys::Long, Keys::Names, Keys::Falling][random.below(3)];
        let mut world = World::new([0, INLINE_MAX][random.below(2)]);
        for step in 0..250 {
            let key = key(keys, step, &mut random);
            let value = value(Values::Mixed, &mut random);
            let is_removal = random.below(10) < if step < 150 { 1 } else { 9 };
            let key = match world.model.range(key.clone()..).next() {
                Some((present, _)) if is_removal => present.clone(),
                _ => key,
            };
            for (allocations, reads) in
                (0..4).map(|n| (Some(n), None)).chain((0..5).map(|n| (None, Some(n))))
            {
                let mut store = world.store.clone();
                let mut tree = world.tree.clone();
                store.touched.clear();
                store.allocations_left = allocations;
                store.reads_left.set(reads);
                let changed = if is_removal {
                    now(remove(&mut store, &mut tree, world.inline_max, &key))
                } else {
                    now(insert(&mut store, &mut tree, world.inline_max, &key, &value))
                };
                if changed.is_err() {
                    assert!(tree == world.tree);
                    assert!(store.nodes == world.store.nodes);
                    assert!(store.allocated == world.store.allocated);
                } else if is_removal {
                    // Nothing is put only to be freed.
                    assert!(store.touched.is_subset(&store.allocated));
                }
            }
            if is_removal {
                world.remove(&key);
            } else {
                world.insert(&key, &value);
            }
        }
        world.check();
    }
}

/// A path of full nodes to the last leaf. The other children do not exist.
fn full_path(levels: u16) -> World {
    let mut world = World::new(0);
    for level in 0..levels {
        // The keys of lower levels lie behind all keys above them.
        let first = u64::from(DEPTH_MAX - level) * 1000;
        let mut entries: Vec<Entry> = (first..first + 6)
            .map(|n| (long_key(n), if level == 0 { vec![1; 60] } else { address(level) }))
            .collect();
        if level > 0 {
            entries.insert(0, (Vec::new(), address(level)));
        }
        let at = u64::from(level) + 1;
        world.store.nodes.insert(at, Rc::new(Node { level, entries }));
        world.store.allocated.insert(at);
    }
    world.tree = Tree::Root(BlockNo(u64::from(levels)));
    world
}

fn address(number: u16) -> Vec<u8> {
    u64::from(number).to_le_bytes().to_vec()
}

/// A key of 598 bytes; neighbours differ only at the end, so that separators are long too.
fn long_key(number: u64) -> Vec<u8> {
    [vec![5; 590], number.to_be_bytes().to_vec()].concat()
}

#[test]
fn the_most_blocks_are_put_when_every_level_splits() {
    let new_key = long_key(u64::MAX);

    let mut world = full_path(DEPTH_MAX - 1);
    let inserted = now(insert(&mut world.store, &mut world.tree, 0, &new_key, &[1; 60]));
    assert_eq!(inserted, Ok(None));
    assert_eq!(world.store.touched.len(), NODES_TOUCHED_MAX);
    assert_eq!(now(get(&world.store, &world.tree, &new_key)), Ok(Some(vec![1; 60])));

    // One level more cannot be.
    let mut world = full_path(DEPTH_MAX);
    let (nodes, tree) = (world.store.nodes.clone(), world.tree.clone());
    let refused = now(insert(&mut world.store, &mut world.tree, 0, &new_key, &[1; 60]));
    assert_eq!(refused.map_err(|e| e.kind), Err(Kind::NoSpace));
    assert!(world.store.nodes == nodes && world.tree == tree);
    assert_eq!(world.store.allocated.len(), usize::from(DEPTH_MAX));
}

/// A tree of four levels, for damaging.
fn four_levels() -> World {
    let mut world = World::new(0);
    for number in 0..300_u64 {
        world.insert(&long_key(number), &[1; 200]);
    }
    assert_eq!(world.check().depth, 4);
    world
}

/// Damages one node and expects the sentence that says what and where.
#[track_caller]
fn expect_fault(why: &str, level: u16, damage: impl Fn(&mut Node)) {
    let mut world = four_levels();
    let (_, leaf) = now(async {
        let Tree::Root(root) = world.tree else { panic!("a tree in blocks") };
        walk::descend(&world.store, root, Some(&long_key(150))).await
    })
    .unwrap();
    let mut at = leaf.at.0;
    for above in 1..=level {
        let is_parent = |node: &Node| {
            node.level == above
                && node.entries.iter().any(|(_, value)| value.as_slice() == at.to_le_bytes())
        };
        at = *world.store.nodes.iter().find(|(_, node)| is_parent(node)).unwrap().0;
    }
    damage(Rc::make_mut(world.store.nodes.get_mut(&at).unwrap()));

    let (store, tree, key) = (&mut world.store, &mut world.tree, long_key(150));
    let errors = [
        now(get(store, tree, &key)).unwrap_err(),
        now(scan(store, tree, Bound::Unbounded, usize::MAX)).unwrap_err(),
        now(last(store, tree, Some(&key))).unwrap_err(),
        now(blocks(store, tree)).unwrap_err(),
        now(insert(store, tree, 0, &key, b"")).unwrap_err(),
        now(remove(store, tree, 0, &key)).unwrap_err(),
    ];
    for error in errors {
        assert_eq!(error.kind, Kind::Corrupt);
        assert!(error.what.contains(why), "{}", error.what);
        assert!(error.what.contains("block "), "{}", error.what);
    }
}

#[test]
fn damage_is_named() {
    expect_fault("it is empty", 0, |node| node.entries.clear());
    expect_fault("it is empty", 1, |node| node.entries.clear());
    expect_fault("it is empty", 3, |node| node.entries.clear());
    expect_fault("level 1 below level 1", 0, |node| node.level = 1);
    expect_fault("level 0 below level 2", 1, |node| node.level = 0);
    expect_fault("level 65535 below level 2", 1, |node| node.level = u16::MAX);
    expect_fault("a root at level 12", 3, |node| node.level = 12);
    expect_fault("out of order", 0, |node| node.entries.reverse());
    expect_fault("out of order", 2, |node| node.entries[1].0 = vec![6]);
    expect_fault("first key is not empty", 1, |node| node.entries[0].0 = vec![5]);
    expect_fault("no address", 1, |node| node.entries[1].1 = vec![1; 7]);
    expect_fault("above its range", 0, |node| node.entries.last_mut().unwrap().0[0] = 6);
    expect_fault("above its range", 1, |node| node.entries.last_mut().unwrap().0[0] = 6);
    expect_fault("below its range", 0, |node| node.entries[0].0 = vec![5]);
    expect_fault("below its range", 1, |node| node.entries[1].0 = vec![5]);
    expect_fault("an entry is too long", 0, |node| {
        node.entries = vec![(vec![5; 600], vec![1; 1500])];
    });
    expect_fault("it is too long", 0, |node| node.entries[0].1 = vec![1; 4000]);
}

/// Reads everything in a tree of three levels, whose nodes have these keys behind the first.
fn read_all(middle: [&[&str]; 2], leaves: [&[&str]; 4]) -> Result<usize> {
    let child = |key: &str, at: u64| (key.as_bytes().to_vec(), at.to_le_bytes().to_vec());
    let mut store = Memory::default();
    for (at, keys) in (0..).zip(leaves) {
        let entries = keys.iter().map(|key| (key.as_bytes().to_vec(), Vec::new())).collect();
        store.nodes.insert(at, Rc::new(Node { level: 0, entries }));
    }
    for (at, keys) in (0..).zip(middle) {
        let mut entries = vec![child("", at * 2)];
        entries.extend(keys.iter().map(|key| child(key, at * 2 + 1)));
        store.nodes.insert(10 + at, Rc::new(Node { level: 1, entries }));
    }
    let entries = vec![child("", 10), child("m", 11)];
    store.nodes.insert(20, Rc::new(Node { level: 2, entries }));
    let tree = Tree::Root(BlockNo(20));
    let listed = now(blocks(&store, &tree)).map(|listed| listed.len());
    let found = now(scan(&store, &tree, Bound::Unbounded, usize::MAX)).map(|found| found.len());
    assert_eq!(listed.is_ok(), found.is_ok());
    found
}

#[test]
fn keys_stay_in_the_range_that_all_levels_above_leave() {
    let fine = read_all([&["d"], &["r"]], [&["a", "c"], &["d", "l"], &["m", "q"], &["r", "z"]]);
    assert_eq!(fine, Ok(8));
    let leaves = [["a"].as_slice(), &["e"], &["n"], &["s"]];
    assert_eq!(read_all([&["d"], &["r"]], leaves), Ok(4));
    let faults = [
        read_all([&["d"], &["r"]], [&["a"], &["m"], &["n"], &["s"]]),
        read_all([&["d"], &["r"]], [&["a"], &["e"], &["l"], &["s"]]),
        read_all([&["d"], &["r"]], [&["d"], &["e"], &["n"], &["s"]]),
        read_all([&["d"], &["r"]], [&["a"], &["c"], &["n"], &["s"]]),
        read_all([&["d"], &["r"]], [&["a", "a"], &["e"], &["n"], &["s"]]),
        read_all([&["m"], &["r"]], leaves),
        read_all([&["d"], &["m"]], leaves),
    ];
    for (index, fault) in faults.into_iter().enumerate() {
        assert_eq!(fault.map_err(|e| e.kind), Err(Kind::Corrupt), "fault {index}");
    }
}

#[test]
fn damage_in_a_descriptor_is_named() {
    let entry = |key: &[u8]| (key.to_vec(), vec![1; 8]);
    for root in [
        Node { level: 1, entries: vec![entry(b"")] },
        Node { level: 0, entries: vec![entry(b"b"), entry(b"a")] },
    ] {
        let mut store = Memory::default();
        let mut tree = Tree::Inline(root.clone());
        let errors = [
            now(get(&store, &tree, b"a")).unwrap_err(),
            now(scan(&store, &tree, Bound::Unbounded, 9)).unwrap_err(),
            now(last(&store, &tree, None)).unwrap_err(),
            now(insert(&mut store, &mut tree, 0, b"a", b"")).unwrap_err(),
            now(remove(&mut store, &mut tree, 0, b"a")).unwrap_err(),
        ];
        assert!(errors.iter().all(|error| error.kind == Kind::Corrupt));
        assert!(tree == Tree::Inline(root));
    }
}

/// The only child of what a root became may be its own child.
#[test]
fn a_circle_below_a_collapsing_root_ends() {
    let child = |key: &[u8], at: u64| (key.to_vec(), at.to_le_bytes().to_vec());
    let mut store = Memory { is_garbage: true, ..Memory::default() };
    let leaf = Node { level: 0, entries: vec![(b"a".to_vec(), Vec::new())] };
    let root = Node { level: 2, entries: vec![child(b"", 1), child(b"b", 4)] };
    store.nodes.insert(0, Rc::new(leaf));
    store.nodes.insert(1, Rc::new(Node { level: 1, entries: vec![child(b"", 0)] }));
    store.nodes.insert(4, Rc::new(Node { level: 1, entries: vec![child(b"", 4)] }));
    store.nodes.insert(5, Rc::new(root));
    let mut tree = Tree::Root(BlockNo(5));
    let error = now(remove(&mut store, &mut tree, 0, b"a")).unwrap_err();
    assert_eq!(error.kind, Kind::Corrupt);
    assert!(tree == Tree::Root(BlockNo(5)));
}

/// A thousand children that are all one node, twelve levels deep: each path is honest, but there
/// are more of them than atoms.
#[test]
fn a_walk_of_a_tree_that_shares_nodes_ends() {
    let mut store = Memory { is_garbage: true, ..Memory::default() };
    let leaf = Node { level: 0, entries: vec![(vec![255], Vec::new())] };
    store.nodes.insert(0, Rc::new(leaf));
    for level in 1..DEPTH_MAX {
        let child = (u64::from(level) - 1).to_le_bytes().to_vec();
        let keys = (0..200_u8).map(|n| if n == 0 { Vec::new() } else { vec![n] });
        let entries = keys.map(|key| (key, child.clone())).collect();
        store.nodes.insert(level.into(), Rc::new(Node { level, entries }));
    }
    let tree = Tree::Root(BlockNo(u64::from(DEPTH_MAX) - 1));
    assert_eq!(now(blocks(&store, &tree)).unwrap_err().kind, Kind::Corrupt);
    assert!(now(scan(&store, &tree, Bound::Unbounded, usize::MAX)).is_err());
    assert!(store.reads.get() < 100_000);
}

/// Does everything with a tree that may be anything.
fn exercise(store: &mut Memory, tree: &mut Tree, keys: &[Vec<u8>], random: &mut Random) {
    store.is_garbage = true;
    for key in keys {
        let _ = now(get(store, tree, key));
        let _ = now(scan(store, tree, Bound::Excluded(key), 100));
        let _ = now(last(store, tree, Some(key)));
        let _ = now(last(store, tree, None));
        let _ = now(blocks(store, tree));
        for _ in 0..3 {
            let value = value(Values::Mixed, random);
            let _ = now(insert(store, tree, [0, 500][random.below(2)], key, &value));
            let _ = now(remove(store, tree, [0, 500][random.below(2)], key));
        }
    }
}

#[test]
fn damaged_trees_never_panic() {
    for seed in 0..400 {
        let mut random = Random::new(seed);
        let kind = [Keys::Long, Keys::Names, Keys::Tiny][random.below(3)];
        let mut world = World::new(0);
        for step in 0..150 {
            let key = key(kind, step, &mut random);
            world.insert(&key, &value(Values::Mixed, &mut random));
        }
        let mut keys: Vec<Vec<u8>> = world.model.keys().step_by(7).cloned().collect();
        keys.push(Vec::new());
        let blocks: Vec<u64> = world.store.nodes.keys().copied().collect();
        for _ in 0..=random.below(4) {
            let at = blocks[random.below(blocks.len())];
            let other = blocks[random.below(blocks.len())];
            damage(&mut world.store, at, other, &mut random);
        }
        exercise(&mut world.store, &mut world.tree, &keys, &mut random);
    }
}

fn damage(store: &mut Memory, at: u64, other: u64, random: &mut Random) {
    let donor = store.nodes[&other].clone();
    let node = Rc::make_mut(store.nodes.get_mut(&at).unwrap());
    let count = node.entries.len().max(1);
    let (a, b) = (random.below(count), random.below(count));
    match random.below(9) {
        0 => node.level = u16::try_from(random.below(14)).unwrap(),
        1 => node.entries.clear(),
        2 => node.entries.truncate(1),
        3 if !node.entries.is_empty() => node.entries.swap(a, b),
        4 => node.entries.iter_mut().for_each(|(_, value)| *value = other.to_le_bytes().to_vec()),
        5 if !node.entries.is_empty() => node.entries[a].1 = other.to_le_bytes().to_vec(),
        6 if !node.entries.is_empty() => {
            let len = random.below(8);
            node.entries[a].0 = random.bytes(len);
        }
        7 if !node.entries.is_empty() => node.entries[a].1 = random.bytes(2000),
        _ => *node = (*donor).clone(),
    }
}

/// A store in which every read finds something else.
struct Noise {
    random: RefCell<Random>,
}

impl NodeStore for Noise {
    async fn node(&self, at: BlockNo) -> Result<Rc<Node>> {
        let random = &mut *self.random.borrow_mut();
        // Mostly what the path expects, or no path would become long: the address tells the level.
        let level = u16::try_from(at.0 % 16).unwrap();
        let count = 1 + random.below(5);
        let mut keys: Vec<Vec<u8>> = (0..count)
            .map(|_| {
                let len = random.below(10);
                random.bytes(len)
            })
            .collect();
        keys.sort();
        if level > 0 {
            keys[0].clear();
        }
        if random.below(2) == 0 {
            keys.truncate(1);
        }
        let below = u64::from(level).wrapping_sub(1).to_le_bytes().to_vec();
        let level = if random.below(30) == 0 { level + 1 } else { level };
        Ok(Rc::new(Node { level, entries: keys.into_iter().map(|k| (k, below.clone())).collect() }))
    }
}

impl NodeStoreMut for Noise {
    fn put(&mut self, _: BlockNo, node: Node) {
        assert!(node.encoded_len() <= NODE_CAPACITY);
    }

    async fn allocate(&mut self) -> Result<BlockNo> {
        Ok(BlockNo(self.random.get_mut().next() % 16))
    }

    fn free(&mut self, _: BlockNo) {}
}

#[test]
fn noise_never_panics() {
    for seed in 0..3000 {
        let mut random = Random::new(seed);
        let mut store = Noise { random: RefCell::new(Random::new(seed + 10_000)) };
        let root = Tree::Root(BlockNo(random.next() % 16));
        let len = random.below(4);
        let key = random.bytes(len);
        let _ = now(get(&store, &root, &key));
        let _ = now(scan(&store, &root, Bound::Excluded(&key), 1000));
        let _ = now(last(&store, &root, Some(&key)));
        let _ = now(blocks(&store, &root));
        let mut tree = root.clone();
        let _ = now(insert(&mut store, &mut tree, 0, &key, &key));
        let mut tree = root.clone();
        let _ = now(remove(&mut store, &mut tree, 500, &key));
    }
}
