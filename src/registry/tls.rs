//! TLS to the servers of a registry.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{self, CertificateError, ClientConfig, RootCertStore};

use crate::regular_file;

/// Maximum size of a PEM file in bytes; a system's CAs take about 250 KiB.
pub(super) const MAX_PEM_FILE_BYTES: u64 = 4 * 1024 * 1024;

/// TLS settings for connections to the members.
///
/// The files are read again at every connect, so a renewed certificate needs no restart.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tls {
    /// PEM file of the trusted CA certificates; `None` means those of the system.
    pub ca_file: Option<PathBuf>,
    /// PEM file of the client certificate; requires [`Tls::key_file`].
    pub cert_file: Option<PathBuf>,
    /// PEM file of the client's private key.
    pub key_file: Option<PathBuf>,
    /// The name expected in a member's certificate; `None` means the endpoint's host.
    pub server_name: Option<String>,
}

impl Tls {
    /// Reads the files and returns a connector.
    ///
    /// The error is a message about the file that cannot be used.
    pub(super) async fn connector(&self) -> Result<TlsConnector, String> {
        let Self { ca_file, cert_file, key_file, server_name: _ } = self;
        let roots = match ca_file {
            Some(file) => parse_roots(file, &read(file).await?)?,
            None => tokio::task::spawn_blocking(system_roots)
                .await
                .map_err(|error| error.to_string())??,
        };
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?
            .with_root_certificates(roots);
        let config = match (cert_file, key_file) {
            (Some(cert_file), Some(key_file)) => {
                let chain = parse_certificates(cert_file, &read(cert_file).await?)?;
                // The library's error is discarded because it may quote the key.
                let key = PrivateKeyDer::from_pem_slice(&read(key_file).await?)
                    .map_err(|_| format!("there is no private key in {}", key_file.display()))?;
                builder.with_client_auth_cert(chain, key).map_err(|error| {
                    format!("cannot use {} with its key: {error}", cert_file.display())
                })?
            }
            (None, None) => builder.with_no_client_auth(),
            _ => {
                return Err(
                    "a client certificate and its key must be configured together".to_owned()
                );
            }
        };
        Ok(TlsConnector::from(Arc::new(config)))
    }
}

async fn read(file: &Path) -> Result<Vec<u8>, String> {
    regular_file::read(file, MAX_PEM_FILE_BYTES)
        .await
        .map_err(|error| format!("cannot read {}: {error}", file.display()))
}

fn parse_certificates(file: &Path, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let certificates = certificates
        .map_err(|error| format!("{} holds an invalid certificate: {error}", file.display()))?;
    if certificates.is_empty() {
        return Err(format!("there is no certificate in {}", file.display()));
    }
    Ok(certificates)
}

fn parse_roots(file: &Path, pem: &[u8]) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    for certificate in parse_certificates(file, pem)? {
        roots
            .add(certificate)
            .map_err(|error| format!("{} holds an invalid certificate: {error}", file.display()))?;
    }
    Ok(roots)
}

fn system_roots() -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if roots.is_empty() {
        return Err("this machine trusts no CA: install CA certificates (often the package \
                    ca-certificates), or set ca-file"
            .to_owned());
    }
    Ok(roots)
}

/// Describes a failed handshake in words, with a remedy if one is known.
pub(super) fn describe_handshake_error(error: &io::Error) -> String {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match inner {
        Some(rustls::Error::InvalidCertificate(
            CertificateError::UnknownIssuer | CertificateError::BadSignature,
        )) => "its certificate is not signed by a trusted CA (set ca-file)".to_owned(),
        Some(rustls::Error::InvalidMessage(_)) => "it does not speak TLS".to_owned(),
        Some(rustls::Error::AlertReceived(
            rustls::AlertDescription::CertificateRequired
            | rustls::AlertDescription::BadCertificate,
        )) => "it requires a client certificate (set cert-file and key-file)".to_owned(),
        _ => error.to_string(),
    }
}
