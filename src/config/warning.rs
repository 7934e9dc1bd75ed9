//! Problems that do not keep svcdns from serving: files of secrets that it cannot read, or that anyone can.

use std::fmt;
use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::error::Origin;
use super::keys;
use super::layers::{Layers, Written};
use super::registry::ConfiguredRegistry;

/// The mode bit that lets anyone read a file.
const OTHERS_READ: u32 = 0o004;

/// A problem that does not keep svcdns from serving.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigWarning {
    /// Where it was written.
    pub origin: Origin,
    /// The key as it was written, with its section.
    pub key: String,
    /// What is wrong, and what to do.
    pub why: String,
}

impl fmt::Display for ConfigWarning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { origin, key, why } = self;
        write!(f, "{origin}: {key}: {why}")
    }
}

impl ConfigWarning {
    /// Looks at the files of all secrets in use. They are read again at each connect, so a problem may pass.
    pub(super) fn all(layers: &Layers, registries: &[ConfiguredRegistry]) -> Vec<Self> {
        let mut files = vec![layers.one(keys::TLS_KEY_FILE)];
        for ConfiguredRegistry { kind, layers, .. } in registries {
            let passwords = kind.secrets.iter().filter(|secret| layers.secret(secret).is_none()).map(|secret| secret.file);
            files.extend(passwords.chain(kind.private_keys.iter().copied()).map(|key| layers.one(key)));
        }
        let mut warnings = Vec::new();
        for file in files.iter().filter(|file| !file.text.is_empty()) {
            let warning = about(Path::new(&file.text)).map(|why| Self::new(file, why));
            // Registries may share a file.
            warnings.extend(warning.filter(|warning| !warnings.contains(warning)));
        }
        warnings
    }

    fn new(written: &Written, why: String) -> Self {
        Self { origin: written.origin.clone(), key: written.key.clone(), why }
    }
}

/// Says what is wrong with a file that holds a secret, if anything.
fn about(path: &Path) -> Option<String> {
    let shown = path.display();
    let metadata = match fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(error) => return Some(format!("cannot read {shown}: {error}")),
    };
    if metadata.is_dir() {
        return Some(format!("cannot read {shown}: it is a directory"));
    }
    // Opening a pipe would wait for its writer.
    if !metadata.is_file() {
        return None;
    }
    if let Err(error) = File::open(path) {
        return Some(format!("cannot read {shown}: {error}"));
    }
    let mode = metadata.permissions().mode() & 0o7777;
    (mode & OTHERS_READ != 0).then(|| format!("anyone on this machine can read {shown} (mode {mode:04o}): run `chmod o-r {shown}`"))
}
