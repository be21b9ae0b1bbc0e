//! SPDY/3.1, the server's side, as Kubernetes uses it: many streams, each with its headers, on one connection.
//!
//! The formats are those of the SPDY/3 draft with SPDY/3.1's window for the whole session. Kubernetes' own
//! implementation, `moby/spdystream`, which nearly every client has, knows no windows: it sends without asking and never
//! grants anything. So windows bind us from the moment the client names one, by SETTINGS or WINDOW_UPDATE; until then
//! TCP alone holds us back. The other way round we always grant, and tolerate a client that does not wait for it.
//!
//! One task owns the connection ([`connection`]): it reads frames, and writes whatever stands in the queue. Everybody
//! else puts frames into that queue, so that they are sent in the order in which they were said.

mod connection;
mod decode;
mod dictionary;
pub(crate) mod frame;
pub(crate) mod headers;
mod state;
mod writer;

pub(crate) use connection::{NewStream, Session, session};
pub use decode::{Event, parse_arbitrary};
pub use frame::Violation;
pub use headers::Headers;
pub(crate) use writer::{Room, Writer};

#[cfg(fuzzing)]
pub(crate) use client::Listener;

#[cfg(any(test, fuzzing))]
#[cfg_attr(fuzzing, allow(dead_code))]
pub(crate) mod client;
#[cfg(test)]
mod tests;
