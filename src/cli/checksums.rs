//! Lists of checksums in exactly the form of `b3sum` and `sha256sum`, which check them with `-c` in DIR.

use std::fs::File;
use std::io::{BufWriter, Read, Stdout, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use ring::digest::{Context, SHA256};

use crate::cli::complain;
use crate::cli::exit::Exit;
use crate::cli::verify::{Export, no_path};
use crate::control::status::JsonPath;
use crate::control::verify::VerifyLine;
use crate::error::{Error, Kind, Result};

/// Read at once.
const STEP: usize = 1 << 20;

/// Prints one line for each digest.
pub(crate) struct Checksums {
    dir: PathBuf,
    export: Export,
    to: BufWriter<Stdout>,
    failed: u64,
}

impl Checksums {
    pub(crate) fn new(dir: &Path, export: Export) -> Self {
        let to = BufWriter::new(std::io::stdout());
        Self { dir: dir.to_owned(), export, to, failed: 0 }
    }

    pub(crate) fn take(&mut self, line: VerifyLine) {
        let VerifyLine::Digest { path, blake3 } = line else { return };
        if let Err(error) = self.print(&path, &blake3) {
            complain(&error.to_string());
            self.failed += 1;
        }
    }

    fn print(&mut self, path: &JsonPath, blake3: &str) -> Result<()> {
        let name = path.to_path_buf().ok_or_else(|| no_path(path))?;
        let digest = match self.export {
            Export::B3sum if name.to_str().is_none() => {
                return Err(Error::new(Kind::NotSupported, "list")
                    .at(&path.path)
                    .because("b3sum cannot check names that are not UTF-8; left out"));
            }
            Export::B3sum => blake3.to_owned(),
            Export::Sha256sum => sha256(&self.dir.join(&name))?,
        };
        // A reader that left is no error.
        drop(self.to.write_all(&line(&digest, name.as_os_str().as_bytes())));
        Ok(())
    }

    pub(crate) fn finish(mut self) -> Exit {
        drop(self.to.flush());
        if self.failed == 0 { Exit::Ok } else { Exit::SomeFailed }
    }
}

/// A line as both tools write and read it: a name with a backslash or an end of line is escaped, and a backslash before the digest says so.
fn line(digest: &str, name: &[u8]) -> Vec<u8> {
    let is_escaped = name.iter().any(|byte| matches!(byte, b'\\' | b'\n' | b'\r'));
    let mut line = Vec::with_capacity(digest.len() + name.len() + 4);
    if is_escaped {
        line.push(b'\\');
    }
    line.extend_from_slice(digest.as_bytes());
    line.extend_from_slice(b"  ");
    for byte in name {
        match byte {
            b'\\' => line.extend_from_slice(b"\\\\"),
            b'\n' => line.extend_from_slice(b"\\n"),
            b'\r' => line.extend_from_slice(b"\\r"),
            byte => line.push(*byte),
        }
    }
    line.push(b'\n');
    line
}

fn sha256(path: &Path) -> Result<String> {
    let failed = |error| Error::io("read published file", error).at(path);
    // Opening anything else may never return.
    if !std::fs::symlink_metadata(path).map_err(failed)?.is_file() {
        return Err(Error::new(Kind::Exists, "read published file")
            .at(path)
            .because("it is no regular file"));
    }
    let mut file = File::open(path).map_err(failed)?;
    let mut context = Context::new(&SHA256);
    let mut buffer = vec![0; STEP];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => context.update(&buffer[..read]),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(failed(error)),
        }
    }
    Ok(context.finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_would_break_its_line_is_escaped() {
        assert_eq!(line("00", b"a b"), b"00  a b\n");
        assert_eq!(line("00", b"\xff"), b"00  \xff\n");
        assert_eq!(line("00", b"a\nb\\c\rd"), b"\\00  a\\nb\\\\c\\rd\n");
    }
}
