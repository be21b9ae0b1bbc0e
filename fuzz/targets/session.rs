//! Whole sessions, SPDY and WebSocket, with a program or a pod behind them: a script of frames, windows, ends and delays.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tokio::runtime::{Builder, Runtime};

thread_local! {
    static RUNTIME: Runtime = Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
}

fuzz_target!(
    init: {
        // As a Rust program's start does, which libFuzzer's replaces.
        // SAFETY: no handler of ours is installed.
        unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
    },
    |script: &[u8]| RUNTIME.with(|runtime| runtime.block_on(coracle_streaming::fuzzing::converse(script)))
);
