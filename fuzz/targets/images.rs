//! Names of images, challenges of registries, manifests, indexes, configs and records: the first byte says which.
#![no_main]

use coracle_image::fuzzing;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| match bytes.split_first() {
    Some((0, documents)) => fuzzing::documents(documents),
    Some((1, record)) => fuzzing::record(record),
    Some((_, text)) => fuzzing::text(&String::from_utf8_lossy(text)),
    None => {}
});
