//! A destination that is only looked at: DIR as it is, with a copy of its catalog in a scratch directory, so that nothing of DIR changes,
//! not even what is private in it. For plans.

use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;

use arc_swap::ArcSwapOption;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::core::ids::Ids;
use crate::core::pool::LruPool;
use crate::error::{Error, Result};

use super::catalog::{CATALOG_NAME, Catalog};
use super::destination::{Disk, STATE_NAME};
use super::elsewhere::pointer;
use super::receipt::HasReceipt;
use super::recovery::Recovery;
use super::root::{Root, open_beneath};
use super::state::{StateDirectory, take_lock_to_look};
use super::{Destination, DestinationOptions, probe};

/// Descriptors of backing files: a plan opens none.
const DESCRIPTORS: usize = 8;

impl Destination {
    /// Opens DIR, which may be missing, for looking at it. What is written goes into `scratch`, an empty directory of this process.
    ///
    /// # Errors
    /// `Busy` if another process holds DIR; `Invalid` if it is no directory; what the disk says.
    pub fn open_view(root: &Path, scratch: &Path, options: DestinationOptions) -> Result<Self> {
        let failed = |errno| Error::io("look at destination", errno).at(root);
        let directory = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let open = |path: &Path| rustix::fs::open(path, directory, Mode::empty());
        let private = Root::new(open(scratch).map_err(failed)?, scratch.to_owned());
        let state = StateDirectory::open(&private, None)?;
        let (fd, lock) = match open(root) {
            Ok(fd) => match open_beneath(fd.as_fd(), STATE_NAME.as_bytes(), directory) {
                Ok(own) => {
                    let viewed = Root::new(fd, root.to_owned());
                    let lock = take_lock_to_look(&viewed, own.as_fd())?;
                    let elsewhere = pointer(own.as_fd()).map_err(failed)?;
                    let catalog = elsewhere.map_or_else(|| root.join(STATE_NAME), |(_, path)| path);
                    copy_catalog(&catalog, &scratch.join(STATE_NAME))?;
                    (open(root).map_err(failed)?, lock)
                }
                Err(Errno::NOENT) => (fd, None),
                Err(errno) => return Err(failed(errno)),
            },
            // Made when there is something to copy.
            Err(Errno::NOENT) => {
                (open(&scratch.join(STATE_NAME).join("parts")).map_err(failed)?, None)
            }
            Err(errno) => return Err(failed(errno)),
        };
        let catalog = Catalog::open(state.fd(), state.trees(), &scratch.join(STATE_NAME))?;
        let disk = Disk {
            root: Root::new(fd, root.to_owned()),
            catalog,
            abilities: probe::probe(state.parts())?,
            state,
            options,
            descriptors: LruPool::new(DESCRIPTORS),
            ids: Ids::default(),
            budget: None,
            receipt: HasReceipt::default(),
            marker: ArcSwapOption::empty(),
            salt: probe::random(),
            _viewed: lock,
        };
        Ok(Self { disk: Arc::new(disk), recovery: Arc::new(Recovery::default()) })
    }
}

fn copy_catalog(from: &Path, to: &Path) -> Result<()> {
    match std::fs::copy(from.join(CATALOG_NAME), to.join(CATALOG_NAME)) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(Error::io("copy catalog", error).at(from)),
    }
}
