//! `lunfs inspect`: the structures of a volume, decoded by the code that ships, as they lie there.

use std::fmt::Debug;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use lunfs_format::{
    BlockNo, Cluster, Descriptor, Doorbell, JOURNAL_HEADERS, JOURNAL_RING, JournalHeader, Lock,
    NodeBlock, RECORD, RecordHead, SUPERBLOCK_COPIES, SlotNo, Superblock, is_blank, kind, kind_of,
};

use crate::out::{fields, say};
use crate::reader::Reader;

/// What to show.
#[derive(Args)]
pub struct Options {
    /// Image file or block device
    source: PathBuf,
    #[command(subcommand)]
    what: Option<What>,
}

#[derive(Subcommand)]
enum What {
    /// Both copies of the superblock
    Superblock,
    /// A slot of the heartbeat region: pulse and doorbells
    Slot {
        /// Number of the slot
        number: u32,
    },
    /// A block, whatever it is
    Block {
        /// Number of the block
        number: u64,
    },
    /// A lock and the body it covers
    Lock {
        /// Block number of the lock
        number: u64,
    },
    /// The journal of a slot: headers and records
    Journal {
        /// Number of the slot
        slot: u32,
    },
}

/// Prints what was asked for; without a wish the superblock.
pub fn run(options: &Options) -> Result<ExitCode> {
    let reader = Reader::open(&options.source)?;
    match options.what.as_ref().unwrap_or(&What::Superblock) {
        What::Superblock => superblocks(&reader)?,
        What::Slot { number } => slot(&reader, SlotNo(*number))?,
        What::Block { number } => block(&reader, BlockNo(*number))?,
        What::Lock { number } => lock(&reader, BlockNo(*number))?,
        What::Journal { slot } => journal(&reader, SlotNo(*slot))?,
    }
    Ok(ExitCode::SUCCESS)
}

fn superblocks(reader: &Reader) -> Result<()> {
    for copy in SUPERBLOCK_COPIES {
        match reader.block(copy) {
            Ok(bytes) => show(&format!("block {copy}"), Superblock::decode(&bytes, copy)),
            Err(e) => say!("block {copy}: {e:#}"),
        }
    }
    Ok(())
}

fn slot(reader: &Reader, slot: SlotNo) -> Result<()> {
    let geometry = reader.geometry();
    if slot.0 >= geometry.slot_count {
        bail!("the volume has {} slots, there is no slot {slot}", geometry.slot_count);
    }
    show(&format!("slot {slot}, pulse"), reader.pulse(slot)?);
    let volume = reader.superblock().volume;
    for entry in 0..lunfs_format::DOORBELLS {
        let bytes = reader.bytes(geometry.doorbell_offset(slot, entry), RECORD)?;
        let title = format!("slot {slot}, doorbell {entry}");
        show(&title, Doorbell::decode(&bytes, volume, slot, entry));
    }
    Ok(())
}

fn block(reader: &Reader, at: BlockNo) -> Result<()> {
    let bytes = reader.block(at)?;
    let volume = reader.superblock().volume;
    let record = bytes.get(..RECORD).context("a block is longer than a record")?;
    let title = format!("block {at}");
    if is_blank(&bytes) {
        say!("{title}: zeroes");
        return Ok(());
    }
    match kind_of(&bytes) {
        Some(kind::SUPERBLOCK) => show(&title, Superblock::decode(&bytes, at)),
        Some(kind::LOCK) => show(&title, Lock::decode(record, volume, at)),
        Some(kind::CLUSTER) => show(&title, Cluster::decode(&bytes, volume, at)),
        Some(kind::DESCRIPTOR) => show(&title, Descriptor::decode(&bytes, volume, at)),
        Some(kind::NODE) => show(&title, NodeBlock::decode(&bytes, volume, at)),
        Some(kind::JOURNAL_HEADER) => show(&title, JournalHeader::decode(&bytes, volume, at)),
        Some(kind::JOURNAL_RECORD) => show(&title, RecordHead::decode(&bytes, volume, at)),
        Some(other) => say!("{title}: kind {other}; is it in the heartbeat region?"),
        None => say!("{title}: not metadata of lunfs (data of a file, or never written)"),
    }
    Ok(())
}

fn lock(reader: &Reader, at: BlockNo) -> Result<()> {
    block(reader, at)?;
    block(reader, at.plus(1))
}

fn journal(reader: &Reader, slot: SlotNo) -> Result<()> {
    let pulse = reader.pulse(slot)?.with_context(|| format!("the pulse of slot {slot}"))?;
    let Some(cluster) = pulse.journal else {
        say!("slot {slot} has no journal");
        return Ok(());
    };
    let volume = reader.superblock().volume;
    for place in JOURNAL_HEADERS {
        let at = cluster.plus(place);
        show(&format!("block {at}"), JournalHeader::decode(&reader.block(at)?, volume, at));
    }
    for place in 0..reader.geometry().ring_blocks() {
        let at = cluster.plus(JOURNAL_RING + place);
        if let Ok(head) = RecordHead::decode(&reader.block(at)?, volume, at) {
            show(&format!("block {at}, ring block {place}"), Ok::<_, &str>(head));
        }
    }
    Ok(())
}

fn show<T: Debug, E: std::fmt::Display>(title: &str, decoded: Result<T, E>) {
    match decoded {
        Ok(value) => say!("{title}: {}", fields(&format!("{value:?}"))),
        Err(why) => say!("{title}: refused: {why}"),
    }
}
