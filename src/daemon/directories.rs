//! The runtime and state directories of the running server.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use crate::config::Config;
use crate::directory::{Candidate, DirectoryError, DirectoryKind, OwnDirectory, TrustRule};

/// The directories of a server, locked until dropped.
#[derive(Debug)]
pub(super) struct Directories {
    runtime: OwnDirectory,
    state: StateLocation,
}

/// Location of the state directory.
#[derive(Debug)]
enum StateLocation {
    /// The server has no state directory.
    None,
    /// The runtime directory is also the state directory.
    InRuntime,
    /// A separate directory.
    Separate(OwnDirectory),
}

impl Directories {
    /// Locks both directories, and creates them if needed.
    ///
    /// If no default state directory is usable, the server runs without keeping state. `passed` has
    /// the locks of the running server that this one succeeds.
    ///
    /// # Errors
    /// If another server uses one of them, or if the runtime directory or a configured state
    /// directory cannot be used.
    pub(super) fn take(config: &Config, passed: &mut Vec<File>) -> Result<Self, DirectoryError> {
        let both = config.state_dir.is_some() && config.runtime_dir == config.state_dir;
        let kind = if both { DirectoryKind::Both } else { DirectoryKind::Runtime };
        let runtime = OwnDirectory::take(&config.runtime_directory(), kind, passed)?;
        let state = match config.state_directory() {
            None => {
                tracing::warn!(
                    "no state is kept across restarts, because this user has no home: \
                     name a directory with --state-dir"
                );
                StateLocation::None
            }
            Some(candidate) if runtime.is_at(&candidate.path) => StateLocation::InRuntime,
            Some(candidate) => take_state(&candidate, passed)?,
        };
        Ok(Self { runtime, state })
    }

    /// Returns second descriptors of the locks, for a successor.
    ///
    /// # Errors
    /// If the system has no further descriptors.
    pub(super) fn shared_locks(&self) -> io::Result<Vec<OwnedFd>> {
        let mut locks = vec![self.runtime.shared_lock()?];
        if let StateLocation::Separate(directory) = &self.state {
            locks.push(directory.shared_lock()?);
        }
        Ok(locks)
    }

    /// Leaves the locks to a successor, which has descriptors of them.
    pub(super) fn hand_over(&mut self) {
        self.runtime.hand_over();
        if let StateLocation::Separate(directory) = &mut self.state {
            directory.hand_over();
        }
    }

    /// Takes the files of the locks over from the server that passed the locks.
    pub(super) fn take_over(&mut self) {
        self.runtime.take_over();
        if let StateLocation::Separate(directory) = &mut self.state {
            directory.take_over();
        }
    }

    /// Returns the runtime directory, which contains the socket.
    pub(super) fn runtime(&self) -> &OwnDirectory {
        &self.runtime
    }

    /// Returns the path of the state directory, if there is one.
    pub(super) fn state_path(&self) -> Option<&Path> {
        match &self.state {
            StateLocation::None => None,
            StateLocation::InRuntime => Some(self.runtime.path()),
            StateLocation::Separate(directory) => Some(directory.path()),
        }
    }
}

fn take_state(
    candidate: &Candidate,
    passed: &mut Vec<File>,
) -> Result<StateLocation, DirectoryError> {
    match OwnDirectory::take(candidate, DirectoryKind::State, passed) {
        Ok(directory) => Ok(StateLocation::Separate(directory)),
        Err(error) if candidate.trust == TrustRule::Named => Err(error),
        Err(error @ DirectoryError::Taken { .. }) => Err(error),
        Err(error) => {
            tracing::warn!(%error, "no state is kept across restarts");
            Ok(StateLocation::None)
        }
    }
}
