//! One check from start to end.

use std::collections::BTreeSet;

use lunfs_format::{BlockNo, FRONTIER_LOCK, RENAME_LOCK};

use super::claim::{Basis, Claims};
use super::clusters::{Clusters, FIXED};
use super::media::Media;
use super::repair;
use super::report::{Options, Report};
use super::rules;
use super::settle::settle;
use super::slots::Slots;
use super::space;
use super::walk::Walk;
use crate::env::Disk;
use crate::error::Result;

/// Reads the whole volume and reports what is wrong. Writes nothing.
///
/// `Err` only when nothing can be said: there is no superblock, or the device fails.
pub async fn check(disk: &dyn Disk, options: &Options<'_>) -> Result<Report> {
    let mut claims = Claims::default();
    let media = Media::open(disk, &mut claims).await?;
    let before = Slots::read(&media).await?;
    let clusters = Clusters::read(&media, &mut claims).await?;
    let counted = space::count(&media, &clusters);
    let mut walk = Walk::new(&media, &clusters, claims);
    walk.run(|blocks| {
        if let Some(progress) = options.progress {
            progress(blocks.min(counted.allocated), counted.allocated);
        }
    })
    .await?;
    walk.judge_links();
    walk.judge_layers();
    // Read last: a life that has begun by now may have begun at any time before.
    let after = Slots::read(&media).await?;
    let is_at_rest = before.is_at_rest_until(&after);
    judge_holders(&mut walk, &after);
    let repairs = repair::plan(&media, &after, &walk, is_at_rest);
    let mut claims = std::mem::take(&mut walk.claims);
    after.judge(options.offline, &mut claims);
    if options.offline && !is_at_rest {
        let what = "the volume was in use while it was checked: nothing about it is proven";
        claims.error(None, Basis::Fixed, what);
    }
    let pending_journals = clusters.judge_journals(&media, &after, &mut claims);
    compare_space(&walk, is_at_rest, &mut claims);
    let mut report = Report {
        files: walk.tally.files,
        directories: walk.tally.directories,
        symlinks: walk.tally.symlinks,
        others: walk.tally.others,
        blocks_used: counted.used,
        blocks_free: counted.free + never_initialised(&media, &clusters),
        clusters: clusters.uses.len() as u64,
        orphans: walk.tally.orphans,
        live_slots: before
            .live()
            .chain(after.live())
            .collect::<BTreeSet<_>>()
            .into_iter()
            .collect(),
        pending_journals,
        repairs,
        ..Report::default()
    };
    report.findings = if is_at_rest {
        claims.0.into_iter().map(|claim| claim.finding).collect()
    } else {
        settle(&media, &before, &walk.locks, claims).await?
    };
    Ok(report)
}

/// Reports locks whose holders cannot be.
fn judge_holders(walk: &mut Walk<'_, '_>, after: &Slots) {
    let faults: Vec<(BlockNo, String)> = walk
        .locks
        .iter()
        .filter_map(|(at, lock)| Some((*at, rules::holder(lock.as_ref()?, after)?)))
        .collect();
    for (at, fault) in faults {
        let name = match at {
            FRONTIER_LOCK => "the system lock \"frontier\"".into(),
            RENAME_LOCK => "the system lock \"rename\"".into(),
            _ if walk.objects.contains_key(&at) => walk.path(at),
            _ => format!("the cluster at block {at}"),
        };
        walk.claims.error(at, Basis::Fixed, format!("{name}: {fault}"));
    }
}

fn compare_space(walk: &Walk<'_, '_>, is_at_rest: bool, claims: &mut Claims) {
    if !is_at_rest {
        claims.note(None, "hosts are live or were not recovered: space was not compared");
    } else if !walk.clusters.is_complete {
        claims.note(None, "the frontier is damaged: space was not compared");
    } else {
        space::compare(walk, claims);
    }
}

fn never_initialised(media: &Media<'_>, clusters: &Clusters) -> u64 {
    let geometry = &media.geometry;
    let untouched = geometry.cluster_count - clusters.uses.len() as u64;
    untouched * (u64::from(geometry.cluster_blocks) - FIXED)
}
