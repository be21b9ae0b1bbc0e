//! Doors for the fuzz targets into what is private here. Built for them only.

use crate::record::{PodRecord, parse, text_of};

/// A pod's record: what is read is written as it was.
pub fn record(json: &[u8]) {
    let Ok(record) = parse(json) else { return };
    for container in &record.containers {
        let _ = container.view(&record.id);
    }
    if let Some(lease) = &record.lease {
        let _ = record.port_request(lease);
    }
    let _ = record.resources();
    let written = text_of(&record).unwrap();
    let again: PodRecord = parse(&written).unwrap();
    assert_eq!(text_of(&again).unwrap(), written);
}

/// Files of /proc.
pub fn proc(text: &[u8]) {
    let _ = crate::process::start_time_in(text);
    let text = String::from_utf8_lossy(text);
    let _ = crate::volumes::find_mount(&text, 36);
    let _ = crate::apparmor::is_listed("coracle-default", &text);
}
