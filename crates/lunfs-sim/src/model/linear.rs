//! Names that everybody makes and removes at the same time: is there an order of the operations in
//! which each answer is right?
//!
//! The search of Wing and Gong, done as the answers come: what is kept is every *state* that the
//! calls and answers so far allow, each with the calls under way that have happened in it already.
//! An answer leaves those states in which its call has happened and was answered so; if none is
//! left there is no order, and the name is not linearizable.
//!
//! A death may take back what was not durable, so it makes the name unknown, and calls under way
//! then are not judged: of a history with deaths the parts between them are.

use std::collections::{BTreeMap, BTreeSet};

use lunfs_core::FileId;

use crate::executor::Owner;

/// States above which a name becomes unknown instead: a bound on the search.
const STATES_MAX: usize = 2_000;

/// What is asked of a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// Make a file.
    Make,
    /// Take it away.
    Remove,
    /// Look.
    Look,
}

/// What was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Said {
    /// This file was made.
    Made(FileId),
    /// There was one already.
    Exists,
    /// It was taken away.
    Removed,
    /// There was nothing.
    Missing,
    /// This one was found.
    Found(FileId),
}

/// A file under the name: known, or the one that a call made whose answer is not known yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Thing {
    Known(FileId),
    Unknown(u64),
}

/// What a call did in one state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Did {
    Made(Thing),
    Exists,
    Removed,
    Missing,
    Found(Thing),
}

#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct State {
    there: Option<Thing>,
    did: BTreeMap<u64, Did>,
}

#[derive(Clone, Copy, Debug)]
struct Call {
    by: Owner,
    wish: Wish,
    /// It was under way when somebody died: whatever it is answered may be right.
    is_free: bool,
}

/// One name through time.
#[derive(Clone, Debug)]
pub struct Linear {
    next: u64,
    calls: BTreeMap<u64, Call>,
    states: BTreeSet<State>,
    /// The last calls and answers, for people.
    history: Vec<String>,
}

impl Default for Linear {
    fn default() -> Linear {
        let states = BTreeSet::from([State::default()]);
        Linear { next: 0, calls: BTreeMap::new(), states, history: Vec::new() }
    }
}

impl State {
    /// What becomes of this state when the call `number` happens in it.
    fn after(&self, number: u64, wish: Wish) -> State {
        let (there, did) = match (wish, self.there) {
            (Wish::Make, None) => (Some(Thing::Unknown(number)), Did::Made(Thing::Unknown(number))),
            (Wish::Make, there) => (there, Did::Exists),
            (Wish::Remove, Some(_)) => (None, Did::Removed),
            (Wish::Remove | Wish::Look, None) => (None, Did::Missing),
            (Wish::Look, Some(thing)) => (Some(thing), Did::Found(thing)),
        };
        let mut after = State { there, did: self.did.clone() };
        after.did.insert(number, did);
        after
    }

    /// The state if `number` was answered so; `None`: it was not.
    fn answered(&self, number: u64, said: Said) -> Option<State> {
        let mut after = self.clone();
        let did = after.did.remove(&number)?;
        match (did, said) {
            (Did::Made(thing), Said::Made(id)) | (Did::Found(thing), Said::Found(id)) => {
                after.is(thing, id).then_some(after)
            }
            (Did::Exists, Said::Exists)
            | (Did::Removed, Said::Removed)
            | (Did::Missing, Said::Missing) => Some(after),
            _ => None,
        }
    }

    /// From now on `thing` is known to be `id`; `false`: it is another one.
    fn is(&mut self, thing: Thing, id: FileId) -> bool {
        let Thing::Unknown(_) = thing else { return thing == Thing::Known(id) };
        let learn = |known: &mut Thing| {
            if *known == thing {
                *known = Thing::Known(id);
            }
        };
        self.there.iter_mut().for_each(learn);
        for did in self.did.values_mut() {
            if let Did::Made(thing) | Did::Found(thing) = did {
                learn(thing);
            }
        }
        true
    }
}

impl Linear {
    /// Somebody calls.
    pub fn call(&mut self, by: Owner, wish: Wish) -> u64 {
        let number = self.next;
        self.next += 1;
        self.calls.insert(number, Call { by, wish, is_free: false });
        self.note(format!("{number}: {by} calls {wish:?}"));
        number
    }

    fn note(&mut self, line: String) {
        if self.history.len() == 40 {
            self.history.drain(..20);
        }
        self.history.push(line);
    }

    /// All states in which any of the calls under way have happened, in any order.
    fn unfold(&mut self) {
        let mut new: Vec<State> = self.states.iter().cloned().collect();
        while let Some(state) = new.pop() {
            for (&number, call) in &self.calls {
                if call.is_free || state.did.contains_key(&number) {
                    continue;
                }
                let after = state.after(number, call.wish);
                if self.states.insert(after.clone()) {
                    new.push(after);
                }
            }
            if self.states.len() > STATES_MAX {
                self.forget();
                return;
            }
        }
    }

    /// There may be anything under the name, and calls under way may be answered in any way.
    fn forget(&mut self) {
        for call in self.calls.values_mut() {
            call.is_free = true;
        }
        self.anything();
    }

    fn anything(&mut self) {
        let something = State { there: Some(Thing::Unknown(self.next)), ..State::default() };
        self.next += 1;
        self.states = BTreeSet::from([State::default(), something]);
    }

    /// A call is answered; an error: no order explains it.
    pub fn answer(&mut self, number: u64, said: Said) -> Result<(), String> {
        self.note(format!("{number}: {said:?}"));
        self.unfold();
        let Some(call) = self.calls.remove(&number) else { return Ok(()) };
        if call.is_free {
            // It may have happened before the death or after it.
            self.forget();
            return Ok(());
        }
        let left: BTreeSet<State> =
            self.states.iter().filter_map(|state| state.answered(number, said)).collect();
        if left.is_empty() {
            return Err(format!("no order of the operations explains {:?}", self.history));
        }
        self.states = left;
        Ok(())
    }

    /// A call ended with an error: it happened or not, and will not later.
    pub fn fail(&mut self, number: u64) {
        self.note(format!("{number}: an error"));
        self.unfold();
        let Some(call) = self.calls.remove(&number) else { return };
        if call.is_free {
            return self.forget();
        }
        let without = |state: &State| {
            let mut state = state.clone();
            state.did.remove(&number);
            state
        };
        self.states = self.states.iter().map(without).collect();
    }

    /// A program died.
    pub fn died(&mut self, program: Owner) {
        self.note(format!("{program} dies"));
        self.calls.retain(|_, call| call.by != program);
        self.forget();
    }
}

#[cfg(test)]
mod tests {
    use lunfs_format::BlockNo;

    use super::*;

    const A: Owner = Owner(1);
    const B: Owner = Owner(2);

    fn id(birth: u64) -> FileId {
        FileId { addr: BlockNo(7), birth }
    }

    #[test]
    fn one_after_the_other_must_be_as_it_says() {
        let mut name = Linear::default();
        let make = name.call(A, Wish::Make);
        name.answer(make, Said::Made(id(1))).unwrap();
        let look = name.call(B, Wish::Look);
        name.answer(look, Said::Found(id(1))).unwrap();
        let remove = name.call(B, Wish::Remove);
        name.answer(remove, Said::Removed).unwrap();
        let look = name.call(A, Wish::Look);
        assert!(name.answer(look, Said::Found(id(1))).is_err(), "it was gone before the look");
    }

    #[test]
    fn of_two_that_make_one_name_only_one_may_succeed() {
        let mut name = Linear::default();
        let (a, b) = (name.call(A, Wish::Make), name.call(B, Wish::Make));
        name.answer(a, Said::Made(id(1))).unwrap();
        assert!(name.clone().answer(b, Said::Exists).is_ok());
        assert!(name.answer(b, Said::Made(id(2))).is_err());
    }

    #[test]
    fn a_look_may_see_a_call_before_its_answer_and_then_everybody_must() {
        let mut name = Linear::default();
        let make = name.call(A, Wish::Make);
        let look = name.call(B, Wish::Look);
        name.answer(look, Said::Found(id(1))).unwrap();
        let again = name.call(B, Wish::Look);
        assert!(name.clone().answer(again, Said::Missing).is_err());
        name.answer(again, Said::Found(id(1))).unwrap();
        assert!(name.clone().answer(make, Said::Made(id(2))).is_err());
        name.answer(make, Said::Made(id(1))).unwrap();
    }

    #[test]
    fn an_error_may_have_happened() {
        let mut name = Linear::default();
        let make = name.call(A, Wish::Make);
        name.fail(make);
        for said in [Said::Missing, Said::Found(id(1))] {
            let mut name = name.clone();
            let look = name.call(B, Wish::Look);
            name.answer(look, said).unwrap();
            let again = name.call(B, Wish::Look);
            name.answer(again, said).unwrap();
        }
    }

    #[test]
    fn after_a_death_the_first_look_decides() {
        let mut name = Linear::default();
        let make = name.call(A, Wish::Make);
        name.answer(make, Said::Made(id(1))).unwrap();
        name.died(A);
        let look = name.call(B, Wish::Look);
        name.answer(look, Said::Missing).unwrap();
        let look = name.call(B, Wish::Look);
        assert!(name.answer(look, Said::Found(id(1))).is_err(), "it does not come back");
    }
}
