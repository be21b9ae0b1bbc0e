//! WebSocket as Kubernetes uses it: numbered channels in messages, or a tunnel for SPDY.
//!
//! A message is a channel's number and its bytes. There are no windows: what one channel's reader leaves lying holds
//! up the others once it is too much, and only TCP holds us back. Sources of the format: Kubernetes' `wsstream` and
//! `remotecommand` packages, and KEP-4006 for the fifth version and the tunnel.

mod channel;
mod session;
mod tunnel;

use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;

pub use channel::{Codec, Said, read_message};
pub(crate) use session::{Room, Session, Writer, session};
pub(crate) use tunnel::Tunnel;

/// The largest message that is read. Clients cut what they send; Python's does not.
const MAX_MESSAGE: usize = 16 << 20;

fn config() -> WebSocketConfig {
    WebSocketConfig::default().max_message_size(Some(MAX_MESSAGE)).max_frame_size(Some(MAX_MESSAGE))
}

#[cfg(test)]
mod tests;
