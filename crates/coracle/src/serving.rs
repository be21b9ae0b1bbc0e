//! The daemon's two servers, calls and sessions, from their beginning to their end.
//!
//! Told to end, they take nothing new, and what is under way may end within [`DRAIN`]; then calls are answered that the daemon
//! ends, and sessions are closed.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use coracle_cri::server::{Bounds, Callers};
use coracle_cri::{Deadlines, unless_over};
use coracle_domain::{During, Result};
use coracle_engine::Engine;
use coracle_streaming::Server;
use rustix::net::{Shutdown, shutdown};
use tokio::net::UnixListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tower::util::MapFuture;
use tracing::info;

use crate::backend::Sessions;

/// How long calls and sessions under way may take to finish when the daemon is told to end. Most end by themselves; of those
/// that wait for something (a stop with a long grace, an exec) the callers come again. Meanwhile the node has no runtime, so
/// this is far below what kubelets (30 s until the node is not ready) and systemd (90 s) stand.
const DRAIN: Duration = Duration::from_secs(5);
/// How long it may take to answer those that did not finish.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// Both servers, at work.
#[derive(Debug)]
pub(crate) struct Serving {
    calls: JoinHandle<Result<(), tonic::transport::Error>>,
    sessions: JoinHandle<()>,
    /// Where calls come from.
    socket: OwnedFd,
    end: watch::Sender<bool>,
    cut_off: watch::Sender<bool>,
}

impl Serving {
    /// Sets them to work.
    ///
    /// # Errors
    /// No descriptor is left.
    pub(crate) fn begin(listener: UnixListener, engine: Arc<Engine>, streaming: Server<Sessions>) -> Result<Self> {
        let socket = listener.as_fd().try_clone_to_owned().during("serving", "calls")?;
        let (end, ends) = watch::channel(false);
        let (cut_off, over) = watch::channel(false);
        let bounds = Bounds::default();
        let end_of = move |call| unless_over(call, over.clone());
        let server = coracle_cri::server::builder()
            .layer(tower::layer::layer_fn(move |service| bounds.around(MapFuture::new(Deadlines::of(service), end_of.clone()))))
            .add_routes(coracle_cri::routes(engine, streaming.urls()));
        let calls = tokio::spawn(server.serve_with_incoming_shutdown(Callers::of(listener), told(ends.clone())));
        let sessions = tokio::spawn(streaming.serve(told(ends)));
        Ok(Self { calls, sessions, socket, end, cut_off })
    }

    /// Waits until calls are served no longer, which happens only for a reason.
    pub(crate) async fn ended(&mut self) -> Result<()> {
        let ended = (&mut self.calls).await.during("serving", "calls")?;
        ended.during("serving", "calls")
    }

    /// Ends both.
    pub(crate) async fn end(self) {
        self.end.send_replace(true);
        // From now on nobody can connect; the server itself would keep newcomers waiting until it has ended.
        let _ = shutdown(&self.socket, Shutdown::Both);
        let drained = async { tokio::join!(self.calls, self.sessions) };
        tokio::pin!(drained);
        if tokio::time::timeout(DRAIN, &mut drained).await.is_err() {
            info!("calls or sessions that are not finished are cut off");
            self.cut_off.send_replace(true);
            let _ = tokio::time::timeout(LAST_WORDS, drained).await;
        }
    }
}

/// Waits until the daemon is told to end.
async fn told(mut ends: watch::Receiver<bool>) {
    let _ = ends.wait_for(|ends| *ends).await;
}
