//! RING 0: pure state machines. No I/O, no clock (time is a parameter), no tasks; no guard ever leaves, no closure runs under a lock.

pub mod attributes;
pub mod block_map;
pub mod budget;
pub mod claims;
pub mod filter;
pub mod flight;
pub mod hashes;
pub mod ids;
pub mod in_flight;
pub mod open_mode;
pub mod path;
pub mod permits;
pub mod phase;
pub mod plan;
pub mod pool;
pub mod priority;
pub mod progress;
pub mod queue;
pub mod range;
pub mod retry;
pub mod run_set;
pub mod shelf;
pub mod slot;
pub mod table;
