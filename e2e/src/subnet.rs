//! A subnet for each node, which no other test on the machine uses.
//!
//! A claim is an abstract unix socket of that name: only one process can hold it, and the kernel drops it
//! when the process ends, however it ends.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::sync::atomic::{AtomicU32, Ordering};

/// `10.x.y.0/24`, held while this value lives.
#[derive(Debug)]
pub(crate) struct Subnet {
    second: u8,
    third: u8,
    _claim: UnixListener,
}

impl Subnet {
    /// The next free subnet.
    pub(crate) fn claim() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        for _ in 0..4096 {
            let number = std::process::id().wrapping_mul(61).wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed));
            let [low, high, ..] = number.to_le_bytes();
            // 10.128.0.0/9 keeps clear of the ranges that runtimes and CNI plugins use by default.
            let (second, third) = (high | 128, low);
            if let Some(claim) = claim(second, third) {
                return Self { second, third, _claim: claim };
            }
        }
        panic!("no free subnet under 10.128.0.0/9");
    }

    /// In CIDR notation.
    pub(crate) fn cidr(&self) -> String {
        self.part(0, 24)
    }

    /// A part of it, by the last octet of its first address and its prefix length.
    pub(crate) fn part(&self, first: u8, prefix: u8) -> String {
        format!("10.{}.{}.{first}/{prefix}", self.second, self.third)
    }
}

fn claim(second: u8, third: u8) -> Option<UnixListener> {
    if is_routed(second, third) {
        return None;
    }
    let address = SocketAddr::from_abstract_name(format!("coracle-e2e/10.{second}.{third}.0")).ok()?;
    UnixListener::bind_addr(&address).ok()
}

/// Whether the machine has a route into the subnet (`/proc/net/route`: destination and mask in hexadecimal,
/// in the processor's byte order).
fn is_routed(second: u8, third: u8) -> bool {
    let routes = std::fs::read_to_string("/proc/net/route").unwrap_or_default();
    let ours = u32::from_be_bytes([10, second, third, 0]);
    routes.lines().skip(1).any(|line| {
        let fields: Vec<_> = line.split_whitespace().collect();
        let number = |index: usize| fields.get(index).and_then(|text| u32::from_str_radix(text, 16).ok()).map(u32::swap_bytes);
        match (number(1), number(7)) {
            (Some(destination), Some(mask)) if mask != 0 => destination & mask == ours & mask,
            _ => false,
        }
    })
}
