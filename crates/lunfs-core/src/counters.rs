//! What a mount has met since it joined. The simulator insists that what a proof needs does not
//! stay zero, and that what must not happen does.

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Numbers of events since the mount joined.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct Counters {
            $($(#[$doc])* pub $name: u64,)*
        }

        impl Counters {
            /// Adds those of another mount.
            pub fn add(&mut self, other: &Counters) {
                $(self.$name += other.$name;)*
            }

            /// Names and numbers, for people and scripts.
            pub fn list(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name),)*]
            }
        }
    };
}

counters! {
    /// Dead slots that were claimed, replayed and freed.
    takeovers,
    /// Claims handed back because of an error.
    claims_handed_back,
    /// Claims that end with this host, because a write of the replay failed.
    claims_kept,
    /// Claims of slots whose former claimer had died.
    claims_after_claimer,
    /// Takeovers without a slot or a claim, of a volume on which every slot had a dead host.
    takeovers_alone,
    /// Replays that applied at least one image.
    replays_with_images,
    /// Images that replay wrote.
    images_applied,
    /// Images that replay refused because their lock had moved on (R7).
    images_refused,
    /// Images that replay found in place already.
    images_in_place,
    /// Images that a revoke cancelled.
    revokes_used,
    /// Compare-and-writes in doubt that turned out to have landed.
    in_doubt_landed,
    /// Compare-and-writes in doubt that had not landed and were replaced.
    in_doubt_not_landed,
    /// Compare-and-writes in doubt that another host's image ended.
    in_doubt_lost,
    /// Times the lease ended and the host later went on.
    resumes,
    /// Pulses that succeeded.
    pulses,
    /// Locks taken by compare-and-write.
    locks_acquired,
    /// Locks taken from a dead holder.
    locks_stale,
    /// Locks handed to a named successor.
    handovers,
    /// Locks released on request or to make room.
    locks_released,
    /// Requests put into doorbells.
    rings,
    /// Requests served from the own doorbells.
    rings_served,
    /// Journal records written.
    commits,
    /// Images in those records.
    images_logged,
    /// Transactions with more images than they had asked room for: must stay zero.
    transactions_too_large,
    /// Times the journal's tail moved.
    checkpoints,
    /// Reads without a lock that had to be done again.
    reads_retried,
}
