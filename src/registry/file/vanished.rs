//! What became of a directory that vanished with its files, and of its registrations.

use std::path::Path;
use std::time::{Duration, Instant};

use super::directory::DirectoryIdentity;

/// A directory that vanished with its files.
pub(super) struct VanishedDirectory {
    pub(super) identity: DirectoryIdentity,
    /// Description of what happened.
    pub(super) event: String,
    /// Registered files that were in it.
    pub(super) files: usize,
    /// The end of the removal grace.
    pub(super) held_until: Instant,
}

impl VanishedDirectory {
    /// Describes what happened, what became of the registrations, and what to do.
    pub(super) fn note(&self, grace: Duration) -> String {
        let Self { event, files, .. } = self;
        if grace.is_zero() {
            return format!("{event}; its registrations ({files}) were removed");
        }
        format!(
            "{event}; its registrations ({files}) are served for at most {} s (removal-grace): put \
             it back, or let the programs register again",
            grace.as_secs_f64()
        )
    }
}

/// Describes that another directory has taken the place of the vanished one.
pub(super) fn another_directory(path: &Path) -> String {
    format!(
        "{} is now another directory: the one before was moved away, unmounted or covered by a \
         mount",
        path.display()
    )
}
