//! A client of streaming sessions: WebSocket by tokio-tungstenite, with the channels of Kubernetes' `v5.channel.k8s.io`
//! (one byte of channel before each message; channel 255 closes the one that it names).

use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use k8s_cri::v1 as api;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::{self, Message};
use tokio_tungstenite::{WebSocketStream, client_async};
use tonic::Status;

use crate::{Container, ContainerSpec, Cri, DEADLINE, Node};

/// The program's input.
pub const STDIN: u8 = 0;
/// The program's output, or its terminal's.
pub const STDOUT: u8 = 1;
/// The program's error output.
pub const STDERR: u8 = 2;
/// How it ended.
const ERROR: u8 = 3;
/// The terminal's size.
const RESIZE: u8 = 4;
const CLOSE: u8 = 255;

/// The protocol of exec and attach that knows the end of the input.
pub const REMOTE: &str = "v5.channel.k8s.io";
/// The protocol of port-forward over plain channels.
pub const FORWARD: &str = "v4.channel.k8s.io";

/// A client at one end of a session.
#[derive(Debug)]
pub struct Session {
    socket: WebSocketStream<TcpStream>,
    /// By channel.
    received: Vec<Vec<u8>>,
}

impl Session {
    /// Takes up the session that waits at `url`.
    pub async fn begin(url: &str, protocol: &'static str) -> Self {
        Self::try_begin(url, protocol).await.unwrap_or_else(|error| panic!("{error}"))
    }

    /// The same where it may be refused.
    pub async fn try_begin(url: &str, protocol: &'static str) -> Result<Self, tungstenite::Error> {
        let rest = url.strip_prefix("http://").unwrap_or_else(|| panic!("{url} is not plain HTTP"));
        let (address, _) = rest.split_once('/').unwrap_or_else(|| panic!("{url} has no path"));
        let mut request = format!("ws://{rest}").into_client_request()?;
        request.headers_mut().insert("sec-websocket-protocol", protocol.parse().expect("a header's value"));
        let (socket, _) = client_async(request, TcpStream::connect(address).await?).await?;
        Ok(Self { socket, received: vec![Vec::new(); 256] })
    }

    /// Exec.
    pub async fn exec(node: &Node, request: api::ExecRequest) -> Self {
        Self::begin(&node.cri.exec_url(request).await.expect("Exec"), REMOTE).await
    }

    /// Attaches to all streams that there are.
    pub async fn attach(node: &Node, container: &Container, tty: bool) -> Self {
        let request = api::AttachRequest { container_id: container.id.clone(), stdin: true, stdout: true, stderr: !tty, tty };
        Self::begin(&node.cri.attach_url(request).await.expect("Attach"), REMOTE).await
    }

    /// PortForward.
    pub async fn forward(node: &Node, pod: &str, ports: &[i32]) -> Self {
        Self::begin(&node.cri.forward_url(pod, ports).await.expect("PortForward"), FORWARD).await
    }

    /// Sends bytes on a channel.
    pub async fn send(&mut self, channel: u8, bytes: &[u8]) {
        let message = [&[channel], bytes].concat();
        self.socket.send(Message::binary(message)).await.unwrap_or_else(|error| panic!("sending on channel {channel}: {error}"));
    }

    /// Ends a channel.
    pub async fn close(&mut self, channel: u8) {
        self.send(CLOSE, &[channel]).await;
    }

    /// Makes the terminal this large.
    pub async fn resize(&mut self, width: u16, height: u16) {
        self.send(RESIZE, format!("{{\"Width\":{width},\"Height\":{height}}}").as_bytes()).await;
    }

    /// Waits until a channel has brought `text`; all it has brought so far.
    pub async fn until(&mut self, channel: u8, text: &str) -> String {
        loop {
            let so_far = self.text(channel);
            if so_far.contains(text) {
                return so_far;
            }
            assert!(self.receive().await, "the session ended without {text:?} on channel {channel}: {so_far:?}");
        }
    }

    /// Waits for the session's end; the status it ended with.
    pub async fn end(&mut self) -> Value {
        while self.receive().await {}
        let status = self.status();
        serde_json::from_str(&status).unwrap_or_else(|error| panic!("{error}: {status:?}"))
    }

    /// How it ended, as far as that was told.
    pub fn status(&self) -> String {
        self.text(ERROR)
    }

    /// Waits for the connection's end, however that comes.
    pub async fn broken_off(&mut self) {
        while let Some(Ok(_)) = timeout(DEADLINE, self.socket.next()).await.expect("the connection ends") {}
    }

    /// Goes away as a host that has crashed and is up again: with RST.
    pub fn reset(self) {
        rustix::net::sockopt::set_socket_linger(self.socket.get_ref(), Some(Duration::ZERO)).expect("setting SO_LINGER");
    }

    /// What a channel has brought so far.
    pub fn bytes(&self, channel: u8) -> &[u8] {
        &self.received[usize::from(channel)]
    }

    /// What a channel has brought so far, as text.
    pub fn text(&self, channel: u8) -> String {
        String::from_utf8_lossy(self.bytes(channel)).into_owned()
    }

    /// Takes the next message; whether there was one.
    pub async fn receive(&mut self) -> bool {
        self.try_receive().await.unwrap_or_else(|problem| panic!("{problem}"))
    }

    /// The same where the session may break off, or stand still: then that is said.
    pub async fn try_receive(&mut self) -> Result<bool, String> {
        let next = timeout(DEADLINE, self.socket.next()).await;
        match next.map_err(|_| format!("nothing comes any more; so far: {:?}", [0, 1, 2, 3].map(|channel| self.text(channel))))? {
            Some(Ok(Message::Binary(message))) => {
                if let Some((&channel, bytes)) = message.split_first()
                    && let Some(received) = self.received.get_mut(usize::from(channel))
                {
                    received.extend_from_slice(bytes);
                }
                Ok(true)
            }
            Some(Ok(Message::Close(_))) | None => Ok(false),
            Some(Ok(_)) => Ok(true),
            Some(Err(error)) => Err(format!("the session broke off: {error}")),
        }
    }
}

/// The exit status in how a session ended, as clients look for it.
pub fn exit_code(status: &Value) -> i32 {
    exit_code_if_any(status).unwrap_or_else(|| panic!("no exit status in {status}"))
}

/// The same; `None` if the session ended without one.
pub fn exit_code_if_any(status: &Value) -> Option<i32> {
    match status["status"].as_str() {
        Some("Success") => Some(0),
        _ => status["details"]["causes"][0]["message"].as_str().and_then(|code| code.parse().ok()),
    }
}

/// An exec of a shell script, with output and error output.
pub fn script(container: &Container, script: &str) -> api::ExecRequest {
    let cmd = ["/bin/sh", "-c", script].map(str::to_owned).to_vec();
    api::ExecRequest { container_id: container.id.clone(), cmd, stdout: true, stderr: true, ..Default::default() }
}

/// The same in a terminal, with input.
pub fn in_terminal(container: &Container, text: &str) -> api::ExecRequest {
    api::ExecRequest { stdin: true, tty: true, stderr: false, ..script(container, text) }
}

/// A container that answers each line of its input, and ends with it.
pub fn answering(image: &str, once: bool) -> ContainerSpec {
    let script = "echo before; while read line; do echo got $line; echo err $line >&2; done; echo end; exit 3";
    ContainerSpec::new("answering", image).script(script).with(|config| (config.stdin, config.stdin_once) = (true, once))
}

/// A container that serves the word `ahoy` over HTTP, at these addresses of itself.
pub fn server(image: &str, addresses: &[&str]) -> ContainerSpec {
    let servers: String = addresses.iter().map(|address| format!("httpd -f -p {address} -h /var/www & ")).collect();
    ContainerSpec::new("server", image).script(&format!("echo ahoy >/var/www/index.html; {servers} wait"))
}

/// A request to such a server.
pub const GET: &[u8] = b"GET / HTTP/1.0\r\n\r\n";

impl Cri {
    /// Exec; the session's URL.
    pub async fn exec_url(&self, request: api::ExecRequest) -> Result<String, Status> {
        Ok(self.runtime().exec(request).await?.into_inner().url)
    }

    /// Attach; the session's URL.
    pub async fn attach_url(&self, request: api::AttachRequest) -> Result<String, Status> {
        Ok(self.runtime().attach(request).await?.into_inner().url)
    }

    /// PortForward; the session's URL.
    pub async fn forward_url(&self, pod: &str, port: &[i32]) -> Result<String, Status> {
        let request = api::PortForwardRequest { pod_sandbox_id: pod.to_owned(), port: port.to_vec() };
        Ok(self.runtime().port_forward(request).await?.into_inner().url)
    }
}
