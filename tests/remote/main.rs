//! The real program and real servers: the same tree by copy, mount and clone, and no secret anywhere.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[path = "../common/mod.rs"]
mod common;
#[path = "../mount/harness.rs"]
#[allow(dead_code, reason = "shared with the tests of mounts")]
mod harness;

mod clouds;
mod s3;
mod secrets;
mod webdav;
