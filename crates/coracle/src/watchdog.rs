//! The sign of life that systemd's watchdog wants: given only after a call of our own was answered, which takes the way
//! of every other one through socket, service and index. A timer alone would go on when nothing else does.

use std::path::Path;
use std::time::Duration;

use coracle_cri::v1;
use coracle_cri::v1::runtime_service_client::RuntimeServiceClient;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};
use tracing::warn;

use crate::notify::Notifier;

/// Gives signs of life, twice in the time after which the daemon would be killed, while it answers at `socket`.
pub(crate) async fn run(notifier: &Notifier, socket: &Path) {
    let Some(limit) = notifier.watchdog() else { return };
    let pause = limit / 2;
    let client = client(socket);
    loop {
        let begin = tokio::time::Instant::now();
        match answers(&client, pause).await {
            Ok(()) => notifier.alive(),
            Err(problem) => warn!(problem, "the daemon does not answer itself"),
        }
        tokio::time::sleep_until(begin + pause).await;
    }
}

/// Asks for the pods of an id that none has.
async fn answers(client: &RuntimeServiceClient<Channel>, limit: Duration) -> Result<(), String> {
    let filter = v1::PodSandboxFilter { id: "-".to_owned(), ..Default::default() };
    let mut client = client.clone();
    let call = client.list_pod_sandbox(v1::ListPodSandboxRequest { filter: Some(filter) });
    match tokio::time::timeout(limit, call).await {
        Ok(answer) => answer.map(drop).map_err(|status| status.to_string()),
        Err(_) => Err(format!("no answer after {} s", limit.as_secs_f32())),
    }
}

/// A connection that is made when it is first used, and kept.
fn client(socket: &Path) -> RuntimeServiceClient<Channel> {
    let path = socket.to_owned();
    let connector = tower::service_fn(move |_| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    });
    RuntimeServiceClient::new(Endpoint::from_static("http://localhost").connect_with_connector_lazy(connector))
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;
    use std::os::unix::net::{UnixDatagram, UnixListener};

    use super::*;

    #[tokio::test]
    async fn who_gets_no_answer_gives_no_sign_of_life() {
        let directory = tempfile::tempdir().unwrap();
        let (supervisor, silent) = (directory.path().join("notify"), directory.path().join("silent"));
        let hears = UnixDatagram::bind(&supervisor).unwrap();
        hears.set_nonblocking(true).unwrap();
        // The kernel lets it connect, and nobody reads what it asks.
        let _silent = UnixListener::bind(&silent).unwrap();
        let notifier = Notifier::to(supervisor.to_str().unwrap(), Duration::from_millis(50));
        assert!(tokio::time::timeout(Duration::from_millis(500), run(&notifier, &silent)).await.is_err());
        assert_eq!(hears.recv(&mut [0; 64]).unwrap_err().kind(), ErrorKind::WouldBlock);
    }
}
