//! Doors for the fuzz targets into what is private here. Built for them only.

use crate::{counts, detect, pressure, stats};

/// Files of the kernel: the mount table and those of a cgroup.
pub fn files(bytes: &[u8]) {
    let _ = detect::Layout::parse(bytes, |_| Ok("cpu memory".to_owned()));
    stats::read_arbitrary(bytes);
    let text = String::from_utf8_lossy(bytes);
    counts::read_arbitrary(&text);
    let _ = pressure::parse(&text);
}
