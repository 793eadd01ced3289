//! A directory of this machine.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use lazycopy::error::Error;
use lazycopy::source::Source;
use lazycopy::source::local::{LocalOptions, LocalSource};
use tempfile::TempDir;

use crate::ground::{Can, Ground};

pub(crate) struct Local(TempDir);

pub(crate) async fn start() -> Option<Local> {
    Some(Local(TempDir::new().unwrap()))
}

/// Puts a file below `root` as a program does that nobody shall see half a file of.
pub(crate) fn put(root: &Path, path: &[u8], bytes: &[u8]) {
    let path = root.join(OsStr::from_bytes(path));
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let new = tempfile::NamedTempFile::new_in(root.parent().unwrap()).unwrap();
    fs::write(new.path(), bytes).unwrap();
    fs::set_permissions(new.path(), fs::Permissions::from_mode(0o644)).unwrap();
    new.persist(path).unwrap();
}

pub(crate) fn put_sparse(root: &Path, path: &str, size: u64, marks: &[(u64, Vec<u8>)]) {
    let file = fs::File::create(root.join(path)).unwrap();
    file.set_len(size).unwrap();
    for (offset, bytes) in marks {
        file.write_all_at(bytes, *offset).unwrap();
    }
}

#[async_trait]
impl Ground for Local {
    fn can(&self) -> Can {
        Can { any_bytes: true, empty_directories: true, plain_http: false }
    }

    fn directory(&self) -> PathBuf {
        self.0.path().to_owned()
    }

    fn port(&self) -> Option<u16> {
        None
    }

    async fn open(&self, _port: Option<u16>) -> Arc<dyn Source> {
        Arc::new(LocalSource::open(self.0.path(), LocalOptions::default()).unwrap())
    }

    // Root may read everything.
    async fn forbidden(&self) -> Option<Error> {
        None
    }
}
