//! What any bytes may do to lunfs: fuzz targets as plain functions.
//!
//! | module | what it owns |
//! |---|---|
//! | `decode` | one target per decoder |
//! | `volume` | whole images and journals: damage, then mount, use, check, mend |
//! | `history` | an undamaged volume and its past, made once by the real core |
//! | `damage` | how an input becomes flips, swaps, replays and lies with right checksums |
//! | `session` | what a host does with a damaged volume |
//! | `oracle` | what must hold whatever it met |
//! | `world` | the four doors: a disk in memory, time, marks of life, chance; all bounded |
//!
//! A target is given bytes and panics when a rule is broken. It draws on nothing else, so the same
//! bytes do the same for ever: under libFuzzer (`fuzz/`), in `cargo test`, or from a file
//! (`cargo run -p lunfs-fuzz`). See docs/testing.md#fuzzing.

#![forbid(unsafe_code)]

mod damage;
mod decode;
mod history;
mod input;
mod oracle;
mod seal;
mod session;
mod volume;
mod world;

/// Something that must stand any bytes.
#[derive(Clone, Copy)]
pub struct Target {
    /// Its name, also that of its program under `fuzz/` and of its folder under `corpus/`.
    pub name: &'static str,
    /// Does everything with these bytes; panics when a rule is broken.
    pub run: fn(&[u8]),
    /// Inputs from which a fuzzer starts.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

/// All targets.
pub const TARGETS: [Target; 15] = [
    Target { name: "header", run: decode::header, seeds: decode::header_seeds },
    Target { name: "superblock", run: decode::superblock, seeds: decode::superblock_seeds },
    Target { name: "pulse", run: decode::pulse, seeds: decode::pulse_seeds },
    Target { name: "doorbell", run: decode::doorbell, seeds: decode::doorbell_seeds },
    Target { name: "lock", run: decode::lock, seeds: decode::lock_seeds },
    Target { name: "cluster", run: decode::cluster, seeds: decode::cluster_seeds },
    Target { name: "descriptor", run: decode::descriptor, seeds: decode::descriptor_seeds },
    Target { name: "node", run: decode::node, seeds: decode::node_seeds },
    Target { name: "journal_header", run: decode::journal_header, seeds: decode::tail_seeds },
    Target { name: "journal_record", run: decode::journal_record, seeds: decode::record_seeds },
    Target { name: "map_entry", run: decode::map_entry, seeds: decode::map_entry_seeds },
    Target { name: "entry_value", run: decode::entry_value, seeds: decode::entry_value_seeds },
    Target { name: "journal", run: volume::journal, seeds: volume::seeds },
    Target { name: "image", run: volume::image, seeds: volume::seeds },
    Target { name: "extremes", run: volume::extremes, seeds: volume::extreme_seeds },
];

/// The target with this name.
pub fn target(name: &str) -> Option<Target> {
    TARGETS.into_iter().find(|target| target.name == name)
}

/// Runs the target with this name: what the programs under `fuzz/` are.
///
/// # Panics
/// If there is no such target, or a rule is broken.
pub fn run(name: &str, input: &[u8]) {
    let target = target(name).unwrap_or_else(|| panic!("no target {name}"));
    (target.run)(input);
}

/// The `number`th of endlessly many inputs that look random and are the same in each run: a seed
/// of the target, changed a little, or noise.
pub fn chosen(target: &Target, number: u64) -> Vec<u8> {
    input::Random::new(number).varied(&(target.seeds)())
}
