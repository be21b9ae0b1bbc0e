//! From an upgraded connection to a session: the transport's task, and beside it whoever serves.

use std::future::Future;
use std::sync::Arc;

use coracle_domain::Result;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::JoinSet;

use crate::backend::{Backend, Process};
use crate::clock::Limits;
use crate::handshake::{Forward, Remote};
use crate::request::{PortForwardRequest, Streams};
use crate::spdy;
use crate::websocket::{self, Tunnel};
use crate::{forward, gather, remote};

/// What a session may run over.
pub(crate) trait Connection: AsyncRead + AsyncWrite + Send + Unpin + 'static {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin + 'static> Connection for S {}

/// Runs `connection` in a task of its own, so that copying and sending may use two processors, and serves beside it.
async fn beside(connection: impl Future<Output = ()> + Send + 'static, serving: impl Future<Output = ()>) {
    let mut tasks = JoinSet::new();
    tasks.spawn(connection);
    serving.await;
    // What was said last is still to be sent.
    let _ = tasks.join_next().await;
}

/// Exec or attach: a program that `start` starts once all streams are there.
pub(crate) async fn remote(
    io: impl Connection,
    how: Remote,
    streams: Streams,
    start: impl Future<Output = Result<Process>>,
    limits: Limits,
) {
    match how {
        Remote::Spdy { report, resizes } => {
            let (mut session, connection) = spdy::session(io, limits);
            let serving = async move {
                let Some(client) = gather::spdy(&mut session, streams, resizes, report, limits.creation).await else { return };
                let refusing = async {
                    while let Some(stream) = session.next_stream().await {
                        stream.refuse();
                    }
                };
                tokio::select! {
                    () = remote::serve(client, start) => {}
                    () = refusing => {}
                }
            };
            beside(connection, serving).await;
        }
        Remote::WebSocket { codec, report } => {
            let (mut session, connection) = websocket::session(io, codec, &gather::readable(streams), limits);
            let serving = async move {
                let client = gather::websocket(&mut session, streams, report).await;
                tokio::select! {
                    () = remote::serve(client, start) => {}
                    () = session.gone() => {}
                }
            };
            beside(connection, serving).await;
        }
    }
}

/// Port-forward.
pub(crate) async fn forward<B: Backend>(io: impl Connection, how: Forward, backend: Arc<B>, request: PortForwardRequest, limits: Limits) {
    match how {
        Forward::Spdy => {
            let (session, connection) = spdy::session(io, limits);
            beside(connection, forward::spdy(session, backend, request.pod, limits)).await;
        }
        Forward::Tunnel => {
            let (session, connection) = spdy::session(Tunnel::new(io).await, limits);
            beside(connection, forward::spdy(session, backend, request.pod, limits)).await;
        }
        Forward::WebSocket { codec } => {
            // Data channels are read, error channels only written.
            let readable: Vec<_> = request.ports.iter().flat_map(|_| [true, false]).collect();
            let (session, connection) = websocket::session(io, codec, &readable, limits);
            beside(connection, forward::websocket(session, backend, request)).await;
        }
    }
}
