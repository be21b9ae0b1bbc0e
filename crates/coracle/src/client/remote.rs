//! `exec` and `attach`: our input, output and terminal joined to those of a program in a container.

use std::future::pending;
use std::io::Write;
use std::process::ExitCode;

use coracle_cri::v1;
use coracle_domain::{During, Failure};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt, stderr, stdin, stdout};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_tungstenite::tungstenite;

use super::connect::Client;
use super::containers::exit_status;
use super::error::Result;
use super::resolve::Catalogue;
use super::session::{self, Receiver, Sender};
use super::terminal::{self, Raw};
use crate::cli::{AttachArgs, ExecArgs};

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;

/// How much input is sent at a time.
const CHUNK: usize = 32 << 10;

/// Runs a command in a container, and exits with its status.
pub(crate) async fn exec(client: &Client, args: &ExecArgs) -> Result<ExitCode> {
    let container_id = Catalogue::containers(client).await?.resolve(&args.container)?.id.clone();
    if let Some(timeout) = args.timeout {
        return exec_sync(client, container_id, args, timeout).await;
    }
    let request = v1::ExecRequest {
        container_id,
        cmd: args.command.clone(),
        tty: args.tty,
        stdin: args.interactive,
        stdout: true,
        stderr: !args.tty,
    };
    let url = client.runtime.clone().exec(request).await?.into_inner().url;
    converse(&url, args.interactive, args.tty).await
}

/// Runs a command to its end or its time's, and prints what it printed.
async fn exec_sync(client: &Client, container_id: String, args: &ExecArgs, timeout: u32) -> Result<ExitCode> {
    let request = v1::ExecSyncRequest { container_id, cmd: args.command.clone(), timeout: timeout.into() };
    let answer = client.runtime.clone().exec_sync(request).await?.into_inner();
    std::io::stdout().lock().write_all(&answer.stdout)?;
    std::io::stderr().lock().write_all(&answer.stderr)?;
    std::io::stdout().flush()?;
    Ok(exit_status(answer.exit_code))
}

/// Joins the container's own program.
pub(crate) async fn attach(client: &Client, args: &AttachArgs) -> Result<ExitCode> {
    let container_id = Catalogue::containers(client).await?.resolve(&args.container)?.id.clone();
    let request = v1::AttachRequest { container_id, stdin: args.interactive, tty: args.tty, stdout: true, stderr: !args.tty };
    let url = client.runtime.clone().attach(request).await?.into_inner().url;
    converse(&url, args.interactive, args.tty).await
}

/// Copies both ways until the session is over; the status it ended with.
async fn converse(url: &str, interactive: bool, tty: bool) -> Result<ExitCode> {
    let resized = signal(SignalKind::window_change()).during("listening for signals to", "this command")?;
    let (sender, receiver) = session::begin(url).await?;
    let _raw = if tty && interactive { Some(Raw::begin()?) } else { None };
    let saying = async {
        // That the other side has gone is seen by whoever receives.
        let _ = tokio::try_join!(say_sizes(&sender, resized, tty), say_input(&sender, interactive));
        pending().await
    };
    tokio::select! {
        outcome = receive(receiver) => outcome,
        outcome = saying => outcome,
    }
}

/// Sends our input to its end; one that cannot be read has ended.
async fn say_input(sender: &Sender, interactive: bool) -> Result<(), tungstenite::Error> {
    if !interactive {
        return Ok(());
    }
    let (mut input, mut buffer) = (stdin(), vec![0; CHUNK]);
    while let Ok(read @ 1..) = input.read(&mut buffer).await {
        sender.send(STDIN, buffer.get(..read).unwrap_or_default()).await?;
    }
    sender.end(STDIN).await
}

/// Sends the size of our terminal, now and whenever it changes.
async fn say_sizes(sender: &Sender, mut resized: Signal, tty: bool) -> Result<(), tungstenite::Error> {
    if !tty {
        return Ok(());
    }
    loop {
        if let Some(size) = terminal::size() {
            sender.send(RESIZE, size.as_bytes()).await?;
        }
        resized.recv().await;
    }
}

/// Prints what comes, until the other side says how it ended.
async fn receive(mut receiver: Receiver) -> Result<ExitCode> {
    let (mut out, mut err, mut ending) = (stdout(), stderr(), Vec::new());
    while let Some((channel, bytes)) = receiver.next().await {
        match channel {
            STDOUT => {
                out.write_all(&bytes).await?;
                out.flush().await?;
            }
            STDERR => {
                err.write_all(&bytes).await?;
                err.flush().await?;
            }
            ERROR => ending.extend_from_slice(&bytes),
            _ => {}
        }
    }
    outcome(&ending)
}

/// What a session's last words mean: a `metav1.Status`, with the exit status among its causes.
fn outcome(ending: &[u8]) -> Result<ExitCode> {
    const STAGE: &str = "running a session with";
    if ending.is_empty() {
        return Err(Failure::new(STAGE, "the container", "it broke off before it said how it ended").into());
    }
    let status: Value = serde_json::from_slice(ending).during("reading", "how the session ended")?;
    if status["status"] == "Success" {
        return Ok(ExitCode::SUCCESS);
    }
    let code = status["details"]["causes"].as_array().into_iter().flatten().find(|cause| cause["reason"] == "ExitCode");
    match code.and_then(|cause| cause["message"].as_str()?.parse().ok()) {
        Some(code) => Ok(exit_status(code)),
        None => Err(Failure::new(STAGE, "the container", status["message"].as_str().unwrap_or("no reason was given").to_owned()).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_words_are_the_exit_status_or_an_error() {
        assert_eq!(outcome(br#"{"metadata":{},"status":"Success"}"#).unwrap(), ExitCode::SUCCESS);
        let failed = br#"{"status":"Failure","reason":"NonZeroExitCode","details":{"causes":[{"reason":"ExitCode","message":"7"}]}}"#;
        assert_eq!(outcome(failed).unwrap(), ExitCode::from(7));
        let error = outcome(br#"{"status":"Failure","reason":"InternalError","message":"no /bin/nothing"}"#).unwrap_err();
        assert!(error.to_string().contains("no /bin/nothing"), "{error}");
        assert!(outcome(b"").unwrap_err().to_string().contains("broke off"));
        assert!(outcome(b"plain").is_err());
    }
}
