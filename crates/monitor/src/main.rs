//! The per-pod process. Its standard input is a listening socket; all else it is told through that.

#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    coracle_monitor::serve()
}
