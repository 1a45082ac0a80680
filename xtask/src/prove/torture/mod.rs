//! `torture`: real processes on a real disk, and everything that can happen to them.
//!
//! Two to four hosts of one volume, each with two writers: one in a directory of its own, one in
//! directories that all share. A round does something to them again and again (deed.rs): kills,
//! stops, kills of a host that recovers another one, unmounts and new mounts, one or several at
//! a time. After each deed the writers of hosts that were left alone must go on. At its end every
//! file that any writer was told is durable, in this round or an earlier one, must be whole on two
//! hosts; all unmount, `lunfs check` is clean, and no host has logged damage.
//!
//! What is believed to be durable is logged outside of the volume (ledger.rs). The seed repeats
//! the choices, not the moments.

mod deed;
mod scene;
mod tally;
mod watch;

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Args;

use super::world::World;
use super::writer::{Chance, seed_of_now};
use super::{Extent, Figure, MOUNTS, Need, judged, missing};
use crate::Ending;
use scene::Scene;
use tally::Tally;

const MINUTES: u32 = 5;
const SLICE: Duration = Duration::from_secs(60);
const LOOP_BYTES: u64 = 2 << 30;

/// How long, with how many hosts, on what.
#[derive(Args)]
pub struct Options {
    /// Go on for so many minutes; the round in progress ends
    #[arg(long, default_value_t = MINUTES)]
    minutes: u32,
    /// Hosts of the volume [default: 2 to 4, drawn for each round]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=4))]
    hosts: Option<u32>,
    /// Start of the random choices [default: drawn from the clock]
    #[arg(long)]
    seed: Option<u64>,
    /// On a loop device instead of an image file
    #[arg(long = "loop")]
    on_loop: bool,
    /// End with a line of JSON
    #[arg(long)]
    json: bool,
}

/// What one torture is.
struct Plan {
    name: &'static str,
    length: Duration,
    hosts: Option<u32>,
    seed: u64,
    on_loop: bool,
}

/// `cargo xtask torture`.
pub fn task(options: &Options) -> Result<Ending> {
    let name = if options.on_loop { "torture-loop" } else { "torture" };
    let needs: &[Need] =
        if options.on_loop { &[Need::Root, Need::Fuse, Need::Loop] } else { MOUNTS };
    if let Some(why) = missing(needs) {
        println!("{name}: SKIPPED: {why}");
        return Ok(Ending::CouldNotRun);
    }
    let plan = Plan {
        name,
        length: Duration::from_secs(60) * options.minutes,
        hosts: options.hosts,
        seed: options.seed.unwrap_or_else(seed_of_now),
        on_loop: options.on_loop,
    };
    println!("{name}: seed {}", plan.seed);
    let started = Instant::now();
    let mut tally = Tally::default();
    let figure = plan.run(&mut tally);
    let findings = u64::from(figure.is_err());
    let ending = judged(name, started, figure);
    if options.json {
        println!("{}", tally.json(findings));
    }
    Ok(ending)
}

/// Scenario `torture`.
pub fn on_image(extent: &Extent) -> Result<Figure> {
    Plan::of(extent, "torture", false).run(&mut Tally::default())
}

/// Scenario `torture-loop`.
pub fn on_loop(extent: &Extent) -> Result<Figure> {
    Plan::of(extent, "torture-loop", true).run(&mut Tally::default())
}

impl Plan {
    fn of(extent: &Extent, name: &'static str, on_loop: bool) -> Plan {
        let minutes = extent.rounds.unwrap_or(MINUTES);
        let length = if extent.is_slice { SLICE } else { Duration::from_secs(60) * minutes };
        Plan { name, length, hosts: None, seed: extent.seed, on_loop }
    }

    /// Runs it; `tally` has what was met also when it fails.
    fn run(&self, tally: &mut Tally) -> Result<Figure> {
        let mut world = World::new(self.name)?;
        if self.on_loop {
            world.format_loop(LOOP_BYTES)?;
        } else {
            world.format_image("2G")?;
        }
        let mut chance = Chance(self.seed | 1);
        let mut scene = Scene::new(world, chance.below(u64::MAX));
        let until = Instant::now() + self.length;
        let mut round = 0;
        let mut outcome = Ok(());
        while outcome.is_ok() && (round == 0 || Instant::now() < until) {
            round += 1;
            let drawn = 2 + u32::try_from(chance.below(3)).unwrap_or_default();
            let hosts = self.hosts.unwrap_or(drawn);
            println!("round {round}: {hosts} hosts");
            outcome = scene.round(hosts as usize, until).with_context(|| format!("round {round}"));
        }
        scene.tally.print();
        match outcome {
            Ok(()) => *tally = scene.done(),
            Err(error) => {
                *tally = std::mem::take(&mut scene.tally);
                return Err(error);
            }
        }
        Ok(figure(tally))
    }
}

fn figure(tally: &Tally) -> Figure {
    let (rounds, kills, takeovers) = (tally.rounds, tally.kills, tally.takeovers());
    Figure {
        measured: format!(
            "{rounds} rounds, {kills} kills ({} of a recoverer), {takeovers} takeovers, {} images \
             replayed, {} files found whole, 0 findings",
            tally.killed_recovering,
            tally.images(),
            tally.verified.files
        ),
        bound: "0 findings; something was taken over, replayed and verified".into(),
        is_kept: takeovers > 0 && tally.images() > 0 && tally.verified.files > 0,
    }
}
