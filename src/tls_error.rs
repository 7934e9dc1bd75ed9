//! Errors of TLS connections to a server, in words: what is wrong, and what to do.
//!
//! The messages of rustls name variants of its own types; these are for the person who configures
//! the connection.

use std::io;

use tokio_rustls::rustls::{self, CertificateError};

/// The kind of a server, which decides the settings that a message names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TlsPeer {
    /// A server of a registry: its section has keys for its name, its CA and a client certificate.
    Registry,
    /// An upstream: its URL ends with its name, and no client certificate can be configured.
    Upstream,
}

impl TlsPeer {
    /// Returns the key for the file of the trusted CA certificates.
    fn ca_file(self) -> &'static str {
        match self {
            Self::Registry => "ca-file",
            Self::Upstream => "upstream-ca-file",
        }
    }

    /// Returns how to configure another name of the server, as an imperative clause.
    fn set_name(self) -> &'static str {
        match self {
            Self::Registry => "set server-name to a name in the certificate",
            Self::Upstream => "append # and a name in the certificate to the upstream",
        }
    }
}

/// Returns the error of TLS inside an error of a stream.
pub(crate) fn inside(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref()?.downcast_ref()
}

/// Returns whether a failed handshake suggests that the server does not speak TLS.
pub(crate) fn is_plain_server(error: &io::Error) -> bool {
    match inside(error) {
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

/// Describes a failed handshake in words, with a remedy if one is known.
pub(crate) fn describe_handshake(error: &io::Error, peer: TlsPeer) -> String {
    match inside(error) {
        Some(error) => describe(error, peer),
        None if is_plain_server(error) => {
            "it closed the connection during the TLS handshake".to_owned()
        }
        None => error.to_string(),
    }
}

/// Describes an error of TLS in words, with a remedy if one is known.
pub(crate) fn describe(error: &rustls::Error, peer: TlsPeer) -> String {
    use rustls::AlertDescription as Alert;
    let text = match error {
        rustls::Error::InvalidCertificate(error) => return describe_certificate(error, peer),
        rustls::Error::InvalidMessage(_) => "it does not speak TLS",
        rustls::Error::AlertReceived(Alert::CertificateRequired | Alert::BadCertificate) => {
            match peer {
                TlsPeer::Registry => {
                    "it requires a client certificate (set cert-file and key-file)"
                }
                TlsPeer::Upstream => {
                    "it requires a client certificate, which svcdns never sends to an upstream"
                }
            }
        }
        rustls::Error::AlertReceived(
            Alert::UnknownCA
            | Alert::CertificateUnknown
            | Alert::CertificateExpired
            | Alert::CertificateRevoked
            | Alert::UnsupportedCertificate
            | Alert::AccessDenied,
        ) if peer == TlsPeer::Registry => {
            "it refuses the client certificate (check cert-file: its CA, purpose and dates)"
        }
        rustls::Error::AlertReceived(Alert::UnrecognisedName) => {
            return format!("it does not know the requested name ({})", peer.set_name());
        }
        rustls::Error::AlertReceived(Alert::ProtocolVersion | Alert::HandshakeFailure)
        | rustls::Error::PeerIncompatible(_) => {
            "it shares no version or cipher of TLS with svcdns, which needs TLS 1.2 or 1.3"
        }
        rustls::Error::NoApplicationProtocol
        | rustls::Error::AlertReceived(Alert::NoApplicationProtocol) => match peer {
            TlsPeer::Registry => "it does not speak the registry's protocol",
            TlsPeer::Upstream => "it does not speak HTTP/2, which DNS over HTTPS requires",
        },
        rustls::Error::AlertReceived(_) => {
            "it ended the TLS handshake with an alert: its log says why"
        }
        rustls::Error::NoCertificatesPresented => "it presents no certificate",
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
fn describe_certificate(error: &CertificateError, peer: TlsPeer) -> String {
    let text = match error {
        CertificateError::UnknownIssuer | CertificateError::BadSignature => {
            return format!(
                "its certificate is not signed by a trusted CA (set {})",
                peer.ca_file()
            );
        }
        CertificateError::NotValidForNameContext { expected, presented } => {
            let names: Vec<_> = presented.iter().map(|name| bare_name(name)).collect();
            let names = if names.is_empty() { "no name".to_owned() } else { names.join(", ") };
            return format!(
                "its certificate is for {names}, not for {}: {}, or issue one for this name",
                expected.to_str(),
                peer.set_name()
            );
        }
        CertificateError::NotValidForName => {
            return format!("its certificate has another name ({})", peer.set_name());
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

#[cfg(test)]
mod tests {
    use rustls::AlertDescription as Alert;

    use super::*;

    #[test]
    fn remedies_name_the_settings_of_the_peer() {
        let issuer = rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer);
        let name = rustls::Error::InvalidCertificate(CertificateError::NotValidForName);
        let client = rustls::Error::AlertReceived(Alert::CertificateRequired);
        let refused = rustls::Error::AlertReceived(Alert::UnknownCA);
        let protocol = rustls::Error::AlertReceived(Alert::NoApplicationProtocol);
        for (error, registry, upstream) in [
            (issuer, "(set ca-file)", "(set upstream-ca-file)"),
            (name, "(set server-name to a name", "(append # and a name"),
            (client, "(set cert-file and key-file)", "which svcdns never sends"),
            (refused, "(check cert-file", "its log says why"),
            (protocol, "the registry's protocol", "HTTP/2"),
        ] {
            for (peer, expected) in [(TlsPeer::Registry, registry), (TlsPeer::Upstream, upstream)] {
                let text = describe(&error, peer);
                assert!(text.contains(expected), "{peer:?}: {text}");
            }
        }
    }

    #[test]
    fn errors_below_tls_keep_their_own_text() {
        let closed = io::Error::from(io::ErrorKind::UnexpectedEof);
        let text = describe_handshake(&closed, TlsPeer::Upstream);
        assert_eq!(text, "it closed the connection during the TLS handshake");
        let other = io::Error::other("no route");
        assert_eq!(describe_handshake(&other, TlsPeer::Upstream), "no route");
    }
}
