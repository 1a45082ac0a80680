//! A world that can break on command.
//!
//! It runs the core of lunfs, exactly as it ships, on a disk that tears, delays and loses, with
//! clocks that drift and hosts that crash, pause and come back, and checks every rule. Time is
//! virtual; everything random comes from the seed; so a seed is a run.
//!
//! | module | what it owns |
//! |---|---|
//! | `executor` | virtual time, tasks, timers |
//! | `disk`, `clock`, `fence` | the doors of the core |
//! | `world`, `host` | programs that come and go |
//! | `model` | what may be seen |
//! | `workload` | operations, each checked against the model |
//! | `checkers` | rules that are checked on the disk itself |
//! | `schedule` | one run: from a seed to a verdict |
//! | `story` | what is told of a finding |
//! | `script` | scripted runs for tests |
//! | `enumerate` | every crash of every operation, in a world of its own |
#![forbid(unsafe_code)]

pub mod chance;
pub mod checkers;
pub mod clock;
pub mod disk;
pub mod enumerate;
pub mod executor;
pub mod fence;
pub mod finding;
pub mod host;
pub mod met;
pub mod model;
pub mod schedule;
pub mod script;
pub mod signal;
pub mod story;
pub mod trace;
pub mod workload;
pub mod world;
