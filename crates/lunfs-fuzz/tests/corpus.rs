//! Every target on its seeds, on what once broke a rule, and on some inputs chosen by chance: a
//! machine without libFuzzer finds again what was found.

use std::path::PathBuf;

use lunfs_fuzz::{TARGETS, Target, chosen};

/// Inputs by chance, of a decoder and of what mounts a volume for each.
const INPUTS: (u64, u64) = (20_000, 60);

fn inputs(target: &Target) -> u64 {
    match target.name {
        "image" | "journal" | "extremes" => INPUTS.1,
        _ => INPUTS.0,
    }
}

/// Runs a target, and says on what it broke.
fn run(target: &Target, name: &str, input: &[u8]) {
    let broke = std::panic::catch_unwind(|| (target.run)(input)).is_err();
    assert!(!broke, "{} broke on {name}: {input:02x?}", target.name);
}

fn each_stands_its_seeds(is_wanted: fn(&Target) -> bool) {
    for target in TARGETS.iter().filter(|target| is_wanted(target)) {
        for (number, seed) in (target.seeds)().iter().enumerate() {
            run(target, &format!("seed {number}"), seed);
        }
        for number in 0..inputs(target) {
            run(target, &format!("--from {number}"), &chosen(target, number));
        }
    }
}

#[test]
fn every_decoder_stands_its_seeds_and_chance() {
    each_stands_its_seeds(|target| inputs(target) == INPUTS.0);
}

#[test]
fn a_volume_stands_damage_and_requests_from_seeds_and_chance() {
    each_stands_its_seeds(|target| inputs(target) == INPUTS.1);
}

#[test]
fn what_once_broke_a_rule_does_not_any_more() {
    for target in &TARGETS {
        let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target.name);
        let Ok(files) = std::fs::read_dir(folder) else { continue };
        for file in files {
            let path = file.expect("the corpus can be listed").path();
            let input = std::fs::read(&path).expect("the corpus can be read");
            run(target, &path.display().to_string(), &input);
        }
    }
}

#[test]
fn every_target_has_a_program() {
    let fuzz = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fuzz");
    let manifest = std::fs::read_to_string(fuzz.join("Cargo.toml")).expect("there is a manifest");
    for Target { name, .. } in &TARGETS {
        let source = std::fs::read_to_string(fuzz.join(format!("fuzz_targets/{name}.rs")));
        assert!(source.is_ok_and(|s| s.contains(&format!("run(\"{name}\""))), "{name} has none");
        assert!(manifest.contains(&format!("name = \"{name}\"")), "{name} is not built");
    }
}
