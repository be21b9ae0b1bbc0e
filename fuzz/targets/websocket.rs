//! WebSocket messages, the headers of upgrades, and terminal sizes: the first byte says which.
#![no_main]

use coracle_streaming::fuzzing;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| match bytes.split_first() {
    Some((0, message)) => fuzzing::message(message),
    Some((1, headers)) => fuzzing::upgrade(headers),
    Some((cut, sizes)) => fuzzing::sizes(sizes, (*cut).into()),
    None => {}
});
