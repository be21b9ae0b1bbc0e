//! The task that owns a connection: sends calls, and brings replies and events to whoever waits for them.

use std::collections::HashMap;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use coracle_failpoint::{Point, reach};
use rustix::io::Errno;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde::Deserialize;
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot};

use crate::frame::{self, Decoder};
use crate::protocol::{Call, Event, Fault, Message, Reply, Request};

/// The most descriptors a call may carry.
const MOST_DESCRIPTORS: usize = 4;
const READ: usize = 16 << 10;

/// A call on its way.
#[derive(Debug)]
pub(super) struct Outgoing {
    pub(super) request: Request,
    pub(super) descriptors: Vec<OwnedFd>,
    pub(super) reply: oneshot::Sender<Reply>,
    /// Who waits for the end of which exec.
    pub(super) exited: Option<(String, oneshot::Sender<i32>)>,
}

/// A connection and all who wait for something from it. What goes through its channels is boxed, as what goes to a pod's owner:
/// there is room for 32 messages in each from the beginning.
#[derive(Debug)]
pub(super) struct Link {
    stream: UnixStream,
    events: mpsc::UnboundedSender<Box<Event>>,
    decoder: Decoder,
    replies: HashMap<u64, (oneshot::Sender<Reply>, Option<String>)>,
    execs: HashMap<String, oneshot::Sender<i32>>,
    last: u64,
}

impl Link {
    /// A link over a connected socket.
    pub(super) fn new(stream: UnixStream, events: mpsc::UnboundedSender<Box<Event>>) -> Self {
        Self { stream, events, decoder: Decoder::default(), replies: HashMap::new(), execs: HashMap::new(), last: 0 }
    }

    /// Works until the monitor goes away or nobody holds a handle to it. Whoever waits then sees its end dropped.
    pub(super) async fn run(mut self, mut calls: mpsc::Receiver<Box<Outgoing>>) {
        while self.work(&mut calls).await.is_ok() {}
        drop(self);
        // Dropped as it is, it would keep for ever the call of one who already had room in it.
        calls.close();
        while calls.recv().await.is_some() {}
    }

    async fn work(&mut self, calls: &mut mpsc::Receiver<Box<Outgoing>>) -> io::Result<()> {
        tokio::select! {
            call = calls.recv() => self.send(*call.ok_or(io::ErrorKind::BrokenPipe)?).await,
            readable = self.stream.readable() => readable.and_then(|()| self.receive()),
        }
    }

    async fn send(&mut self, call: Outgoing) -> io::Result<()> {
        self.last += 1;
        let exec = call.exited.map(|(name, sender)| {
            self.execs.insert(name.clone(), sender);
            name
        });
        self.replies.insert(self.last, (call.reply, exec));
        let Ok(frame) = frame::encode(&Call { id: self.last, request: call.request }) else {
            self.deliver(self.last, Reply::Failed(Fault::new("sending", "a call to the monitor", Errno::MSGSIZE)));
            return Ok(());
        };
        let descriptors: Vec<BorrowedFd<'_>> = call.descriptors.iter().map(AsFd::as_fd).collect();
        let mut sent = 0;
        while let Some(rest) = frame.get(sent..).filter(|rest| !rest.is_empty()) {
            let descriptors = if sent == 0 { &descriptors[..] } else { &[] };
            sent += self.stream.async_io(Interest::WRITABLE, || send_some(&self.stream, rest, descriptors)).await?;
        }
        reach(Point::MonitorCall);
        Ok(())
    }

    fn receive(&mut self) -> io::Result<()> {
        let mut bytes = [0; READ];
        match self.stream.try_read(&mut bytes) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => self.decoder.push(bytes.get(..count).unwrap_or_default()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error),
        }
        while let Some(frame) = self.decoder.pop().map_err(io::Error::other)? {
            match serde_json::from_slice(&frame) {
                Ok(Message::Reply { id, reply }) => {
                    reach(Point::MonitorReply);
                    self.deliver(id, reply);
                }
                Ok(Message::Event(Event::ExecExited { exec, code })) if self.execs.contains_key(&exec) => {
                    // Nobody may be waiting any more.
                    let _ = self.execs.remove(&exec).map(|waiting| waiting.send(code));
                }
                Ok(Message::Event(event)) => {
                    reach(Point::MonitorEvent);
                    let _ = self.events.send(Box::new(event));
                }
                Err(_) => self.pass_over(&frame)?,
            }
        }
        Ok(())
    }

    /// Takes what a later monitor said: an answer that is not understood is still one; all else is nothing to us.
    fn pass_over(&mut self, frame: &[u8]) -> io::Result<()> {
        #[derive(Deserialize)]
        struct Envelope {
            #[serde(rename = "Reply")]
            reply: Option<Numbered>,
        }
        #[derive(Deserialize)]
        struct Numbered {
            id: u64,
        }
        if let Some(Numbered { id }) = serde_json::from_slice::<Envelope>(frame)?.reply {
            self.deliver(id, Reply::Failed(Fault::new("understanding", "the answer of a monitor of a later release", Errno::PROTO)));
        }
        Ok(())
    }

    fn deliver(&mut self, id: u64, reply: Reply) {
        let Some((waiting, exec)) = self.replies.remove(&id) else { return };
        if let (Reply::Failed(_) | Reply::Ended { .. }, Some(exec)) = (&reply, exec) {
            self.execs.remove(&exec);
        }
        let _ = waiting.send(reply);
    }
}

/// Sends what the socket takes now, with descriptors if there are any; how many bytes that was.
pub(super) fn send_some(socket: impl AsFd, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_DESCRIPTORS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    Ok(sendmsg(socket, &[IoSlice::new(bytes)], &mut control, SendFlags::DONTWAIT | SendFlags::NOSIGNAL)?)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream as Peer;

    use super::*;

    fn frame(text: &str) -> Vec<u8> {
        [&u32::try_from(text.len()).unwrap().to_le_bytes()[..], text.as_bytes()].concat()
    }

    fn call() -> (Box<Outgoing>, oneshot::Receiver<Reply>) {
        let (reply, answer) = oneshot::channel();
        (Box::new(Outgoing { request: Request::State, descriptors: Vec::new(), reply, exited: None }), answer)
    }

    #[tokio::test]
    async fn a_call_that_its_monitors_end_overtakes_has_an_end() {
        let (ours, peer) = UnixStream::pair().unwrap();
        let (calls, receiver) = mpsc::channel(1);
        let (events, mut heard) = mpsc::unbounded_channel();
        let link = tokio::spawn(Link::new(ours, events).run(receiver));
        let (late, answer) = call();
        let room = calls.reserve().await.unwrap();
        drop(peer);
        assert!(heard.recv().await.is_none(), "the end is told at once");
        room.send(late);
        assert!(answer.await.is_err());
        link.await.unwrap();
        assert!(calls.send(call().0).await.is_err());
    }

    #[tokio::test]
    async fn what_a_later_monitor_says_costs_at_most_the_call_that_it_answers() {
        let (ours, mut peer) = Peer::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let (calls, receiver) = mpsc::channel(1);
        let (events, mut heard) = mpsc::unbounded_channel();
        let link = tokio::spawn(Link::new(UnixStream::from_std(ours).unwrap(), events).run(receiver));
        let (request, answer) = call();
        calls.send(request).await.unwrap();
        let peer = tokio::task::spawn_blocking(move || {
            // The call is there, so its answer is awaited.
            peer.read_exact(&mut [0; 4]).unwrap();
            for text in [
                r#"{"Event":{"Slept":{"container":"a"}}}"#,
                r#"{"Song":[1,2]}"#,
                r#"{"Reply":{"id":1,"reply":{"Wish":{}}}}"#,
                r#"{"Event":{"ExecExited":{"exec":"x","code":3,"why":"because"}}}"#,
            ] {
                peer.write_all(&frame(text)).unwrap();
            }
            peer
        });
        assert!(matches!(answer.await.unwrap(), Reply::Failed(fault) if fault.errno == Errno::PROTO.raw_os_error()));
        assert!(heard.recv().await.is_some_and(|event| matches!(*event, Event::ExecExited { code: 3, .. })));
        peer.await.unwrap().write_all(&frame("no JSON")).unwrap();
        assert!(heard.recv().await.is_none(), "what is no JSON ends the connection");
        link.await.unwrap();
    }
}
