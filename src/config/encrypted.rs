//! Encrypted listeners: their addresses, and the certificate they share.

use std::net::SocketAddr;

use super::error::{ConfigError, Origin};
use super::key::Key;
use super::keys;
use super::layers::Layers;
use super::values::{invalid, list, path};
use crate::server::{CertificateFiles, EncryptedSettings, SettingsError};

/// Where the address that an error speaks of was written.
pub(super) fn origin_of(layers: &Layers, error: &SettingsError) -> Origin {
    let (SettingsError::Exposed { address, .. } | SettingsError::NoCertificate { address } | SettingsError::PortConflict { address }) = error
    else {
        return layers.origin(keys::LISTEN);
    };
    let listed = [keys::TLS_LISTEN, keys::TLS_QUIC_LISTEN, keys::LISTEN].map(|key| layers.list(key)).into_iter().flatten();
    let mut listed = listed.filter(|written| encrypted_address(&written.text).as_ref() == Ok(address));
    listed.next().map_or_else(|| layers.origin(keys::LISTEN), |written| written.origin.clone())
}

/// Where to listen, and what certificate to show.
pub(super) fn read(layers: &Layers) -> Result<EncryptedSettings, ConfigError> {
    let addresses = |key| list(layers, key, encrypted_address);
    let certificate = match (path(layers, keys::TLS_CERT_FILE), path(layers, keys::TLS_KEY_FILE)) {
        (Some(certificate), Some(key)) => Some(CertificateFiles { certificate, key }),
        (None, None) => None,
        (Some(_), None) => return Err(half(layers, keys::TLS_CERT_FILE, keys::TLS_KEY_FILE)),
        (None, Some(_)) => return Err(half(layers, keys::TLS_KEY_FILE, keys::TLS_CERT_FILE)),
    };
    Ok(EncryptedSettings { tls: addresses(keys::TLS_LISTEN)?, quic: addresses(keys::TLS_QUIC_LISTEN)?, certificate })
}

fn half(layers: &Layers, named: &Key, missing: &Key) -> ConfigError {
    invalid(&layers.one(named), format!("a certificate and its key belong together: name {}, too", missing.path()))
}

/// An address, with the port of DNS over TLS and over QUIC unless another is named (RFC 7858 section 3.1, RFC 9250 section 4.1.1).
fn encrypted_address(text: &str) -> Result<SocketAddr, String> {
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    let alone = bare.parse::<std::net::IpAddr>().map(|address| SocketAddr::new(address, 853));
    text.parse().or(alone).map_err(|_| format!("{text:?} is not an address, with or without a port, such as 192.0.2.1 or [::1]:8853"))
}
