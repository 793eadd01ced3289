//! Many small files on their way into DIR: each part is made, proven and given its metadata by one thread in one go, and then a whole
//! step of them is published with one sync and one commit. Blocking; for the threads of a bulk copy.
//!
//! | file | what |
//! |---|---|
//! | `part` | one part, from making to metadata |
//! | `steps` | steps: sync, commit, renames; what a step renamed is vouched for by the next |
//! | `tree` | directories, links and deletions, without a sync of their own |

mod part;
mod steps;
mod tree;

pub use part::{Finished, WholePart};
pub use steps::{Content, Outcome, Ready, Said, Steps, What};
pub use tree::Removed;
