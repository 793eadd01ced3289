//! The one table from error kinds to errno numbers.

use fuser::Errno;

use crate::error::{Error, Kind};

/// The number that an application sees.
pub(crate) fn errno(error: &Error) -> Errno {
    of_kind(error.kind())
}

fn of_kind(kind: Kind) -> Errno {
    let number = match kind {
        Kind::NotFound => libc::ENOENT,
        Kind::Denied | Kind::Archived => libc::EACCES,
        Kind::Stale => libc::ESTALE,
        Kind::Timeout => libc::ETIMEDOUT,
        // The destination's trouble is not the reader's: he only learns that his bytes cannot be had.
        Kind::Unreachable | Kind::Corrupt | Kind::Io | Kind::Exists | Kind::NoSpace => libc::EIO,
        Kind::ReadOnly => libc::EROFS,
        Kind::NotSupported => libc::EOPNOTSUPP,
        Kind::NameTooLong => libc::ENAMETOOLONG,
        Kind::Busy => libc::EBUSY,
        Kind::Limit => libc::EDQUOT,
        Kind::Invalid => libc::EINVAL,
    };
    Errno::from_i32(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_reader_ever_sees_enospc_and_only_not_found_is_enoent() {
        for kind in [Kind::NoSpace, Kind::Unreachable, Kind::Timeout, Kind::Busy, Kind::Denied] {
            let number = i32::from(of_kind(kind));
            assert!(number != libc::ENOSPC && number != libc::ENOENT, "{kind}");
        }
        assert_eq!(i32::from(of_kind(Kind::NotFound)), libc::ENOENT);
        assert_eq!(i32::from(of_kind(Kind::Stale)), libc::ESTALE);
    }
}
