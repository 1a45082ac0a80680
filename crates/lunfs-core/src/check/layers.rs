//! Disks and layers: what refers to each layer, against what it says of that itself.

use std::collections::BTreeMap;

use lunfs_format::{BlockNo, Descriptor, FileKind, Layer, LayerRef, Snapshot};

use super::claim::Basis;
use super::content::shown;
use super::tree::Found;
use super::walk::{Place, Walk};

/// Longest name of a snapshot in bytes.
const NAME_MAX: usize = 255;

/// What was found of one layer.
struct Seen {
    /// Of what refers to it: names, children.
    found: Layer,
    /// Something refers to it that needs it to be frozen.
    needs_frozen: bool,
    /// Something refers to it that writes to it.
    needs_open: bool,
    /// What its body says.
    says: Option<(Layer, u64)>,
    /// The longest reach of a reference to it.
    visible: u64,
    /// The least that a layer above allows for what is below it.
    depth_max: u32,
}

impl Default for Seen {
    fn default() -> Seen {
        Seen {
            found: Layer::default(),
            needs_frozen: false,
            needs_open: false,
            says: None,
            visible: 0,
            depth_max: u32::MAX,
        }
    }
}

/// All layers.
#[derive(Default)]
pub(super) struct Layers(BTreeMap<BlockNo, Seen>);

/// How a layer is referred to.
enum Referrer {
    Top,
    Snapshot,
    Child { id: LayerRef, layer: Layer },
}

impl Walk<'_, '_> {
    /// A disk: its top and its snapshots.
    pub(super) fn disk(&mut self, at: BlockNo, body: &Descriptor, found: &Found) {
        if let Some(top) = body.top {
            self.reach_layer(top, at, &Referrer::Top);
        }
        for (name, value) in &found.entries {
            let shown = shown(name);
            if name.is_empty() || name.len() > NAME_MAX {
                self.error(at.plus(1), at, &format!("the snapshot \"{shown}\" has no valid name"));
            }
            match Snapshot::decode(value) {
                Ok(snapshot) => self.reach_layer(snapshot.layer, at, &Referrer::Snapshot),
                Err(why) => {
                    self.is_partial = true;
                    let what = format!("what the snapshot \"{shown}\" refers to is lost: {why}");
                    self.error(at.plus(1), at, &what);
                }
            }
        }
        if body.size != 0 {
            self.error(at.plus(1), at, "it is a disk and has a size of its own, beside its top");
        }
    }

    /// A layer: what it says of itself, and what is below it.
    pub(super) fn layer(&mut self, at: BlockNo, body: &Descriptor) {
        let birth = body.version.birth;
        let layer = body.layer;
        self.layers.0.entry(at).or_default().says = Some((layer, body.size));
        if let Some(below) = layer.below {
            let id = LayerRef { addr: at, birth };
            self.reach_layer(below, at, &Referrer::Child { id, layer });
        }
    }

    fn reach_layer(&mut self, layer: LayerRef, above: BlockNo, by: &Referrer) {
        let seen = self.layers.0.entry(layer.addr).or_default();
        match by {
            Referrer::Top => {
                seen.found.names += 1;
                seen.needs_open = true;
            }
            Referrer::Snapshot => {
                seen.found.names += 1;
                seen.needs_frozen = true;
            }
            Referrer::Child { id, layer } => {
                seen.found.children += 1;
                seen.found.combine(*id);
                seen.needs_frozen = true;
                seen.visible = seen.visible.max(layer.visible);
                seen.depth_max = seen.depth_max.min(layer.depth.saturating_sub(1));
            }
        }
        let place = Place::Layer { above };
        self.reach(layer.addr, Some(layer.birth), Some(FileKind::Layer), place);
    }

    /// Reports layers that count other referrers than they have. Only after a whole walk of a
    /// volume at rest is that known.
    pub(super) fn judge_layers(&mut self) {
        let faults: Vec<(BlockNo, String)> = self
            .layers
            .0
            .iter()
            .filter_map(|(at, seen)| seen.fault().map(|why| (*at, why)))
            .collect();
        for (at, fault) in faults {
            let what = format!("{}: {fault}", self.path(at));
            self.claims.error(at.plus(1), Basis::Volume, what);
        }
    }
}

impl Seen {
    fn fault(&self) -> Option<String> {
        let (says, size) = self.says?;
        let found = &self.found;
        let counts = |layer: &Layer| {
            (layer.names, layer.children, layer.children_addresses, layer.children_births)
        };
        if counts(&says) != counts(found) {
            return Some(format!(
                "it counts {} names and {} children, there are {} and {}",
                says.names, says.children, found.names, found.children
            ));
        }
        if self.needs_frozen && !says.frozen {
            return Some("a snapshot or a layer above needs it, and it is not frozen".into());
        }
        if self.needs_open && says.frozen {
            return Some("a disk writes to it, and it is frozen".into());
        }
        if self.needs_open && found.names + found.children > 1 {
            return Some("a disk writes to it, and something else refers to it".into());
        }
        if says.depth > self.depth_max {
            let (depth, above) = (says.depth, self.depth_max);
            return Some(format!("it counts {depth} layers below, and a layer above {above}"));
        }
        (self.visible > size)
            .then(|| format!("{} bytes of it show above, but it has {size}", self.visible))
    }
}
