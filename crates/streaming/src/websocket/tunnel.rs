//! A WebSocket as a plain stream of bytes: the tunnel that SPDY is spoken through.
//!
//! Where one message ends and the next begins means nothing.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use futures_util::{Sink, Stream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role};
use tokio_tungstenite::tungstenite::{Error, Message};

use super::config;

/// The largest message that is sent.
const MESSAGE: usize = 256 << 10;

/// The tunnel.
#[derive(Debug)]
pub(crate) struct Tunnel<S> {
    socket: WebSocketStream<S>,
    /// What is left of the message that is being read.
    message: Bytes,
    /// Goodbye was said.
    closing: bool,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Tunnel<S> {
    /// A tunnel through `io`, whose handshake is over.
    pub(crate) async fn new(io: S) -> Self {
        Self { socket: WebSocketStream::from_raw_socket(io, Role::Server, Some(config())).await, message: Bytes::new(), closing: false }
    }

    /// The client's end of a tunnel.
    #[cfg(test)]
    pub(crate) async fn client(io: S) -> Self {
        Self { socket: WebSocketStream::from_raw_socket(io, Role::Client, None).await, message: Bytes::new(), closing: false }
    }

    fn send(&mut self, cx: &mut Context<'_>, parts: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        ready!(Pin::new(&mut self.socket).poll_ready(cx)).map_err(io_error)?;
        let mut message = Vec::with_capacity(parts.iter().map(|part| part.len()).sum::<usize>().min(MESSAGE));
        for part in parts {
            let room = MESSAGE - message.len();
            message.extend_from_slice(part.get(..room).unwrap_or(part));
        }
        let length = message.len();
        Pin::new(&mut self.socket).start_send(Message::Binary(message.into())).map_err(io_error)?;
        Poll::Ready(Ok(length))
    }
}

fn io_error(error: Error) -> io::Error {
    match error {
        Error::Io(error) => error,
        error => io::Error::other(error),
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Tunnel<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        while self.message.is_empty() {
            match ready!(Pin::new(&mut self.socket).poll_next(cx)) {
                Some(Ok(Message::Binary(message))) => self.message = message,
                Some(Ok(_)) => {}
                Some(Err(error)) => return Poll::Ready(Err(io_error(error))),
                None => return Poll::Ready(Ok(())),
            }
        }
        let length = self.message.len().min(buffer.remaining());
        buffer.put_slice(self.message.get(..length).unwrap_or_default());
        self.message.advance(length);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Tunnel<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.send(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, parts: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        self.send(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx).map_err(io_error)
    }

    /// Says goodbye as WebSockets do. What the client still sends can be read.
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.closing {
            ready!(Pin::new(&mut self.socket).poll_ready(cx)).map_err(io_error)?;
            self.closing = true;
            let normal = CloseFrame { code: CloseCode::Normal, reason: "".into() };
            Pin::new(&mut self.socket).start_send(Message::Close(Some(normal))).map_err(io_error)?;
        }
        self.poll_flush(cx)
    }
}
