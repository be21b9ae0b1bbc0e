//! Exec, attach and port-forward: the sessions behind the URLs that CRI's `Exec`, `Attach` and `PortForward` return.
//!
//! The kubelet passes a client's connection on to the URL as it is. Most clients speak SPDY/3.1, for which this crate
//! has a server of its own ([`spdy`]), some WebSocket ([`websocket`]). What a session does is the same on both: a
//! program's streams are copied, or connections into a pod. This crate knows no containers: it is given descriptors
//! by a [`Backend`] and copies. It may not log tokens or bytes of a session.
//!
//! ```text
//!   Urls::exec(request)
//!        │
//!        v           a minute passes
//!   ┌────────────┐ ──────────────────────────────> forgotten: 404
//!   │  waiting   │
//!   └────────────┘ GET /exec/TOKEN, Upgrade: the token is used up
//!        │
//!        v           wrong version or headers
//!   ┌────────────┐ ──────────────────────────────> refused: 400, 403
//!   │ upgrading  │
//!   └────────────┘
//!        │ 101
//!        v           30 s pass, or the client goes away
//!   ┌────────────┐ ──────────────────────────────> over
//!   │ gathering  │   SPDY: the client opens its streams one by one
//!   └────────────┘
//!        │ all streams are there: Backend::exec, Backend::attach
//!        v           the client goes away, or four hours of silence
//!   ┌────────────┐ ──────────────────────────────> over
//!   │ conversing │   stdin, stdout, stderr and resize are copied; each may end without the others
//!   └────────────┘
//!        │ the program has ended and its output is copied
//!        v           the client closes, or 10 s pass after our last word
//!   ┌────────────┐ ──────────────────────────────> over
//!   │  leaving   │   the status on the error stream, then GOAWAY or Close
//!   └────────────┘
//! ```
//!
//! A port-forward session has no gathering: each pair of streams becomes a connection of its own, for as long as the client stays.

#![forbid(unsafe_code)]

mod backend;
mod clock;
mod flow;
mod forward;
#[cfg(fuzzing)]
pub mod fuzzing;
mod gather;
mod handshake;
mod outgoing;
mod pump;
mod remote;
mod request;
mod server;
mod session;
pub mod spdy;
mod status;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod throughput;
mod tls;
mod token;
pub mod websocket;

pub use backend::{Backend, Ending, Process, TerminalSize};
pub use request::{AttachRequest, ExecRequest, PortForwardRequest, StreamFlags, Streams};
pub use server::{Server, Settings, Urls};
pub use tls::Tls;
