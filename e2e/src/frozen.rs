//! Monitors of earlier releases, kept as they were built: `e2e/frozen/README.md`.

use std::path::Path;

use crate::skip;

/// The monitor of protocol version 1, revision 0, or `None` (and a word of it) on machines that cannot run it.
pub fn monitor() -> Option<Vec<u8>> {
    if !cfg!(target_arch = "x86_64") {
        skip("the frozen monitor is for x86-64");
        return None;
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("frozen/coracle-monitor-0.1.0-x86_64.zst");
    let packed = std::fs::File::open(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    Some(zstd::decode_all(packed).unwrap_or_else(|error| panic!("{}: {error}", path.display())))
}
