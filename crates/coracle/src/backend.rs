//! What the streaming server wants, out of the engine: neither crate knows the other.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use coracle_domain::{PodId, Result};
use coracle_engine::{Engine, Session, TerminalSize, WantedStreams};
use coracle_streaming::{AttachRequest, Backend, Ending, ExecRequest, Process, Streams};

type Resize = Box<dyn Fn(coracle_streaming::TerminalSize) + Send + Sync>;

/// The engine, as the streaming server sees it.
#[derive(Debug)]
pub(crate) struct Sessions(pub(crate) Arc<Engine>);

impl Backend for Sessions {
    async fn exec(&self, request: ExecRequest) -> Result<Process> {
        let ExecRequest { container, command, streams } = request;
        let session = self.0.exec(container.as_str(), command, wanted(streams)).await?;
        Ok(process(session, |code| Ending::Exited(u8::try_from(code).unwrap_or(u8::MAX))))
    }

    async fn attach(&self, request: AttachRequest) -> Result<Process> {
        let session = self.0.attach(request.container.as_str(), wanted(request.streams)).await?;
        Ok(process(session, |()| Ending::Detached))
    }

    async fn dial(&self, pod: &PodId, port: u16) -> Result<OwnedFd> {
        self.0.dial(pod.as_str(), port).await
    }

    async fn pod_ends(&self, pod: &PodId) {
        self.0.pod_ends(pod.as_str()).await;
    }
}

fn wanted(streams: Streams) -> WantedStreams {
    WantedStreams { stdin: streams.stdin(), stdout: streams.stdout(), stderr: streams.stderr(), terminal: streams.tty() }
}

fn process<E: 'static>(session: Session<E>, ending: fn(E) -> Ending) -> Process {
    let Session { stdin, stdout, stderr, resize, exit } = session;
    let resize = resize.map(|resize| -> Resize { Box::new(move |size| resize(TerminalSize { columns: size.width, rows: size.height })) });
    Process { stdin, stdout, stderr, resize, exit: Box::pin(async move { exit.await.map(ending) }) }
}
