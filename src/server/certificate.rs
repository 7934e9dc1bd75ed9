//! The certificate of the encrypted listeners, reloaded when its files change.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::{ClientHello, ResolvesServerCert};
use tokio_rustls::rustls::sign::CertifiedKey;
use tokio_rustls::rustls::version::{TLS12, TLS13};
use tokio_rustls::rustls::{self, ServerConfig, SupportedProtocolVersion};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::regular_file;

/// Interval of checks for changed files.
const POLL_INTERVAL: Duration = Duration::from_secs(2);
/// Size limit for a file, bytes; far more than any certificate chain needs.
const MAX_FILE_BYTES: u64 = 1024 * 1024;

/// Paths of the certificate and its private key, both PEM files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateFiles {
    /// The certificate, followed by the intermediate certificates.
    pub certificate: PathBuf,
    /// Private key of the certificate.
    pub key: PathBuf,
}

/// Error when a certificate is loaded.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// A file cannot be read.
    #[error("cannot read {path}: {error}", path = path.display())]
    Unreadable {
        /// Path of the file.
        path: PathBuf,
        /// Error of the system.
        error: io::Error,
    },
    /// The certificate file contains no certificate.
    #[error(
        "{path} contains no PEM certificate (-----BEGIN CERTIFICATE-----)",
        path = path.display()
    )]
    NoCertificate {
        /// Path of the file.
        path: PathBuf,
    },
    /// The key file contains no private key.
    #[error(
        "{path} contains no PEM private key (password-protected keys are not supported)",
        path = path.display()
    )]
    NoKey {
        /// Path of the file.
        path: PathBuf,
    },
    /// A file is readable, but its content is invalid.
    #[error("cannot use {path}: {why}", path = path.display())]
    Unusable {
        /// Path of the file.
        path: PathBuf,
        /// Reason why the file cannot be used.
        why: String,
    },
    /// The private key does not belong to the certificate.
    #[error(
        "the key in {key} does not match the certificate in {certificate}",
        key = key.display(),
        certificate = certificate.display()
    )]
    Mismatch {
        /// Path of the certificate file.
        certificate: PathBuf,
        /// Path of the key file.
        key: PathBuf,
    },
}

/// The current certificate of the encrypted listeners, with its files.
#[derive(Debug)]
pub(super) struct Certificate {
    /// The files to follow; none while no listener needs the certificate.
    files: ArcSwapOption<CertificateFiles>,
    current: ArcSwap<CertifiedKey>,
    /// Fingerprints of the files, taken before they were first read.
    initial: [FileFingerprint; 2],
}

impl Certificate {
    /// Loads the certificate.
    ///
    /// # Errors
    /// If a file cannot be read, has invalid content, or does not match the other file.
    pub(super) fn open(files: CertificateFiles) -> Result<Self, CertificateError> {
        let initial = files.fingerprints();
        let current = ArcSwap::from_pointee(files.read()?);
        Ok(Self { files: ArcSwapOption::from_pointee(files), current, initial })
    }

    /// Uses and follows the certificate of other files from now on.
    pub(super) fn replace(&self, other: &Self) {
        self.current.store(other.current.load_full());
        self.files.store(other.files.load_full());
    }

    /// Follows no file any more, because no listener needs the certificate.
    pub(super) fn rest(&self) {
        self.files.store(None);
    }

    /// Returns a TLS configuration that offers one ALPN protocol (RFC 7301).
    ///
    /// Each handshake uses the certificate that is current at that time.
    ///
    /// # Errors
    /// If the TLS library supports none of the versions, which is impossible in practice.
    pub(super) fn config(
        self: &Arc<Self>,
        purpose: TlsPurpose,
    ) -> Result<ServerConfig, rustls::Error> {
        let (protocol, versions): (&[u8], &[&SupportedProtocolVersion]) = match purpose {
            // RFC 7858 section 3.1, RFC 9325 section 3.1.1.
            TlsPurpose::Tls => (b"dot", &[&TLS13, &TLS12]),
            // RFC 9250 section 4.1.1, RFC 9001 section 4.2.
            TlsPurpose::Quic => (b"doq", &[&TLS13]),
        };
        let builder = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(versions)?;
        let mut config = builder
            .with_no_client_auth()
            .with_cert_resolver(Arc::clone(self) as Arc<dyn ResolvesServerCert>);
        config.alpn_protocols = vec![protocol.to_vec()];
        Ok(config)
    }

    /// Reloads the certificate when its files change, until the server stops.
    ///
    /// Unreadable or half-written files leave the current certificate in place. Open connections
    /// are not affected.
    pub(super) async fn follow(self: Arc<Self>, stop: CancellationToken) {
        let mut seen = self.initial;
        let mut last_error = None;
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(POLL_INTERVAL) => {}
            }
            let Some(files) = self.files.load_full() else { continue };
            let fingerprints = files.fingerprints();
            // Always retry after a failure: a file written in two steps may look the same after
            // both.
            if fingerprints == seen && last_error.is_none() {
                continue;
            }
            seen = fingerprints;
            let reading = Arc::clone(&files);
            let Ok(read) = tokio::task::spawn_blocking(move || reading.read()).await else {
                continue;
            };
            // Replaced in the meantime.
            if self.files.load().as_deref() != Some(&*files) {
                continue;
            }
            match read {
                Ok(new) => {
                    last_error = None;
                    if new.cert != self.current.load().cert {
                        info!(
                            file = %files.certificate.display(),
                            "reloaded the certificate; new connections use it"
                        );
                    }
                    self.current.store(Arc::new(new));
                }
                Err(error) => {
                    let error = error.to_string();
                    if last_error.as_ref() != Some(&error) {
                        warn!(
                            %error,
                            "cannot reload the certificate; keeping the current one"
                        );
                        last_error = Some(error);
                    }
                }
            }
        }
    }
}

/// Protocol for which a TLS configuration is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TlsPurpose {
    /// DNS over TLS.
    Tls,
    /// DNS over QUIC.
    Quic,
}

impl ResolvesServerCert for Certificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current.load_full())
    }
}

/// File metadata that changes when a file is written or replaced.
///
/// Follows symbolic links.
type FileFingerprint = Option<(u64, u64, u64, i64, i64, i64, i64)>;

impl CertificateFiles {
    /// Returns the fingerprints of both files; `None` for a file that cannot be read.
    fn fingerprints(&self) -> [FileFingerprint; 2] {
        [&self.certificate, &self.key].map(|path| {
            let data = fs::metadata(path).ok()?;
            Some((
                data.dev(),
                data.ino(),
                data.len(),
                data.mtime(),
                data.mtime_nsec(),
                data.ctime(),
                data.ctime_nsec(),
            ))
        })
    }

    /// Reads both files, and checks that key and certificate match.
    fn read(&self) -> Result<CertifiedKey, CertificateError> {
        let Self { certificate, key } = self;
        let unusable =
            |path: &Path, why: String| CertificateError::Unusable { path: path.to_owned(), why };
        let chain = CertificateDer::pem_slice_iter(&read_file(certificate)?)
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| unusable(certificate, error.to_string()))?;
        if chain.is_empty() {
            return Err(CertificateError::NoCertificate { path: certificate.clone() });
        }
        let private = match PrivateKeyDer::pem_slice_iter(&read_file(key)?).next() {
            Some(private) => private.map_err(|error| unusable(key, error.to_string()))?,
            None => return Err(CertificateError::NoKey { path: key.clone() }),
        };
        CertifiedKey::from_der(chain, private, &ring::default_provider()).map_err(|error| {
            match error {
                rustls::Error::InconsistentKeys(_) => CertificateError::Mismatch {
                    certificate: certificate.clone(),
                    key: key.clone(),
                },
                rustls::Error::InvalidCertificate(_) => unusable(certificate, error.to_string()),
                _ => unusable(key, error.to_string()),
            }
        })
    }
}

/// Reads the whole file.
fn read_file(path: &Path) -> Result<Vec<u8>, CertificateError> {
    regular_file::read_blocking(path, MAX_FILE_BYTES)
        .map_err(|error| CertificateError::Unreadable { path: path.to_owned(), error })
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertifiedKey as GeneratedPair, generate_simple_self_signed};

    fn generate() -> GeneratedPair<rcgen::KeyPair> {
        generate_simple_self_signed(["dns.example".to_owned()]).unwrap()
    }

    fn files(folder: &Path) -> CertificateFiles {
        CertificateFiles { certificate: folder.join("cert.pem"), key: folder.join("key.pem") }
    }

    fn write(files: &CertificateFiles, generate: &GeneratedPair<rcgen::KeyPair>) {
        fs::write(&files.certificate, generate.cert.pem()).unwrap();
        fs::write(&files.key, generate.signing_key.serialize_pem()).unwrap();
    }

    #[test]
    fn errors_name_the_file_at_fault() {
        let folder = tempfile::tempdir().unwrap();
        let files = files(folder.path());
        let fails = |words: &[&str]| {
            let error = files.read().unwrap_err().to_string();
            assert!(words.iter().all(|word| error.contains(word)), "{error}");
        };
        fails(&["cannot read", "cert.pem", "No such file"]);
        let pair = generate();
        write(&files, &pair);
        files.read().unwrap();
        fs::write(&files.certificate, "nothing of the kind").unwrap();
        fails(&["cert.pem contains no PEM certificate"]);
        let pem = pair.cert.pem();
        fs::write(&files.certificate, &pem[..pem.len() / 2]).unwrap();
        fails(&["cannot use", "cert.pem"]);
        fs::write(
            &files.certificate,
            "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        )
        .unwrap();
        fails(&["cannot use", "cert.pem"]);
        write(&files, &pair);
        fs::write(&files.key, &pem).unwrap();
        fails(&["key.pem contains no PEM private key"]);
        fs::write(&files.key, "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n")
            .unwrap();
        fails(&["cannot use", "key.pem"]);
        fs::write(&files.key, generate().signing_key.serialize_pem()).unwrap();
        fails(&["key.pem does not match the certificate in", "cert.pem"]);
        // A file that is too large is not cut off: the rest may hold the needed certificate.
        let filler = "#".repeat(usize::try_from(MAX_FILE_BYTES).unwrap());
        for path in [&files.certificate, &files.key] {
            write(&files, &pair);
            let pem = fs::read_to_string(path).unwrap();
            fs::write(path, format!("{pem}{filler}")).unwrap();
            let name = path.file_name().unwrap().to_str().unwrap();
            fails(&["cannot read", name, "it has more than 1048576 bytes (a fixed limit)"]);
        }
        fs::remove_file(&files.key).unwrap();
        fails(&["cannot read", "key.pem"]);
        fs::create_dir(&files.key).unwrap();
        fails(&["cannot read", "key.pem", "it is a directory"]);
    }

    #[tokio::test(start_paused = true)]
    async fn changed_files_are_reloaded_and_broken_ones_ignored() {
        let folder = tempfile::tempdir().unwrap();
        let files = files(folder.path());
        let (first, second) = (generate(), generate());
        write(&files, &first);
        let certificate = Arc::new(Certificate::open(files.clone()).unwrap());
        let stop = CancellationToken::new();
        let following = tokio::spawn(Arc::clone(&certificate).follow(stop.clone()));
        let shown = || certificate.current.load().cert[0].clone();
        assert_eq!(shown(), *first.cert.der());

        // A mismatched pair keeps the old certificate in use, however long the mismatch lasts.
        fs::write(&files.certificate, second.cert.pem()).unwrap();
        tokio::time::sleep(POLL_INTERVAL * 5).await;
        assert_eq!(shown(), *first.cert.der());
        fs::write(&files.key, second.signing_key.serialize_pem()).unwrap();
        let start = std::time::Instant::now();
        while shown() != *second.cert.der() {
            assert!(start.elapsed() < Duration::from_secs(30), "the new certificate is not taken");
            tokio::time::sleep(POLL_INTERVAL).await;
        }
        fs::remove_file(&files.certificate).unwrap();
        tokio::time::sleep(POLL_INTERVAL * 5).await;
        assert_eq!(shown(), *second.cert.der());
        stop.cancel();
        following.await.unwrap();
    }
}
