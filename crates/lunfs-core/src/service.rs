//! What a mounted host does all the time: pulse, answer its doorbell, watch its neighbours, commit,
//! checkpoint, write back.

use std::rc::Rc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::{Either, select};
use futures_util::stream::FuturesUnordered;
use lunfs_format::{BellState, Doorbell, Pulse, RECORD, SlotNo};

use crate::env::{Compared, Instant, IoError};
use crate::error::{Kind, Result};
use crate::liveness::{Found, interval, lease_is_open, pulses_well};
use crate::settle::{Answered, answered};
use crate::slots::Seen;
use crate::types::StopReason;
use crate::volume::{Phase, Task, Volume};

/// Pulses under way at once.
const PULSES_MAX: usize = 4;
/// Pause between two looks at the own doorbell, when idle and after a ring.
const TICK: (Duration, Duration) = (Duration::from_millis(200), Duration::from_millis(2));
/// How long after a ring the doorbell is looked at often.
const LIVELY: Duration = Duration::from_millis(800);
/// How long finished changes that nobody waits for may stay out of the journal.
const COMMIT_AGE: Duration = Duration::from_millis(100);
/// How long pending changes of a file may stay out of a transaction.
const WRITE_BACK_AGE: Duration = Duration::from_millis(400);
/// A service that hangs for longer makes the host give itself up (H23).
const HANG_MAX: Duration = Duration::from_secs(30);
/// Cached blocks above which idle locks are released.
const CACHE_MAX: usize = 60_000;
/// Slots read by each, and by each rare, scan; and how many pulses lie between them.
const SCAN: (u32, u64) = (64, 5);
const SCAN_ALL: u64 = 60;

/// Services whose hanging stops the host.
#[derive(Clone, Copy)]
enum Service {
    Commit = 0,
    Doorbell = 1,
}

/// What became of one pulse.
struct Pulsed {
    image: Pulse,
    answer: std::result::Result<Compared, IoError>,
    /// What a look afterwards found, and which confirmed image was the last when it began.
    seen: Option<(Look, u64)>,
}

/// What a look at the own slot found.
enum Look {
    Whole(Box<Pulse>),
    /// Bytes that are no pulse of this slot.
    Damaged,
}

impl Volume {
    /// Serves until unmounted or stopped.
    pub async fn serve(self: &Rc<Self>) -> StopReason {
        let mut tasks: FuturesUnordered<Task> = FuturesUnordered::new();
        let Some(mut to_run) = self.to_run.borrow_mut().take() else {
            return StopReason::Stopped("served already".into());
        };
        let v = || self.clone();
        tasks.push(Box::pin(run(v(), async |v| {
            v.pulse_loop().await;
            Ok(())
        })));
        tasks.push(Box::pin(run(v(), async |v| v.doorbell_loop().await)));
        tasks.push(Box::pin(run(v(), async |v| v.neighbour_loop().await)));
        tasks.push(Box::pin(run(v(), async |v| v.commit_loop().await)));
        tasks.push(Box::pin(run(v(), async |v| v.checkpoint_loop().await)));
        tasks.push(Box::pin(run(v(), async |v| v.write_back_loop().await)));
        let mut stopped = Box::pin(self.io.until_stopped());
        loop {
            let ended = self.ending.notified();
            if self.phase.get() == Phase::Ended {
                return StopReason::Unmounted;
            }
            let work = select(tasks.next(), Box::pin(to_run.recv()));
            let over = select(&mut stopped, Box::pin(ended));
            match select(over, work).await {
                Either::Left((Either::Left((why, _)), _)) => {
                    if self.phase.get() == Phase::Ended {
                        return StopReason::Unmounted;
                    }
                    return StopReason::Stopped(why);
                }
                Either::Left((Either::Right(_), _)) => {}
                Either::Right((Either::Right((Some(task), _)), _)) => tasks.push(task),
                Either::Right(_) => {}
            }
        }
    }

    /// A host whose services hang must not look alive for ever: it gives itself up, so that others
    /// may take over (H23). Time for which it is suspended does not count.
    fn give_up_if_hung(&self) {
        let now = self.now();
        for busy in &self.busy_since {
            match busy.get() {
                Some(_) if !self.io.is_open() => busy.set(Some(now)),
                Some(since) if now.since(since) > HANG_MAX => {
                    self.io.stop("a service of this host has been hanging for 30 s");
                }
                Some(_) | None => {}
            }
        }
    }

    fn begin_work(&self, service: Service) {
        self.busy_since[service as usize].set(Some(self.now()));
    }

    fn end_work(&self, service: Service) {
        self.busy_since[service as usize].set(None);
        self.progress.set(self.progress.get() + 1);
    }

    /// Did our own pulses go well, so that what we saw of others counts (R3)?
    pub(crate) fn pulsed_well(&self) -> bool {
        pulses_well(self.now(), self.pulsed_at.get(), self.sb.timing)
    }

    /// Pulses until stopped or leaving.
    pub(crate) async fn pulse_loop(&self) {
        let mut flying = FuturesUnordered::new();
        let mut due = self.now();
        loop {
            if self.io.stopped().is_some() || self.phase.get() >= Phase::Leaving {
                return;
            }
            if self.now() >= due {
                due = self.now() + interval(self.sb.timing);
                self.give_up_if_hung();
                if flying.len() < PULSES_MAX {
                    flying.push(self.pulse());
                }
            }
            let sooner = self.pulse_now.notified();
            let wait = select(Box::pin(sooner), self.io.env.clock.sleep_until(due));
            if flying.is_empty() {
                if let Either::Left(_) = wait.await {
                    due = self.now();
                }
                continue;
            }
            match select(flying.next(), wait).await {
                Either::Left((Some(pulsed), _)) => self.pulse_answered(pulsed),
                Either::Left((None, _)) | Either::Right((Either::Right(_), _)) => {}
                Either::Right((Either::Left(_), _)) => due = self.now(),
            }
            self.notice_suspension();
        }
    }

    /// Submits one pulse and looks at the slot unless it is plainly good. It passes no gate: it
    /// is what opens it.
    async fn pulse(&self) -> Pulsed {
        let intent = self.intent.get();
        let progress = self.progress.get();
        let (expect, image) = {
            let mut live = self.live.borrow_mut();
            let live = live.as_mut().expect("pulses begin after the slot is taken");
            live.attempt(self.now(), self.nonce(), |pulse| {
                pulse.state = intent.state;
                pulse.journal = intent.journal;
                pulse.progress = progress;
            })
        };
        let offset = self.geometry().slot_offset(self.slot());
        let pad = |p: &Pulse| {
            let mut bytes = vec![0; self.sb.logical_block as usize];
            bytes[..RECORD].copy_from_slice(&p.encode(self.sb.volume)[..]);
            bytes
        };
        let disk = &self.io.env.disk;
        let answer = disk.compare_and_write(offset, pad(&expect), pad(&image), Instant::FAR).await;
        let is_told = matches!(answered(&answer), Answered::Done | Answered::Unflushed);
        let seen = if is_told {
            None
        } else {
            let confirmed = self.confirmed_counter();
            let bytes = disk.read(offset, self.sb.logical_block as usize).await;
            let look = |bytes: Vec<u8>| {
                let pulse = Pulse::decode(&bytes[..RECORD], self.sb.volume, self.slot());
                pulse.map_or(Look::Damaged, |pulse| Look::Whole(Box::new(pulse)))
            };
            bytes.ok().map(|bytes| (look(bytes), confirmed))
        };
        Pulsed { image, answer, seen }
    }

    fn confirmed_counter(&self) -> u64 {
        self.live.borrow().as_ref().map_or(0, |live| live.confirmed().counter)
    }

    fn pulse_answered(&self, pulsed: Pulsed) {
        if let (Answered::Unflushed, Err(e)) = (answered(&pulsed.answer), &pulsed.answer) {
            // That the pulse is in the slot does not help: what was answered before it may be lost.
            self.io.flush_failed(e);
            return;
        }
        let mut slot = self.live.borrow_mut();
        let Some(live) = slot.as_mut() else { return };
        if pulsed.answer == Ok(Compared::Written) {
            if let Some(until) = live.written(&pulsed.image) {
                drop(slot);
                self.good_pulse(until);
            }
            return;
        }
        if matches!(pulsed.answer, Err(IoError::Failed(_) | IoError::TooLate)) {
            live.never(&pulsed.image);
        }
        let Some((seen, confirmed)) = pulsed.seen else { return };
        let Look::Whole(seen) = seen else {
            let is_current = confirmed == live.confirmed().counter;
            drop(slot);
            if is_current {
                self.stop_if_damaged();
            }
            return;
        };
        let Some(found) = live.found_since(confirmed, &seen) else { return };
        drop(slot);
        match found {
            Found::Ours(until) => {
                self.io.count(|c| c.in_doubt_landed += 1);
                self.good_pulse(until);
            }
            Found::Unchanged => {}
            // What is there may be our own: who leaves judges it, with the slot freed or not.
            _ if self.phase.get() >= Phase::Leaving => {}
            Found::Foreign(why) => self.io.stop(why),
            Found::BackInTime => self.io.stop(
                "the device shows an older pulse of this host than one it had confirmed: it went \
                 back in time; nothing more is written, check the array before mounting again",
            ),
        }
    }

    /// Our pulse is damaged on the disk. Nothing of ours can replace it (R2), so the lease was the
    /// last one; a single bad reading is not believed while it lasts.
    fn stop_if_damaged(&self) {
        if !self.io.is_open() {
            self.io.stop(format!(
                "the pulse of this host, slot {}, is damaged on the disk: nothing more is written; \
                 unmount everywhere and run `lunfs check --repair`",
                self.slot()
            ));
        }
    }

    fn good_pulse(&self, until: Instant) {
        let now = self.now();
        self.io.count(|c| c.pulses += 1);
        if lease_is_open(now, until) {
            self.pulsed_at.set(now);
            if !self.was_open.replace(true) {
                self.io.count(|c| c.resumes += 1);
                tracing::warn!(event = "resumed", slot = self.slot().0, "the lease is open again");
            }
        }
        self.io.open_until(until);
        self.pulsed.notify_waiters();
    }

    fn notice_suspension(&self) {
        if !self.io.is_open() && self.io.stopped().is_none() && self.was_open.replace(false) {
            tracing::warn!(event = "suspended", slot = self.slot().0, "the lease is over");
        }
    }

    async fn doorbell_loop(&self) -> Result<()> {
        let mut rung = Instant(0);
        // The slot as a look found it in which nobody had rung.
        let mut quiet: Option<Vec<u8>> = None;
        loop {
            if self.busy_since[Service::Doorbell as usize].get().is_none() {
                self.begin_work(Service::Doorbell);
            }
            let whole = match self.region.read_whole(&self.io, self.slot()).await {
                Ok(whole) => whole,
                Err(e) if e.kind == Kind::Io => {
                    // Reading may work again; if it does not, the host gives itself up in time.
                    self.io.env.clock.sleep(TICK.0).await;
                    continue;
                }
                Err(e) => return Err(e),
            };
            let bells = self.rung_bells(&whole, quiet.as_deref());
            if bells.is_empty() {
                quiet = Some(whole);
            }
            for (entry, bell) in bells {
                let mut served = bell.clone();
                served.state = BellState::Served;
                served.nonce = self.nonce();
                match self.region.swap_bell(&self.io, self.slot(), entry, &bell, &served).await {
                    // A path that fails for a while: it is rung still, or will be again.
                    Err(e) if e.kind == Kind::Io => continue,
                    other => drop(other?),
                }
                rung = self.now();
                self.spawn_service(move |volume| async move {
                    match volume.serve_bell(bell).await {
                        Err(e) if e.kind != Kind::Stopped => {
                            tracing::warn!(event = "bell", error = %e, "a request was not served");
                        }
                        Ok(()) | Err(_) => {}
                    }
                });
            }
            self.end_work(Service::Doorbell);
            let lively = rung != Instant(0) && self.now().since(rung) < LIVELY;
            self.io.env.clock.sleep(if lively { TICK.1 } else { TICK.0 }).await;
        }
    }

    /// The entries of our slot, read whole, at which somebody waits for us. An idle host looks at
    /// the same bytes again and again: a doorbell as it was in `quiet` rings as little as then.
    fn rung_bells(&self, whole: &[u8], quiet: Option<&[u8]>) -> Vec<(u32, Doorbell)> {
        let region = &self.region;
        let doorbell = region.doorbell(whole);
        if quiet.is_some_and(|quiet| region.doorbell(quiet) == doorbell) {
            return Vec::new();
        }
        let mut bells = region.bells(self.slot(), doorbell);
        let mine = self.me().incarnation;
        bells.retain(|(_, bell)| bell.state == BellState::Rung && bell.target_incarnation == mine);
        bells
    }

    async fn neighbour_loop(&self) -> Result<()> {
        let mut round = 0u64;
        loop {
            self.sleep_about(interval(self.sb.timing)).await;
            self.io.pass().await?;
            round += 1;
            let (first, count) = if round.is_multiple_of(SCAN_ALL) {
                (0, self.sb.slot_count)
            } else if round.is_multiple_of(SCAN.1) {
                (0, SCAN.0)
            } else {
                (self.slot().0.saturating_sub(1), 3)
            };
            match self.look_around(SlotNo(first), count).await {
                Err(e) if e.kind == Kind::Io => {}
                other => other?,
            }
            if round.is_multiple_of(SCAN_ALL) {
                self.spawn(|volume| async move {
                    if let Err(e) = volume.adopt_left().await {
                        tracing::warn!(event = "adopt", error = %e, "orphans stay listed");
                    }
                });
            }
            if round.is_multiple_of(SCAN.1) && self.has_orphans() && self.reaping.try_lock().is_ok()
            {
                self.spawn(|volume| async move {
                    if let Err(e) = volume.reap_own().await {
                        tracing::warn!(event = "reap", error = %e, "orphans stay for now");
                    }
                });
            }
        }
    }

    pub(crate) async fn look_around(&self, first: SlotNo, count: u32) -> Result<()> {
        let submitted = self.now();
        let seen = if count > SCAN.0 {
            self.region.scan(&self.io).await?
        } else {
            self.region.read_range(&self.io, first, count).await?
        };
        let mut suspects = Vec::new();
        for Seen { slot, pulse } in &seen {
            let Some(pulse) = pulse else {
                self.note_damaged(*slot);
                continue;
            };
            self.learn(pulse, submitted);
            if pulse.state != lunfs_format::PulseState::Free && pulse.slot != self.slot() {
                suspects.push(pulse.slot);
            }
        }
        for slot in suspects {
            match self.look_again(slot).await {
                Err(e) if e.kind == Kind::Stopped => return Err(e),
                Ok(()) | Err(_) => {}
            }
        }
        Ok(())
    }

    async fn commit_loop(&self) -> Result<()> {
        loop {
            let journal = self.journal();
            if !journal.has_running() {
                journal.worked().await;
                continue;
            }
            if !journal.is_wanted() {
                let wanted = async {
                    while !journal.is_wanted() {
                        journal.worked().await;
                    }
                };
                select(std::pin::pin!(wanted), self.io.env.clock.sleep(COMMIT_AGE)).await;
            }
            self.begin_work(Service::Commit);
            let freed = journal.write_record(&self.io, &self.cache).await?;
            self.end_work(Service::Commit);
            let mut alloc = self.alloc.borrow_mut();
            for run in freed.into_iter().flatten() {
                alloc.give_back_freed(run);
            }
        }
    }

    async fn checkpoint_loop(&self) -> Result<()> {
        let mut idle = 0u32;
        loop {
            self.io.env.clock.sleep(Duration::from_millis(20)).await;
            idle += 1;
            if self.journal().is_filling() || idle > 250 {
                self.journal().checkpoint(&self.io).await?;
                idle = 0;
            }
        }
    }

    async fn write_back_loop(&self) -> Result<()> {
        loop {
            self.dirtied.notified().await;
            self.io.env.clock.sleep(WRITE_BACK_AGE).await;
            let alone = self.writing_back.lock().await;
            let written = self.write_back_with_space().await;
            match &written {
                Err(e) if e.kind == Kind::Stopped => return written,
                Err(e) => {
                    tracing::warn!(event = "write_back", error = %e, "changes stay pending");
                }
                Ok(()) => {}
            }
            self.trim_inodes();
            if self.cache.borrow().len() > CACHE_MAX {
                match self.release_idle(2048).await {
                    Err(e) if e.kind == Kind::Stopped => return Err(e),
                    // A file that cannot be written back keeps its lock.
                    Err(e) => tracing::warn!(event = "release", error = %e, "locks are kept"),
                    Ok(()) => {}
                }
            }
            drop(alone);
            if written.is_err() {
                self.note_dirty();
                self.io.env.clock.sleep(WRITE_BACK_AGE * 4).await;
            }
        }
    }
}

async fn run(volume: Rc<Volume>, service: impl AsyncFn(&Volume) -> Result<()>) {
    if let Err(e) = service(&volume).await
        && volume.io.stopped().is_none()
        && volume.phase.get() < Phase::Ended
    {
        // A service that cannot go on must not leave a host that looks alive (H23).
        volume.io.stop(format!("a service ended: {e}"));
    }
}
