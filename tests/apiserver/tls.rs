//! Certificates for the scripted server: one authority, a server and its clients.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig};

/// A certificate authority.
pub(crate) struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    /// What its servers are called.
    names: Vec<String>,
    /// Whether its servers let in only who has a certificate.
    demanding: bool,
}

impl Authority {
    pub(crate) fn new() -> Self {
        Self::for_servers(&["127.0.0.1"], true)
    }

    /// For servers at other addresses, which may do without client certificates.
    pub(crate) fn for_servers(names: &[&str], demanding: bool) -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(rcgen::DnType::CommonName, "scripted authority");
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        Self { issuer, names: names.iter().map(|n| (*n).to_owned()).collect(), demanding }
    }

    fn issue(&self, names: &[String]) -> (rcgen::Certificate, KeyPair) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(names.to_vec()).unwrap();
        (params.signed_by(&key, &self.issuer).unwrap(), key)
    }

    /// Writes the authority's certificate and a client certificate with its key into `dir`: CA, certificate, key.
    pub(crate) fn client_files(&self, dir: &Path) -> [PathBuf; 3] {
        let (certificate, key) = self.issue(&["client.example".to_owned()]);
        let texts = [
            ("ca.pem", self.issuer.pem()),
            ("cert.pem", certificate.pem()),
            ("key.pem", key.serialize_pem()),
        ];
        texts.map(|(name, text)| {
            let path = dir.join(name);
            std::fs::write(&path, text).unwrap();
            path
        })
    }

    pub(super) fn acceptor(&self) -> TlsAcceptor {
        let (certificate, key) = self.issue(&self.names);
        let provider = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from(self.issuer.der().to_vec())).unwrap();
        let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone());
        let clients = if self.demanding { clients } else { clients.allow_unauthenticated() };
        let clients = clients.build().unwrap();
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(clients)
            .with_single_cert(
                vec![certificate.der().clone()],
                PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
            )
            .unwrap();
        TlsAcceptor::from(Arc::new(config))
    }
}
