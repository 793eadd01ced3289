//! Checksums that lie beside their files: `NAME.sha256`, as `sha256sum NAME > NAME.sha256` writes it or with the digest alone.
//!
//! A sidecar is looked for in what is known of the directory, so a file without one costs no request. It is the source's own checksum
//! like one in a header, with one difference: it can be forgotten when its file is written anew. So bytes that contradict a sidecar
//! that is older than its file are no error: the sidecar is of an earlier version, which is said, and the proof is that of a file
//! without one. One that is as old or younger, or whose age nobody tells, was made for these bytes: they are not published.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use futures_util::TryStreamExt;

use crate::core::attributes::{Attributes, Checksum, EntryKind, Timestamp};
use crate::core::path::RelPath;
use crate::core::range::ByteRange;
use crate::engine::file::LazyFile;
use crate::engine::node::Body;
use crate::engine::{Engine, jitter, on_disk};
use crate::error::{Kind, Result};

const EXTENSION: &str = ".sha256";
/// A longer one is no list of checksums.
const LARGEST: u64 = 64 << 10;
/// Bytes of a SHA-256.
const DIGEST_BYTES: usize = 32;

/// What the source says of the bytes of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Expected {
    pub(super) checksum: Checksum,
    /// It lies beside the file and is older: a contradiction says that nobody made a new one.
    pub(super) may_be_outdated: bool,
}

impl Engine {
    /// The latest word of the source on the bytes of this version.
    ///
    /// # Errors
    /// That the source does not answer.
    pub(super) async fn expected(
        &self,
        file: &LazyFile,
        attributes: &Attributes,
    ) -> Result<Option<Expected>> {
        let checksum = attributes.checksum.clone().or_else(|| file.attributes.checksum.clone());
        match checksum {
            Some(checksum) => Ok(Some(Expected { checksum, may_be_outdated: false })),
            None => self.sidecar(file, attributes).await,
        }
    }

    /// What a sidecar says of `file`, whose attributes are these; `None` if there is none, or none that can be used.
    ///
    /// # Errors
    /// That the source does not answer.
    async fn sidecar(&self, file: &LazyFile, attributes: &Attributes) -> Result<Option<Expected>> {
        let Some(path) = self.listed_sidecar(file).await? else { return Ok(None) };
        let mut tries = self.settings.retry.begin();
        loop {
            let connection = self.connection().await;
            let asked = self.within_deadline("read checksum file", self.read_sidecar(&path)).await;
            drop(connection);
            let error = match asked {
                Ok(None) => return Ok(None),
                Ok(Some((text, modified))) => {
                    let found = parse(&text, file.path.name());
                    if found.is_none() {
                        tracing::warn!(path = %path, "no SHA-256 of its file in it");
                    }
                    return Ok(found.map(|digest| Expected {
                        checksum: Checksum::Sha256(digest),
                        may_be_outdated: modified
                            .zip(attributes.modified)
                            .is_some_and(|(sidecar, file)| sidecar < file),
                    }));
                }
                Err(error) => error,
            };
            // A proof that may not be fetched is no missing one.
            if error.kind() == Kind::Limit {
                return Err(error.at(path.as_path()));
            }
            if !error.is_transient() {
                tracing::warn!(path = %path, %error, "checksum file not used");
                return Ok(None);
            }
            let Some(wait) = tries.wait_after(&error, jitter()) else {
                return Err(error.at(path.as_path()));
            };
            tokio::time::sleep(wait).await;
        }
    }

    /// The sidecar of a file, if its directory is known to list one.
    async fn listed_sidecar(&self, file: &LazyFile) -> Result<Option<RelPath>> {
        let mut name = file.path.name().to_owned();
        name.push(EXTENSION);
        let sibling = file.path.parent().and_then(|parent| parent.child(&name).ok());
        let Some(path) = sibling else { return Ok(None) };
        if let Some(is_listed) = self.is_listed_in_memory(file, &name) {
            return Ok(is_listed.then_some(path));
        }
        let destination = Arc::clone(&self.destination);
        on_disk("look into catalog", move || {
            let recorded = destination.catalog().name_at(&path)?;
            Ok(recorded.filter(|one| one.kind == EntryKind::File).map(|_| path))
        })
        .await
    }

    /// `None` if the listing is not in memory.
    fn is_listed_in_memory(&self, file: &LazyFile, name: &OsString) -> Option<bool> {
        let node = self.tree.nodes.get(file.ino)?;
        let directory = self.tree.nodes.get(node.parent_ino())?;
        let Body::Directory(known) = &directory.body else { return None };
        let listing = known.listing.load_full()?;
        let is_beside = node.path() == file.path;
        is_beside.then(|| listing.find(name).is_some_and(|found| found.kind == EntryKind::File))
    }

    async fn read_sidecar(&self, path: &RelPath) -> Result<Option<(Vec<u8>, Option<Timestamp>)>> {
        let attributes = self.source.stat(path).await?;
        if attributes.kind != EntryKind::File || !(1..=LARGEST).contains(&attributes.size) {
            return Ok(None);
        }
        let range = ByteRange::new(0, attributes.size);
        let mut reserved = self.limits.reserve(range.len())?;
        let mut pieces = self.source.read(path, range, &attributes.fingerprint).await?;
        let mut text = Vec::new();
        while let Some(piece) = pieces.try_next().await? {
            reserved.came(piece.len() as u64);
            text.extend_from_slice(&piece);
        }
        Ok(Some((text, attributes.modified)))
    }
}

/// The digest of the file `name`: of the first line that names it, or of the only line if that names nothing.
fn parse(text: &[u8], name: &OsStr) -> Option<Vec<u8>> {
    let lines: Vec<&[u8]> = text
        .split(|byte| *byte == b'\n')
        .map(|line| line.strip_suffix(b"\r").unwrap_or(line))
        .filter(|line| !line.trim_ascii().is_empty() && !line.starts_with(b"#"))
        .collect();
    if let [only] = lines.as_slice()
        && let Some(digest) = digest_of(only.trim_ascii())
    {
        return Some(digest);
    }
    lines.iter().find_map(|line| {
        let (digest, rest) = line.split_at_checked(2 * DIGEST_BYTES)?;
        // Two columns: a blank, then a blank or the star of binary mode.
        let named = rest.strip_prefix(b"  ").or_else(|| rest.strip_prefix(b" *"))?;
        let named = named.rsplit(|byte| *byte == b'/').next()?;
        if named == name.as_bytes() { digest_of(digest) } else { None }
    })
}

fn digest_of(hex: &[u8]) -> Option<Vec<u8>> {
    if hex.len() != 2 * DIGEST_BYTES {
        return None;
    }
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    hex.chunks_exact(2).map(|pair| Some(digit(pair[0])? << 4 | digit(pair[1])?)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_forms_of_sha256sum_and_a_bare_digest_are_read_and_nothing_else() {
        let digest = vec![0xab; 32];
        let hex = "aB".repeat(32);
        let other = "00".repeat(32);
        for text in [
            hex.clone(),
            format!("{hex}\n"),
            format!("  {hex} \r\n"),
            format!("{hex}  a b.bin\n"),
            format!("{hex} *a b.bin\r\n"),
            format!("{hex}  ./out/a b.bin\n"),
            format!("# made by hand\n\n{other}  other\n{hex}  a b.bin\n"),
        ] {
            let found = parse(text.as_bytes(), OsStr::new("a b.bin"));
            assert_eq!(found.as_ref(), Some(&digest), "{text:?}");
        }
        for text in [
            String::new(),
            "no digest".into(),
            format!("{hex}  other\n"),
            format!("{hex} a b.bin\n"),
            format!("{hex}0\n"),
            format!("{}\n", &hex[1..]),
            format!("{hex}\n{hex}\n"),
            format!("{}  a b.bin\n", "zz".repeat(32)),
            format!("{}é  a b.bin", &hex[..62]),
        ] {
            assert_eq!(parse(text.as_bytes(), OsStr::new("a b.bin")), None, "{text:?}");
        }
    }
}
