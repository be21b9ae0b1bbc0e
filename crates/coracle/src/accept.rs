//! Accepting connections for as long as the daemon serves. That there is no descriptor for one now is no reason to
//! end, nor to ask the kernel again and again: whoever has to wait stays in the socket's queue.

use std::future::pending;
use std::io;
use std::time::Duration;

use futures_util::stream::{self, Stream};
use tokio::net::{UnixListener, UnixStream};
use tracing::{info, warn};

/// How long it waits for descriptors to come back.
const PAUSE: Duration = Duration::from_millis(100);

/// The connections of a listener; there is always one more.
pub(crate) fn connections(listener: UnixListener) -> impl Stream<Item = io::Result<UnixStream>> {
    stream::unfold(listener, async |listener| Some((Ok(accept(&listener).await), listener)))
}

async fn accept(listener: &UnixListener) -> UnixStream {
    let mut waiting = false;
    loop {
        match listener.accept().await {
            Ok((connection, _)) => {
                if waiting {
                    info!("clients are accepted again");
                }
                return connection;
            }
            // The listener was shut down: nobody will come.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => pending().await,
            Err(error) => {
                if !waiting {
                    warn!(%error, "no client can be accepted for now; is LimitNOFILE of the daemon too low?");
                }
                waiting = true;
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}
