//! SPDY frames, however they are cut: the first byte says where.
#![no_main]

use coracle_streaming::spdy::{Event, parse_arbitrary};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Some((&cut, frames)) = bytes.split_first() else { return };
    let (events, violation) = parse_arbitrary(frames, cut.into());
    let data = |events: &[Event]| -> usize {
        events.iter().map(|event| if let Event::Data { bytes, .. } = event { bytes.len() } else { 0 }).sum()
    };
    assert!(data(&events) <= frames.len());
    // A cut changes nothing but where data are cut.
    let (whole, same) = parse_arbitrary(frames, frames.len());
    assert_eq!(violation, same);
    assert_eq!(data(&events), data(&whole));
});
