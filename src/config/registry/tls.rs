//! The TLS keys that several kinds of registry have.

use crate::config::error::ConfigError;
use crate::config::key::Key;
use crate::config::layers::Layers;
use crate::config::values::{boolean, invalid, path, text};
use crate::registry::Tls;

/// Declares the TLS keys of a kind, in the section of the kind, for servers of this name.
///
/// The last text says what else turns TLS on.
macro_rules! tls_keys {
    ($section:literal $server:literal $implied_by:literal) => {
        $crate::config::key::keys! { TLS_KEY_TABLE:
            TLS = $section "tls" Bool "BOOL" "" "false"
                concat!("Connect to ", $server, " over TLS; implied by ", $implied_by, ".");
            CA_FILE = $section "ca-file" Text "FILE" "PEM file" r#""""#
                => "the system's trust store"
                concat!("Trust these CA certificates for ", $server, ".");
            CERT_FILE = $section "cert-file" Text "FILE" "PEM file" r#""""#
                concat!("Client certificate, if ", $server, " requires one.");
            KEY_FILE = $section "key-file" Text "FILE" "PEM file" r#""""#
                "Private key of the client certificate.";
            SERVER_NAME = $section "server-name" Text "NAME" "host name" r#""""#
                => "the host in the URL"
                concat!("Expect this name in ", $server, "'s certificate.");
        }

        static TLS_KEYS: $crate::config::registry::tls::TlsKeys =
            $crate::config::registry::tls::TlsKeys {
                all: TLS_KEY_TABLE,
                tls: TLS,
                ca_file: CA_FILE,
                cert_file: CERT_FILE,
                key_file: KEY_FILE,
                server_name: SERVER_NAME,
            };
    };
}

pub(super) use tls_keys;

/// The TLS keys of one kind of registry.
pub(super) struct TlsKeys {
    /// All of them, in the order of the documentation.
    pub(super) all: &'static [&'static Key],
    pub(super) tls: &'static Key,
    pub(super) ca_file: &'static Key,
    pub(super) cert_file: &'static Key,
    pub(super) key_file: &'static Key,
    pub(super) server_name: &'static Key,
}

impl TlsKeys {
    /// Reads the TLS settings; `None` if TLS is off.
    pub(super) fn read(&self, layers: &Layers) -> Result<Option<Tls>, ConfigError> {
        let tls = self.read_files(layers)?;
        let Self { ca_file, cert_file, key_file, server_name, .. } = *self;
        // If the registry's own section turns TLS off, shared keys do not turn it on again.
        let counts = |key: &&Key| layers.in_section(key) || !layers.in_section(self.tls);
        let on = boolean(layers, self.tls)?
            || [ca_file, cert_file, key_file, server_name]
                .iter()
                .filter(|key| counts(key))
                .any(|key| text(layers, key).is_some());
        Ok(on.then_some(tls))
    }

    /// Reads the TLS settings of a connection that uses TLS for another reason.
    pub(super) fn read_files(&self, layers: &Layers) -> Result<Tls, ConfigError> {
        let Self { all: _, tls: _, ca_file, cert_file, key_file, server_name } = *self;
        let tls = Tls {
            ca_file: path(layers, ca_file),
            cert_file: path(layers, cert_file),
            key_file: path(layers, key_file),
            server_name: text(layers, server_name),
        };
        let (cert, key) = (&tls.cert_file, &tls.key_file);
        for (given, value, other, missing) in
            [(cert_file, cert, key, key_file), (key_file, key, cert, cert_file)]
        {
            if value.is_some() && other.is_none() {
                let why = format!(
                    "a certificate needs its private key and vice versa: set {}",
                    layers.recommended_key(missing)
                );
                return Err(invalid(&layers.one(given), why));
            }
        }
        Ok(tls)
    }
}
