//! Findings as they are collected, each with what must not have changed for it to hold.

use lunfs_format::BlockNo;

use super::report::{Finding, Severity};

/// What an error rests on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Basis {
    /// What nobody changes, or what was judged so that changes do not matter.
    Fixed,
    /// What these locks cover.
    Locks(Vec<BlockNo>),
    /// The whole volume: it can only be said when nobody uses it.
    Volume,
}

/// A finding that may still turn out to be a change under way.
#[derive(Debug)]
pub(super) struct Claim {
    pub finding: Finding,
    pub basis: Basis,
}

/// All claims so far.
#[derive(Debug, Default)]
pub(super) struct Claims(pub Vec<Claim>);

impl Claims {
    /// Something is damaged, if what it rests on did not change meanwhile.
    pub fn error(&mut self, at: impl Into<Option<BlockNo>>, basis: Basis, what: impl Into<String>) {
        let finding = Finding { at: at.into(), what: what.into(), severity: Severity::Error };
        self.0.push(Claim { finding, basis });
    }

    /// Something is worth knowing.
    pub fn note(&mut self, at: impl Into<Option<BlockNo>>, what: impl Into<String>) {
        let finding = Finding { at: at.into(), what: what.into(), severity: Severity::Note };
        self.0.push(Claim { finding, basis: Basis::Fixed });
    }
}
