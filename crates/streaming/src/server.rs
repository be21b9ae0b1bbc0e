//! The HTTP server: a listener, tokens for URLs, and the upgrade to a session.

use std::convert::Infallible;
use std::future::Future;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use coracle_domain::{During, Result};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::backend::Backend;
use crate::clock::Limits;
use crate::handshake::{self, Rejection};
use crate::request::{AttachRequest, ExecRequest, PortForwardRequest, Request};
use crate::session;
use crate::tls::Tls;
use crate::token::Tokens;

/// How many connections may be without a session.
const MOST_STRANGERS: usize = 1024;
/// How long one may be so.
const PATIENCE: Duration = Duration::from_secs(30);

/// Where and how sessions are served.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where to listen. Only the kubelet comes, from the same node.
    pub address: SocketAddr,
    /// Absent: plain HTTP.
    pub tls: Option<Tls>,
    /// A session ends after so long without a byte.
    pub idle: Duration,
    /// So long a SPDY client may take to create its streams.
    pub creation: Duration,
}

impl Default for Settings {
    /// Loopback, any port; four hours and thirty seconds, as elsewhere.
    fn default() -> Self {
        let address = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 0);
        Self { address, tls: None, idle: Duration::from_secs(4 * 60 * 60), creation: Duration::from_secs(30) }
    }
}

/// Makes the URLs at which sessions wait for their clients. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Urls {
    tokens: Arc<Tokens>,
    base: Arc<str>,
}

impl Urls {
    /// The URL of an exec session; it works once, within a minute.
    ///
    /// # Errors
    /// Too many sessions wait for their clients.
    pub fn exec(&self, request: ExecRequest) -> Result<String> {
        self.url(Request::Exec(request))
    }

    /// The URL of an attach session; it works once, within a minute.
    ///
    /// # Errors
    /// Too many sessions wait for their clients.
    pub fn attach(&self, request: AttachRequest) -> Result<String> {
        self.url(Request::Attach(request))
    }

    /// The URL of a port-forward session; it works once, within a minute.
    ///
    /// # Errors
    /// Too many sessions wait for their clients.
    pub fn port_forward(&self, request: PortForwardRequest) -> Result<String> {
        self.url(Request::PortForward(request))
    }

    fn url(&self, request: Request) -> Result<String> {
        let verb = request.verb();
        Ok(format!("{}/{verb}/{}", self.base, self.tokens.issue(request)?))
    }
}

/// The server, listening.
#[derive(Debug)]
pub struct Server<B> {
    listener: TcpListener,
    urls: Urls,
    tls: Option<Tls>,
    limits: Limits,
    backend: Arc<B>,
}

impl<B: Backend> Server<B> {
    /// Listens.
    ///
    /// # Errors
    /// The address cannot be listened on.
    pub async fn bind(settings: Settings, backend: B) -> Result<Self> {
        let Settings { address, tls, idle, creation } = settings;
        let listener = TcpListener::bind(address).await.during("listening for streaming clients on", address)?;
        let at = reachable(listener.local_addr().during("looking up the address of", "the streaming server")?);
        let scheme = if tls.is_some() { "https" } else { "http" };
        let urls = Urls { tokens: Arc::default(), base: format!("{scheme}://{at}").into() };
        Ok(Self { listener, urls, tls, limits: Limits { idle, creation }, backend: Arc::new(backend) })
    }

    /// What hands out URLs.
    pub fn urls(&self) -> Urls {
        self.urls.clone()
    }

    /// Serves until it is told to end, and then until the last session has ended. Dropping it ends all of them.
    pub async fn serve(self, told_to_end: impl Future<Output = ()> + Send) {
        let strangers = Arc::new(Semaphore::new(MOST_STRANGERS));
        let server = Arc::new(self);
        let mut connections = JoinSet::new();
        tokio::pin!(told_to_end);
        loop {
            tokio::select! {
                (connection, stranger) = server.accept(&strangers) => {
                    connections.spawn(server.clone().greet(connection, stranger));
                }
                Some(_) = connections.join_next() => {}
                () = &mut told_to_end => break,
            }
        }
        // Newcomers are turned away at once; the sessions still hold the listener.
        let _ = rustix::net::shutdown(&server.listener, rustix::net::Shutdown::Both);
        while connections.join_next().await.is_some() {}
    }

    async fn accept(&self, strangers: &Arc<Semaphore>) -> (TcpStream, Option<OwnedSemaphorePermit>) {
        let stranger = strangers.clone().acquire_owned().await.ok();
        loop {
            match self.listener.accept().await {
                Ok((connection, _)) => return (connection, stranger),
                Err(error) => {
                    // No descriptors, most likely: they come back as sessions end.
                    tracing::warn!(%error, "a streaming client could not be accepted");
                    sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    async fn greet(self: Arc<Self>, connection: TcpStream, stranger: Option<OwnedSemaphorePermit>) {
        // Keystrokes are not to wait for company, and a peer that vanished is to be noticed.
        let _ = connection.set_nodelay(true);
        let _ = rustix::net::sockopt::set_socket_keepalive(&connection, true);
        let session = match &self.tls {
            None => self.clone().converse(connection).await,
            Some(tls) => match timeout(PATIENCE, tls.acceptor().accept(connection)).await {
                Ok(Ok(connection)) => self.clone().converse(connection).await,
                Ok(Err(error)) => return tracing::debug!(%error, "a streaming client does not speak TLS with us"),
                Err(_) => return,
            },
        };
        drop(stranger);
        if let Some(session) = session {
            session.await;
        }
    }

    /// One request and its answer; the session, if that is what came of it.
    async fn converse(self: Arc<Self>, connection: impl session::Connection) -> Option<Session> {
        let accepted = Mutex::new(None);
        let service = service_fn(|mut request| {
            let answer = self.answer(&mut request).map(|(answer, session)| {
                *accepted.lock().unwrap_or_else(PoisonError::into_inner) = Some(session);
                answer
            });
            std::future::ready(Ok::<_, Infallible>(answer.unwrap_or_else(Rejection::into_response)))
        });
        let served = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(PATIENCE)
            .serve_connection(TokioIo::new(connection), service)
            .with_upgrades()
            .await;
        if let Err(error) = served {
            tracing::debug!(%error, "a streaming client went away early");
        }
        accepted.into_inner().unwrap_or_else(PoisonError::into_inner)
    }

    /// The answer to a request and the session that begins with it.
    fn answer(self: &Arc<Self>, request: &mut hyper::Request<Incoming>) -> Result<(Response<String>, Session), Rejection> {
        let wanted = self.redeem(request)?;
        let (server, limits) = (self.clone(), self.limits);
        Ok(match wanted {
            Request::Exec(wanted) => {
                let (how, answer) = handshake::remote(request.headers())?;
                let begin = move |io| async move { session::remote(io, how, wanted.streams, server.backend.exec(wanted), limits).await };
                (answer, upgraded(request, begin))
            }
            Request::Attach(wanted) => {
                let (how, answer) = handshake::remote(request.headers())?;
                let begin = move |io| async move { session::remote(io, how, wanted.streams, server.backend.attach(wanted), limits).await };
                (answer, upgraded(request, begin))
            }
            Request::PortForward(wanted) => {
                let (how, answer) = handshake::forward(request.headers())?;
                let begin = move |io| async move { session::forward(io, how, server.backend.clone(), wanted, limits).await };
                (answer, upgraded(request, begin))
            }
        })
    }

    fn redeem(&self, request: &hyper::Request<Incoming>) -> Result<Request, Rejection> {
        if ![Method::GET, Method::POST].contains(request.method()) {
            return Err(Rejection::new(StatusCode::METHOD_NOT_ALLOWED, "a session begins with GET or POST"));
        }
        let mut path = request.uri().path().trim_start_matches('/').split('/');
        let wanted = match (path.next(), path.next(), path.next()) {
            (Some(verb), Some(token), None) => self.urls.tokens.redeem(token).filter(|wanted| wanted.verb() == verb),
            _ => None,
        };
        // Not a word on whether the token was ever good.
        wanted.ok_or_else(|| Rejection::new(StatusCode::NOT_FOUND, "there is no such session"))
    }
}

/// Everything that follows an upgrade.
type Session = Pin<Box<dyn Future<Output = ()> + Send>>;

type Upgraded = TokioIo<hyper::upgrade::Upgraded>;

/// What `begin` does with the connection once the answer to `request` is sent.
fn upgraded<F: Future<Output = ()> + Send + 'static>(
    request: &mut hyper::Request<Incoming>,
    begin: impl FnOnce(Upgraded) -> F + Send + 'static,
) -> Session {
    let upgrade = hyper::upgrade::on(request);
    Box::pin(async move {
        match upgrade.await {
            Ok(io) => begin(TokioIo::new(io)).await,
            Err(error) => tracing::debug!(%error, "a streaming client went away before its session began"),
        }
    })
}

/// Who listens everywhere is reached from the same node by loopback.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

#[cfg(test)]
#[path = "server_tests.rs"]
mod tests;
