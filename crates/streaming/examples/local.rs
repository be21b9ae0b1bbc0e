//! The smallest backend: runs programs of this machine, dials its own loopback. For trying clients by hand.
//!
//! Reads requests line by line and prints their URLs:
//!
//! ```text
//! exec io head -c 10 /dev/zero     i, o, e and t: input, output, error output, terminal
//! forward 80 443
//! ```

use std::io::{BufRead, stdin};
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::process::Stdio;
use std::thread;

use coracle_domain::{ContainerId, During, PodId, Refusal, Result};
use coracle_streaming::{
    AttachRequest, Backend, Ending, ExecRequest, PortForwardRequest, Process, Server, Settings, StreamFlags, Streams, TerminalSize, Urls,
};
use rustix::pipe::PipeFlags;
use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
use tokio::net::TcpStream;
use tokio::process::Command;

struct Local;

impl Backend for Local {
    async fn exec(&self, request: ExecRequest) -> Result<Process> {
        let started = if request.streams.tty() { with_terminal(&request) } else { with_pipes(&request) };
        started.during("starting", request.command.join(" "))
    }

    async fn attach(&self, _: AttachRequest) -> Result<Process> {
        Err(Refusal::unsupported("attaching without containers").into())
    }

    async fn dial(&self, _: &PodId, port: u16) -> Result<OwnedFd> {
        let socket = TcpStream::connect(("localhost", port)).await.during("dialing", port)?;
        Ok(socket.into_std().during("dialing", port)?.into())
    }

    async fn pod_ends(&self, _: &PodId) {
        std::future::pending().await
    }
}

fn with_pipes(request: &ExecRequest) -> std::io::Result<Process> {
    let (program, arguments) = request.command.split_first().ok_or(std::io::ErrorKind::InvalidInput)?;
    let (input, stdin) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
    let (stdout, output) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
    let (stderr, errors) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::from(input)).stdout(Stdio::from(output)).stderr(Stdio::from(errors));
    Ok(Process { stdin: Some(stdin), stdout: Some(stdout), stderr: Some(stderr), resize: None, exit: running(command)? })
}

fn with_terminal(request: &ExecRequest) -> std::io::Result<Process> {
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    grantpt(&master)?;
    unlockpt(&master)?;
    let terminal = ioctl_tiocgptpeer(&master, OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    let mut command = Command::new("setsid");
    command.args(["--ctty", "--wait"]).args(&request.command);
    command.stdin(terminal.try_clone()?).stdout(terminal.try_clone()?).stderr(terminal);
    let (input, sized) = (master.try_clone()?, master.try_clone()?);
    let resize = move |TerminalSize { width, height }| {
        let _ = tcsetwinsize(&sized, Winsize { ws_row: height, ws_col: width, ws_xpixel: 0, ws_ypixel: 0 });
    };
    Ok(Process { stdin: Some(input), stdout: Some(master), stderr: None, resize: Some(Box::new(resize)), exit: running(command)? })
}

/// Starts a program; its end.
fn running(mut command: Command) -> std::io::Result<std::pin::Pin<Box<dyn Future<Output = Result<Ending>> + Send>>> {
    let mut child = command.kill_on_drop(true).spawn()?;
    Ok(Box::pin(async move {
        let status = child.wait().await.during("waiting for", "a program")?;
        let code = status.code().or(status.signal().map(|signal| 128 + signal)).unwrap_or(255);
        Ok(Ending::Exited(code as u8))
    }))
}

fn url(urls: &Urls, line: &str) -> Result<String> {
    let words: Vec<_> = line.split_whitespace().map(str::to_owned).collect();
    match words.split_first() {
        Some((verb, rest)) if verb == "forward" => {
            let ports: Vec<_> = rest.iter().filter_map(|port| port.parse().ok()).collect();
            urls.port_forward(PortForwardRequest::new(PodId::from_entropy([0; 32]), &ports)?)
        }
        Some((verb, [flags, command @ ..])) if verb == "exec" => {
            let [stdin, stdout, stderr, tty] = ['i', 'o', 'e', 't'].map(|flag| flags.contains(flag));
            let streams = Streams::new(StreamFlags { stdin, stdout, stderr, tty })?;
            urls.exec(ExecRequest::new(ContainerId::from_entropy([0; 32]), command.to_vec(), streams)?)
        }
        _ => Err(Refusal::invalid("the line", "is neither exec nor forward").into()),
    }
}

#[tokio::main]
async fn main() -> Result<()> {
    let server = Server::bind(Settings::default(), Local).await?;
    let urls = server.urls();
    thread::spawn(move || {
        for line in stdin().lock().lines().map_while(std::io::Result::ok) {
            match url(&urls, &line) {
                Ok(url) => println!("{url}"),
                Err(error) => eprintln!("{error}"),
            }
        }
    });
    server.serve(std::future::pending()).await;
    Ok(())
}
