//! The TLS keys that several kinds of registry have.

use crate::config::error::ConfigError;
use crate::config::key::Key;
use crate::config::layers::Layers;
use crate::config::values::{boolean, invalid, path, text};
use crate::registry::Tls;

/// The TLS keys of one kind of registry.
pub(super) struct TlsKeys {
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
        let Self { tls: _, ca_file, cert_file, key_file, server_name } = *self;
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
