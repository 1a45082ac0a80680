//! How to check, and what a check says.

use std::fmt;

use lunfs_format::{BlockNo, SlotNo};

use super::repair::Repair;

/// How to check.
#[derive(Clone, Copy, Default)]
pub struct Options<'a> {
    /// Nobody may have the volume mounted: a slot that is not free is an error.
    pub offline: bool,
    /// Called now and then with the blocks accounted for so far and the blocks in use.
    pub progress: Option<&'a dyn Fn(u64, u64)>,
}

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Worth knowing; or it may only look wrong because hosts use the volume.
    Note,
    /// The volume is damaged.
    Error,
}

/// Something found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The block that it is about.
    pub at: Option<BlockNo>,
    /// What is wrong, where, and what it means.
    pub what: String,
    /// How bad it is.
    pub severity: Severity,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.severity {
            Severity::Note => "note: ",
            Severity::Error => "error: ",
        })?;
        if let Some(at) = self.at {
            write!(f, "block {at}: ")?;
        }
        f.write_str(&self.what)
    }
}

/// What a volume was found to be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Everything found, in the order of the walk.
    pub findings: Vec<Finding>,
    /// Files with names.
    pub files: u64,
    /// Directories, the root included.
    pub directories: u64,
    /// Symbolic links.
    pub symlinks: u64,
    /// Fifos, sockets and device nodes.
    pub others: u64,
    /// Blocks in use in initialised clusters, with their locks, headers and journals.
    pub blocks_used: u64,
    /// Blocks free, those of clusters never initialised included.
    pub blocks_free: u64,
    /// Clusters initialised.
    pub clusters: u64,
    /// Files and runs of blocks listed as orphans.
    pub orphans: u64,
    /// Slots that are not free.
    pub live_slots: Vec<SlotNo>,
    /// Slots whose journals may hold records that wait for replay.
    pub pending_journals: Vec<SlotNo>,
    /// What a repair would mend.
    pub repairs: Vec<Repair>,
}

impl Report {
    /// Is nothing damaged?
    pub fn is_clean(&self) -> bool {
        self.errors().next().is_none()
    }

    /// The findings that mean damage.
    pub fn errors(&self) -> impl Iterator<Item = &Finding> {
        self.findings.iter().filter(|finding| finding.severity == Severity::Error)
    }
}
