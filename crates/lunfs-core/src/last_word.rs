//! What the parent of a dead program says in its slot: decisions without I/O (N27).
//!
//! ```text
//!  drained -> read the slot ---- ours, joining or live --> compare-and-write of the word --> said
//!                ^   |  +--- a word of ours ------------------------------------------+--> said
//!                |   +--- anything else ----------------------------------> nothing to say
//!                +------------- another image, an error, no answer -------------------+
//! ```
//!
//! Sound although the lease is over: the word replaces exactly the image that was just read. A
//! pulse still in flight then finds another image, and a claim makes the word find one.

use lunfs_format::{Incarnation, Pulse, PulseState};

/// Why a parent has no say in a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Why {
    /// The slot has begun another life.
    #[error("the slot has a new life")]
    NewLife,
    /// Another program runs the slot.
    #[error("another program has the slot")]
    OtherProgram,
    /// The life is over: the slot was freed, claimed, or has a last word.
    #[error("the slot is {0:?}")]
    Over(PulseState),
}

/// What to do about a slot as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Say {
    /// Replace exactly what was read by this, and read again unless the answer is "written".
    Word(Box<Pulse>),
    /// Nothing: an attempt that was not answered, or answered with an error, had landed.
    Said,
    /// Nothing, for good.
    Nothing(Why),
}

/// The parent of one dead program, whose I/O is proven drained.
#[derive(Clone, Debug)]
pub struct LastWord {
    run: [u8; 16],
    incarnation: Incarnation,
    tried: Vec<Pulse>,
}

impl LastWord {
    /// For the program `run` in the life `incarnation` of its slot.
    pub fn new(run: [u8; 16], incarnation: Incarnation) -> LastWord {
        LastWord { run, incarnation, tried: Vec::new() }
    }

    /// Decides by what the slot says now; `nonce` was never used before.
    pub fn look(&mut self, found: &Pulse, nonce: u64) -> Say {
        if self.tried.contains(found) {
            return Say::Said;
        }
        match last_word(found, self.run, self.incarnation, nonce) {
            Ok(word) => {
                self.tried.push(word.clone());
                Say::Word(Box::new(word))
            }
            Err(why) => Say::Nothing(why),
        }
    }
}

/// What the parent of the program `run` puts into its slot: it replaces the wait, never the fence,
/// and says *program*, not *machine*.
pub fn last_word(
    found: &Pulse,
    run: [u8; 16],
    incarnation: Incarnation,
    nonce: u64,
) -> Result<Pulse, Why> {
    if found.incarnation != incarnation {
        return Err(Why::NewLife);
    }
    if !matches!(found.state, PulseState::Joining | PulseState::Live) {
        return Err(Why::Over(found.state));
    }
    if found.run != run {
        return Err(Why::OtherProgram);
    }
    let mut word = found.clone();
    word.state = PulseState::Dead;
    word.program_only = true;
    word.io_clean = true;
    word.counter += 1;
    word.nonce = nonce;
    Ok(word)
}

#[cfg(test)]
mod tests {
    use lunfs_format::{Holder, SlotNo};

    use super::*;

    const RUN: [u8; 16] = [9; 16];
    const LIFE: Incarnation = Incarnation(4);

    fn live() -> Pulse {
        Pulse {
            state: PulseState::Live,
            run: RUN,
            counter: 100,
            progress: 50,
            has_parent: true,
            ..Pulse::free(SlotNo(3), LIFE, 1)
        }
    }

    #[test]
    fn the_last_word_changes_what_it_must_and_nothing_else() {
        let word = last_word(&live(), RUN, LIFE, 77).expect("its own");
        let expected = Pulse {
            state: PulseState::Dead,
            counter: 101,
            nonce: 77,
            program_only: true,
            io_clean: true,
            ..live()
        };
        assert_eq!(word, expected);
        let joining = Pulse { state: PulseState::Joining, ..live() };
        assert!(last_word(&joining, RUN, LIFE, 77).is_ok());
    }

    #[test]
    fn the_last_word_speaks_only_for_its_own_program() {
        let me = Holder { slot: SlotNo(1), incarnation: Incarnation(1) };
        let claimed = Pulse { state: PulseState::Claimed, claimer: Some(me), ..live() };
        let rows = [
            (Pulse { run: [8; 16], ..live() }, Why::OtherProgram),
            (Pulse { incarnation: Incarnation(5), ..live() }, Why::NewLife),
            (Pulse { state: PulseState::Free, ..live() }, Why::Over(PulseState::Free)),
            (Pulse { state: PulseState::Dead, ..live() }, Why::Over(PulseState::Dead)),
            (claimed, Why::Over(PulseState::Claimed)),
        ];
        for (found, why) in rows {
            assert_eq!(last_word(&found, RUN, LIFE, 1), Err(why));
        }
    }

    #[test]
    fn a_word_that_landed_without_an_answer_was_said() {
        let mut parent = LastWord::new(RUN, LIFE);
        let Say::Word(first) = parent.look(&live(), 1) else { panic!("its own") };
        // A pulse in flight came first: the word goes over that one.
        let later = Pulse { counter: 101, nonce: 5, ..live() };
        let Say::Word(second) = parent.look(&later, 2) else { panic!("its own") };
        assert_eq!(parent.look(&second, 3), Say::Said);
        assert_eq!(parent.look(&first, 3), Say::Said);
        // The same word of somebody else is none of ours.
        let other = Pulse { nonce: 9, ..*first };
        assert_eq!(parent.look(&other, 3), Say::Nothing(Why::Over(PulseState::Dead)));
    }
}
