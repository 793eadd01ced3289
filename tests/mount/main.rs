//! The real program on the real kernel, as a user has it. Without FUSE or root these tests skip themselves, or fail if
//! `REQUIRE_FUSE=1`.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[path = "../common/mod.rs"]
mod common;
#[path = "../common/cut_disk.rs"]
mod cut_disk;
#[path = "../common/origin.rs"]
mod origin;

mod harness;
mod mapping;
mod tree;

mod bad_input;
mod cache;
mod changes;
mod clone;
mod crash;
mod events;
mod exact;
mod extremes;
mod hang;
mod http;
mod hydrate;
mod limits;
mod mutations;
mod offline;
mod orders;
mod published;
mod quota;
mod replaced;
mod resume;
mod space;
mod sparse;
mod status;
mod stress;
mod unmounting;
mod verify;
