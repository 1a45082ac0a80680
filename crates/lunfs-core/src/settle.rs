//! How a compare-and-write ended: decisions without I/O (R2, H4).
//!
//! ```text
//!                 written
//!  submitted ------------------------------------------> Won
//!   ^  |  +--- its flush failed ------------------------> stop (R11)
//!   |  |  miscompare, in doubt, failed                    ^
//!   |  v                                                  |
//!   | look --- the new image -----------------------------+
//!   |  |  +--- neither of the two ----------------------> Lost
//!   |  |  +--- cannot look, and may have been done -----> stop
//!   +--+ still the compared image
//! ```
//!
//! Sound because images never repeat: once another image than the compared one is there, no late
//! attempt can land any more.

use crate::env::{Compared, IoError};

/// What an answer of the device says of one attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answered {
    /// It was done.
    Done,
    /// The block held another image: an earlier attempt's, if the device or a path tried twice what
    /// it had done. Look before it is believed.
    Unlike,
    /// It was not done and never will be: look, and try again.
    Undone,
    /// It may have been done or may still be: look, and remember the doubt.
    Doubt,
    /// It was never submitted: wait for the gate again.
    Never,
    /// Its flush failed, and with it all that was answered before: stop, whatever the block shows.
    Unflushed,
}

/// Reads an answer.
pub fn answered(answer: &Result<Compared, IoError>) -> Answered {
    match answer {
        Ok(Compared::Written) => Answered::Done,
        Ok(Compared::Miscompare) => Answered::Unlike,
        Err(IoError::Failed(_)) => Answered::Undone,
        Err(IoError::InDoubt(_)) => Answered::Doubt,
        Err(IoError::TooLate) => Answered::Never,
        Err(IoError::Unflushed(_)) => Answered::Unflushed,
    }
}

/// What a look at the block says of all attempts so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Looked {
    /// One of them was done.
    Won,
    /// None was, and none ever will be.
    Lost,
    /// Still the compared image: an attempt may yet land. The same once more settles it, since
    /// whichever lands first replaces the compared image, and then the other cannot.
    Again,
}

/// Judges what was found where `expect` was to be replaced by `new`.
pub fn looked<I: PartialEq + ?Sized>(found: &I, expect: &I, new: &I) -> Looked {
    if found == new {
        Looked::Won
    } else if found != expect {
        Looked::Lost
    } else {
        Looked::Again
    }
}

/// Must the host stop if it cannot look after the last answer? Where an attempt is in doubt, or may
/// have been done although the answer says "another image", to go on would be to guess who holds
/// what.
pub fn unseen_stops(doubt: bool, last: Answered) -> bool {
    doubt || matches!(last, Answered::Unlike | Answered::Doubt)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_with_neither_image_is_lost_for_ever() {
        assert_eq!(looked("old", "old", "new"), Looked::Again);
        assert_eq!(looked("new", "old", "new"), Looked::Won);
        assert_eq!(looked("other", "old", "new"), Looked::Lost);
    }

    #[test]
    fn only_a_plain_answer_is_believed_without_a_look() {
        let said = || String::from("said");
        let rows = [
            (Ok(Compared::Written), Answered::Done),
            (Ok(Compared::Miscompare), Answered::Unlike),
            (Err(IoError::Failed(said())), Answered::Undone),
            (Err(IoError::InDoubt(said())), Answered::Doubt),
            (Err(IoError::TooLate), Answered::Never),
            (Err(IoError::Unflushed(said())), Answered::Unflushed),
        ];
        for (answer, meaning) in rows {
            assert_eq!(answered(&answer), meaning, "{answer:?}");
        }
    }

    #[test]
    fn only_what_was_never_done_may_go_unseen() {
        for last in [Answered::Unlike, Answered::Doubt] {
            assert!(unseen_stops(false, last) && unseen_stops(true, last));
        }
        assert!(unseen_stops(true, Answered::Undone) && !unseen_stops(false, Answered::Undone));
    }
}
