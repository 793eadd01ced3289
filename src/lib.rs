//! lazycopy: a copy that can be used before it is finished.
//!
//! `lazycopy mount SOURCE MOUNTPOINT --dest DIR` shows a source tree at once as a local path. A read is served from a sparse temp file
//! (the *backing file*) that chunk downloaders fill, on demand and ahead of need. A finished file is verified and renamed into DIR as an
//! ordinary file.
//!
//! # The map
//! | module | ring | what | may import |
//! |---|---|---|---|
//! | [`cli`] | | one file per subcommand; raw arguments become validated settings once | everything below |
//! | [`jobs`] | | a jobs file: several copies in processes of their own, hooks, snapshots | everything below |
//! | [`daemon`] | | composition root: start checks, builds everything, signals, order of shutdown | everything below |
//! | [`vfs`] | 3 | the FUSE front: mounting, callbacks that only translate, passthrough, errno table | engine, core |
//! | [`control`] | 3 | the control socket (HTTP + JSON), its client and registry | engine, core |
//! | [`engine`] | 2 | the lazy file system with no FUSE in it | store, source, core |
//! | [`store`] | 1 | the destination's disk: backing files, catalog, publish, recovery, proof, receipt, eviction, probe, lock | core |
//! | [`source`] | 1 | where bytes come from: local directories, HTTP, S3, Google Cloud Storage, Azure, WebDAV, SFTP, manifests; one that is away is opened when it is back | core |
//! | [`core`] | 0 | pure state machines: ranges, block map, claims, permits, limits, filters, lanes, planning | sync |
//! | [`sync`] | | the only door to locks, atomics and completion signals; loom is swapped in here | |
//! | [`error`] | | one error type, a closed set of kinds | |
//!
//! There is no `unsafe`: system calls come through rustix (a `sys` module would be the only place for it). vfs and control do not know each other, nor do store and source. `tests/architecture.rs` holds the crate to this table.
//!
//! # The life of a read
//! 1. The kernel asks; [`vfs::front`] calls [`engine::Engine::try_read`]. If every block is present the bytes are copied out of the backing
//!    file without waiting (`RWF_NOWAIT`) and answered by the FUSE thread itself. No FUSE thread ever waits.
//! 2. Else a task takes the *reply* and calls [`engine::Engine::read`]: it *claims* the range ([`core::claims`]) and receives a *lease* for each
//!    part that nobody fetches yet, and a *waiter* for all of it. Leases go into fetch tasks at once; the reader keeps the waiter only.
//! 3. A fetch task ([`engine::fetch`]) gets a permit ([`core::permits`], demand first) unless a limit forbids it ([`engine::limits`]), streams its chunk from the source, writes and hashes what
//!    arrives, and tells the claims how much has landed. Whoever lands the last byte that a waiter lacks wakes it, once.
//! 4. The reader looks again: covered, it copies out and replies; failed, it gets the error; no progress for `--read-timeout`, ETIMEDOUT.
//! 5. Beside all this [`core::plan`] looks at each handle's reads and fetches ahead of those that are streams.
//!
//! # The life of a file
//! Absent -> Filling -> Sealed (every block is here) -> Verified (read again: the bytes are those that landed, the source is unchanged) ->
//! Published (metadata, fsync, rename without clobbering, fsync of the directory). A file that changes at the source gets a new inode
//! number; the old one answers ESTALE for what is not local. In a cache of limited size (`--keep SIZE`, [`engine::evict`]) a version may go
//! back to Absent, and single blocks too: first from the record, then from the disk. Published files are read by the kernel itself where it can (passthrough).
//! They can be proven again at any later time, and mended block by block ([`engine::verify`]).
//! In a copy in place (`lazycopy clone`) the mount covers the destination itself, and goes when the last file is published ([`daemon`]).
//!
//! # A copy without a mount
//! `lazycopy copy` ([`daemon::copy`]) runs the same engine with nobody reading. A tree on this machine is copied by plain threads
//! ([`engine::bulk`]): scanners compare directories with catalog and DIR, carriers bring bytes over and prove them, one publisher takes
//! steps of one sync and one commit each ([`store::bulk`]). What is out of the ordinary, very large files and every remote source go file by file as above;
//! a later pass over a remote source lists everything first ([`engine::bulk::remote`]).

#[cfg(not(lazycopy_loom))]
pub mod cli;
#[cfg(not(lazycopy_loom))]
pub mod control;
pub mod core;
#[cfg(not(lazycopy_loom))]
pub mod daemon;
#[cfg(not(lazycopy_loom))]
pub mod engine;
pub mod error;
#[cfg(not(lazycopy_loom))]
pub mod jobs;
#[cfg(not(lazycopy_loom))]
pub mod source;
#[cfg(not(lazycopy_loom))]
pub mod store;
pub mod sync;
#[cfg(not(lazycopy_loom))]
pub mod vfs;
