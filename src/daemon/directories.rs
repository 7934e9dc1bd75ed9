//! The two directories of the running server.

use std::path::Path;

use crate::config::Config;
use crate::directory::{Candidate, DirectoryError, DirectoryKind, OwnDirectory, TrustRule};

/// The directories that the server has to itself until this is dropped.
#[derive(Debug)]
pub(super) struct Directories {
    runtime: OwnDirectory,
    state: StatePlace,
}

/// Where what is kept goes.
#[derive(Debug)]
enum StatePlace {
    /// Nowhere.
    Nowhere,
    /// Into the runtime directory.
    InRuntime,
    /// Into a directory of its own.
    Apart(OwnDirectory),
}

impl Directories {
    /// Takes both; the server goes on without a state directory that nobody named.
    ///
    /// # Errors
    /// When a directory has another server, or one that is needed cannot be had.
    pub(super) fn take(config: &Config) -> Result<Self, DirectoryError> {
        let both = config.state_dir.is_some() && config.runtime_dir == config.state_dir;
        let kind = if both { DirectoryKind::Both } else { DirectoryKind::Runtime };
        let runtime = OwnDirectory::take(&config.runtime_directory(), kind)?;
        let state = match config.state_directory() {
            None => {
                tracing::warn!(
                    "nothing is kept over a restart, because this user has no home: \
                     name a directory with --state-dir"
                );
                StatePlace::Nowhere
            }
            Some(candidate) if runtime.is_at(&candidate.path) => StatePlace::InRuntime,
            Some(candidate) => take_state(&candidate)?,
        };
        Ok(Self { runtime, state })
    }

    /// Returns the one with the socket.
    pub(super) fn runtime(&self) -> &OwnDirectory {
        &self.runtime
    }

    /// Returns the path of the one that is kept, if there is one.
    pub(super) fn state_path(&self) -> Option<&Path> {
        match &self.state {
            StatePlace::Nowhere => None,
            StatePlace::InRuntime => Some(self.runtime.path()),
            StatePlace::Apart(directory) => Some(directory.path()),
        }
    }
}

fn take_state(candidate: &Candidate) -> Result<StatePlace, DirectoryError> {
    match OwnDirectory::take(candidate, DirectoryKind::State) {
        Ok(directory) => Ok(StatePlace::Apart(directory)),
        Err(error) if candidate.trust == TrustRule::Named => Err(error),
        Err(error @ DirectoryError::Taken { .. }) => Err(error),
        Err(error) => {
            tracing::warn!("nothing is kept over a restart: {error}");
            Ok(StatePlace::Nowhere)
        }
    }
}
