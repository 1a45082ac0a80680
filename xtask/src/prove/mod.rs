//! Named scenarios: what the project claims, shown on real processes, mounts and files.
//!
//! A scenario prints what it does. Its last line is a figure, the bound it must keep, and the
//! verdict. One file per scenario; `world` has what they share.

mod compare;
mod copy_tree;
mod demo;
mod disks;
mod enumerate;
mod fuzz;
pub mod guest;
mod kill_daemon;
mod kill_group;
mod ledger;
mod life;
mod model;
mod mutations;
mod nbd;
mod qemu;
mod readme;
mod simulator;
mod stop;
mod tools;
pub mod torture;
pub mod world;
pub mod writer;

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use clap::Args;

use crate::Ending;

/// Which scenario to run, and how often.
#[derive(Args)]
pub struct Options {
    /// Name of the scenario
    #[arg(required_unless_present = "list")]
    name: Option<String>,
    /// List the scenarios
    #[arg(long)]
    list: bool,
    /// Rounds of a scenario that repeats itself
    #[arg(long)]
    rounds: Option<u32>,
    /// Start of the random choices; printed at the start of every run
    #[arg(long)]
    seed: Option<u64>,
    /// Of `mutations`, `enumerate` and `guest`, only what contains this in its name
    #[arg(long)]
    only: Option<String>,
}

/// How much of a scenario to run.
pub struct Extent {
    /// Rounds, where the caller wants another number than the scenario's own.
    pub rounds: Option<u32>,
    /// A part that fits into every test run, instead of the whole claim.
    pub is_slice: bool,
    /// Where random choices start.
    pub seed: u64,
    /// Of a scenario with parts, only those whose names contain this.
    pub only: Option<String>,
}

/// What a scenario measured, and what it had to keep.
pub struct Figure {
    /// What was measured, with its unit.
    pub measured: String,
    /// What it must keep.
    pub bound: String,
    /// Whether it did.
    pub is_kept: bool,
}

/// Something a scenario cannot run without.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// Mounting, killing, reading what others own.
    Root,
    /// The kernel's FUSE device.
    Fuse,
    /// Loop devices with direct I/O.
    Loop,
    /// QEMU and its tools.
    Qemu,
    /// A kernel for a guest.
    Guest,
    /// The clients of network block devices.
    Nbd,
}

struct Scenario {
    name: &'static str,
    shows: &'static str,
    needs: &'static [Need],
    run: fn(&Extent) -> Result<Figure>,
}

const MOUNTS: &[Need] = &[Need::Root, Need::Fuse];
const GUESTS: &[Need] = &[Need::Root, Need::Fuse, Need::Qemu, Need::Guest];

const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "readme-commands",
        shows: "a clean clone builds; the demo and every command of README and operating.md run",
        needs: MOUNTS,
        run: readme::run,
    },
    Scenario {
        name: "demo",
        shows: "two hosts, one killed while it writes, the other goes on",
        needs: MOUNTS,
        run: demo::run,
    },
    Scenario {
        name: "copy-tree",
        shows: "a real tree copied through one host is the same on another, both ways",
        needs: MOUNTS,
        run: copy_tree::run,
    },
    Scenario {
        name: "tools",
        shows: "rsync, tar and git keep what they were given",
        needs: MOUNTS,
        run: tools::run,
    },
    Scenario {
        name: "nbd",
        shows: "nbdcopy, qemu-img and libnbd find in an exported file what they put there",
        needs: &[Need::Root, Need::Fuse, Need::Nbd],
        run: nbd::run,
    },
    Scenario {
        name: "disks",
        shows: "snapshots under writes are moments; clones on another host outlive the first one",
        needs: MOUNTS,
        run: disks::run,
    },
    Scenario {
        name: "kill-group",
        shows: "kill -9 of one of three hosts costs the others two seconds and no data",
        needs: MOUNTS,
        run: kill_group::on_image,
    },
    Scenario {
        name: "kill-group-loop",
        shows: "the same on a loop device",
        needs: &[Need::Root, Need::Fuse, Need::Loop],
        run: kill_group::on_loop,
    },
    Scenario {
        name: "kill-daemon",
        shows: "kill -9 of the daemon alone: its parent writes the last word",
        needs: MOUNTS,
        run: kill_daemon::run,
    },
    Scenario {
        name: "stop",
        shows: "a host stopped for 20 s is replaced after 15 s and writes nothing afterwards",
        needs: MOUNTS,
        run: stop::run,
    },
    Scenario {
        name: "torture",
        shows: "kills, stops, unmounts and kills of recoverers, at random, lose nothing",
        needs: MOUNTS,
        run: torture::on_image,
    },
    Scenario {
        name: "torture-loop",
        shows: "the same on a loop device",
        needs: &[Need::Root, Need::Fuse, Need::Loop],
        run: torture::on_loop,
    },
    Scenario {
        name: "guest",
        shows: "a guest whose host is killed starts on another one, with all it made durable",
        needs: GUESTS,
        run: guest::run,
    },
    Scenario {
        name: "qemu",
        shows: "QEMU's tools do with images on a mount what they do on a local file system",
        needs: &[Need::Root, Need::Fuse, Need::Qemu],
        run: qemu::run,
    },
    Scenario {
        name: "simulator",
        shows: "200 seeds without a finding, each twice with the same trace",
        needs: &[],
        run: simulator::run,
    },
    Scenario {
        name: "enumerate",
        shows: "every operation and pair, crashed at every write, is before or after",
        needs: &[],
        run: enumerate::run,
    },
    Scenario {
        name: "model",
        shows: "every order of events of small volumes keeps the rules",
        needs: &[],
        run: model::run,
    },
    Scenario {
        name: "model-whole",
        shows: "the same with what takes many minutes",
        needs: &[],
        run: model::whole,
    },
    Scenario {
        name: "fuzz",
        shows: "no bytes on a disk make a host panic, turn in circles or show another file",
        needs: &[],
        run: fuzz::run,
    },
    Scenario {
        name: "mutations",
        shows: "every rule that is taken out of the code is noticed",
        needs: &[],
        run: mutations::run,
    },
];

/// Runs the scenario that was asked for.
pub fn run(options: &Options) -> Result<Ending> {
    if options.list {
        for scenario in SCENARIOS {
            println!("{:16} {}", scenario.name, scenario.shows);
        }
        return Ok(Ending::Passed);
    }
    let extent = Extent {
        rounds: options.rounds,
        is_slice: false,
        seed: options.seed.unwrap_or_else(writer::seed_of_now),
        only: options.only.clone(),
    };
    scenario(options.name.as_deref().unwrap_or_default(), &extent)
}

/// Runs one scenario by name and prints its last line.
pub fn scenario(name: &str, extent: &Extent) -> Result<Ending> {
    let Some(scenario) = SCENARIOS.iter().find(|scenario| scenario.name == name) else {
        bail!("no scenario {name}; `cargo xtask prove --list` names them");
    };
    println!("prove {name}: {} (seed {})", scenario.shows, extent.seed);
    if let Some(why) = missing(scenario.needs) {
        println!("prove {name}: SKIPPED: {why}");
        return Ok(Ending::CouldNotRun);
    }
    let started = Instant::now();
    let figure = (scenario.run)(extent);
    Ok(judged(&format!("prove {name}"), started, figure))
}

/// Prints the last line of a scenario.
fn judged(what: &str, started: Instant, figure: Result<Figure>) -> Ending {
    let took = started.elapsed().as_secs();
    match figure {
        Ok(Figure { measured, bound, is_kept }) => {
            let verdict = if is_kept { "PASS" } else { "FAIL" };
            println!("{what}: figure {measured}; bound {bound}; {took} s; {verdict}");
            if is_kept { Ending::Passed } else { Ending::Failed }
        }
        Err(error) => {
            println!("{what}: figure none; {took} s; FAIL: {error:#}");
            Ending::Failed
        }
    }
}

fn missing(needs: &[Need]) -> Option<String> {
    needs.iter().find_map(|need| lack(*need))
}

/// Why a need is not met; what can be installed is.
fn lack(need: Need) -> Option<String> {
    let (is_there, why) = match need {
        Need::Root => (rustix::process::geteuid().is_root(), "root is needed to mount"),
        Need::Fuse => (
            std::fs::File::options().read(true).write(true).open("/dev/fuse").is_ok(),
            "/dev/fuse is missing or closed: `modprobe fuse`",
        ),
        Need::Loop => (
            std::path::Path::new("/dev/loop-control").exists(),
            "/dev/loop-control is missing: `modprobe loop`",
        ),
        Need::Qemu => return crate::tools::install_qemu().err().map(|why| format!("{why:#}")),
        Need::Nbd => return crate::tools::install_nbd().err().map(|why| format!("{why:#}")),
        Need::Guest => return guest::kernel().err().map(|why| format!("no kernel: {why:#}")),
    };
    (!is_there).then(|| why.to_owned())
}

/// Asks `is_there` every 5 ms until it holds; the error says what never came.
pub fn wait_until(
    what: &str,
    limit: Duration,
    mut is_there: impl FnMut() -> Result<bool>,
) -> Result<Duration> {
    let started = Instant::now();
    loop {
        if is_there()? {
            return Ok(started.elapsed());
        }
        if started.elapsed() > limit {
            bail!("{what}: not within {} s", limit.as_secs());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}
