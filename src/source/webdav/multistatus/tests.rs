//! Laws of reading multistatus documents.

use proptest::prelude::*;

use super::*;

fn all(document: &[u8]) -> Result<Vec<Told>, Fault> {
    let mut document = Multistatus::new(document);
    let mut all = Vec::new();
    while let Some(told) = document.next()? {
        all.push(told);
    }
    // After its end it has nothing more.
    assert!(document.next()?.is_none());
    Ok(all)
}

fn why(document: &str) -> String {
    match all(document.as_bytes()) {
        Err(Fault::Malformed(why)) => why,
        other => panic!("{other:?}"),
    }
}

const OPEN: &str = r#"<multistatus xmlns="DAV:">"#;

#[test]
fn apache_nginx_and_owncloud_are_understood() {
    let told = all(br#"<?xml version="1.0" encoding="utf-8"?>
<D:multistatus xmlns:D="DAV:" xmlns:ns0="DAV:">
<D:response xmlns:lp1="DAV:" xmlns:lp2="http://apache.org/dav/props/" xmlns:g0="http://owncloud.org/ns">
<D:href>/d/a%20b</D:href>
<D:propstat><D:prop><lp1:resourcetype/><lp1:getcontentlength>5</lp1:getcontentlength>
<lp1:getlastmodified>Sun, 06 Nov 1994 08:49:37 GMT</lp1:getlastmodified><lp1:getetag>"x&amp;&#x41;"</lp1:getetag></D:prop>
<D:status>HTTP/1.1 200 OK</D:status></D:propstat>
<D:propstat><D:prop><g0:checksums/></D:prop><D:status>HTTP/1.1 404 Not Found</D:status></D:propstat>
</D:response></D:multistatus>"#)
    .unwrap();
    assert_eq!(told[0].href, "/d/a%20b");
    let properties = &told[0].properties;
    assert_eq!(properties.is_collection, Some(false));
    assert_eq!(properties.length.as_deref(), Some("5"));
    assert_eq!(properties.etag.as_deref(), Some("\"x&A\""));
    assert_eq!(properties.checksums, None, "what is not found is not there");

    let told = all(br#"<d:multistatus xmlns:d="DAV:" xmlns:oc="http://owncloud.org/ns"><d:response><d:href>/x/</d:href>
<d:propstat><d:status>HTTP/1.1 404 Not Found</d:status><d:prop><d:getcontentlength>7</d:getcontentlength></d:prop></d:propstat>
<d:propstat><d:prop><d:resourcetype><d:collection/></d:resourcetype><d:lockdiscovery><d:activelock><d:lockroot><d:href>/no</d:href></d:lockroot></d:activelock></d:lockdiscovery>
<oc:checksums><oc:checksum>SHA1:ab MD5:cd</oc:checksum></oc:checksums></d:prop><d:status>HTTP/1.1 200 OK</d:status></d:propstat></d:response>
<d:response><d:href>/y</d:href><d:status>HTTP/1.1 403 Forbidden</d:status></d:response></d:multistatus>"#)
    .unwrap();
    assert_eq!((told[0].href.as_str(), told[0].status), ("/x/", None));
    assert_eq!(told[0].properties.is_collection, Some(true));
    assert_eq!(told[0].properties.length, None);
    assert_eq!(told[0].properties.checksums.as_deref(), Some(" SHA1:ab MD5:cd"));
    assert_eq!((told[1].href.as_str(), told[1].status), ("/y", Some(403)));
}

#[test]
fn names_of_other_namespaces_mean_nothing() {
    let told = all(br#"<a:multistatus xmlns:a="DAV:" xmlns="urn:other"><a:response><href>/no</href><a:href>/yes</a:href>
<a:propstat><a:prop><getetag>no</getetag><a:getetag xmlns:a="urn:other">no</a:getetag></a:prop></a:propstat></a:response></a:multistatus>"#)
    .unwrap();
    assert_eq!(told[0].href, "/yes");
    assert_eq!(told[0].properties, Properties::default());
    assert!(why("<multistatus xmlns=\"urn:other\"/>").contains("no multistatus"));
    assert!(why("<multistatus/>").contains("no multistatus"));
}

#[test]
fn what_is_no_multistatus_is_refused() {
    for document in [
        "",
        "hello",
        "{}",
        "<html><body>hello</body></html>",
        "<!DOCTYPE html><html></html>",
        OPEN,
        &format!("{OPEN}<response><href>/a</href>"),
        &format!("{OPEN}<response></multistatus>"),
        &format!("{OPEN}</multistatus>{OPEN}</multistatus>"),
        &format!("{OPEN}<response/></multistatus>"),
        &format!("{OPEN}<response><href> </href></response></multistatus>"),
        &format!("{OPEN}<response><href>/a<b/></href></response></multistatus>"),
        &format!("{OPEN}<response><href>/a</href><href>/b</href></response></multistatus>"),
        &format!("{OPEN}<response><href>/a&unknown;</href></response></multistatus>"),
        &format!("{OPEN}<response><href>/a&#xD800;</href></response></multistatus>"),
        &format!("{OPEN}<response><href>/a</response></href></multistatus>"),
    ] {
        assert!(matches!(all(document.as_bytes()), Err(Fault::Malformed(_))), "{document}");
    }
    let latin = [OPEN.as_bytes(), b"<response><href>\xe9</href></response></multistatus>"].concat();
    assert!(matches!(all(&latin), Err(Fault::Malformed(_))));
}

#[test]
fn entities_that_grow_are_refused_before_they_do() {
    let bomb =
        r#"<?xml version="1.0"?><!DOCTYPE m [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;">]>"#;
    assert!(why(&format!("{bomb}{OPEN}</multistatus>")).contains("document type"));
    let outside = r#"<!DOCTYPE m SYSTEM "file:///etc/passwd">"#;
    assert!(why(&format!("{outside}{OPEN}</multistatus>")).contains("document type"));
}

/// A document that begins with `start` and goes on with `more` for ever.
struct Endless {
    start: &'static [u8],
    more: &'static [u8],
    given: usize,
}

impl Read for Endless {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        for byte in buffer.iter_mut() {
            *byte = match self.start.get(self.given) {
                Some(byte) => *byte,
                None => self.more[(self.given - self.start.len()) % self.more.len()],
            };
            self.given += 1;
        }
        Ok(buffer.len())
    }
}

#[test]
fn nothing_endless_is_kept() {
    for (start, more) in [
        (&b""[..], &b"<"[..]),
        (b"", b" "),
        (b"<!--", b"x"),
        (b"<multistatus xmlns=\"DAV:\"", b" a=\"b\""),
        (b"<multistatus xmlns=\"DAV:\"", b"x"),
        (b"<multistatus xmlns=\"DAV:\">", b"x"),
        (b"<multistatus xmlns=\"DAV:\">", b"<a>"),
        (b"<multistatus xmlns=\"DAV:\"><response><href>", b"x"),
        (b"<multistatus xmlns=\"DAV:\"><response><href>", b"&amp;"),
        (b"<multistatus xmlns=\"DAV:\"><response><href>", b"<![CDATA[x]]>"),
    ] {
        let mut document = Multistatus::new(Endless { start, more, given: 0 });
        assert!(matches!(document.next(), Err(Fault::Malformed(_))), "{start:?} {more:?}");
        assert!(document.reader.get_ref().get_ref().document.given < 4 * EVENT_SIZE_BYTES);
    }
}

// L1
#[test]
fn a_document_that_is_cut_is_told_from_one_that_ends() {
    struct Cut<'a>(&'a [u8]);
    impl Read for Cut<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            match self.0.read(buffer)? {
                0 => Err(io::ErrorKind::UnexpectedEof.into()),
                read => Ok(read),
            }
        }
    }
    let text = format!("{OPEN}<response><href>/a</href></response></multistatus>");
    for end in 0..text.len() {
        let mut document = Multistatus::new(Cut(&text.as_bytes()[..end]));
        let ended = loop {
            match document.next() {
                Ok(Some(_)) => {}
                other => break other,
            }
        };
        assert!(matches!(ended, Err(Fault::Cut(_))), "{end}: {ended:?}");
        assert!(matches!(all(&text.as_bytes()[..end]), Err(Fault::Malformed(_))), "{end}");
    }
}

proptest! {
    #[test]
    fn no_bytes_panic(document in proptest::collection::vec(any::<u8>(), 0..300)) {
        drop(all(&document));
    }

    #[test]
    fn no_pieces_of_a_multistatus_panic(
        pieces in proptest::collection::vec(prop::sample::select(vec![
            "<multistatus xmlns=\"DAV:\">", "</multistatus>", "<response>", "</response>", "<href>", "</href>", "/a", "<href/>",
            "<propstat>", "</propstat>", "<prop>", "</prop>", "<getetag>", "</getetag>", "<status>HTTP/1.1 200 OK</status>",
            "<status>200</status>", "<resourcetype><collection/></resourcetype>", "&amp;", "&#0;", "&#x110000;", "<![CDATA[", "]]>",
            "<!--", "-->", "<?x", "?>", "<a:b>", "xmlns:a=\"\"", "<", ">", "&", "\u{feff}", "é", " ", "<x xmlns=\"\">",
        ]), 0..30),
    ) {
        drop(all(pieces.concat().as_bytes()));
    }
}
