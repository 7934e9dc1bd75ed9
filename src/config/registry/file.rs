//! GoFrame's file registry: `file:///directory`. It has no keys of its own.

use std::path::PathBuf;

use super::{RegistryKind, UrlParser, heads};
use crate::config::error::{ConfigError, Origin};
use crate::config::layers::{Layers, RawValue};
use crate::registry::Source;
use crate::registry::file::{FileTimings, Settings};

pub(super) static KIND: RegistryKind = RegistryKind {
    name: "file",
    tls_scheme: None,
    form: "file:///directory",
    example: "file:///var/lib/gsvc",
    keys: &[],
    secrets: &[],
    tls: None,
    note: None,
    read,
};

/// Returns GoFrame's default registry.
///
/// The server follows it only while root or the server's user owns the directory.
pub(super) fn default_source(layers: &Layers) -> Result<Source, ConfigError> {
    let heads = heads(layers)?;
    let directory = default_directory();
    Ok(Source::File(Settings { directory, named: false, heads, timings: FileTimings::default() }))
}

/// Returns the URL of GoFrame's default registry.
pub(super) fn default_url() -> RawValue {
    let text = format!("{}://{}", KIND.name, default_directory().display());
    RawValue { key: "registry".to_owned(), text, origin: Origin::Default }
}

fn default_directory() -> PathBuf {
    std::env::temp_dir().join("gsvc")
}

fn read(layers: &Layers) -> Result<UrlParser, ConfigError> {
    let heads = heads(layers)?;
    Ok(Box::new(move |_, path| {
        if !path.starts_with('/') {
            return Err("the directory must be an absolute path: file:///directory".to_owned());
        }
        let (directory, heads) = (PathBuf::from(path), heads.clone());
        Ok(Source::File(Settings {
            directory,
            named: true,
            heads,
            timings: FileTimings::default(),
        }))
    }))
}
