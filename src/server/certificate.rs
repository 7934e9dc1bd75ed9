//! The certificate of encrypted listeners: read from files, and again when they change.

use std::fs;
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::{ClientHello, ResolvesServerCert};
use tokio_rustls::rustls::sign::CertifiedKey;
use tokio_rustls::rustls::version::{TLS12, TLS13};
use tokio_rustls::rustls::{self, ServerConfig, SupportedProtocolVersion};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// How often the files are looked at.
const INTERVAL: Duration = Duration::from_secs(2);
/// Octets of a file that are read; no certificate comes near.
const MOST: u64 = 1024 * 1024;

/// Where the certificate and its key are, both in PEM form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateFiles {
    /// The certificate, first, and those that lead from it to an authority.
    pub certificate: PathBuf,
    /// The private key of the certificate.
    pub key: PathBuf,
}

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// A file cannot be read.
    #[error("cannot read {path}: {error}", path = path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// No certificate stands in its file.
    #[error("{path} holds no certificate in PEM form: a part from -----BEGIN CERTIFICATE----- to its end", path = path.display())]
    NoCertificate {
        /// The file.
        path: PathBuf,
    },
    /// No key stands in its file.
    #[error("{path} holds no private key in PEM form (one that is protected by a password cannot be used)", path = path.display())]
    NoKey {
        /// The file.
        path: PathBuf,
    },
    /// A file's content cannot be used.
    #[error("cannot use {path}: {why}", path = path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The two do not belong together.
    #[error("the key in {key} is not that of the certificate in {certificate}", key = key.display(), certificate = certificate.display())]
    Mismatch {
        /// The file of the certificate.
        certificate: PathBuf,
        /// The file of the key.
        key: PathBuf,
    },
}

/// The certificate in force.
#[derive(Debug)]
pub(super) struct Certificate {
    files: CertificateFiles,
    current: ArcSwap<CertifiedKey>,
    /// The files as they were when they were opened.
    opened: [Stamp; 2],
}

impl Certificate {
    /// Reads the files.
    ///
    /// # Errors
    /// When there is no certificate to be had from them.
    pub(super) fn open(files: CertificateFiles) -> Result<Self, CertificateError> {
        let opened = files.stamps();
        let current = ArcSwap::from_pointee(files.read()?);
        Ok(Self { files, current, opened })
    }

    /// A server's part of TLS with whatever certificate is in force at a handshake, for one protocol (RFC 7301).
    ///
    /// # Errors
    /// When the library knows none of the versions: never.
    pub(super) fn config(self: &Arc<Self>, purpose: Purpose) -> Result<ServerConfig, rustls::Error> {
        let (protocol, versions): (&[u8], &[&SupportedProtocolVersion]) = match purpose {
            // RFC 7858 section 3.1, RFC 9325 section 3.1.1.
            Purpose::Tls => (b"dot", &[&TLS13, &TLS12]),
            // RFC 9250 section 4.1.1, RFC 9001 section 4.2.
            Purpose::Quic => (b"doq", &[&TLS13]),
        };
        let builder = ServerConfig::builder_with_provider(Arc::new(ring::default_provider())).with_protocol_versions(versions)?;
        let mut config = builder.with_no_client_auth().with_cert_resolver(Arc::clone(self) as Arc<dyn ResolvesServerCert>);
        config.alpn_protocols = vec![protocol.to_vec()];
        Ok(config)
    }

    /// Looks at the files until the server stops. What cannot be read, or is only half written, leaves the certificate in
    /// force as it is; connections that are open go on in any case.
    pub(super) async fn follow(self: Arc<Self>, stop: CancellationToken) {
        let mut seen = self.opened;
        let mut complaint = None;
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(INTERVAL) => {}
            }
            let stamps = self.files.stamps();
            // After a failure in any case: a file that is written in a moment may look the same before and after.
            if stamps == seen && complaint.is_none() {
                continue;
            }
            seen = stamps;
            let files = self.files.clone();
            let Ok(read) = tokio::task::spawn_blocking(move || files.read()).await else { continue };
            match read {
                Ok(new) => {
                    complaint = None;
                    if new.cert != self.current.load().cert {
                        info!(file = %self.files.certificate.display(), "the certificate was replaced; new connections get the new one");
                    }
                    self.current.store(Arc::new(new));
                }
                Err(error) => {
                    let error = error.to_string();
                    if complaint.as_ref() != Some(&error) {
                        warn!(%error, "the certificate's files have changed and cannot be used; keeping the certificate of before");
                        complaint = Some(error);
                    }
                }
            }
        }
    }
}

/// What a certificate is shown for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
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

/// What changes when a file is written or replaced, also behind a symbolic link.
type Stamp = Option<(u64, u64, u64, i64, i64, i64, i64)>;

impl CertificateFiles {
    fn stamps(&self) -> [Stamp; 2] {
        [&self.certificate, &self.key].map(|path| {
            let data = fs::metadata(path).ok()?;
            Some((data.dev(), data.ino(), data.len(), data.mtime(), data.mtime_nsec(), data.ctime(), data.ctime_nsec()))
        })
    }

    fn read(&self) -> Result<CertifiedKey, CertificateError> {
        let Self { certificate, key } = self;
        let unusable = |path: &Path, why: String| CertificateError::Unusable { path: path.to_owned(), why };
        let chain = CertificateDer::pem_slice_iter(&contents(certificate)?)
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| unusable(certificate, error.to_string()))?;
        if chain.is_empty() {
            return Err(CertificateError::NoCertificate { path: certificate.clone() });
        }
        let private = match PrivateKeyDer::pem_slice_iter(&contents(key)?).next() {
            Some(private) => private.map_err(|error| unusable(key, error.to_string()))?,
            None => return Err(CertificateError::NoKey { path: key.clone() }),
        };
        CertifiedKey::from_der(chain, private, &ring::default_provider()).map_err(|error| match error {
            rustls::Error::InconsistentKeys(_) => CertificateError::Mismatch { certificate: certificate.clone(), key: key.clone() },
            rustls::Error::InvalidCertificate(_) => unusable(certificate, error.to_string()),
            _ => unusable(key, error.to_string()),
        })
    }
}

/// What stands in a file, which must be one: reading a pipe would wait for its writer.
fn contents(path: &Path) -> Result<Vec<u8>, CertificateError> {
    let read = || {
        if !fs::metadata(path)?.is_file() {
            return Err(io::Error::new(ErrorKind::InvalidInput, "it is not a file"));
        }
        let mut octets = Vec::new();
        fs::File::open(path)?.take(MOST).read_to_end(&mut octets)?;
        Ok(octets)
    };
    read().map_err(|error| CertificateError::Unreadable { path: path.to_owned(), error })
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertifiedKey as Made, generate_simple_self_signed};

    fn made() -> Made<rcgen::KeyPair> {
        generate_simple_self_signed(["dns.example".to_owned()]).unwrap()
    }

    fn files(folder: &Path) -> CertificateFiles {
        CertificateFiles { certificate: folder.join("cert.pem"), key: folder.join("key.pem") }
    }

    fn write(files: &CertificateFiles, made: &Made<rcgen::KeyPair>) {
        fs::write(&files.certificate, made.cert.pem()).unwrap();
        fs::write(&files.key, made.signing_key.serialize_pem()).unwrap();
    }

    #[test]
    fn what_is_wrong_is_said_with_its_file() {
        let folder = tempfile::tempdir().unwrap();
        let files = files(folder.path());
        let fails = |words: &[&str]| {
            let error = files.read().unwrap_err().to_string();
            assert!(words.iter().all(|word| error.contains(word)), "{error}");
        };
        fails(&["cannot read", "cert.pem", "No such file"]);
        let pair = made();
        write(&files, &pair);
        files.read().unwrap();
        fs::write(&files.certificate, "nothing of the kind").unwrap();
        fails(&["cert.pem holds no certificate"]);
        let pem = pair.cert.pem();
        fs::write(&files.certificate, &pem[..pem.len() / 2]).unwrap();
        fails(&["cannot use", "cert.pem"]);
        fs::write(&files.certificate, "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n").unwrap();
        fails(&["cannot use", "cert.pem"]);
        write(&files, &pair);
        fs::write(&files.key, &pem).unwrap();
        fails(&["key.pem holds no private key"]);
        fs::write(&files.key, "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n").unwrap();
        fails(&["cannot use", "key.pem"]);
        fs::write(&files.key, made().signing_key.serialize_pem()).unwrap();
        fails(&["key.pem is not that of the certificate in", "cert.pem"]);
        fs::remove_file(&files.key).unwrap();
        fails(&["cannot read", "key.pem"]);
        fs::create_dir(&files.key).unwrap();
        fails(&["cannot read", "key.pem", "not a file"]);
    }

    #[tokio::test(start_paused = true)]
    async fn files_that_change_are_read_again_and_broken_ones_change_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let files = files(folder.path());
        let (first, second) = (made(), made());
        write(&files, &first);
        let certificate = Arc::new(Certificate::open(files.clone()).unwrap());
        let stop = CancellationToken::new();
        let following = tokio::spawn(Arc::clone(&certificate).follow(stop.clone()));
        let shown = || certificate.current.load().cert[0].clone();
        assert_eq!(shown(), *first.cert.der());

        // Half of the new pair: the old one stays, however long that lasts.
        fs::write(&files.certificate, second.cert.pem()).unwrap();
        tokio::time::sleep(INTERVAL * 5).await;
        assert_eq!(shown(), *first.cert.der());
        fs::write(&files.key, second.signing_key.serialize_pem()).unwrap();
        let begun = std::time::Instant::now();
        while shown() != *second.cert.der() {
            assert!(begun.elapsed() < Duration::from_secs(30), "the new certificate is not taken");
            tokio::time::sleep(INTERVAL).await;
        }
        fs::remove_file(&files.certificate).unwrap();
        tokio::time::sleep(INTERVAL * 5).await;
        assert_eq!(shown(), *second.cert.der());
        stop.cancel();
        following.await.unwrap();
    }
}
