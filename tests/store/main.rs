//! The store on real directories and file systems. Rows of the lessons are named where a test stands for one.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../common/cut_disk.rs"]
mod cut_disk;

mod catalog;
mod crash;
mod evict;
mod faults;
mod forget;
mod kill;
mod mend;
mod million;
mod open;
mod publish;
mod receipt;
mod support;
