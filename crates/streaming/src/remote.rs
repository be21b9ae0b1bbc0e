//! A session with a program: exec and attach, whatever the transport.
//!
//! ```text
//!   client's streams          this module           backend's descriptors
//!   stdin   ──────────────────> inwards  ──────────────────> stdin
//!   resize  ──────────────────> sizes    ──────────────────> resize()
//!   stdout  <────────────────── outwards <────────────────── stdout
//!   stderr  <────────────────── outwards <────────────────── stderr
//!   error   <────────────────── report   <────────────────── exit
//! ```
//!
//! The session is over when the program has ended and its output has been copied, or when the client goes away. It ends
//! neither by the end of the input nor by that of an output.

use std::future::{Future, pending};
use std::io;
use std::os::fd::OwnedFd;

use coracle_domain::{During, Result};
use tokio::sync::watch;

use crate::backend::{Ending, Process, TerminalSize};
use crate::flow::Incoming;
use crate::outgoing::Outgoing;
use crate::pump::{Sink, Source, inwards, nowhere, outwards};
use crate::status::Report;

/// A terminal's size takes some thirty bytes; more than this is none.
pub(crate) const MAX_SIZE: usize = 1 << 10;

/// The client's side of a session with a program.
pub(crate) struct Client {
    pub(crate) stdin: Option<Incoming>,
    pub(crate) resize: Option<Incoming>,
    pub(crate) stdout: Option<Outgoing>,
    pub(crate) stderr: Option<Outgoing>,
    pub(crate) error: Option<Outgoing>,
    /// The unused halves of streams in both directions: what they end with is the session.
    pub(crate) unused: Vec<Outgoing>,
    pub(crate) report: Report,
}

/// Serves `client` with the program that `start` starts. Whoever calls this drops it when the client goes away.
pub(crate) async fn serve(client: Client, start: impl Future<Output = Result<Process>>) {
    let Client { stdin, resize, stdout, stderr, error, unused, report } = client;
    let ending = match start.await {
        Ok(process) => converse(process, Conversation { stdin, resize, stdout, stderr }).await,
        Err(error) => {
            for output in [stdout, stderr].into_iter().flatten() {
                output.finish();
            }
            Err(error)
        }
    };
    if let Err(error) = &ending {
        tracing::debug!(%error, "a streaming session failed");
    }
    if let Some(error) = error {
        // A client that has gone is not told.
        let _ = error.write(&report.of(&ending)).await;
        error.finish();
    }
    for stream in unused {
        stream.finish();
    }
}

struct Conversation {
    stdin: Option<Incoming>,
    resize: Option<Incoming>,
    stdout: Option<Outgoing>,
    stderr: Option<Outgoing>,
}

async fn converse(process: Process, client: Conversation) -> Result<Ending> {
    let (end, ended) = watch::channel(false);
    let output = async {
        tokio::try_join!(copy_out(process.stdout, client.stdout, ended.clone()), copy_out(process.stderr, client.stderr, ended.clone()),)
    };
    let exit = async {
        let ending = process.exit.await;
        end.send_replace(true);
        ending
    };
    let input = async {
        tokio::join!(copy_in(client.stdin, process.stdin), resize(client.resize, process.resize));
        pending::<()>().await
    };
    let whole = async { tokio::join!(exit, output) };
    tokio::select! {
        (ending, copied) = whole => {
            copied.during("copying the output of", "a program")?;
            ending
        }
        () = input => Ok(Ending::Detached),
    }
}

/// Copies one output to its end and tells the client of it. A terminal has output also where nobody wants it.
async fn copy_out(from: Option<OwnedFd>, to: Option<Outgoing>, ended: watch::Receiver<bool>) -> io::Result<()> {
    let from = from.map(Source::new).transpose()?;
    match (&from, &to) {
        (Some(from), Some(to)) => drop(outwards(from, to, ended).await?),
        (Some(from), None) => nowhere(from, ended).await?,
        (None, _) => {}
    }
    if let Some(to) = to {
        to.finish();
    }
    Ok(())
}

/// Copies the input to its end. A program that reads no more has ended it too; the client is not to be held up by that.
async fn copy_in(from: Option<Incoming>, to: Option<OwnedFd>) {
    let (Some(mut from), Some(to)) = (from, to) else { return };
    if let Ok(to) = Sink::new(to)
        && let Err(error) = inwards(&mut from, &to).await
    {
        tracing::debug!(%error, "a program takes no more input");
    }
    from.discard().await;
}

async fn resize(from: Option<Incoming>, to: Option<Box<dyn Fn(TerminalSize) + Send + Sync>>) {
    let (Some(mut from), Some(to)) = (from, to) else { return };
    let mut text = Vec::new();
    while let Some(bytes) = from.next().await {
        text.extend_from_slice(&bytes);
        for size in sizes(&mut text) {
            to(size);
        }
    }
}

/// Takes the whole sizes out of `text`; what is none is forgotten, with all that stands after it.
pub(crate) fn sizes(text: &mut Vec<u8>) -> Vec<TerminalSize> {
    let mut sizes = Vec::new();
    let mut stream = serde_json::Deserializer::from_slice(text).into_iter::<TerminalSize>();
    let rest = loop {
        let begun = stream.byte_offset();
        match stream.next() {
            Some(Ok(size)) => sizes.push(size),
            Some(Err(error)) if error.is_eof() && text.len() - begun < MAX_SIZE => break begun,
            Some(Err(_)) | None => break text.len(),
        }
    };
    text.drain(..rest);
    sizes
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sizes_come_in_pieces_and_in_bunches() {
        let mut text = br#"{"Width":80,"Height":24}
            {"Width":100,"Height":50}{"Wid"#
            .to_vec();
        assert_eq!(sizes(&mut text), [TerminalSize { width: 80, height: 24 }, TerminalSize { width: 100, height: 50 }]);
        text.extend(br#"th":1,"Height":2}"#);
        assert_eq!(sizes(&mut text), [TerminalSize { width: 1, height: 2 }]);
        assert_eq!(text, b"");
    }

    #[test]
    fn what_is_no_size_is_forgotten() {
        for nonsense in [&b"[]"[..], b"{\"Width\":70000,\"Height\":1}", b"\xff\xfe", &[b' '; 4096], &[b'['; 4096]] {
            let mut text = nonsense.to_vec();
            assert_eq!(sizes(&mut text), []);
            assert!(text.len() <= MAX_SIZE);
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic_or_grow(parts in vec(vec(any::<u8>(), 0..600), 0..8)) {
            let mut text = Vec::new();
            for part in parts {
                text.extend(part);
                let _ = sizes(&mut text);
                prop_assert!(text.len() <= MAX_SIZE);
            }
        }
    }
}
