//! Filling a bucket of moto, which only looks who asks.

use std::io::{Read, Write};
use std::net::TcpStream;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_encode};

const IN_KEY: &AsciiSet =
    &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~').remove(b'/');
/// Who asks.
pub(crate) const SIGNATURE: &str = "AWS4-HMAC-SHA256 Credential=AK/20200101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=x";

/// Puts an object at `/bucket/key`, or makes the bucket.
pub(crate) fn put(port: u16, place: &str, headers: &str, body: &[u8]) {
    let mut connection = TcpStream::connect(("127.0.0.1", port)).unwrap();
    let path = percent_encode(place.as_bytes(), IN_KEY);
    let length = body.len();
    let head = format!(
        "PUT {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nAuthorization: {SIGNATURE}\r\nContent-Length: {length}\r\nConnection: close\r\n{headers}\r\n"
    );
    connection.write_all(head.as_bytes()).unwrap();
    connection.write_all(body).unwrap();
    let mut answer = String::new();
    connection.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{place}: {answer}");
}
