//! Both ends of the protocol agree, and no bytes of a server are too much.

use proptest::prelude::*;

use super::*;

fn attributes() -> impl Strategy<Value = RawAttributes> {
    use prop::option::of;
    let pair = || of(any::<(u32, u32)>());
    (of(any::<u64>()), pair(), of(any::<u32>()), pair()).prop_map(
        |(size, owner, permissions, times)| RawAttributes { size, owner, permissions, times },
    )
}

fn answer() -> impl Strategy<Value = Answer> {
    let bytes = || prop::collection::vec(any::<u8>(), 0..300).prop_map(Bytes::from);
    let name = (bytes(), attributes()).prop_map(|(name, attributes)| Name { name, attributes });
    prop_oneof![
        (any::<u32>(), "[ -~]{0,40}")
            .prop_map(|(code, message)| Answer::Status(Status { code, message })),
        bytes().prop_map(Answer::Handle),
        bytes().prop_map(Answer::Data),
        prop::collection::vec(name, 0..20).prop_map(Answer::Names),
        attributes().prop_map(Answer::Attributes),
        bytes().prop_map(Answer::Extended),
    ]
}

fn put_attributes(out: &mut BytesMut, raw: &RawAttributes) {
    let flag = |is: bool, bit: u32| if is { bit } else { 0 };
    // With an extension that nobody knows.
    let flags = flag(raw.size.is_some(), 1)
        | flag(raw.owner.is_some(), 2)
        | flag(raw.permissions.is_some(), 4)
        | flag(raw.times.is_some(), 8)
        | 1 << 31;
    out.put_u32(flags);
    raw.size.into_iter().for_each(|size| out.put_u64(size));
    let (owner, times) = (raw.owner.map(<[u32; 2]>::from), raw.times.map(<[u32; 2]>::from));
    let words = owner.into_iter().flatten().chain(raw.permissions);
    words.chain(times.into_iter().flatten()).for_each(|word| out.put_u32(word));
    out.put_u32(1);
    put_string(out, b"x@y");
    put_string(out, b"value");
}

/// As a server does it.
pub(in crate::source::sftp) fn put_answer(out: &mut BytesMut, id: u32, answer: &Answer) {
    let from = begin(out);
    let mut head = |kind: u8| {
        out.put_u8(kind);
        out.put_u32(id);
    };
    match answer {
        Answer::Status(status) => {
            head(STATUS);
            out.put_u32(status.code);
            put_string(out, status.message.as_bytes());
            put_string(out, b"en");
        }
        Answer::Handle(handle) => {
            head(HANDLE);
            put_string(out, handle);
        }
        Answer::Data(bytes) => {
            head(DATA);
            put_string(out, bytes);
        }
        Answer::Names(names) => {
            head(NAME);
            out.put_u32(u32::try_from(names.len()).unwrap());
            for name in names {
                put_string(out, &name.name);
                put_string(out, b"-rw-r--r-- 1 me");
                put_attributes(out, &name.attributes);
            }
        }
        Answer::Attributes(raw) => {
            head(ATTRS);
            put_attributes(out, raw);
        }
        Answer::Extended(bytes) => {
            head(EXTENDED_REPLY);
            out.put_slice(bytes);
        }
    }
    end(out, from);
}

proptest! {
    #[test]
    fn what_a_server_writes_is_read_in_pieces_of_any_size(
        answers in prop::collection::vec((any::<u32>(), answer()), 1..8),
        cuts in prop::collection::vec(1usize..400, 1..100),
    ) {
        let mut sent = BytesMut::new();
        for (id, answer) in &answers {
            put_answer(&mut sent, *id, answer);
        }
        let (mut incoming, mut read) = (BytesMut::new(), Vec::new());
        for cut in cuts.into_iter().cycle() {
            if sent.is_empty() {
                break;
            }
            incoming.put(sent.split_to(cut.min(sent.len())));
            while let Some(packet) = take_packet(&mut incoming).unwrap() {
                let (id, answer) = read_answer(packet).unwrap();
                read.push((id, answer.unwrap()));
            }
        }
        prop_assert_eq!(read, answers);
    }

    #[test]
    fn hostile_bytes_end_in_an_answer_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..600), kind in 0u8..=255) {
        let mut incoming = BytesMut::from(&bytes[..]);
        let before = incoming.capacity();
        let _any = take_packet(&mut incoming);
        prop_assert!(incoming.capacity() <= before + LENGTH + MAX_PACKET);
        let _any = read_hello(Bytes::from(bytes.clone()));
        let _any = read_limits(Bytes::from(bytes.clone()));
        let _any = read_file_system(Bytes::from(bytes.clone()));
        let packet = [&[kind][..], &bytes].concat();
        if let Ok((_, Ok(Answer::Names(names)))) = read_answer(Bytes::from(packet)) {
            // A count alone makes no names: each has taken its bytes.
            prop_assert!(names.len() * 12 <= bytes.len());
        }
    }
}

#[test]
fn a_length_that_no_packet_has_is_refused_before_anything_is_kept() {
    for len in [0, u32::MAX, u32::try_from(MAX_PACKET).unwrap() + 1] {
        let mut incoming = BytesMut::from(&len.to_be_bytes()[..]);
        assert_eq!(take_packet(&mut incoming).unwrap_err().kind(), Kind::Corrupt);
        assert!(incoming.capacity() < 1000);
    }
}

#[test]
fn requests_are_what_the_draft_says() {
    let mut out = BytesMut::new();
    put_hello(&mut out);
    assert_eq!(&out[..], b"\0\0\0\x05\x01\0\0\0\x03");
    out.clear();
    Request::Read { handle: Bytes::from_static(b"h"), offset: 1 << 40, len: 7 }.put(9, &mut out);
    assert_eq!(&out[..], b"\0\0\0\x16\x05\0\0\0\x09\0\0\0\x01h\0\0\x01\0\0\0\0\0\0\0\0\x07");
    out.clear();
    Request::Open(Bytes::from_static(b"/\xff")).put(1, &mut out);
    assert_eq!(&out[..], b"\0\0\0\x13\x03\0\0\0\x01\0\0\0\x02/\xff\0\0\0\x01\0\0\0\0");
}
