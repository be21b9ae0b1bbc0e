//! The HTTP request that becomes a session: which transport, which version.
//!
//! SPDY clients list what they speak in `X-Stream-Protocol-Version`, WebSocket clients in `Sec-WebSocket-Protocol`; the first
//! one that we speak too is taken (Kubernetes' `httpstream` and `wsstream` packages; RFC 6455, section 4.2).

use hyper::header::{
    CONNECTION, HeaderMap, HeaderName, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, UPGRADE,
};
use hyper::{Response, StatusCode};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use crate::status::Report;
use crate::websocket::Codec;

const SPDY: &str = "SPDY/3.1";
const VERSION: HeaderName = HeaderName::from_static("x-stream-protocol-version");
const ACCEPTED: HeaderName = HeaderName::from_static("x-accepted-stream-protocol-versions");

/// How a session with a program is led.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Remote {
    Spdy { report: Report, resizes: bool },
    WebSocket { codec: Codec, report: Report },
}

/// How ports are forwarded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Forward {
    Spdy,
    Tunnel,
    WebSocket { codec: Codec },
}

const PLAIN: Codec = Codec::Raw { closing: false };

const REMOTE_SPDY: [(&str, Remote); 4] = [
    ("v4.channel.k8s.io", Remote::Spdy { report: Report::Json, resizes: true }),
    ("v3.channel.k8s.io", Remote::Spdy { report: Report::Text, resizes: true }),
    ("v2.channel.k8s.io", Remote::Spdy { report: Report::Text, resizes: false }),
    ("channel.k8s.io", Remote::Spdy { report: Report::Text, resizes: false }),
];

const REMOTE_WEBSOCKET: [(&str, Remote); 6] = [
    ("v5.channel.k8s.io", Remote::WebSocket { codec: Codec::Raw { closing: true }, report: Report::Json }),
    ("v4.channel.k8s.io", Remote::WebSocket { codec: PLAIN, report: Report::Json }),
    ("v4.base64.channel.k8s.io", Remote::WebSocket { codec: Codec::Base64, report: Report::Json }),
    ("channel.k8s.io", Remote::WebSocket { codec: PLAIN, report: Report::Text }),
    ("base64.channel.k8s.io", Remote::WebSocket { codec: Codec::Base64, report: Report::Text }),
    // What a client speaks that names nothing.
    ("", Remote::WebSocket { codec: PLAIN, report: Report::Text }),
];

const FORWARD_SPDY: [(&str, Forward); 1] = [("portforward.k8s.io", Forward::Spdy)];

const FORWARD_WEBSOCKET: [(&str, Forward); 4] = [
    ("SPDY/3.1+portforward.k8s.io", Forward::Tunnel),
    ("v4.channel.k8s.io", Forward::WebSocket { codec: PLAIN }),
    ("v4.base64.channel.k8s.io", Forward::WebSocket { codec: Codec::Base64 }),
    ("", Forward::WebSocket { codec: PLAIN }),
];

/// What came of a handshake: how to go on and the answer that says so, or why not.
pub(crate) type Outcome<T> = Result<(T, Response<String>), Rejection>;

/// Why there is no session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Rejection {
    pub(crate) status: StatusCode,
    pub(crate) why: &'static str,
    /// The versions that would have been taken, where it is that.
    versions: Vec<&'static str>,
}

impl Rejection {
    pub(crate) fn new(status: StatusCode, why: &'static str) -> Self {
        Self { status, why, versions: Vec::new() }
    }

    pub(crate) fn into_response(self) -> Response<String> {
        let mut response = Response::new(self.why.to_owned());
        *response.status_mut() = self.status;
        for version in self.versions {
            response.headers_mut().append(ACCEPTED, HeaderValue::from_static(version));
        }
        response
    }
}

/// Shakes hands for exec and attach.
pub(crate) fn remote(headers: &HeaderMap) -> Outcome<Remote> {
    shake(headers, &REMOTE_SPDY, &REMOTE_WEBSOCKET)
}

/// Shakes hands for port-forward.
pub(crate) fn forward(headers: &HeaderMap) -> Outcome<Forward> {
    shake(headers, &FORWARD_SPDY, &FORWARD_WEBSOCKET)
}

fn shake<T: Copy>(headers: &HeaderMap, spdy: &[(&'static str, T)], websocket: &[(&'static str, T)]) -> Outcome<T> {
    if !listed(headers, &CONNECTION).any(|word| word.eq_ignore_ascii_case("upgrade")) {
        return Err(Rejection::new(StatusCode::BAD_REQUEST, "this is no request for an upgrade"));
    }
    let upgrade = listed(headers, &UPGRADE).next().unwrap_or_default();
    if upgrade.eq_ignore_ascii_case(SPDY) {
        shake_spdy(headers, spdy)
    } else if upgrade.eq_ignore_ascii_case("websocket") {
        shake_websocket(headers, websocket)
    } else {
        Err(Rejection::new(StatusCode::BAD_REQUEST, "an upgrade is to SPDY/3.1 or to websocket"))
    }
}

fn shake_spdy<T: Copy>(headers: &HeaderMap, table: &[(&'static str, T)]) -> Outcome<T> {
    let offered: Vec<_> = listed(headers, &VERSION).collect();
    if offered.is_empty() {
        return Err(Rejection::new(StatusCode::BAD_REQUEST, "X-Stream-Protocol-Version is missing"));
    }
    let Some((name, chosen)) = first_common(&offered, table) else {
        let rejection = Rejection::new(StatusCode::FORBIDDEN, "none of these versions of the protocol is spoken");
        return Err(Rejection { versions: table.iter().map(|(name, _)| *name).collect(), ..rejection });
    };
    let mut response = switching(HeaderValue::from_static(SPDY));
    response.headers_mut().insert(VERSION, HeaderValue::from_static(name));
    Ok((chosen, response))
}

fn shake_websocket<T: Copy>(headers: &HeaderMap, table: &[(&'static str, T)]) -> Outcome<T> {
    let Some(key) = headers.get(SEC_WEBSOCKET_KEY) else {
        return Err(Rejection::new(StatusCode::BAD_REQUEST, "Sec-WebSocket-Key is missing"));
    };
    let mut offered: Vec<_> = listed(headers, &SEC_WEBSOCKET_PROTOCOL).collect();
    if offered.is_empty() {
        offered.push("");
    }
    let Some((name, chosen)) = first_common(&offered, table) else {
        return Err(Rejection::new(StatusCode::FORBIDDEN, "none of these subprotocols is spoken"));
    };
    let mut response = switching(HeaderValue::from_static("websocket"));
    if !name.is_empty() {
        response.headers_mut().insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(name));
    }
    if let Ok(accept) = HeaderValue::from_str(&derive_accept_key(key.as_bytes())) {
        response.headers_mut().insert(SEC_WEBSOCKET_ACCEPT, accept);
    }
    Ok((chosen, response))
}

/// The words of a header that is a list, in however many lines.
fn listed<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    headers
        .get_all(name)
        .into_iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .filter(|word| !word.is_empty())
}

/// The client's order decides.
fn first_common<T: Copy>(offered: &[&str], table: &[(&'static str, T)]) -> Option<(&'static str, T)> {
    offered.iter().find_map(|offer| table.iter().find(|(name, _)| name == offer)).copied()
}

fn switching(to: HeaderValue) -> Response<String> {
    let mut response = Response::new(String::new());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    response.headers_mut().insert(UPGRADE, to);
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value))).collect()
    }

    fn spdy(versions: &'static str) -> HeaderMap {
        headers(&[("connection", "Upgrade"), ("upgrade", "SPDY/3.1"), ("x-stream-protocol-version", versions)])
    }

    fn websocket(protocols: &'static str) -> HeaderMap {
        headers(&[
            ("connection", "keep-alive, upgrade"),
            ("upgrade", "WebSocket"),
            ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
            ("sec-websocket-protocol", protocols),
        ])
    }

    #[test]
    fn the_first_version_that_both_speak_is_taken() {
        let (chosen, response) = remote(&spdy("v9.channel.k8s.io, v3.channel.k8s.io,v4.channel.k8s.io")).unwrap();
        assert_eq!(chosen, Remote::Spdy { report: Report::Text, resizes: true });
        assert_eq!(response.status(), 101);
        assert_eq!(response.headers()["x-stream-protocol-version"], "v3.channel.k8s.io");
        // Clients also send a line for each version.
        let mut lines = spdy("v4.channel.k8s.io");
        lines.append(VERSION, HeaderValue::from_static("channel.k8s.io"));
        assert_eq!(remote(&lines).unwrap().0, Remote::Spdy { report: Report::Json, resizes: true });
        assert_eq!(forward(&spdy("portforward.k8s.io")).unwrap().0, Forward::Spdy);
    }

    #[test]
    fn a_version_nobody_knows_is_answered_with_those_we_know() {
        let response = remote(&spdy("v9.channel.k8s.io")).unwrap_err().into_response();
        assert_eq!(response.status(), 403);
        let known: Vec<_> = response.headers().get_all(ACCEPTED).iter().collect();
        assert_eq!(known, ["v4.channel.k8s.io", "v3.channel.k8s.io", "v2.channel.k8s.io", "channel.k8s.io"]);
        assert_eq!(remote(&spdy("")).unwrap_err().status, 400);
    }

    #[test]
    fn websockets_are_accepted_as_rfc_6455_says() {
        let (chosen, response) = remote(&websocket("v5.channel.k8s.io")).unwrap();
        assert_eq!(chosen, Remote::WebSocket { codec: Codec::Raw { closing: true }, report: Report::Json });
        // The example of section 1.3.
        assert_eq!(response.headers()[SEC_WEBSOCKET_ACCEPT], "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        assert_eq!(response.headers()[SEC_WEBSOCKET_PROTOCOL], "v5.channel.k8s.io");
        assert_eq!(forward(&websocket("SPDY/3.1+portforward.k8s.io")).unwrap().0, Forward::Tunnel);
        assert_eq!(remote(&websocket("chat")).unwrap_err().status, 403);
    }

    #[test]
    fn who_names_no_subprotocol_gets_the_first() {
        let (chosen, response) = remote(&websocket("")).unwrap();
        assert_eq!(chosen, Remote::WebSocket { codec: PLAIN, report: Report::Text });
        assert!(!response.headers().contains_key(SEC_WEBSOCKET_PROTOCOL));
    }

    #[test]
    fn anything_else_is_refused() {
        assert_eq!(remote(&headers(&[])).unwrap_err().status, 400);
        assert_eq!(remote(&headers(&[("connection", "upgrade"), ("upgrade", "h2c")])).unwrap_err().status, 400);
        assert_eq!(remote(&headers(&[("connection", "upgrade"), ("upgrade", "websocket")])).unwrap_err().status, 400);
    }
}
