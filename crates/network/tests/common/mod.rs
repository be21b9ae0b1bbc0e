//! Network namespaces for tests: each test is a host of its own, and what it makes ends with its threads.

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use coracle_domain::PodId;
use coracle_network::{Bridge, Lease};
use nix::sched::{CloneFlags, setns, unshare};

/// Far longer than anything takes.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// A network namespace that somebody holds open.
pub(crate) struct Namespace(OwnedFd);

impl Namespace {
    /// A new one, with everything down.
    pub(crate) fn new() -> Self {
        let make = || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            Self(File::open("/proc/thread-self/ns/net").unwrap().into())
        };
        thread::scope(|scope| scope.spawn(make).join().unwrap())
    }

    /// Runs `work` inside, on a thread that ends with it.
    pub(crate) fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let enter = || {
            setns(&self.0, CloneFlags::CLONE_NEWNET).unwrap();
            work()
        };
        match thread::scope(|scope| scope.spawn(enter).join()) {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }

    pub(crate) fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Runs a test as if on a host of its own.
pub(crate) fn on_a_host<F: Future<Output = ()>>(test: impl FnOnce() -> F + Send) {
    Namespace::new().inside(|| {
        run("ip", &["link", "set", "lo", "up"]);
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test());
    });
}

/// Gives the calling thread's namespace an uplink, 198.51.100.1, to a neighbour, 198.51.100.2, by which its default
/// route leads; the neighbour.
pub(crate) fn neighbour() -> Namespace {
    let outside = Namespace::new();
    let far = format!("/proc/{}/fd/{}", std::process::id(), outside.as_fd().as_raw_fd());
    run("ip", &["link", "add", "uplink", "mtu", "1400", "type", "veth", "peer", "name", "far", "netns", &far]);
    run("ip", &["addr", "add", "198.51.100.1/24", "dev", "uplink"]);
    run("ip", &["link", "set", "uplink", "up"]);
    run("ip", &["route", "add", "default", "via", "198.51.100.2"]);
    outside.inside(|| {
        run("ip", &["addr", "add", "198.51.100.2/24", "dev", "far"]);
        run("ip", &["link", "set", "far", "up"]);
    });
    // Has the kernel finish bringing up the carrier.
    run("ip", &["link", "show", "dev", "uplink"]);
    outside
}

/// A pod as far as the network knows it.
pub(crate) struct Pod {
    pub(crate) id: PodId,
    pub(crate) namespace: Namespace,
    pub(crate) lease: Lease,
}

impl Pod {
    /// A pod that is attached.
    pub(crate) async fn attached(bridge: &Bridge, seed: u8) -> Self {
        let pod = Self::unattached(bridge, seed);
        pod.attach(bridge).await;
        pod
    }

    /// A pod that has an address and is to be attached.
    pub(crate) fn unattached(bridge: &Bridge, seed: u8) -> Self {
        let id = PodId::from_entropy([seed; 32]);
        let lease = bridge.lease(&id).unwrap();
        Self { id, namespace: Namespace::new(), lease }
    }

    pub(crate) async fn attach(&self, bridge: &Bridge) {
        bridge.attach(&self.id, self.namespace.as_fd(), &self.lease).await.unwrap();
    }
}

/// What a program prints; it must succeed.
pub(crate) fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Whether there is a link of this name in the calling thread's namespace.
pub(crate) fn link_exists(name: &str) -> bool {
    Command::new("ip").args(["link", "show", name]).output().unwrap().status.success()
}

/// Connects from `client` to a listener of `server`; returns whom the server saw.
pub(crate) fn connect(client: &Namespace, server: &Namespace, address: Ipv4Addr) -> Ipv4Addr {
    let listener = server.inside(|| TcpListener::bind((address, 0)).unwrap());
    let target = listener.local_addr().unwrap();
    client.inside(|| dial(target));
    match listener.accept().unwrap().1 {
        SocketAddr::V4(peer) => *peer.ip(),
        SocketAddr::V6(peer) => panic!("{peer}"),
    }
}

/// Connects from the calling thread's namespace, without a packet being lost.
pub(crate) fn dial(target: SocketAddr) {
    let before = lost_attempts();
    TcpStream::connect_timeout(&target, PATIENCE).unwrap();
    assert_eq!(lost_attempts(), before, "a packet was lost");
}

/// How often this namespace had to send the first packet of a connection again.
fn lost_attempts() -> u64 {
    let counters = std::fs::read_to_string("/proc/thread-self/net/netstat").unwrap();
    let mut lines = counters.lines().filter(|line| line.starts_with("TcpExt:"));
    let (names, values) = (lines.next().unwrap(), lines.next().unwrap());
    let found = names.split(' ').zip(values.split(' ')).find(|(name, _)| *name == "TCPSynRetrans");
    found.unwrap().1.parse().unwrap()
}

/// Waits for something the kernel does in its own time.
pub(crate) async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !condition() {
        assert!(begin.elapsed() < PATIENCE, "{what} did not come about");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
