//! TLS to upstreams: trust anchors and handshake.
//!
//! Authentication is strict (RFC 8310 section 5): the certificate must be signed by a trusted CA
//! and contain the configured name or, without one, the upstream's address. Sessions are resumed.

use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use super::reconnect::ConnectError;
use crate::regular_file;
use crate::tls_error::{self, TlsPeer};

/// Time after which the system's CA certificates are read again.
const SYSTEM_ROOTS_MAX_AGE: Duration = Duration::from_secs(600);

/// Maximum size of a CA file in bytes; a system's bundle has about 250 KiB.
const MAX_CA_FILE_BYTES: u64 = 4 << 20;

/// The trusted CA certificates and the TLS configurations made from them.
#[derive(Debug)]
pub(super) struct TrustAnchors {
    /// PEM file; `None` uses the system's trust store.
    ca_file: Option<PathBuf>,
    configs: Mutex<Option<TlsConfigs>>,
    /// The last logged warning about unusable CA certificates.
    last_warning: Mutex<Option<String>>,
}

/// Error: the CA file cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("upstreams over TLS or HTTPS cannot be verified, as upstream-ca-file cannot be used: {0}")]
pub struct CaFileError(String);

/// Checks that a CA file can be used.
///
/// # Errors
/// Returns an error if the file cannot be read, is malformed or holds no certificate.
pub(in crate::upstream) fn check_ca_file(file: &Path) -> Result<(), CaFileError> {
    regular_file::read_blocking(file, MAX_CA_FILE_BYTES)
        .map_err(|error| describe_unreadable(file, &error))
        .and_then(|pem| load_configs(Some(pem), Some(file)))
        .map(drop)
        .map_err(CaFileError)
}

/// The TLS configurations of one set of CA certificates.
#[derive(Clone, Debug)]
struct TlsConfigs {
    /// Content of the CA file, for detecting changes.
    pem: Option<Vec<u8>>,
    loaded: Instant,
    dns: Arc<ClientConfig>,
    https: Arc<ClientConfig>,
}

impl TrustAnchors {
    /// Creates trust anchors from `ca_file` or the system's store, without reading it.
    pub(super) fn new(ca_file: Option<PathBuf>) -> Self {
        Self { ca_file, configs: Mutex::default(), last_warning: Mutex::default() }
    }

    /// Performs a TLS handshake and verifies the certificate.
    ///
    /// The certificate must contain `name` or, without one, `address`. With `https`, ALPN offers
    /// HTTP/2.
    ///
    /// # Errors
    /// Returns an error if the CA certificates cannot be read or the handshake fails.
    pub(super) async fn handshake(
        &self,
        stream: TcpStream,
        name: Option<&str>,
        address: IpAddr,
        https: bool,
    ) -> Result<TlsStream<TcpStream>, ConnectError> {
        let configs = self.configs().await?;
        let config = if https { configs.https } else { configs.dns };
        let name = match name {
            Some(name) => ServerName::try_from(name.to_owned())
                .map_err(|error| format!("TLS: {name}: {error}"))?,
            None => ServerName::from(address),
        };
        let shown = name.to_str().into_owned();
        TlsConnector::from(config).connect(name, stream).await.map_err(|error| ConnectError {
            reason: format!(
                "TLS with {shown}: {}",
                tls_error::describe_handshake(&error, TlsPeer::Upstream)
            ),
            closed: matches!(
                error.kind(),
                io::ErrorKind::UnexpectedEof
                    | io::ErrorKind::ConnectionReset
                    | io::ErrorKind::ConnectionAborted
                    | io::ErrorKind::BrokenPipe
            ),
        })
    }

    /// Returns the TLS configurations and logs a warning when they become unavailable.
    ///
    /// The configurations stay the same until the CA certificates change, because they contain the
    /// sessions to resume.
    async fn configs(&self) -> Result<TlsConfigs, String> {
        let configs = self.load_if_changed().await;
        let mut last_warning = self.last_warning.lock().unwrap_or_else(PoisonError::into_inner);
        let reason = configs.as_ref().err();
        if let Some(reason) = reason
            && last_warning.as_ref() != Some(reason)
        {
            tracing::warn!("no new connection to upstreams over TLS or HTTPS: {reason}");
        }
        last_warning.clone_from(&reason.cloned());
        drop(last_warning);
        configs
    }

    /// Returns the known configurations, or new ones if the CA certificates changed.
    async fn load_if_changed(&self) -> Result<TlsConfigs, String> {
        let pem = match &self.ca_file {
            Some(file) => Some(
                regular_file::read(file, MAX_CA_FILE_BYTES)
                    .await
                    .map_err(|error| describe_unreadable(file, &error))?,
            ),
            None => None,
        };
        let known = self.configs.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(configs) = known
            && configs.pem == pem
            && (pem.is_some() || configs.loaded.elapsed() < SYSTEM_ROOTS_MAX_AGE)
        {
            return Ok(configs);
        }
        let file = self.ca_file.clone();
        let configs = tokio::task::spawn_blocking(move || load_configs(pem, file.as_deref()))
            .await
            .map_err(|error| error.to_string())??;
        *self.configs.lock().unwrap_or_else(PoisonError::into_inner) = Some(configs.clone());
        Ok(configs)
    }
}

/// Describes a CA file that cannot be read.
fn describe_unreadable(file: &Path, error: &io::Error) -> String {
    format!("cannot read the CA certificates in {}: {error}", file.display())
}

/// Builds the configurations from the certificates in `pem`, or from the system's.
fn load_configs(pem: Option<Vec<u8>>, file: Option<&Path>) -> Result<TlsConfigs, String> {
    let mut roots = RootCertStore::empty();
    if let (Some(pem), Some(file)) = (&pem, file) {
        let bad = |error: &dyn std::fmt::Display| {
            format!("{} holds an invalid certificate: {error}", file.display())
        };
        for certificate in CertificateDer::pem_slice_iter(pem) {
            roots.add(certificate.map_err(|error| bad(&error))?).map_err(|error| bad(&error))?;
        }
        if roots.is_empty() {
            return Err(format!("there is no certificate in {}", file.display()));
        }
    } else {
        let found = rustls_native_certs::load_native_certs();
        roots.add_parsable_certificates(found.certs);
        if roots.is_empty() {
            let reason =
                found.errors.first().map_or_else(String::new, |error| format!(": {error}"));
            return Err(format!(
                "this machine trusts no CA{reason}; install CA certificates (often the package \
                 ca-certificates), or set upstream-ca-file"
            ));
        }
    }
    let versions = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions();
    let dns = versions
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let mut https = dns.clone();
    https.alpn_protocols = vec![b"h2".to_vec()];
    Ok(TlsConfigs { pem, loaded: Instant::now(), dns: Arc::new(dns), https: Arc::new(https) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn ca_files_are_checked() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("ca.pem");
        let wrong = || {
            check_ca_file(&file)
                .unwrap_err()
                .to_string()
                .replace(&file.display().to_string(), "FILE")
        };
        let head =
            "upstreams over TLS or HTTPS cannot be verified, as upstream-ca-file cannot be used: ";
        assert_eq!(
            wrong(),
            format!(
                "{head}cannot read the CA certificates in FILE: No such file or directory \
                 (os error 2)"
            )
        );
        fs::write(&file, "no certificate").unwrap();
        assert_eq!(wrong(), format!("{head}there is no certificate in FILE"));
        fs::write(&file, "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n").unwrap();
        assert!(
            wrong().starts_with(&format!("{head}FILE holds an invalid certificate: ")),
            "{}",
            wrong()
        );
        let own = rcgen::generate_simple_self_signed(["dns.example".to_owned()]).unwrap();
        fs::write(&file, own.cert.pem()).unwrap();
        check_ca_file(&file).unwrap();
        // Text around the certificates is ignored, but the file is read only up to the limit.
        let filled = |bytes: u64| {
            own.cert.pem() + &"\n".repeat(usize::try_from(bytes).unwrap() - own.cert.pem().len())
        };
        fs::write(&file, filled(MAX_CA_FILE_BYTES)).unwrap();
        check_ca_file(&file).unwrap();
        fs::write(&file, filled(MAX_CA_FILE_BYTES + 1)).unwrap();
        let limit = "cannot read the CA certificates in FILE: it has more than 4194304 bytes (a \
                     fixed limit)";
        assert_eq!(wrong(), format!("{head}{limit}"));
        assert!(
            check_ca_file(folder.path()).unwrap_err().to_string().ends_with("it is a directory")
        );
    }

    #[tokio::test]
    async fn a_missing_ca_file_is_reported_until_it_is_back() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("ca.pem");
        let own = rcgen::generate_simple_self_signed(["dns.example".to_owned()]).unwrap();
        fs::write(&file, own.cert.pem()).unwrap();
        let trust = TrustAnchors::new(Some(file.clone()));
        trust.configs().await.unwrap();
        assert_eq!(*trust.last_warning.lock().unwrap(), None);
        fs::remove_file(&file).unwrap();
        let reason = trust.configs().await.unwrap_err();
        assert_eq!(*trust.last_warning.lock().unwrap(), Some(reason));
        fs::write(&file, own.cert.pem()).unwrap();
        trust.configs().await.unwrap();
        assert_eq!(*trust.last_warning.lock().unwrap(), None);
    }
}
