//! The daemon's side against a real monitor.
