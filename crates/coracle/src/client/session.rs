//! The client's end of a streaming session: a WebSocket whose messages each begin with the number of a channel.
//!
//! The protocols are Kubernetes' `v4.channel.k8s.io` and, with a message that ends one channel, `v5.channel.k8s.io`
//! (KEP-4006); every runtime that is built on Kubernetes' streaming library serves them.

use coracle_domain::{Failure, Refusal};
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use tokio::net::TcpStream;
use tokio::sync::Mutex;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::http::HeaderValue;
use tokio_tungstenite::tungstenite::http::header::SEC_WEBSOCKET_PROTOCOL;
use tokio_tungstenite::tungstenite::{self, Bytes, Message};
use tokio_tungstenite::{WebSocketStream, client_async};

use super::error::Result;

/// The protocol in which a channel can be ended.
const V5: &str = "v5.channel.k8s.io";
/// The channel that stands for "the next byte is the channel that ends".
const CLOSE: u8 = 255;

/// Sends on the channels of a session.
#[derive(Debug)]
pub(crate) struct Sender {
    socket: Mutex<SplitSink<WebSocketStream<TcpStream>, Message>>,
    closing: bool,
}

/// Receives what comes on the channels of a session.
#[derive(Debug)]
pub(crate) struct Receiver {
    socket: SplitStream<WebSocketStream<TcpStream>>,
}

/// Takes up the session that waits at `url`.
///
/// # Errors
/// The URL is not one of plain HTTP; nobody is there; the server does not speak the protocol.
pub(crate) async fn begin(url: &str) -> Result<(Sender, Receiver)> {
    let Some(rest) = url.strip_prefix("http://") else {
        let reason = "a session over TLS, as the runtime is configured to offer,";
        return Err(Refusal::unsupported(reason).into());
    };
    let address = rest.split(['/', '?']).next().unwrap_or_default();
    let failed = |error| Failure::new("opening a session with", address, error);
    let socket = TcpStream::connect(address).await.map_err(|error| Failure::new("connecting to", address, error))?;
    let mut request = format!("ws://{rest}").into_client_request().map_err(failed)?;
    request.headers_mut().insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static("v5.channel.k8s.io, v4.channel.k8s.io"));
    let (socket, answer) = client_async(request, socket).await.map_err(failed)?;
    let closing = answer.headers().get(SEC_WEBSOCKET_PROTOCOL).is_some_and(|protocol| protocol == V5);
    let (sink, stream) = socket.split();
    Ok((Sender { socket: Mutex::new(sink), closing }, Receiver { socket: stream }))
}

impl Sender {
    /// Sends bytes on a channel. That the other side has gone is seen by whoever receives.
    pub(crate) async fn send(&self, channel: u8, bytes: &[u8]) -> Result<(), tungstenite::Error> {
        let mut message = Vec::with_capacity(1 + bytes.len());
        message.push(channel);
        message.extend_from_slice(bytes);
        self.socket.lock().await.send(Message::binary(message)).await
    }

    /// Ends a channel, where the protocol knows how.
    pub(crate) async fn end(&self, channel: u8) -> Result<(), tungstenite::Error> {
        if self.closing { self.send(CLOSE, &[channel]).await } else { Ok(()) }
    }
}

impl Receiver {
    /// The next bytes and their channel; none when the session is over.
    pub(crate) async fn next(&mut self) -> Option<(u8, Bytes)> {
        loop {
            match self.socket.next().await? {
                Ok(Message::Binary(mut message)) if !message.is_empty() => {
                    let bytes = message.split_off(1);
                    return Some((message.first().copied()?, bytes));
                }
                Ok(Message::Close(_)) | Err(_) => return None,
                Ok(_) => {}
            }
        }
    }
}
