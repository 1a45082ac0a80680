//! Explores every state of a model: safety with stateright, goals over the whole graph.
//!
//! Safety is an invariant, and stateright finds the shortest way to a state that breaks it. For
//! goals its `eventually` is of no use here: it looks at paths that end, overlooks cycles, and may
//! miss a path that joins one seen before. So the goals are checked as *possibility from
//! everywhere*: no state can be reached from which the goal cannot be reached any more without a
//! further fault. That is what a deadlock, a lost lock or a slot that nobody can free would break;
//! that hosts which can do something do it in the end is assumed, not shown.
//!
//! A model may give one state for all that differ in names only (`hosts::turn`). Both searches see
//! what it gives, so both count the same. A goal names a slot and a lock, so the walk remembers at
//! each step how the names changed (`Goals::step`), and asks for each goal under the name that it
//! has then: that is exact, not another abstraction.
//!
//! States are told apart by hash: 128 bits here, 64 in stateright. Of n states two fall together
//! with a chance of about n^2 / 2^129 here, less than 10^-22 for a hundred million, and of n^2 /
//! 2^65 in stateright: one in 370,000 for ten million, one in 3,700 for a hundred million. What the
//! one had missed so the other would most likely count: both check that nothing is broken.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasherDefault, DefaultHasher, Hash, Hasher};
use std::time::{Duration, Instant};

use stateright::{Checker, Expectation, HasDiscoveries, Model, Property};

/// Something that must stay possible: its name, and where it is reached.
pub type Goal<S> = (String, Box<dyn Fn(&S) -> bool>);

/// A model whose goals can be checked.
pub trait Goals: Model {
    /// Is this something that may happen, but need not?
    fn is_fault(&self, action: &Self::Action) -> bool;
    /// What must stay possible without a further fault: fifteen goals at most.
    fn goals(&self) -> Vec<Goal<Self::State>>;
    /// The state that follows, and by which renaming it stands for what has really followed.
    fn step(&self, last: &Self::State, action: Self::Action) -> Option<(Self::State, u8)> {
        self.next_state(last, action).map(|state| (state, 0))
    }
    /// How many renamings there are, sixteen at most. The first renames nothing.
    fn renamings(&self) -> u8 {
        1
    }
    /// The name of a goal after a renaming.
    fn renamed(&self, goal: usize, renaming: u8) -> usize {
        debug_assert_eq!(renaming, 0, "it renames nothing");
        goal
    }
}

/// What an exploration found.
#[derive(Debug)]
pub struct Report {
    /// Different states.
    pub states: usize,
    /// Longest of the shortest ways to a state.
    pub depth: usize,
    /// How long it took.
    pub took: Duration,
    /// The first thing that is wrong, and the way to it.
    pub finding: Option<Finding>,
}

/// A counterexample.
#[derive(Debug)]
pub struct Finding {
    /// What is wrong.
    pub what: String,
    /// The actions that lead there.
    pub way: Vec<String>,
}

/// Explores all of a model. Every property must hold, and everything that must occur somewhere
/// must.
pub fn safety<M>(model: M) -> Report
where
    M: Model + Send + Sync + 'static,
    M::State: Clone + std::fmt::Debug + Hash + PartialEq + Send + Sync,
    M::Action: Clone + std::fmt::Debug + PartialEq + Send + Sync,
{
    let began = Instant::now();
    let checker = model.checker().finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join();
    let mut finding = None;
    for property in checker.model().properties() {
        let found = checker.discovery(property.name);
        let is_wrong = found.is_some() == property.expectation.discovery_is_failure();
        if is_wrong && (finding.is_none() || found.is_some()) {
            let way = found.map(stateright::Path::into_actions).unwrap_or_default();
            let way = way.iter().map(|action| format!("{action:?}")).collect();
            finding = Some(Finding { what: property.name.into(), way });
        }
    }
    Report {
        states: checker.unique_state_count(),
        depth: checker.max_depth(),
        took: began.elapsed(),
        finding,
    }
}

/// The graph of all states, as far as goals need it.
struct Graph<S> {
    /// For each state, the goals that are reached in it, one bit each.
    able: Vec<u16>,
    /// Where the steps of each state that are no faults begin in `steps`.
    first: Vec<u32>,
    /// Where they lead, and in the uppermost bits the renaming.
    steps: Vec<u32>,
    /// The state from which each was first reached, and by which action.
    from: Vec<(u32, u16)>,
    depth: u32,
    start: Vec<S>,
    /// The first state in which something is broken.
    broken: Option<u32>,
}

/// Bits of a step that say where it leads.
const TO: u32 = 28;

/// Checks that no goal is ever out of reach, and once more that nothing is broken.
pub fn goals<M: Goals>(model: &M) -> Report
where
    M::State: Clone + Hash,
    M::Action: std::fmt::Debug,
{
    let began = Instant::now();
    let mut graph = walk(model);
    let goals = model.goals();
    backwards(&mut graph, &renamed(model, goals.len()));
    let stuck = goals.iter().enumerate().find_map(|(goal, (name, _))| {
        let at = graph.able.iter().position(|able| able & (1 << goal) == 0)?;
        Some((format!("out of reach: {name}"), at as u32))
    });
    let broken = graph.broken.map(|at| ("broken, and stateright has missed it".into(), at));
    let finding = broken.or(stuck).map(|(what, at)| Finding { what, way: way(model, &graph, at) });
    let (states, depth) = (graph.from.len(), graph.depth as usize);
    Report { states, depth, took: began.elapsed(), finding }
}

/// For each renaming and each set of goals that can be reached after it, those before it.
fn renamed<M: Goals>(model: &M, goals: usize) -> Vec<Vec<u16>> {
    let before = |renaming: u8, after: u16| {
        let is_able = |goal: &usize| after & (1 << model.renamed(*goal, renaming)) != 0;
        (0..goals).filter(is_able).fold(0, |able, goal| able | 1 << goal)
    };
    let all = |renaming| (0..1u16 << goals).map(|after| before(renaming, after)).collect();
    (0..model.renamings()).map(all).collect()
}

/// The bytes that `Hash` gives away; numbers and lengths of a state fit into one each.
#[derive(Default)]
pub struct Bytes(Vec<u8>);

impl Hasher for Bytes {
    fn write(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }
    fn write_isize(&mut self, number: isize) {
        self.0.push(u8::try_from(number).expect("a state has small numbers"));
    }
    fn write_usize(&mut self, number: usize) {
        self.0.push(u8::try_from(number).expect("a state has short lists"));
    }
    fn finish(&self) -> u64 {
        unreachable!("only its bytes are asked for")
    }
}

impl Bytes {
    /// 128 bits by which a state is told apart.
    pub fn fingerprint(&mut self, state: &impl Hash) -> u128 {
        self.0.clear();
        state.hash(self);
        let half = |salt: u64| {
            let mut hasher = DefaultHasher::new();
            hasher.write_u64(salt);
            hasher.write(&self.0);
            u128::from(hasher.finish())
        };
        half(0) << 64 | half(1)
    }
}

fn walk<M: Goals>(model: &M) -> Graph<M::State>
where
    M::State: Clone + Hash,
{
    let goals = model.goals();
    let mut bytes = Bytes::default();
    // Looked up only, never walked: its order does not matter.
    let mut numbers: HashMap<u128, u32, BuildHasherDefault<Folded>> = HashMap::default();
    let mut graph = Graph {
        able: Vec::new(),
        first: vec![0],
        steps: Vec::new(),
        from: Vec::new(),
        depth: 0,
        start: model.init_states(),
        broken: None,
    };
    let mut ahead = VecDeque::new();
    for state in graph.start.clone() {
        let number = graph.from.len() as u32;
        numbers.insert(bytes.fingerprint(&state), number);
        graph.from.push((number, 0));
        ahead.push_back((number, 0, state));
    }
    let properties = model.properties();
    let mut actions = Vec::new();
    while let Some((number, depth, state)) = ahead.pop_front() {
        graph.depth = graph.depth.max(depth);
        let is_reached = |goal: &usize| goals[*goal].1(&state);
        let reached = (0..goals.len()).filter(is_reached);
        graph.able.push(reached.fold(0, |able, goal| able | 1 << goal));
        if properties.iter().any(|p| is_missed(p, model, &state)) {
            graph.broken.get_or_insert(number);
        }
        actions.clear();
        model.actions(&state, &mut actions);
        for (index, action) in actions.drain(..).enumerate() {
            let is_fault = model.is_fault(&action);
            let Some((next, renaming)) = model.step(&state, action) else { continue };
            let fresh = graph.from.len() as u32;
            let to = *numbers.entry(bytes.fingerprint(&next)).or_insert(fresh);
            if to == fresh {
                assert!(fresh < 1 << TO, "more states than a step can name");
                graph.from.push((number, index as u16));
                ahead.push_back((fresh, depth + 1, next));
            }
            if !is_fault {
                graph.steps.push(to | u32::from(renaming) << TO);
            }
        }
        graph.first.push(u32::try_from(graph.steps.len()).expect("fewer than 2^32 steps"));
    }
    graph
}

/// Does a state miss what must always hold?
fn is_missed<M: Model>(property: &Property<M>, model: &M, state: &M::State) -> bool {
    property.expectation == Expectation::Always && !(property.condition)(model, state)
}

/// A fingerprint is a hash already.
#[derive(Default)]
struct Folded(u64);

impl Hasher for Folded {
    fn write(&mut self, _: &[u8]) {
        unreachable!("fingerprints are numbers")
    }
    fn write_u128(&mut self, fingerprint: u128) {
        self.0 = fingerprint as u64;
    }
    fn finish(&self) -> u64 {
        self.0
    }
}

/// From which states goals can be reached: whatever a step leads to can be reached before it. Goes
/// over all steps until nothing new is found; last states first, since most steps lead on.
fn backwards<S>(graph: &mut Graph<S>, renamed: &[Vec<u16>]) {
    let all = renamed[0].len() as u16 - 1;
    let mut is_done = false;
    while !is_done {
        is_done = true;
        for state in (0..graph.able.len()).rev() {
            let before = graph.able[state];
            if before == all {
                continue;
            }
            let steps = &graph.steps[graph.first[state] as usize..graph.first[state + 1] as usize];
            let after = |step: &u32| {
                let able = graph.able[(step & ((1 << TO) - 1)) as usize];
                renamed[(step >> TO) as usize][able as usize]
            };
            let able = steps.iter().fold(before, |able, step| able | after(step));
            if able != before {
                graph.able[state] = able;
                is_done = false;
            }
        }
    }
}

fn way<M: Goals>(model: &M, graph: &Graph<M::State>, to: u32) -> Vec<String>
where
    M::State: Clone,
    M::Action: std::fmt::Debug,
{
    let mut steps = Vec::new();
    let mut at = to;
    while graph.from[at as usize].0 != at {
        steps.push(graph.from[at as usize].1);
        at = graph.from[at as usize].0;
    }
    let mut state = graph.start[at as usize].clone();
    let mut told = Vec::new();
    for step in steps.into_iter().rev() {
        let mut actions = Vec::new();
        model.actions(&state, &mut actions);
        let action = actions.swap_remove(step as usize);
        told.push(format!("{action:?}"));
        state = model.next_state(&state, action).expect("it was taken before");
    }
    told
}
