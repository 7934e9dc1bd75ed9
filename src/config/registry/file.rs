//! GoFrame's file registry: `file:///directory`. No keys of its own.

use std::path::PathBuf;

use super::{Reader, RegistryKind, heads};
use crate::config::error::{ConfigError, Origin};
use crate::config::layers::{Layers, Written};
use crate::registry::Source;
use crate::registry::file::{FileTimings, Settings};

pub(super) static KIND: RegistryKind = RegistryKind {
    name: "file",
    form: "file:///directory",
    example: "file:///var/lib/gsvc",
    keys: &[],
    secrets: &[],
    private_keys: &[],
    read,
};

/// GoFrame's default, which nobody named: it is believed only while it belongs to root or to us.
pub(super) fn implicit(layers: &Layers) -> Result<Source, ConfigError> {
    let directory = implicit_directory();
    Ok(Source::File(Settings { directory, named: false, heads: heads(layers)?, timings: FileTimings::default() }))
}

/// The URL of GoFrame's default.
pub(super) fn implicit_url() -> Written {
    let text = format!("{}://{}", KIND.name, implicit_directory().display());
    Written { key: "registry".to_owned(), text, origin: Origin::Default }
}

fn implicit_directory() -> PathBuf {
    std::env::temp_dir().join("gsvc")
}

fn read(layers: &Layers) -> Result<Reader, ConfigError> {
    let heads = heads(layers)?;
    Ok(Box::new(move |path| {
        if !path.starts_with('/') {
            return Err("a directory is written with its whole path: file:///directory".to_owned());
        }
        let (directory, heads) = (PathBuf::from(path), heads.clone());
        Ok(Source::File(Settings { directory, named: true, heads, timings: FileTimings::default() }))
    }))
}
