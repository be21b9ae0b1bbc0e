//! The socket at which CRI is served, and its bounds: what callers may cost together, however many there are, and whatever they
//! send or leave lying.
//!
//! ```text
//! socket 0660 root ─ Callers: peer is root, 512 connections ─ HTTP/2: 1000 calls each ─ Bounds: 16,384 calls, 128 MiB asked ─ service
//!                                                                                      and 16 calls, 64 KiB for each caller
//! ```
//!
//! Whoever may connect is root on the node; these bounds are against faulty callers, not evil ones.

mod bounds;
mod callers;
mod socket;

use std::time::Duration;

use tonic::transport::Server;

pub use bounds::{Bounded, Bounds};
pub use callers::{Caller, Callers, Connection};
pub use socket::listen;

/// How many calls one connection may have under way. Further ones wait at the caller (RFC 9113, section 5.1.2).
const MOST_CALLS_OF_ONE: u32 = 1000;
/// The longest headers of a call, bytes.
const LONGEST_HEADERS: u32 = 16 << 10;
/// A connection that is silent for so long is asked whether it is still there.
const PING_AFTER: Duration = Duration::from_secs(60);
/// One that does not answer for so long is no more: it reads nothing, and answers wait for it.
const PATIENCE: Duration = Duration::from_secs(20);

/// A gRPC server with its bounds on each connection.
pub fn builder() -> Server {
    Server::builder()
        .max_concurrent_streams(MOST_CALLS_OF_ONE)
        .http2_max_header_list_size(LONGEST_HEADERS)
        .http2_keepalive_interval(Some(PING_AFTER))
        .http2_keepalive_timeout(Some(PATIENCE))
}
