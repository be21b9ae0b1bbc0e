//! A netlink socket: sends requests, reads the kernel's answers, names what failed.
//!
//! It knows the framing every netlink family shares (netlink(7), linux/netlink.h) and nothing of what the
//! messages mean. A socket belongs to the network namespace of the thread that opened it, wherever it is
//! used afterwards. The kernel answers a netlink request before `send` returns, so no call here ever waits:
//! an answer that is not there is an error.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use coracle_domain::{Error, Failure};
use coracle_failpoint::{Point, reach};
use netlink_packet_core::{NLA_HEADER_SIZE, NLA_TYPE_MASK, NetlinkSerializable};
use netlink_packet_route::RouteNetlinkMessage;
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink};

pub(crate) use netlink_packet_core::{NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST};
use netlink_packet_core::{NLM_F_ACK_TLVS, NLM_F_CAPPED, NLM_F_DUMP_INTR};

const HEADER_LENGTH: usize = 16;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
/// `NLMSGERR_ATTR_MSG`: the kernel's sentence in an error answer.
const ERROR_SENTENCE: u16 = 1;
/// The kernel puts at most 32 KiB into one part of a dump.
const RECEIVE_LENGTH: usize = 64 << 10;
/// How often a dump is repeated that changed while it was read.
const DUMP_ATTEMPTS: usize = 4;

/// One request, with the words for its failure.
#[derive(Debug)]
pub(crate) struct Request {
    /// The message type.
    pub(crate) kind: u16,
    /// `NLM_F_*` beside `NLM_F_REQUEST`; with `NLM_F_ACK` the kernel says that it is done.
    pub(crate) flags: u16,
    /// The family's header and attributes.
    pub(crate) body: Vec<u8>,
    /// What it does, as a gerund phrase.
    pub(crate) stage: &'static str,
    /// The object it does it to.
    pub(crate) subject: String,
}

impl Request {
    /// An rtnetlink request that changes something.
    pub(crate) fn change(message: &RouteNetlinkMessage, flags: u16, stage: &'static str, subject: impl fmt::Display) -> Self {
        Self { flags: flags | NLM_F_ACK, ..Self::query(message, stage, subject) }
    }

    /// An rtnetlink request that asks something.
    pub(crate) fn query(message: &RouteNetlinkMessage, stage: &'static str, subject: impl fmt::Display) -> Self {
        let mut body = vec![0; message.buffer_len()];
        message.serialize(&mut body);
        Self { kind: message.message_type(), flags: 0, body, stage, subject: subject.to_string() }
    }

    fn write(&self, buffer: &mut Vec<u8>, sequence: u32, extra_flags: u16) {
        let length = HEADER_LENGTH + self.body.len();
        buffer.extend_from_slice(&(length as u32).to_ne_bytes());
        buffer.extend_from_slice(&self.kind.to_ne_bytes());
        buffer.extend_from_slice(&(self.flags | NLM_F_REQUEST | extra_flags).to_ne_bytes());
        buffer.extend_from_slice(&sequence.to_ne_bytes());
        buffer.extend_from_slice(&0u32.to_ne_bytes());
        buffer.extend_from_slice(&self.body);
        buffer.resize(buffer.len().next_multiple_of(4), 0);
    }

    fn failed(&self, errno: Errno, sentence: Option<String>) -> Rejection {
        Rejection { stage: self.stage, subject: self.subject.clone(), errno, sentence }
    }
}

/// A request that the kernel rejected, or that could not be sent.
#[derive(Debug)]
pub(crate) struct Rejection {
    stage: &'static str,
    subject: String,
    errno: Errno,
    /// What the kernel says of it beside the number.
    sentence: Option<String>,
}

impl Rejection {
    /// Why.
    pub(crate) fn errno(&self) -> Errno {
        self.errno
    }
}

impl From<Rejection> for Error {
    fn from(rejection: Rejection) -> Self {
        let cause = io::Error::from(rejection.errno);
        let cause = match rejection.sentence {
            Some(sentence) => io::Error::new(cause.kind(), format!("{cause}: {sentence}")),
            None => cause,
        };
        Failure::new(rejection.stage, rejection.subject, cause).into()
    }
}

/// Which part of the kernel a socket talks to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Family {
    /// Links, addresses, routes.
    Route,
    /// nf_tables.
    Netfilter,
}

/// An open netlink socket.
#[derive(Debug)]
pub(crate) struct Socket {
    fd: OwnedFd,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Socket {
    /// Opens a socket in the calling thread's network namespace.
    pub(crate) fn open(family: Family) -> Result<Self, Rejection> {
        let protocol = match family {
            Family::Route => None,
            Family::Netfilter => Some(netlink::NETFILTER),
        };
        let open = || -> io::Result<OwnedFd> {
            let fd = rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, protocol)?;
            coracle_sys::netlink::explain_refusals(fd.as_fd())?;
            Ok(fd)
        };
        let fd = open().map_err(|error| Rejection {
            stage: "opening a netlink socket for",
            subject: format!("{family:?}").to_lowercase(),
            errno: Errno::from_io_error(&error).unwrap_or(Errno::IO),
            sentence: None,
        })?;
        Ok(Self { fd, sequence: 0, buffer: vec![0; RECEIVE_LENGTH] })
    }

    /// Sends all requests at once and reads the acknowledgements. The kernel carries out each, whatever
    /// became of those before it; the answer is the first rejection in the order of the requests.
    pub(crate) fn execute(&mut self, requests: &[Request]) -> Result<(), Rejection> {
        let first = self.send(requests, 0)?;
        let mut answers: Vec<Option<Answer>> = requests.iter().map(|_| None).collect();
        while let Some(awaited) = Self::awaited(requests, &answers) {
            let received = self.receive(|message| {
                let place = message.sequence.wrapping_sub(first) as usize;
                if let (NLMSG_ERROR, Some(answer)) = (message.kind, answers.get_mut(place)) {
                    *answer = Some(Answer::read(&message));
                }
            });
            if let Err(errno) = received {
                let unanswered = || awaited.failed(errno, Some("the kernel gave no answer".to_owned()));
                return Err(Self::first_rejection(requests, &answers).unwrap_or_else(unanswered));
            }
        }
        reach(Point::NetlinkChange);
        Self::first_rejection(requests, &answers).map_or(Ok(()), Err)
    }

    /// The first request whose acknowledgement has not come.
    fn awaited<'a>(requests: &'a [Request], answers: &[Option<Answer>]) -> Option<&'a Request> {
        let mut pairs = requests.iter().zip(answers);
        pairs.find_map(|(request, answer)| (request.flags & NLM_F_ACK != 0 && answer.is_none()).then_some(request))
    }

    fn first_rejection(requests: &[Request], answers: &[Option<Answer>]) -> Option<Rejection> {
        let mut pairs = requests.iter().zip(answers);
        pairs.find_map(|(request, answer)| answer.as_ref().and_then(|answer| answer.rejection(request)))
    }

    /// Asks for one object; the answer is the body of the message that describes it.
    pub(crate) fn get(&mut self, request: &Request) -> Result<Vec<u8>, Rejection> {
        let sequence = self.send(std::slice::from_ref(request), 0)?;
        let mut found: Option<Result<Vec<u8>, Rejection>> = None;
        while found.is_none() {
            self.receive(|message| {
                if message.sequence != sequence {
                    return;
                }
                found = match message.kind {
                    NLMSG_ERROR => {
                        Some(Err(Answer::read(&message).rejection(request).unwrap_or_else(|| request.failed(Errno::NODATA, None))))
                    }
                    _ => Some(Ok(message.body.to_vec())),
                };
            })
            .map_err(|errno| request.failed(errno, None))?;
        }
        found.unwrap_or_else(|| Err(request.failed(Errno::NODATA, None)))
    }

    /// Asks for many objects and shows `each` message's body. A dump that changed while it was read is read
    /// again a few times; then it is taken as it is: it may lack what came or went meanwhile.
    pub(crate) fn dump<T>(&mut self, request: &Request, each: impl Fn(&[u8]) -> Option<T>) -> Result<Vec<T>, Rejection> {
        let mut objects = Vec::new();
        for _ in 0..DUMP_ATTEMPTS {
            objects.clear();
            if !self.dump_once(request, |body| objects.extend(each(body)))? {
                break;
            }
        }
        Ok(objects)
    }

    /// Returns whether what was dumped changed meanwhile.
    fn dump_once(&mut self, request: &Request, mut each: impl FnMut(&[u8])) -> Result<bool, Rejection> {
        let sequence = self.send(std::slice::from_ref(request), NLM_F_DUMP)?;
        let mut end: Option<Answer> = None;
        let mut changed = false;
        while end.is_none() {
            self.receive(|message| {
                if message.sequence != sequence {
                    return;
                }
                changed |= message.flags & NLM_F_DUMP_INTR != 0;
                match message.kind {
                    NLMSG_ERROR | NLMSG_DONE => end = Some(Answer::read(&message)),
                    _ => each(message.body),
                }
            })
            .map_err(|errno| request.failed(errno, None))?;
        }
        end.and_then(|end| end.rejection(request)).map_or(Ok(changed), Err)
    }

    /// Sends requests as one datagram; returns the first one's sequence number, the others count up from it.
    fn send(&mut self, requests: &[Request], extra_flags: u16) -> Result<u32, Rejection> {
        let Some(first_request) = requests.first() else { return Ok(self.sequence) };
        let first = self.sequence.wrapping_add(1);
        let mut datagram = Vec::with_capacity(1 << 10);
        for request in requests {
            self.sequence = self.sequence.wrapping_add(1);
            request.write(&mut datagram, self.sequence, extra_flags);
        }
        self.send_whole(&datagram).map_err(|errno| first_request.failed(errno, None))?;
        Ok(first)
    }

    /// A datagram must fit the send buffer, though it never waits there; the limit for all sockets is not for what is one change.
    fn send_whole(&self, datagram: &[u8]) -> Result<usize, Errno> {
        match rustix::net::send(&self.fd, datagram, SendFlags::empty()) {
            Err(Errno::MSGSIZE) => {
                rustix::net::sockopt::set_socket_send_buffer_size_force(&self.fd, datagram.len())?;
                rustix::net::send(&self.fd, datagram, SendFlags::empty())
            }
            sent => sent,
        }
    }

    /// Reads one datagram and shows `each` message in it.
    fn receive(&mut self, mut each: impl FnMut(Message<'_>)) -> Result<(), Errno> {
        let flags = RecvFlags::DONTWAIT | RecvFlags::TRUNC;
        let (_, length) = rustix::io::retry_on_intr(|| rustix::net::recv(&self.fd, &mut self.buffer[..], flags))?;
        let datagram = self.buffer.get(..length).ok_or(Errno::MSGSIZE)?;
        messages(datagram).for_each(&mut each);
        Ok(())
    }
}

/// What the kernel answered to one request.
#[derive(Debug)]
pub(crate) struct Answer {
    errno: Option<Errno>,
    sentence: Option<String>,
}

impl Answer {
    /// Reads an `NLMSG_ERROR` (which is an acknowledgement when its number is 0) or `NLMSG_DONE`.
    pub(crate) fn read(message: &Message<'_>) -> Self {
        let code = message.body.first_chunk().map_or(0, |bytes| i32::from_ne_bytes(*bytes));
        let echoed = match message.kind {
            NLMSG_DONE => 0,
            _ if message.flags & NLM_F_CAPPED != 0 => HEADER_LENGTH,
            _ => message.body.get(4..).and_then(<[u8]>::first_chunk).map_or(HEADER_LENGTH, |bytes| u32::from_ne_bytes(*bytes) as usize),
        };
        let explained = message.flags & NLM_F_ACK_TLVS != 0;
        let sentence = explained.then(|| message.body.get(4 + echoed.next_multiple_of(4)..)).flatten().and_then(|attributes| {
            let bytes = attribute(attributes, ERROR_SENTENCE)?;
            Some(String::from_utf8_lossy(bytes.strip_suffix(b"\0").unwrap_or(bytes)).into_owned())
        });
        Self { errno: (code < 0).then(|| errno(code)), sentence }
    }

    fn rejection(&self, request: &Request) -> Option<Rejection> {
        self.errno.map(|errno| request.failed(errno, self.sentence.clone()))
    }
}

/// The error that a negative number stands for. The kernel has 4095 of them (include/linux/err.h).
fn errno(code: i32) -> Errno {
    match code.checked_neg() {
        Some(number @ 1..=4095) => Errno::from_raw_os_error(number),
        _ => Errno::BADMSG,
    }
}

/// One message of a datagram.
#[derive(Debug)]
pub(crate) struct Message<'a> {
    kind: u16,
    flags: u16,
    sequence: u32,
    pub(crate) body: &'a [u8],
}

/// The messages of a datagram, up to the first that is malformed.
pub(crate) fn messages(mut datagram: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let (header, _) = datagram.split_first_chunk::<HEADER_LENGTH>()?;
        let [l0, l1, l2, l3, k0, k1, f0, f1, s0, s1, s2, s3, ..] = *header;
        let length = u32::from_ne_bytes([l0, l1, l2, l3]) as usize;
        let body = datagram.get(HEADER_LENGTH..length)?;
        datagram = datagram.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(Message {
            kind: u16::from_ne_bytes([k0, k1]),
            flags: u16::from_ne_bytes([f0, f1]),
            sequence: u32::from_ne_bytes([s0, s1, s2, s3]),
            body,
        })
    })
}

/// The attributes of a message, kind and value, up to the first that is malformed.
pub(crate) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let [l0, l1, k0, k1] = *bytes.first_chunk()?;
        let length = usize::from(u16::from_ne_bytes([l0, l1]));
        let value = bytes.get(NLA_HEADER_SIZE..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((u16::from_ne_bytes([k0, k1]) & NLA_TYPE_MASK, value))
    })
}

/// The value of the first attribute of a kind.
pub(crate) fn attribute(bytes: &[u8], wanted: u16) -> Option<&[u8]> {
    attributes(bytes).find_map(|(kind, value)| (kind == wanted).then_some(value))
}

/// An attribute that is a native-endian 32-bit number.
pub(crate) fn attribute_u32(attributes: &[u8], kind: u16) -> Option<u32> {
    attribute(attributes, kind)?.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes))
}

/// An attribute that is a string ended by a zero byte.
pub(crate) fn attribute_string(attributes: &[u8], kind: u16) -> Option<&str> {
    std::ffi::CStr::from_bytes_until_nul(attribute(attributes, kind)?).ok()?.to_str().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn message(kind: u16, flags: u16, body: &[u8]) -> Vec<u8> {
        let request = Request { kind, flags, body: body.to_vec(), stage: "testing", subject: "x".to_owned() };
        let mut bytes = Vec::new();
        request.write(&mut bytes, 7, 0);
        bytes
    }

    #[test]
    fn a_datagram_falls_into_its_messages() {
        let mut datagram = message(20, 0, b"abcde");
        datagram.extend(message(NLMSG_DONE, 0, &[0; 4]));
        let read: Vec<_> = messages(&datagram).map(|message| (message.kind, message.sequence, message.body.to_vec())).collect();
        assert_eq!(read, [(20, 7, b"abcde".to_vec()), (NLMSG_DONE, 7, vec![0; 4])]);
    }

    #[test]
    fn an_error_answer_carries_errno_and_sentence() {
        let mut body = (-17i32).to_ne_bytes().to_vec();
        body.extend([0; HEADER_LENGTH]);
        body.extend([11, 0, 1, 0]);
        body.extend(b"exists\0\0");
        let datagram = message(NLMSG_ERROR, NLM_F_CAPPED | NLM_F_ACK_TLVS, &body);
        let answer = messages(&datagram).next().map(|message| Answer::read(&message)).unwrap();
        assert_eq!((answer.errno, answer.sentence.as_deref()), (Some(Errno::EXIST), Some("exists")));
    }

    #[test]
    fn a_number_that_is_no_error_is_a_bad_message() {
        for code in [-4096, -65_536, i32::MIN] {
            let message = Message { kind: NLMSG_ERROR, flags: 0, sequence: 1, body: &code.to_ne_bytes() };
            assert_eq!(Answer::read(&message).errno, Some(Errno::BADMSG), "{code}");
        }
    }

    #[test]
    fn the_kernel_says_which_request_it_rejected_and_why() {
        let mut socket = Socket::open(Family::Route).unwrap();
        let request = Request { kind: 18, flags: 0, body: vec![0; 16], stage: "reading the link", subject: "nothing".to_owned() };
        let text = Error::from(socket.get(&request).unwrap_err()).to_string();
        assert!(text.starts_with("reading the link nothing: Invalid argument"), "{text}");
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_readers_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), kind in 0u16..4) {
            for message in messages(&bytes) {
                Answer::read(&message);
                attribute(message.body, kind);
            }
            attribute(&bytes, kind);
        }
    }
}
