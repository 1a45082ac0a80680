//! Named kinds of workers: what one does most.
//!
//! A later kind of operation (snapshots, locks of ranges) gets a line in `Act` and weights here.

use super::{Next, Worker};

/// One thing that a worker can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Act {
    /// Something with bytes, as drawn there.
    Data,
    /// Something with names, as drawn there.
    Names,
    /// Something where other hosts are.
    Across,
    Create,
    Remove,
    Rename,
    Attributes,
    List,
    Dig,
    Reuse,
    Append,
    WriteSparse,
    Cut,
    Allocate,
    Fsync,
    ReadWhole,
    Leave,
    /// Something with the snapshots of a disk.
    Snapshots,
}

/// What a worker does most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Everything.
    Mixed,
    /// Names, in its private directory and in the one that all share.
    NameStorm,
    /// Large files with holes.
    BigFiles,
    /// Truncates, punches, grows.
    Cutter,
    /// Writes at the end.
    Appender,
    /// Renames across directories.
    Mover,
    /// Removes a name and makes it again at once.
    Reuser,
    /// Directories in directories.
    Digger,
    /// Extended attributes.
    Labeler,
    /// Snapshots and clones of disks, and writes to them.
    Guest,
    /// Works a little, then its host unmounts and mounts again.
    Visitor,
}

impl Kind {
    /// All of them.
    pub const ALL: [Kind; 11] = [
        Kind::Mixed,
        Kind::NameStorm,
        Kind::BigFiles,
        Kind::Cutter,
        Kind::Appender,
        Kind::Mover,
        Kind::Reuser,
        Kind::Digger,
        Kind::Labeler,
        Kind::Guest,
        Kind::Visitor,
    ];

    fn weights(self) -> &'static [(u64, Act)] {
        match self {
            Kind::Mixed => &[(45, Act::Data), (45, Act::Names), (10, Act::Snapshots)],
            Kind::NameStorm => {
                &[(40, Act::Create), (35, Act::Remove), (15, Act::Rename), (10, Act::List)]
            }
            Kind::BigFiles => &[
                (40, Act::WriteSparse),
                (20, Act::Data),
                (10, Act::Fsync),
                (5, Act::ReadWhole),
                (10, Act::Cut),
                (15, Act::Names),
            ],
            Kind::Cutter => {
                &[(40, Act::Cut), (30, Act::Allocate), (20, Act::Data), (10, Act::Names)]
            }
            Kind::Appender => {
                &[(60, Act::Append), (15, Act::Fsync), (10, Act::Data), (15, Act::Names)]
            }
            Kind::Mover => &[(70, Act::Rename), (15, Act::Create), (15, Act::Names)],
            Kind::Reuser => &[(70, Act::Reuse), (20, Act::Names), (10, Act::Data)],
            Kind::Digger => &[(60, Act::Dig), (20, Act::Rename), (20, Act::Names)],
            Kind::Labeler => &[(75, Act::Attributes), (25, Act::Names)],
            Kind::Guest => &[
                (40, Act::Snapshots),
                (30, Act::Data),
                (10, Act::Cut),
                (10, Act::Allocate),
                (10, Act::Names),
            ],
            Kind::Visitor => &[(3, Act::Leave), (57, Act::Data), (40, Act::Names)],
        }
    }
}

impl Worker {
    /// Draws what comes next and does it.
    pub(super) async fn act(&self) -> Next {
        if self.chance.percent(self.pace.across) {
            return self.perform(Act::Across).await;
        }
        let kind = self.world.kinds.borrow().get(self.index).copied().unwrap_or(Kind::Mixed);
        let weights = kind.weights();
        let mut draw = self.chance.below(weights.iter().map(|(weight, _)| weight).sum());
        for &(weight, act) in weights {
            if draw < weight {
                return self.perform(act).await;
            }
            draw -= weight;
        }
        Next::Go
    }

    async fn perform(&self, act: Act) -> Next {
        match act {
            Act::Data => self.change_data().await,
            Act::Names => self.change_names().await,
            Act::Across => self.look_across().await,
            Act::Create => self.create_if_room().await,
            Act::Remove => self.remove().await,
            Act::Rename => self.rename().await,
            Act::Attributes => self.attributes().await,
            Act::List => self.list_directory().await,
            Act::Dig => self.dig().await,
            Act::Reuse => self.reuse().await,
            Act::Append
            | Act::WriteSparse
            | Act::Cut
            | Act::Allocate
            | Act::Fsync
            | Act::ReadWhole => self.change_file(act).await,
            Act::Snapshots => self.use_snapshots().await,
            // Who only passes by recovers nobody: at the end somebody stays.
            Act::Leave if self.world.is_quiet.get() => Next::Go,
            Act::Leave => {
                self.program.leave.raise();
                Next::Go
            }
        }
    }

    /// Something with the bytes of one file, which is looked at first if it is in doubt.
    async fn change_file(&self, act: Act) -> Next {
        let Some((_, number, id)) = self.pick_file() else {
            return self.change_names().await;
        };
        if self.world.model.with_file(number, |file| file.in_doubt) {
            return self.read_whole(number, id).await;
        }
        match act {
            Act::Append => self.append(number, id).await,
            Act::WriteSparse => self.write_sparse(number, id).await,
            Act::Cut => self.truncate(number, id).await,
            Act::Allocate => self.allocate(number, id).await,
            Act::Fsync => self.fsync(number, id).await,
            _ => self.read_whole(number, id).await,
        }
    }
}
