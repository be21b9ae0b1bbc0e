//! Tests of SPDY sessions over a connection in memory.

use std::future::Future;
use std::time::Duration;

use coracle_domain::{Refusal, Result};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use super::client::{Heard, Listener, Speaker, client};
use super::decode::Event;
use super::frame::{self, DEFAULT_WINDOW, Farewell, INITIAL_WINDOW_SIZE};
use super::state::{SESSION_WINDOW, STREAM_WINDOW};
use crate::backend::{Ending, Process, TerminalSize};
use crate::clock::Limits;
use crate::handshake::Remote;
use crate::request::{StreamFlags, Streams};
use crate::session;
use crate::status::Report;
use crate::testing::{LIMITS, Program, noise, program, streams};

const V4: Remote = Remote::Spdy { report: Report::Json, resizes: true };

struct Scene {
    speaker: Speaker<DuplexStream>,
    listener: Listener<DuplexStream>,
    program: Program,
    serving: JoinHandle<()>,
}

fn serve(io: DuplexStream, how: Remote, streams: Streams, start: impl Future<Output = Result<Process>> + Send + 'static) -> JoinHandle<()> {
    tokio::spawn(session::remote(io, how, streams, start, LIMITS))
}

/// A session in the fourth version.
fn scene(streams: Streams) -> Scene {
    let (ours, theirs) = duplex(64 << 10);
    let (process, program) = program();
    let serving = serve(theirs, V4, streams, async { Ok(process) });
    let (speaker, listener) = client(ours);
    Scene { speaker, listener, program, serving }
}

fn status(heard: &Heard) -> serde_json::Value {
    serde_json::from_slice(&heard.bytes).unwrap()
}

#[tokio::test]
async fn a_programs_streams_and_its_status_are_the_clients() {
    let Scene { mut speaker, mut listener, mut program, serving } = scene(streams(true, true, false));
    let [error, stdin, stdout, stderr] = speaker.open_all(["error", "stdin", "stdout", "stderr"]).await;
    speaker.data(stdin, b"hello").await;
    speaker.fin(stdin).await;
    let mut said = String::new();
    // The client's end of input is the program's.
    program.stdin.take().unwrap().read_to_string(&mut said).await.unwrap();
    assert_eq!(said, "hello");
    program.stdout.as_mut().unwrap().write_all(b"to out").await.unwrap();
    program.stderr.as_mut().unwrap().write_all(b"to err").await.unwrap();
    program.exit.send(Ok(Ending::Exited(3))).unwrap();
    let (heard, goodbye) = listener.rest().await;
    assert!(heard.values().all(|heard| heard.replied && heard.fin && heard.reset.is_none()), "{heard:?}");
    assert_eq!(heard[&stdout].bytes, b"to out");
    assert_eq!(heard[&stderr].bytes, b"to err");
    assert_eq!(status(&heard[&error])["details"]["causes"][0]["message"], "3");
    assert_eq!(goodbye, Some(Farewell::Done as u32));
    drop((speaker, listener));
    serving.await.unwrap();
}

#[tokio::test]
async fn what_a_program_wrote_last_is_copied_although_others_hold_its_output_open() {
    let Scene { mut speaker, mut listener, mut program, .. } = scene(streams(false, false, false));
    let [_, stdout] = speaker.open_all(["error", "stdout"]).await;
    let last = noise(60_000);
    program.stdout.as_mut().unwrap().write_all(&last).await.unwrap();
    program.exit.send(Ok(Ending::Exited(0))).unwrap();
    let (heard, _) = listener.rest().await;
    assert!(heard[&stdout].bytes == last);
    drop(program.stdout);
}

#[tokio::test]
async fn an_output_that_ends_early_ends_alone() {
    let Scene { mut speaker, mut listener, mut program, .. } = scene(streams(false, true, false));
    let [_, stdout, stderr] = speaker.open_all(["error", "stdout", "stderr"]).await;
    drop(program.stdout.take());
    listener.until(|event| matches!(event, Event::Data { stream, fin: true, .. } if *stream == stdout)).await;
    program.stderr.as_mut().unwrap().write_all(b"still here").await.unwrap();
    assert_eq!(listener.bytes(stderr, 10).await, b"still here");
}

#[tokio::test]
async fn a_stream_can_be_reset_without_the_session() {
    let Scene { mut speaker, mut listener, mut program, .. } = scene(streams(true, true, false));
    let [error, stdin, stdout, stderr] = speaker.open_all(["error", "stdin", "stdout", "stderr"]).await;
    speaker.reset(stdout).await;
    // The program finds that nobody reads, as it would in a shell.
    let mut out = program.stdout.take().unwrap();
    while out.write_all(b"x").await.is_ok() {
        tokio::task::yield_now().await;
    }
    speaker.data(stdin, b"in").await;
    let mut read = [0; 2];
    program.stdin.as_mut().unwrap().read_exact(&mut read).await.unwrap();
    program.stderr.as_mut().unwrap().write_all(b"err").await.unwrap();
    assert_eq!(listener.bytes(stderr, 3).await, b"err");
    program.exit.send(Ok(Ending::Exited(0))).unwrap();
    let (heard, _) = listener.rest().await;
    assert_eq!(status(&heard[&error])["status"], "Success");
}

#[tokio::test]
async fn a_program_that_cannot_be_started_is_told_as_failure() {
    for (how, reason) in [(V4, Some("InternalError")), (Remote::Spdy { report: Report::Text, resizes: false }, None)] {
        let (ours, theirs) = duplex(1 << 10);
        serve(theirs, how, streams(false, false, false), async { Err(Refusal::wrong_state("container x is not running").into()) });
        let (mut speaker, mut listener) = client(ours);
        let [error, _] = speaker.open_all(["error", "stdout"]).await;
        let (heard, _) = listener.rest().await;
        match reason {
            Some(reason) => assert_eq!(status(&heard[&error])["reason"], reason),
            None => assert_eq!(heard[&error].bytes, b"container x is not running"),
        }
    }
}

#[tokio::test]
async fn a_terminal_is_resized() {
    let Scene { mut speaker, mut program, .. } = scene(streams(true, false, true));
    let [_, _, _, resize] = speaker.open_all(["error", "stdin", "stdout", "resize"]).await;
    speaker.data(resize, b"{\"Width\":80,\"Height\":24}\n{\"Width\":").await;
    speaker.data(resize, b"81,\"Height\":25}\n").await;
    assert_eq!(program.sizes.recv().await, Some(TerminalSize { width: 80, height: 24 }));
    assert_eq!(program.sizes.recv().await, Some(TerminalSize { width: 81, height: 25 }));
}

#[tokio::test]
async fn before_the_third_version_a_terminal_has_no_stream_for_sizes() {
    let (ours, theirs) = duplex(1 << 10);
    let (process, mut program) = program();
    serve(theirs, Remote::Spdy { report: Report::Text, resizes: false }, streams(true, false, true), async { Ok(process) });
    let (mut speaker, mut listener) = client(ours);
    let [_, _, stdout] = speaker.open_all(["error", "stdin", "stdout"]).await;
    program.stdout.as_mut().unwrap().write_all(b"$ ").await.unwrap();
    assert_eq!(listener.bytes(stdout, 2).await, b"$ ");
}

/// Nobody reads a terminal but us.
#[tokio::test]
async fn an_output_that_the_client_does_not_want_is_read_and_forgotten() {
    let (ours, theirs) = duplex(1 << 10);
    let (process, mut program) = program();
    let only_input = Streams::new(StreamFlags { stdin: true, tty: true, ..StreamFlags::default() }).unwrap();
    serve(theirs, V4, only_input, async { Ok(process) });
    let (mut speaker, mut listener) = client(ours);
    let [error, _, _] = speaker.open_all(["error", "stdin", "resize"]).await;
    program.stdout.as_mut().unwrap().write_all(&noise(4 << 20)).await.unwrap();
    program.exit.send(Ok(Ending::Exited(0))).unwrap();
    let (heard, _) = listener.rest().await;
    assert_eq!(status(&heard[&error])["status"], "Success");
}

#[tokio::test]
async fn a_client_that_goes_away_ends_its_streams() {
    let Scene { mut speaker, listener, mut program, serving } = scene(streams(true, true, false));
    speaker.open_all(["error", "stdin", "stdout", "stderr"]).await;
    program.stdout.as_mut().unwrap().write_all(b"one").await.unwrap();
    drop((speaker, listener));
    serving.await.unwrap();
    assert_eq!(program.stdin.take().unwrap().read(&mut [0; 8]).await.unwrap(), 0);
    assert!(program.exit.is_closed());
}

#[tokio::test]
async fn a_client_that_never_grants_is_not_waited_for() {
    let Scene { mut speaker, mut listener, mut program, .. } = scene(streams(false, false, false));
    let [_, stdout] = speaker.open_all(["error", "stdout"]).await;
    let bytes = noise(1 << 20);
    let sent = bytes.clone();
    let writing = tokio::spawn(async move { program.stdout.take().unwrap().write_all(&sent).await });
    assert!(listener.bytes(stdout, bytes.len()).await == bytes);
    writing.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_client_that_grants_gets_no_more_than_that_on_each_stream() {
    let Scene { mut speaker, mut listener, mut program, .. } = scene(streams(false, true, false));
    speaker.raw(frame::settings(&[(INITIAL_WINDOW_SIZE, 1000)])).await;
    let [_, stdout, stderr] = speaker.open_all(["error", "stdout", "stderr"]).await;
    program.stdout.as_mut().unwrap().write_all(&[b'o'; 5000]).await.unwrap();
    assert_eq!(listener.bytes(stdout, 1000).await.len(), 1000);
    // Out of stdout's window, and stderr is none the worse.
    program.stderr.as_mut().unwrap().write_all(&[b'e'; 900]).await.unwrap();
    assert_eq!(listener.bytes(stderr, 900).await.len(), 900);
    speaker.raw(frame::ping(1)).await;
    let next = listener.until(|event| matches!(event, Event::Data { .. } | Event::Ping(1))).await;
    assert_eq!(next, Event::Ping(1), "nothing more came");
    speaker.raw(frame::window_update(stdout, 1500)).await;
    assert_eq!(listener.bytes(stdout, 1500).await.len(), 1500);
    // A window can be shrunk below what was sent; then it has to be filled up first.
    speaker.raw(frame::settings(&[(INITIAL_WINDOW_SIZE, 0)])).await;
    speaker.raw(frame::window_update(stdout, 1000)).await;
    speaker.raw(frame::ping(3)).await;
    let next = listener.until(|event| matches!(event, Event::Data { .. } | Event::Ping(3))).await;
    assert_eq!(next, Event::Ping(3), "nothing more came");
    speaker.raw(frame::window_update(stdout, 2500)).await;
    assert_eq!(listener.bytes(stdout, 2500).await.len(), 2500);
}

#[tokio::test]
async fn the_sessions_window_holds_for_all_streams_together() {
    let Scene { mut speaker, mut listener, mut program, .. } = scene(streams(false, true, false));
    speaker.raw(frame::settings(&[(INITIAL_WINDOW_SIZE, 1 << 20)])).await;
    let [_, stdout, stderr] = speaker.open_all(["error", "stdout", "stderr"]).await;
    let mut out = program.stdout.take().unwrap();
    let writing = tokio::spawn(async move { out.write_all(&noise(100_000)).await });
    assert_eq!(listener.bytes(stdout, DEFAULT_WINDOW as usize).await.len(), DEFAULT_WINDOW as usize);
    program.stderr.as_mut().unwrap().write_all(b"err").await.unwrap();
    speaker.raw(frame::ping(1)).await;
    let next = listener.until(|event| matches!(event, Event::Data { .. } | Event::Ping(1))).await;
    assert_eq!(next, Event::Ping(1), "nothing more came");
    speaker.raw(frame::window_update(0, 1 << 20)).await;
    let mut left = (100_000 - DEFAULT_WINDOW as usize, 3);
    while left != (0, 0) {
        match listener.event().await.unwrap() {
            Event::Data { stream, bytes, .. } if stream == stdout => left.0 -= bytes.len(),
            Event::Data { stream, bytes, .. } if stream == stderr => left.1 -= bytes.len(),
            _ => {}
        }
    }
    writing.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_window_that_overflows_ends_its_stream_or_the_session() {
    let Scene { mut speaker, mut listener, program: _program, .. } = scene(streams(false, true, false));
    let [_, stdout, _] = speaker.open_all(["error", "stdout", "stderr"]).await;
    speaker.raw(frame::window_update(stdout, 0x7fff_ffff)).await;
    let reset = listener.until(|event| matches!(event, Event::Reset { .. })).await;
    assert_eq!(reset, Event::Reset { stream: stdout, status: 7 });
    speaker.raw(frame::window_update(0, 0x7fff_ffff)).await;
    assert_eq!(listener.rest().await.1, Some(Farewell::ProtocolError as u32));
}

#[tokio::test]
async fn the_client_is_granted_what_the_program_takes() {
    let Scene { mut speaker, mut listener, mut program, .. } = scene(streams(true, false, false));
    let [_, stdin, _] = speaker.open_all(["error", "stdin", "stdout"]).await;
    let mut input = program.stdin.take().unwrap();
    let reading = tokio::spawn(async move { input.read_exact(&mut vec![0; SESSION_WINDOW as usize / 2]).await.map(drop) });
    for _ in 0..SESSION_WINDOW / 2 / 0x8000 {
        speaker.data(stdin, &[0; 0x8000]).await;
    }
    reading.await.unwrap().unwrap();
    let mut granted = (0, 0);
    while granted != (SESSION_WINDOW - DEFAULT_WINDOW + SESSION_WINDOW / 2, SESSION_WINDOW / 2) {
        match listener.event().await.unwrap() {
            Event::WindowUpdate { stream: 0, bytes } => granted.0 += bytes,
            Event::WindowUpdate { bytes, .. } => granted.1 += bytes,
            Event::Settings(settings) => assert!(settings.contains(&(INITIAL_WINDOW_SIZE, STREAM_WINDOW))),
            _ => {}
        }
    }
}

#[tokio::test]
async fn a_program_that_does_not_read_stops_even_clients_that_do_not_ask() {
    let Scene { mut speaker, mut listener, mut program, .. } = scene(streams(true, false, false));
    let [_, stdin, stdout] = speaker.open_all(["error", "stdin", "stdout"]).await;
    let sent = noise(12 << 20);
    let expected = sent.clone();
    let mut writing = tokio::spawn(async move {
        for chunk in sent.chunks(0x8000) {
            speaker.data(stdin, chunk).await;
        }
        speaker.fin(stdin).await;
        speaker
    });
    // Its output is not held up by its input.
    program.stdout.as_mut().unwrap().write_all(b"busy").await.unwrap();
    assert_eq!(listener.bytes(stdout, 4).await, b"busy");
    assert!(timeout(Duration::from_millis(300), &mut writing).await.is_err(), "12 MiB were taken from the client and kept");
    let mut read = Vec::new();
    program.stdin.take().unwrap().read_to_end(&mut read).await.unwrap();
    assert!(read == expected);
    writing.await.unwrap();
}

#[tokio::test]
async fn input_that_nobody_reads_any_more_is_taken_and_forgotten() {
    let Scene { mut speaker, mut listener, mut program, .. } = scene(streams(true, false, false));
    let [error, stdin, _] = speaker.open_all(["error", "stdin", "stdout"]).await;
    drop(program.stdin.take());
    for _ in 0..400 {
        speaker.data(stdin, &[0; 0x8000]).await;
    }
    program.exit.send(Ok(Ending::Exited(0))).unwrap();
    let (heard, _) = listener.rest().await;
    assert_eq!(status(&heard[&error])["status"], "Success");
}

#[tokio::test]
async fn garbage_ends_the_session_with_a_word() {
    for garbage in [&b"\x80\x02\0\x01\0\0\0\0"[..], &[0; 64], b"\x80\x03\0\x01\0\0\0\x0e\0\0\0\x0b\0\0\0\0\0\0\xde\xad\xbe\xef"] {
        let Scene { mut speaker, mut listener, program, serving } = scene(streams(false, false, false));
        speaker.open_all(["error", "stdout"]).await;
        speaker.raw(garbage).await;
        assert_eq!(listener.rest().await.1, Some(Farewell::ProtocolError as u32));
        drop((speaker, listener));
        serving.await.unwrap();
        assert!(program.exit.is_closed());
    }
}

/// What a fuzzer found.
#[tokio::test(start_paused = true)]
async fn the_word_about_garbage_comes_after_the_frame_that_is_being_written() {
    let Scene { mut speaker, mut listener, mut program, serving } = scene(streams(false, false, false));
    let [_, stdout] = speaker.open_all(["error", "stdout"]).await;
    let said = noise(100_000);
    let mut output = program.stdout.take().unwrap();
    let written = said.clone();
    tokio::spawn(async move { output.write_all(&written).await });
    // Time passes when there is nothing to do: the connection is full.
    sleep(Duration::from_millis(10)).await;
    speaker.raw([0; 64]).await;
    sleep(Duration::from_millis(10)).await;
    let (heard, goodbye) = listener.rest().await;
    assert_eq!(goodbye, Some(Farewell::ProtocolError as u32));
    assert!(said.starts_with(&heard[&stdout].bytes));
    drop((speaker, listener));
    serving.await.unwrap();
}

#[tokio::test]
async fn data_for_no_stream_is_answered_and_the_session_goes_on() {
    let Scene { mut speaker, mut listener, mut program, .. } = scene(streams(false, false, false));
    let [_, stdout] = speaker.open_all(["error", "stdout"]).await;
    speaker.data(77, b"who?").await;
    assert_eq!(listener.until(|event| matches!(event, Event::Reset { .. })).await, Event::Reset { stream: 77, status: 2 });
    program.stdout.as_mut().unwrap().write_all(b"fine").await.unwrap();
    assert_eq!(listener.bytes(stdout, 4).await, b"fine");
}

#[tokio::test]
async fn streams_of_no_known_kind_and_second_ones_are_refused() {
    let Scene { mut speaker, mut listener, program: _program, .. } = scene(streams(true, false, false));
    let [_, odd, _, again] = speaker.open_all(["error", "video", "stdin", "stdin"]).await;
    for stream in [odd, again] {
        assert_eq!(listener.until(|event| matches!(event, Event::Reset { .. })).await, Event::Reset { stream, status: 3 });
    }
}

#[tokio::test]
async fn a_ping_comes_back_and_an_answer_does_not() {
    let Scene { mut speaker, mut listener, program: _program, .. } = scene(streams(false, false, false));
    speaker.raw(frame::ping(4)).await;
    speaker.raw(frame::ping(7)).await;
    assert_eq!(listener.until(|event| matches!(event, Event::Ping(_))).await, Event::Ping(7));
}

#[tokio::test(start_paused = true)]
async fn who_asks_and_never_listens_is_dropped() {
    let Scene { mut speaker, mut listener, serving, program: _program } = scene(streams(false, false, false));
    let pings: Vec<u8> = (0..40_000_u32).flat_map(|id| frame::ping(2 * id + 1)).collect();
    // Sooner or later nobody takes them any more.
    let _ = speaker.try_raw(pings).await;
    let mut heard = 0;
    while let Some(event) = listener.event().await {
        heard += usize::from(matches!(event, Event::Ping(_)));
    }
    assert!(heard < 40_000, "{heard}");
    drop((speaker, listener));
    serving.await.unwrap();
}

#[tokio::test]
async fn after_goaway_what_is_open_goes_on_and_nothing_new_begins() {
    let Scene { mut speaker, mut listener, mut program, .. } = scene(streams(false, false, false));
    let [_, stdout] = speaker.open_all(["error", "stdout"]).await;
    speaker.raw(frame::goaway(0, Farewell::Done)).await;
    let late = speaker.open(&[("streamType", "stdin")]).await;
    assert_eq!(listener.until(|event| matches!(event, Event::Reset { .. })).await, Event::Reset { stream: late, status: 3 });
    program.stdout.as_mut().unwrap().write_all(b"more").await.unwrap();
    assert_eq!(listener.bytes(stdout, 4).await, b"more");
    program.exit.send(Ok(Ending::Exited(0))).unwrap();
    assert_eq!(listener.rest().await.1, Some(0));
}

#[tokio::test(start_paused = true)]
async fn streams_that_never_come_are_not_waited_for() {
    let Scene { mut speaker, mut listener, program: _program, .. } = scene(streams(true, false, false));
    let [error, _] = speaker.open_all(["error", "stdout"]).await;
    let (heard, goodbye) = listener.rest().await;
    assert!(status(&heard[&error])["message"].as_str().unwrap().contains("30 s"));
    assert_eq!(goodbye, Some(0));
}

#[tokio::test(start_paused = true)]
async fn silence_ends_a_session() {
    let (ours, theirs) = duplex(1 << 10);
    let (process, program) = program();
    let limits = Limits { idle: Duration::from_secs(60), creation: Duration::from_secs(600) };
    let serving = tokio::spawn(session::remote(theirs, V4, streams(false, false, false), async { Ok(process) }, limits));
    let (mut speaker, mut listener) = client(ours);
    speaker.open(&[("streamType", "error")]).await;
    sleep(Duration::from_secs(50)).await;
    speaker.open(&[("streamType", "stdout")]).await;
    sleep(Duration::from_secs(50)).await;
    assert!(!program.exit.is_closed());
    while listener.event().await.is_some() {}
    serving.await.unwrap();
    assert!(program.exit.is_closed());
}
