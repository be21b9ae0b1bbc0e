//! Archives, images and a registry for tests.

use std::collections::HashMap;
use std::io::Write;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};

use serde_json::json;
use tar::{Builder, EntryType, Header};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::Digest;

pub(crate) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(crate) const GZIP_LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
/// The time that archives get unless they say otherwise.
pub(crate) const TIME: u64 = 1_234_567_890;

/// An archive in the making.
pub(crate) struct Tar(Builder<Vec<u8>>);

impl Tar {
    pub(crate) fn new() -> Self {
        Self(Builder::new(Vec::new()))
    }

    /// Appends an entry whose name is taken as it is, however hostile.
    pub(crate) fn entry(mut self, kind: EntryType, name: &str, link: &str, content: &[u8], change: impl Fn(&mut Header)) -> Self {
        let mut header = Header::new_ustar();
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_entry_type(kind);
        header.set_mode(if kind == EntryType::Directory { 0o755 } else { 0o644 });
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(TIME);
        header.set_size(content.len() as u64);
        change(&mut header);
        header.set_cksum();
        self.0.append(&header, content).unwrap();
        self
    }

    pub(crate) fn dir(self, name: &str) -> Self {
        self.entry(EntryType::Directory, name, "", b"", |_| {})
    }

    pub(crate) fn file(self, name: &str, content: &str) -> Self {
        self.entry(EntryType::Regular, name, "", content.as_bytes(), |_| {})
    }

    pub(crate) fn symlink(self, name: &str, target: &str) -> Self {
        self.entry(EntryType::Symlink, name, target, b"", |_| {})
    }

    pub(crate) fn hard_link(self, name: &str, target: &str) -> Self {
        self.entry(EntryType::Link, name, target, b"", |_| {})
    }

    /// Appends an extended header for the next entry.
    pub(crate) fn pax(mut self, records: &[(&str, &[u8])]) -> Self {
        self.0.append_pax_extensions(records.iter().copied()).unwrap();
        self
    }

    pub(crate) fn bytes(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }
}

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// An image as a registry has it.
#[derive(Clone)]
pub(crate) struct TestImage {
    pub(crate) manifest: Vec<u8>,
    pub(crate) config: Vec<u8>,
    pub(crate) layers: Vec<Vec<u8>>,
}

/// A layer: media type, blob, diff id.
pub(crate) type TestLayer = (&'static str, Vec<u8>, Digest);

pub(crate) fn gzip_layer(tar: Tar) -> TestLayer {
    let tar = tar.bytes();
    (GZIP_LAYER, gzip(&tar), Digest::of(&tar))
}

impl TestImage {
    pub(crate) fn new(label: &str, layers: &[TestLayer]) -> Self {
        let diff_ids: Vec<_> = layers.iter().map(|(_, _, diff_id)| diff_id).collect();
        let architecture = if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" };
        let config = json!({
            "architecture": architecture, "os": "linux",
            "config": {"User": "1000:1000", "Env": ["A=b"], "Labels": {"label": label}},
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        let config = serde_json::to_vec(&config).unwrap();
        let descriptors: Vec<_> = layers
            .iter()
            .map(|(media_type, blob, _)| json!({"mediaType": media_type, "size": blob.len(), "digest": Digest::of(blob)}))
            .collect();
        let manifest = json!({
            "schemaVersion": 2, "mediaType": OCI_MANIFEST,
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "size": config.len(), "digest": Digest::of(&config)},
            "layers": descriptors,
        });
        let manifest = serde_json::to_vec(&manifest).unwrap();
        Self { manifest, config, layers: layers.iter().map(|(_, blob, _)| blob.clone()).collect() }
    }

    pub(crate) fn id(&self) -> String {
        Digest::of(&self.config).to_string()
    }

    /// An index with this image for this machine, and nonsense for another.
    pub(crate) fn index(&self) -> Vec<u8> {
        let (here, elsewhere) = if cfg!(target_arch = "x86_64") { ("amd64", "arm64") } else { ("arm64", "amd64") };
        let entry = |digest, size: usize, arch| json!({"mediaType": OCI_MANIFEST, "digest": digest, "size": size, "platform": {"os": "linux", "architecture": arch}});
        let entries = [entry(Digest::of(b"nowhere"), 7, elsewhere), entry(Digest::of(&self.manifest), self.manifest.len(), here)];
        serde_json::to_vec(&json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries})).unwrap()
    }
}

/// What the registry wants to see.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Guard {
    #[default]
    Nobody,
    /// `Authorization: Basic` for `user` and `secret`.
    Basic,
    /// A token from `/token`, which wants the same.
    Bearer,
}

/// What one request looked like.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) headers: HashMap<String, String>,
    pub(crate) body: String,
}

#[derive(Default)]
pub(crate) struct Shelf {
    /// By path after `/v2/`: content type and content.
    pub(crate) content: HashMap<String, (String, Vec<u8>)>,
    pub(crate) seen: Vec<Seen>,
    pub(crate) guard: Guard,
    /// How many blob answers are cut off, and after how many bytes.
    pub(crate) cuts: (usize, usize),
    /// Status that every request gets.
    pub(crate) status: Option<u16>,
    /// Blobs are at this host.
    pub(crate) redirect: Option<String>,
    pub(crate) ignore_ranges: bool,
    /// Blobs, and questions whether something is there, wait for this.
    pub(crate) gate: Option<Arc<tokio::sync::Semaphore>>,
}

/// A registry on loopback that does as its shelf says.
#[derive(Clone)]
pub(crate) struct Registry {
    pub(crate) address: SocketAddr,
    shelf: Arc<Mutex<Shelf>>,
}

struct Answer {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
    cut: Option<usize>,
}

impl Answer {
    fn new(status: u16) -> Self {
        Self { status, headers: Vec::new(), body: Vec::new(), cut: None }
    }
}

impl Registry {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let registry = Self { address: listener.local_addr().unwrap(), shelf: Arc::default() };
        let serving = registry.clone();
        tokio::spawn(async move {
            while let Ok((connection, _)) = listener.accept().await {
                tokio::spawn(serving.clone().serve(connection));
            }
        });
        registry
    }

    /// One that speaks TLS, and the PEM certificate to trust for it.
    pub(crate) async fn start_encrypted() -> (Self, String) {
        let certified = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
        let key = rustls::pki_types::PrivateKeyDer::try_from(certified.signing_key.serialize_der()).unwrap();
        let config = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certified.cert.der().clone()], key)
            .unwrap();
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let registry = Self { address: listener.local_addr().unwrap(), shelf: Arc::default() };
        let serving = registry.clone();
        tokio::spawn(async move {
            while let Ok((connection, _)) = listener.accept().await {
                if let Ok(connection) = acceptor.accept(connection).await {
                    tokio::spawn(serving.clone().serve(connection));
                }
            }
        });
        (registry, certified.cert.pem())
    }

    pub(crate) fn shelf(&self) -> MutexGuard<'_, Shelf> {
        self.shelf.lock().unwrap()
    }

    pub(crate) fn reference(&self, rest: &str) -> String {
        format!("{}/{rest}", self.address)
    }

    /// Puts an image on the shelf as `repository:tag`.
    pub(crate) fn push(&self, repository: &str, tag: &str, image: &TestImage) {
        self.put_manifest(repository, tag, OCI_MANIFEST, &image.manifest);
        for blob in image.layers.iter().chain([&image.config]) {
            self.shelf()
                .content
                .insert(format!("{repository}/blobs/{}", Digest::of(blob)), ("application/octet-stream".into(), blob.clone()));
        }
    }

    pub(crate) fn put_manifest(&self, repository: &str, tag: &str, media_type: &str, content: &[u8]) {
        for target in [tag.to_owned(), Digest::of(content).to_string()] {
            self.shelf().content.insert(format!("{repository}/manifests/{target}"), (media_type.into(), content.to_vec()));
        }
    }

    /// How many requests asked for something whose path holds `part`.
    pub(crate) fn count(&self, method: &str, part: &str) -> usize {
        self.shelf().seen.iter().filter(|seen| seen.method == method && seen.path.contains(part)).count()
    }

    async fn serve(self, mut connection: impl AsyncRead + AsyncWrite + Unpin) {
        let mut bytes = Vec::new();
        let head = loop {
            if let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
                break end;
            }
            if connection.read_buf(&mut bytes).await.unwrap_or(0) == 0 {
                return;
            }
        };
        let text = String::from_utf8_lossy(&bytes[..head]).into_owned();
        let mut lines = text.lines();
        let mut start = lines.next().unwrap().split(' ');
        let (method, path) = (start.next().unwrap().to_owned(), start.next().unwrap().to_owned());
        let headers: HashMap<_, _> =
            lines.filter_map(|line| line.split_once(": ")).map(|(k, v)| (k.to_ascii_lowercase(), v.to_owned())).collect();
        let length: usize = headers.get("content-length").map_or(0, |length| length.parse().unwrap());
        while bytes.len() < head + 4 + length {
            connection.read_buf(&mut bytes).await.unwrap();
        }
        let body = String::from_utf8_lossy(&bytes[head + 4..]).into_owned();
        let seen = Seen { method, path, headers, body };
        let gate = self.shelf().gate.clone().filter(|_| seen.method == "HEAD" || seen.path.contains("/blobs/"));
        if let Some(gate) = gate {
            gate.acquire().await.unwrap().forget();
        }
        let answer = self.answer(&seen);
        self.shelf().seen.push(seen.clone());
        let mut out = format!("HTTP/1.1 {} X\r\nconnection: close\r\ncontent-length: {}\r\n", answer.status, answer.body.len());
        for (name, value) in &answer.headers {
            out += &format!("{name}: {value}\r\n");
        }
        let mut out = (out + "\r\n").into_bytes();
        if seen.method != "HEAD" {
            out.extend_from_slice(&answer.body[..answer.cut.unwrap_or(answer.body.len()).min(answer.body.len())]);
        }
        let _ = connection.write_all(&out).await;
        let _ = connection.shutdown().await;
    }

    fn answer(&self, seen: &Seen) -> Answer {
        let mut shelf = self.shelf();
        if let Some(status) = shelf.status {
            return Answer::new(status);
        }
        let authorization = seen.headers.get("authorization").map(String::as_str);
        let basic = Some("Basic dXNlcjpzZWNyZXQ=");
        if seen.path.starts_with("/token") {
            let welcome = authorization == basic || seen.body.contains("refresh_token=identity");
            return if welcome { Answer { body: br#"{"token":"t0ken"}"#.to_vec(), ..Answer::new(200) } } else { Answer::new(401) };
        }
        let (wanted, challenge) = match shelf.guard {
            Guard::Nobody => (None, String::new()),
            Guard::Basic => (basic, "Basic realm=\"x\"".to_owned()),
            Guard::Bearer => (Some("Bearer t0ken"), format!("Bearer realm=\"http://{}/token\",service=\"s\"", self.address)),
        };
        if wanted.is_some() && authorization != wanted {
            return Answer { headers: vec![("www-authenticate", challenge)], ..Answer::new(401) };
        }
        let path = seen.path.trim_start_matches("/v2/").split('?').next().unwrap().to_owned();
        let Some((media_type, content)) = shelf.content.get(&path).cloned() else {
            return Answer { body: br#"{"errors":[{"code":"UNKNOWN","message":"nothing here"}]}"#.to_vec(), ..Answer::new(404) };
        };
        let mut answer = Answer { body: content, ..Answer::new(200) };
        answer.headers.push(("content-type", media_type));
        if path.contains("/manifests/") {
            answer.headers.push(("docker-content-digest", Digest::of(&answer.body).to_string()));
            return answer;
        }
        if let Some(host) = &shelf.redirect {
            return Answer { headers: vec![("location", format!("http://{host}{}", seen.path))], ..Answer::new(307) };
        }
        let range = seen.headers.get("range").and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse::<usize>().ok());
        if let Some(start) = range.filter(|_| !shelf.ignore_ranges) {
            answer.headers.push(("content-range", format!("bytes {start}-{}/{}", answer.body.len() - 1, answer.body.len())));
            answer.body.drain(..start);
            answer.status = 206;
        }
        if shelf.cuts.0 > 0 {
            shelf.cuts.0 -= 1;
            answer.cut = Some(shelf.cuts.1);
        }
        answer
    }
}
