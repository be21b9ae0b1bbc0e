//! Attaching a client to a container: pipes whose other ends the container's monitor has.

use coracle_domain::{ContainerView, Result};
use coracle_monitor::client::Monitor;
use coracle_monitor::protocol::Attach;
use rustix::pipe::fcntl_setpipe_size;
use tokio::sync::watch;

use crate::deadline::{ANSWER, within};
use crate::live::Live;
use crate::session::{Pipes, Session, TerminalSize, WantedStreams};

const STAGE: &str = "attaching to container";

/// How much output may wait for a client before it loses some: what a pipe may have without asking the administrator.
const WAITING: usize = 1 << 20;

/// Joins the streams of a running container. Streams that it does not have stay absent or silent.
pub(crate) async fn attach(container: &ContainerView, live: &Live, wanted: WantedStreams) -> Result<Session<()>> {
    let (target, monitor) = live.reach(container)?;
    let (id, request) = (&container.id, &container.request);
    let wanted = WantedStreams { stdin: wanted.stdin && request.stdin, ..wanted };
    let Pipes { theirs, stdin, stdout, stderr } = Pipes::new(wanted, STAGE, id)?;
    for output in [&stdout, &stderr].into_iter().flatten() {
        // Only a matter of how much is lost to whom.
        let _ = fcntl_setpipe_size(output, WAITING);
    }
    let attach = Attach {
        container: id.to_string(),
        stdin: wanted.stdin,
        stdout: wanted.stdout,
        stderr: wanted.stderr,
        stdin_once: request.stdin_once,
    };
    let mut ended = target.ended.subscribe();
    within(ANSWER, STAGE, id.as_str(), monitor.attach(attach, theirs)).await?;
    let exit = Box::pin(async move {
        // An error means that the container's owner dropped it: it is gone.
        let _ = ended.wait_for(|ended| *ended).await;
        Ok(())
    });
    let resize = request.terminal.then(|| resizing(monitor.clone(), id.to_string()));
    Ok(Session { stdin, stdout, stderr, resize, exit })
}

/// Has the monitor resize the container's terminal. Of sizes that come faster than that, the last counts.
fn resizing(monitor: Monitor, container: String) -> Box<dyn Fn(TerminalSize) + Send + Sync> {
    let (sizes, mut changes) = watch::channel(TerminalSize { columns: 0, rows: 0 });
    tokio::spawn(async move {
        while changes.changed().await.is_ok() {
            let TerminalSize { columns, rows } = *changes.borrow_and_update();
            if let Err(error) = monitor.resize(&container, columns, rows).await {
                tracing::debug!(%error, "a terminal keeps its size");
            }
        }
    });
    Box::new(move |size| {
        sizes.send_replace(size);
    })
}
