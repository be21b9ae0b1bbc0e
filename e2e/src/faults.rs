//! A network that fails: a relay before a registry that hangs up in the middle of an answer, and stays dead.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

/// A relay to a registry. It goes on until the process ends; its threads hold nothing but sockets.
#[derive(Debug)]
pub struct Relay {
    address: SocketAddr,
    /// Bytes of answers that may still pass.
    budget: Arc<AtomicUsize>,
}

impl Relay {
    /// Relays to `registry` until `limit` bytes of answers have passed in all; then every connection is closed.
    pub fn hanging_up_after(limit: usize, registry: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("binding to loopback");
        let address = listener.local_addr().expect("a bound socket has an address");
        let budget = Arc::new(AtomicUsize::new(limit));
        let shared = Arc::clone(&budget);
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let budget = Arc::clone(&shared);
                thread::spawn(move || relay(client, registry, &budget));
            }
        });
        Self { address, budget }
    }

    /// `host:port` under which the registry is to be asked.
    pub fn host(&self) -> String {
        self.address.to_string()
    }

    /// Whether it has hung up.
    pub fn has_hung_up(&self) -> bool {
        self.budget.load(Ordering::SeqCst) == 0
    }
}

fn relay(client: TcpStream, registry: SocketAddr, budget: &AtomicUsize) {
    let Ok(server) = TcpStream::connect(registry) else { return };
    let (Ok(mut from_client), Ok(mut to_server)) = (client.try_clone(), server.try_clone()) else { return };
    let requests = thread::spawn(move || std::io::copy(&mut from_client, &mut to_server).and_then(|_| to_server.shutdown(Shutdown::Write)));
    copy(&server, &client, budget);
    let _ = client.shutdown(Shutdown::Both);
    let _ = server.shutdown(Shutdown::Both);
    let _ = requests.join();
}

/// Copies answers until they end or the budget is used up.
fn copy(mut from: &TcpStream, mut to: &TcpStream, budget: &AtomicUsize) {
    let mut buffer = [0; 16 * 1024];
    while let Ok(length @ 1..) = from.read(&mut buffer) {
        let before = budget.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| Some(left.saturating_sub(length))).unwrap_or_default();
        let passing = length.min(before);
        if to.write_all(&buffer[..passing]).is_err() || passing < length {
            return;
        }
    }
}
