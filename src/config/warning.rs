//! Warnings about secret files that are unreadable or readable by every user, and about registries
//! that share a member.

use std::fmt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::error::Origin;
use super::keys;
use super::layers::{Layers, RawValue};
use super::registry::{ConfiguredRegistry, shared_member};
use crate::regular_file;

/// Mode bit that lets every user read a file.
const OTHERS_READ: u32 = 0o004;

/// A problem that does not prevent the start of the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigWarning {
    /// Source of the value.
    pub origin: Origin,
    /// The key as written, with its section.
    pub key: String,
    /// Description of the problem and its correction.
    pub why: String,
}

impl fmt::Display for ConfigWarning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { origin, key, why } = self;
        write!(f, "{origin}: {key}: {why}")
    }
}

impl ConfigWarning {
    /// Checks the files of all secrets in use, and the members of the registries.
    pub(super) fn all(layers: &Layers, registries: &[ConfiguredRegistry]) -> Vec<Self> {
        let mut warnings = Self::of_secrets(layers, registries);
        warnings.extend(Self::of_members(registries));
        warnings
    }

    /// Checks that no two registries share some of their members.
    ///
    /// Equal clusters are an error. A cluster may have any subset of its members in a URL, so a
    /// shared one usually means the same cluster twice, or a mistake in an address.
    fn of_members(registries: &[ConfiguredRegistry]) -> Vec<Self> {
        let mut warnings = Vec::new();
        for (at, registry) in registries.iter().enumerate() {
            for other in &registries[..at] {
                let (one, two) = (&other.source, &registry.source);
                if let Some(member) = shared_member(&one.source, &two.source) {
                    let why = format!(
                        "{member} is also a member of the registry {}: every member belongs to \
                         one cluster, and a cluster needs to be followed once only; correct the \
                         address, or remove one of {} and {}",
                        one.name, one.name, two.name
                    );
                    warnings.push(Self::new(&registry.url, why));
                }
            }
        }
        warnings
    }

    /// Checks the files of all secrets in use.
    ///
    /// A problem may be temporary: registries read their files again at each connect.
    fn of_secrets(layers: &Layers, registries: &[ConfiguredRegistry]) -> Vec<Self> {
        let mut files = vec![layers.one(keys::TLS_KEY_FILE)];
        for ConfiguredRegistry { kind, layers, .. } in registries {
            files.extend(kind.secret_files(layers).map(|key| layers.one(key)));
        }
        let mut warnings = Vec::new();
        for file in files.iter().filter(|file| !file.text.is_empty()) {
            let warning = check_file(Path::new(&file.text)).err().map(|why| Self::new(file, why));
            // Registries may share a file.
            warnings.extend(warning.filter(|warning| !warnings.contains(warning)));
        }
        warnings
    }

    fn new(value: &RawValue, why: String) -> Self {
        Self { origin: value.origin.clone(), key: value.key.clone(), why }
    }
}

/// Checks a file with a secret; the error is the reason for a warning.
fn check_file(path: &Path) -> Result<(), String> {
    let shown = path.display();
    let metadata = regular_file::open(path).and_then(|file| file.metadata());
    let metadata = metadata.map_err(|error| format!("cannot read {shown}: {error}"))?;
    let mode = metadata.permissions().mode() & 0o7777;
    if mode & OTHERS_READ != 0 {
        return Err(format!(
            "every user of this machine can read {shown} (mode {mode:04o}): run `chmod o-r {shown}`"
        ));
    }
    Ok(())
}
