//! A slice of the explorations that fits into every test run.

use lunfs_model::cases::{Case, Protocol, cases};
use lunfs_model::explore::safety;

fn explore(is_meant: impl Fn(&Case) -> bool) {
    let meant: Vec<Case> = cases().into_iter().filter(is_meant).collect();
    assert!(!meant.is_empty());
    for case in meant {
        let (safety, goals) = case.run();
        if let Some(complaint) = case.judge(&safety, goals.as_ref()) {
            panic!("{}: {complaint}", case.name);
        }
    }
}

#[test]
fn every_order_of_events_keeps_the_rules() {
    let names = ["locks", "deaths", "answers", "three hosts", "three hosts with a reservation"];
    explore(|case| names.contains(&case.name));
}

/// Safety only: for its goals there is `cargo xtask prove model-whole`.
#[test]
fn a_claim_whose_replay_may_land_is_nobody_elses() {
    let mut meant = cases().into_iter().filter(|case| case.name == "kept claims");
    let Some(Protocol::Hosts(model)) = meant.next().map(|case| case.protocol) else {
        panic!("it is a case of hosts");
    };
    if let Some(finding) = safety(model).finding {
        panic!("{}\n    {}", finding.what, finding.way.join("\n    "));
    }
}

#[test]
fn no_lease_outlives_what_others_believe() {
    let names = ["mark", "watchdog without late", "time alone, one tick too soon"];
    explore(|case| names.contains(&case.name));
}

#[test]
fn no_two_claims_are_decided_without_compare_and_write() {
    explore(|case| matches!(case.protocol, Protocol::Ballot(_)));
}
