//! The server's certificate, if streaming is to be encrypted.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use coracle_domain::{During, Result};
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// A certificate and its key.
#[derive(Clone)]
pub struct Tls(Arc<ServerConfig>);

impl Tls {
    /// Reads a chain of certificates, the server's own first, and its key, both in PEM.
    ///
    /// # Errors
    /// A file cannot be read, is not PEM, or the two do not belong together.
    pub fn read(certificates: &Path, key: &Path) -> Result<Self> {
        let stage = "reading the certificates of the streaming server";
        let chain: Vec<_> =
            CertificateDer::pem_file_iter(certificates).and_then(Iterator::collect).during(stage, certificates.display())?;
        let secret = PrivateKeyDer::from_pem_file(key).during("reading the key of the streaming server", key.display())?;
        let mut config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, secret))
            .during("using the certificates of the streaming server", certificates.display())?;
        // No other protocol can be upgraded.
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self(Arc::new(config)))
    }

    pub(crate) fn acceptor(&self) -> tokio_rustls::TlsAcceptor {
        self.0.clone().into()
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tls")
    }
}
