//! Tests of the frame parser: what others write, however it is cut, and what nobody should.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::spdy::frame::{self, Farewell, Reset, control_head, data_head};
use crate::spdy::headers::Deflater;

/// What a client's framer (moby/spdystream) writes for streams 1 and 3 with the headers `streamType: error` and `streamType: stdin`.
const FOREIGN: [&[u8]; 4] = [
    b"\x80\x03\x00\x01\x00\x00\x00\x2a\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00",
    b"\x78\xf9\xe3\xc6\xa7\xc2\x62\x60\x60\x60\x04\xa7\xb3\x92\xa2\xd4\xc4\x5c\x68\x51\xc2\x9a\x5a\x54\x94\x5f\x04\x00\x00\x00\xff\xff",
    b"\x80\x03\x00\x01\x00\x00\x00\x17\x00\x00\x00\x03\x00\x00\x00\x00\x00\x00",
    b"\xc2\x2e\x55\x5c\x92\x92\x99\x07\x00\x00\x00\xff\xff",
];

fn joined(events: Vec<Event>) -> Vec<Event> {
    let mut whole: Vec<Event> = Vec::new();
    for event in events {
        match (whole.last_mut(), event) {
            (Some(Event::Data { stream, bytes, fin }), Event::Data { stream: again, bytes: more, fin: end })
                if *stream == again && !*fin =>
            {
                *bytes = [&bytes[..], &more[..]].concat().into();
                *fin = end;
            }
            (_, event) => whole.push(event),
        }
    }
    whole
}

fn syn_stream(stream: u32, flags: u8, block: &[u8]) -> Vec<u8> {
    let mut frame = control_head(SYN_STREAM, flags, 10 + block.len()).to_vec();
    frame.extend(stream.to_be_bytes());
    frame.extend([0; 6]);
    frame.extend(block);
    frame
}

fn everything() -> (Vec<u8>, Vec<Event>) {
    let headers: Headers = [("streamtype", "stdin")].into_iter().collect();
    let mut deflater = Deflater::default();
    let mut bytes = Vec::new();
    bytes.extend(frame::settings(&[(7, 100), (4, 10)]));
    bytes.extend(syn_stream(1, FLAG_FIN, &deflater.write(&headers)));
    bytes.extend(syn_stream(3, FLAG_UNIDIRECTIONAL, &deflater.write(&headers)));
    bytes.extend(frame::syn_reply(2, &deflater.write(&Headers::default())));
    bytes.extend(control_head(0x77, 0, 3));
    bytes.extend(b"???");
    bytes.extend(data_head(3, 0, 20_000));
    bytes.extend(vec![7; 20_000]);
    bytes.extend(data_head(5, FLAG_FIN, 0));
    bytes.extend(frame::ping(9));
    bytes.extend(frame::rst_stream(3, Reset::Cancel));
    bytes.extend(frame::window_update(0, 12));
    bytes.extend(frame::goaway(3, Farewell::Done));
    let events = vec![
        Event::Settings(vec![(7, 100), (4, 10)]),
        Event::SynStream { stream: 1, fin: true, unidirectional: false, headers: headers.clone() },
        Event::SynStream { stream: 3, fin: false, unidirectional: true, headers },
        Event::SynReply { stream: 2, fin: false, headers: Headers::default() },
        Event::Data { stream: 3, bytes: vec![7; 20_000].into(), fin: false },
        Event::Data { stream: 5, bytes: Bytes::new(), fin: true },
        Event::Ping(9),
        Event::Reset { stream: 3, status: 5 },
        Event::WindowUpdate { stream: 0, bytes: 12 },
        Event::GoAway { last: 3, status: 0 },
    ];
    (bytes, events)
}

#[test]
fn every_kind_of_frame_is_understood_wherever_it_is_cut() {
    let (bytes, events) = everything();
    for cut in (0..300).chain([10_000, bytes.len() - 9, bytes.len()]) {
        let (read, violation) = parse_arbitrary(&bytes, cut);
        assert_eq!(violation, None, "cut at {cut}");
        assert_eq!(joined(read), events, "cut at {cut}");
    }
}

#[test]
fn headers_that_another_implementation_compressed_are_understood() {
    let (events, violation) = parse_arbitrary(&FOREIGN.concat(), 0);
    assert_eq!(violation, None);
    let stream = |stream, kind: &str| {
        let headers = [("streamtype", kind)].into_iter().collect();
        Event::SynStream { stream, fin: false, unidirectional: false, headers }
    };
    assert_eq!(events, [stream(1, "error"), stream(3, "stdin")]);
}

#[test]
fn data_is_passed_on_before_its_frame_is_whole() {
    let mut bytes = data_head(1, FLAG_FIN, 0x00ff_ffff).to_vec();
    bytes.extend(b"early");
    let (events, _) = parse_arbitrary(&bytes, 0);
    assert_eq!(events, [Event::Data { stream: 1, bytes: Bytes::from_static(b"early"), fin: false }]);
}

#[test]
fn what_is_not_spdy_is_a_violation() {
    let bad: [&[u8]; 8] = [
        b"GET / HTTP/1.1\r\n\r\n\0\0\0\0",
        b"\0\0\0\0\0\0\0\0",
        b"\x80\x02\0\x06\0\0\0\x04\0\0\0\x01",
        b"\x80\x03\0\x06\0\0\0\x02\0\0",
        b"\x80\x03\0\x01\0\xff\xff\xff",
        b"\x80\x03\0\x01\0\0\0\x0c\0\0\0\x01\0\0\0\0\0\0zz",
        b"\x80\x03\0\x04\0\0\0\x04\xff\xff\xff\xff",
        b"\x80\x03\0\x03\0\0\0\x08\0\0\0\0\0\0\0\x01",
    ];
    // The first is data for a stream of a strange number as far as frames go: it has to be known to be no stream.
    let (events, violation) = parse_arbitrary(bad[0], 3);
    assert!(violation.is_none() && matches!(events[..], [Event::Data { stream: 0x4745_5420, .. }]), "{events:?}");
    for bytes in &bad[1..] {
        assert!(parse_arbitrary(bytes, 5).1.is_some(), "{bytes:?}");
    }
}

#[test]
fn a_long_frame_of_no_known_kind_is_passed_over_in_little_memory() {
    let mut decoder = Decoder::default();
    let mut buffer = BytesMut::from(&control_head(0x99, 0, 0x00ff_ffff)[..]);
    for _ in 0..(0x00ff_ffff / 4096) {
        buffer.extend_from_slice(&[0xaa; 4096]);
        assert_eq!(decoder.next(&mut buffer).unwrap(), None);
        assert!(buffer.is_empty());
    }
    buffer.extend_from_slice(&[0xaa; 0x00ff_ffff % 4096]);
    buffer.extend_from_slice(&frame::ping(1));
    assert_eq!(decoder.next(&mut buffer).unwrap(), Some(Event::Ping(1)));
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(bytes in vec(any::<u8>(), 0..400), cut in 0_usize..400) {
        let _ = parse_arbitrary(&bytes, cut);
    }

    #[test]
    fn no_payload_of_a_true_head_makes_it_panic(kind in 0_u16..11, flags: u8, payload in vec(any::<u8>(), 0..100), cut in 0_usize..120) {
        let mut bytes = control_head(kind, flags, payload.len()).to_vec();
        bytes.extend(payload);
        let _ = parse_arbitrary(&bytes, cut);
    }

    #[test]
    fn a_changed_byte_never_makes_it_panic(at in 0_usize..400, to: u8, cut in 0_usize..400) {
        let (mut bytes, _) = everything();
        bytes[at] = to;
        let _ = parse_arbitrary(&bytes, cut);
    }

    #[test]
    fn where_it_is_cut_changes_nothing(bytes in vec(any::<u8>(), 0..200), cut in 0_usize..200) {
        let (whole, problem) = parse_arbitrary(&bytes, 0);
        let (cut_up, same) = parse_arbitrary(&bytes, cut);
        prop_assert_eq!(joined(whole), joined(cut_up));
        prop_assert_eq!(problem, same);
    }
}
