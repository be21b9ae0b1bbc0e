//! Doors for the fuzz targets into what is private here. Built for them only.

use rustix::io::Errno;
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, send, socketpair};

use crate::berth::{LONGEST_ORDER, LONGEST_OUTCOME, Order, Outcome};
use crate::channel::{self, Heard};
use crate::connection::Connection;
use crate::log::FuzzedLines as Lines;
use crate::protocol::{Call, Fault};

/// A daemon's side of a connection that says `bytes`: the calls in it are handed to `each`.
pub fn connection(bytes: &[u8], mut each: impl FnMut(Call)) {
    let (near, far) = socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None).unwrap();
    let mut connection = Connection::new(near);
    for chunk in bytes.chunks(1500) {
        let _ = send(&far, chunk, SendFlags::NOSIGNAL);
        if connection.receive().is_err() {
            return;
        }
        while let Ok(Some(frame)) = connection.next_frame() {
            if let Ok(call) = serde_json::from_slice(&frame) {
                each(call);
            }
        }
    }
}

/// A message from a process that is being set up.
pub fn report(bytes: &[u8]) {
    let (listening, reporting) = channel::new().unwrap();
    let _ = reporting.say(bytes);
    if let Heard::Report(_, descriptor) = listening.hear() {
        assert!(descriptor.is_none());
    }
}

/// What a daemon and a berth say to each other: the longest outcome of an order has room.
pub fn berth(json: &[u8]) {
    if let Ok(order) = serde_json::from_slice::<Order>(json)
        && json.len() <= LONGEST_ORDER
    {
        let name = order.arguments.first().map(|name| String::from_utf8_lossy(&name.0).into_owned()).unwrap_or_default();
        let fault = Fault::new("executing the program, whose interpreter is missing,", name, Errno::NAMETOOLONG);
        assert!(serde_json::to_vec(&Outcome::Failed(fault)).unwrap().len() < LONGEST_OUTCOME);
    }
    let _ = serde_json::from_slice::<Outcome>(json);
}

/// A container's output, cut where it came in pieces, as entries of its log: no byte is lost, whatever the cut.
pub fn log(output: &[u8], cut: usize) {
    let entries = |cut: usize| {
        let (mut lines, mut entries) = (Lines::default(), Vec::new());
        let mut entry = |tag, content: &[u8]| entries.push((tag, content.to_vec()));
        let (first, second) = output.split_at(cut.min(output.len()));
        lines.push(first, &mut entry);
        lines.push(second, &mut entry);
        lines.finish(&mut entry);
        entries
    };
    assert_eq!(entries(cut), entries(output.len()));
}
