//! Laws of index parsing, on pages as servers write them.

use bytes::Bytes;
use proptest::prelude::*;
use tokio::sync::mpsc;
use url::Url;

use super::*;
use crate::core::attributes::EntryKind;
use crate::core::path::RelPath;
use crate::source::ListBatch;
use crate::source::http::spelling::Spelling;

/// Parses a page that arrives in pieces of `piece` bytes; names of directories end in a slash.
fn parse_page(html: &[u8], format: Format, piece: usize, max: usize) -> Result<(Vec<String>, u64)> {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let (feed, page) = page();
    let (sender, mut batches) = mpsc::channel::<ListBatch>(4);
    let url = Url::parse("http://h/dir/").unwrap();
    let pieces: Vec<_> = html.chunks(piece).map(Bytes::copy_from_slice).collect();
    runtime.block_on(async {
        let sink = Sink::new(RelPath::root(), sender, Spelling::Bytes, max);
        let parser = tokio::task::spawn_blocking(move || parse(page, format, url, sink));
        let feeder = async {
            for piece in pieces {
                if feed.piece(piece).await.is_err() {
                    return;
                }
            }
            feed.end().await;
        };
        let collector = async {
            let (mut names, mut refused) = (Vec::new(), 0);
            while let Some(batch) = batches.recv().await {
                assert!(batch.entries.len() <= 1024);
                refused += batch.refused;
                for entry in batch.entries {
                    RelPath::check_name(&entry.name).unwrap();
                    let slash = if entry.kind == EntryKind::Directory { "/" } else { "" };
                    names.push(format!("{}{slash}", entry.name.display()));
                }
            }
            (names, refused)
        };
        let (parsed, (), found) = tokio::join!(parser, feeder, collector);
        parsed.unwrap().map(|()| found)
    })
}

fn names(html: &str) -> Vec<String> {
    parse_page(html.as_bytes(), Format::Html, 7, 1000).unwrap().0
}

#[test]
fn nginx_pages_give_their_names() {
    let page = "<html>\r\n<head><title>Index of /dir/</title></head>\r\n<body>\r\n<h1>Index of /dir/</h1><hr><pre><a href=\"../\">../</a>\r\n\
        <a href=\"sub%20dir/\">sub dir/</a>     01-Jan-2024 00:00      -\r\n\
        <a href=\"a%26b.txt\">a&amp;b.txt</a>     01-Jan-2024 00:00      5\r\n\
        <a href=\"long-name-that-is-cut\">long-na..&gt;</a>\r\n</pre><hr></body>\r\n</html>\r\n";
    assert_eq!(names(page), ["sub dir/", "a&b.txt", "long-name-that-is-cut"]);
    assert!(looks_like_index(page.as_bytes()));
}

#[test]
fn apache_pages_give_their_names() {
    let fancy = "<!DOCTYPE HTML PUBLIC \"-//W3C//DTD HTML 3.2 Final//EN\"><html><head><title>Index of /dir</title></head><body>\
        <table><tr><th><a href=\"?C=N;O=D\">Name</a></th><th><a href=\"?C=M;O=A\">Last modified</a></th></tr>\
        <tr><td valign=\"top\"><img src=\"/icons/back.gif\" alt=\"[PARENTDIR]\"></td><td><a href=\"/\">Parent Directory</a></td></tr>\
        <tr><td><a href=\"dir/\">dir/</a></td></tr><tr><td><a href=\"x&amp;y.tar.gz\">x&amp;y.tar.gz</a></td></tr></table></body></html>";
    assert_eq!(names(fancy), ["dir/", "x&y.tar.gz"]);
    let plain = "<title>Index of /dir</title><ul><li><a href=\"/\"> Parent Directory</a></li><li><a href=\"a\"> a</a></li></ul>";
    assert_eq!(names(plain), ["a"]);
}

#[test]
fn python_pages_give_their_names() {
    let page = "<!DOCTYPE HTML>\n<html lang=\"en\"><head><title>Directory listing for /dir/</title></head><body><ul>\
        <li><a href=\"link\">link@</a></li><li><a href=\"d/\">d/</a></li><li><a href=\"%FF\">\u{fffd}</a></li></ul>";
    assert_eq!(names(page), ["link", "d/", "\u{fffd}"]);
    assert!(looks_like_index(page.as_bytes()));
}

#[test]
fn json_pages_give_their_names() {
    let page = b"[\n{ \"name\":\"d\", \"type\":\"directory\", \"mtime\":\"Mon, 01 Jan 2024 00:00:00 GMT\" },\n\
        { \"name\":\"a\\\"b\\u00e9\", \"type\":\"file\", \"size\":5 },{ \"name\":\"\xff\", \"type\":\"file\" },\
        { \"name\":\"pipe\", \"type\":\"other\" },{\"type\":\"file\",\"name\":\"../x\"}\n]\n";
    let (found, refused) = parse_page(page, Format::Json, 5, 1000).unwrap();
    assert_eq!(found, ["d/", "a\"b\u{e9}", "\u{fffd}"]);
    assert_eq!(refused, 1);
    let error = parse_page(b"{\"error\":1}", Format::Json, 5, 1000).unwrap_err();
    assert_eq!(error.kind(), Kind::Invalid);
}

#[test]
fn a_name_that_leads_out_is_counted_and_never_passed_on() {
    let long = "x".repeat(256);
    let page = format!(
        "<a href=\"..%2fetc\">x</a><a href=\"%2e%2e\">x</a><a href=\"a%00b\">x</a><a href=\"{long}\">x</a><a href=\"good\">x</a>"
    );
    let (found, refused) = parse_page(page.as_bytes(), Format::Html, 50, 1000).unwrap();
    assert_eq!(found, ["good"]);
    assert_eq!(refused, 4);
}

#[test]
fn a_name_is_passed_on_once() {
    assert_eq!(
        names("<a href=a>1</a><A HREF='a'>2</A><a class=x href=a/>3</a><a name=n>4</a>"),
        ["a"]
    );
}

#[test]
fn a_hundred_thousand_entries_come_in_batches() {
    let page: String = (0..100_000).map(|n| format!("<a href=\"f{n}\">f{n}</a>\n")).collect();
    let (found, _) = parse_page(page.as_bytes(), Format::Html, 65_536, 1_000_000).unwrap();
    assert_eq!(found.len(), 100_000);
}

#[test]
fn an_endless_listing_is_an_error() {
    let page: String = (0..100).map(|n| format!("<a href=\"f{n}\">x</a>")).collect();
    let error = parse_page(page.as_bytes(), Format::Html, 100, 50).unwrap_err();
    assert!(error.to_string().contains("endless listing"), "{error}");
}

// L1
#[test]
fn a_page_that_is_cut_is_an_error() {
    for format in [Format::Html, Format::Json] {
        let (feed, page) = page();
        let (sender, _batches) = mpsc::channel(4);
        drop(feed);
        let sink = Sink::new(RelPath::root(), sender, Spelling::Bytes, 10);
        let error = parse(page, format, Url::parse("http://h/").unwrap(), sink).unwrap_err();
        assert_eq!(error.kind(), Kind::Unreachable);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn no_page_panics_or_gives_a_name_that_leads_out(
        page in "(<a href=[\"']?(\\.\\./|%2e|%2f|%00|x|/|\\\\|&#x2f;|&sol;|:|//h/dir/){0,6}[\"']?>|<|\\PC{0,5}){0,30}",
        piece in 1usize..64,
    ) {
        // parse_page checks every name.
        parse_page(page.as_bytes(), Format::Html, piece, 1000).unwrap();
    }

    #[test]
    fn no_json_panics(page in "[\\[{\"name:type,}\\]\\\\ufile0-9]{0,80}") {
        drop(parse_page(page.as_bytes(), Format::Json, 9, 1000));
    }
}
