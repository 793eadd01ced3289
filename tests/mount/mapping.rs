//! A mapped file. This crate has no unsafe code, so another program holds the mapping.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

/// Answers `OFFSET LENGTH` with these bytes in hexadecimal.
const PROGRAM: &str = "\
import mmap, os, sys
with open(sys.argv[1], 'rb') as file:
    mapped = mmap.mmap(file.fileno(), 0, mmap.MAP_SHARED, mmap.PROT_READ)
os.closerange(3, 64)  # mmap holds a copy of the descriptor
print(len(mapped), flush=True)
for line in sys.stdin:
    offset, length = map(int, line.split())
    print(mapped[offset:offset + length].hex(), flush=True)
";

/// Ends with its owner.
pub(crate) struct Mapping {
    child: Child,
    ask: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
    len: u64,
}

impl Mapping {
    /// Maps the whole file; the descriptor is closed at once.
    pub(crate) fn of(path: &Path) -> Option<Self> {
        let child = Command::new("python3")
            .args(["-c", PROGRAM])
            .arg(path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn();
        let Ok(mut child) = child else {
            crate::common::skip("python3");
            return None;
        };
        let (ask, answers) = (child.stdin.take(), child.stdout.take().unwrap());
        let mut mapping = Self { child, ask, answers: BufReader::new(answers), len: 0 };
        mapping.len = mapping.line().parse().unwrap();
        Some(mapping)
    }

    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    pub(crate) fn read(&mut self, offset: u64, len: usize) -> Vec<u8> {
        writeln!(self.ask.as_mut().unwrap(), "{offset} {len}").unwrap();
        let hex = self.line();
        let digits = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).unwrap();
        (0..hex.len()).step_by(2).map(digits).collect()
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // The end of its input ends it.
        self.ask = None;
        drop(self.child.wait());
    }
}
