//! What disks and layers say of each other: references, counts, snapshots.
//!
//! Bytes: docs/format.md#descriptor and docs/format.md#snapshot.

use zerocopy::FromBytes;
use zerocopy::little_endian::{I64, U32, U64};

use crate::error::{DecodeError, must_be_valid, require};
use crate::layout::raw;
use crate::units::{BlockNo, Timestamp};

const NANOS_PER_SECOND: u32 = 1_000_000_000;

/// Names a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LayerRef {
    /// Address of its lock.
    pub addr: BlockNo,
    /// Its birth.
    pub birth: u64,
}

impl LayerRef {
    pub(crate) fn of(addr: U64, birth: U64) -> Option<LayerRef> {
        let addr = BlockNo(addr.get());
        (addr.0 != 0).then_some(LayerRef { addr, birth: birth.get() })
    }

    pub(crate) fn raw(this: Option<LayerRef>) -> (U64, U64) {
        this.map_or_else(Default::default, |layer| (layer.addr.0.into(), layer.birth.into()))
    }
}

/// What a layer's body says beyond its map.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Layer {
    /// Its map does not change any more, but by a merge.
    pub frozen: bool,
    /// The layer below.
    pub below: Option<LayerRef>,
    /// Bytes up to which the layer below shows.
    pub visible: u64,
    /// Layers right above it.
    pub children: u32,
    /// Names: the disk whose top it is, or snapshots.
    pub names: u32,
    /// The addresses of its children, combined by XOR; with one child that is it.
    pub children_addresses: u64,
    /// The births of its children, likewise.
    pub children_births: u64,
    /// Layers below it, at most.
    pub depth: u32,
}

impl Layer {
    /// A layer above it came or went: the same is done either way, but for the count.
    pub fn combine(&mut self, child: LayerRef) {
        self.children_addresses ^= child.addr.0;
        self.children_births ^= child.birth;
    }

    /// Its only child, if it has one only.
    pub fn only_child(&self) -> Option<LayerRef> {
        let addr = BlockNo(self.children_addresses);
        (self.children == 1).then_some(LayerRef { addr, birth: self.children_births })
    }
}

raw! {
    RawSnapshot, SNAPSHOT_LAYOUT, "Snapshot" {
        layer: U64,
        layer_birth: U64,
        size: U64,
        created_seconds: I64,
        created_nanos: U32,
    }
}

/// What a disk's table of snapshots says of one name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// The layer that is its top.
    pub layer: LayerRef,
    /// Bytes of the disk then.
    pub size: u64,
    /// When it was made.
    pub created: Timestamp,
}

impl Snapshot {
    /// Makes the value.
    ///
    /// # Panics
    /// If `decode` would refuse it.
    pub fn encode(&self) -> [u8; 36] {
        must_be_valid("snapshot", self.check());
        let raw = RawSnapshot {
            layer: self.layer.addr.0.into(),
            layer_birth: self.layer.birth.into(),
            size: self.size.into(),
            created_seconds: self.created.seconds.into(),
            created_nanos: self.created.nanos.into(),
        };
        zerocopy::transmute!(raw)
    }

    /// Reads the value.
    pub fn decode(bytes: &[u8]) -> Result<Snapshot, DecodeError> {
        let raw = RawSnapshot::read_from_bytes(bytes).map_err(|_| DecodeError::BadLength)?;
        let layer = LayerRef { addr: BlockNo(raw.layer.get()), birth: raw.layer_birth.get() };
        let created =
            Timestamp { seconds: raw.created_seconds.get(), nanos: raw.created_nanos.get() };
        let snapshot = Snapshot { layer, size: raw.size.get(), created };
        snapshot.check()?;
        Ok(snapshot)
    }

    fn check(&self) -> Result<(), DecodeError> {
        require(self.layer.addr.0 != 0, "layer", self.layer.addr.0)?;
        require(self.size <= crate::descriptor::SIZE_MAX, "size", self.size)?;
        require(self.created.nanos < NANOS_PER_SECOND, "created_nanos", self.created.nanos)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Random;

    #[test]
    fn a_snapshot_survives_the_disk() {
        let value = crate::samples::snapshot();
        assert_eq!(Snapshot::decode(&value.encode()), Ok(value));
        assert_eq!(Snapshot::decode(&[1; 35]), Err(DecodeError::BadLength));
        let mut random = Random::new();
        for _ in 0..10_000 {
            let bytes: [u8; 36] = std::array::from_fn(|_| random.byte());
            if let Ok(value) = Snapshot::decode(&bytes) {
                assert_eq!(value.encode(), bytes);
            }
        }
    }

    #[test]
    fn with_one_child_the_combination_is_the_child() {
        let [a, b] = [7, 9].map(|n| LayerRef { addr: BlockNo(n * 100), birth: n });
        let mut layer = Layer { children: 2, ..Layer::default() };
        layer.combine(a);
        layer.combine(b);
        assert_eq!(layer.only_child(), None);
        layer.combine(a);
        layer.children = 1;
        assert_eq!(layer.only_child(), Some(b));
    }
}
