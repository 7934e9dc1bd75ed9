//! Where a configuration comes from, to load it again.

use std::path::PathBuf;

use super::{Config, ConfigError, Flags};

/// The sources of a configuration besides the environment of the process.
#[derive(Clone, Debug, Default)]
pub struct ConfigSource {
    /// The configuration file of `--config`, if given.
    pub file: Option<PathBuf>,
    /// The flags, those of the directories included.
    pub flags: Flags,
}

impl ConfigSource {
    /// Loads the configuration from the file, the environment and the flags.
    ///
    /// # Errors
    /// Returns the first error found, with its origin.
    pub fn load(&self) -> Result<Config, ConfigError> {
        let environment = std::env::vars_os().map(|(name, value)| {
            (name.to_string_lossy().into_owned(), value.to_string_lossy().into_owned())
        });
        Config::load(self.file.as_deref(), environment, &self.flags)
    }
}
