//! Tests of WebSocket sessions over a connection in memory.

use std::sync::Arc;

use coracle_domain::PodId;
use futures_util::{SinkExt, StreamExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::Role;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;

use crate::backend::{Ending, TerminalSize};
use crate::handshake::{Forward, Remote};
use crate::request::{PortForwardRequest, Streams};
use crate::session;
use crate::status::Report;
use crate::testing::{Fake, LIMITS, Program, echo, noise, program, streams};
use crate::websocket::{Codec, MAX_MESSAGE};

const V5: Remote = Remote::WebSocket { codec: Codec::Raw { closing: true }, report: Report::Json };

type Client = WebSocketStream<DuplexStream>;

async fn client(io: DuplexStream) -> Client {
    WebSocketStream::from_raw_socket(io, Role::Client, None).await
}

async fn scene(how: Remote, streams: Streams) -> (Client, Program, JoinHandle<()>) {
    let (ours, theirs) = duplex(64 << 10);
    let (process, program) = program();
    let serving = tokio::spawn(session::remote(theirs, how, streams, async { Ok(process) }, LIMITS));
    (client(ours).await, program, serving)
}

async fn say(client: &mut Client, message: &[u8]) {
    client.send(Message::Binary(message.to_vec().into())).await.unwrap();
}

/// The next message's bytes.
async fn hear(client: &mut Client) -> Vec<u8> {
    client.next().await.unwrap().unwrap().into_data().to_vec()
}

/// What of each channel was heard to the end, and the code of the goodbye.
async fn to_end(client: &mut Client) -> ([Vec<u8>; 5], Option<CloseCode>) {
    let mut channels = <[Vec<u8>; 5]>::default();
    let mut code = None;
    while let Some(Ok(message)) = client.next().await {
        match message {
            Message::Close(frame) => code = frame.map(|frame| frame.code),
            message => {
                let bytes = message.into_data();
                channels[usize::from(bytes[0])].extend_from_slice(&bytes[1..]);
            }
        }
    }
    (channels, code)
}

#[tokio::test]
async fn the_fifth_version_closes_one_channel() {
    let (mut client, mut program, serving) = scene(V5, streams(true, true, false)).await;
    assert_eq!(hear(&mut client).await, [1], "an empty message says that the session is there");
    say(&mut client, b"\0hel").await;
    client.send(Message::Text("\0lo".into())).await.unwrap();
    say(&mut client, &[255, 0]).await;
    // Nothing after the end, for a channel that is not there, or that says nothing, does harm.
    for nonsense in [&b"\0late"[..], b"\x07?", &[255, 9], &[255], b""] {
        say(&mut client, nonsense).await;
    }
    let mut said = String::new();
    program.stdin.take().unwrap().read_to_string(&mut said).await.unwrap();
    assert_eq!(said, "hello");
    program.stdout.as_mut().unwrap().write_all(b"out").await.unwrap();
    program.stderr.as_mut().unwrap().write_all(b"err").await.unwrap();
    program.exit.send(Ok(Ending::Exited(9))).unwrap();
    let (channels, code) = to_end(&mut client).await;
    assert_eq!((&channels[1][..], &channels[2][..]), (&b"out"[..], &b"err"[..]));
    let status: serde_json::Value = serde_json::from_slice(&channels[3]).unwrap();
    assert_eq!(status["details"]["causes"][0]["message"], "9");
    assert_eq!(code, Some(CloseCode::Normal));
    serving.await.unwrap();
}

#[tokio::test]
async fn before_the_fifth_version_255_is_a_channel_like_any_that_is_not_there() {
    let how = Remote::WebSocket { codec: Codec::Raw { closing: false }, report: Report::Text };
    let (mut client, mut program, _serving) = scene(how, streams(true, false, false)).await;
    say(&mut client, &[255, 0]).await;
    say(&mut client, b"\0still open").await;
    let mut read = [0; 10];
    program.stdin.as_mut().unwrap().read_exact(&mut read).await.unwrap();
    assert_eq!(&read, b"still open");
    program.exit.send(Ok(Ending::Exited(1))).unwrap();
    assert_eq!(to_end(&mut client).await.0[3], b"command terminated with exit code 1");
}

#[tokio::test]
async fn base64_goes_both_ways() {
    let how = Remote::WebSocket { codec: Codec::Base64, report: Report::Json };
    let (mut client, mut program, _serving) = scene(how, streams(true, false, true)).await;
    assert_eq!(client.next().await.unwrap().unwrap(), Message::Text("1".into()));
    client.send(Message::Text("0aGVsbG8=".into())).await.unwrap();
    client.send(Message::Text("4eyJXaWR0aCI6MSwiSGVpZ2h0IjoyfQ==".into())).await.unwrap();
    let mut read = [0; 5];
    program.stdin.as_mut().unwrap().read_exact(&mut read).await.unwrap();
    assert_eq!(&read, b"hello");
    assert_eq!(program.sizes.recv().await, Some(TerminalSize { width: 1, height: 2 }));
    program.stdout.as_mut().unwrap().write_all(b"hello").await.unwrap();
    assert_eq!(client.next().await.unwrap().unwrap(), Message::Text("1aGVsbG8=".into()));
}

#[tokio::test]
async fn a_client_that_goes_away_ends_its_streams() {
    let (client, mut program, serving) = scene(V5, streams(true, false, false)).await;
    drop(client);
    serving.await.unwrap();
    assert_eq!(program.stdin.take().unwrap().read(&mut [0; 8]).await.unwrap(), 0);
    assert!(program.exit.is_closed());
}

#[tokio::test]
async fn what_is_no_websocket_ends_the_session() {
    let (mut ours, theirs) = duplex(64 << 10);
    let (process, program) = program();
    let serving = tokio::spawn(session::remote(theirs, V5, streams(true, false, false), async { Ok(process) }, LIMITS));
    ours.write_all(&noise(1000)).await.unwrap();
    serving.await.unwrap();
    assert!(program.exit.is_closed());
}

#[tokio::test]
async fn a_message_that_is_too_long_is_not_taken() {
    let (mut ours, theirs) = duplex(64 << 10);
    let (process, program) = program();
    let serving = tokio::spawn(session::remote(theirs, V5, streams(true, false, false), async { Ok(process) }, LIMITS));
    ours.write_all(&[0x82, 0xff]).await.unwrap();
    ours.write_all(&(MAX_MESSAGE as u64 + 1).to_be_bytes()).await.unwrap();
    ours.write_all(&[0; 4]).await.unwrap();
    serving.await.unwrap();
    assert!(program.exit.is_closed());
}

#[tokio::test]
async fn a_client_that_does_not_listen_holds_up_the_program_and_nothing_is_lost() {
    let (mut client, mut program, _serving) = scene(V5, streams(false, false, false)).await;
    let bytes = noise(8 << 20);
    let sent = bytes.clone();
    let writing = tokio::spawn(async move {
        program.stdout.take().unwrap().write_all(&sent).await.unwrap();
        program.exit
    });
    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    assert!(!writing.is_finished());
    let mut heard = Vec::new();
    while heard.len() < bytes.len() {
        heard.extend_from_slice(&hear(&mut client).await[1..]);
    }
    assert!(heard == bytes);
    writing.await.unwrap().send(Ok(Ending::Exited(0))).unwrap();
}

#[tokio::test]
async fn each_port_has_two_channels_that_begin_with_it() {
    let port = echo().await;
    let (ours, theirs) = duplex(64 << 10);
    let request = PortForwardRequest::new(PodId::from_entropy([1; 32]), &[port.into(), 1]).unwrap();
    let how = Forward::WebSocket { codec: Codec::Raw { closing: false } };
    tokio::spawn(session::forward(theirs, how, Arc::new(Fake::default()), request, LIMITS));
    let mut client = client(ours).await;
    say(&mut client, b"\0hello").await;
    let mut channels = <[Vec<u8>; 4]>::default();
    while channels[0].len() < 7 || channels[3].len() < 3 {
        let message = hear(&mut client).await;
        channels[usize::from(message[0])].extend_from_slice(&message[1..]);
    }
    let begun = port.to_le_bytes();
    assert_eq!(channels[0], [&begun[..], b"hello"].concat());
    assert_eq!(channels[1], begun);
    assert_eq!(channels[2], [1, 0]);
    assert!(String::from_utf8_lossy(&channels[3][2..]).contains("refused"), "nobody listens on port 1");
}

#[tokio::test]
async fn a_forwarded_connection_is_over_when_the_pod_says_so() {
    let listening = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listening.local_addr().unwrap().port();
    let (ours, theirs) = duplex(64 << 10);
    let request = PortForwardRequest::new(PodId::from_entropy([1; 32]), &[port.into()]).unwrap();
    let how = Forward::WebSocket { codec: Codec::Raw { closing: false } };
    let serving = tokio::spawn(session::forward(theirs, how, Arc::new(Fake::default()), request, LIMITS));
    let mut client = client(ours).await;
    let (mut pod, _) = listening.accept().await.unwrap();
    pod.write_all(b"goodbye").await.unwrap();
    drop(pod);
    let (heard, close) = to_end(&mut client).await;
    assert_eq!((heard[0].get(2..), close), (Some(&b"goodbye"[..]), Some(CloseCode::Normal)));
    serving.await.unwrap();
}
