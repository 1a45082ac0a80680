//! The walker: reads a whole volume, changes nothing, and says what is wrong. What can be mended
//! without guessing is mended in a second step, if that is asked for.
//!
//! It shares no code with the rest of the core, or it would share its mistakes: what it knows comes
//! from docs/format.md and the decoders of `lunfs-format`.
//!
//! ```text
//!  superblocks -> slots -> clusters, journals -> walk from the root and the orphan directories
//!                                                  |  objects, names, references to blocks
//!                                                  v
//!              slots again -> names and links, space (R12) -> settle -> Report
//! ```
//!
//! | module | what it owns |
//! |---|---|
//! | `report` | options, findings, the report |
//! | `claim` | findings that may still turn out to be changes under way |
//! | `media` | reading, the superblock |
//! | `slots`, `clusters` | the heartbeat region; system locks, clusters, journals |
//! | `walk`, `examine`, `tree` | collecting: objects, their trees, references |
//! | `content`, `rules` | judging what a block or tree says: pure |
//! | `space` | every block is referenced exactly once, and the bitmaps say so (R12) |
//! | `settle` | what holds on a volume in use |
//! | `run` | one check from start to end |
//! | `repair` | what can be mended, and mending it |
//!
//! - Nothing read is believed: any bytes end in a report. Each object is walked once, and each node
//!   once for each tree that leads to it and whose object owns it; nothing recurses. So the walk
//!   ends, in memory proportional to metadata.
//! - While hosts are live, an error stays one only if every lock that it rests on was free or stale
//!   and unchanged from the first read to a second one at the end: then nobody changed what it
//!   covers.

mod claim;
mod clusters;
mod content;
mod examine;
mod layers;
mod media;
mod repair;
mod report;
mod rules;
mod run;
mod settle;
mod slots;
mod space;
#[cfg(test)]
mod tests;
mod tree;
mod walk;

pub use repair::{Repair, repair};
pub use report::{Finding, Options, Report, Severity};
pub use run::check;
