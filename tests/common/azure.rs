//! Filling a container of azurite.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_encode};
use tempfile::NamedTempFile;

const IN_KEY: &AsciiSet =
    &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~').remove(b'/');
/// The key of devstoreaccount1, which all emulators share.
pub(crate) const KEY: &str =
    "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==";
/// What it signs: everything with blobs, until 2099.
pub(crate) const SAS: &str = "sv=2020-12-06&ss=b&srt=sco&sp=rwdlacx&se=2099-01-01T00%3A00%3A00Z&sig=cGgOdlVXeMY9p2Lfx2JYrejrrgZ0YYDZf7xKCMRmL5k%3D";

/// Where `place` (a container, or something in it) lies.
pub(crate) fn url(port: u16, place: &[u8]) -> String {
    format!("http://127.0.0.1:{port}/devstoreaccount1/{}", percent_encode(place, IN_KEY))
}

/// A file with a secret in it.
pub(crate) fn secret(text: &str) -> NamedTempFile {
    let file = NamedTempFile::new().unwrap();
    fs::write(file.path(), format!("{text}\n")).unwrap();
    file
}

/// Puts a blob at `container/key`, or says something else of it with `query` (which ends in `&`).
pub(crate) fn put(port: u16, place: &str, query: &str, headers: &str, body: &[u8]) {
    let mut connection = TcpStream::connect(("127.0.0.1", port)).unwrap();
    let url = url(port, place.as_bytes());
    let length = body.len();
    let kind = if query.is_empty() { "x-ms-blob-type: BlockBlob\r\n" } else { "" };
    let head = format!(
        "PUT {url}?{query}{SAS} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n{kind}Content-Length: {length}\r\nConnection: close\r\n{headers}\r\n"
    );
    connection.write_all(head.as_bytes()).unwrap();
    connection.write_all(body).unwrap();
    let mut answer = String::new();
    connection.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 20"), "{place}: {answer}");
}
