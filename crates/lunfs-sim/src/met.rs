//! What a world met, in numbers: a run that met nothing proves nothing.

macro_rules! met {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Events of one or more worlds.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct Met {
            $($(#[$doc])* pub $name: u64,)*
        }

        impl Met {
            /// Adds those of another world.
            pub fn add(&mut self, other: &Met) {
                $(self.$name += other.$name;)*
            }

            /// Names and numbers.
            pub fn list(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name),)*]
            }
        }
    };
}

met! {
    /// Programs that were started.
    programs,
    /// Mounts that were refused or failed.
    mounts_refused,
    /// Programs that left cleanly.
    unmounts,
    /// Programs killed at a random moment.
    crashes,
    /// Of those: programs that were taking over another's slot.
    recoverer_deaths,
    /// Programs killed by a fence.
    fence_kills,
    /// Fences that were refused because another program runs the slot.
    fences_refused,
    /// Programs that stopped themselves.
    stops,
    /// Pauses of programs.
    pauses,
    /// Of those: between the look at the clock and the device.
    pauses_at_submission,
    /// Stalls of the whole disk.
    stalls,
    /// Power losses of disk and hosts.
    power_losses,
    /// Blocks that power losses took back.
    blocks_lost,
    /// Losses of the disk's cache under living hosts.
    cache_losses,
    /// Returns of the disk to an earlier time under living hosts.
    returns_in_time,
    /// Hosts that such a return stopped.
    stops_by_return,
    /// Reads that showed wrong metadata.
    reads_that_lied,
    /// Compare-and-writes that were done, and whose flush failed.
    failed_flushes,
    /// Deaths of a third or later program in a row of takeovers.
    chained_deaths,
    /// Requests to the disk.
    requests,
    /// Last words of parents.
    last_words,
    /// Walks over the whole volume.
    walks,
    /// Operations of workers that succeeded.
    operations,
    /// Operations that were refused as they should be.
    refusals,
    /// Operations that ended in doubt.
    doubts,
    /// Looks at what other hosts did.
    looks_across,
    /// Operations on names that everybody makes and removes.
    competitions,
    /// Looks at everything a dead program left.
    audits,
    /// Thereof with something lost that was not durable.
    audits_with_loss,
    /// Snapshots of disks.
    snapshots,
    /// Clones of disks.
    clones,
    /// Snapshots that were read and compared.
    snapshots_read,
    /// Bytes compared with the model.
    bytes_checked,
}
