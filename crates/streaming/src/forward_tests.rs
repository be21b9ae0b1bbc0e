//! Tests of port-forward over SPDY, straight and through a WebSocket: real sockets on loopback at the pod's end.

use std::collections::HashMap;
use std::sync::Arc;

use coracle_domain::PodId;
use sha2::{Digest, Sha256};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, duplex};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio::time::{Duration, Instant};

use super::*;
use crate::handshake::Forward;
use crate::session;
use crate::spdy::Event;
use crate::spdy::client::{Listener, Speaker, client};
use crate::testing::{Fake, LIMITS, echo, noise};

fn scene() -> (Speaker<DuplexStream>, Listener<DuplexStream>, JoinHandle<()>) {
    let (ours, theirs) = duplex(256 << 10);
    let request = PortForwardRequest::new(PodId::from_entropy([1; 32]), &[]).unwrap();
    let serving = tokio::spawn(session::forward(theirs, Forward::Spdy, Arc::new(Fake::default()), request, LIMITS));
    let (speaker, listener) = client(ours);
    (speaker, listener, serving)
}

/// Opens the two streams of a request, as Kubernetes' client does: its error, then its data.
async fn connect<S: AsyncWrite>(speaker: &mut Speaker<S>, port: u16, id: &str) -> (u32, u32) {
    let port = port.to_string();
    let error = speaker.open(&[("streamType", "error"), ("port", &port), ("requestID", id)]).await;
    speaker.fin(error).await;
    let data = speaker.open(&[("streamType", "data"), ("port", &port), ("requestID", id)]).await;
    (error, data)
}

/// A port on which nobody listens.
async fn closed_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port()
}

async fn fin<S: AsyncRead>(listener: &mut Listener<S>, of: u32) {
    listener.until(|event| matches!(event, Event::Data { stream, fin: true, .. } if *stream == of)).await;
}

#[tokio::test]
async fn an_end_in_one_direction_leaves_the_other_open() {
    let listening = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (mut speaker, mut listener, _serving) = scene();
    let (error, data) = connect(&mut speaker, listening.local_addr().unwrap().port(), "0").await;
    let (mut pod, _) = listening.accept().await.unwrap();
    speaker.data(data, b"all I have to say").await;
    speaker.fin(data).await;
    let mut said = String::new();
    pod.read_to_string(&mut said).await.unwrap();
    assert_eq!(said, "all I have to say");
    pod.write_all(b"understood").await.unwrap();
    assert_eq!(listener.bytes(data, 10).await, b"understood");
    drop(pod);
    fin(&mut listener, data).await;
    fin(&mut listener, error).await;
}

#[tokio::test]
async fn a_refused_connection_is_told_and_the_others_go_on() {
    let (mut speaker, mut listener, _serving) = scene();
    let (_, good) = connect(&mut speaker, echo().await, "0").await;
    let (error, bad) = connect(&mut speaker, closed_port().await, "1").await;
    let told = listener.bytes(error, 1).await;
    assert!(String::from_utf8(told).unwrap().contains("refused"));
    fin(&mut listener, bad).await;
    speaker.data(good, b"still here").await;
    assert_eq!(listener.bytes(good, 10).await, b"still here");
}

#[tokio::test]
async fn a_broken_connection_is_reset_without_a_word_and_the_others_go_on() {
    let listening = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (mut speaker, mut listener, _serving) = scene();
    let (_, good) = connect(&mut speaker, echo().await, "0").await;
    let (error, broken) = connect(&mut speaker, listening.local_addr().unwrap().port(), "1").await;
    let (pod, _) = listening.accept().await.unwrap();
    speaker.data(broken, b"unread").await;
    pod.peek(&mut [0]).await.unwrap();
    // Closed with something unread in it, a socket sends RST.
    drop(pod);
    let mut ends = HashMap::new();
    while ends.len() < 2 {
        match listener.event().await.unwrap() {
            Event::Reset { stream, status } => ends.insert(stream, Some(status)),
            Event::Data { stream, bytes, fin: true } if bytes.is_empty() => ends.insert(stream, None),
            _ => None,
        };
    }
    assert_eq!(ends, HashMap::from([(broken, Some(5)), (error, None)]));
    speaker.data(good, b"still here").await;
    assert_eq!(listener.bytes(good, 10).await, b"still here");
}

#[tokio::test]
async fn a_client_that_resets_a_stream_closes_its_connection() {
    let listening = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (mut speaker, mut listener, _serving) = scene();
    let (error, data) = connect(&mut speaker, listening.local_addr().unwrap().port(), "0").await;
    let (mut pod, _) = listening.accept().await.unwrap();
    speaker.reset(data).await;
    assert_eq!(pod.read(&mut [0; 8]).await.unwrap(), 0);
    fin(&mut listener, error).await;
    // Its sending side is closed as well: what the pod says now is answered with RST.
    while pod.write_all(b"anyone?").await.is_ok() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_pod_that_does_not_read_keeps_no_connection_that_the_client_has_cut_off() {
    let listening = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (mut speaker, mut listener, _serving) = scene();
    let (error, data) = connect(&mut speaker, listening.local_addr().unwrap().port(), "0").await;
    let (mut pod, _) = listening.accept().await.unwrap();
    speaker.data(data, &noise(8 << 20)[..7 << 20]).await;
    speaker.reset(data).await;
    fin(&mut listener, error).await;
    // Had the connection not been closed, the rest would come, and then nothing.
    let mut read = Vec::new();
    let _ = pod.read_to_end(&mut read).await;
    assert!(read.len() < 7 << 20, "{}", read.len());
}

#[tokio::test]
async fn connections_end_with_their_pod_although_the_client_stays() {
    let listening = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listening.local_addr().unwrap().port();
    let backend = Arc::new(Fake::default());
    for how in [Forward::Spdy, Forward::WebSocket { codec: websocket::Codec::Raw { closing: false } }] {
        let (ours, theirs) = duplex(256 << 10);
        let request = PortForwardRequest::new(PodId::from_entropy([1; 32]), &[port.into()]).unwrap();
        tokio::spawn(session::forward(theirs, how, backend.clone(), request, LIMITS));
        let (mut speaker, listener) = client(ours);
        if how == Forward::Spdy {
            connect(&mut speaker, port, "0").await;
        }
        let (mut pod, _) = listening.accept().await.unwrap();
        backend.ends.notify_one();
        assert_eq!(pod.read(&mut [0; 8]).await.unwrap(), 0);
        drop((speaker, listener));
    }
}

#[tokio::test]
async fn a_thousand_connections_share_a_session() {
    let port = echo().await;
    let (mut speaker, mut listener, _serving) = scene();
    let mut said = HashMap::new();
    for id in 0..500 {
        let (_, data) = connect(&mut speaker, port, &id.to_string()).await;
        let words = format!("I am {id}");
        speaker.data(data, words.as_bytes()).await;
        speaker.fin(data).await;
        said.insert(data, words);
    }
    let mut heard: HashMap<u32, String> = HashMap::new();
    let mut open = said.len();
    while open > 0 {
        if let Event::Data { stream, bytes, fin } = listener.event().await.unwrap()
            && said.contains_key(&stream)
        {
            heard.entry(stream).or_default().push_str(std::str::from_utf8(&bytes).unwrap());
            open -= usize::from(fin);
        }
    }
    assert_eq!(heard, said);
}

async fn transfer<S: AsyncRead + AsyncWrite + Send + 'static>(mut speaker: Speaker<S>, mut listener: Listener<S>) {
    let (_, data) = connect(&mut speaker, echo().await, "0").await;
    let bytes = noise(8 << 20);
    let sum = Sha256::digest(&bytes);
    let sending = tokio::spawn(async move {
        let mut rest = &bytes[..];
        // Frames of all sizes, one of several MiB.
        for size in [1, 7, 4096, 65_536, 5 << 20, 100_000].into_iter().cycle() {
            let (now, later) = rest.split_at(size.min(rest.len()));
            speaker.data(data, now).await;
            rest = later;
            if rest.is_empty() {
                break;
            }
        }
        speaker.fin(data).await;
        speaker
    });
    let mut hash = Sha256::new();
    loop {
        if let Event::Data { stream, bytes, fin } = listener.event().await.unwrap()
            && stream == data
        {
            hash.update(&bytes);
            if fin {
                break;
            }
        }
    }
    assert_eq!(hash.finalize(), sum);
    sending.await.unwrap();
}

#[tokio::test]
async fn what_goes_through_comes_out_unchanged() {
    let (speaker, listener, _serving) = scene();
    transfer(speaker, listener).await;
}

#[tokio::test]
async fn it_goes_through_a_websocket_just_as_well() {
    let (ours, theirs) = duplex(256 << 10);
    let request = PortForwardRequest::new(PodId::from_entropy([1; 32]), &[]).unwrap();
    tokio::spawn(session::forward(theirs, Forward::Tunnel, Arc::new(Fake::default()), request, LIMITS));
    let (speaker, listener) = client(websocket::Tunnel::client(ours).await);
    transfer(speaker, listener).await;
}

#[tokio::test]
async fn old_clients_requests_are_paired_by_their_streams_numbers() {
    let port = echo().await.to_string();
    let (mut speaker, mut listener, _serving) = scene();
    speaker.open(&[("streamType", "error"), ("port", &port)]).await;
    let data = speaker.open(&[("streamType", "data"), ("port", &port)]).await;
    speaker.data(data, b"hello").await;
    assert_eq!(listener.bytes(data, 5).await, b"hello");
}

#[tokio::test]
async fn streams_that_make_no_sense_are_refused_alone() {
    let port = echo().await;
    let (mut speaker, mut listener, _serving) = scene();
    let (_, data) = connect(&mut speaker, port, "good").await;
    let port = port.to_string();
    let half = speaker.open(&[("streamType", "data"), ("port", &port), ("requestID", "half")]).await;
    let endless = "x".repeat(MAX_ID + 1);
    let bad: [&[(&str, &str)]; 6] = [
        &[("streamType", "data")],
        &[("streamType", "data"), ("port", "0")],
        &[("streamType", "data"), ("port", "65536")],
        &[("streamType", "stdin"), ("port", "80")],
        &[("streamType", "data"), ("port", &port), ("requestID", "half")],
        &[("streamType", "data"), ("port", &port), ("requestID", &endless)],
    ];
    for headers in bad {
        let stream = speaker.open(headers).await;
        assert_ne!(stream, half);
        assert_eq!(listener.until(|event| matches!(event, Event::Reset { .. })).await, Event::Reset { stream, status: 3 });
    }
    speaker.data(data, b"hello").await;
    assert_eq!(listener.bytes(data, 5).await, b"hello");
}

#[tokio::test(start_paused = true)]
async fn half_a_request_is_given_up_in_time() {
    let (mut speaker, mut listener, _serving) = scene();
    let begun = Instant::now();
    let stream = speaker.open(&[("streamType", "data"), ("port", "80"), ("requestID", "x")]).await;
    assert_eq!(listener.until(|event| matches!(event, Event::Reset { .. })).await, Event::Reset { stream, status: 5 });
    assert_eq!(begun.elapsed().as_secs(), Duration::as_secs(&LIMITS.creation));
}
