//! The section `[tls]`: encrypted listeners and their certificate.

use std::net::{IpAddr, SocketAddr};

use super::error::{ConfigError, Origin};
use super::key::Key;
use super::keys;
use super::layers::Layers;
use super::values::{invalid, list, path};
use crate::server::{CertificateFiles, EncryptedSettings, SettingsError};

/// Default port of DNS over TLS and over QUIC.
///
/// RFC 7858 section 3.1, RFC 9250 section 4.1.1.
const ENCRYPTED_DNS_PORT: u16 = 853;

/// Returns the origin of the address that an error is about.
pub(super) fn origin_of(layers: &Layers, error: &SettingsError) -> Origin {
    let (SettingsError::Exposed { address, .. }
    | SettingsError::NoCertificate { address }
    | SettingsError::PortConflict { address }) = error
    else {
        return layers.origin(keys::LISTEN);
    };
    [keys::TLS_LISTEN, keys::TLS_QUIC_LISTEN, keys::LISTEN]
        .iter()
        .flat_map(|key| layers.list(key))
        .find(|value| parse_address(&value.text).as_ref() == Ok(address))
        .map_or_else(|| layers.origin(keys::LISTEN), |value| value.origin.clone())
}

/// Reads the addresses and the certificate of the encrypted listeners.
pub(super) fn read(layers: &Layers) -> Result<EncryptedSettings, ConfigError> {
    let addresses = |key| list(layers, key, parse_address);
    let (cert, key) = (path(layers, keys::TLS_CERT_FILE), path(layers, keys::TLS_KEY_FILE));
    let certificate = match (cert, key) {
        (Some(certificate), Some(key)) => Some(CertificateFiles { certificate, key }),
        (None, None) => None,
        (Some(_), None) => {
            return Err(incomplete(layers, keys::TLS_CERT_FILE, keys::TLS_KEY_FILE));
        }
        (None, Some(_)) => {
            return Err(incomplete(layers, keys::TLS_KEY_FILE, keys::TLS_CERT_FILE));
        }
    };
    Ok(EncryptedSettings {
        tls: addresses(keys::TLS_LISTEN)?,
        quic: addresses(keys::TLS_QUIC_LISTEN)?,
        certificate,
    })
}

fn incomplete(layers: &Layers, given: &Key, missing: &Key) -> ConfigError {
    let why = format!("a certificate needs its private key and vice versa: set {}", missing.path());
    invalid(&layers.one(given), why)
}

/// Parses an address with an optional port; an IPv6 address may be in brackets.
fn parse_address(text: &str) -> Result<SocketAddr, String> {
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    let with_default_port =
        bare.parse::<IpAddr>().map(|address| SocketAddr::new(address, ENCRYPTED_DNS_PORT));
    text.parse().or(with_default_port).map_err(|_| {
        format!("{text:?} is not an address with an optional port, such as 192.0.2.1 or [::1]:8853")
    })
}
