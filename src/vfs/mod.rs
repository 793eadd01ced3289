//! RING 3: the FUSE front: mounting, and callbacks that only translate.

pub mod attributes;
pub mod busy;
pub mod deadline;
mod errno;
pub mod front;
pub mod holders;
mod listing;
pub mod mount;
pub mod mountinfo;
pub mod mountpoint;
pub mod read_ahead;
mod reading;
pub mod session;
mod xattrs;
