//! Connections to a pod's own localhost.
//!
//! A socket belongs for ever to the network namespace of the thread that made it. So only that is done on a thread in
//! the pod's namespace; connecting is waited for like any other connection.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use coracle_domain::{During, Failure, FailureKind, PodId, Result};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tokio::net::TcpSocket;

use crate::worker::on_own_thread;

/// How long a connection may take: nothing is nearer than localhost, but a full backlog keeps silent.
const LIMIT: Duration = Duration::from_secs(30);

const STAGE: &str = "connecting to";

/// A stream socket that is connected to `port` of localhost in a network namespace, or in the node's: IPv4, then IPv6.
/// It does not block.
///
/// # Errors
/// Nobody listens there; it takes more than half a minute.
pub async fn dial(pod: &PodId, namespace: Option<OwnedFd>, port: u16) -> Result<OwnedFd> {
    let subject = format!("port {port} of pod {}", pod.short());
    let sockets = match namespace {
        None => Sockets::new(),
        Some(namespace) => {
            let subject = subject.clone();
            on_own_thread(STAGE, subject.clone(), move || {
                move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
                    .during("entering the namespace of", subject)?;
                Ok(Sockets::new())
            })
            .await?
        }
    };
    match tokio::time::timeout(LIMIT, sockets.connect(port)).await {
        Ok(connected) => connected.during(STAGE, subject),
        Err(_) => Err(Failure::new(STAGE, subject, format!("no answer in {} s", LIMIT.as_secs())).kind(FailureKind::TimedOut).into()),
    }
}

/// One that is not connected yet for each version of the protocol. The kernel may lack one.
#[derive(Debug)]
struct Sockets([(IpAddr, io::Result<OwnedFd>); 2]);

impl Sockets {
    fn new() -> Self {
        let make = |family| {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            socket_with(family, SocketType::STREAM, flags, None).map_err(io::Error::from)
        };
        Self([(Ipv4Addr::LOCALHOST.into(), make(AddressFamily::INET)), (Ipv6Addr::LOCALHOST.into(), make(AddressFamily::INET6))])
    }

    /// The first that can be connected. If none can, the first one's error: that is what people look for.
    async fn connect(self, port: u16) -> io::Result<OwnedFd> {
        let [(address, first), (other, second)] = self.0;
        match connect(first, SocketAddr::new(address, port)).await {
            Ok(connected) => Ok(connected),
            Err(error) => connect(second, SocketAddr::new(other, port)).await.map_err(|_| error),
        }
    }
}

async fn connect(socket: io::Result<OwnedFd>, address: SocketAddr) -> io::Result<OwnedFd> {
    let socket = TcpSocket::from_std_stream(socket?.into());
    Ok(socket.connect(address).await?.into_std()?.into())
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    async fn dial_from_here(port: u16) -> Result<OwnedFd> {
        dial(&PodId::from_entropy([1; 32]), None, port).await
    }

    #[tokio::test]
    async fn either_version_of_the_protocol_will_do() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            // A kernel without IPv6 has nothing to be dialled there.
            let Ok(listener) = TcpListener::bind(address) else { continue };
            let port = listener.local_addr().unwrap().port();
            dial_from_here(port).await.unwrap();
            listener.accept().unwrap();
        }
    }

    #[tokio::test]
    async fn a_port_without_a_listener_is_named() {
        // Bound, so that nobody else gets it, and nobody listens.
        let bound = tokio::net::TcpSocket::new_v4().unwrap();
        bound.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let port = bound.local_addr().unwrap().port();
        let error = dial_from_here(port).await.unwrap_err().to_string();
        assert!(error.contains(&format!("port {port} of pod")) && error.contains("refused"), "{error}");
    }
}
