//! The network between the daemon and its registry: fair, or silent, or broken.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::thread;
use std::time::Duration;

/// How the network is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Mood {
    /// Everything passes.
    Fair,
    /// Connections are taken, and nothing passes.
    Silent,
    /// Connections are closed, old and new.
    Broken,
}

/// A relay to a registry. It goes on until the process ends; its threads hold nothing but sockets.
#[derive(Debug, Clone)]
pub(crate) struct Relay {
    address: SocketAddr,
    mood: Arc<AtomicU8>,
}

impl Relay {
    /// Relays to `registry`, fairly at first.
    pub(crate) fn to(registry: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("binding to loopback");
        let address = listener.local_addr().expect("a bound socket has an address");
        let relay = Self { address, mood: Arc::new(AtomicU8::new(Mood::Fair as u8)) };
        let own = relay.clone();
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let relay = own.clone();
                thread::spawn(move || relay.serve(client, registry));
            }
        });
        relay
    }

    /// `host:port` under which the registry is to be asked.
    pub(crate) fn host(&self) -> String {
        self.address.to_string()
    }

    /// Changes the weather.
    pub(crate) fn set(&self, mood: Mood) {
        self.mood.store(mood as u8, Ordering::Relaxed);
    }

    fn is(&self, mood: Mood) -> bool {
        self.mood.load(Ordering::Relaxed) == mood as u8
    }

    fn serve(self, client: TcpStream, registry: SocketAddr) {
        let Ok(server) = TcpStream::connect(registry) else { return };
        let (Ok(from_client), Ok(to_server)) = (client.try_clone(), server.try_clone()) else { return };
        let other = self.clone();
        let requests = thread::spawn(move || other.copy(&from_client, &to_server));
        self.copy(&server, &client);
        let _ = client.shutdown(Shutdown::Both);
        let _ = server.shutdown(Shutdown::Both);
        let _ = requests.join();
    }

    /// Copies until one side ends or the network breaks.
    fn copy(&self, mut from: &TcpStream, mut to: &TcpStream) {
        let mut buffer = [0; 16 * 1024];
        while let Ok(length @ 1..) = from.read(&mut buffer) {
            while self.is(Mood::Silent) {
                thread::sleep(Duration::from_millis(20));
            }
            if self.is(Mood::Broken) || to.write_all(&buffer[..length]).is_err() {
                break;
            }
        }
        let _ = to.shutdown(Shutdown::Write);
    }
}
