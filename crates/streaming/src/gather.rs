//! The streams of a session with a program, as they come: SPDY clients open them one by one.

use std::time::Duration;

use coracle_domain::{Failure, FailureKind};
use tokio::time::timeout;

use crate::flow::Incoming;
use crate::outgoing::Outgoing;
use crate::remote::Client;
use crate::request::Streams;
use crate::spdy::{NewStream, Session};
use crate::status::Report;
use crate::websocket;

/// The numbers of WebSocket's channels.
const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;

/// Which of a WebSocket's channels are read.
pub(crate) fn readable(streams: Streams) -> [bool; 5] {
    [streams.stdin(), false, false, false, streams.tty()]
}

/// The channels of a WebSocket. The client is told that the session is there.
pub(crate) async fn websocket(session: &mut websocket::Session, streams: Streams, report: Report) -> Client {
    let first = if streams.stdout() {
        STDOUT
    } else if streams.stderr() {
        STDERR
    } else {
        ERROR
    };
    if let Outgoing::WebSocket(writer) = session.outgoing(first) {
        let _ = writer.greet().await;
    }
    Client {
        stdin: session.incoming(STDIN),
        resize: session.incoming(RESIZE),
        stdout: streams.stdout().then(|| session.outgoing(STDOUT)),
        stderr: streams.stderr().then(|| session.outgoing(STDERR)),
        error: Some(session.outgoing(ERROR)),
        unused: Vec::new(),
        report,
    }
}

/// Streams of both directions, by what they are for.
#[derive(Default)]
struct Gathered {
    stdin: Option<(Incoming, Outgoing)>,
    stdout: Option<(Incoming, Outgoing)>,
    stderr: Option<(Incoming, Outgoing)>,
    error: Option<(Incoming, Outgoing)>,
    resize: Option<(Incoming, Outgoing)>,
}

impl Gathered {
    /// Takes a stream of a kind that is not there yet.
    fn add(&mut self, stream: NewStream) {
        let place = match stream.headers.get("streamtype") {
            Some("stdin") => &mut self.stdin,
            Some("stdout") => &mut self.stdout,
            Some("stderr") => &mut self.stderr,
            Some("error") => &mut self.error,
            Some("resize") => &mut self.resize,
            _ => return stream.refuse(),
        };
        if place.is_some() { stream.refuse() } else { *place = Some(stream.accept()) }
    }

    fn complete(&self, streams: Streams, resizes: bool) -> bool {
        let wanted = [
            (streams.stdin(), &self.stdin),
            (streams.stdout(), &self.stdout),
            (streams.stderr(), &self.stderr),
            (true, &self.error),
            (streams.tty() && resizes, &self.resize),
        ];
        wanted.into_iter().all(|(wanted, stream)| !wanted || stream.is_some())
    }

    fn client(self, report: Report) -> Client {
        let mut unused = Vec::new();
        let mut read = |stream: Option<(Incoming, Outgoing)>| {
            stream.map(|(incoming, outgoing)| {
                unused.push(outgoing);
                incoming
            })
        };
        let (stdin, resize) = (read(self.stdin), read(self.resize));
        let written = |stream: Option<(Incoming, Outgoing)>| stream.map(|(_, outgoing)| outgoing);
        let (stdout, stderr, error) = (written(self.stdout), written(self.stderr), written(self.error));
        Client { stdin, resize, stdout, stderr, error, unused, report }
    }
}

/// Waits for the streams that were asked for; none if the client goes away, or takes longer than `limit`. Then it is
/// told, if it has opened the stream for that.
pub(crate) async fn spdy(session: &mut Session, streams: Streams, resizes: bool, report: Report, limit: Duration) -> Option<Client> {
    let mut gathered = Gathered::default();
    let gathering = async {
        while !gathered.complete(streams, resizes) {
            gathered.add(session.next_stream().await?);
        }
        Some(())
    };
    match timeout(limit, gathering).await {
        Ok(complete) => complete.map(|()| gathered.client(report)),
        Err(_) => {
            let problem = format!("not all of them were there after {} s", limit.as_secs_f32());
            let failure = Failure::new("waiting for", "the client's streams", problem).kind(FailureKind::TimedOut);
            if let Some((_, error)) = gathered.error {
                let _ = timeout(limit, error.write(&report.of(&Err(failure.into())))).await;
                error.finish();
            }
            None
        }
    }
}
