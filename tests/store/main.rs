//! The store on real directories and file systems. Rows of the lessons are named where a test stands for one.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod catalog;
mod crash;
mod faults;
mod forget;
mod kill;
mod mend;
mod open;
mod publish;
mod support;
