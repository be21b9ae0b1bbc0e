//! `port-forward`: connections to ports of this machine become connections to ports of a pod.
//!
//! ```text
//!   local client <──> socket <──> session of one port <──> runtime <──> pod
//! ```
//!
//! Each connection has a session of its own, so that nothing that happens to one is felt by another. The protocol
//! cannot say that one direction has ended: what the pod sends after the local client's end is still brought, for a while.

use std::net::SocketAddr;
use std::time::Duration;

use coracle_cri::v1;
use coracle_domain::{During, Failure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::connect::Client;
use super::error::Result;
use super::print_line;
use super::resolve::Catalogue;
use super::session::{self, Receiver, Sender};
use super::values::Ports;
use crate::cli::PortForwardArgs;

const DATA: u8 = 0;
const ERROR: u8 = 1;

/// How much is sent at a time.
const CHUNK: usize = 32 << 10;

/// How long the pod may still answer a local client that will say no more.
const LINGER: Duration = Duration::from_secs(30);

/// Listens, and serves what connects, for ever.
pub(crate) async fn forward(client: &Client, args: &PortForwardArgs) -> Result<()> {
    let pod = Catalogue::pods(client).await?.resolve(&args.pod)?.id.clone();
    let mut listening = JoinSet::new();
    for &Ports { local, remote } in &args.ports {
        let address = SocketAddr::new(args.address, local);
        let listener = TcpListener::bind(address).await.during("listening on", address)?;
        print_line(&format!("{} leads to port {remote}", listener.local_addr().during("naming the address of", address)?))?;
        listening.spawn(serve(listener, client.clone(), pod.clone(), remote));
    }
    while let Some(ended) = listening.join_next().await {
        ended.during("serving", "a port")??;
    }
    Ok(())
}

/// Serves what connects to one port.
async fn serve(listener: TcpListener, client: Client, pod: String, port: u16) -> Result<()> {
    loop {
        let (socket, _) = listener.accept().await.during("accepting a connection for", format!("port {port}"))?;
        let (client, pod) = (client.clone(), pod.clone());
        tokio::spawn(async move {
            if let Err(error) = connection(socket, &client, &pod, port).await {
                error.report();
            }
        });
    }
}

/// One connection, until either side ends it.
async fn connection(socket: TcpStream, client: &Client, pod: &str, port: u16) -> Result<()> {
    let request = v1::PortForwardRequest { pod_sandbox_id: pod.into(), port: vec![port.into()] };
    let url = client.runtime.clone().port_forward(request).await?.into_inner().url;
    let (sender, receiver) = session::begin(&url).await?;
    let (from, to) = socket.into_split();
    tokio::select! {
        outcome = receive(receiver, to, port) => outcome,
        () = send(from, sender) => Ok(()),
    }
}

/// Sends what the local client says, and lingers after its end.
async fn send(mut from: OwnedReadHalf, sender: Sender) {
    let mut buffer = vec![0; CHUNK];
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        if sender.send(DATA, buffer.get(..read).unwrap_or_default()).await.is_err() {
            break;
        }
    }
    sleep(LINGER).await;
}

/// Passes on what the pod says, until its end, or until the local client takes no more.
async fn receive(mut receiver: Receiver, mut to: OwnedWriteHalf, port: u16) -> Result<()> {
    let mut begun = [false; 2];
    let mut problem = Vec::new();
    while let Some((channel, bytes)) = receiver.next().await {
        match begun.get_mut(usize::from(channel)) {
            // The first message of each channel is its port.
            Some(begun) if !*begun => *begun = true,
            Some(_) if channel == ERROR => problem.extend_from_slice(&bytes),
            Some(_) if to.write_all(&bytes).await.is_err() => return Ok(()),
            _ => {}
        }
    }
    if problem.is_empty() {
        return Ok(());
    }
    Err(Failure::new("forwarding to", format!("port {port}"), String::from_utf8_lossy(&problem).into_owned()).into())
}
