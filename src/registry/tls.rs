//! TLS to the servers of a registry.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
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

/// Returns whether a failed handshake suggests that the server does not speak TLS.
pub(super) fn is_plain_server(error: &io::Error) -> bool {
    match tls_error(error) {
        Some(error) => matches!(error, rustls::Error::InvalidMessage(_)),
        // A server that does not understand the first message may just close the connection.
        None => matches!(
            error.kind(),
            io::ErrorKind::UnexpectedEof
                | io::ErrorKind::ConnectionReset
                | io::ErrorKind::BrokenPipe
        ),
    }
}

/// Returns whether a handshake failed at something that only a TLS server sends.
pub(super) fn is_answer_of_tls(error: &io::Error) -> bool {
    tls_error(error).is_some_and(|error| !matches!(error, rustls::Error::InvalidMessage(_)))
}

/// Describes a failed handshake in words, with a remedy if one is known.
pub(super) fn describe_handshake_error(error: &io::Error) -> String {
    match tls_error(error) {
        Some(error) => describe_tls_error(error),
        None if is_plain_server(error) => {
            "it closed the connection during the TLS handshake".to_owned()
        }
        None => error.to_string(),
    }
}

/// Describes a failed TCP connection, with a remedy if one is known.
pub(super) fn describe_connect_error(error: &io::Error) -> String {
    if error.kind() == io::ErrorKind::ConnectionRefused {
        return "Connection refused: nothing listens there: start the server, or correct the URL"
            .to_owned();
    }
    error.to_string()
}

/// Returns the error of TLS inside an error of a stream.
pub(super) fn tls_error(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref()?.downcast_ref()
}

/// Describes an error of TLS in words, with a remedy if one is known.
pub(super) fn describe_tls_error(error: &rustls::Error) -> String {
    use rustls::AlertDescription as Alert;
    let text = match error {
        rustls::Error::InvalidCertificate(error) => return describe_certificate_error(error),
        rustls::Error::InvalidMessage(_) => "it does not speak TLS",
        rustls::Error::AlertReceived(Alert::CertificateRequired | Alert::BadCertificate) => {
            "it requires a client certificate (set cert-file and key-file)"
        }
        rustls::Error::AlertReceived(
            Alert::UnknownCA
            | Alert::CertificateUnknown
            | Alert::CertificateExpired
            | Alert::CertificateRevoked
            | Alert::UnsupportedCertificate
            | Alert::AccessDenied,
        ) => "it refuses the client certificate (check cert-file: its CA, purpose and dates)",
        rustls::Error::AlertReceived(Alert::UnrecognisedName) => {
            "it does not know the requested name (set server-name)"
        }
        rustls::Error::AlertReceived(Alert::ProtocolVersion | Alert::HandshakeFailure)
        | rustls::Error::PeerIncompatible(_) => {
            "it shares no version or cipher of TLS with svcdns, which needs TLS 1.2 or 1.3"
        }
        rustls::Error::AlertReceived(_) => {
            "it ended the TLS handshake with an alert: its log says why"
        }
        rustls::Error::NoCertificatesPresented => "it presents no certificate",
        rustls::Error::NoApplicationProtocol => "it does not speak the registry's protocol",
        rustls::Error::InconsistentKeys(_) => {
            "the private key does not belong to the certificate (check cert-file and key-file)"
        }
        rustls::Error::InappropriateMessage { .. }
        | rustls::Error::InappropriateHandshakeMessage { .. }
        | rustls::Error::PeerMisbehaved(_)
        | rustls::Error::PeerSentOversizedRecord
        | rustls::Error::DecryptError => "it violates the TLS protocol",
        _ => "the TLS handshake failed",
    };
    text.to_owned()
}

/// Describes why a server's certificate is refused, with a remedy.
fn describe_certificate_error(error: &CertificateError) -> String {
    let text = match error {
        CertificateError::UnknownIssuer | CertificateError::BadSignature => {
            "its certificate is not signed by a trusted CA (set ca-file)"
        }
        CertificateError::NotValidForNameContext { expected, presented } => {
            let names: Vec<_> = presented.iter().map(|name| bare_name(name)).collect();
            let names = if names.is_empty() { "no name".to_owned() } else { names.join(", ") };
            return format!(
                "its certificate is for {names}, not for {}: set server-name to a name in the \
                 certificate, or issue one for this name",
                expected.to_str()
            );
        }
        CertificateError::NotValidForName => {
            "its certificate has another name (set server-name to a name in the certificate)"
        }
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            "its certificate has expired (renew it, or correct this machine's clock)"
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "its certificate is not valid yet (check its dates and this machine's clock)"
        }
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            "its certificate is not for servers (issue one with the extended key usage serverAuth)"
        }
        CertificateError::Revoked => "its certificate is revoked (issue a new one)",
        CertificateError::BadEncoding => "its certificate is malformed (issue a new one)",
        CertificateError::Other(error) if is_ca_as_server(error) => {
            "its certificate is that of a CA (issue a server certificate from that CA, for openssl \
             req -x509 with -addext basicConstraints=critical,CA:FALSE)"
        }
        _ => {
            "its certificate has a form or signature that svcdns cannot verify (issue one of \
             X.509 version 3 with an ECDSA, Ed25519 or RSA key and SHA-256)"
        }
    };
    text.to_owned()
}

/// Returns the name in the library's form of it, such as `DnsName("etcd.test")`.
fn bare_name(name: &str) -> &str {
    let inner = name.split_once('(').and_then(|(_, rest)| rest.strip_suffix(')'));
    inner.unwrap_or(name).trim_matches('"')
}

/// Returns whether the verifier refused the certificate of a CA as that of a server.
///
/// The verifier's own error type is not exported by its library, so its name is compared.
fn is_ca_as_server(error: &rustls::OtherError) -> bool {
    error.to_string().contains("CaUsedAsEndEntity")
}
