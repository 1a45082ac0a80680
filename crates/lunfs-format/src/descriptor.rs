//! A descriptor: one file, directory, symlink or device node.
//!
//! Bytes: docs/format.md#descriptor.

use zerocopy::FromBytes;
use zerocopy::little_endian::{I64, U16, U32, U64};

use crate::content::{Content, FORM_BYTES, Tree};
use crate::error::{DecodeError, must_be_valid, require};
use crate::header::{Heading, RawHeader, Structure, kind, make, open, require_zero};
use crate::layer::{Layer, LayerRef};
use crate::layout::{Layout, numbered, raw};
use crate::units::{
    BLOCK, Block, BlockNo, Holder, Incarnation, SlotNo, Timestamp, Version, VolumeId,
};

/// Bytes for content and extended attributes in a descriptor.
pub const AREA: usize = 3840;

const NANOS_PER_SECOND: u32 = 1_000_000_000;
const MODE_MAX: u32 = 0o7777;
/// The map of a layer does not change any more.
const FLAG_FROZEN: u16 = 1;
/// Largest size of a file; directories have fewer entries.
pub const SIZE_MAX: u64 = 1 << 56;

raw! {
    #[derive(Clone, Copy)]
    RawTimestamp, TIMESTAMP_LAYOUT, "Timestamp" {
        seconds: I64,
        nanos: U32,
    }
}

raw! {
    RawDescriptor, LAYOUT, "Descriptor" {
        header: RawHeader,
        r#type: U16,
        flags: U16,
        mode: U32,
        uid: U32,
        gid: U32,
        nlink: U32,
        reserved1: U32 = zero,
        rdev: U64,
        size: U64,
        blocks: U64,
        atime: RawTimestamp,
        mtime: RawTimestamp,
        ctime: RawTimestamp,
        btime: RawTimestamp,
        parent: U64,
        parent_birth: U64,
        top: U64,
        top_birth: U64,
        user_slot: U32,
        reserved2: U32 = zero,
        user_incarnation: U64,
        content_form: U16,
        content_len: U16,
        xattr_form: U16,
        xattr_len: U16,
        visible: U64,
        children: U32,
        names: U32,
        children_addresses: U64,
        children_births: U64,
        depth: U32,
        reserved3: U32 = zero,
        area: [u8; AREA],
    }
}

const _: () = assert!(size_of::<RawDescriptor>() == BLOCK);
const _: () = assert!(TIMESTAMP_LAYOUT.size == 12);

impl Structure for RawDescriptor {
    const KIND: u16 = kind::DESCRIPTOR;
    const FIELDS: Layout = LAYOUT;
}

numbered! {
    /// What a descriptor describes.
    pub enum FileKind, "type" {
        /// A file.
        File = 1,
        /// A directory.
        Directory = 2,
        /// A symlink.
        Symlink = 3,
        /// A fifo.
        Fifo = 4,
        /// A socket.
        Socket = 5,
        /// A character device.
        CharDevice = 6,
        /// A block device.
        BlockDevice = 7,
        /// Nothing any more.
        Void = 8,
        /// A layer of disks.
        Layer = 9,
    }
}

/// A file, directory, symlink or device node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// Version of the descriptor.
    pub version: Version,
    /// Address of the lock that covers it.
    pub owner: BlockNo,
    /// What it describes.
    pub kind: FileKind,
    /// Permission bits, set-id bits, sticky; no type bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Links; for directories 2 + subdirectories.
    pub nlink: u32,
    /// Device number of device nodes.
    pub rdev: u64,
    /// Bytes; for directories the number of entries.
    pub size: u64,
    /// Blocks allocated, the descriptor's own two not counted.
    pub blocks: u64,
    /// Last access.
    pub atime: Timestamp,
    /// Last change of the content.
    pub mtime: Timestamp,
    /// Last change.
    pub ctime: Timestamp,
    /// When it was made.
    pub btime: Timestamp,
    /// Directories: address of the parent.
    pub parent: BlockNo,
    /// Directories: birth of the parent.
    pub parent_birth: u64,
    /// Disks: the layer that holds the contents. Then the content is the table of snapshots.
    pub top: Option<LayerRef>,
    /// Disks: who uses it, in which life.
    pub user: Option<Holder>,
    /// Layers: what they are to each other. What is below is the parent on disk.
    pub layer: Layer,
    /// What it holds.
    pub content: Content,
    /// Extended attributes.
    pub xattrs: Tree,
}

impl Descriptor {
    /// Bytes of the area that content and extended attributes take.
    pub fn area_used(&self) -> usize {
        self.content.len() + self.xattrs.len()
    }

    /// Whether content and extended attributes fit.
    pub fn fits(&self) -> bool {
        self.area_used() <= AREA
    }

    /// Reads the descriptor at `at`.
    pub fn decode(bytes: &[u8], volume: VolumeId, at: BlockNo) -> Result<Descriptor, DecodeError> {
        let raw = open::<RawDescriptor>(bytes, Some(volume), at.0)?;
        let Some((content, rest)) = raw.area.split_at_checked(usize::from(raw.content_len.get()))
        else {
            return Err(DecodeError::field("content_len", raw.content_len));
        };
        let Some((xattrs, unused)) = rest.split_at_checked(usize::from(raw.xattr_len.get())) else {
            return Err(DecodeError::field("xattr_len", raw.xattr_len));
        };
        require_zero(unused, BLOCK - unused.len())?;
        let kind = FileKind::from_number(raw.r#type)?;
        let is_layer = kind == FileKind::Layer;
        let parent = LayerRef::of(raw.parent, raw.parent_birth);
        let descriptor = Descriptor {
            version: raw.header.version(),
            owner: raw.header.owner(),
            kind,
            mode: raw.mode.get(),
            uid: raw.uid.get(),
            gid: raw.gid.get(),
            nlink: raw.nlink.get(),
            rdev: raw.rdev.get(),
            size: raw.size.get(),
            blocks: raw.blocks.get(),
            atime: raw.atime.into(),
            mtime: raw.mtime.into(),
            ctime: raw.ctime.into(),
            btime: raw.btime.into(),
            parent: BlockNo(if is_layer { 0 } else { raw.parent.get() }),
            parent_birth: if is_layer { 0 } else { raw.parent_birth.get() },
            top: LayerRef::of(raw.top, raw.top_birth),
            user: raw.user(),
            layer: Layer {
                frozen: raw.flags.get() & FLAG_FROZEN != 0,
                below: parent.filter(|_| is_layer),
                visible: raw.visible.get(),
                children: raw.children.get(),
                names: raw.names.get(),
                children_addresses: raw.children_addresses.get(),
                children_births: raw.children_births.get(),
                depth: raw.depth.get(),
            },
            content: Content::decode(raw.content_form.get(), content)?,
            xattrs: Tree::decode("xattr_form", "xattr_len", raw.xattr_form.get(), xattrs)?,
        };
        require(raw.flags.get() & !FLAG_FROZEN == 0, "flags", raw.flags)?;
        require(descriptor.top.is_some() || raw.top_birth.get() == 0, "top_birth", raw.top_birth)?;
        require(descriptor.user.is_some() || raw.user_slot.get() == 0, "user_slot", raw.user_slot)?;
        let is_orphan = is_layer && parent.is_none();
        require(!is_orphan || raw.parent_birth.get() == 0, "parent_birth", raw.parent_birth)?;
        descriptor.check()?;
        Ok(descriptor)
    }

    /// Makes the block that lies at `at`.
    ///
    /// # Panics
    /// If `decode` would refuse it, as it does when content and extended attributes do not fit.
    pub fn encode(&self, volume: VolumeId, at: BlockNo) -> Box<Block> {
        assert!(self.fits(), "content and extended attributes fit into a descriptor");
        must_be_valid("descriptor", self.check());
        let heading = Heading { volume, address: at.0, version: self.version, owner: self.owner };
        let mut area = Vec::with_capacity(AREA);
        self.content.encode(&mut area);
        self.xattrs.encode(&mut area);
        make(heading, |raw: &mut RawDescriptor| {
            raw.r#type = u16::from(self.kind.number()).into();
            raw.flags = if self.layer.frozen { FLAG_FROZEN } else { 0 }.into();
            raw.mode = self.mode.into();
            raw.uid = self.uid.into();
            raw.gid = self.gid.into();
            raw.nlink = self.nlink.into();
            raw.rdev = self.rdev.into();
            raw.size = self.size.into();
            raw.blocks = self.blocks.into();
            raw.atime = self.atime.into();
            raw.mtime = self.mtime.into();
            raw.ctime = self.ctime.into();
            raw.btime = self.btime.into();
            (raw.parent, raw.parent_birth) = match self.kind {
                FileKind::Layer => LayerRef::raw(self.layer.below),
                _ => (self.parent.0.into(), self.parent_birth.into()),
            };
            (raw.top, raw.top_birth) = LayerRef::raw(self.top);
            if let Some(user) = self.user {
                raw.user_slot = user.slot.0.into();
                raw.user_incarnation = user.incarnation.0.into();
            }
            raw.visible = self.layer.visible.into();
            raw.children = self.layer.children.into();
            raw.names = self.layer.names.into();
            raw.children_addresses = self.layer.children_addresses.into();
            raw.children_births = self.layer.children_births.into();
            raw.depth = self.layer.depth.into();
            raw.content_form = self.content.form().into();
            raw.content_len = (self.content.len() as u16).into();
            raw.xattr_form = self.xattrs.form().into();
            raw.xattr_len = (self.xattrs.len() as u16).into();
            for (place, byte) in raw.area.iter_mut().zip(area) {
                *place = byte;
            }
        })
    }

    fn check(&self) -> Result<(), DecodeError> {
        require(self.mode <= MODE_MAX, "mode", self.mode)?;
        require(self.size <= SIZE_MAX, "size", self.size)?;
        for (field, time) in [
            ("atime", self.atime),
            ("mtime", self.mtime),
            ("ctime", self.ctime),
            ("btime", self.btime),
        ] {
            require(time.nanos < NANOS_PER_SECOND, field, time.nanos)?;
        }
        let may_have_bytes = matches!(self.kind, FileKind::File | FileKind::Symlink);
        self.check_layers()?;
        let has_bytes = matches!(self.content, Content::Bytes(_));
        let may_have_bytes = may_have_bytes && self.top.is_none();
        require(!has_bytes || may_have_bytes, "content_form", FORM_BYTES)?;
        if let Content::Tree(tree) = &self.content {
            tree.check()?;
        }
        self.xattrs.check()
    }

    fn check_layers(&self) -> Result<(), DecodeError> {
        let top = self.top.map_or(0, |top| top.addr.0);
        require(top == 0 || self.kind == FileKind::File, "top", top)?;
        let user = self.user.map_or(0, |user| user.incarnation.0);
        require(user == 0 || top != 0, "user_incarnation", user)?;
        let layer = &self.layer;
        if self.kind != FileKind::Layer {
            require(!layer.frozen, "flags", FLAG_FROZEN)?;
            require(layer.visible == 0, "visible", layer.visible)?;
            require(layer.children == 0, "children", layer.children)?;
            require(layer.names == 0, "names", layer.names)?;
            require(layer.depth == 0, "depth", layer.depth)?;
        }
        require(layer.visible <= SIZE_MAX, "visible", layer.visible)?;
        let births = layer.children_births;
        require(layer.children > 0 || births == 0, "children_births", births)?;
        let addresses = layer.children_addresses;
        require(layer.children > 0 || addresses == 0, "children_addresses", addresses)
    }
}

impl RawDescriptor {
    fn user(&self) -> Option<Holder> {
        let incarnation = Incarnation(self.user_incarnation.get());
        let slot = SlotNo(self.user_slot.get());
        (incarnation.0 != 0).then_some(Holder { slot, incarnation })
    }
}

impl From<RawTimestamp> for Timestamp {
    fn from(raw: RawTimestamp) -> Timestamp {
        Timestamp { seconds: raw.seconds.get(), nanos: raw.nanos.get() }
    }
}

impl From<Timestamp> for RawTimestamp {
    fn from(time: Timestamp) -> RawTimestamp {
        RawTimestamp { seconds: time.seconds.into(), nanos: time.nanos.into() }
    }
}

raw! {
    RawEntryValue, ENTRY_VALUE_LAYOUT, "Entry value" {
        address: U64,
        birth: U64,
        r#type: u8,
    }
}

/// What a directory says of one name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryValue {
    /// Address of the lock of what has the name.
    pub addr: BlockNo,
    /// Its birth.
    pub birth: u64,
    /// What it is.
    pub kind: FileKind,
}

impl EntryValue {
    /// Makes the value.
    ///
    /// # Panics
    /// If `decode` would refuse it.
    pub fn encode(&self) -> [u8; 17] {
        must_be_valid("directory entry", self.check());
        let raw = RawEntryValue {
            address: self.addr.0.into(),
            birth: self.birth.into(),
            r#type: self.kind.number(),
        };
        zerocopy::transmute!(raw)
    }

    /// Reads the value.
    pub fn decode(bytes: &[u8]) -> Result<EntryValue, DecodeError> {
        let raw = RawEntryValue::read_from_bytes(bytes).map_err(|_| DecodeError::BadLength)?;
        let value = EntryValue {
            addr: BlockNo(raw.address.get()),
            birth: raw.birth.get(),
            kind: FileKind::from_number(raw.r#type)?,
        };
        value.check()?;
        Ok(value)
    }

    fn check(&self) -> Result<(), DecodeError> {
        require(self.addr.0 != 0, "address", self.addr.0)?;
        let has_names = !matches!(self.kind, FileKind::Void | FileKind::Layer);
        require(has_names, "type", self.kind.number())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::samples::{self, VOLUME};
    use crate::testing::{Random, disk_tests, with, with_bytes};

    const AT_BLOCK: BlockNo = BlockNo(2051);

    fn mapped() -> Descriptor {
        Descriptor {
            kind: FileKind::File,
            content: Content::Tree(Tree::Root(BlockNo(7000))),
            xattrs: Tree::Empty,
            ..samples::directory()
        }
    }

    fn device() -> Descriptor {
        Descriptor {
            kind: FileKind::CharDevice,
            rdev: 0x0103,
            content: Content::Empty,
            ..samples::symlink()
        }
    }

    disk_tests! {
        LAYOUT, samples::directory(), samples::symlink(), mapped(), device(), samples::disk(),
            samples::layer();
        encode: |descriptor: &Descriptor, volume, at| descriptor.encode(volume, BlockNo(at)),
        decode: |bytes: &[u8], volume, at| Descriptor::decode(bytes, volume, BlockNo(at)),
    }

    fn decode(bytes: &[u8]) -> DecodeError {
        Descriptor::decode(bytes, VOLUME, AT_BLOCK).unwrap_err()
    }

    #[test]
    fn fields_out_of_range_are_refused() {
        let bytes = samples::directory().encode(VOLUME, AT_BLOCK);
        for (field, value) in [
            ("type", 0),
            ("type", 10),
            ("flags", 1),
            ("flags", 2),
            ("top", 77),
            ("top_birth", 1),
            ("user_slot", 3),
            ("user_incarnation", 3),
            ("visible", 4096),
            ("children", 1),
            ("names", 1),
            ("children_addresses", 1),
            ("children_births", 1),
            ("depth", 1),
            ("mode", 0o100_755),
            ("size", (1 << 56) + 1),
            ("size", u64::MAX),
            ("content_form", 1),
            ("content_form", 4),
            ("content_len", 3841),
            ("xattr_len", 3840),
            ("xattr_form", 1),
            ("xattr_form", 4),
        ] {
            let bytes = with(bytes.as_slice(), &LAYOUT, field, value);
            assert_eq!(decode(&bytes), DecodeError::BadField { field, value });
        }
        for (field, offset) in [("atime", 112), ("mtime", 124), ("ctime", 136), ("btime", 148)] {
            let nanos = 1_000_000_000u32;
            let bytes = with_bytes(bytes.as_slice(), offset + 8, &nanos.to_le_bytes());
            assert_eq!(decode(&bytes), DecodeError::field(field, nanos));
        }
    }

    #[test]
    fn lengths_that_do_not_belong_to_the_form_are_refused() {
        let bytes = mapped().encode(VOLUME, AT_BLOCK);
        let nothing = with(bytes.as_slice(), &LAYOUT, "content_form", 0);
        assert_eq!(decode(&nothing), DecodeError::field("content_len", 8u64));
        let zero_root = with(bytes.as_slice(), &LAYOUT, "area", 0);
        assert_eq!(decode(&zero_root), DecodeError::field("root", 0u64));
        let behind = with_bytes(bytes.as_slice(), 256 + 8, &[1]);
        assert_eq!(decode(&behind), DecodeError::Reserved { offset: 256 + 8 });
        let last = with_bytes(bytes.as_slice(), 4095, &[1]);
        assert_eq!(decode(&last), DecodeError::Reserved { offset: 4095 });
        let xattrs = with(bytes.as_slice(), &LAYOUT, "xattr_len", 1);
        assert_eq!(decode(&xattrs), DecodeError::field("xattr_len", 1u64));
        let node = with(bytes.as_slice(), &LAYOUT, "content_form", 2);
        assert_eq!(decode(&node), DecodeError::field("count", 0u64));
    }

    #[test]
    fn the_area_holds_exactly_what_fits() {
        let file = |len| Descriptor {
            kind: FileKind::File,
            content: Content::Bytes(vec![7; len]),
            xattrs: Tree::Root(BlockNo(7000)),
            ..samples::directory()
        };
        let full = file(AREA - 8);
        assert!(full.fits() && full.area_used() == AREA);
        let decoded =
            Descriptor::decode(full.encode(VOLUME, AT_BLOCK).as_slice(), VOLUME, AT_BLOCK);
        assert_eq!(decoded, Ok(full));
        assert!(!file(AREA - 7).fits());
    }

    #[test]
    #[should_panic(expected = "fit into a descriptor")]
    fn content_that_does_not_fit_is_not_written() {
        let content = Content::Bytes(vec![0; AREA + 1]);
        Descriptor { content, ..samples::symlink() }.encode(VOLUME, AT_BLOCK);
    }

    #[test]
    fn an_empty_tree_reads_back_as_nothing() {
        let descriptor = Descriptor { content: Content::Tree(Tree::Empty), ..mapped() };
        let bytes = descriptor.encode(VOLUME, AT_BLOCK);
        let decoded = Descriptor::decode(bytes.as_slice(), VOLUME, AT_BLOCK).unwrap();
        assert_eq!(decoded.content, Content::Empty);
    }

    #[test]
    fn a_directory_entry_survives_the_disk() {
        let value = samples::entry_value();
        assert_eq!(EntryValue::decode(&value.encode()), Ok(value));
        assert_eq!(EntryValue::decode(&[1; 16]), Err(DecodeError::BadLength));
        assert_eq!(EntryValue::decode(&[1; 18]), Err(DecodeError::BadLength));
        let mut random = Random::new();
        for _ in 0..10_000 {
            let bytes: [u8; 17] = std::array::from_fn(|_| random.byte());
            if let Ok(value) = EntryValue::decode(&bytes) {
                assert_eq!(value.encode(), bytes);
            }
        }
    }

    #[test]
    fn a_name_never_leads_to_nothing() {
        let mut bytes = samples::entry_value().encode();
        bytes[16] = 8;
        assert_eq!(EntryValue::decode(&bytes), Err(DecodeError::field("type", 8u64)));
        let nowhere = [[0; 8].as_slice(), &[1; 9]].concat();
        assert_eq!(EntryValue::decode(&nowhere), Err(DecodeError::field("address", 0u64)));
    }
}
