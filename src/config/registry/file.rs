//! GoFrame's file registry: `file:///directory`. No keys of its own.

use std::path::PathBuf;

use super::{Reader, RegistryKind, heads};
use crate::config::error::ConfigError;
use crate::config::layers::Layers;
use crate::registry::Source;
use crate::registry::file::{Settings, Timings};

pub(super) static KIND: RegistryKind = RegistryKind { name: "file", form: "file:///directory", keys: &[], secret: None, read };

/// GoFrame's default, which nobody named: it is believed only while it belongs to root or to us.
pub(super) fn implicit(layers: &Layers) -> Result<Source, ConfigError> {
    let directory = std::env::temp_dir().join("gsvc");
    Ok(Source::File(Settings { directory, named: false, heads: heads(layers)?, timings: Timings::default() }))
}

fn read(layers: &Layers) -> Result<Reader, ConfigError> {
    let heads = heads(layers)?;
    Ok(Box::new(move |path| {
        if !path.starts_with('/') {
            return Err("a directory is written with its whole path: file:///directory".to_owned());
        }
        let (directory, heads) = (PathBuf::from(path), heads.clone());
        Ok(Source::File(Settings { directory, named: true, heads, timings: Timings::default() }))
    }))
}
