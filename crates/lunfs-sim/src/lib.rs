//! A world that can break on command.
pub mod chance;
pub mod clock;
pub mod disk;
pub mod executor;
pub mod trace;
