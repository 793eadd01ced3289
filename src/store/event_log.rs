//! The file that events are written to: whole lines, appended; a few files of limited size, the newest without a number.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::error::{Error, Result};

use super::elsewhere::pointer;
use super::root::{create_beneath, open_beneath};
use super::{Destination, STATE_NAME};

/// The newest first.
pub(super) const LOG_NAMES: [&str; 4] =
    ["events.jsonl", "events.1.jsonl", "events.2.jsonl", "events.3.jsonl"];
/// A file is followed by another when it has reached this size.
const FILE_BYTES: u64 = 16 << 20;
/// Longer than any line.
const TAIL_BYTES: u64 = 256 * 1024;

/// The log of one destination, for the one thread that writes it.
#[derive(Debug)]
pub struct EventLog {
    directory: OwnedFd,
    /// For messages.
    shown_as: PathBuf,
    file: Option<File>,
    file_bytes: u64,
}

impl Destination {
    /// The log in its state directory; nothing is made before the first line.
    ///
    /// # Errors
    /// If there are no descriptors left.
    pub fn event_log(&self) -> Result<EventLog> {
        let (directory, shown_as) = self.disk.state.catalog(&self.disk.root);
        let directory = directory
            .try_clone_to_owned()
            .map_err(|error| Error::io("open event log", error).at(&shown_as))?;
        Ok(EventLog { directory, shown_as, file: None, file_bytes: FILE_BYTES })
    }
}

/// The files of a destination that nobody serves, the oldest first; `None` if it is none.
///
/// # Errors
/// As opening a file.
pub fn written_in(destination: &Path) -> Result<Option<Vec<File>>> {
    let shown_as = destination.join(STATE_NAME);
    let failed = |errno| Error::io("read events", errno).at(&shown_as);
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let own = match rustix::fs::open(&shown_as, flags, Mode::empty()) {
        Ok(own) => own,
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
        Err(errno) => return Err(failed(errno)),
    };
    let directory = match pointer(own.as_fd()).map_err(failed)? {
        Some((_, elsewhere)) => {
            rustix::fs::open(elsewhere, flags, Mode::empty()).map_err(failed)?
        }
        None => own,
    };
    let log =
        EventLog { directory, shown_as: shown_as.clone(), file: None, file_bytes: FILE_BYTES };
    log.files().map(Some)
}

impl EventLog {
    /// Appends whole lines, in one piece. If that fails, the log is as it was.
    ///
    /// # Errors
    /// As a write.
    pub fn append(&mut self, lines: &[u8]) -> Result<()> {
        let appended = self.try_append(lines);
        appended.map_err(|error| {
            self.file = None; // opened anew: it may have been removed, or its disk
            Error::io("write events", error).at(self.shown_as.join(LOG_NAMES[0]))
        })
    }

    fn try_append(&mut self, lines: &[u8]) -> std::io::Result<()> {
        let mut file = match self.file.take() {
            Some(file) => file,
            None => self.open_newest()?,
        };
        let mut len = file.metadata()?.len();
        if len > 0 && len + lines.len() as u64 > self.file_bytes {
            self.make_place()?;
            file = self.open_newest()?;
            len = 0;
        }
        if let Err(error) = file.write_all(lines) {
            file.set_len(len)?;
            return Err(error);
        }
        self.file = Some(file);
        Ok(())
    }

    /// A line that was cut off by a crash goes.
    fn open_newest(&self) -> std::io::Result<File> {
        let flags = OFlags::RDWR | OFlags::APPEND | OFlags::CREATE | OFlags::NOFOLLOW;
        let name = LOG_NAMES[0].as_bytes();
        let fd = create_beneath(self.directory.as_fd(), name, flags, Mode::from_raw_mode(0o600))?;
        let file = File::from(fd);
        let (tail, from) = tail(&file)?;
        let whole = tail.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        if whole < tail.len() {
            file.set_len(from + whole as u64)?;
        }
        Ok(file)
    }

    /// The oldest file goes, the others move on by one.
    fn make_place(&self) -> Result<(), Errno> {
        for pair in LOG_NAMES.windows(2).rev() {
            match rustix::fs::renameat(&self.directory, pair[0], &self.directory, pair[1]) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(errno) => return Err(errno),
            }
        }
        Ok(())
    }

    /// The last whole line of all, without its end.
    ///
    /// # Errors
    /// As a read.
    pub fn last_line(&self) -> Result<Option<Vec<u8>>> {
        let failed = |error| Error::io("read events", error).at(&self.shown_as);
        for file in self.files()?.into_iter().rev() {
            let (tail, _) = tail(&file).map_err(failed)?;
            let mut lines = tail.split(|byte| *byte == b'\n').rev();
            lines.next(); // behind the last end, or cut off
            if let Some(last) = lines.next() {
                return Ok(Some(last.to_vec()));
            }
        }
        Ok(None)
    }

    /// All files there are, the oldest first, to be read from their beginnings.
    ///
    /// # Errors
    /// As opening a file.
    pub fn files(&self) -> Result<Vec<File>> {
        let mut files = Vec::new();
        for name in LOG_NAMES.iter().rev() {
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK;
            match open_beneath(self.directory.as_fd(), name.as_bytes(), flags) {
                Ok(fd) => files.push(File::from(fd)),
                Err(Errno::NOENT) => {}
                Err(errno) => {
                    return Err(Error::io("read events", errno).at(self.shown_as.join(name)));
                }
            }
        }
        Ok(files)
    }
}

/// The end of a file, and where that begins.
fn tail(mut file: &File) -> std::io::Result<(Vec<u8>, u64)> {
    let from = file.metadata()?.len().saturating_sub(TAIL_BYTES);
    file.seek(SeekFrom::Start(from))?;
    let mut tail = Vec::new();
    file.take(TAIL_BYTES).read_to_end(&mut tail)?;
    Ok((tail, from))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(directory: &std::path::Path) -> EventLog {
        let shown_as = directory.to_owned();
        let directory = File::open(directory).unwrap().into();
        EventLog { directory, shown_as, file: None, file_bytes: 100 }
    }

    fn text(log: &EventLog) -> String {
        let mut text = String::new();
        for mut file in log.files().unwrap() {
            file.read_to_string(&mut text).unwrap();
        }
        text
    }

    #[test]
    fn the_log_has_a_largest_size_and_loses_only_its_oldest_lines() {
        let directory = tempfile::tempdir().unwrap();
        let mut log = log(directory.path());
        assert_eq!(log.last_line().unwrap(), None);
        for number in 0..1000 {
            log.append(format!("line {number:04}\n").as_bytes()).unwrap();
        }
        let (text, last) = (text(&log), log.last_line().unwrap().unwrap());
        assert_eq!(last, b"line 0999");
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), LOG_NAMES.len());
        assert!((300..=400).contains(&text.len()), "{}", text.len());
        let first = 1000 - text.lines().count();
        for (line, number) in text.lines().zip(first..) {
            assert_eq!(line, format!("line {number:04}"));
        }
    }

    #[test]
    fn a_line_that_a_crash_cut_off_is_gone_and_the_next_is_whole() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join(LOG_NAMES[0]), "one\ntw").unwrap();
        let mut log = log(directory.path());
        assert_eq!(log.last_line().unwrap().unwrap(), b"one");
        log.append(b"three\n").unwrap();
        assert_eq!(text(&log), "one\nthree\n");
    }

    #[test]
    fn lines_are_written_again_after_their_file_could_not_be_opened() {
        let directory = tempfile::tempdir().unwrap();
        let blocked = directory.path().join(LOG_NAMES[0]);
        std::fs::create_dir(&blocked).unwrap();
        let mut log = log(directory.path());
        assert!(log.append(b"one\n").is_err());
        std::fs::remove_dir(&blocked).unwrap();
        log.append(b"two\n").unwrap();
        assert_eq!(text(&log), "two\n");
    }
}
