//! The hosts of one volume under torture, their writers, and what is done to them.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

use super::super::life::Life;
use super::super::wait_until;
use super::super::world::{Host, World};
use super::super::writer::Chance;
use super::deed::{self, Deed};
use super::tally::Tally;
use super::watch::Watch;

/// Names that hosts take; more than hosts, so that some come back under another one.
const NAMES: &[&str] = &["h0", "h1", "h2", "h3", "h4", "h5"];
/// Lives whose files stay on the volume, to be looked at again in later rounds.
const LIVES_MAX: usize = 12;
/// How long work may rest after a deed: a silent host is taken over after 12 s, twice in a row
/// if its claimer dies.
const PROGRESS_MAX: Duration = Duration::from_secs(60);
/// How long a process may take to end once it has nothing more to do.
const END_MAX: Duration = Duration::from_secs(30);
/// How long a name stays taken after the death of its host.
const NAME_MAX: Duration = Duration::from_secs(30);
/// A host that was stopped for so long only is in its place afterwards: less than a lease.
const SHORT_MS: (u64, u64) = (300, 2200);
/// Longer than the silence after which others take over.
const LONG_MS: (u64, u64) = (13_000, 18_000);

/// A mounted host with the writers that work on it.
struct Member {
    host: Host,
    lives: Vec<Life>,
    /// It was stopped for so long that it may have been replaced.
    may_be_dead: bool,
}

/// All of it.
pub struct Scene {
    world: World,
    chance: Chance,
    members: Vec<Member>,
    began: Instant,
    /// Writers that have ended, whose files are on the volume.
    past: Vec<Life>,
    lives: u32,
    /// What was met so far.
    pub tally: Tally,
}

impl Scene {
    /// Nothing is mounted yet.
    pub fn new(world: World, seed: u64) -> Scene {
        let tally = Tally::default();
        let chance = Chance(seed | 1);
        let (members, past) = (Vec::new(), Vec::new());
        Scene { world, chance, members, began: Instant::now(), past, lives: 0, tally }
    }

    /// Ends the scene well: nothing is kept.
    pub fn done(self) -> Tally {
        self.world.done();
        self.tally
    }

    /// One round with `hosts` hosts: deeds until it is over or `until` has passed, then a look at
    /// everything.
    pub fn round(&mut self, hosts: usize, until: Instant) -> Result<()> {
        self.fill(hosts)?;
        for _ in 0..4 + self.chance.below(6) {
            self.let_work()?;
            let deed = deed::choose(&mut self.chance, self.members.len());
            self.act(deed).with_context(|| format!("{deed:?}"))?;
            self.tally.did(deed);
            self.look_after().with_context(|| format!("after {deed:?}"))?;
            if self.members.is_empty() || self.chance.below(4) > 0 {
                self.fill(hosts)?;
            }
            if Instant::now() > until {
                break;
            }
        }
        self.settle().context("at the end of the round")?;
        self.tally.rounds += 1;
        Ok(())
    }

    /// Mounts hosts until there are so many.
    fn fill(&mut self, hosts: usize) -> Result<()> {
        while self.members.len() < hosts {
            let host = self.mount()?;
            let mut member = Member { host, lives: Vec::new(), may_be_dead: false };
            for is_alone in [true, false] {
                self.lives += 1;
                let start = if is_alone { Life::alone } else { Life::among_others };
                let seed = self.chance.below(u64::MAX);
                member.lives.push(start(&self.world, &member.host, self.lives, seed)?);
            }
            self.members.push(member);
        }
        Ok(())
    }

    /// Under a name that none of ours has. It may still be that of a host whose death nobody has
    /// noticed, or that has just begun to leave: then again.
    fn mount(&mut self) -> Result<Host> {
        let name = self.free_name();
        let began = Instant::now();
        loop {
            match self.world.mount(name) {
                Err(e) if e.to_string().contains("has this volume mounted") => {
                    if began.elapsed() > NAME_MAX {
                        return Err(e.context("the name of a dead host stays taken"));
                    }
                    std::thread::sleep(Duration::from_millis(200));
                }
                host => return host,
            }
        }
    }

    fn free_name(&mut self) -> &'static str {
        let is_free = |name: &&&str| self.members.iter().all(|member| member.host.name != **name);
        let free: Vec<&&str> = NAMES.iter().filter(is_free).collect();
        free[index(&mut self.chance, free.len())]
    }

    /// Waits until every writer has made something durable, then a random moment more.
    fn let_work(&mut self) -> Result<()> {
        let mut before = Vec::new();
        for life in self.members.iter().flat_map(|member| &member.lives) {
            before.push(life.count_done()?);
        }
        let members = &mut self.members;
        wait_until("durable work of every writer", PROGRESS_MAX, || {
            let mut is_done = true;
            let lives = members.iter_mut().flat_map(|member| &mut member.lives);
            for (life, before) in lives.zip(&before) {
                if life.count_done()? <= *before {
                    is_done = false;
                    if let Some(said) = life.last_words()? {
                        bail!("life{} ended: {said}", life.number);
                    }
                }
            }
            Ok(is_done)
        })?;
        std::thread::sleep(Duration::from_millis(self.chance.below(700)));
        Ok(())
    }

    fn act(&mut self, deed: Deed) -> Result<()> {
        let names: Vec<&str> = self.members.iter().map(|m| m.host.name.as_str()).collect();
        let seconds = self.began.elapsed().as_secs();
        println!("  {seconds:4} s: {deed:?}, mounted: {}", names.join(" "));
        match deed {
            Deed::KillGroup => self.kill(1),
            Deed::KillSome => {
                let count = 2 + index(&mut self.chance, self.members.len() - 2);
                self.kill(count)
            }
            Deed::KillAll => self.kill(self.members.len()),
            Deed::KillDaemon => self.kill_daemon(),
            Deed::KillParent => self.kill_parent(),
            Deed::KillRecoverer => self.kill_recoverer(),
            Deed::KillJoining => self.kill_joining(),
            Deed::StopShortly => self.stop(SHORT_MS).map(drop),
            Deed::StopLong => self.stop_long(),
            Deed::Unmount => self.unmount(),
            Deed::UnmountByForce => self.unmount_by_force(),
            Deed::Terminate => self.terminate(),
        }
    }

    fn take(&mut self) -> Member {
        let index = index(&mut self.chance, self.members.len());
        self.members.remove(index)
    }

    /// Kills `count` hosts at once, every process of each.
    fn kill(&mut self, count: usize) -> Result<()> {
        let victims: Vec<Member> = (0..count).map(|_| self.take()).collect();
        victims.iter().for_each(|victim| victim.host.signal_group(Signal::KILL));
        self.tally.kills += count as u64;
        victims.into_iter().try_for_each(|victim| self.bury(victim))
    }

    fn kill_daemon(&mut self) -> Result<()> {
        let victim = self.take();
        kill_process(victim.host.daemon().context("it has a daemon")?, Signal::KILL)?;
        self.tally.kills += 1;
        self.bury(victim)
    }

    /// The daemon goes on; whatever ends it later, nobody speaks for it.
    fn kill_parent(&mut self) -> Result<()> {
        let index = index(&mut self.chance, self.members.len());
        let host = &self.members[index].host;
        if host.daemon().is_some() && host.running().contains(&number(host.parent())) {
            kill_process(host.parent(), Signal::KILL)?;
        }
        Ok(())
    }

    /// Kills a host, and the one that claims its slot as soon as its log says so.
    fn kill_recoverer(&mut self) -> Result<()> {
        let victim = self.take();
        let hosts: Vec<&Host> = self.members.iter().map(|member| &member.host).collect();
        let mut watch = Watch::new(&hosts)?;
        victim.host.signal_group(Signal::KILL);
        self.tally.kills += 1;
        watch.want(&hosts)?;
        let Some(claimer) = watch.first_claim()? else {
            // Nobody wanted what it had locked.
            return self.bury(victim);
        };
        let claimer = self.members.remove(claimer);
        std::thread::sleep(Duration::from_micros(self.chance.below(20_000)));
        claimer.host.signal_group(Signal::KILL);
        self.tally.kills += 1;
        if !watch.has_recovered(&claimer.host)? {
            self.tally.killed_recovering += 1;
        }
        self.bury(victim)?;
        self.bury(claimer)
    }

    fn kill_joining(&mut self) -> Result<()> {
        let name = self.free_name();
        let mut host = self.world.begin_mount(name)?;
        std::thread::sleep(Duration::from_millis(self.chance.below(250)));
        host.kill_group();
        self.tally.kills += 1;
        self.clear(&host)
    }

    /// Stops a host for a time between two, in milliseconds, and returns which.
    fn stop(&mut self, (least, most): (u64, u64)) -> Result<usize> {
        let index = index(&mut self.chance, self.members.len());
        let stopped = Duration::from_millis(least + self.chance.below(most - least));
        self.members[index].host.signal_group(Signal::STOP);
        std::thread::sleep(stopped);
        self.members[index].host.signal_group(Signal::CONT);
        Ok(index)
    }

    /// The others replace it, if they want what it has locked. Otherwise it goes on, or finds
    /// soon that it must not.
    fn stop_long(&mut self) -> Result<()> {
        let index = self.stop(LONG_MS)?;
        self.members[index].may_be_dead = true;
        Ok(())
    }

    fn unmount(&mut self) -> Result<()> {
        let mut member = self.take();
        self.end_lives(&mut member)?;
        self.run_unmount(&member.host, &["unmount"])?;
        self.must_end(&mut member.host)
    }

    fn unmount_by_force(&mut self) -> Result<()> {
        let mut member = self.take();
        self.run_unmount(&member.host, &["unmount", "--force", "--deadline", "200ms"])?;
        self.must_end(&mut member.host)?;
        self.end_lives(&mut member)
    }

    fn terminate(&mut self) -> Result<()> {
        let mut member = self.take();
        kill_process(member.host.daemon().context("it has a daemon")?, Signal::TERM)?;
        self.must_end(&mut member.host)?;
        self.end_lives(&mut member)
    }

    fn run_unmount(&self, host: &Host, arguments: &[&str]) -> Result<()> {
        let mut unmount = self.world.lunfs([]);
        crate::shell::output(unmount.args(arguments).arg(&host.dir)).map(drop)
    }

    /// All processes of a host that has nothing to do any more.
    fn must_end(&self, host: &mut Host) -> Result<()> {
        wait_until(&format!("the end of {}", host.name), END_MAX, || {
            host.reap();
            Ok(host.running().is_empty())
        })
        .map(drop)
    }

    fn end_lives(&mut self, member: &mut Member) -> Result<()> {
        for mut life in member.lives.drain(..) {
            life.end()?;
            self.past.push(life);
        }
        Ok(())
    }

    /// The host is dead, or dies by itself: its writers end, and what they were told must be seen
    /// by a survivor.
    fn bury(&mut self, mut victim: Member) -> Result<()> {
        self.must_end(&mut victim.host)?;
        self.clear(&victim.host)?;
        let count = victim.lives.len();
        self.end_lives(&mut victim)?;
        if self.members.is_empty() {
            return Ok(());
        }
        let survivor = index(&mut self.chance, self.members.len());
        for life in self.past.iter().rev().take(count) {
            self.tally.verified.add(life.verify(&self.members[survivor].host)?);
        }
        Ok(())
    }

    fn clear(&self, host: &Host) -> Result<()> {
        if host.is_mounted() { self.world.clear_mount(host) } else { Ok(()) }
    }

    /// Nothing may have ended but what was stopped for long.
    fn look_after(&mut self) -> Result<()> {
        for index in (0..self.members.len()).rev() {
            if self.members[index].may_be_dead && self.was_replaced(index)? {
                self.tally.replaced += 1;
                let member = self.members.remove(index);
                self.bury(member)?;
            }
        }
        for member in &mut self.members {
            member.may_be_dead = false;
            for life in &mut member.lives {
                if let Some(said) = life.last_words()? {
                    bail!("life{} on {} ended: {said}", life.number, member.host.name);
                }
            }
        }
        Ok(())
    }

    /// Waits until a host that was stopped for long either ends or works again.
    fn was_replaced(&mut self, index: usize) -> Result<bool> {
        let member = &mut self.members[index];
        let mut before = 0;
        for life in &member.lives {
            before += life.count_done()?;
        }
        let mut is_over = false;
        wait_until("a stopped host works or ends", PROGRESS_MAX, || {
            member.host.reap();
            is_over = member.host.daemon().is_none();
            let mut now = 0;
            for life in &member.lives {
                now += life.count_done()?;
            }
            // The ledger lies outside: one line may have been on its way.
            Ok(is_over || now > before + 2 * member.lives.len())
        })?;
        self.tally.went_on += u64::from(!is_over);
        Ok(is_over)
    }

    /// Ends all writers; every file that any of them was told is durable must be seen by two
    /// hosts, one of which may be new. Then all unmount, and the volume must be sound.
    fn settle(&mut self) -> Result<()> {
        println!("  {:4} s: all writers end", self.began.elapsed().as_secs());
        for index in 0..self.members.len() {
            let lives = std::mem::take(&mut self.members[index].lives);
            for mut life in lives {
                life.end()?;
                self.past.push(life);
            }
        }
        if self.chance.below(3) == 0 {
            self.kill(self.members.len())?;
        }
        while self.members.len() < 2 {
            let host = self.mount()?;
            self.members.push(Member { host, lives: Vec::new(), may_be_dead: false });
        }
        for member in self.members.iter().rev().take(2) {
            for life in &self.past {
                self.tally.verified.add(life.verify(&member.host)?);
            }
        }
        let too_many = self.past.len().saturating_sub(LIVES_MAX);
        for life in self.past.drain(..too_many) {
            life.remove(&self.members[0].host)?;
        }
        println!("  {:4} s: all hosts unmount", self.began.elapsed().as_secs());
        for mut member in std::mem::take(&mut self.members) {
            self.run_unmount(&member.host, &["unmount"])?;
            self.must_end(&mut member.host)?;
        }

        self.world.check()?;
        let logs = self.world.path("logs");
        fs::metadata(&logs).context("the logs")?;
        self.tally.read_logs(&logs)
    }
}

fn index(chance: &mut Chance, count: usize) -> usize {
    usize::try_from(chance.below(count as u64)).unwrap_or_default()
}

fn number(pid: Pid) -> u32 {
    u32::try_from(pid.as_raw_nonzero().get()).unwrap_or_default()
}
