//! What daemon, monitor, berths and a container's beginning say to each other, Plans and exit records, and a container's output on
//! its way into its log: the first byte says which.
#![no_main]

use coracle_monitor::frame::{self, Decoder};
use coracle_monitor::fuzzing;
use coracle_monitor::protocol::{Call, ExitRecord, Message};
use coracle_plan::Plan;
use libfuzzer_sys::fuzz_target;
use serde::Serialize;
use serde::de::DeserializeOwned;

fuzz_target!(|bytes: &[u8]| match bytes.split_first() {
    Some((0, stream)) => fuzzing::connection(stream, |call| again(&call)),
    Some((1, stream)) => messages(stream),
    Some((2, report)) => fuzzing::report(report),
    Some((3, json)) => both::<Call, Message>(json),
    Some((4, json)) => both::<Plan, ExitRecord>(json),
    Some((5, json)) => fuzzing::berth(json),
    Some((cut, output)) => fuzzing::log(output, usize::from(*cut) * 16),
    None => {}
});

/// The daemon's side.
fn messages(stream: &[u8]) {
    let mut decoder = Decoder::default();
    for chunk in stream.chunks(100) {
        decoder.push(chunk);
        while let Ok(Some(frame)) = decoder.pop() {
            if let Ok(message) = serde_json::from_slice::<Message>(&frame) {
                again(&message);
            }
        }
    }
}

fn both<A: Serialize + DeserializeOwned + PartialEq, B: Serialize + DeserializeOwned + PartialEq>(json: &[u8]) {
    if let Ok(first) = serde_json::from_slice::<A>(json) {
        again(&first);
    }
    if let Ok(second) = serde_json::from_slice::<B>(json) {
        again(&second);
    }
}

/// What is written is read as it was.
fn again<T: Serialize + DeserializeOwned + PartialEq>(message: &T) {
    let mut decoder = Decoder::default();
    decoder.push(&frame::encode(message).unwrap());
    assert!(serde_json::from_slice::<T>(&decoder.pop().unwrap().unwrap()).unwrap() == *message);
}
