//! TLS to the servers of a registry.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{self, ClientConfig, RootCertStore};

use crate::regular_file;
use crate::tls_error::{self, TlsPeer};

pub(super) use crate::tls_error::{inside as tls_error, is_plain_server};

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

/// A connector with the name that it expects in the server's certificate.
pub(super) type TlsTarget = (TlsConnector, ServerName<'static>);

impl Tls {
    /// Reads the files and returns a connector for an endpoint.
    ///
    /// The error is a message about the name or the file that cannot be used.
    pub(super) async fn target(&self, endpoint: &str) -> Result<TlsTarget, String> {
        let name = server_name(endpoint, self.server_name.as_deref())?;
        Ok((self.connector().await?, name))
    }

    /// Reads the files and returns a connector.
    ///
    /// The error is a message about the file that cannot be used.
    async fn connector(&self) -> Result<TlsConnector, String> {
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
                    let reason = describe_tls_error(&error);
                    format!("cannot use {}: {reason}", cert_file.display())
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

/// Returns a connector that trusts no certificate, to find out whether a server speaks TLS.
pub(super) fn distrustful_connector() -> Option<TlsConnector> {
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .ok()?
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    Some(TlsConnector::from(Arc::new(config)))
}

/// Returns the name expected in a member's certificate.
///
/// The error is a message about the name.
pub(super) fn server_name(
    endpoint: &str,
    configured: Option<&str>,
) -> Result<ServerName<'static>, String> {
    let host = endpoint.rsplit_once(':').map_or(endpoint, |(host, _)| host);
    let name = configured.unwrap_or_else(|| host.trim_matches(['[', ']']));
    ServerName::try_from(name.to_owned())
        .map_err(|_| format!("{name:?} is not the name of a TLS server (set server-name)"))
}

/// Returns whether a handshake failed at something that only a TLS server sends.
pub(super) fn is_answer_of_tls(error: &io::Error) -> bool {
    tls_error::inside(error).is_some_and(|error| !matches!(error, rustls::Error::InvalidMessage(_)))
}

/// Describes a failed handshake in words, with a remedy if one is known.
pub(super) fn describe_handshake_error(error: &io::Error) -> String {
    tls_error::describe_handshake(error, TlsPeer::Registry)
}

/// Describes a failed TCP connection, with a remedy if one is known.
pub(super) fn describe_connect_error(error: &io::Error) -> String {
    if error.kind() == io::ErrorKind::ConnectionRefused {
        return "Connection refused: nothing listens there: start the server, or correct the URL"
            .to_owned();
    }
    error.to_string()
}

/// Describes an error of TLS in words, with a remedy if one is known.
pub(super) fn describe_tls_error(error: &rustls::Error) -> String {
    tls_error::describe(error, TlsPeer::Registry)
}
