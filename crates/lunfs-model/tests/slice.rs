//! A slice of the explorations that fits into every test run.

use lunfs_model::cases::{Case, Protocol, cases};

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
    let names = ["locks", "deaths", "answers"];
    explore(|case| names.contains(&case.name));
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
