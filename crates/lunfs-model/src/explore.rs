//! Explores every state of a model: safety with stateright, goals over the whole graph.
//!
//! Safety is an invariant, and stateright finds the shortest way to a state that breaks it. For
//! goals its `eventually` is of no use here: it looks at paths that end, overlooks cycles, and may
//! miss a path that joins one seen before. So the goals are checked as *possibility from
//! everywhere*: no state can be reached from which the goal cannot be reached any more without a
//! further fault. That is what a deadlock, a lost lock or a slot that nobody can free would break;
//! that hosts which can do something do it in the end is assumed, not shown.
//!
//! States are told apart by 64 bits of hash, here and in stateright: with ten million states the
//! chance that two fell together is about one in 400,000.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
use std::time::{Duration, Instant};

use stateright::{Checker, HasDiscoveries, Model};

/// Something that must stay possible: its name, and where it is reached.
pub type Goal<S> = (String, Box<dyn Fn(&S) -> bool>);

/// A model whose goals can be checked.
pub trait Goals: Model {
    /// Is this something that may happen, but need not?
    fn is_fault(&self, action: &Self::Action) -> bool;
    /// What must stay possible without a further fault.
    fn goals(&self) -> Vec<Goal<Self::State>>;
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
    M::State: Clone + std::fmt::Debug + std::hash::Hash + PartialEq + Send + Sync,
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
    /// For each goal, the states in which it is reached.
    reached: Vec<Vec<u32>>,
    /// Steps that are no faults, by where they lead.
    before: Vec<(u32, u32)>,
    /// The state from which each was first reached, and by which action.
    from: Vec<(u32, u32)>,
    depth: u32,
    start: Vec<S>,
}

/// Checks that no goal is ever out of reach.
pub fn goals<M: Goals>(model: &M) -> Report
where
    M::State: Clone + std::hash::Hash,
    M::Action: std::fmt::Debug,
{
    let began = Instant::now();
    let mut graph = walk(model);
    graph.before.sort_unstable();
    let mut finding = None;
    for ((name, _), reached) in model.goals().into_iter().zip(&graph.reached) {
        let able = backwards(&graph, reached);
        if let Some(stuck) = able.iter().position(|able| !able) {
            let what = format!("out of reach: {name}");
            finding = Some(Finding { what, way: way(model, &graph, stuck as u32) });
            break;
        }
    }
    let (states, depth) = (graph.from.len(), graph.depth as usize);
    Report { states, depth, took: began.elapsed(), finding }
}

fn walk<M: Goals>(model: &M) -> Graph<M::State>
where
    M::State: Clone + std::hash::Hash,
{
    let goals = model.goals();
    let hasher = BuildHasherDefault::<DefaultHasher>::default();
    // Looked up only, never walked: its order does not matter.
    let mut numbers: HashMap<u64, u32> = HashMap::new();
    let mut graph = Graph {
        reached: vec![Vec::new(); goals.len()],
        before: Vec::new(),
        from: Vec::new(),
        depth: 0,
        start: model.init_states(),
    };
    let mut ahead = VecDeque::new();
    for state in graph.start.clone() {
        let number = graph.from.len() as u32;
        numbers.insert(hasher.hash_one(&state), number);
        graph.from.push((number, 0));
        ahead.push_back((number, 0, state));
    }
    let mut actions = Vec::new();
    while let Some((number, depth, state)) = ahead.pop_front() {
        graph.depth = graph.depth.max(depth);
        for (goal, reached) in goals.iter().zip(&mut graph.reached) {
            if goal.1(&state) {
                reached.push(number);
            }
        }
        actions.clear();
        model.actions(&state, &mut actions);
        for (index, action) in actions.drain(..).enumerate() {
            let is_fault = model.is_fault(&action);
            let Some(next) = model.next_state(&state, action) else { continue };
            let fresh = graph.from.len() as u32;
            let to = *numbers.entry(hasher.hash_one(&next)).or_insert(fresh);
            if to == fresh {
                graph.from.push((number, index as u32));
                ahead.push_back((fresh, depth + 1, next));
            }
            if !is_fault && to != number {
                graph.before.push((to, number));
            }
        }
    }
    graph
}

/// The states from which one of `reached` can be reached.
fn backwards<S>(graph: &Graph<S>, reached: &[u32]) -> Vec<bool> {
    let mut able = vec![false; graph.from.len()];
    let mut ahead: Vec<u32> = reached.to_vec();
    reached.iter().for_each(|state| able[*state as usize] = true);
    while let Some(state) = ahead.pop() {
        let first = graph.before.partition_point(|(to, _)| *to < state);
        let steps = graph.before[first..].iter().take_while(|(to, _)| *to == state);
        for (_, from) in steps {
            if !std::mem::replace(&mut able[*from as usize], true) {
                ahead.push(*from);
            }
        }
    }
    able
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
