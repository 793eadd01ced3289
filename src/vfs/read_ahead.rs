//! The kernel's read-ahead window of a mount, which INIT cannot raise.

use std::fs;

use crate::vfs::mountinfo::DeviceNumber;

/// Sets the window to `kib` KiB; takes root, and is worth a log line only if it does not work.
pub fn set_read_ahead(device: DeviceNumber, kib: u32) -> bool {
    let path = format!("/sys/class/bdi/{device}/read_ahead_kb");
    match fs::write(&path, kib.to_string()) {
        Ok(()) => true,
        Err(error) => {
            tracing::debug!(path, kib, err = %error, "kernel read-ahead stays as it is");
            false
        }
    }
}
