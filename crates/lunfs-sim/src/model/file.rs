//! What the bytes of one file may be.

use std::collections::BTreeMap;
use std::ops::Range;
use std::rc::Rc;

use lunfs_core::FileId;

use super::content::{BLOCK, Content, SECTOR, describe};
use super::register::{ChangeNo, Deaths, Register};
use super::snapshots::Frozen;
use crate::executor::Owner;

/// What an operation does to the bytes of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Tagged bytes; the file grows if need be.
    Write(Range<u64>),
    /// Zeroes; the size stays.
    Zero(Range<u64>),
    /// A new size.
    Resize(u64),
}

/// A change that has been called.
#[derive(Clone, Debug)]
pub struct Pending {
    by: Owner,
    begun: u64,
    size: Option<ChangeNo>,
    blocks: Vec<(u64, ChangeNo)>,
}

/// When a look began and ended.
pub type Span = (u64, u64);

/// The bytes of one file.
#[derive(Clone, Debug)]
pub struct FileModel {
    /// Number in the model, part of every tag.
    pub number: u64,
    /// Its identity on the volume, once known.
    pub id: Option<FileId>,
    /// Somebody called for its removal.
    pub is_going: bool,
    /// An operation on it ended in doubt: it must be looked at before its bytes are changed in
    /// part.
    pub in_doubt: bool,
    /// It can have snapshots.
    pub is_disk: bool,
    next_write: u64,
    /// All changes are durable: there is nothing to harden.
    is_still: bool,
    size: Register<u64>,
    blocks: BTreeMap<u64, Register<Content>>,
}

fn blocks_of(range: &Range<u64>) -> Range<u64> {
    range.start / BLOCK as u64..range.end.div_ceil(BLOCK as u64)
}

/// The part of `block` that lies in `range`.
fn part(range: &Range<u64>, block: u64) -> Range<usize> {
    let start = block * BLOCK as u64;
    let cut = |at: u64| usize::try_from(at.saturating_sub(start)).unwrap_or(BLOCK).min(BLOCK);
    cut(range.start)..cut(range.end)
}

impl FileModel {
    /// An empty file.
    pub fn new(number: u64) -> FileModel {
        FileModel {
            number,
            id: None,
            is_going: false,
            in_doubt: false,
            is_disk: false,
            next_write: 1,
            is_still: true,
            size: Register::new(0),
            blocks: BTreeMap::new(),
        }
    }

    /// It is born as a disk that holds this.
    pub fn begin_as(&mut self, frozen: &Frozen) {
        self.is_disk = true;
        self.size = Register::new(frozen.size);
        let mixed = |(block, bytes): (&u64, &Rc<[u8]>)| {
            (*block, Register::new(Content::Mixed(bytes.clone())))
        };
        self.blocks = frozen.blocks.iter().map(mixed).collect();
    }

    /// What it holds, if a look now could see one thing only.
    pub fn freeze(&self, now: u64, deaths: &dyn Deaths) -> Option<Frozen> {
        let sizes = self.size.allowed(now, deaths);
        let size = *sizes.first()?.1;
        let is_one = |sizes: &[(ChangeNo, &u64)]| sizes.iter().all(|(_, other)| **other == size);
        if !is_one(&sizes) {
            return None;
        }
        let mut blocks = BTreeMap::new();
        for (&block, register) in &self.blocks {
            let allowed = register.allowed(now, deaths);
            let first = allowed.first()?.1;
            if allowed.iter().any(|(_, other)| *other != first) {
                return None;
            }
            let mut bytes = first.bytes(self.number, block);
            let end = size.saturating_sub(block * BLOCK as u64);
            bytes[usize::try_from(end).unwrap_or(BLOCK).min(BLOCK)..].fill(0);
            if bytes.iter().any(|byte| *byte != 0) {
                blocks.insert(block, bytes.into());
            }
        }
        Some(Frozen { size, blocks })
    }

    /// Size after all that was called.
    pub fn size(&self) -> u64 {
        *self.size.newest()
    }

    /// Number for the next write.
    pub fn next_write(&mut self) -> u64 {
        self.next_write += 1;
        self.next_write
    }

    /// A change is called; `write` is the number of its tags.
    pub fn begin(&mut self, change: &Change, write: u64, by: Owner, tick: u64) -> Pending {
        self.is_still = false;
        let old_size = self.size();
        let mut pending = Pending { by, begun: tick, size: None, blocks: Vec::new() };
        let (range, tag) = match change {
            Change::Write(range) => (range.clone(), Some(write)),
            Change::Zero(range) => (range.start..range.end.min(old_size), None),
            Change::Resize(size) => (*size..old_size, None),
        };
        let new_size = match change {
            Change::Write(range) => old_size.max(range.end),
            Change::Zero(_) => old_size,
            Change::Resize(size) => *size,
        };
        if new_size != old_size {
            pending.size = Some(self.size.begin(new_size, by, tick, 0));
        }
        if range.start < range.end {
            for block in blocks_of(&range) {
                let known = self.blocks.contains_key(&block);
                if !known && tag.is_none() {
                    continue;
                }
                let register =
                    self.blocks.entry(block).or_insert_with(|| Register::new(Content::Zero));
                let content =
                    register.newest().with((self.number, block), part(&range, block), tag);
                pending.blocks.push((block, register.begin(content, by, tick, 0)));
            }
        }
        pending
    }

    fn each(&mut self, pending: &Pending, apply: impl Fn(&mut Register<Content>, ChangeNo)) {
        for (block, change) in &pending.blocks {
            if let Some(register) = self.blocks.get_mut(block) {
                apply(register, *change);
            }
        }
    }

    /// A change was acknowledged. What others did before it was called came through a handover.
    pub fn acknowledge(&mut self, pending: &Pending, tick: u64, deaths: &dyn Deaths) {
        if let Some(change) = pending.size {
            self.size.acknowledge(change, tick);
        }
        self.each(pending, |register, change| register.acknowledge(change, tick));
        for register in self.blocks.values_mut() {
            register.hand_over(pending.by, pending.begun, deaths);
        }
        self.size.hand_over(pending.by, pending.begun, deaths);
    }

    /// A change ended with an error.
    pub fn doubt(&mut self, pending: &Pending, tick: u64) {
        self.in_doubt = true;
        if let Some(change) = pending.size {
            self.size.doubt(change, tick);
        }
        self.each(pending, |register, change| register.doubt(change, tick));
    }

    /// A change was refused and surely did not happen.
    pub fn cancel(&mut self, pending: &Pending) {
        if let Some(change) = pending.size {
            self.size.cancel(change);
        }
        self.each(pending, super::register::Register::cancel);
    }

    /// What `by` had acknowledged before `tick` is durable.
    pub fn harden(&mut self, by: Owner, tick: u64, deaths: &dyn Deaths) {
        if self.is_still {
            return;
        }
        self.size.harden(by, tick, deaths);
        let mut is_still = self.size.is_still();
        for register in self.blocks.values_mut() {
            register.harden(by, tick, deaths);
            is_still &= register.is_still();
        }
        self.is_still = is_still;
    }

    /// A look found this size.
    pub fn check_size(
        &mut self,
        found: u64,
        observer: Owner,
        span: Span,
        deaths: &dyn Deaths,
    ) -> Result<(), String> {
        self.is_still = false;
        let allowed = self.size.allowed(span.0, deaths);
        let seen: Vec<ChangeNo> =
            allowed.iter().filter(|(_, size)| **size == found).map(|(change, _)| *change).collect();
        if !seen.is_empty() {
            self.size.observe(&seen, observer, span, deaths);
            return Ok(());
        }
        let sizes: Vec<u64> = allowed.iter().map(|(_, size)| **size).collect();
        let (low, high) = (sizes.iter().min().copied(), sizes.iter().max().copied());
        // A write that was cut short by a death, or is still going on, may have grown the file in
        // part.
        if sizes.len() > 1 && low.is_some_and(|low| found >= low) && high >= Some(found) {
            if self.size.is_quiet(span.0, deaths) {
                self.size.settle(found, observer, (span.1, 0), deaths);
            }
            return Ok(());
        }
        let history = self.size.history();
        Err(format!("file {} has {found} bytes; allowed: {sizes:?} of {history}", self.number))
    }

    /// A look at `at..at + wanted` found these bytes.
    pub fn check_bytes(
        &mut self,
        (at, wanted): (u64, usize),
        found: &[u8],
        observer: Owner,
        span: Span,
        deaths: &dyn Deaths,
    ) -> Result<(), String> {
        self.is_still = false;
        self.check_length(at, wanted, found.len(), span, deaths)?;
        let range = at..at + found.len() as u64;
        for block in blocks_of(&range) {
            let part = part(&range, block);
            let from = usize::try_from(block * BLOCK as u64 + part.start as u64 - at).unwrap_or(0);
            let bytes = &found[from..from + part.len()];
            self.check_block(block, part, bytes, observer, span, deaths)?;
        }
        Ok(())
    }

    fn check_length(
        &self,
        at: u64,
        wanted: usize,
        found: usize,
        span: Span,
        deaths: &dyn Deaths,
    ) -> Result<(), String> {
        let sizes: Vec<u64> =
            self.size.allowed(span.0, deaths).iter().map(|(_, size)| **size).collect();
        let short = |size: &u64| {
            usize::try_from(size.saturating_sub(at)).map_or(wanted, |left| left.min(wanted))
        };
        let lengths: Vec<usize> = sizes.iter().map(short).collect();
        let (low, high) = (lengths.iter().min(), lengths.iter().max());
        if low.is_some_and(|low| found >= *low) && high.is_some_and(|high| found <= *high) {
            return Ok(());
        }
        Err(format!(
            "a read of {wanted} bytes at {at} of file {} gave {found} bytes; allowed sizes: \
             {sizes:?}",
            self.number
        ))
    }

    fn check_block(
        &mut self,
        block: u64,
        part: Range<usize>,
        bytes: &[u8],
        observer: Owner,
        span: Span,
        deaths: &dyn Deaths,
    ) -> Result<(), String> {
        let number = self.number;
        let Some(register) = self.blocks.get_mut(&block) else {
            return zeroes_only(number, block, &part, bytes);
        };
        let allowed = register.allowed(span.0, deaths);
        let seen: Vec<ChangeNo> = allowed
            .iter()
            .filter(|(_, content)| content.matches((number, block), part.clone(), bytes))
            .map(|(change, _)| *change)
            .collect();
        let whole = part == (0..BLOCK);
        if !seen.is_empty() {
            if whole {
                register.observe(&seen, observer, span, deaths);
            }
            return Ok(());
        }
        let allowed: Vec<Vec<u8>> =
            allowed.into_iter().map(|(_, content)| content.bytes(number, block)).collect();
        let mut start = part.start;
        while start < part.end {
            let end = (start / SECTOR + 1) * SECTOR;
            let end = end.min(part.end);
            let sector = &bytes[start - part.start..end - part.start];
            if !allowed.iter().any(|content| content[start..end] == *sector) {
                let options: Vec<String> = allowed
                    .iter()
                    .map(|content| describe(&content[start / SECTOR * SECTOR..][..SECTOR]))
                    .collect();
                return Err(format!(
                    "file {number} block {block} bytes {start}..{end}: found {}; allowed: \
                     {options:?}",
                    describe(sector)
                ));
            }
            start = end;
        }
        // Sectors of several changes: torn by a death, or by a change that goes on now.
        if whole && register.is_quiet(span.0, deaths) {
            register.settle(Content::Mixed(Rc::from(bytes)), observer, (span.1, 0), deaths);
        }
        Ok(())
    }

    /// The whole file was looked at and checked: what lies behind its end is zero from now on,
    /// and so is the rest of its last block.
    pub fn settle_end(
        &mut self,
        (size, tail): (u64, &[u8]),
        observer: Owner,
        span: Span,
        deaths: &dyn Deaths,
    ) {
        self.is_still = false;
        let end = size / BLOCK as u64;
        for (&block, register) in self.blocks.range_mut(end..) {
            let is_sure = register.allowed(span.0, deaths).len() == 1;
            if is_sure || !register.is_quiet(span.0, deaths) {
                continue;
            }
            let content = if block == end && !tail.is_empty() {
                let mut bytes = tail.to_vec();
                bytes.resize(BLOCK, 0);
                Content::Mixed(Rc::from(bytes))
            } else {
                Content::Zero
            };
            register.settle(content, observer, (span.1, 0), deaths);
        }
        self.in_doubt = false;
    }

    /// Changes remembered for the block with the most of them.
    pub fn depth(&self) -> usize {
        self.blocks.values().map(Register::depth).max().unwrap_or(0)
    }
}

fn zeroes_only(file: u64, block: u64, part: &Range<usize>, bytes: &[u8]) -> Result<(), String> {
    match bytes.iter().position(|&byte| byte != 0) {
        None => Ok(()),
        Some(place) => {
            let at = (part.start + place) / SECTOR * SECTOR;
            let from = at.saturating_sub(part.start);
            let sector = &bytes[from..bytes.len().min(from + SECTOR)];
            Err(format!(
                "file {file} block {block} was never written and reads {} at byte {at}",
                describe(sector)
            ))
        }
    }
}
