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
    let names = ["locks", "deaths", "answers", "power"];
    explore(|case| names.contains(&case.name));
}

#[test]
fn no_lease_outlives_what_others_believe() {
    explore(|case| matches!(case.protocol, Protocol::Timing(_)));
}
