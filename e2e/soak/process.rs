//! What the daemon holds, as the kernel counts it.

use std::fs;

/// What a process holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Holdings {
    /// Open files.
    pub(crate) files: usize,
    /// Threads.
    pub(crate) threads: usize,
    /// Memory of its own, in KiB: what of it is no file.
    pub(crate) memory: usize,
}

impl Holdings {
    /// What the process holds now; nothing if it is gone.
    pub(crate) fn of(pid: i32) -> Self {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let number = |key: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(key));
            line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or_default()
        };
        let files = fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count);
        Self { files, threads: number("Threads:"), memory: number("RssAnon:") }
    }
}
