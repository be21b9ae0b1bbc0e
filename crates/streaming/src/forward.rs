//! Port-forward: connections into a pod, each with a stream for data and one for what went wrong.
//!
//! ```text
//!   client                                                     pod
//!   request 0: data  <──────────> relay <──────────> socket to port
//!              error <── why there is no connection
//!   request 1: data  <──────────> relay <──────────> socket to port
//!   ...
//! ```
//!
//! Nothing that happens to one connection is felt by another: a refused one is told on its error stream, one that
//! breaks later just ends, because clients take a word on an error stream for the end of everything.

use std::collections::{HashMap, VecDeque};
use std::future::Future;
use std::sync::Arc;

use coracle_domain::{During, PodId, Result};
use rustix::net::{Shutdown, shutdown};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use crate::backend::Backend;
use crate::clock::Limits;
use crate::flow::Incoming;
use crate::outgoing::Outgoing;
use crate::pump::{Copied, Sink, Source, inwards, outwards};
use crate::request::PortForwardRequest;
use crate::spdy::{self, NewStream};
use crate::websocket;

/// How long a request's id may be: they are numbers, or UUIDs. A session may keep thousands, and a header has room for 64 KiB.
const MAX_ID: usize = 64;

/// Serves connections as the client asks for them, until it goes away or the pod ends.
pub(crate) async fn spdy<B: Backend>(mut session: spdy::Session, backend: Arc<B>, pod: PodId, limits: Limits) {
    let mut waiting = Waiting::default();
    let mut connections = JoinSet::new();
    let ends = backend.pod_ends(&pod);
    tokio::pin!(ends);
    loop {
        tokio::select! {
            () = &mut ends => return,
            stream = session.next_stream() => match stream {
                Some(stream) => {
                    if let Some((port, data, error)) = waiting.add(stream, Instant::now() + limits.creation) {
                        connections.spawn(connection(backend.clone(), pod.clone(), port, data, error));
                    }
                }
                None => return,
            },
            Some(_) = connections.join_next() => {}
            () = waiting.expired() => waiting.expire(),
        }
    }
}

/// Serves one connection to each port of the request, until all have ended or the pod ends.
pub(crate) async fn websocket<B: Backend>(mut session: websocket::Session, backend: Arc<B>, request: PortForwardRequest) {
    let mut connections = JoinSet::new();
    for (channel, port) in (0_u8..).step_by(2).zip(request.ports) {
        let Some(incoming) = session.incoming(channel) else { continue };
        let (data, error) = (session.outgoing(channel), session.outgoing(channel + 1));
        let (backend, pod) = (backend.clone(), request.pod.clone());
        connections.spawn(async move {
            // Each channel begins with its port, in the other byte order than everything else.
            for channel in [&data, &error] {
                let _ = channel.write(&port.to_le_bytes()).await;
            }
            connection(backend, pod, port, (incoming, data), error).await;
        });
    }
    let all = async { while connections.join_next().await.is_some() {} };
    tokio::select! {
        () = all => {}
        () = session.gone() => {}
        () = backend.pod_ends(&request.pod) => {}
    }
}

type Data = (Incoming, Outgoing);

/// Requests of which only one stream is there.
#[derive(Default)]
struct Waiting {
    requests: HashMap<String, Half>,
    deadlines: VecDeque<(Instant, u32, String)>,
}

struct Half {
    /// The number of the stream that came first; another request may have the same id later.
    first: u32,
    port: u16,
    stream: Either,
}

enum Either {
    Data(Data),
    Error(Outgoing),
}

impl Waiting {
    /// A request that is complete with `stream`. One that makes no sense is refused.
    fn add(&mut self, stream: NewStream, deadline: Instant) -> Option<(u16, Data, Outgoing)> {
        let port = stream.headers.get("port").and_then(|port| port.parse::<u16>().ok()).filter(|&port| port > 0);
        let kind = stream.headers.get("streamtype").unwrap_or_default().to_owned();
        let (Some(port), "data" | "error") = (port, kind.as_str()) else {
            stream.refuse();
            return None;
        };
        let id = request_id(&stream, &kind);
        if id.len() > MAX_ID {
            stream.refuse();
            return None;
        }
        match (self.requests.remove(&id), kind.as_str()) {
            (None, kind) => {
                let first = stream.number;
                let (incoming, outgoing) = stream.accept();
                let stream = if kind == "data" { Either::Data((incoming, outgoing)) } else { Either::Error(outgoing) };
                self.forget_complete();
                self.deadlines.push_back((deadline, first, id.clone()));
                self.requests.insert(id, Half { first, port, stream });
                None
            }
            (Some(Half { port, stream: Either::Error(error), .. }), "data") => Some((port, stream.accept(), error)),
            (Some(Half { port, stream: Either::Data(data), .. }), "error") => Some((port, data, stream.accept().1)),
            (Some(half), _) => {
                stream.refuse();
                self.requests.insert(id, half);
                None
            }
        }
    }

    /// Keeps the deadlines as few as the requests that have one.
    fn forget_complete(&mut self) {
        let requests = &self.requests;
        if self.deadlines.len() > 2 * requests.len() + 64 {
            self.deadlines.retain(|(_, first, id)| requests.get(id).is_some_and(|half| half.first == *first));
        }
    }

    /// Resolves when a request has waited too long.
    async fn expired(&self) {
        match self.deadlines.front() {
            Some((deadline, ..)) => sleep_until(*deadline).await,
            None => std::future::pending().await,
        }
    }

    /// Gives up the request that has waited longest, if it still does.
    fn expire(&mut self) {
        let Some((_, first, id)) = self.deadlines.pop_front() else { return };
        if self.requests.get(&id).is_some_and(|half| half.first == first) {
            // What is dropped is reset.
            self.requests.remove(&id);
        }
    }
}

/// Old clients name no request: their data stream comes right after its error stream, and clients' numbers are odd.
fn request_id(stream: &NewStream, kind: &str) -> String {
    match stream.headers.get("requestid") {
        Some(id) => id.to_owned(),
        None if kind == "data" => format!("stream {}", stream.number.saturating_sub(2)),
        None => format!("stream {}", stream.number),
    }
}

async fn connection<B: Backend>(backend: Arc<B>, pod: PodId, port: u16, data: Data, error: Outgoing) {
    let (incoming, outgoing) = data;
    match dial(&*backend, &pod, port).await {
        Ok((source, sink)) => relay(from_pod(source, outgoing, error), to_pod(incoming, sink)).await,
        Err(problem) => {
            tracing::debug!(%pod, port, error = %problem, "a port cannot be forwarded");
            let _ = error.write(problem.to_string().as_bytes()).await;
            error.finish();
            outgoing.finish();
        }
    }
}

/// A socket's two directions.
async fn dial<B: Backend>(backend: &B, pod: &PodId, port: u16) -> Result<(Source, Sink)> {
    let socket = backend.dial(pod, port).await?;
    let ends = socket.try_clone().and_then(|other| Ok((Source::new(socket)?, Sink::new(other)?)));
    ends.during("watching a socket to", pod)
}

/// Copies both ways until both have ended. What the client sent before is not waited for, since a pod that does not read
/// would never take it, once the client has cut its stream off, or where it cannot be told that the pod has ended.
async fn relay(from_pod: impl Future<Output = Copied>, to_pod: impl Future<Output = ()>) {
    tokio::pin!(from_pod, to_pod);
    tokio::select! {
        copied = &mut from_pod => {
            if copied == Copied::All {
                to_pod.await;
            }
        }
        () = &mut to_pod => {
            from_pod.await;
        }
    }
}

/// Copies what the pod sends. Its end is passed on; the other direction may go on if all was said.
async fn from_pod(socket: Source, data: Outgoing, error: Outgoing) -> Copied {
    let (_never, not_ended) = watch::channel(false);
    let copied = match outwards(&socket, &data, not_ended).await {
        // Only the connection's end tells a client that knows no other word for it.
        Ok(copied) => {
            if data.finish() {
                copied
            } else {
                Copied::ClientGone
            }
        }
        // The pod has broken the connection: so do we.
        Err(_) => Copied::ClientGone,
    };
    error.finish();
    copied
}

/// Copies what the client sends. Its end is passed on; the other direction may go on.
async fn to_pod(mut data: Incoming, socket: Sink) {
    if inwards(&mut data, &socket).await.is_ok() {
        let _ = shutdown(&socket, Shutdown::Write);
    }
    data.discard().await;
}

#[cfg(test)]
#[path = "forward_tests.rs"]
mod tests;
