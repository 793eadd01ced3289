//! Several copies by one file: `lazycopy run JOBS.toml`.
//!
//! Each job is a process of its own (`lazycopy copy … --json`), so that one that crashes takes no other with it; what it prints is its
//! progress, its exit code its outcome: death is never success. One thread runs all of this; whatever waits is a future.
//!
//! | file | what |
//! |---|---|
//! | [`plan`] | a jobs file, checked as a whole |
//! | `trust` | nobody else can have written it |
//! | `file`, `fields` | its tables and keys; what is wrong, with line and key |
//! | [`options`] | the keys that are options of `copy` |
//! | `apart` | jobs that are in each other's way |
//! | [`run`] | all jobs: in sequence or several at once |
//! | `job` | one job from its snapshot to its hook |
//! | `process` | a child that ends when we end |
//! | `copying` | a child that copies, or proves |
//! | `shares` | one limit for all that run |
//! | `hooks` | programs to be told how it went |
//! | `snapshot` | a source of one moment, and what a crash left of it |
//! | [`report`] | outcomes and exit codes |
//! | [`record`] | what is written down of a run |

mod apart;
mod copying;
mod fields;
mod file;
mod hooks;
mod job;
pub mod options;
pub mod plan;
mod process;
pub mod record;
pub mod report;
pub mod run;
mod shares;
mod snapshot;
mod trust;
