//! One case: some operations on the prepared volume, recorded from the first request to the end of
//! the unmount.

use std::rc::Rc;

use futures_util::future::join;
use lunfs_core::StopReason;
use lunfs_core::env::Env;
use lunfs_doors::{Time, mount, sleep};

use super::act::Host;
use super::doors::doors;
use super::fixture::{Fixture, Kind};
use super::image::Image;
use super::operation::Operation;
use super::recorder::{Event, Recorder};
use super::step::Step;
use super::survivor::guarded;
use super::verdict::History;

/// Until whatever is pending has been written back and committed.
const SETTLES: u64 = 900;

/// A remark in the record of a case.
#[derive(Clone, Copy, Debug)]
pub enum Mark {
    /// A step is asked for.
    Begun(usize),
    /// A step was answered.
    Done(usize),
}

/// When what is done is made durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Syncs {
    /// By the volume itself, in its own time.
    Never,
    /// After each operation.
    Each,
}

/// Some operations.
#[derive(Clone, Debug)]
pub struct Case {
    /// Their names.
    pub name: String,
    /// What is done.
    pub steps: Vec<Step>,
}

impl Case {
    /// These operations, one after the other, and then the unmount.
    pub fn of(operations: &[&Operation], syncs: Syncs) -> Case {
        let mut steps = Vec::new();
        for operation in operations {
            steps.extend(operation.steps.iter().cloned());
            if syncs == Syncs::Each {
                steps.push(operation.sync.clone());
            }
        }
        if syncs == Syncs::Never {
            steps.push(Step::Idle(SETTLES));
        }
        steps.push(Step::Unmount);
        let names: Vec<&str> = operations.iter().map(|operation| operation.name).collect();
        let synced = if syncs == Syncs::Each { ", fsync" } else { "" };
        Case { name: format!("{}{synced}", names.join(" + ")), steps }
    }
}

/// What a case did to the disk.
pub struct Recording {
    /// The disk before.
    pub start: Image,
    /// What happened.
    pub events: Vec<Event<Mark>>,
}

/// Runs a case without any crash.
pub fn record(fixture: &Fixture, case: &Case, history: &History) -> Result<Recording, String> {
    let time = Time::begin();
    let disk = Rc::new(Recorder::slow(fixture.image.clone(), fixture.place.size, &time));
    let env = doors(disk.clone(), &time, 4);
    let start = guarded(&time, run(&env, &disk, fixture.kind, case, history))?;
    Ok(Recording { start, events: disk.events() })
}

async fn run(
    env: &Env,
    disk: &Recorder<Mark>,
    kind: Kind,
    case: &Case,
    history: &History,
) -> Result<Image, String> {
    let has_peer = case.steps.iter().any(Step::is_of_a_peer);
    let join_as = async |name| mount(env, name).await.map_err(|e| format!("mount: {e}"));
    let mut start = (kind == Kind::New).then(|| disk.record());
    let first = Host::new(join_as("first").await?);
    let peer = if has_peer { Some(Host::new(join_as("peer").await?)) } else { None };
    let serve_peer = async {
        match &peer {
            Some(peer) => peer.volume.serve().await,
            None => StopReason::Unmounted,
        }
    };
    let story = async {
        sleep(env, 100).await;
        let start = start.take().unwrap_or_else(|| disk.record());
        for (index, step) in case.steps.iter().enumerate() {
            disk.mark(Mark::Begun(index));
            take(env, &first, peer.as_ref(), step, history.succeeds(index)).await?;
            disk.mark(Mark::Done(index));
        }
        Ok(start)
    };
    let ((one, other), start) = join(join(first.volume.serve(), serve_peer), story).await;
    match (one, other) {
        (StopReason::Unmounted, StopReason::Unmounted) => start,
        stopped => Err(format!("a host stopped: {stopped:?}")),
    }
}

async fn take(
    env: &Env,
    first: &Host,
    peer: Option<&Host>,
    step: &Step,
    succeeds: bool,
) -> Result<(), String> {
    let done = match (step, peer) {
        (Step::Peer(_) | Step::PeerLooks, Some(peer)) => peer.act(env, step).await,
        (Step::Unmount, Some(peer)) => {
            let left = peer.act(env, step).await;
            first.act(env, step).await.and(left)
        }
        _ => first.act(env, step).await,
    };
    match (done, succeeds) {
        (Ok(()), true) | (Err(_), false) => Ok(()),
        (Ok(()), false) => Err(format!("{step:?} succeeds, and must not")),
        (Err(error), true) => Err(format!("{step:?} fails: {error}")),
    }
}
