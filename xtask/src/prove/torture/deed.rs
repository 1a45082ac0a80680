//! What is done to the hosts of a volume, and how it is chosen.

use super::super::writer::Chance;

/// Something that happens to one host, or to several.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Deed {
    /// All processes of a host at once: a machine dies.
    KillGroup,
    /// Only the daemon: its parent has the last word.
    KillDaemon,
    /// Only the parent: nobody will have the last word.
    KillParent,
    /// A host, and then the one that begins to recover it.
    KillRecoverer,
    /// Several hosts at once, not all.
    KillSome,
    /// All hosts at once: a power failure.
    KillAll,
    /// A host in the middle of joining.
    KillJoining,
    /// Stopped for less than a lease.
    StopShortly,
    /// Stopped for longer than it takes to be taken over.
    StopLong,
    /// Unmounted after its writers ended.
    Unmount,
    /// Unmounted from under its writers.
    UnmountByForce,
    /// Told to end by a signal, while its writers go on.
    Terminate,
}

/// Each with how many hosts it needs, and how often it is chosen among the others.
const DEEDS: &[(Deed, usize, u64)] = &[
    (Deed::KillGroup, 1, 20),
    (Deed::KillDaemon, 1, 10),
    (Deed::KillParent, 1, 4),
    (Deed::KillRecoverer, 2, 20),
    (Deed::KillSome, 3, 8),
    (Deed::KillAll, 1, 6),
    (Deed::KillJoining, 1, 8),
    (Deed::StopShortly, 1, 6),
    (Deed::StopLong, 1, 6),
    (Deed::Unmount, 1, 6),
    (Deed::UnmountByForce, 1, 6),
    (Deed::Terminate, 1, 4),
];

/// Chooses what happens next where `hosts` are mounted.
pub fn choose(chance: &mut Chance, hosts: usize) -> Deed {
    let possible = || DEEDS.iter().filter(|(_, needs, _)| *needs <= hosts);
    let sum = possible().map(|(.., weight)| weight).sum();
    let mut rest = chance.below(sum);
    for (deed, _, weight) in possible() {
        if rest < *weight {
            return *deed;
        }
        rest -= weight;
    }
    unreachable!("the rest is below the sum")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_deed_comes_up_and_none_that_needs_more_hosts() {
        let chosen = |hosts| {
            let mut chance = Chance(7);
            (0..2000).map(|_| choose(&mut chance, hosts)).collect::<BTreeSet<_>>()
        };
        assert_eq!(chosen(3).len(), DEEDS.len());
        assert!(!chosen(2).contains(&Deed::KillSome));
        assert!(!chosen(1).contains(&Deed::KillRecoverer));
    }
}
